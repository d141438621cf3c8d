"""Control variates: functions of the rows with known mean zero, regressed out of every figure in the same way.

Row i becomes ``v_i - C_i b``. Its mean is that of v, since that of C is zero; its spread is smaller where C explains v.
Everything depends on where b comes from:

- From the law itself, where it offers a `Reference`, points that represent it (mixtures do). Then b is a constant:
  the mean is exactly unbiased whatever the number of rows, its error is known rather than estimated, and a component
  that no row has met counts in both (Owen 2013, section 8.9: the optimal coefficient).
- From the rows elsewhere. Then b is fitted within strata and without row i (Avramidis and Wilson 1993), which keeps the
  mean unbiased and makes the rows' own spread the jackknife's. Where one row alone would carry a coefficient, or the
  columns' own means lie further from zero than chance allows, nothing is adjusted: such rows do not represent their
  law, and coefficients fitted to them are noise that shifts all rows alike, which no spread shows.

Both adjustments are linear in v, and the same for every figure over the same rows: identities between figures, such as
precision = -H - KL, survive them, and a ratio of sums is adjusted above and below.

Shapes: N rows, K columns, M points of a reference.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from hydrometer.core.array_types import Floats, Ints
from hydrometer.core.statistics.sampling_design import Clusters, Strata

__all__ = ["Combination", "Controls", "Reference"]


Combination = tuple[float, float]
"""A figure's rows as a combination of the log-probabilities under the law that drew them and under the other."""


@dataclass(frozen=True, slots=True, eq=False)
class Reference:
    """Weighted points that represent a law: an expectation under it is their weighted mean, whatever the rows are.

    Attributes
    ----------
    weights : (M,) positive, summing to 1.
    own, other : (M,) log-probability of each point under the law and under the other, nats.
    controls : (M, K) the control variates there.
    """

    weights: Floats
    own: Floats
    other: Floats
    controls: Floats

    def centred(self, values: Floats) -> Floats:
        """Return values (M, ...) less their mean under the law."""
        return values - np.einsum("m,m...->...", self.weights, values)  # not by BLAS, whose bits depend on its threads


