"""Next-id laws that some objectives of `optimum` are least for: of one multiplier a context, each id known by it.

Shapes: S contexts, A prefixes that end in each, V ids. float64.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from hydrometer.core.array_types import Floats

__all__ = ["least_absolute", "least_generalised", "least_tempered"]

_BISECTIONS = 200  # until neighbouring floats
_NEWTON = 100


def least_generalised(weight: Floats, p: Floats, own: Floats) -> Floats:
    """Return the q (S, V) for which sum_i w_i sum over v kept by i of (-p_iv log q_v + q_v) - own_v log q_v is least.

    An id's q is A / (B - multiplier), where A is its sum of w p plus `own`, and B the weight of the prefixes that keep
    it (p > 0). What these leave of 1 is shared equally by the ids that cost least among those with A = 0: as a rule by
    those that no prefix keeps, of which the teacher says nothing.

    Parameters
    ----------
    weight : (A, S). p : (A, S, V) not normalised. own : (S, V).
    """
    a = np.einsum("as,asv->sv", weight, p) + own
    b = np.einsum("as,asv->sv", weight, (p > 0).astype(np.float64))
    said = a > 0
    cap = np.where(said, np.inf, b).min(axis=1, keepdims=True)
    below = np.nextafter(b, -np.inf)  # where an id's share is below rounding of its weight
    most = np.where(said, np.minimum(b - a, below), np.inf).min(axis=1, keepdims=True)
    multiplier = np.minimum(most, cap)  # at or above the root
    q = np.zeros_like(a)
    for _ in range(_NEWTON):
        q = np.divide(a, b - multiplier, out=np.zeros_like(a), where=said)
        excess = q.sum(axis=1, keepdims=True) - 1
        if (excess <= 1e-15).all():
            break
        slope = np.divide(q, b - multiplier, out=np.zeros_like(a), where=said).sum(axis=1, keepdims=True)
        multiplier = multiplier - np.maximum(excess, 0) / slope
    rest = (said & (multiplier >= below)) | (~said & (b <= cap))
    left = np.maximum(1 - q.sum(axis=1, keepdims=True), 0.0)
    return q + np.where(rest, left / np.maximum(rest.sum(axis=1, keepdims=True), 1), 0.0)


def least_absolute(weight: Floats, p: Floats, own: Floats) -> Floats:
    """Return the q (S, V) for which sum_i w_i |p_i - q| / 2 - own log q is least; where several are, one of them.

    Above j of its p_i, in ascending order, an id's slope is s_j - own / q. So at a multiplier its q is the least of
    max(p_j, own / (s_j - multiplier)) over the j with s_j above it.

    Parameters
    ----------
    weight : (A, S). p : (A, S, V). own : (S, V).
    """
    each = np.broadcast_to(weight[..., None], p.shape)
    order = np.argsort(p, axis=0, kind="stable")
    p, each = np.take_along_axis(p, order, 0), np.take_along_axis(each, order, 0)
    p = np.concatenate([np.zeros((1, *own.shape)), p])
    slope = np.concatenate([np.zeros((1, *own.shape)), np.cumsum(each, axis=0)]) - weight.sum(axis=0)[:, None] / 2

    def at(multiplier: Floats) -> Floats:
        above = slope - multiplier[None]
        ends = np.divide(own, above, out=np.zeros_like(above), where=above > 0)
        return np.where(above > 0, np.maximum(p, ends), np.inf).min(axis=0)

    low = slope[0].min(axis=1, keepdims=True) - own.sum(axis=1, keepdims=True) - 1
    low, high = _bisected(at, low, slope[-1].min(axis=1, keepdims=True))
    least, most = at(low), np.minimum(at(high), 1.0)
    gap = most.sum(axis=1, keepdims=True) - least.sum(axis=1, keepdims=True)
    share = np.divide(1 - least.sum(axis=1, keepdims=True), gap, out=np.zeros_like(gap), where=gap > 0)
    return least + np.clip(share, 0.0, 1.0) * (most - least)


def least_tempered(mean: Floats, own: Floats, temperature: float) -> Floats:
    """Return the r = q^(1/T) (S, V), normalised, for which -T^2 sum mean log r - sum own log q is least.

    In the logits z of q the gradient is T (m r - mean) + n q - own, with m and n the sums of mean and own; as q is
    r^T / sum r^T, each id's r is the root of T m r + b r^T = T mean + own, and b the one at which they sum to 1.

    Parameters
    ----------
    mean : (S, V) sum of w p at the loss temperature. own : (S, V) of `mle`. Both with their shares.
    """
    t = temperature
    with np.errstate(divide="ignore"):
        wanted = np.log(t * mean + own)
        linear = np.log(t * mean.sum(axis=1, keepdims=True))
        n = np.log(own.sum(axis=1, keepdims=True))
    alive = np.isfinite(wanted)
    wanted = np.where(alive, wanted, 0.0)

    def roots(log_b: Floats) -> Floats:
        u = np.minimum(wanted - linear, (wanted - log_b) / t)  # at or above the root
        for _ in range(_NEWTON):
            one, other = linear + u, log_b + t * u
            both = np.logaddexp(one, other)
            step = (both - wanted) / (np.exp(one - both) + t * np.exp(other - both))
            u = u - step
            if (np.abs(step) <= 1e-15 * (1 + np.abs(u))).all():
                break
        return np.where(alive, np.exp(u), 0.0)

    spread = (1 - t) * np.log(mean.shape[1])
    low: Floats = -n + min(spread, 0.0) - 1e-9
    high: Floats = -n + max(spread, 0.0) + 1e-9
    return roots(-_bisected(lambda x: roots(-x), low, high)[1])


def _bisected(at: Callable[[Floats], Floats], low: Floats, high: Floats) -> tuple[Floats, Floats]:
    """Return neighbours (S, 1) between which the sum of growing q (S, V) passes 1, which it does from low to high."""
    for _ in range(_BISECTIONS):
        middle = (low + high) / 2
        if ((middle <= low) | (middle >= high)).all():
            break
        over = at(middle).sum(axis=1, keepdims=True) > 1
        low, high = np.where(over, low, middle), np.where(over, middle, high)
    return low, high
