"""A draw from next-token laws in one Triton kernel: selectivity, inverse CDF, both log-probabilities; a row a program.

What `networks.selected_logits` sorts for is found here by bisection over the bits of a float: the largest threshold
above which there are top_k ids, or mass top_p. A row of logits is read from memory once and from the cache thereafter,
and nothing of its size is written. Sums are float64. Tests run the same kernel in Triton's interpreter.
"""

# pyright: reportMissingImports=false, reportIndexIssue=false, reportUntypedFunctionDecorator=false
# pyright: reportMissingParameterType=false, reportUnusedVariable=false

from __future__ import annotations

from functools import lru_cache
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from hydrometer.models.causal_lm.cpu import logit_kernels

__all__ = ["draw_rows"]

_BLOCK = 4096
_LEAST = tl.constexpr(logit_kernels.LEAST)
_WEIGHTY = tl.constexpr(logit_kernels.WEIGHTY)


def draw_rows(logits_MV: Tensor, terms: tuple[Any, int, float, Any], u_M: Tensor) -> tuple[Tensor, ...]:
    """Draw one id a row.

    Parameters
    ----------
    logits_MV : float32 or bfloat16, rows of any stride. terms : of `next_token.terms_of`. u_M : float64 in (0, 1).

    Returns
    -------
    ids (M,) int64; log-probability under the selected law, and under the law itself, (M,) float64 nats; whether
    rounding at the selectivity's edge could show, (M,) bool.
    """
    m, n = logits_MV.shape
    rate, top_k, top_p, log_min_p = terms
    drops = 1 * (0 < top_k < n) + 2 * (top_p < 1) + 4 * (log_min_p > -torch.inf)
    step = 2 * logit_kernels.NEAR_EDGE * float(rate)
    numbers = _on_device((float(rate), step, float(top_k), top_p, float(log_min_p)), logits_MV.device)
    out = torch.empty((m, 4), dtype=torch.float64, device=logits_MV.device)
    block = min(_BLOCK, triton.next_power_of_2(n))
    _draw[(m,)](logits_MV, logits_MV.stride(0), n, u_M.contiguous(), numbers, out, DROPS=drops, BLOCK=block)
    return out[:, 0].long(), out[:, 1], out[:, 2], out[:, 3] > 0


@lru_cache(maxsize=64)
def _on_device(numbers: tuple[float, ...], device: torch.device) -> Tensor:
    """Numbers in float64, which a kernel's own arguments have not; copied once, as a copy waits."""
    return torch.tensor(numbers, dtype=torch.float64, device=device)


@triton.jit
def _block(row, start, n, m, rate, BLOCK: tl.constexpr):
    """Log-weights of a block of ids relative to the likeliest: before and after the temperature."""
    at = start + tl.arange(0, BLOCK)
    x = tl.load(row + at, mask=at < n, other=-float("inf")).to(tl.float32) - m
    t = x * rate
    return x, tl.where((t < _LEAST) | (x == -float("inf")), -float("inf"), t)


@triton.jit
def _float_of(key):
    """The log-weight, at most 0, of a key: minus its bits without the sign."""
    return tl.where(key == 0, 0.0, (-key).to(tl.int32).to(tl.float32, bitcast=True) * -1.0)


@triton.jit
def _above(row, n, m, rate, edge, BLOCK: tl.constexpr):
    """Number and mass of the ids whose log-weight is at least `edge`."""
    count = tl.zeros((), tl.int64)
    mass = tl.zeros((), tl.float64)
    for start in range(0, n, BLOCK):
        _, t = _block(row, start, n, m, rate, BLOCK)
        kept = (t >= edge) & (t > -float("inf"))
        count += tl.sum(kept.to(tl.int64))
        mass += tl.sum(tl.where(kept, tl.exp(t), 0.0).to(tl.float64))
    return count, mass


@triton.jit
def _threshold(row, n, m, rate, floor, wanted, BY_MASS: tl.constexpr, BLOCK: tl.constexpr):
    """The largest log-weight, not below `floor`, from which on there are `wanted` ids, or is such a mass."""
    low = tl.full((), -0x7F800000, tl.int64)
    high = tl.zeros((), tl.int64)
    for _ in range(31):
        middle = low + (high - low + 1) // 2
        edge = tl.maximum(_float_of(middle), floor)
        count, mass = _above(row, n, m, rate, edge, BLOCK)
        if BY_MASS:
            enough = mass >= wanted
        else:
            enough = count.to(tl.float64) >= wanted
        low = tl.where(enough, middle, low)
        high = tl.where(enough, high, middle - 1)
    return _float_of(low)


