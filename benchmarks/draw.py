"""Drawing: ours against transformers' `generate` at its best batch size, and vLLM on the CPU, same tokens to draw.

A peer's rate is that of one batch at its best size. Every row draws exactly its full length (an empty stop set), with
the log-probability of every token recorded by ours and, by vLLM, with logprobs=0; `generate` records none. Checked
first: the mean log-probability a token of each peer's draws, scored in float32, agrees with ours within 4 standard
errors.

vLLM needs a separate environment; set VLLM_PYTHON to its interpreter (see README.md), or it is left out.
"""

from __future__ import annotations

import _peers  # first: it pins the threads

import json
import math
import os
import subprocess
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from hydrometer.core.spec import Selectivity
from hydrometer.models.causal_lm.loading import load
from hydrometer.models.causal_lm.inference.model import CausalLM
from hydrometer.models.causal_lm.inference.scorer import score_steps
from hydrometer.models.rows.sequences import Sequences
from transformers import LlamaConfig, LlamaForCausalLM

ROWS, TOKENS, CHECKED = 256, 64, 64
transformers.utils.logging.set_verbosity_error()


def student(tokenizer: Any) -> CausalLM:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=49152, hidden_size=256, intermediate_size=683, num_hidden_layers=4, num_attention_heads=4,
        num_key_value_heads=4, max_position_embeddings=1024, tie_word_embeddings=True, initializer_range=0.1,
    )  # fmt: skip
    return CausalLM(LlamaForCausalLM(config), tokenizer)


def generate(lm: CausalLM, batch: int, top_p: float, rows: int = ROWS, tokens: int = TOKENS) -> np.ndarray:
    start = lm.tokenizer.bos_token_id
    out = []
    for _ in range(rows // batch):
        ids = torch.full((batch, 1), start)
        out.append(
            lm.model.generate(
                ids, attention_mask=torch.ones_like(ids), do_sample=True, temperature=1.0, top_k=0, top_p=top_p,
                max_new_tokens=tokens, min_new_tokens=tokens, eos_token_id=None, pad_token_id=0,
            )[:, 1:]
        )  # fmt: skip
    return torch.cat(out).numpy()


class VLLM:
    """vLLM in its own process, drawing when told."""

    def __init__(self, model: str) -> None:
        env = {
            **os.environ, "VLLM_CPU_KVCACHE_SPACE": "4", "VLLM_CPU_OMP_THREADS_BIND": f"0-{_peers.THREADS - 1}",
            "VLLM_ENABLE_V1_MULTIPROCESSING": "0", "HF_HUB_OFFLINE": "1",
        }  # fmt: skip
        env.pop("OMP_NUM_THREADS")  # vLLM binds its own
        script = str(Path(__file__).with_name("_vllm_draw.py"))
        self.process = subprocess.Popen(
            [os.environ["VLLM_PYTHON"], script, model], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL, text=True, env=env,
        )  # fmt: skip

    def ask(self, batch: int, top_p: float, rows: int = ROWS) -> dict[str, Any]:
        """Draw; seconds taken and, of few rows, the ids."""
        assert self.process.stdin
        assert self.process.stdout
        self.process.stdin.write(json.dumps([batch, top_p, rows, TOKENS]) + "\n")
        self.process.stdin.flush()
        for line in self.process.stdout:
            if line.startswith("RESULT "):
                return json.loads(line[7:])
        raise RuntimeError("vLLM stopped")


def agree(law: Any, ours: Sequences, ids: np.ndarray, name: str) -> None:
    """Mean nats a token of a peer's draws, and of ours, under the float32 law."""
    n = len(ids)
    zeros = np.zeros(n, np.int64)
    theirs = Sequences(law.prompts.ids, zeros, ids, zeros + TOKENS, zeros > 0, zeros.astype(float))
    with torch.inference_mode():
        a = score_steps(law, ours.take(slice(0, n))).unselected.mean(1)
        b = score_steps(law, theirs).unselected.mean(1)
    gap, se = a.mean() - b.mean(), math.sqrt(a.var(ddof=1) / n + b.var(ddof=1) / n)
    print(f"  check, mean log-probability a token: ours {a.mean():.3f}, {name} {b.mean():.3f}; gap {gap / se:+.1f} SE")
    assert abs(gap) < 4 * se, (gap, se)


def main() -> None:
    args = _peers.arguments(__doc__ or "")
    torch.set_num_threads(_peers.THREADS)
    print(f"bfloat16 product, 2048 cubed: {_peers.matmul_rate(torch.bfloat16):.0f} GFLOP/s")
    truth = CausalLM.from_pretrained("smollm2-135m-instruct", dtype="bfloat16")
    exact = CausalLM.from_pretrained("smollm2-135m-instruct", dtype="float32")
    small = student(truth.tokenizer)
    with tempfile.TemporaryDirectory() as folder:
        small.save(folder)
        small_16 = CausalLM.from_pretrained(folder, dtype="bfloat16")
    served = VLLM(load.resolve("smollm2-135m-instruct").path) if os.environ.get("VLLM_PYTHON") else None
    results: list[dict[str, object]] = []
    for name, lm, right, top_p in (
        ("SmolLM2-135M, temperature 1", truth, exact, 1.0),
        ("SmolLM2-135M, top_p 0.9", truth, exact, 0.9),
        ("4-layer width-256 student, temperature 1", small_16, small, 1.0),
    ):
        if args.only not in name:
            continue
        lm.frozen = True  # as `run` opens models: laid-out weights are kept from draw to draw
        law = lm.law(None, max_new_tokens=TOKENS, stop=[], block_rows=128)
        law = law if top_p == 1 else law.select(Selectivity(top_p=top_p))
        judge = right.law(None, max_new_tokens=TOKENS, stop=[])
        vllm = served if lm is truth else None
        ours = law.sample(ROWS, seed=0)
        agree(judge, ours, generate(lm, CHECKED, top_p, CHECKED), "generate")
        if vllm is not None:
            agree(judge, ours, np.array(vllm.ask(CHECKED, top_p, CHECKED)["ids"]), "vLLM")

        def trial(batch: int, tokens: int = TOKENS, lm: CausalLM = lm, top_p: float = top_p) -> float:
            return _peers.timed(lambda: generate(lm, batch, top_p, batch, tokens), batch * tokens)()

        trials = {b: trial(b, 16) for b in (64, 128, 256)}
        best = max(trials, key=lambda b: trials[b])
        seeds = iter(range(1, 1000))
        works = {
            "hydrometer": _peers.timed(lambda law=law, seeds=seeds: law.sample(ROWS, seed=next(seeds)), ROWS * TOKENS),
            f"generate, batch {best}": lambda b=best, trial=trial: trial(b),
        }
        if vllm is not None:
            served_at = {b: b * TOKENS / vllm.ask(b, top_p, b)["seconds"] for b in (128, 256)}
            b = max(served_at, key=lambda b: served_at[b])
            works[f"vLLM, logprobs=0, batch {b}"] = lambda v=vllm, b=b, p=top_p: b * TOKENS / v.ask(b, p, b)["seconds"]
        results.append(
            _peers.report(f"draw {ROWS} x {TOKENS}, {name}, bf16", _peers.in_turn(works, args.repeats), "tok/s")
        )
    _peers.finish(results, args.json)


if __name__ == "__main__":
    main()
