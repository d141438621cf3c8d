"""Expectation maximisation, compiled: the M step, what happens between iterations, and whole fits one after another.

Everything is computed on points centred and scaled into [-1, 1], so that values at 1e150 or 1e-150 meet no overflow;
`reg_covar` is scaled with them. Shapes as in `kernels`.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from hydrometer.models.arithmetic import entry, kernel
from hydrometer.models.mixture.fit_arrays import (
    BEFORE,
    BEST,
    CONVERGED,
    DIAG,
    FLOORED,
    ITERATIONS,
    LAST,
    LIKELIHOOD,
    RESEEDED,
    SPHERICAL,
    STATE,
    TIED,
    Options,
)
from hydrometer.models.mixture.kernels import DENSITY, NEAREST, RESPONSIBLE, Points, moments, params, sweep, work
from hydrometer.models.mixture.start import kmeans

__all__ = ["begin", "fit_range", "frame", "step"]

_LOG_2PI = math.log(2 * math.pi)
_EMPTY = 1e-10
_PIVOT = 1e-13
_ROUNDING = 1e-11
FLOOR = 1e-30
"""Least variance in units of the data's squared reach: below it lies the rounding of the points themselves."""


@kernel
def frame(points: Any, weight: Any, reg: float, centre: Any) -> float:
    """Fill centre (d,) and return the scale that brings all points of positive weight into [-1, 1]."""
    n, d = points.shape
    count = 0
    for s in range(n):
        count += 1 if weight.shape[0] == 0 or weight[s] > 0.0 else 0
    scale = 0.0
    for i in range(d):
        centre[i], low, high = 0.0, np.inf, -np.inf
        for s in range(n):
            if weight.shape[0] == 0 or weight[s] > 0.0:
                centre[i] += points[s, i] / count
                low, high = min(low, points[s, i]), max(high, points[s, i])
        # The mean of equal numbers is not that number after rounding; of large ones the difference would set the scale.
        centre[i] = min(max(centre[i], low), high)
    for s in range(n):
        if weight.shape[0] == 0 or weight[s] > 0.0:
            for i in range(d):
                scale = max(scale, abs(points[s, i] - centre[i]))
    # Not so small that reg / scale^2 leaves the range of numbers.
    scale = max(scale, math.sqrt(reg) * 1e-100, 1e-300)
    return scale if reg > 0.0 or scale > 1e-300 else 1.0


@kernel
def _factorise(kind: int, k: int, p: Any) -> int:
    """Fill factor[k] with the inverse of covariance[k]'s Cholesky factor; returns how many pivots had to be raised."""
    d = p.mean.shape[1]
    raised = 0
    log_det = 0.0
    if kind >= DIAG:
        for i in range(d):
            if p.covariance[k, i, 0] < FLOOR:
                p.covariance[k, i, 0] = FLOOR
                raised += 1
            p.factor[k, i, 0] = 1.0 / math.sqrt(p.covariance[k, i, 0])
            log_det += math.log(p.factor[k, i, 0])
    else:
        lower, growth = np.zeros((d, d)), np.zeros(d)
        for j in range(d):
            # A small pivot is known to few digits, and so is what later rows take from it.
            pivot = rounded = p.covariance[k, j, j]
            for i in range(j):
                square = lower[j, i] * lower[j, i]
                pivot -= square
                rounded += square * growth[i]
            least = max(FLOOR, _PIVOT * rounded)
            low = pivot < least
            if low:
                p.covariance[k, j, j] += least - pivot
                pivot = least
                raised += 1
            lower[j, j] = math.sqrt(pivot)
            growth[j] = max(p.covariance[k, j, j] / pivot, 1.0)
            for i in range(j + 1, d):
                v = p.covariance[k, i, j]
                for h in range(j):
                    v -= lower[i, h] * lower[j, h]
                if low:  # what is left of this column is rounding, which would be divided by almost nothing
                    p.covariance[k, i, j] -= v
                    p.covariance[k, j, i] = p.covariance[k, i, j]
                    v = 0.0
                lower[i, j] = v / lower[j, j]
        for j in range(d):
            p.factor[k, j, j] = 1.0 / lower[j, j]
            for i in range(j + 1, d):
                v = 0.0
                for h in range(j, i):
                    v -= lower[i, h] * p.factor[k, h, j]
                p.factor[k, i, j] = v / lower[i, i]
            log_det += math.log(p.factor[k, j, j])
    p.offset[k] = p.log_weight[k] - 0.5 * d * _LOG_2PI + log_det
    return raised


