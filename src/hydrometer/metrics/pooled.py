"""Expectations over two laws from the rows of both, where both densities are known at every row.

Every quantity of `metrics.frontier` and `metrics.typicality` is an integral ``G = integral g(p, q)`` with g
homogeneous of degree one: ``min(q, l p)``, ``(q - p)+``, ``q log(q / r)``. It could be had from the rows of either
law alone, as ``E_q[g(p/q, 1)]`` or ``E_p[g(1, q/p)]``, but each has its ratio at the mercy of the other law. All n =
N + M rows together are a stratified draw from the mixture

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
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.special import expit  # pyright: ignore[reportUnknownVariableType]

from hydrometer.core.clusters import Clusters, Strata
from hydrometer.core.estimate import Estimate, skewed_df, wilson_se
from hydrometer.metrics.likelihood import Scores

__all__ = ["Pooled", "pool", "pool_scores"]

_SILENT = 1e-7  # of a standard error: what float32 log-probabilities leave of none

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]


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
    """

    a: Floats
    b: Floats
    labels: Ints | None
    sizes: tuple[int, int]
    same: bool
    clusters: Ints | None = None

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

    def control(self) -> tuple[Floats, float]:
        """Return c (n,) and z such that ``values @ c / z`` is the coefficient of the control variate a."""
        scaled = self.residual(self.residual(self.a))  # twice: once for a, once for what it is multiplied with
        spread = float(np.einsum("n,n->", scaled, self.a))
        return scaled, spread if spread > 0 else math.inf

    def settle(self, value: Floats, influence: Floats) -> tuple[Floats, Floats, list[float]]:
        """Apply the control variate to estimates whose error is the mean of `influence`.

        Parameters
        ----------
        value : (F,) plain estimates.
        influence : (F, n) what each row contributes, up to a constant.

        Returns
        -------
        (F,) values, (F,) standard errors, and F degrees of freedom.
        """
        scaled, spread = self.control()
        c = np.einsum("fn,n->f", influence, scaled) / spread
        rows = self.errors(influence - c[:, None] * self.a)
        n = self.a.size
        # One coefficient was fitted.
        variance = np.einsum("fn,fn->f", rows, rows) / n**2 * ((n - 1) / max(n - 2, 1))
        df = [skewed_df(row, max(self.n - 1, 1)) for row in rows]
        return value - c * (self.a.mean() - 1.0), np.sqrt(variance), df

    def share(self, value: float, se: float, df: float, top: float = 1.0) -> Estimate:
        """Return a quantity known to lie in ``0 .. top`` as an estimate.

        Rows that agree leave no error but for what none of them showed; unless both laws are one, the error is then
        Wilson's of a share of which no row was seen.
        """
        value = min(max(value, 0.0), top)
        if se < _SILENT and not self.same:
            se = top * wilson_se(0.0, self.n)
        return Estimate(value, se, se, self.n, 0, "mc", "probability", df)


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
    n = sum(sizes)
    shift = math.log(sizes[1] / sizes[0])
    ratio = np.concatenate([on_truth, on_law])
    # expit of both signs: each share keeps its digits where it is small.
    b = np.asarray(expit(ratio + shift), np.float64) * (n / sizes[1])
    a = np.asarray(expit(-ratio - shift), np.float64) * (n / sizes[0])
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


def pool_scores(s: Scores) -> Pooled:
    """Pool the rows of a judged law with the truth's."""
    return pool(
        s.law_on_truth - s.truth_on_truth,
        s.law_on_law - s.truth_on_law,
        s.truth_rows.strata,
        s.law_rows.strata,
        same=s.law_rows is s.truth_rows,
    )
