"""Surrogates of log densities under a mixture: functions near them whose means are known, for control variates.

    s(x) = sum_k r_k(x) g_k(z_k),      E s = sum_k w_k E g_k(z) = sum_k w_k g_k0

r_k are the mixture's responsibilities, z_k = L_k^-1 (x - mu_k), and g_k is a quadratic in the orthogonal polynomials 1,
z_i, z_i z_j - d_ij, whose means under the component are 1, 0, 0; so the mean of s is the constants' alone. The g_k of
all components are fitted together, by weighted least squares over points that represent the mixture. There are points
about every component, however light it is: what no row of a sample shows is in the fit all the same.

The points of a component are a Sobol sequence of normals stretched by s^2 = 1 + d^(-1/2): tails carry much of a log
density's variance. A point's weight is p / t, where t is the density of all points together (the balance heuristic of
Veach and Guibas 1995), which is bounded. So the points of a narrow component stand for what a wide one has there, too.
With weights component by component, a light narrow one in the flank of a wide one had its polynomials fitted to the one
point of the wide one that happened to lie there: the error that was then taken for known was a tenth of the right one.
The components of the other law have points for the same reason.

Compiled, one thread: sums by a library may be those of its number of threads in the last digit.

Shapes: N points, K components, d dimensions, F polynomials of a component, T target functions, M points that represent
the law, G = 1 + K F + T.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from hydrometer.core.array_types import Floats, Ints
from hydrometer.models.arithmetic import inlined, kernel
from hydrometer.models.mixture.kernels import log_density
from hydrometer.models.mixture.normal_points import spread

__all__ = ["Surrogate", "reference_points"]


_MOST_COLUMNS = 256  # polynomials of all components together; beyond, squares alone, then shares alone
_MOST_SHARES = 512  # of components; beyond, a fit would take minutes: rows stay as they are, their error is known
_POINTS = 4_096  # of all components together, where each has at least
_LEAST_POINTS = 512  # of these; and never more than
_MOST_POINTS = 32_768
_NO_SHARE = 1e-10  # of a point: adds nothing to a sum
_LITTLE_SHARE = 1e-5  # adds nothing to a fit


class GaussianComponents(Protocol):
    """The parts of `models.mixture.law.Mixture` that surrogates need."""

    @property
    def n_features(self) -> int: ...

    @property
    def weights(self) -> Floats: ...

    def component_points(self, components: NDArray[np.intp], z: Floats) -> Floats: ...

    def kernel_parts(self) -> tuple[Floats, Floats, Floats, Floats]: ...

    def log_prob(self, x: Floats) -> Floats: ...


def reference_points(law: GaussianComponents, other: GaussianComponents | None) -> tuple[Floats, Floats, Floats]:
    """Return points (M, d) and weights (M,), summing to 1, that represent a mixture; and its log density there, (M,).

    Parameters
    ----------
    other : another mixture, about whose components there are points too; or None.
    """
    laws = [law] if other is None else [law, other]
    alive = [np.flatnonzero(m.weights) for m in laws]
    most, d = _POINTS, law.n_features
    while most * alive[0].size > (_POINTS if most > _LEAST_POINTS else _MOST_POINTS) and most > 64:
        most //= 2
    # The other's have a quarter as many each, and no more than the law's own together.
    others = min(most // 4, max(most * alive[0].size // alive[-1].size, 1))
    sizes = [most, 1 << (others.bit_length() - 1)]
    # Each component has a stretch of the sequence of its own: equal components would else have points of equal density.
    z = iter(spread(d, most, 1 << (sum(a.size for a in alive) - 1).bit_length()))
    stretch = math.sqrt(1 + 1 / math.sqrt(d))
    points = np.concatenate(
        [
            m.component_points(a[j : j + 1], stretch * next(z)[:n])[0]
            for m, a, n in zip(laws, alive, sizes, strict=False)
            for j in range(a.size)
        ]
    )
    log_t = np.full(len(points), -np.inf)
    for m, n in zip(laws, sizes, strict=False):
        offset, mean, factor, of = m.kernel_parts()
        share = math.log(n / len(points)) - d * math.log(stretch)
        found = np.empty(len(points))
        log_density(points, offset - np.log(of) + share, mean, factor / stretch, found)
        log_t = np.logaddexp(log_t, found)
    log_p = law.log_prob(points)
    weights = np.exp(log_p - log_t)
    kept = weights > 0  # this law's density may underflow at the other's components
    return points[kept], weights[kept] / weights[kept].sum(), log_p[kept]


@dataclass(frozen=True, slots=True, eq=False)
class Surrogate:
    """Surrogates of T functions under one mixture.

    Attributes
    ----------
    weights : (K,) of the components that have any.
    offset, mean, factor : (K,), (K, d), (K, e, D) of these, as `models.mixture.kernels` takes them.
    pairs : (F - 1 - d, 2) which two coordinates each polynomial of second degree is of.
    coefficients : (K, F, T) of the polynomials.
    """

    weights: Floats
    offset: Floats
    mean: Floats
    factor: Floats
    pairs: Ints
    coefficients: Floats

    @staticmethod
    def fit(law: GaussianComponents, points: Floats, weights: Floats, targets: Floats) -> Surrogate:
        """Fit to `targets` (M, T) at points that represent the law."""
        offset, mean, factor, of = law.kernel_parts()
        pairs = _pairs(len(of), law.n_features)
        k, f, t = len(of), 1 if pairs is None else 1 + law.n_features + len(pairs), targets.shape[1]
        pairs = np.empty((0, 2), np.int64) if pairs is None else pairs
        if k > _MOST_SHARES:
            return Surrogate(of, offset, mean, factor, pairs, np.zeros((k, f, t)))
        centred = targets - np.einsum("m,mt->t", weights, targets)
        gram = np.zeros((1 + k * f + t,) * 2)
        _gram(points, weights, centred, offset, mean, factor, pairs, gram)
        gram += np.tril(gram, -1).T
        gram = gram[1:, 1:] - np.outer(gram[0, 1:], gram[0, 1:])
        scale = np.sqrt(np.maximum(np.diagonal(gram)[: k * f], np.finfo(np.float64).tiny))
        found = gram[: k * f, k * f :] / scale[:, None]
        _solve(gram[: k * f, : k * f] / np.outer(scale, scale), found)
        found /= scale[:, None]
        return Surrogate(of, offset, mean, factor, pairs, found.reshape(k, f, t))

    def columns(self, points: Floats) -> Floats:
        """Return each surrogate less its mean, (N, T): zero-mean functions of points drawn by the law."""
        out = np.empty((len(points), self.coefficients.shape[2]))
        _sums(points, self.offset, self.mean, self.factor, self.pairs, np.ascontiguousarray(self.coefficients), out)
        return out - np.einsum("k,kt->t", self.weights, self.coefficients[:, 0])


def _pairs(k: int, d: int) -> Ints | None:
    """Coordinates that the polynomials of second degree multiply: all pairs, or squares; None for no polynomials."""
    full = np.stack(np.triu_indices(d), axis=1).astype(np.int64)
    squares = np.repeat(np.arange(d, dtype=np.int64)[:, None], 2, axis=1)
    return next((p for p in (full, squares) if k * (1 + d + len(p)) <= _MOST_COLUMNS), None)


@inlined
def _shares(points: Any, i: int, offset: Any, mean: Any, factor: Any, z: Any, share: Any) -> None:
    """Fill z (K, d) and share (K,) with a point's standardised coordinates and responsibilities."""
    k, d = mean.shape
    diagonal = factor.shape[2] == 1
    top = -np.inf
    for j in range(k):
        square = 0.0
        for a in range(d):
            if diagonal:
                z[j, a] = factor[j, a, 0] * (points[i, a] - mean[j, a])
            else:
                z[j, a] = 0.0
                for b in range(a + 1):
                    z[j, a] += factor[j, a, b] * (points[i, b] - mean[j, b])
            square += z[j, a] * z[j, a]
        share[j] = offset[j] - 0.5 * square
        top = max(top, share[j])
    total = 0.0
    for j in range(k):
        share[j] = math.exp(share[j] - top)
        total += share[j]
    for j in range(k):
        share[j] /= total


