"""Drawing maps: tiles in small multiples, and gains against the capacity gap.

A tile's colour says who is ahead and its opacity by how much, so that one drawing serves a light and a dark page; the
sign is written or drawn as well, so that it survives without colour.
"""

# matplotlib leaves the type of its keyword arguments open.
# pyright: reportUnknownMemberType=false

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import cycle
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Rectangle

from hydrometer.report.data.capacity_gap import GapPoint
from hydrometer.report.data.grid_data import Axis, Sheet, Tile
from hydrometer.report.figures.style import FAINT, INK, LOOKS, PAPER, QUIET, drawing
from hydrometer.report.typed_results import Diff

__all__ = [
    "column_figure",
    "gap_figure",
    "panel_title",
    "scale_figure",
    "sheet_figure",
    "sheets_figure",
    "single_figure",
]

WIDE, HIGH = 0.46, 0.34  # of a tile, inches
KEY = [("open", "", "undecided"), ("none", "no bracket", "no equal entropy"), ("none", "", "nothing to compare")]
UP, DOWN = LOOKS["distilled"].color, LOOKS["direct"].color
MARKS = [
    ("o", LOOKS["direct"].color),
    ("s", LOOKS["distilled"].color),
    ("D", LOOKS["teacher"].color),
    ("^", LOOKS["decoded_neutral"].color),
    ("v", INK),
    ("P", QUIET),
]


def strength(value: float, width: float, top: float) -> float:
    """Return the opacity of a value, on an asinh scale of this width up to `top`, at least 0.22."""
    full = math.asinh(top / width)
    return 0.22 + 0.78 * min(math.asinh(abs(value) / width) / full if full > 0 else 0.0, 1.0)


def shown(value: float) -> str:
    """Write a tile's number in two or three digits, with its sign."""
    size = abs(value)
    digits = 0 if size >= 9.95 else 1 if size >= 0.995 else 2
    words = f"{size:.{digits}f}"
    if float(words) == 0:
        return "0"
    return ("+" if value > 0 else "−") + words


def _hatched(ax: Axes, x: float, y: float) -> None:
    ax.add_patch(
        Rectangle((x - 0.47, y - 0.46), 0.94, 0.92, facecolor="none", edgecolor=FAINT, linewidth=0.5, hatch="//////")
    )


def _tile(ax: Axes, x: float, y: float, tile: Tile, scale: tuple[float, float], size: float) -> None:
    if tile.value is None:
        if tile.reason == "no bracket":
            ax.plot([x], [y], marker="x", markersize=4.5, color=QUIET, markeredgewidth=0.9, linestyle="none")
        else:
            ax.plot([x], [y], marker="o", markersize=1.4, color=QUIET, markeredgewidth=0, linestyle="none")
        return
    color = UP if tile.value > 0 else DOWN
    words = shown(tile.value)
    if tile.state != "decided":
        _hatched(ax, x, y)
        # The number stands on a plain ground: hatching under it would eat its strokes.
        ax.add_patch(Rectangle((x - 0.36, y - 0.24), 0.72, 0.48, facecolor=PAPER, edgecolor="none", alpha=0.85))
        ax.text(x, y, words, ha="center", va="center_baseline", fontsize=size, color=QUIET)
        return
    alpha = strength(tile.value, *scale)
    ax.add_patch(Rectangle((x - 0.47, y - 0.46), 0.94, 0.92, facecolor=color, alpha=alpha, edgecolor="none"))
    ink, weight = (PAPER, "bold") if alpha > 0.72 else (INK, "normal")
    ax.text(x, y, words, ha="center", va="center_baseline", fontsize=size, color=ink, fontweight=weight)


def draw_tiles(
    ax: Axes, sheet: Sheet, panel: list[list[Tile]], scale: tuple[float, float], title: str, below: bool
) -> None:
    """Draw one panel of tiles; `below` where the horizontal axis is labelled under it."""
    nx, ny = len(sheet.x.values), len(sheet.y.values)
    ax.set_xlim(-0.5, nx - 0.5)
    ax.set_ylim(-0.5, ny - 0.5)
    for spine in ax.spines.values():
        spine.set_visible(False)
    ax.tick_params(length=0, pad=2)
    ax.set_xticks(range(nx), sheet.x.labels if below else [""] * nx)
    ax.set_yticks(range(ny), sheet.y.labels)
    ax.set_ylabel(sheet.y.name, rotation=0, ha="right", va="center")
    if below:
        ax.set_xlabel(sheet.x.name + ("  (more selective →)" if sheet.x.key == "setting" else ""))
    if title:
        ax.set_title(title, fontsize=8.5)
    for j, line in enumerate(panel):
        for i, tile in enumerate(line):
            _tile(ax, i, j, tile, scale, 7.0)
    for artist in (*ax.texts, *ax.patches, *ax.lines):
        artist.set_in_layout(False)  # all inside the panel: measuring hundreds of them would only take time


