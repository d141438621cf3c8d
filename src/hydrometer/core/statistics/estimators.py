"""Estimates of means, shares and ratios over rows, with their standard errors.

Shapes: N rows (draws), S seeds.

Standard errors are of a mean over rows that are independent given their stratum. For sequences a stratum is a prompt:
a law with P prompts gives row i the prompt i mod P, so the prompts are equally represented by design and the variance
between them is no sampling error (stratified sampling, Cochran 1977, chapter 5). Where the prompts are themselves a
sample, rows come in clusters instead (`sampling_design`), and the degrees of freedom are those of the clusters.
"""

from __future__ import annotations

import math
from dataclasses import replace
from functools import cache

import numpy as np

from hydrometer.core.array_types import Floats, Ints
from hydrometer.core.statistics.controls import Combination, Controls
from hydrometer.core.statistics.estimate import KNOWN_FREEDOM, Caution, Estimate, t_quantile
from hydrometer.core.statistics.sampling_design import Clusters, Strata

__all__ = [
    "FEW",
    "carried_by",
    "linearised",
    "mean_estimate",
    "mean_variance",
    "ratio_estimate",
    "row_freedom",
    "share_estimate",
    "skewed_df",
    "wilson_se",
]

FEW = 6.0
"""Rows that must carry an error for its interval to be trusted."""


def centred(values: Floats, strata: Ints | None) -> tuple[Floats, int]:
    """Residuals from the stratum means along the last axis, and the degrees of freedom that centring costs."""
    if strata is not None:
        _, inverse, counts = np.unique(strata, return_inverse=True, return_counts=True)
        if counts.min() >= 2:  # a stratum of one row says nothing of its own spread
            onehot_means = np.stack(
                [np.bincount(inverse, weights=row) / counts for row in np.atleast_2d(values)]
            ).reshape((*values.shape[:-1], counts.size))
            # counts / (counts - 1) makes every stratum's variance unbiased on its own.
            scale = np.sqrt(counts / (counts - 1.0))[inverse]
            return (values - onehot_means[..., inverse]) * scale, int(counts.size)
    n = values.shape[-1]
    scale = math.sqrt(n / (n - 1.0)) if n > 1 else math.nan
    return (values - values.mean(axis=-1, keepdims=True)) * scale, 1


@cache
def _t_table() -> tuple[Floats, Floats]:
    """97.5 % quantiles of t, rising, and the logarithms of their degrees of freedom."""
    log_df: Floats = np.linspace(math.log(1e8), 0.0, 2000)
    return np.asarray(t_quantile(np.exp(log_df), 0.975), np.float64), log_df


def skewed_df(residual: Floats, df: float) -> float:
    """Degrees of freedom that make room for skewed rows.

    The two-sided 95 % interval of a mean by Student's t misses, to the order 1/n, by what the rows' skewness g and
    excess kurtosis k ask for (Hall 1992, *The Bootstrap and Edgeworth Expansion*, section 2.6). Its half width is
    right to that order when multiplied by

        1 + ( g^2 (z^4 + 2 z^2 - 3) / 18 - k (z^2 - 3) / 12 ) / n,        z = 1.96

    The degrees of freedom returned have that quantile; never more than `df`. They vanish from sight as n grows.

    Parameters
    ----------
    residual : (n,) rows less their mean (or stratum means).
    df : degrees of freedom without skewness.

    Examples
    --------
    >>> round(skewed_df(np.array([-1.0, 1.0] * 200), 399), 1), round(skewed_df(np.array([-1.0] * 39 + [39.0]), 39), 1)
    (357.8, 2.1)
    """
    n = residual.size
    size = float(np.abs(residual).max()) if n else 0.0
    if n < 4 or not 0 < size < math.inf:
        return df
    unit = residual / size
    squares = np.square(unit)
    second = float(squares.sum()) / n
    g = float(np.einsum("n,n->", squares, unit)) / n / second**1.5 * math.sqrt(n * (n - 1)) / (n - 2)
    k = float(np.einsum("n,n->", squares, squares)) / n / second**2 - 3
    more = (1.0797 * g * g - 0.0701 * k) / n
    if not more > 0:
        return df
    quantiles, log_df = _t_table()
    wanted = float(t_quantile(df, 0.975)) * (1 + more)
    return min(df, math.exp(float(np.interp(np.array([wanted]), quantiles, log_df)[0])))