@kernel
def _gram(points: Any, weights: Any, targets: Any, offset: Any, mean: Any, factor: Any, pairs: Any, out: Any) -> None:
    """Add to the lower half of out (G, G) the weighted products of 1, all polynomials, and the targets."""
    (k, d), t = mean.shape, targets.shape[1]
    f = (out.shape[0] - 1 - t) // k  # polynomials of a component
    z, share = np.empty((k, d)), np.empty(k)
    at, value = np.empty(1 + k * f + t, np.int64), np.empty(1 + k * f + t)
    for i in range(points.shape[0]):
        _shares(points, i, offset, mean, factor, z, share)
        at[0], value[0] = 0, 1.0
        n = 1
        for j in range(k):
            if share[j] < _LITTLE_SHARE:
                continue
            first = 1 + j * f
            at[n], value[n] = first, share[j]
            n += 1
            if f > 1:
                for a in range(d):
                    at[n], value[n] = first + 1 + a, share[j] * z[j, a]
                    n += 1
                for p in range(pairs.shape[0]):
                    a, b = pairs[p, 0], pairs[p, 1]
                    at[n], value[n] = first + 1 + d + p, share[j] * (z[j, a] * z[j, b] - (1.0 if a == b else 0.0))
                    n += 1
        for s in range(t):
            at[n], value[n] = 1 + k * f + s, targets[i, s]
            n += 1
        for p in range(n):
            scaled = weights[i] * value[p]
            for q in range(p + 1):
                out[at[p], at[q]] += scaled * value[q]


