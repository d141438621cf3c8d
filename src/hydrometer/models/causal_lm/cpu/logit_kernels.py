"""What is done to a row of logits, in one pass where it lies: select, draw, score, entropy, cross-entropy. For the CPU.

Shapes: M rows, V ids that exist (a row may hold more: padded vocabularies), W storage width of a row.

Logits are float32, or bfloat16 as the uint16 of its bits; arithmetic is float32 with float64 sums. Everything here runs
on one thread and without the interpreter's lock; rows are split over threads by the caller.

For a row l with maximum m and temperature tau, x_j = (l_j - m) / tau. A selectivity keeps {j : x_j >= edge}:

    log p_s(j) = x_j - log sum over kept i of exp(x_i),   -inf where x_j < edge.

`select_row` finds the edge without sorting a row: only ids that can be kept are looked at, in buckets of x, and one
bucket is sorted.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from hydrometer.models.arithmetic import bits_of, exp32, float_of, kernel, wide

__all__ = ["LEAST", "NEAR_EDGE", "WEIGHTY", "cross_rows", "draw_rows", "score_rows", "scratch_of"]

f32, i32, u32 = np.float32, np.int32, np.uint32
_INF = f32(np.inf)
CHUNK = 256
_BUCKETS = 1024
NEAR_EDGE = 1e-5
WEIGHTY = 5e-5
"""When a step is near its edge.