@kernel
def _finish(kind: int, p: Any) -> int:
    """Factorise all components; the tied ones once."""
    raised = 0
    for k in range(p.mean.shape[0]):
        if kind == TIED and k > 0:
            for i in range(p.factor.shape[1]):
                for j in range(p.factor.shape[2]):
                    p.covariance[k, i, j] = p.covariance[0, i, j]
                    p.factor[k, i, j] = p.factor[0, i, j]
            p.offset[k] = p.log_weight[k] - 0.5 * p.mean.shape[1] * _LOG_2PI
            for i in range(p.mean.shape[1]):
                p.offset[k] += math.log(p.factor[k, i, i])
        else:
            raised += _factorise(kind, k, p)
    return raised


@kernel
def _maximise(options: Any, m: Any, p: Any) -> int:
    """M step: move `p` to the parameters that the moments about it call for; returns pivots raised.

    An empty component keeps mean and covariance and gets weight zero.
    """
    k_all, d = p.mean.shape
    kind = options.kind
    total = 0.0
    for k in range(k_all):
        total += m.mass[k] if m.mass[k] > _EMPTY else 0.0
    pooled = np.zeros((d, d))
    for k in range(k_all):
        mass = m.mass[k]
        if mass <= _EMPTY:
            p.log_weight[k] = -np.inf
            continue
        p.log_weight[k] = math.log(mass / total)
        if kind >= DIAG:
            mean_variance = 0.0
            for i in range(d):
                shift = m.first[k, i] / mass
                p.covariance[k, i, 0] = max(m.second[k, i, 0] / mass - shift * shift, 0.0) + options.reg
                mean_variance += p.covariance[k, i, 0] / d
            if kind == SPHERICAL:
                for i in range(d):
                    p.covariance[k, i, 0] = mean_variance
        else:
            for i in range(d):
                for j in range(i + 1):
                    v = m.second[k, i, j] / mass - m.first[k, i] / mass * (m.first[k, j] / mass)
                    if kind == TIED:
                        pooled[i, j] += v * (mass / total)
                    else:
                        p.covariance[k, i, j] = v + (options.reg if i == j else 0.0)
                        p.covariance[k, j, i] = p.covariance[k, i, j]
        for i in range(d):
            p.mean[k, i] += m.first[k, i] / mass
    if kind == TIED:
        for i in range(d):
            for j in range(i + 1):
                p.covariance[0, i, j] = p.covariance[0, j, i] = pooled[i, j] + (options.reg if i == j else 0.0)
    return _finish(kind, p)


@kernel
def _reseed(options: Any, points: Any, at: int, centre: Any, scale: float, log_density: float, p: Any) -> int:
    """Give an empty component to the point of least density, where that raises the likelihood; returns how many.

    With weight 1/n and the others' mean covariance, all other points lose 1/n at most, and this one gains what is
    compared here.
    """
    k_all, d = p.mean.shape
    empty = -1
    for k in range(k_all):
        if p.log_weight[k] == -np.inf:
            empty = k
            break
    if empty < 0 or options.total < 2.0:
        return 0
    if options.kind != TIED:
        for i in range(p.covariance.shape[1]):
            for j in range(p.covariance.shape[2]):
                v = 0.0
                for k in range(k_all):
                    if p.log_weight[k] > -np.inf:
                        v += math.exp(p.log_weight[k]) * p.covariance[k, i, j]
                p.covariance[empty, i, j] = v
    before = np.empty(d)
    for i in range(d):
        before[i] = p.mean[empty, i]
        p.mean[empty, i] = (points[at, i] - centre[i]) / scale
    p.log_weight[empty] = -math.log(options.total)
    _finish(options.kind, p)
    if p.offset[empty] - log_density <= 1.0:
        for i in range(d):
            p.mean[empty, i] = before[i]
        p.log_weight[empty] = -np.inf
        p.offset[empty] = -np.inf
        return 0
    rest = math.log1p(-1.0 / options.total)
    for k in range(k_all):
        if k != empty:
            p.log_weight[k] += rest
            p.offset[k] += rest
    return 1


@kernel
def _copy(source: Any, target: Any) -> None:
    for k in range(source.mean.shape[0]):
        target.log_weight[k] = source.log_weight[k]
        target.offset[k] = source.offset[k]
        for i in range(source.mean.shape[1]):
            target.mean[k, i] = source.mean[k, i]
        for i in range(source.factor.shape[1]):
            for j in range(source.factor.shape[2]):
                target.covariance[k, i, j] = source.covariance[k, i, j]
                target.factor[k, i, j] = source.factor[k, i, j]