@kernel
def _solve(gram: Any, found: Any) -> None:
    """Turn right-hand sides (n, T) into least-squares coefficients; gram (n, n), of diagonal 1 or 0, is overwritten.

    Cholesky's with the largest pivot first. Columns that others make up have coefficient 0: shares sum to one, and
    components may coincide. By hand, since a library's bits depend on its number of threads.
    """
    n, t = found.shape
    order: Ints = np.arange(n, dtype=np.int64)
    rank = 0
    left = np.diag(gram).copy()
    y = np.zeros((n, t))
    for step in range(n):
        best = step
        for i in range(step + 1, n):
            if left[order[i]] > left[order[best]]:
                best = i
        order[step], order[best] = order[best], order[step]
        p = order[step]
        if not left[p] > 1e-10 * n:
            break
        root = math.sqrt(left[p])
        for i in range(step + 1, n):  # column `step` of the factor takes the place of gram[:, p]
            j = order[i]
            total = gram[j, p]
            for a in range(step):
                total -= gram[j, order[a]] * gram[p, order[a]]
            gram[j, p] = total / root
            left[j] -= gram[j, p] * gram[j, p]
        gram[p, p] = root
        for s in range(t):
            total = found[p, s]
            for a in range(step):
                total -= gram[p, order[a]] * y[a, s]
            y[step, s] = total / root
        rank += 1
    found[:] = 0.0
    for s in range(t):
        for step in range(rank - 1, -1, -1):
            total = y[step, s]
            for a in range(step + 1, rank):
                total -= gram[order[a], order[step]] * found[order[a], s]
            found[order[step], s] = total / gram[order[step], order[step]]


@kernel
def _sums(points: Any, offset: Any, mean: Any, factor: Any, pairs: Any, coefficients: Any, out: Any) -> None:
    """Fill out (N, T) with the polynomials' sums."""
    k, d = mean.shape
    f, t = coefficients.shape[1], coefficients.shape[2]
    z, share = np.empty((k, d)), np.empty(k)
    for i in range(points.shape[0]):
        _shares(points, i, offset, mean, factor, z, share)
        for s in range(t):
            out[i, s] = 0.0
        for j in range(k):
            if share[j] < _NO_SHARE:
                continue
            for s in range(t):
                found = coefficients[j, 0, s]
                if f > 1:
                    for a in range(d):
                        found += coefficients[j, 1 + a, s] * z[j, a]
                    for p in range(pairs.shape[0]):
                        a, b = pairs[p, 0], pairs[p, 1]
                        found += coefficients[j, 1 + d + p, s] * (z[j, a] * z[j, b] - (1.0 if a == b else 0.0))
                out[i, s] += share[j] * found
