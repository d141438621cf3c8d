"""Figure 3: where the mass of a mixture chain's models lies, as contours of highest density.

A contour at mass m encloses the smallest region that holds the share m of a density (Hyndman 1996), computed on the
exhibit's own grid; mass outside the grid is not seen.
"""

# matplotlib leaves the type of its keyword arguments open.
# pyright: reportUnknownMemberType=false

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from hydrometer.core.array_types import Floats
from hydrometer.core.io.yaml_io import is_array
from hydrometer.report.data.capacity_gap import teacher_at
from hydrometer.report.data.plotdata import Kind, kinds_of
from hydrometer.report.figures.style import LOOKS, QUIET, drawing
from hydrometer.report.read_results import exhibits
from hydrometer.report.typed_results import Chain, Group, Run
from hydrometer.report.values import items, number
from hydrometer.report.wording import distilled_at, setting

__all__ = ["Column", "Density", "columns", "contour_figure", "draw_density", "first_density", "mass_levels"]

MASSES = (0.95, 0.8, 0.5)
MAX_GRID = 120
MAX_COLUMNS = 9
MAX_POINTS = 400


@dataclass(frozen=True, slots=True)
class Density:
    """A density on a grid; x (X,), y (Y,), log_density (Y, X), means (K, 2), points (N, 2), weights (K,)."""

    x: Floats
    y: Floats
    log_density: Floats
    means: Floats
    points: Floats
    weights: Floats


@dataclass(frozen=True, slots=True)
class Column:
    """Two panels one above the other: their headings, kinds and densities (None where no exhibit was left)."""

    title: str
    upper: tuple[str, Kind, Density | None]
    lower: tuple[str, Kind, Density | None]


def _array(value: object) -> Floats:
    """Read a nested list of numbers; null and "-inf" become minus infinity."""

    def one(v: object) -> Any:
        if is_array(v):
            return [one(w) for w in v]
        n = number(v)
        return -math.inf if n is None else n

    return np.asarray(one(value), dtype=np.float64)


def density_of(exhibit: dict[str, Any]) -> Density | None:
    """Read a density-2d exhibit, thinned to a bounded grid; None where its shapes do not fit."""
    try:
        x, y = _array(items(exhibit.get("x"))), _array(items(exhibit.get("y")))
        z = _array(items(exhibit.get("log_density")))
        means = _array(items(exhibit.get("means"))).reshape(-1, 2)
        points = _array(items(exhibit.get("points"))).reshape(-1, 2)[:MAX_POINTS]
        weights = _array(items(exhibit.get("weights")))
    except ValueError:
        return None
    if x.ndim != 1 or y.ndim != 1 or z.shape != (y.size, x.size) or min(z.shape) < 3:
        return None
    if not (np.isfinite(x).all() and np.isfinite(y).all() and np.isfinite(z).any() and z.max() < math.inf):
        return None
    down, across = math.ceil(y.size / MAX_GRID), math.ceil(x.size / MAX_GRID)
    if weights.shape != (len(means),) or not (np.isfinite(weights) & (weights >= 0)).all():
        weights = np.ones(len(means))
    known = np.isfinite(means).all(axis=1)
    seen = points[np.isfinite(points).all(axis=1)]
    return Density(x[::across], y[::down], z[::down, ::across], means[known], seen, weights[known])


def mass_levels(log_density: Floats, masses: tuple[float, ...] = MASSES) -> list[float]:
    """Return the log-densities whose upper level sets hold these shares of the grid's mass, increasing."""
    flat = np.sort(log_density.ravel())[::-1]
    share = np.cumsum(np.exp(flat - flat[0]))
    share /= share[-1]
    found = sorted({float(flat[int(np.searchsorted(share, m))]) for m in masses})
    return [v for v in found if math.isfinite(v)]


def first_density(run: Run, group: Group | None) -> Density | None:
    """Return the exhibit of a group's first seed that left one."""
    exhibit = next(exhibits(run, group, "density-2d"), None)
    return None if exhibit is None else density_of(exhibit)


def columns(run: Run, chain: Chain) -> list[Column]:
    """Collect the panels: truth over direct student, then per setting the teacher sharpened over its student."""
    kinds = kinds_of(run, chain)
    truth = first_density(run, next(iter(kinds["truth"]), None))
    direct = first_density(run, run.groups.get(chain.direct_group or ""))
    found = [Column("", ("truth p*", "truth", truth), ("direct student", "direct", direct))]

    for group in kinds["distilled"][: MAX_COLUMNS - 1]:
        teacher = first_density(run, teacher_at(run, chain, group.selectivity))
        at = setting(group.selectivity, short=True)
        student = first_density(run, group)
        found.append(
            Column(
                at,
                (f"teacher {at}", "teacher", teacher),
                (f"student {distilled_at(group, short=True)}", "distilled", student),
            )
        )
    return found if any(d is not None for c in found for d in (c.upper[2], c.lower[2])) else []


def draw_density(ax: Axes, title: str, kind: Kind, density: Density | None, truth: Density | None) -> None:
    """Draw one density as filled contours, the truth's outline behind it and its means as crosses."""
    color = LOOKS[kind].color
    ax.set_title(title, fontsize=9, color=color, loc="center")
    ax.set_xticks([])
    ax.set_yticks([])
    for spine in ax.spines.values():
        spine.set_visible(True)
        spine.set_alpha(0.5)
    ax.set_aspect("equal")
    frame = density or truth
    if frame is not None:
        ax.set_xlim(float(frame.x[0]), float(frame.x[-1]))
        ax.set_ylim(float(frame.y[0]), float(frame.y[-1]))
    if truth is not None and kind != "truth":
        outline = mass_levels(truth.log_density, (0.8,))
        floor = np.where(np.isfinite(truth.log_density), truth.log_density, -1e3)
        ax.contour(
            truth.x, truth.y, floor, levels=outline, colors=[QUIET], linewidths=0.6, linestyles="solid", alpha=0.7
        )
    if density is None:
        ax.text(0.5, 0.5, "no exhibit", transform=ax.transAxes, ha="center", va="center", color=QUIET, fontsize=8)
        return
    levels = mass_levels(density.log_density)
    top = float(density.log_density.max()) + 1.0
    floor = np.where(np.isfinite(density.log_density), density.log_density, levels[0] - 50)
    for level, alpha in zip(levels, (0.16, 0.26, 0.38), strict=False):
        ax.contourf(density.x, density.y, floor, levels=[level, top], colors=[color], alpha=alpha)
    ax.contour(density.x, density.y, floor, levels=levels, colors=[color], linewidths=0.7, linestyles="solid")
    if density.means.size:
        ax.plot(*density.means.T, linestyle="none", marker="+", color=color, markersize=6, markeredgewidth=1.1)


def _draw_column(axes: Iterable[Axes], column: Column, truth: Density | None) -> None:
    for ax, (title, kind, density) in zip(axes, (column.upper, column.lower), strict=True):
        draw_density(ax, title, kind, density, truth)


def column_figure(column: Column, truth: Density | None) -> Figure:
    """Return one column as a figure, for the page, where columns wrap."""
    with drawing(2.0, 4.2) as figure:
        _draw_column(figure.subplots(2, 1), column, truth)
    return figure


def contour_figure(found: list[Column]) -> Figure:
    """Return figure 3 for download: all columns side by side."""
    with drawing(1.75 * len(found), 3.9) as figure:
        for axes, column in zip(figure.subplots(2, len(found), squeeze=False).T, found, strict=True):
            _draw_column(axes, column, found[0].upper[2])
    return figure