def row_freedom(n: int, strata: Strata | None) -> float:
    """Degrees of freedom of a mean over n rows: those of the clusters where rows come in clusters."""
    return max((strata.count if isinstance(strata, Clusters) else n) - 1, 1)


def mean_variance(values: Floats, strata: Strata | None = None) -> float:
    """Sampling variance of the mean of `values`.

    Parameters
    ----------
    values : (N,)
    strata : (N,) labels of strata whose shares are fixed by design, `Clusters`, or None for one simple random sample.

    Returns
    -------
    float, in squared units of `values`; NaN for a single row or a single cluster.
    """
    if isinstance(strata, Clusters):
        values, strata = strata.collapse(values), None
    residual, _ = centred(values, strata)
    return float(np.square(residual).sum()) / values.size**2


def _spread(rows: Floats, strata: Strata | None) -> tuple[float, Floats, int] | None:
    """Standard error of the mean of rows, their residuals, and the degrees of freedom that centring costs.

    None for a single row or cluster.
    """
    if isinstance(strata, Clusters):
        rows, strata = strata.collapse(rows), None
    if rows.size < 2:
        return None
    residual, lost = centred(rows, strata)
    return math.sqrt(float(np.square(residual).sum())) / rows.size, residual, lost


def _error(rows: Floats, strata: Strata | None) -> tuple[float | None, float | None, Caution | None]:
    """Standard error of the mean of rows, its degrees of freedom, and what to be cautious of."""
    spread = _spread(rows, strata)
    if spread is None:
        return None, None, None
    se, residual, lost = spread
    df = float(skewed_df(residual, max(residual.size - lost, 1)))
    return se, df, "few_rows" if carried_by(residual) < FEW else None


def carried_by(residual: Floats) -> float:
    """Number of rows that carry the error of a mean: the participation ratio ``(sum r^2)^2 / sum r^4``.

    A third of the rows where they are normal, a ninth where they are exponential, one where a single row decides.

    Parameters
    ----------
    residual : (n,) rows less their mean.

    Examples
    --------
    >>> carried_by(np.array([1.0, -1.0, 1.0, -1.0])), round(carried_by(np.array([9.0] + 99 * [-1 / 11])), 1)
    (4.0, 1.0)
    """
    size = float(np.abs(residual).max()) if residual.size else 0.0
    if not 0 < size < math.inf:
        return math.inf
    squares = np.square(residual / size)
    return float(squares.sum()) ** 2 / float(np.square(squares).sum())


def mean_estimate(
    values: Floats,
    unit: str,
    strata: Strata | None = None,
    controls: Controls | None = None,
    of: Combination | None = None,
) -> Estimate:
    """Mean of rows with its standard error; infinities are counted, never averaged.

    Parameters
    ----------
    values : (N,) without NaN.
    unit, strata : see `Estimate` and `mean_variance`.
    controls, of : control variates of the same rows, and what they have to know of `values` (`Controls.adjust`).

    Examples
    --------
    >>> e = mean_estimate(np.array([1.0, 2.0, 3.0, 4.0]), "nats")
    >>> e.value, round(e.se, 4)
    (2.5, 0.6455)
    """
    n = int(values.size)
    n_neg_inf = int(np.isinf(values).sum())
    if n == 0 or n_neg_inf:
        return Estimate(None, None, None, n, n_neg_inf, "mc", unit)
    if controls is None:
        return _estimated(float(values.mean()), values, strata, unit)
    rows = controls.adjust(values, of)
    plain = float(values.mean()), values
    return _adjusted((float(rows.mean()), rows), plain, strata, unit, controls, of)


