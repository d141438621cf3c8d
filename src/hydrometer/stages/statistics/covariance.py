"""Joint uncertainty of several candidates' figures: what seeds, and rows that candidates share, do to all of them.

Candidates of one run share their truth's rows and, seed by seed, data and streams. A difference of two of them is
therefore surer than two figures apart. Here the covariance of all figures is kept whole, in two parts, so that every
linear combination (a difference, a recall loss, a utility) has its error, and knows whether seeds or rows would
shrink it. The model of a single combination is that of `stages.statistics.contrasts`; docs, Uncertainty.

Shapes: G candidates, Q figures each, K = G Q, S seeds, N rows of the truth.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from hydrometer.core.array_types import Floats, Ints
from hydrometer.core.rng import Stream
from hydrometer.core.statistics.estimators import row_freedom
from hydrometer.core.statistics.sampling_design import Clusters, Strata
from hydrometer.core.statistics.seeds import skew_of_mean, skewed_interval, welch_satterthwaite

__all__ = ["Arm", "Design", "Joint", "Linear", "row_covariance"]


_MOST_SEEDS = 1000
_MOST_ROWS = 10_000_000


@dataclass(frozen=True, slots=True)
class Arm:
    """One candidate's figures, by seed.

    Attributes
    ----------
    id : the group's id.
    values : (S, Q) figures; column 1 is recall, a mean over the truth's rows.
    own : (S, Q) Monte Carlo variance of figures over rows of the candidate's own, squared units of `values`; column 1
        is not read.
    rows : (S, N) what each row of the truth adds to recall: their mean is recall, up to rows that were not kept.
    one_cell : whether one model stands behind all seeds.
    cost : what it takes to make it, for ties; any unit.
    """

    id: str
    values: Floats
    own: Floats
    rows: Floats
    one_cell: bool = False
    cost: float = 0.0


@dataclass(frozen=True, slots=True)
class Design:
    """How the rows behind the figures were drawn.

    Attributes
    ----------
    n : rows behind every figure.
    rows_shared : whether all seeds were judged on the same rows of the truth.
    strata : (N,) the prompt each row of the truth answers, as `Clusters` where prompts are a sample, the same for all
        candidates and seeds; or None.
    """

    n: int
    rows_shared: bool
    strata: Strata | None = None

    @property
    def freedom(self) -> float:
        """Degrees of freedom of what rows, or a sample of prompts, add to an error."""
        return row_freedom(self.n, self.strata)


@dataclass(frozen=True, slots=True)
class Linear:
    """A linear combination of figures.

    Attributes
    ----------
    value, se, df : its estimate, standard error and degrees of freedom.
    skew : the skewness that seeds give it (`core.statistics.seeds`).
    """

    value: float
    se: float
    df: float
    skew: float = 0.0

    @property
    def ci95(self) -> tuple[float, float]:
        """The 95 % interval, as that of `stages.statistics.contrasts.Figure`."""
        return self.bounds(0.025)

    def bounds(self, level: float) -> tuple[float, float]:
        """Return the lower and the upper bound, each of one-sided error `level`."""
        return skewed_interval(self.value, self.se, self.df, self.skew, 1 - 2 * level)


def row_covariance(values: Floats, strata: Ints | None) -> Floats:
    """Sampling covariance of the means of G columns over the same rows.

    Parameters
    ----------
    values : (G, N)
    strata : (N,) or None, as for `core.statistics.estimators.mean_variance`, which this generalises to pairs.

    Returns
    -------
    (G, G)

    Examples
    --------
    >>> row_covariance(np.array([[1.0, 2.0, 3.0, 4.0]]), None).round(4).tolist()
    [[0.4167]]
    """
    n = values.shape[1]
    residual = (values - values.mean(axis=1, keepdims=True)) * math.sqrt(n / (n - 1.0))
    if strata is not None:
        _, inverse, counts = np.unique(strata, return_inverse=True, return_counts=True)
        if counts.min() >= 2:
            means = np.stack([np.bincount(inverse, weights=row) / counts for row in values])
            residual = (values - means[:, inverse]) * np.sqrt(counts / (counts - 1.0))[inverse]
    return residual @ residual.T / n**2


def _positive(matrix: Floats) -> Floats:
    """Return the nearest covariance: a difference of two estimates may have negative directions."""
    values, vectors = np.linalg.eigh(matrix)
    return (vectors * np.maximum(values, 0.0)) @ vectors.T


def _first(low: int, high: int, shown: Callable[[int], bool]) -> int | None:
    """Return the smallest number that suffices, by bisection; None where the largest does not."""
    if not shown(high):
        return None
    while low < high:
        middle = (low + high) // 2
        low, high = (low, middle) if shown(middle) else (middle + 1, high)
    return low


class Joint:
    """Means over seeds of K = G Q figures, and the two parts of their covariance.

    Parameters
    ----------
    arms : candidates, all with the same seeds in the same order.
    design : how rows were drawn.
    """

    def __init__(self, arms: Sequence[Arm], design: Design) -> None:
        self.design = design
        self.table = np.stack([a.values for a in arms], axis=1)  # (S, G, Q)
        self.seeds, groups, self.q = self.table.shape
        k = groups * self.q
        flat = self.table.reshape(self.seeds, k)
        self.mean: Floats = flat.mean(axis=0)
        self.residual: Floats = np.zeros((1, k))
        if self.seeds > 1:
            self.residual = (flat - self.mean) / math.sqrt(self.seeds * (self.seeds - 1))
        self.between: Floats = self.residual.T @ self.residual
        self._rows(arms)

    def _rows(self, arms: Sequence[Arm]) -> None:
        """What rows add to the variance between seeds (`shared`), are alone (`floor`), and hold of it (`own`)."""
        s, k = self.seeds, self.mean.size
        recall = np.array(range(1, k, self.q), np.int64)
        block = (recall[:, None], recall[None, :])
        own = np.stack([a.own.mean(axis=0) for a in arms])
        own[:, 1] = 0.0
        strata = self.design.strata
        clustered = isinstance(strata, Clusters)  # one sample of prompts behind all seeds: no error of it averages out
        alone = np.array([a.one_cell or s == 1 or clustered for a in arms])[:, None]
        fixed = np.diag(np.where(alone, own, 0.0).ravel())
        self.own: Floats = np.diag(np.where(alone, 0.0, own / s).ravel())
        self.shared: Floats = fixed.copy()
        self.floor: Floats = fixed.copy()
        table = np.stack([a.rows for a in arms])  # (G, S, N)
        thinned = table.shape[2] / self.design.n
        if isinstance(strata, Clusters):
            table, strata = strata.collapse(table), None
        if s > 1 and not (self.design.rows_shared or clustered):
            each = [row_covariance(table[:, x], strata) for x in range(s)]
            self.own[block] += np.mean(each, axis=0) / s * thinned
            return
        by_row = table.mean(axis=1)
        rows = row_covariance(by_row, strata)
        interaction = np.zeros_like(rows)
        if s > 1:
            rest = table - table.mean(axis=2, keepdims=True) - by_row[:, None, :] + by_row.mean(axis=1)[:, None, None]
            interaction = np.sum([row_covariance(rest[:, x], strata) for x in range(s)], axis=0)
            interaction /= s * (s - 1)
        self.shared[block] += _positive(rows - interaction) * thinned
        self.floor[block] += rows * thinned
        self.own[block] += interaction * thinned

    def linear(self, c: Floats, constant: float = 0.0) -> Linear:
        """Return ``c . figures + constant`` with its error.

        Parameters
        ----------
        c : (K,)
        """
        between, shared, floor = (max(float(c @ m @ c), 0.0) for m in (self.between, self.shared, self.floor))
        total = max(between + shared, floor)
        df = welch_satterthwaite([between, floor], [max(self.seeds - 1, 1), self.design.freedom])
        skew = skew_of_mean(self._by_seed(c), between / total) if total > 0 else 0.0
        return Linear(float(c @ self.mean) + constant, math.sqrt(total), df, skew)

    def _by_seed(self, c: Floats) -> Floats:
        """The combination at each seed, (S,)."""
        return self.table.reshape(self.seeds, -1) @ c

    def needed(self, c: Floats, gap: float, level: float) -> tuple[int | None, int | None, int | None]:
        """How many seeds, or rows, or both, in all would show a gap of this size at one-sided error `level`.

        The gap, both variances and the skewness are taken as estimated: with so many, one time in two it would be
        shown.

        Parameters
        ----------
        c : (K,) signed so that the combination is positive, by the gap.

        Returns
        -------
        (seeds, rows, together) : `together` are seeds, where rows grow by as much. None where no number up to 1,000
            seeds or ten million rows would, or one seed leaves the spread over seeds unknown.
        """
        if gap <= 0 or self.seeds < 2:
            return None, None, None
        between, shared, own = (max(float(c @ m @ c), 0.0) for m in (self.between, self.shared, self.own))
        own = min(own, between)
        s, n, values = float(self.seeds), float(self.design.n), self._by_seed(c)

        def shown(seeds: float, rows: float) -> bool:
            a = ((between - own) + own * n / rows) * s / seeds
            b = shared * n / rows
            df = welch_satterthwaite([a, b], [seeds - 1, (self.design.freedom + 1) * rows / n - 1])
            skew = skew_of_mean(values, a / (a + b)) * math.sqrt(s / seeds) if a > 0 else 0.0
            return Linear(gap, math.sqrt(a + b), df, skew).bounds(level)[0] > 0

        seeds = _first(self.seeds, _MOST_SEEDS, lambda x: shown(x, n))
        together = _first(self.seeds, _MOST_SEEDS, lambda x: shown(x, n * x / s))
        return seeds, _first(self.design.n, _MOST_ROWS, lambda x: shown(s, x)), together

    def draws(self, n: int, stream: Stream) -> Floats:
        """Draw figures from their joint posterior: flat prior, Student's t over seeds, normal over shared rows.

        Returns
        -------
        (n, K)
        """
        from scipy.special import ndtri

        s, k = self.residual.shape[0], self.mean.size
        z = np.asarray(ndtri(stream.uniforms(0, n, s + k)), np.float64)
        spread = z[:, :s] @ self.residual
        if self.seeds > 1:
            other = np.asarray(ndtri(stream.child("scale").uniforms(0, n, self.seeds - 1)), np.float64)
            spread /= np.sqrt(np.square(other).mean(axis=1, keepdims=True))  # chi-square over its degrees of freedom
        values, vectors = np.linalg.eigh(self.shared)
        return self.mean + spread + z[:, s:] @ (vectors * np.sqrt(np.maximum(values, 0.0))).T
