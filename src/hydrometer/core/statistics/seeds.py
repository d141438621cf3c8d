"""Means over seeds: intervals where they are few and skewed or two-peaked, and variances where rows are shared.

Student's t takes what lies between seeds for normal. Where it is skewed, the t interval of S seeds misses, mostly on
the side of the longer tail. With m the mean, s its standard error and a the skewness of the mean, Hall's monotone
transformation

    g(T) = T + a T^2 / 3 + a^2 T^3 / 27 + a / 6,        T = (m - mu) / s

is free of the skewness to the order 1/S (Hall 1992, "On the removal of skewness by transformation", JRSS B 54), so that
``mu = m - s g^-1(+-t)`` ends an interval that is. Each end taken here is the farther of this one and Student's, at most
twice as far as Student's: a skewness estimated from few seeds widens the interval on one side, and narrows it on none.

How often this holds is tabled in docs, Uncertainty; the table is made by ``benchmarks/seeds.py``.

Shapes: S seeds.
"""

from __future__ import annotations

import math

import numpy as np

from hydrometer.core.array_types import Floats
from hydrometer.core.statistics.estimators import centred
from hydrometer.core.statistics.sampling_design import Clusters, Strata

__all__ = [
    "FEWEST",
    "SURE",
    "crossed_variance",
    "few_seeds",
    "skew_of_mean",
    "skewed_interval",
    "unseen",
    "welch_satterthwaite",
]

FEWEST = 4
"""Seeds below which nothing is said of the shape of their spread."""
SURE = 10
"""Seeds below which no interval over seeds is sure of what it says."""
_FARTHEST = 2.0  # in units of Student's; farther costs width and gains little coverage
_MANY_FOR = 5.0  # seeds for each unit of squared skewness


def _skewness(values: Floats) -> float:
    """Moment skewness ``m3 / m2^1.5``; 0 where there are too few values, or no spread."""
    if values.size < FEWEST:
        return 0.0
    off = values - values.mean()
    size = float(np.abs(off).max())
    if not 0 < size < math.inf or size <= 1e-12 * float(np.abs(values).max()):
        return 0.0
    off = off / size
    return float((off**3).mean()) / float((off**2).mean()) ** 1.5


def skew_of_mean(values: Floats, share: float = 1.0) -> float:
    """Return the skewness of a mean over seeds: that of the values, over the root of their number.

    Parameters
    ----------
    values : (S,) one a seed.
    share : the part of the mean's variance that lies between seeds; the rest is taken for symmetric.

    Returns
    -------
    float : 0 below four seeds.

    Examples
    --------
    >>> round(skew_of_mean(np.array([0.0, 0.0, 0.0, 0.0, 1.0])), 3)
    0.671
    """
    return _skewness(values) / math.sqrt(max(values.size, 1)) * min(max(share, 0.0), 1.0) ** 1.5


def skewed_interval(value: float, se: float, df: float, skew: float, level: float = 0.95) -> tuple[float, float]:
    """Two-sided interval of a mean whose own skewness is `skew`; Student's t where that is 0.

    Parameters
    ----------
    value, se, df : the mean, its standard error and degrees of freedom.
    skew : `skew_of_mean`. Positive: the interval reaches farther up.

    Examples
    --------
    >>> [round(end, 2) for end in skewed_interval(0.0, 1.0, 9.0, 0.0)]
    [-2.26, 2.26]
    >>> [round(end, 2) for end in skewed_interval(0.0, 1.0, 9.0, 0.3)]
    [-2.26, 3.26]
    """
    from scipy.special import stdtrit  # pyright: ignore[reportUnknownVariableType]

    if se == 0:
        return value, value
    t = float(stdtrit(df, 0.5 + level / 2))
    ends = (t, t) if skew == 0 else (_untransformed(t, skew), -_untransformed(-t, skew))
    low, high = (min(max(end, t), _FARTHEST * t) for end in ends)
    return value - low * se, value + high * se


def _untransformed(y: float, a: float) -> float:
    """T at which Hall's transformation is y."""
    # g(T) = ((1 + a T / 3)^3 - 1) / a + a / 6
    z = a * (y - a / 6)
    root = math.expm1(math.log1p(z) / 3) if z > -0.5 else math.cbrt(1 + z) - 1  # exact where a is next to nothing
    return 3 * root / a


def few_seeds(values: Floats) -> bool | None:
    """Whether seeds are too few for their spread: the interval of their mean may hold less often than it says.

    True below `SURE` seeds, for of so few not even an exponential spread is covered as often as it should, and they
    cannot be told from such a one. From there, where ``S < 5 g^2``, g their skewness: Cochran's rule for means of
    skewed rows (1977, section 2.15) asks ``n > 25 g^2`` of an interval that is not corrected. None of one value.

    Examples
    --------
    >>> few_seeds(np.arange(5.0)), few_seeds(np.arange(10.0)), few_seeds(np.arange(10.0) ** 9)
    (True, False, True)
    """
    s = values.size
    return None if s < 2 else s < SURE or bool(_MANY_FOR * _skewness(values) ** 2 > s)


def unseen(seeds: int) -> float:
    """Return the share of seeds that may all come out otherwise and, one time in twenty, be in none of those run.

    ``1 - 0.05^(1/S)``. No interval made of S values knows of what none of them shows.

    Examples
    --------
    >>> [round(unseen(s), 2) for s in (3, 10, 30)]
    [0.63, 0.26, 0.1]
    """
    return 1 - 0.05 ** (1 / max(seeds, 1))


def crossed_variance(table: Floats, strata: Strata | None = None) -> tuple[float, float, float, float]:
    """Variance of the grand mean of seeds crossed with shared rows.

    Model: ``y[s, i] = mu + seed_s + row_i + interaction``; all seeds are judged on the same rows (two-way random
    effects without replication, Searle, Casella and McCulloch 1992, section 4.3). The variance of the grand mean is
    ``(MS_seed + MS_row - MS_interaction) / (S N)``, never below its larger one-way part.

    Parameters
    ----------
    table : (S, N), S >= 2, N >= 2
    strata : (N,), `Clusters` (seeds are then crossed with clusters), or None

    Returns
    -------
    (variance, df, seed part, row part) : the parts are the one-way variances of the mean, MS_seed / (S N) and
    MS_row / (S N); df by Satterthwaite.
    """
    if isinstance(strata, Clusters):
        table, strata = strata.collapse(table), None
    s, n = table.shape
    seed_means = table.mean(axis=1)
    seed_part = float(seed_means.var(ddof=1)) / s
    row_means = table.mean(axis=0)
    row_residual, lost = centred(row_means, strata)
    row_part = float(np.square(row_residual).sum()) / n**2
    interaction = table - seed_means[:, None] - row_means[None, :] + row_means.mean()
    interaction_residual, _ = centred(interaction, strata)
    both_part = float((interaction_residual**2).sum()) / (s - 1) / n / (s * n)
    variance = max(seed_part + row_part - both_part, seed_part, row_part)
    df = welch_satterthwaite([seed_part, row_part], [s - 1, max(n - lost, 1)])
    return variance, df, seed_part, row_part


def welch_satterthwaite(parts: list[float], dfs: list[float]) -> float:
    """Degrees of freedom of a sum of independent variance estimates (Satterthwaite 1946)."""
    total = sum(parts)
    weight = sum(p * p / d for p, d in zip(parts, dfs, strict=True) if p > 0)
    return total * total / weight if weight > 0 else max(dfs)
