"""The two sums over points that mixtures of Gaussians need, compiled: densities, and moments under responsibilities.

    log p(x) = log sum_k exp( offset_k - |F_k (x - mu_k)|^2 / 2 ),   offset_k = log a_k - d/2 log 2 pi + log det F_k
    S_k = F_k^-1 F_k^-T,   F_k lower triangular, or diagonal

Shapes: n points, K components, d dimensions; e is d padded to a multiple of four; D is e for triangular factors and 1
for diagonal ones; C points make a chunk, which stays in the cache with its responsibilities, so nothing of size (n, K)
exists. Inside a chunk points lie along the last axis, where the vector units are; padding points weigh nothing.

One thread, without the interpreter's lock.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np

from hydrometer.models.arithmetic import entry, exp64, inlined, kernel

__all__ = [
    "CHUNK",
    "Moments",
    "Params",
    "Points",
    "Work",
    "log_density",
    "moments",
    "padded",
    "params",
    "sweep",
    "work",
]

CHUNK = 256
_LANES = 8
_LOG_2PI = math.log(2 * math.pi)

NEAREST, RESPONSIBLE, DENSITY = 0, 1, 2
"""What `sweep` does: assign each point to its nearest mean; weigh it by responsibilities; or its density only."""


class Points(NamedTuple):
    """A data set in its frame: what is summed is (point - centre) / scale, in which parameters are meant too.

    Attributes
    ----------
    x : (n, d). weight : (n,), or (0,) for ones. centre : (d,). scale : a number.
    """

    x: Any
    weight: Any
    centre: Any
    scale: float


class Params(NamedTuple):
    """Parameters of a mixture, as the kernels take them.

    Attributes
    ----------
    log_weight, offset : (K,). mean : (K, d). covariance, factor : (K, e, D), zero in the padding.
    """

    log_weight: Any
    offset: Any
    mean: Any
    covariance: Any
    factor: Any


class Moments(NamedTuple):
    """Sums over points, about the means under which they were taken: centred sums do not cancel.

    Attributes
    ----------
    mass : (K,) sum of r. first : (K, d) sum of r c. second : (K, e, D) sum of r c c', lower blocks, or r c^2.
    ends : (3,) sum of w log p, least log p, the index of that point.
    """

    mass: Any
    first: Any
    second: Any
    ends: Any


class Work(NamedTuple):
    """One thread's room for a chunk.

    Attributes
    ----------
    x, centred, scaled : (e, C). resp : (K, C). rows : (6, C), top, total, share, weight and two of products.
    """

    x: Any
    centred: Any
    scaled: Any
    resp: Any
    rows: Any


def padded(d: int) -> int:
    """Return d rounded up to a multiple of four."""
    return -(-d // 4) * 4


padded = kernel(padded)


@kernel
def params(k: int, d: int, triangular: bool) -> Params:
    """Make empty parameters."""
    e = padded(d)
    shape = (k, e, e if triangular else 1)
    return Params(np.zeros(k), np.zeros(k), np.zeros((k, d)), np.zeros(shape), np.zeros(shape))


@kernel
def moments(k: int, d: int, triangular: bool) -> Moments:
    """Make room for moments."""
    e = padded(d)
    return Moments(np.zeros(k), np.zeros((k, d)), np.zeros((k, e, e if triangular else 1)), np.zeros(3))


@kernel
def clear(m: Any) -> None:
    """Set all sums to zero. Loops, here and below, where a slice would do: slices compile for seconds each."""
    for k in range(m.mass.shape[0]):
        m.mass[k] = 0.0
        for i in range(m.first.shape[1]):
            m.first[k, i] = 0.0
        for i in range(m.second.shape[1]):
            for j in range(m.second.shape[2]):
                m.second[k, i, j] = 0.0


@kernel
def work(k: int, d: int) -> Work:
    """Make room for a chunk; rows beyond d stay zero."""
    e = padded(d)
    return Work(
        np.zeros((e, CHUNK)), np.zeros((e, CHUNK)), np.zeros((e, CHUNK)), np.zeros((k, CHUNK)), np.zeros((6, CHUNK))
    )


@inlined
def _load(points: Any, first: int, last: int, centre: Any, scale: float, weight: Any, room: Any) -> int:
    """Bring points first .. last into the chunk, centred and scaled; returns their number with padding."""
    n = last - first
    m = (n + _LANES - 1) // _LANES * _LANES
    inverse = 1.0 / scale
    for s in range(n):
        w = weight[first + s] if weight.shape[0] > 0 else 1.0
        room.rows[3, s] = w
        for i in range(points.shape[1]):
            # A point without weight may lie anywhere: it must not enter a product.
            room.x[i, s] = (points[first + s, i] - centre[i]) * inverse if w > 0.0 else 0.0
    for s in range(n, m):
        room.rows[3, s] = 0.0
        for i in range(points.shape[1]):
            room.x[i, s] = 0.0
    return m


@kernel
def _distances(p: Any, k: int, m: int, room: Any) -> None:
    """resp[k] = |F_k (x - mu_k)|^2 of the chunk."""
    x, out, c, rows = room.x, room.resp, room.centred, room.rows
    d = p.mean.shape[1]
    if p.factor.shape[2] == 1:
        for i in range(0, d - 1, 2):
            a, b, f, g = p.mean[k, i], p.mean[k, i + 1], p.factor[k, i, 0], p.factor[k, i + 1, 0]
            if i == 0:
                for s in range(m):
                    u, v = (x[i, s] - a) * f, (x[i + 1, s] - b) * g
                    out[k, s] = u * u + v * v
            else:
                for s in range(m):
                    u, v = (x[i, s] - a) * f, (x[i + 1, s] - b) * g
                    out[k, s] += u * u + v * v
        if d % 2:
            a, f = p.mean[k, d - 1], p.factor[k, d - 1, 0]
            if d == 1:
                for s in range(m):
                    u = (x[0, s] - a) * f
                    out[k, s] = u * u
            else:
                for s in range(m):
                    u = (x[d - 1, s] - a) * f
                    out[k, s] += u * u
        return
    for i in range(d):
        a = p.mean[k, i]
        for s in range(m):
            c[i, s] = x[i, s] - a
    # Two rows of the factor against four coordinates at a time: each number loaded is used twice, each sum four times.
    for i in range(0, d, 2):
        for j in range(0, i + 2, 4):
            f0, f1, f2, f3 = p.factor[k, i, j], p.factor[k, i, j + 1], p.factor[k, i, j + 2], p.factor[k, i, j + 3]
            g0, g1 = p.factor[k, i + 1, j], p.factor[k, i + 1, j + 1]
            g2, g3 = p.factor[k, i + 1, j + 2], p.factor[k, i + 1, j + 3]
            if j == 0:
                for s in range(m):
                    rows[4, s] = f0 * c[j, s] + f1 * c[j + 1, s] + f2 * c[j + 2, s] + f3 * c[j + 3, s]
                    rows[5, s] = g0 * c[j, s] + g1 * c[j + 1, s] + g2 * c[j + 2, s] + g3 * c[j + 3, s]
            else:
                for s in range(m):
                    rows[4, s] += f0 * c[j, s] + f1 * c[j + 1, s] + f2 * c[j + 2, s] + f3 * c[j + 3, s]
                    rows[5, s] += g0 * c[j, s] + g1 * c[j + 1, s] + g2 * c[j + 2, s] + g3 * c[j + 3, s]
        if i == 0:
            for s in range(m):
                out[k, s] = rows[4, s] * rows[4, s] + rows[5, s] * rows[5, s]
        else:
            for s in range(m):
                out[k, s] += rows[4, s] * rows[4, s] + rows[5, s] * rows[5, s]


@kernel
def _densities(p: Any, m: int, room: Any) -> None:
    """rows[0] + log rows[1] = log p of the chunk; resp[k] = exp(log of the k-th summand - rows[0])."""
    rows, resp = room.rows, room.resp
    for k in range(resp.shape[0]):
        _distances(p, k, m, room)
        offset = p.offset[k]
        if k == 0:
            for s in range(m):
                resp[k, s] = offset - 0.5 * resp[k, s]
                rows[0, s] = resp[k, s]
        else:
            for s in range(m):
                v = offset - 0.5 * resp[k, s]
                resp[k, s] = v
                rows[0, s] = max(rows[0, s], v)
    for s in range(m):
        rows[1, s] = 0.0
        # A point that is infinitely far from all has no finite summand; its density stays zero, and no difference NaN.
        rows[2, s] = rows[0, s] if rows[0, s] > -1e308 else 0.0
    for k in range(resp.shape[0]):
        for s in range(m):
            v = exp64(resp[k, s] - rows[2, s])
            resp[k, s] = v
            rows[1, s] += v


@kernel
def _nearest(p: Any, m: int, room: Any) -> None:
    """resp[k] = the point's weight where mean k is its nearest, the first of several, else 0."""
    x, resp, rows = room.x, room.resp, room.rows
    for k in range(resp.shape[0]):
        for s in range(m):
            resp[k, s] = 0.0
        for i in range(p.mean.shape[1]):
            a = p.mean[k, i]
            for s in range(m):
                u = x[i, s] - a
                resp[k, s] += u * u
        for s in range(m):
            v = resp[k, s]
            rows[0, s] = v if k == 0 or v < rows[0, s] else rows[0, s]
    for s in range(m):
        rows[1, s] = rows[3, s]
    for k in range(resp.shape[0]):
        for s in range(m):
            mine = resp[k, s] <= rows[0, s]
            resp[k, s] = rows[1, s] if mine else 0.0
            rows[1, s] = 0.0 if mine else rows[1, s]