@triton.jit
def _draw(logits, stride, n, us, numbers, out, DROPS: tl.constexpr, BLOCK: tl.constexpr):
    # DROPS: bits 1 by count, 2 by mass, 4 by the most likely; plain numbers, as the interpreter has no int & constexpr
    r = tl.program_id(0)
    row = logits + r.to(tl.int64) * stride
    rate, step = tl.load(numbers).to(tl.float32), tl.load(numbers + 1).to(tl.float32)
    top_k, top_p, least_p = tl.load(numbers + 2), tl.load(numbers + 3), tl.load(numbers + 4).to(tl.float32)
    m = tl.full((), -float("inf"), tl.float32)
    for start in range(0, n, BLOCK):
        at = start + tl.arange(0, BLOCK)
        m = tl.maximum(m, tl.max(tl.load(row + at, mask=at < n, other=-float("inf")).to(tl.float32)))
    plain = tl.zeros((), tl.float64)
    for start in range(0, n, BLOCK):
        x, _ = _block(row, start, n, m, rate, BLOCK)
        plain += tl.sum(tl.exp(x).to(tl.float64))

    nothing = -float("inf")
    edge = tl.full((), nothing, tl.float32)
    unsure = tl.zeros((), tl.int1)
    if DROPS & 1:
        edge = _threshold(row, n, m, rate, nothing, top_k, False, BLOCK)
        count, _ = _above(row, n, m, rate, edge, BLOCK)
        unsure = count.to(tl.float64) > top_k
    if DROPS & 2:
        _, mass = _above(row, n, m, rate, edge, BLOCK)
        nucleus = _threshold(row, n, m, rate, edge, top_p * mass, True, BLOCK)
        _, whole = _above(row, n, m, rate, tl.maximum(nucleus, edge), BLOCK)
        share = whole / mass
        spare = share - tl.exp(nucleus).to(tl.float64) / mass - top_p
        close = tl.where(spare >= 0, 0.0, tl.minimum(-spare, tl.abs(share - top_p)))
        moved = tl.maximum(step.to(tl.float64) * top_p * (1 - top_p), 2e-7)
        unsure = (unsure & (nucleus <= edge)) | ((nucleus >= edge) & (close <= moved))
        edge = tl.maximum(edge, nucleus)
    if DROPS & 4:
        unsure = unsure & (edge >= least_p)
        edge = tl.maximum(edge, least_p)
        for start in range(0, n, BLOCK):
            _, t = _block(row, start, n, m, rate, BLOCK)
            near = (t < 0) & (t >= edge - step) & (tl.abs(t - least_p) <= step)
            unsure = unsure | (tl.sum(near.to(tl.int32)) > 0)

    _, kept = _above(row, n, m, rate, edge, BLOCK)
    last = tl.zeros((), tl.float32)
    below = tl.full((), nothing, tl.float32)
    for start in range(0, n, BLOCK):
        _, t = _block(row, start, n, m, rate, BLOCK)
        last = tl.minimum(last, tl.min(tl.where((t >= edge) & (t > nothing), t, 0.0)))
        below = tl.maximum(below, tl.max(tl.where(t < edge, t, nothing)))
    unsure = (edge > nothing) & (unsure | (last - below <= step))

    target = tl.load(us + r) * kept
    before = tl.zeros((), tl.float64)
    chosen = tl.zeros((), tl.int64)
    at_edge = tl.zeros((), tl.float64)
    done = tl.zeros((), tl.int1)
    for start in range(0, n, BLOCK):
        _, t = _block(row, start, n, m, rate, BLOCK)
        w = tl.where((t >= edge) & (t > nothing), tl.exp(t), 0.0).to(tl.float64)
        at_edge += tl.sum(tl.where(t == last, w, 0.0))
        here = tl.sum(w)
        at = start + tl.arange(0, BLOCK)
        if (not done) & (here > 0):
            passed = (before + tl.cumsum(w, 0) > target) & (w > 0)
            first = tl.min(tl.where(passed, at, 2147483647))
            done = first < 2147483647
            final = tl.max(tl.where(w > 0, at, 0))  # where rounding puts the target at or above the whole mass
            chosen = tl.where(done, first, final).to(tl.int64)
        before += here
    low, high = last * 0 + float("inf"), last * 0 - float("inf")
    heavy = at_edge > _WEIGHTY * kept
    low = tl.where(unsure, tl.where(heavy, nothing, below), low)
    high = tl.where(unsure, tl.where(heavy, float("inf"), last + step), high)
    d = tl.load(row + chosen).to(tl.float32) - m
    t = d * rate
    tl.store(out + 4 * r, chosen.to(tl.float64))
    tl.store(out + 4 * r + 1, t.to(tl.float64) - tl.log(kept))
    tl.store(out + 4 * r + 2, d.to(tl.float64) - tl.log(plain))
    tl.store(out + 4 * r + 3, ((low <= t) & (t <= high)).to(tl.float64))
