"""Scoring 512 sequences of 16 to 128 tokens: ours against padded batches, float32 log_softmax and a gather.

The peer does what the paper's released evaluation does, in the same dtype, at its best batch size; its rate and peak
memory are measured on the first 256 of the sequences. Checked first: equal log-probabilities in float32. Each
measurement runs in a separate process (memory is a high-water mark), in turn.
"""

from __future__ import annotations

import _peers  # first: it pins the threads

import json
import statistics
import sys
import time
from typing import Any

import numpy as np
import torch
from hydrometer.models.causal_lm.inference.model import CausalLM
from hydrometer.models.causal_lm.inference.scorer import score_steps
from hydrometer.models.rows.sequences import Sequences

BATCHES = (8, 16, 32, 64)


def rows(lm: CausalLM, n: int) -> Sequences:
    """Answers to the begin-of-sequence token: draws of random ids, mixed lengths, in no order."""
    generator = np.random.default_rng(0)
    lengths = generator.integers(16, 129, n)
    ids = generator.integers(5, 49152, (n, 128)) * (np.arange(128) < lengths[:, None])
    return Sequences(
        ((lm.tokenizer.bos_token_id,),), np.zeros(n, np.int64), ids, lengths, np.zeros(n, np.bool_), np.zeros(n)
    )


@torch.inference_mode()
def padded(lm: CausalLM, x: Sequences, batch: int) -> np.ndarray:
    out = []
    for at in range(0, len(x), batch):
        part = x.take(slice(at, at + batch))
        ids = torch.from_numpy(np.concatenate([np.full((len(part), 1), x.prompt_ids[0][0]), part.ids], 1))
        wanted = torch.from_numpy(np.arange(part.ids.shape[1]) < part.lengths[:, None])
        mask = torch.cat([torch.ones(len(part), 1, dtype=torch.bool), wanted], 1)
        logits = lm.model(ids, attention_mask=mask.long()).logits[:, :-1]
        log_p = logits.float().log_softmax(-1).gather(-1, ids[:, 1:, None])[..., 0]
        out.append((log_p * wanted).sum(-1))
    return torch.cat(out).double().numpy()


def one(kind: str, dtype: str, n: int, batch: int) -> dict[str, Any]:
    torch.set_num_threads(_peers.THREADS)
    lm = CausalLM.from_pretrained("smollm2-135m-instruct", dtype=dtype)  # type: ignore[arg-type]
    x = rows(lm, n)
    law = lm.law(None, max_new_tokens=128)
    work = {
        "hydrometer": lambda x: score_steps(law, x).selected.sum(-1),
        "padded batches": lambda x: padded(lm, x, batch),
    }[kind]
    if kind == "padded batches":
        del law
    work(x.take(slice(0, 4)))
    with _peers.Peak() as peak:
        begin = time.perf_counter()
        log_p = work(x)
        seconds = time.perf_counter() - begin
    tokens = int(x.lengths.sum())
    return {"log_p": log_p.tolist(), "tokens_per_second": tokens / seconds, "peak_mb": peak.mb}


def main() -> None:
    if len(sys.argv) > 1 and sys.argv[1] == "--child":
        kind, dtype, n, batch = sys.argv[2:]
        print("RESULT " + json.dumps(one(kind, dtype, int(n), int(batch))))
        return
    args = _peers.arguments(__doc__ or "")

    def run(kind: str, dtype: str, n: int, batch: int) -> dict[str, Any]:
        out = _peers.child("score.py", "--child", kind, dtype, str(n), str(batch))
        return json.loads(next(x for x in out.splitlines() if x.startswith("RESULT "))[7:])

    exact = run("hydrometer", "float32", 64, 8)["log_p"]
    peer = run("padded batches", "float32", 64, 8)["log_p"]
    gap = max(abs(a - b) for a, b in zip(exact, peer, strict=True))
    print(f"float32 log-probabilities of 64 sequences, largest difference {gap:.1e} nats")
    assert gap < 1e-2, gap
    results: list[dict[str, object]] = []
    for dtype in ("bfloat16", "float32"):
        if args.only not in dtype:
            continue
        trials = {b: run("padded batches", dtype, 64, b)["tokens_per_second"] for b in BATCHES}
        best = max(trials, key=lambda b: trials[b])
        if dtype == "bfloat16":
            for kind in ("hydrometer", "padded batches"):
                near = run(kind, dtype, 64, best)["log_p"]
                off = np.array(near) - np.array(exact)
                rms = np.sqrt((off**2).mean())
                print(f"  {kind}, bfloat16 less float32, nats a sequence: mean {off.mean():+.2f}, rms {rms:.2f}")
        rates: dict[str, list[float]] = {"hydrometer": [], "padded batches": []}
        peaks: dict[str, list[float]] = {"hydrometer": [], "padded batches": []}
        for _ in range(args.repeats):
            for kind in rates:
                r = run(kind, dtype, 512 if kind == "hydrometer" else 256, best)
                rates[kind].append(r["tokens_per_second"])
                peaks[kind].append(r["peak_mb"])
        found = _peers.report(f"score 512 sequences of 16 to 128 tokens, {dtype} (peer's batch {best})", rates, "tok/s")
        found["peak_mb"] = {k: statistics.median(v) for k, v in peaks.items()}
        print(f"  peak above weights, MB: {found['peak_mb']}")
        results.append(found)
    _peers.finish(results, args.json)


if __name__ == "__main__":
    main()
