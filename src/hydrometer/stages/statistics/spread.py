"""What lies between seeds, beside the mean: median, quartiles, and whether the values have two peaks.

Two peaks are marked where one of two tests says so, each at 2.5 %:

- Hartigan's dip (Hartigan and Hartigan, Annals of Statistics 13, 1985): the distance of the values' distribution from
  the nearest with one peak, against that of uniform values, the worst case of one peak;
- the widest gap with at least a twentieth of the values, and two, on either side, over the standard deviation within
  the two groups, against the worse of normal, exponential and uniform values. It sees a small group far away, which the
  dip of few values does not; a tail heavier than an exponential one may look like that.

Critical values, false marks and power: ``benchmarks/seeds.py``; docs, Uncertainty.

Shapes: S seeds.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TypedDict

import numpy as np

from hydrometer.core.array_types import Floats
from hydrometer.core.statistics.seeds import FEWEST, few_seeds

__all__ = ["NO_SPREAD", "Spread", "spread_of", "two_peaks", "widest_gap"]


class Spread(TypedDict):
    """Of the values over seeds; nulls where there is one cell alone, or a value is infinite or undefined.

    `few_seeds` : `seeds.few_seeds`. `two_peaks` is null below four seeds, too, and where the values are counts or
    come in steps.
    """

    median: float | None
    q25: float | None
    q75: float | None
    two_peaks: bool | None
    few_seeds: bool | None


NO_SPREAD = Spread(median=None, q25=None, q75=None, two_peaks=None, few_seeds=None)

# 97.5 % quantiles by number of values: sqrt(S) times the dip, and the gap. Held below the first and beyond the last.
_QUANTILES = np.array(
    [
        (4, 0.442, 13.2),
        (5, 0.430, 10.0),
        (6, 0.429, 7.8),
        (7, 0.455, 6.7),
        (8, 0.463, 6.0),
        (10, 0.468, 5.2),
        (12, 0.481, 4.6),
        (15, 0.490, 4.2),
        (20, 0.502, 3.7),
        (25, 0.510, 3.4),
        (30, 0.518, 3.2),
        (40, 0.527, 2.9),
        (50, 0.532, 2.1),
        (75, 0.541, 1.58),
        (100, 0.547, 1.24),
        (150, 0.553, 0.85),
        (200, 0.560, 0.67),
        (300, 0.565, 0.47),
        (500, 0.570, 0.32),
        (1000, 0.574, 0.17),
    ],
    np.float64,
)
_SIZES, _DIP, _GAP = np.log(_QUANTILES[:, 0]), _QUANTILES[:, 1], _QUANTILES[:, 2]


def spread_of(values: Sequence[float | None]) -> Spread:
    """Describe the values of one figure over seeds.

    Examples
    --------
    >>> found = spread_of([-3.1, -2.9, -3.0, -40.2, -3.2, -41.0, -3.3, -39.5, -2.8, -3.4])
    >>> round(found["median"], 2), found["two_peaks"], found["few_seeds"]
    (-3.25, True, False)
    """
    if len(values) < 2 or any(v is None or not math.isfinite(v) for v in values):
        return NO_SPREAD
    x = np.sort(np.array(values, np.float64))
    q25, median, q75 = (float(q) for q in np.quantile(x, [0.25, 0.5, 0.75]))
    return Spread(median=median, q25=q25, q75=q75, two_peaks=two_peaks(x), few_seeds=few_seeds(x))


def two_peaks(ordered: Floats) -> bool | None:
    """Whether values (S,), in rising order, have two peaks; None where that cannot be asked of them."""
    s = ordered.size
    in_steps = 2 * np.unique(ordered).size < s or bool((ordered == np.round(ordered)).all())
    if s < FEWEST or in_steps:
        return None
    if _wide(ordered) <= 0:
        return False
    at = math.log(s)
    if widest_gap(ordered) > float(np.interp(at, _SIZES, _GAP)):
        return True
    from hydrometer.stages.statistics.dip import dip

    return float(dip(ordered)) * math.sqrt(s) > float(np.interp(at, _SIZES, _DIP))


def _wide(ordered: Floats) -> float:
    """The range of the values, 0 where it is rounding."""
    wide = float(ordered[-1] - ordered[0])
    return wide if wide > 1e-12 * float(np.abs(ordered).max()) else 0.0


def widest_gap(ordered: Floats) -> float:
    """Return the widest gap over the standard deviation within the groups that it parts, the most over all gaps."""
    s = ordered.size
    least = max(2, math.ceil(s / 20))
    x = (ordered - ordered.mean()) / _wide(ordered)
    k = np.arange(least, s - least + 1)
    first, second = np.cumsum(x), np.cumsum(x * x)
    below = second[k - 1] - first[k - 1] ** 2 / k
    above = (second[-1] - second[k - 1]) - (first[-1] - first[k - 1]) ** 2 / (s - k)
    within = np.sqrt(np.maximum(below + above, 1e-18) / (s - 2))
    return float(((x[k] - x[k - 1]) / within).max())