class Controls:
    """Control variates of one set of rows.

    Parameters
    ----------
    columns : (N, K) zero-mean functions of the rows, of order one: what varies by less than 1e-6 is taken for rounding.
    strata : (N,), `Clusters`, or None.
    reference : points that represent the law; coefficients are then constants, independent of strata.

    Attributes
    ----------
    active : whether to adjust: False if the rows are too few, or do not represent their law.
    inflation : what the standard error of adjusted rows is multiplied with for the coefficients fitted to them.

    Examples
    --------
    >>> from hydrometer.core.statistics.estimators import mean_estimate
    >>> x = np.linspace(-1, 1, 101) + 0.1  # the mean is known to be zero, the rows happen to lie high
    >>> e = mean_estimate(2 * x + 1, "nats", controls=Controls.of(x[:, None]))
    >>> round(e.value, 3), e.method  # the plain mean is 1.2
    (1.002, 'cv')
    """

    # With fewer rows a column, fitting its coefficient may cost more than 4 % of the variance where it gains none.
    _ROWS_A_COLUMN = 30
    _ROUNDING = 1e-6
    # What is explained to the last digit may owe its error to rounding, or to rows too rare to be in the sample. A
    # coefficient short by a hundredth leaves a hundredth of the plain error to be seen, and costs nothing elsewhere.
    _TRUST = 0.99
    # Of samples that represent their law, one in ten thousand has column means this far from zero.
    _CHANCE = 1e-4
    # A row with more leverage than that decides its coefficient by itself.
    _MOST_LEVERAGE = 0.5

    def __init__(self, columns: Floats, strata: Strata | None, reference: Reference | None = None) -> None:
        self.reference = reference
        self.inflation = 1.0
        self.active = True
        if reference is not None:
            self._columns, self._optimal = columns, _optimal(reference)
            return
        # Fitted within prompts, whatever the prompts are: the controls know nothing of what lies between them.
        strata = strata.labels if isinstance(strata, Clusters) else strata
        self._strata = _usable(strata)
        centred_KN = self._centre(columns.T)
        n, k = columns.shape
        spread = np.sqrt(np.square(centred_KN).sum(axis=1))
        varies = spread > self._ROUNDING * math.sqrt(n)
        scale = np.where(varies, spread, np.inf)
        self._unit: Floats = centred_KN / scale[:, None]
        values, vectors = np.linalg.eigh(self._unit @ self._unit.T)
        kept = values > 1e-9 * max(k, 1)
        # The pseudo-inverse, so that equal columns do no harm.
        solve = (vectors[:, kept] / values[kept]) @ vectors[:, kept].T
        self._weights: Floats = solve @ self._unit
        self._columns = columns / scale
        in_stratum = n if self._strata is None else np.bincount(self._strata)[self._strata]
        leverage = np.einsum("kn,kn->n", self._unit, self._weights)
        groups = 1 if self._strata is None else int(self._strata.max()) + 1
        free, fitted = n - groups, int(kept.sum())
        self.inflation = math.sqrt(free / max(free - fitted, 1))
        trusted = 0 < self._ROWS_A_COLUMN * fitted <= free and float(leverage.max()) < self._MOST_LEVERAGE
        self.active = trusted and self._stands_for_its_law(solve, fitted, free)
        self._lift: Floats = np.einsum("nk,kn->n", self._columns, self._weights) / np.maximum(
            1 - 1 / in_stratum - leverage, 1e-3
        )

    def _stands_for_its_law(self, solve: Floats, fitted: int, free: int) -> bool:
        """Whether the columns' means lie within chance of zero: Hotelling's T squared, by its limit in large samples.

        A component, or an id, that the sample missed leaves its column nearly constant, away from zero: many standard
        errors of what the sample shows.
        """
        from scipy.special import chdtri  # pyright: ignore[reportUnknownVariableType]

        mean = self._columns.mean(axis=0)
        t_squared = float(mean @ solve @ mean) * len(self._columns) * free
        return t_squared < float(chdtri(fitted, self._CHANCE)) * (1 + 4 * fitted / free)

    @staticmethod
    def of(columns: Floats | None, strata: Strata | None = None, reference: Reference | None = None) -> Controls | None:
        """Return controls, or None where there are no columns, or the rows cannot be trusted with coefficients."""
        if columns is None or 0 in columns.shape:
            return None
        made = Controls(columns, strata, reference)
        return made if made.active else None

    def _centre(self, values: Floats) -> Floats:
        if self._strata is None:
            return values - values.mean(axis=-1, keepdims=True)
        counts = np.bincount(self._strata)
        means = np.stack([np.bincount(self._strata, weights=row) / counts for row in np.atleast_2d(values)])
        return values - means.reshape((*values.shape[:-1], counts.size))[..., self._strata]

    def adjust(self, values: Floats, of: Combination | None = None) -> Floats:
        """Return ``v_i - C_i b``, (N,): rows whose mean is the controlled estimate.

        Parameters
        ----------
        values : (N,)
        of : what `values` are made of; needed where there is a reference, and used there alone.
        """
        if self.reference is not None:
            return values - self._TRUST * (self._columns @ (self._optimal @ np.array(_needed(of))))
        centred = self._centre(values)
        b = self._weights @ centred
        residual = centred - b @ self._unit
        return values - self._TRUST * (self._columns @ b - self._lift * residual)

    def known_error(self, of: Combination | None, n: int) -> tuple[float, float] | None:
        """Standard error of the mean of n adjusted rows, and how many of them carry it, where a reference tells.

        The second is `core.statistics.estimators.carried_by` in expectation: n over the kurtosis of a row.
        """
        if self.reference is None:
            return None
        r, (own, other) = self.reference, _needed(of)
        explained = np.einsum("mk,k->m", r.controls, self._optimal @ np.array([own, other]))
        squares = np.square(r.centred(own * r.own + other * r.other - self._TRUST * explained))
        second = float(np.einsum("m,m->", r.weights, squares))
        fourth = float(np.einsum("m,m->", r.weights, np.square(squares)))
        return math.sqrt(second / n), n * second**2 / fourth if fourth > 0 else math.inf


def _needed(of: Combination | None) -> Combination:
    if of is None:
        raise ValueError("where there is a reference, rows are adjusted as combinations of both log-probabilities")
    return of


def _optimal(r: Reference) -> Floats:
    """Return the coefficients (K, 2) that leave the least variance of both log-probabilities."""
    columns = r.centred(np.concatenate([r.controls, r.own[:, None], r.other[:, None]], axis=1))
    gram = np.einsum("m,mi,mj->ij", r.weights, columns, columns)
    k = r.controls.shape[1]
    scale = np.sqrt(np.maximum(np.diagonal(gram)[:k], np.finfo(np.float64).tiny))
    values, vectors = np.linalg.eigh(gram[:k, :k] / np.outer(scale, scale))
    kept = values > 1e-12 * k  # columns may be equal
    half = vectors[:, kept] / np.sqrt(values[kept])
    return half @ (half.T @ (gram[:k, k:] / scale[:, None])) / scale[:, None]


def _usable(strata: Ints | None) -> Ints | None:
    """Strata as numbers from 0, or None where one of them is of a single row, which says nothing of its own spread."""
    if strata is None:
        return None
    _, inverse, counts = np.unique(strata, return_inverse=True, return_counts=True)
    return inverse.astype(np.int64) if counts.min() >= 2 else None
