"""Capacity gap against what distilling gains: the points of its figure, and rank correlations within each point.

The gap is the number of true modes that the sharpened teacher emphasises less the student's components (docs, Theory,
eq. 13); `effective_components` of the sharpened teacher is the soft form of the emphasised ones (eq. 14).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from hydrometer.core.statistics.estimate import t_interval
from hydrometer.report.data.grid_data import places
from hydrometer.report.typed_results import Chain, Diff, Group, Run
from hydrometer.report.values import Setting
from hydrometer.report.wording import is_neutral, recall_of

__all__ = ["Correlation", "GapPoint", "correlation", "gap_points", "spearman", "teacher_at"]

MIN_SETTINGS = 3


@dataclass(frozen=True, slots=True)
class GapPoint:
    """A point at a setting: gap, effective components of its teacher, and gains (with half a 95 % interval)."""

    point: Setting
    selectivity: Setting
    gap: float
    components: float | None
    precision: Diff
    recall: Diff | None
    student: float | None


@dataclass(frozen=True, slots=True)
class Correlation:
    """Mean over points of the rank correlation within each.

    Attributes
    ----------
    value, ci95 : the mean, and its interval over points.
    n, negative, positive : points counted, and those with a correlation of that sign.
    flat : points left out because the gap or the gain does not vary.
    """

    value: float | None
    ci95: tuple[float, float] | None
    n: int
    negative: int
    positive: int
    flat: int


def teacher_at(run: Run, chain: Chain, value: Setting | None) -> Group | None:
    """Return the teacher sharpened at a setting; where the teacher is the truth, the truth sharpened."""
    groups = run.at_point(chain)
    role = "teacher" if any(g.role == "teacher" for g in groups) else "truth"
    for group in groups:
        at = group.decoding or (group.selectivity if role == "teacher" else None)
        if group.role == role and (at == value or (is_neutral(at) and is_neutral(value))):
            return group
    return None


def gap_points(run: Run, chain: Chain) -> list[GapPoint]:
    """Collect every point and setting with a capacity gap and a finite gain in precision."""
    found: list[GapPoint] = []
    for place in places(chain):
        group = run.groups.get(place.step.group)
        precision = place.step.vs_direct.get("precision")
        gap = group.value("capacity_gap") if group else None
        if group is None or gap is None or precision is None or precision.value is None:
            continue
        teacher = teacher_at(run, place.point, place.step.selectivity)
        components = teacher.value("effective_components") if teacher else None
        recall, student = recall_of(place.step.vs_direct), group.value("n_components")
        at = place.point.point
        found.append(GapPoint(at, place.step.selectivity, gap, components, precision, recall, student))
    return found


def _ranks(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Rank from 1, with mean ranks for ties."""
    _, place, count = np.unique(values, return_inverse=True, return_counts=True)
    last = np.cumsum(count)
    return (last - (count - 1) / 2)[place]


def spearman(x: Sequence[float], y: Sequence[float]) -> float | None:
    """Return the rank correlation of two sequences of equal length, None where one of them is constant.

    Source: Spearman (1904), with mean ranks for ties.

    Examples
    --------
    >>> spearman([1, 2, 2, 9], [8, 5, 5, 0]), spearman([1, 1, 1], [1, 2, 3])
    (-1.0, None)
    """
    a, b = _ranks(np.asarray(x, np.float64)), _ranks(np.asarray(y, np.float64))
    a, b = a - a.mean(), b - b.mean()
    size = math.sqrt(float(a @ a) * float(b @ b))
    return round(float(a @ b) / size, 12) if size > 0 else None


def correlation(found: list[GapPoint], *, soft: bool = False) -> Correlation:
    """Correlate gap and precision gain across the settings within each point, and average over points.

    Parameters
    ----------
    found : of one map, or of one chain.
    soft : against the teacher's effective components instead of the gap.

    Returns
    -------
    The mean, with Student's t interval over points (None below two); None where no point has `MIN_SETTINGS` settings
    between which both vary.
    """
    by_point: dict[tuple[tuple[str, float], ...], list[tuple[float, float]]] = {}
    for p in found:
        x = p.components if soft else p.gap
        if x is not None and p.precision.value is not None:
            by_point.setdefault(tuple(sorted(p.point.items())), []).append((x, p.precision.value))
    rho: list[float] = []
    flat = 0
    for pairs in by_point.values():
        if len(pairs) < MIN_SETTINGS:
            continue
        r = spearman([x for x, _ in pairs], [y for _, y in pairs])
        flat += r is None
        if r is not None:
            rho.append(r)
    if not rho:
        return Correlation(None, None, 0, 0, 0, flat)
    mean = float(np.mean(rho))
    negative, positive = sum(r < 0 for r in rho), sum(r > 0 for r in rho)
    if len(rho) < 2:
        return Correlation(mean, None, 1, negative, positive, flat)
    low, high = t_interval(mean, float(np.std(rho, ddof=1)) / math.sqrt(len(rho)), len(rho) - 1)
    return Correlation(mean, (max(low, -1.0), min(high, 1.0)), len(rho), negative, positive, flat)
