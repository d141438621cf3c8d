"""Expectations over two laws from the rows of both, where both densities are known at every row.

Every quantity of `frontiers.curves` and `frontiers.typicality` is an integral ``G = integral g(p, q)`` with g
homogeneous of degree one: ``min(q, l p)``, ``(q - p)+``, ``q log(q / r)``. The rows of either law alone would do, as
``E_q[g(p/q, 1)]`` or ``E_p[g(1, q/p)]``, but each has its ratio at the mercy of the other law. All n = N + M rows
together are a stratified draw from the mixture

    m = (N p + M q) / n           G = E_m[ g(a, b) ]       a = p / m,  b = q / m,  (N a + M b) / n = 1

whose ratios are bounded, a <= n / N and b <= n / M (the balance heuristic of Veach and Guibas 1995). One control
variate comes free: ``E_m[a] = 1`` is known (b adds nothing, being affine in a), so ``mean(h) - c (mean(a) - 1)`` with
the fitted c is used. In large samples no other weighting of the two sets of rows has a smaller variance (Tan 2004;
Owen and Zhou 2000 bound it without asymptotics).

Not to be confused with self-normalised importance sampling: both densities are normalised here.

Shapes: N truth rows, M rows of the law, n = N + M.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from functools import lru_cache

import numpy as np

from hydrometer.core.array_types import Floats, Ints
from hydrometer.core.statistics.controls import Reference
from hydrometer.core.statistics.estimate import KNOWN_FREEDOM, Caution, Estimate
from hydrometer.core.statistics.estimators import FEW, carried_by, skewed_df, wilson_se
from hydrometer.core.statistics.sampling_design import Clusters, Strata
from hydrometer.metrics.likelihood import Scores

__all__ = ["Pooled", "PooledReference", "Settled", "pool", "pool_scores"]

_SILENT = 1e-7  # of a standard error: what float32 log-probabilities leave of none


@dataclass(frozen=True, slots=True, eq=False)
class Settled:
    """Estimates with their errors.

    Attributes
    ----------
    value, se : (F,) estimates and their standard errors.
    df, carried : F degrees of freedom, and numbers of rows that carry the error (`estimate.carried_by`).
    """

    value: Floats
    se: Floats
    df: list[float]
    carried: list[float]

    def scaled(self, by: Floats, plus: float = 0.0) -> Settled:
        """Return ``plus + by * value``."""
        return Settled(plus + by * self.value, np.abs(by) * self.se, self.df, self.carried)


@dataclass(frozen=True, slots=True, eq=False)
class PooledReference:
    """Points that represent both laws, those of either law used for both.

    A narrow law's points say what a wide one has where the narrow one lies, which is what the rows of both compare.

    Attributes
    ----------
    a, b : (M,) p / m and q / m.
    log_p : (M,) log p*, nats.
    mass : (M,) weight of each point in the pooled rows' law m, summing to 1.
    sizes : rows of the truth and of the law, whose means' errors these points tell.
    """

    a: Floats
    b: Floats
    log_p: Floats
    mass: Floats
    sizes: tuple[int, int]

    def errors(self, values: Floats) -> Floats:
        """Standard error of the mean of a function over all rows, (...,), from its values (..., M) at the points."""
        return np.sqrt(sum(np.einsum("...m,m->...", np.square(away), share) for away, share in self._of_each(values)))

    def settled(self, value: Floats, influence: Floats) -> Settled:
        """Return estimates (F,) whose error is the mean of a function with values (F, M) at the points."""
        second, fourth = np.zeros(len(value)), np.zeros(len(value))
        for away, share in self._of_each(influence):
            squares = np.square(away)
            second += np.einsum("fm,m->f", squares, share)
            fourth += np.einsum("fm,m->f", np.square(squares), share) / sum(self.sizes) ** 2
        carried = np.square(second) / np.maximum(fourth, np.finfo(np.float64).tiny)
        return Settled(value, np.sqrt(second), [KNOWN_FREEDOM] * len(value), carried.tolist())

    def coefficient(self) -> Floats:
        """Return c (M,) such that ``values @ c`` is the coefficient of the control variate a."""
        scaled = np.sum([away * share for away, share in self._of_each(self.a)], axis=0)
        spread = float(np.einsum("m,m->", scaled, self.a))
        return scaled / (spread if spread > 0 else math.inf)

    def _of_each(self, values: Floats) -> list[tuple[Floats, Floats]]:
        """For the truth's rows, then the law's: values less their mean under the law that draws these, and weights.

        Under the weights (M,) squared deviations sum to what these rows add to the variance of the mean over all.
        """
        out: list[tuple[Floats, Floats]] = []
        for size, ratio in zip(self.sizes, (self.a, self.b), strict=True):
            weights = self.mass * ratio
            weights /= weights.sum()
            mean = np.einsum("...m,m->...", values, weights)
            out.append((values - mean[..., None], weights * (size / sum(self.sizes) ** 2)))
        return out


@dataclass(frozen=True, slots=True, eq=False)
class Pooled:
    """Rows of both laws, truth first.

    Attributes
    ----------
    a, b : (n,) p / m and q / m.
    labels : (n,) which prompt of which law a row is of; None where there is one prompt, or one with under two rows.
    sizes : N, M.
    same : whether the two laws are one and the same: every figure is then known.
    clusters : (n,) which prompt a row answers, 0 to G - 1, where prompts are a sample of many; or None.
    reference : points that represent both laws, where available: errors and coefficients then come from them; or None.
    """

    a: Floats
    b: Floats
    labels: Ints | None
    sizes: tuple[int, int]
    same: bool
    clusters: Ints | None = None
    reference: PooledReference | None = None

    @property
    def n(self) -> int:
        """Rows of the smaller sample, or clusters: what degrees of freedom are counted by."""
        return min(self.sizes) if self.clusters is None else int(self.clusters.max()) + 1

    def errors(self, values: Floats) -> Floats:
        """Return what the error of ``mean(values)`` is made of: independent, and squared summing to n^2 its variance.

        The rows' residuals; or one number a cluster, of the rows of both laws that answer its prompt.

        Parameters
        ----------
        values : (..., n)
        """
        if self.clusters is None:
            return self.residual(values)
        cut = self.sizes[0]
        parts = values[..., :cut], values[..., cut:]
        away = np.concatenate([x - x.mean(axis=-1, keepdims=True) for x in parts], axis=-1)
        flat = away.reshape(-1, away.shape[-1])
        sums: Floats = np.stack([np.bincount(self.clusters, weights=row).astype(np.float64) for row in flat])
        return (sums * _unbiased(self.n)).reshape(*values.shape[:-1], self.n)

    def residual(self, values: Floats) -> Floats:
        """Return deviations from the strata's means, scaled so that ``sum(residual^2) / n^2`` is unbiased.

        Parameters
        ----------
        values : (..., n)
        """
        if self.labels is None:
            cut = self.sizes[0]
            parts = values[..., :cut], values[..., cut:]
            return np.concatenate(
                [(x - x.mean(axis=-1, keepdims=True)) * _unbiased(x.shape[-1]) for x in parts], axis=-1
            )
        counts = np.bincount(self.labels)
        flat = values.reshape(-1, values.shape[-1])
        means = np.stack([np.bincount(self.labels, weights=row) for row in flat]) / counts
        scale = np.sqrt(counts / (counts - 1.0))
        return ((flat - means[:, self.labels]) * scale[self.labels]).reshape(values.shape)

    def weights(self) -> tuple[Floats, Floats | None]:
        """Return weights under which a function's sum is its controlled mean: of the rows (n,), and of the reference.

        1/n a row, less the coefficient of a, which is linear in the function, times how far the mean of a is from 1.
        """
        off = float(self.a.mean()) - 1.0
        even = np.full(self.a.size, 1.0 / self.a.size)
        if self.reference is not None:
            return even, self.reference.coefficient() * -off
        return even - self._coefficient() * off, None

    def _coefficient(self) -> Floats:
        """Return c (n,) such that ``values @ c`` is the coefficient of the control variate a, fitted to the rows."""
        scaled = self.residual(self.residual(self.a))  # twice: once for a, once for what it is multiplied with
        spread = float(np.einsum("n,n->", scaled, self.a))
        return scaled / (spread if spread > 0 else math.inf)

    def settle(self, value: Floats, influence: Floats, there: Floats | None = None) -> Settled:
        """Apply the control variate to estimates whose error is the mean of `influence`.

        Parameters
        ----------
        value : (F,) plain estimates.
        influence : (F, n) what each row contributes, up to a constant.
        there : (F, M) the same at the points of the reference, where there is one.
        """
        off = self.a.mean() - 1.0
        n = self.a.size
        if self.reference is not None and there is not None:
            c = np.einsum("fm,m->f", there, self.reference.coefficient())
            return self.reference.settled(value - c * off, there - c[:, None] * self.reference.a)
        c = np.einsum("fn,n->f", influence, self._coefficient())
        rows = self.errors(influence - c[:, None] * self.a)
        # One coefficient was fitted.
        variance = np.einsum("fn,fn->f", rows, rows) / n**2 * ((n - 1) / max(n - 2, 1))
        return Settled(value - c * off, np.sqrt(variance), *self._rows_say(rows))

    def settle_plainly(self, value: float, influence: Floats) -> Settled:
        """Return an estimate whose error is the mean of `influence` (n,), without the control variate."""
        rows = self.errors(influence)[None]
        se = np.sqrt(np.einsum("fn,fn->f", rows, rows)) / influence.size
        return Settled(np.array([value]), se, *self._rows_say(rows))

    def _rows_say(self, rows: Floats) -> tuple[list[float], list[float]]:
        return [skewed_df(row, max(self.n - 1, 1)) for row in rows], [carried_by(row) for row in rows]

    def shares(self, found: Settled, top: float | Floats = 1.0) -> list[Estimate]:
        """Return quantities known to lie in ``0 .. top`` as estimates.

        Rows that agree leave no error but for what none of them showed, and a few rows that carry it show too little of
        it; unless both laws are one, the error is then at least Wilson's of a share.
        """
        out: list[Estimate] = []
        tops = np.broadcast_to(np.asarray(top, np.float64), found.value.shape)
        least = 1.0 if self.reference is not None else FEW
        for value, se, df, carried, most in zip(
            found.value.tolist(), found.se.tolist(), found.df, found.carried, tops.tolist(), strict=True
        ):
            kept = min(max(value, 0.0), most)
            caution: Caution | None = "few_rows" if se >= _SILENT and carried < least else None
            if not self.same and (se < _SILENT or caution):
                shown = 0.0 if se < _SILENT else kept / most
                se = max(se, most * wilson_se(shown, self.n))
            out.append(Estimate(kept, se, se, self.n, 0, "mc", "probability", df, caution=caution))
        return out


def _unbiased(n: int) -> float:
    return math.sqrt(n / max(n - 1.0, 1.0))


def pool(
    on_truth: Floats, on_law: Floats, truth_strata: Strata | None, law_strata: Strata | None, *, same: bool = False
) -> Pooled:
    """Pool two sets of rows.

    Parameters
    ----------
    on_truth : (N,) log q - log p* of the truth's rows; -inf where q cannot say the row.
    on_law : (M,) log q - log p* of the law's rows; +inf where the truth cannot.
    truth_strata, law_strata : prompts, as strata or as clusters; or None.
    same : whether both are one law and its one set of rows.

    Examples
    --------
    >>> rows = pool(np.array([0.0, -np.inf]), np.array([0.0, np.inf]), None, None)
    >>> rows.a.tolist(), rows.b.tolist()
    ([1.0, 2.0, 1.0, 0.0], [1.0, 0.0, 1.0, 2.0])
    """
    sizes = (int(on_truth.size), int(on_law.size))
    a, b = _shares(np.concatenate([on_truth, on_law]), sizes)
    labels = clusters = None
    if isinstance(truth_strata, Clusters) and isinstance(law_strata, Clusters):
        truth_strata, law_strata = truth_strata.labels, law_strata.labels
        _, found = np.unique(np.concatenate([truth_strata, law_strata]), return_inverse=True)
        clusters = np.asarray(found, np.int64)
    if isinstance(truth_strata, np.ndarray) and isinstance(law_strata, np.ndarray):
        of_law = np.repeat(np.arange(2, dtype=np.int64), sizes)
        both = np.stack([of_law, np.concatenate([truth_strata, law_strata])])
        _, fine, counts = np.unique(both, axis=1, return_inverse=True, return_counts=True)
        if counts.min() >= 2:  # a stratum of one row says nothing of its own spread
            labels = np.asarray(fine, np.int64).ravel()
    return Pooled(a, b, labels, sizes, same, clusters)


def _shares(ratio: Floats, sizes: tuple[int, int]) -> tuple[Floats, Floats]:
    """Return p / m and q / m from log q - log p."""
    from scipy.special import expit  # pyright: ignore[reportUnknownVariableType]

    n, shift = sum(sizes), math.log(sizes[1] / sizes[0])
    # expit of both signs: each share keeps its digits where it is small.
    b = np.asarray(expit(ratio + shift), np.float64) * (n / sizes[1])
    return np.asarray(expit(-ratio - shift), np.float64) * (n / sizes[0]), b


def pool_scores(s: Scores) -> Pooled:
    """Pool the rows of a judged law with the truth's."""
    same = s.law_rows is s.truth_rows
    found = pool(
        s.law_on_truth - s.truth_on_truth,
        s.law_on_law - s.truth_on_law,
        s.truth_rows.strata,
        s.law_rows.strata,
        same=same,
    )
    p = None if s.truth_controls is None else s.truth_controls.reference
    q = None if s.law_controls is None else s.law_controls.reference
    if same or p is None or q is None:
        return found
    return replace(found, reference=_pooled_reference(p, q, found.sizes))


@lru_cache(maxsize=2)  # several figures, then their curves, of the same two laws
def _pooled_reference(p: Reference, q: Reference, sizes: tuple[int, int]) -> PooledReference:
    a, b = _shares(np.concatenate([p.other - p.own, q.own - q.other]), sizes)
    mass = np.concatenate([w * (size / sum(sizes)) for w, size in zip((p.weights, q.weights), sizes, strict=True)])
    return PooledReference(a, b, np.concatenate([p.own, q.other]), mass, sizes)