def _named(axis: Axis, i: int) -> str:
    if not axis.key:
        return ""
    return f"{axis.name} {axis.labels[i]}" if axis.name == axis.key else f"{axis.name} = {axis.labels[i]}"


def panel_title(sheet: Sheet, row: int, column: int) -> str:
    """Name a panel by its column and row; empty where there is one alone."""
    return ", ".join(w for w in (_named(sheet.columns, column), _named(sheet.rows, row)) if w)


def _size(sheet: Sheet, columns: int) -> tuple[float, float]:
    rows = len(sheet.rows.values)
    wide = columns * (len(sheet.x.values) * WIDE + 0.45)
    return wide, rows * (len(sheet.y.values) * HIGH + 0.27) + 0.4


def column_figure(sheet: Sheet, column: int, scale: tuple[float, float]) -> Figure:
    """Return one column of panels, for the page, where columns wrap."""
    with drawing(*_size(sheet, 1)) as figure:
        axes = figure.subplots(len(sheet.rows.values), 1, squeeze=False)[:, 0]
        for r, ax in enumerate(axes):
            last = r == len(axes) - 1
            draw_tiles(ax, sheet, sheet.panels[r][column], scale, panel_title(sheet, r, column), last)
    return figure


def _nice(value: float) -> float:
    power = 10 ** math.floor(math.log10(value)) if value > 0 else 1.0
    return max(m * power for m in (1, 2, 5) if m * power <= value * 1.0001) if value > 0 else 0.0


def _steps(scale: tuple[float, float]) -> list[float]:
    width, top = scale
    full = math.asinh(top / width)
    up = sorted({_nice(width * math.sinh(full * f)) for f in (0.25, 0.5, 0.75, 1.0)} - {0.0})
    return [*(-v for v in reversed(up)), *up]


def draw_scale(ax: Axes, scale: tuple[float, float], unit: str, wide: float, *, notes: bool) -> None:
    """Draw the key in a panel `wide` inches wide: swatches from the direct to the distilled student, and what has none.

    With `notes` it also explains what is no colour.
    """
    steps = _steps(scale)
    ax.set_axis_off()
    n = len(steps)
    for i, v in enumerate(steps):
        _tile(ax, float(i), 0.0, Tile(v, "decided"), scale, 6.5)
    at = n + 1.3
    for state, reason, words in KEY if notes else ():
        if state == "open":
            _hatched(ax, at, 0.0)
        else:
            _tile(ax, at, 0.0, Tile(None, "none", reason), scale, 6.5)
        ax.text(at + 0.65, 0, words, ha="left", va="center_baseline", fontsize=7, color=QUIET)
        at += 1.5 + 0.118 * len(words)
    ax.text(-0.5, 0.62, "← direct student ahead", ha="left", va="bottom", fontsize=7, color=DOWN)
    ax.text(n - 0.5, 0.62, "distilled ahead →", ha="right", va="bottom", fontsize=7, color=UP)
    ax.text(n - 0.35, 0, unit, ha="left", va="center_baseline", fontsize=7, color=QUIET)
    ax.set_xlim(-0.6, wide / WIDE - 0.6)
    ax.set_ylim(-0.55, 1.25)


def scale_figure(scale: tuple[float, float], unit: str) -> Figure:
    """Return the key of a figure of several panels, for the page, whose caption says the rest."""
    wide = len(_steps(scale)) * WIDE + 0.45
    with drawing(wide, 0.62) as figure:
        draw_scale(figure.subplots(), scale, unit, wide, notes=False)
    return figure


def sheet_figure(sheet: Sheet, scale: tuple[float, float]) -> Figure:
    """Return a whole sheet for download: all panels, and the key below."""
    rows, columns = len(sheet.rows.values), len(sheet.columns.values)
    wide, high = _size(sheet, columns)
    with drawing(max(wide, 6.9), high + 0.85) as figure:
        figure.suptitle(f"{sheet.title}, distilled less direct student", fontsize=9.5, x=0.02, ha="left")
        grid = figure.add_gridspec(rows + 1, columns, height_ratios=[*([1.0] * rows), 0.5 / max(high / rows, 0.5)])
        for r in range(rows):
            for c in range(columns):
                ax = figure.add_subplot(grid[r, c])
                draw_tiles(ax, sheet, sheet.panels[r][c], scale, panel_title(sheet, r, c), r == rows - 1)
        draw_scale(figure.add_subplot(grid[rows, :]), scale, sheet.unit, max(wide, 6.9), notes=True)
    return figure