@kernel
def _store(p: Any, centre: Any, scale: float, b: int, log_weight: Any, mean: Any, covariance: Any) -> None:
    """Write parameters, in the points' units, as the batch's b-th."""
    for k in range(p.mean.shape[0]):
        log_weight[b, k] = p.log_weight[k]
        for i in range(p.mean.shape[1]):
            mean[b, k, i] = p.mean[k, i] * scale + centre[i]
        for i in range(p.covariance.shape[1]):
            for j in range(p.covariance.shape[2]):
                covariance[b, k, i, j] = p.covariance[k, i, j] * scale * scale


@kernel
def begin(options: Any, start: Any, centre: Any, scale: float, hard: Any, p: Any, state: Any) -> None:
    """First parameters: those of the points' assignment to nearest means (moments `hard`), but what was given."""
    for i in range(STATE):
        state[i] = 0.0
    state[BEFORE] = state[BEST] = -np.inf
    if start.weight.shape[0] == 0 or start.mean.shape[0] == 0 or start.covariance.shape[0] == 0:
        state[FLOORED] = _maximise(options, hard, p)
    for k in range(p.mean.shape[0]):
        if start.weight.shape[0] > 0:
            p.log_weight[k] = math.log(start.weight[k]) if start.weight[k] > 0.0 else -np.inf
        for i in range(p.mean.shape[1]):
            if start.mean.shape[0] > 0:
                p.mean[k, i] = (start.mean[k, i] - centre[i]) / scale
            if start.covariance.shape[0] > 0:
                for j in range(start.covariance.shape[2]):
                    p.covariance[k, i, j] = start.covariance[k, i, j] / scale / scale
    state[FLOORED] = _finish(options.kind, p)


@kernel
def step(options: Any, m: Any, points: Any, centre: Any, scale: float, p: Any, best: Any, state: Any) -> int:
    """After a sweep: end, or move `p` on; returns what the next sweep is to do, or -1 when `p` is the result.

    Where `reg_covar`, a floor or a re-seed made the likelihood fall, the result is the best parameters met.
    """
    likelihood = m.ends[0] / options.total
    if state[LAST] == 1.0:
        if likelihood < state[BEST] - _ROUNDING * (1.0 + abs(state[BEST])):
            _copy(best, p)
            likelihood = state[BEST]
        state[LIKELIHOOD] = likelihood
        return -1
    if likelihood >= state[BEST]:
        _copy(p, best)
        state[BEST] = likelihood
    state[FLOORED] = _maximise(options, m, p)
    state[ITERATIONS] += 1.0
    if state[RESEEDED] < p.mean.shape[0] and m.ends[2] >= 0:
        state[RESEEDED] += _reseed(options, points, int(m.ends[2]), centre, scale, m.ends[1], p)
    if abs(likelihood - state[BEFORE]) < options.tol:
        state[CONVERGED] = 1.0
        state[LAST] = 1.0
    elif state[ITERATIONS] >= options.max_iter:
        state[LAST] = 1.0
    state[BEFORE] = likelihood
    return DENSITY if state[LAST] == 1.0 else RESPONSIBLE


@entry
@kernel
def fit_range(first: int, last: int, data: Any, settings: Any, start: Any, out: Any) -> None:
    """Fit data sets first .. last of `DataSets`, each from its own starts, and keep the best in `Fits`."""
    kind, n_init, tol, max_iter, reg = settings
    batch, weight, total, uniforms = data
    log_weight, mean, covariance, state = out
    k, d = mean.shape[1], mean.shape[2]
    triangular = kind < DIAG
    p, best, m, room = params(k, d, triangular), params(k, d, triangular), moments(k, d, triangular), work(k, d)
    centre, own = np.zeros(d), np.zeros(STATE)
    for b in range(first, last):
        points = batch[b]
        w = weight[b] if weight.shape[0] > 0 else np.zeros(0)
        scale = frame(points, w, reg, centre)
        framed = Points(points, w, centre, scale)
        options = Options(kind, tol, max_iter, reg / scale / scale, total[b])
        for attempt in range(n_init):
            if start.mean.shape[0] > 0:
                for j in range(k):
                    for i in range(d):
                        p.mean[j, i] = (start.mean[j, i] - centre[i]) / scale
            else:
                kmeans(points, w, centre, scale, uniforms[b * n_init + attempt], p.mean)
            sweep(framed, 0, points.shape[0], p, NEAREST, room, m)
            begin(options, start, centre, scale, m, p, own)
            what = RESPONSIBLE
            while what >= 0:
                sweep(framed, 0, points.shape[0], p, what, room, m)
                what = step(options, m, points, centre, scale, p, best, own)
            own[LIKELIHOOD] -= d * math.log(scale)
            if attempt == 0 or own[LIKELIHOOD] > state[b, LIKELIHOOD]:
                for i in range(STATE):
                    state[b, i] = own[i]
                _store(p, centre, scale, b, log_weight, mean, covariance)