def _adjusted(
    adjusted: tuple[float, Floats],
    plain: tuple[float, Floats],
    strata: Strata | None,
    unit: str,
    controls: Controls,
    of: Combination | None,
) -> Estimate:
    """Estimate from adjusted rows, with the plain value and its error beside it; each a value and rows of its error."""
    value, rows = adjusted
    known = controls.known_error(of, rows.size)
    if known is None:
        se, df, caution = _error(rows, strata)
        se = None if se is None else se * controls.inflation
    else:
        # A known error holds with few rows to carry it, but not where less than one is to be expected.
        se, df, caution = known[0], KNOWN_FREEDOM, "few_rows" if known[1] < 1 else None
    beside = _spread(plain[1], strata)
    plain_se = None if beside is None else beside[0]
    return Estimate(value, se, se, rows.size, 0, "cv", unit, df, plain[0], plain_se, caution)


def _estimated(value: float, rows: Floats, strata: Strata | None, unit: str) -> Estimate:
    """Estimate whose error is that of the mean of `rows`."""
    se, df, caution = _error(rows, strata)
    return Estimate(value, se, se, rows.size, 0, "mc", unit, df, caution=caution)


def share_estimate(flags: Floats, strata: Strata | None = None) -> Estimate:
    """Share of rows with a property, with its standard error.

    Where all rows agree the plain error is zero; then it is Wilson's (1927), which shrinks with their number only, or
    with that of their clusters. Where the rows of each stratum agree, and strata differ, it is made of each one's.

    Parameters
    ----------
    flags : (N,) 0 or 1.
    """
    plain = mean_estimate(flags, "probability", strata)
    if plain.value not in (0.0, 1.0) and plain.se != 0.0:
        return plain
    value = plain.value or 0.0
    if 0 < value < 1 and isinstance(strata, np.ndarray):
        parts = [flags[strata == j] for j in np.unique(strata)]
        se = math.hypot(*(x.size / plain.n * wilson_se(float(x[0]), x.size) for x in parts))
    else:
        se = wilson_se(value, strata.count if isinstance(strata, Clusters) else plain.n)
    return replace(plain, se=se, se_mc=se)


def wilson_se(share: float, n: int) -> float:
    """Return the standard error of a share of n rows about Wilson's centre: away from 0 where all rows agree."""
    centre = (share * n + 1.92) / (n + 3.84)
    return math.sqrt(centre * (1 - centre) / n)


def ratio_estimate(
    numerator: Floats,
    denominator: Floats,
    unit: str,
    strata: Strata | None = None,
    controls: Controls | None = None,
) -> Estimate:
    """Ratio of sums with its delta-method standard error (Cochran 1977, section 6.3).

    Parameters
    ----------
    numerator, denominator : (N,) paired by row; the denominator is known and positive in sum.
    controls : control variates of the same rows.
    """
    n = int(numerator.size)
    n_neg_inf = int(np.isinf(numerator).sum())
    total = float(denominator.sum())
    if n == 0 or n_neg_inf or total <= 0:
        return Estimate(None, None, None, n, n_neg_inf, "mc", unit)
    plain = _ratio(numerator, denominator)
    if controls is None:
        return _estimated(*plain, strata, unit)
    adjusted = _ratio(controls.adjust(numerator), controls.adjust(denominator))
    return _adjusted(adjusted, plain, strata, unit, controls, None)


def linearised(values: Floats, per: Floats) -> Floats:
    """Return rows (N,) whose plain mean is the ratio of the sums, and has its error."""
    ratio = values.sum() / per.sum()
    return (values - ratio * per) / per.mean() + ratio


def _ratio(numerator: Floats, denominator: Floats) -> tuple[float, Floats]:
    """Ratio of sums, and rows whose mean has its error."""
    ratio = float(numerator.sum()) / float(denominator.sum())
    return ratio, (numerator - ratio * denominator) / denominator.mean()