@kernel
def _gather(p: Any, m: int, room: Any, out: Any) -> None:
    """Add the chunk's moments under resp, about p.mean."""
    x, resp, c, b = room.x, room.resp, room.centred, room.scaled
    d = p.mean.shape[1]
    for k in range(resp.shape[0]):
        total = 0.0
        for s in range(m):
            total += resp[k, s]
        out.mass[k] += total
        if total == 0.0:
            continue
        if out.second.shape[2] == 1:
            for i in range(d):
                a, first, second = p.mean[k, i], 0.0, 0.0
                for s in range(m):
                    u = x[i, s] - a
                    v = resp[k, s] * u
                    first += v
                    second += v * u
                out.first[k, i] += first
                out.second[k, i, 0] += second
            continue
        for i in range(d):
            a, first = p.mean[k, i], 0.0
            for s in range(m):
                u = x[i, s] - a
                v = resp[k, s] * u
                c[i, s] = u
                b[i, s] = v
                first += v
            out.first[k, i] += first
        for i in range(0, d, 2):
            for j in range(0, i + 2, 4):
                s0, s1, s2, s3, t0, t1, t2, t3 = 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0
                for s in range(m):
                    u, v = b[i, s], b[i + 1, s]
                    c0, c1, c2, c3 = c[j, s], c[j + 1, s], c[j + 2, s], c[j + 3, s]
                    s0 += u * c0
                    s1 += u * c1
                    s2 += u * c2
                    s3 += u * c3
                    t0 += v * c0
                    t1 += v * c1
                    t2 += v * c2
                    t3 += v * c3
                out.second[k, i, j] += s0
                out.second[k, i, j + 1] += s1
                out.second[k, i, j + 2] += s2
                out.second[k, i, j + 3] += s3
                out.second[k, i + 1, j] += t0
                out.second[k, i + 1, j + 1] += t1
                out.second[k, i + 1, j + 2] += t2
                out.second[k, i + 1, j + 3] += t3