Two computations of the same logits may differ by NEAR_EDGE nats in each. Where that can change the kept set (two ids
on either side of the edge closer than twice that, ids tied at the edge that are not all needed, a nucleus whose mass is
within what it moves, 2 e p (1 - p) for a change e of every logit), the drawn token's log-probability moves visibly if
it lies at the edge itself, or if what lies there holds more than WEIGHTY of the kept mass. Then, and only then, the
step is counted.
"""
LEAST = -1e37  # what lies so far below the maximum has probability zero in any arithmetic
_ROUNDING = 2e-7  # of a mass summed from float32 exponentials


@kernel
def weight_at(x: Any) -> Any:
    """Exponential of x; exactly zero below -87, where all ids together hold nothing that float32 can show."""
    return exp32(x) if x > f32(-87.0) else f32(0.0)


# -- one row -----------------------------------------------------------------------------------------------------------


@kernel
def row_maximum(row: Any, n: Any) -> Any:
    """Return the largest entry; NaN where one is NaN."""
    top = -(2**31)
    largest = 0
    for j in range(n):
        # As integers, floats of one sign keep their order; negative ones are turned round. Integers vectorise.
        bits = i32(bits_of(wide(row[j])))
        size = i32(bits & i32(0x7FFFFFFF))
        largest = max(largest, size)
        top = max(top, i32(bits ^ ((bits >> i32(31)) & i32(0x7FFFFFFF))))
    if largest > 0x7F800000:
        return f32(np.nan)
    bits = i32(top)
    return float_of(u32(bits ^ ((bits >> i32(31)) & i32(0x7FFFFFFF))))


@kernel
def _masses(row: Any, n: Any, m: Any, rate: Any, cdf: Any) -> Any:
    """Fill the running sums of exp(x) over chunks of 256 ids; return them whole: at rate 1, and at `rate`."""
    plain = 0.0
    total = 0.0
    for k in range((n + CHUNK - 1) // CHUNK):
        s = f32(0.0)
        stop = min(n, (k + 1) * CHUNK)
        for j in range(k * CHUNK, stop):
            s += weight_at((wide(row[j]) - m) * rate)
        total += np.float64(s)
        if rate != f32(1.0):
            s = f32(0.0)
            for j in range(k * CHUNK, stop):
                s += weight_at(wide(row[j]) - m)
        plain += np.float64(s)
        cdf[k] = total
    return plain, total


@kernel
def _count(row: Any, n: Any, m: Any, rate: Any, lowest: Any) -> Any:
    count = 0
    for j in range(n):
        count += (wide(row[j]) - m) * rate >= lowest
    return count


@kernel
def _gather(row: Any, n: Any, m: Any, rate: Any, lowest: Any, ids: Any, xs: Any) -> Any:
    """Collect the ids with x >= lowest, in order of id."""
    count = 0
    for j in range(n):
        x = (wide(row[j]) - m) * rate
        ids[count] = j
        xs[count] = x
        count += x >= lowest
    return count


@kernel
def _nucleus(xs: Any, count: Any, floor: Any, top_p: Any, mass: Any) -> Any:
    """Find the smallest set of likeliest ids that holds `top_p` of `mass`.

    Returns
    -------
    x of its last id (-inf where rounding leaves all of it short), and the share of mass by which the set could miss, or
    do without one of the ids tied at its edge.
    """
    low = f32(0.0)
    for i in range(count):
        if xs[i] >= floor:
            low = min(low, xs[i])
    scale = f32(_BUCKETS - 1) / max(-low, f32(1e-6))
    held = np.zeros(_BUCKETS)
    for i in range(count):
        if xs[i] >= floor:
            held[int(-xs[i] * scale)] += np.float64(exp32(xs[i]))
    target = top_p * mass
    before = 0.0
    b = 0
    while b < _BUCKETS and before + held[b] < target:
        before += held[b]
        b += 1
    if b == _BUCKETS:
        return -_INF, 1.0
    inside = np.empty(count, np.float32)
    k = 0
    for i in range(count):
        if xs[i] >= floor and int(-xs[i] * scale) == b:
            inside[k] = xs[i]
            k += 1
    ordered = np.sort(inside[:k])
    i = k - 1
    while i >= 0:
        tie = 0.0
        one = np.float64(exp32(ordered[i]))
        edge = ordered[i]
        while i >= 0 and ordered[i] == edge:
            tie += one
            i -= 1
        if before + tie >= target or i < 0:
            spare = before + tie - one - target  # not below zero where a tie is kept whole that is not all needed
            missing = abs(before + tie - target)
            return edge, (0.0 if spare >= 0.0 else min(-spare, missing)) / mass
        before += tie
    return -_INF, 1.0


@kernel
def scratch_of(n: Any) -> Any:
    """Make the buffers for rows of n ids: `cdf`, `ids` and `xs` of `select_row`."""
    return np.empty((n + CHUNK - 1) // CHUNK), np.empty(n + 1, np.int32), np.empty(n + 1, np.float32)


@kernel
def select_row(row: Any, n: Any, s: Any, scratch: Any) -> Any:
    """Find the kept set of a row.

    Parameters
    ----------
    row : (W,) logits, of which the first n exist.
    s : rate, top_k, top_p, log_min_p. rate : 1 / temperature, float32; top_k : 0 keeps all; top_p : 1 keeps all;
        log_min_p : float32, -inf keeps all.
    scratch : cdf, ids, xs. cdf : (chunks,) float64, filled with running sums of exp(x) over chunks; ids, xs : (n + 1,)
        int32, float32, filled with the ids that can be kept.

    Returns
    -------
    m, edge (-inf where nothing is dropped), log mass of the kept at `rate`, log mass of all at rate 1, how many of
    `ids` are filled; and the span of x, low to high, in which a token is near the edge: empty where the set is sure,
    everything where what lies at the edge is weighty (see NEAR_EDGE).
    """
    rate, top_k, top_p, log_min_p = s
    cdf, ids, xs = scratch
    m = row_maximum(row, n)
    plain, total = _masses(row, n, m, rate, cdf)
    if top_k == 0 and top_p >= 1.0 and log_min_p == -_INF:
        return m, -_INF, math.log(total), math.log(plain), 0, _INF, -_INF
    lowest = f32(-1e30)
    if top_k > 0:
        reach = f32(4.0)
        while reach < f32(1e4) and _count(row, n, m, rate, -reach) <= top_k:
            reach *= f32(2.0)
        if reach < f32(1e4):
            lowest = -reach
    else:
        # Ids further below hold, all together, less than the nucleus leaves out.
        if top_p < 1.0:
            lowest = max(lowest, f32(-math.log(n / ((1.0 - top_p) * total)) - 1e-2))
        if log_min_p > -_INF:
            lowest = max(lowest, f32(log_min_p) - f32(1e-2))
    count = _gather(row, n, m, rate, lowest, ids, xs)
    step = f32(2.0 * NEAR_EDGE) * rate
    edge = -_INF
    unsure = False
    mass = total
    if 0 < top_k < count:
        edge = np.partition(xs[:count], count - top_k)[count - top_k]
        mass = 0.0
        reached = 0
        for i in range(count):
            if xs[i] >= edge:
                mass += np.float64(exp32(xs[i]))
                reached += 1
        unsure = reached > top_k
    if top_p < 1.0:
        nucleus, share = _nucleus(xs, count, edge, top_p, mass)
        if nucleus > edge:
            edge = nucleus
            unsure = False
        if nucleus >= edge:
            moved = np.float64(step) * top_p * (1.0 - top_p)
            unsure = unsure or share <= max(moved, _ROUNDING)
    if log_min_p > -_INF:
        at = f32(log_min_p)
        if at > edge:
            edge = at
            unsure = False
        for i in range(count):  # the likeliest is never dropped
            unsure = unsure or (xs[i] < f32(0.0) and xs[i] >= edge - step and abs(xs[i] - at) <= step)
    kept = 0.0
    last = f32(0.0)
    below = lowest
    for i in range(count):
        if xs[i] >= edge:
            kept += np.float64(exp32(xs[i]))
            last = min(last, xs[i])
        else:
            below = max(below, xs[i])
    low, high = _INF, -_INF
    if edge > -_INF:
        unsure = unsure or last - below <= step
        at_edge = 0.0
        for i in range(count):
            if xs[i] == last:
                at_edge += np.float64(exp32(xs[i]))
        if unsure:
            low, high = (-_INF, _INF) if at_edge > WEIGHTY * kept else (below, last + step)
    return m, edge, math.log(kept), math.log(plain), count, low, high


# -- rows --------------------------------------------------------------------------------------------------------------


@kernel
def draw_rows(logits: Any, n: Any, u: Any, s: Any, out: Any, log_p: Any, near: Any) -> None:
    """Draw an id a row by inverse transform.

    Parameters
    ----------
    logits : (M, W) ; n : V ; u : (M,) float64 in (0, 1) ; s : as in `select_row`.
    out : (M,) int64, filled.
    log_p : (M, 2) float64, filled: under the selected and the unselected law, nats.
    near : (M,) bool, filled: whether rounding could show in the selected log-probability, see NEAR_EDGE.
    """
    rate, _, _, _ = s
    scratch = scratch_of(n)
    cdf, ids, xs = scratch
    for r in range(logits.shape[0]):
        row = logits[r]
        m, edge, log_kept, log_all, count, low, high = select_row(row, n, s, scratch)
        target = u[r] * math.exp(log_kept)
        chosen = 0
        if edge == -_INF and count == 0:
            k = 0
            while k < cdf.shape[0] - 1 and cdf[k] <= target:
                k += 1
            while k > 0 and cdf[k] == cdf[k - 1]:  # a last chunk without weight is never drawn from
                k -= 1
            mass = cdf[k - 1] if k > 0 else 0.0
            for j in range(k * CHUNK, min(n, (k + 1) * CHUNK)):
                w = np.float64(weight_at((wide(row[j]) - m) * rate))
                if w > 0.0:
                    chosen = j
                    mass += w
                    if mass > target:
                        break
        else:
            mass = 0.0
            for i in range(count):
                if xs[i] >= edge:
                    chosen = ids[i]
                    mass += np.float64(exp32(xs[i]))
                    if mass > target:
                        break
        d = wide(row[chosen]) - m
        out[r] = chosen
        log_p[r, 0] = np.float64(d * rate) - log_kept
        log_p[r, 1] = np.float64(d) - log_all
        near[r] = low <= d * rate <= high


@kernel
def score_rows(logits: Any, n: Any, ids_in: Any, s: Any, log_p: Any, near: Any, entropy: Any) -> None:
    """Score an id a row.

    Parameters
    ----------
    logits : (M, W) ; n : V ; ids_in : (M,) int64 ; s : as in `select_row`.
    log_p : (M, 2) float64, filled: under the selected and the unselected law, nats; -inf for what cannot be drawn.
    near : (M,) bool, filled as in `draw_rows`.
    entropy : (M,) float64, filled with the entropy of the selected law, nats; (0,) where it is not wanted.
    """
    rate, _, _, _ = s
    scratch = scratch_of(n)
    for r in range(logits.shape[0]):
        row = logits[r]
        m, edge, log_kept, log_all, _, low, high = select_row(row, n, s, scratch)
        near[r] = False
        log_p[r, 0] = -np.inf
        log_p[r, 1] = -np.inf
        if 0 <= ids_in[r] < n:
            d = wide(row[ids_in[r]]) - m
            log_p[r, 1] = np.float64(d) - log_all
            near[r] = low <= d * rate <= high
            if d * rate >= edge and d * rate >= f32(LEAST):
                log_p[r, 0] = np.float64(d * rate) - log_kept
        if entropy.shape[0] > 0:
            moment = 0.0
            for j in range(n):
                x = (wide(row[j]) - m) * rate
                moment += np.float64(weight_at(x) * max(x, f32(-1e30))) if x >= edge else 0.0
            entropy[r] = log_kept - moment * math.exp(-log_kept)


@kernel
def cross_rows(a: Any, b: Any, n: Any, s_a: Any, s_b: Any, cross: Any) -> None:
    """Cross-entropy of the next-token laws a and b, -sum over j of p_a(j) log p_b(j), (M,) float64 nats.

    Infinite where a keeps an id that b drops.
    """
    rate_a, rate_b = s_a[0], s_b[0]
    scratch = scratch_of(n)
    for r in range(a.shape[0]):
        row_a, row_b = a[r], b[r]
        m_a, edge_a, log_a, _, _, _, _ = select_row(row_a, n, s_a, scratch)
        m_b, edge_b, log_b, _, _, _, _ = select_row(row_b, n, s_b, scratch)
        moment = 0.0
        outside = 0
        for j in range(n):
            x = (wide(row_a[j]) - m_a) * rate_a
            y = (wide(row_b[j]) - m_b) * rate_b
            kept_a = x >= edge_a and x > f32(-1e30)
            kept_b = y >= edge_b and y > f32(-1e30)
            outside += kept_a and not kept_b
            moment += np.float64(weight_at(x) * y) if kept_a and kept_b else 0.0
        cross[r] = np.inf if outside > 0 else log_b - moment * math.exp(-log_a)
