"""Exactness on the real model, float32: the sampler's log-probabilities against two scorers, at every selectivity.

The engine's own scorer, which must agree within 1e-4 nats a token; and, for information, the general path,
transformers' forward on padded rows, whose products, attention and norms are other code. 10,000 tokens or more
each; steps near their edge are counted and left out.
"""

from __future__ import annotations

import _peers  # first: it pins the threads

import importlib.resources

import numpy as np
import torch
from hydrometer.core.spec import Selectivity
from hydrometer.models.causal_lm.inference.model import CausalLM
from hydrometer.models.causal_lm.inference.scorer import score_steps
from hydrometer.models.causal_lm.spec import PromptsFile

SETTINGS = (
    Selectivity(temperature=1.0),
    Selectivity(temperature=0.6),
    Selectivity(top_p=0.9),
    Selectivity(top_k=50),
    Selectivity(min_p=0.05),
    Selectivity(temperature=0.8, top_k=100, top_p=0.95, min_p=0.01),
)


def main() -> None:
    args = _peers.arguments(__doc__ or "")
    torch.set_num_threads(_peers.THREADS)
    lm = CausalLM.from_pretrained("smollm2-135m-instruct", dtype="float32")
    prompts = importlib.resources.files("hydrometer.recipes") / "short-sentences.jsonl"
    results: list[dict[str, object]] = []
    for label, given in (("chat prompts", PromptsFile(file=str(prompts), chat=True)), ("no prompt", None)):
        for s in SETTINGS:
            if args.only not in f"{label} {s.label}":
                continue
            law = lm.law(given, max_new_tokens=48, block_rows=128).select(s)
            x = law.sample(384, seed=1)
            step = np.arange(x.ids.shape[1]) < x.lengths[:, None]
            assert x.token_log_prob is not None
            lm.is_llama = True
            own = score_steps(law, x)
            lm.is_llama = False
            other = score_steps(law, x)
            lm.is_llama = True
            clear = step & ~own.near_edge
            with np.errstate(invalid="ignore"):
                gaps = [float(np.abs(scores.selected - x.token_log_prob)[clear].max()) for scores in (own, other)]
            tokens = int(step.sum())
            share = float(own.near_edge[step].mean())
            print(
                f"{label}, {s.label or 'neutral'}: {tokens} tokens, near their edge {share:.3%}; largest gap a token, "
                f"engine's scorer {gaps[0]:.1e}, transformers' forward {gaps[1]:.1e} nats",
                flush=True,
            )
            results.append({"law": label, "selectivity": s.label, "tokens": tokens, "near": share, "gaps": gaps})
            assert gaps[0] < 1e-4
    _peers.finish(results, args.json)


if __name__ == "__main__":
    main()
