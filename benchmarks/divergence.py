"""Divergences over a vocabulary of 49,152 at 2,048 positions, forward and backward: ours against TRL's two forms.

And the same loss from the 64 likeliest ids, as they are kept of a teacher's law, against our own over all.

Each measurement is a process of its own (memory is a high-water mark), in turn. TRL's chunked divergence is
`trl.kernels.chunked_divergence`, its older one `GKDTrainer.generalized_jsd_loss` on full logits of both models.
Checked first in float32: all three make the same value and the same gradients.
"""

from __future__ import annotations

import _peers  # first: it pins the threads

import json
import os
import statistics
import subprocess
import sys
import time
from typing import Any

os.environ.setdefault("TRL_EXPERIMENTAL_SILENCE", "1")

import torch
from hydrometer.models.causal_lm.cpu.freed_memory import keep_freed_memory
from hydrometer.core.distillation import TeacherLaw
from hydrometer.models.objectives import Divergence
from hydrometer.models.causal_lm.training.kept_rows import KeptRows
from hydrometer.models.causal_lm.training.losses import TeacherRows, linear_divergence
from trl.experimental.gkd import GKDTrainer
from trl.kernels.chunked_divergence import ChunkedDivergenceFunction

M, V, WIDE = 2048, 49152, 576
KINDS = {"kl_teacher_student": 0.0, "kl_student_teacher": 1.0, "jsd": 0.5}
MAKERS = ("hydrometer", "trl chunked", "trl")
KEPT, K = "top_k_bucket", 64
DTYPES = {"bfloat16": torch.bfloat16, "float32": torch.float32}


def leaves(width: int, dtype: torch.dtype) -> list[torch.Tensor]:
    g = torch.Generator().manual_seed(0)
    h, w = torch.randn(M, width, generator=g), torch.randn(V, width, generator=g) / width**0.5
    theirs = torch.randn(M, WIDE, generator=g), torch.randn(V, WIDE, generator=g) / WIDE**0.5
    out = [x.to(dtype) for x in (h, w, *theirs)]
    for x in out[:2]:
        x.requires_grad_()
    return out


def kept(states: torch.Tensor, weight: torch.Tensor) -> KeptRows:
    """What a stage keeps of a teacher's law."""
    parts = [
        (states[at : at + 256].float() @ weight.float().t()).log_softmax(-1).topk(K, -1) for at in range(0, M, 256)
    ]
    log_p, ids = (torch.cat(x) for x in zip(*parts, strict=True))
    return KeptRows.of(TeacherLaw(KEPT, (("k", K),)), ids, log_p, torch.log1p(-log_p.exp().sum(-1)))


def loss_of(maker: str, kind: str, h: Any, w: Any, th: Any, tw: Any) -> torch.Tensor:
    if maker == KEPT:
        target = tw, Divergence(kind)
        return linear_divergence(h, (w, None), torch.zeros(M, dtype=torch.long), target, n_items=M, vocab_size=V)
    if maker == "hydrometer":
        ids = torch.zeros(M, dtype=torch.long)
        return linear_divergence(h, (w, None), ids, (TeacherRows(th, tw), Divergence(kind)), n_items=M, vocab_size=V)
    if maker == "trl chunked":
        function: Any = ChunkedDivergenceFunction
        return function.apply(h, w, None, th, tw, None, KINDS[kind])[0].mean()
    return GKDTrainer.generalized_jsd_loss((h @ w.t())[None], (th @ tw.t())[None], beta=KINDS[kind]) * 1.0


def one(maker: str, kind: str, width: int, dtype: str, repeats: int) -> dict[str, Any]:
    torch.set_num_threads(_peers.THREADS)
    keep_freed_memory()  # as `run` does
    x = leaves(width, DTYPES[dtype])
    if maker == KEPT:
        x = [*x[:2], None, kept(*x[2:])]
    loss_of(maker, kind, *x).backward()  # compiles
    seconds: list[float] = []
    with _peers.Peak() as peak:
        for _ in range(repeats):
            x[0].grad = x[1].grad = None
            began = time.perf_counter()
            loss = loss_of(maker, kind, *x)
            loss.backward()
            seconds.append(time.perf_counter() - began)
    return {"seconds": seconds, "peak": peak.mb, "value": float(loss)}


def check() -> None:
    for kind in KINDS:
        found = []
        for maker in MAKERS:
            x = leaves(64, torch.float32)
            (loss := loss_of(maker, kind, *x)).backward()
            found.append((loss.detach(), x[0].grad, x[1].grad))
        for other in found[1:]:
            scale = float(found[0][0] / other[0])
            for mine, theirs in zip(found[0], other, strict=True):
                torch.testing.assert_close(mine, theirs * scale, rtol=1e-3, atol=1e-7)
            print(f"{kind}: value of the peer times {scale:.6f}")


def main() -> None:
    if len(sys.argv) > 1 and sys.argv[1].startswith("["):
        print(json.dumps(one(*json.loads(sys.argv[1]))))
        return
    args = _peers.arguments(__doc__ or "")
    results = []
    for dtype in DTYPES:
        for width in (256, WIDE):
            title = f"jsd from the top {K}, width {width}, {dtype}"
            if args.only not in title:
                continue
            rates = {KEPT: list[float](), "all ids": list[float]()}
            for _ in range(args.repeats):
                for name, maker in ((KEPT, KEPT), ("all ids", "hydrometer")):
                    rates[name].append(M / statistics.median(child(maker, "jsd", width, dtype)["seconds"]))
            results.append(_peers.report(title, rates, "positions/s", ours=KEPT))
    check()
    for kind in KINDS:
        for dtype in DTYPES:
            for width in (256, WIDE):
                title = f"{kind}, width {width}, {dtype}"
                if args.only not in title:
                    continue
                rates: dict[str, list[float]] = {maker: [] for maker in MAKERS}
                peaks: dict[str, list[float]] = {maker: [] for maker in MAKERS}
                for _ in range(args.repeats):
                    for maker in MAKERS:
                        found = child(maker, kind, width, dtype)
                        rates[maker].append(M / statistics.median(found["seconds"]))
                        peaks[maker].append(found["peak"])
                results.append(_peers.report(title, rates, "positions/s") | {"peaks": peaks})
                print("  peak MB: " + ", ".join(f"{m} {statistics.median(v):.0f}" for m, v in peaks.items()))
    _peers.finish(results, args.json)


def child(maker: str, kind: str, width: int, dtype: str) -> dict[str, Any]:
    asked = json.dumps([maker, kind, width, dtype, 2])
    done = subprocess.run([sys.executable, __file__, asked], capture_output=True, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])


if __name__ == "__main__":
    main()