def sheets_figure(found: Sequence[tuple[Sheet, tuple[float, float]]]) -> Figure:
    """Return several sheets of one panel each side by side, for download; each has its key."""
    wide, high = _size(found[0][0], 1)
    rows = math.ceil(len(found) / 2)
    with drawing(2 * max(wide, 4.4), rows * (high + 0.9)) as figure:
        for part, (sheet, scale) in zip(figure.subfigures(rows, 2, squeeze=False).flat, found, strict=False):
            _single(part, sheet, scale)
    return figure


def single_figure(sheet: Sheet, scale: tuple[float, float]) -> Figure:
    """Return a sheet of one panel with its key, for the page."""
    wide, high = _size(sheet, 1)
    with drawing(max(wide, 4.4), high + 0.9) as figure:
        _single(figure, sheet, scale)
    return figure


def _single(figure: Any, sheet: Sheet, scale: tuple[float, float]) -> None:
    wide, high = _size(sheet, 1)
    tiles, key = figure.subplots(2, 1, height_ratios=[1, 0.45 / high])
    draw_tiles(tiles, sheet, sheet.panels[0][0], scale, sheet.title, True)
    draw_scale(key, scale, sheet.unit, max(wide, 4.4) - 0.5, notes=False)


def _gain(p: GapPoint, metric: str) -> Diff | None:
    return p.precision if metric == "precision" else p.recall


def draw_gap(ax: Axes, found: list[GapPoint], metric: str, joined: bool) -> None:
    """Draw a gain against the capacity gap, marked by the student's components; hollow where undecided.

    `joined` draws a line through the settings of each point.
    """
    sizes = sorted({p.student for p in found if p.student is not None})
    ax.axhline(0, color=QUIET, linewidth=0.8, zorder=0)
    by_point: dict[tuple[tuple[str, float], ...], list[tuple[float, float]]] = {}
    for p in found:
        diff = _gain(p, metric)
        if diff is None or diff.value is None:
            continue
        by_point.setdefault(tuple(sorted(p.point.items())), []).append((p.gap, diff.value))
        marker, color = MARKS[sizes.index(p.student) % len(MARKS) if p.student is not None else -1]
        if diff.ci95:
            ax.plot([p.gap, p.gap], diff.ci95, color=color, linewidth=0.8, alpha=0.45, zorder=2)
        face = color if diff.sign else PAPER
        rim = dict[str, Any](markeredgecolor=color, markeredgewidth=0.9, alpha=0.9, linestyle="none")
        ax.plot([p.gap], [diff.value], marker=marker, markersize=5, color=color, zorder=3, markerfacecolor=face, **rim)
    for line in by_point.values() if joined else ():
        ax.plot([a for a, _ in line], [b for _, b in line], color=QUIET, linewidth=0.7, alpha=0.5, zorder=1)
    drawn = sorted(abs(b) for line in by_point.values() for _, b in line if b)
    width = drawn[len(drawn) // 2] if drawn else 1.0
    ax.set_yscale("asinh", linear_width=width)
    ax.yaxis.set_major_locator(_ticks(width, drawn[-1] if drawn else 1.0))
    ax.yaxis.set_major_formatter(lambda value, _: f"{value:+g}".replace("-", "−") if value else "0")
    ax.minorticks_off()
    ax.set_xlabel("capacity gap, modes  (← easier)")
    ax.set_ylabel(f"{metric}, distilled less direct, nats")
    ax.margins(x=0.06)


def _ticks(width: float, top: float) -> Any:
    from matplotlib.ticker import FixedLocator

    up: list[float] = []
    for f in (0.25, 0.5, 0.75, 1.0):
        v = _nice(width * math.sinh(math.asinh(max(top, width) / width) * f))
        if v > 0 and (not up or v > 1.5 * up[-1]):
            up.append(v)
    return FixedLocator([*(-v for v in reversed(up)), 0.0, *up])


def _gap_legend(figure: Figure, found: list[GapPoint]) -> None:
    sizes = sorted({p.student for p in found if p.student is not None})
    dots = dict[str, Any](linestyle="none", markersize=5)
    handles = [
        Line2D([], [], marker=marker, color=color, label=f"K″ = {k:g}", **dots)
        for k, (marker, color) in zip(sizes, cycle(MARKS), strict=False)
    ]
    hollow = Line2D([], [], marker="o", markerfacecolor=PAPER, color=QUIET, label="hollow: undecided", **dots)
    figure.legend(handles=[*handles, hollow], loc="outside lower center", ncols=5, handletextpad=0.2, columnspacing=1.2)


def gap_figure(found: list[GapPoint], metrics: Sequence[str], joined: bool) -> Figure:
    """Return gains against the capacity gap: one panel a metric, with a legend."""
    with drawing(4.5 * len(metrics), 3.6) as figure:
        axes = figure.subplots(1, len(metrics), squeeze=False)[0]
        for ax, metric in zip(axes, metrics, strict=True):
            draw_gap(ax, found, metric, joined)
        _gap_legend(figure, found)
    return figure