@entry
@kernel
def sweep(points: Any, first: int, last: int, p: Any, what: int, room: Any, out: Any) -> None:
    """One pass over rows first .. last of `Points`: the moments of an EM step or a start, or the log-likelihood alone.

    Parameters
    ----------
    what : `NEAREST`, `RESPONSIBLE` or `DENSITY`.
    out : replaced, not added to.
    """
    clear(out)
    out.ends[0], out.ends[1], out.ends[2] = 0.0, np.inf, -1.0
    rows, resp = room.rows, room.resp
    for begin in range(first, last, CHUNK):
        end = min(begin + CHUNK, last)
        m = _load(points.x, begin, end, points.centre, points.scale, points.weight, room)
        if what == NEAREST:
            _nearest(p, m, room)
            _gather(p, m, room, out)
            continue
        _densities(p, m, room)
        for s in range(end - begin):
            v = rows[0, s] + math.log(rows[1, s])
            if rows[3, s] > 0.0:
                out.ends[0] += rows[3, s] * v
                if v < out.ends[1]:
                    out.ends[1], out.ends[2] = v, begin + s
        if what == RESPONSIBLE:
            for s in range(m):
                rows[2, s] = rows[3, s] / rows[1, s]
            for k in range(resp.shape[0]):
                for s in range(m):
                    resp[k, s] *= rows[2, s]
            _gather(p, m, room, out)


@kernel
def log_density(points: Any, offset: Any, mean: Any, factor: Any, out: Any) -> None:
    """Fill out (n,) with log p of points (n, d), nats. Differences are taken before squaring: far points stay exact."""
    k, d = mean.shape
    room = work(k, d)
    p = Params(offset, offset, mean, factor, factor)
    none, zero = np.zeros(0), np.zeros(d)
    for begin in range(0, points.shape[0], CHUNK):
        end = min(begin + CHUNK, points.shape[0])
        m = _load(points, begin, end, zero, 1.0, none, room)
        _densities(p, m, room)
        for s in range(end - begin):
            top = room.rows[0, s]
            out[begin + s] = top if k == 1 else top + math.log(room.rows[1, s])
