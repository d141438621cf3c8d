"""Hartigan's dip of few values, compiled. Shapes: n values."""

from __future__ import annotations

from typing import Any

import numpy as np

from hydrometer.models.arithmetic import kernel

__all__ = ["dip"]


@kernel
def dip(x: Any) -> float:
    """Hartigan's dip of values (S,) in rising order: the greatest distance from the nearest distribution of one peak.

    The modal interval is narrowed until greatest convex minorant and least concave majorant are nowhere farther apart
    in it than the distribution is from them outside (Hartigan 1985, Applied Statistics AS 217).
    """
    n = x.shape[0]
    convex, concave = _hulls(x)
    low, high, found = 0, n - 1, 1.0
    under, over = np.empty(n, np.int64), np.empty(n, np.int64)
    while True:
        # Touching points of both hulls within [low, high], the minorant's falling, the majorant's rising.
        under[0], i = high, 0
        while under[i] > low:
            under[i + 1] = convex[under[i]]
            i += 1
        over[0], j = low, 0
        while over[j] < high:
            over[j + 1] = concave[over[j]]
            j += 1
        last_under, last_over = i, j
        at_under, at_over, apart = i, j, 0.0
        if i == 1 and j == 1:
            apart = 1.0
        else:
            ix, iv = i - 1, 1
            while True:
                g, v = under[ix], over[iv]
                if g > v:
                    before = under[ix + 1]
                    d = (v - before + 1) - (x[v] - x[before]) * (g - before) / (x[g] - x[before])
                    iv += 1
                    if d >= apart:
                        apart, at_under, at_over = d, ix + 1, iv - 1
                else:
                    before = over[iv - 1]
                    d = (x[g] - x[before]) * (v - before) / (x[v] - x[before]) - (g - before - 1)
                    ix -= 1
                    if d >= apart:
                        apart, at_under, at_over = d, ix + 1, iv
                ix, iv = max(ix, 0), min(iv, last_over)
                if under[ix] == over[iv]:
                    break
        if apart < found:
            break
        found = max(found, _outside(x, under, at_under, last_under, 1.0), _outside(x, over, at_over, last_over, -1.0))
        if low == under[at_under] and high == over[at_over]:
            break
        low, high = under[at_under], over[at_over]
    return found / (2 * n)


@kernel
def _hulls(x: Any) -> Any:
    """For each value the one before it on the greatest convex minorant, and the one after it on the majorant."""
    n = x.shape[0]
    convex, concave = np.zeros(n, np.int64), np.zeros(n, np.int64)
    for j in range(1, n):
        convex[j] = j - 1
        while True:
            a = convex[j]
            b = convex[a]
            if a == 0 or (x[j] - x[a]) * (a - b) < (x[a] - x[b]) * (j - a):
                break
            convex[j] = b
    concave[n - 1] = n - 1
    for k in range(n - 2, -1, -1):
        concave[k] = k + 1
        while True:
            a = concave[k]
            b = concave[a]
            if a == n - 1 or (x[k] - x[a]) * (a - b) < (x[a] - x[b]) * (k - a):
                break
            concave[k] = b
    return convex, concave


@kernel
def _outside(x: Any, hull: Any, first: int, last: int, side: float) -> float:
    """The greatest distance of the distribution from a hull between its touching points, in values."""
    most = 0.0
    for j in range(first, last):
        a, b = min(hull[j], hull[j + 1]), max(hull[j], hull[j + 1])
        here = 1.0
        if b - a > 1 and x[b] != x[a]:
            slope = (b - a) / (x[b] - x[a])
            for i in range(a, b + 1):
                d = side * ((i - a) - (x[i] - x[a]) * slope) + 1.0
                here = max(here, d)
        most = max(most, here)
    return most
