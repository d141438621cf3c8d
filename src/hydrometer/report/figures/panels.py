"""Drawing what `plotdata` computed: one function, one panel on given axes. Labels come last, on a settled layout."""

# matplotlib leaves the type of its keyword arguments open.
# pyright: reportUnknownMemberType=false

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from itertools import pairwise
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patheffects import withStroke

from hydrometer.report.data.plotdata import FEW_METHODS, KINDS, Curves, Kind, Panel, Plane, Point
from hydrometer.report.figures.style import (
    FAINT,
    LOOKS,
    PAPER,
    QUIET,
    Look,
    drawing,
    look_of,
    objectives_of,
    settle,
    sources_of,
)

__all__ = ["curves_figure", "draw_entropy_plane", "draw_panel", "draw_plane", "handles_of", "plane_figure", "single"]

HALO = [withStroke(linewidth=2.4, foreground=PAPER)]
# Where a label may stand around its point: offset in points, horizontal and vertical alignment.
FREE: dict[str, Any] = {"textcoords": "offset points", "annotation_clip": False, "path_effects": HALO}
"""Of a label beside its point."""

PLACES = [
    (8, 0, "left", "center"),
    (7, 6, "left", "bottom"),
    (7, -6, "left", "top"),
    (0, 9, "center", "bottom"),
    (0, -9, "center", "top"),
    (-8, 0, "right", "center"),
    (-7, 6, "right", "bottom"),
    (-7, -6, "right", "top"),
    (14, 14, "left", "bottom"),
    (14, -14, "left", "top"),
    (-14, 14, "right", "bottom"),
    (-14, -14, "right", "top"),
]


def _limits(values: Iterable[float], pad: float = 0.09) -> tuple[float, float]:
    array = np.array([v for v in values if math.isfinite(v)] or [0.0, 1.0])
    low, high = float(array.min()), float(array.max())
    room = (high - low) * pad or max(abs(high), 1.0) * 0.1
    return low - room, high + room


def _extent(plane: Plane, axis: int) -> list[float]:
    """Collect what an axis must hold: means with their bars, tie ends, and the bulk of the cloud."""
    found: list[float] = []
    for _, _, points in plane.lines:
        for p in points:
            value, reach = (p.x, p.x_reach) if axis == 0 else (p.y, p.y_reach)
            if value is not None:
                below, above = reach or (0.0, 0.0)
                found += [value - below, value + above]
    found += [end[axis] for tie in plane.ties for end in tie]
    for cloud in plane.cloud.values():
        found += [float(v) for v in np.quantile([c[axis] for c in cloud], [0.05, 0.95])]
    return found


def _mark(ax: Axes, look: Look, x: float, y: float, **more: Any) -> None:
    ax.plot([x], [y], color=look.color, linestyle="none", zorder=5, **look.markers(look.size, 0.8), **more)


def _path(ax: Axes, kind: Kind, look: Look, points: list[Point], rail: float) -> None:
    seen = [p for p in points if p.x is not None]
    if len(seen) > 1 and kind not in ("truth", "direct", "adopted"):
        x, y = [p.x for p in seen if p.x is not None], [p.y for p in seen]
        width = 1.5 if kind != "teacher" else 1.1
        ax.plot(x, y, color=look.color, linestyle=look.line, linewidth=width, zorder=3)
    start_is_other = kind in ("decoded", "decoded_neutral")
    for i, p in enumerate(points):
        if start_is_other and i == 0:
            continue
        x = rail if p.x is None else p.x
        if kind != "truth":
            xerr = None if p.x is None or p.x_reach is None else [[end] for end in p.x_reach]
            yerr = None if p.y_reach is None else [[end] for end in p.y_reach]
            ax.errorbar([x], [p.y], yerr, xerr, fmt="none", ecolor=look.color, elinewidth=0.9, alpha=0.55, zorder=2)
        _mark(ax, look, x, p.y, clip_on=p.x is not None)


def _overlap(a: tuple[float, ...], b: tuple[float, ...]) -> float:
    wide = min(a[2], b[2]) - max(a[0], b[0])
    high = min(a[3], b[3]) - max(a[1], b[1])
    return wide * high if wide > 0 and high > 0 else 0.0


def _bars(ax: Axes, points: list[Point]) -> list[tuple[float, float, float, float]]:
    """Boxes in pixels of the error bars."""
    boxes: list[tuple[float, float, float, float]] = []
    for p in points:
        if p.x is None:
            continue
        dx, dy = (p.x_reach or (0.0, 0.0)), (p.y_reach or (0.0, 0.0))
        (x0, y0), (x1, y1) = ax.transData.transform([(p.x - dx[0], p.y - dy[0]), (p.x + dx[1], p.y + dy[1])])
        x, y = ax.transData.transform((p.x, p.y))
        boxes += [
            (float(x0), float(y) - 2, float(x1), float(y) + 2),
            (float(x) - 2, float(y0), float(x) + 2, float(y1)),
        ]
    return boxes


def _obstacles(ax: Axes, plane: Plane) -> list[tuple[float, float, float, float]]:
    """Boxes in pixels that a label should not cover: the points, and beads along the paths."""
    boxes: list[tuple[float, float, float, float]] = []
    for kind, _, points in plane.lines:
        spots = [(p.x, p.y) for p in points if p.x is not None]
        pixels = [(float(x), float(y)) for x, y in map(ax.transData.transform, spots)]
        boxes += [(x - 6, y - 6, x + 6, y + 6) for x, y in pixels]
        boxes += _bars(ax, points)
        if kind in ("truth", "direct"):
            continue
        for (x0, y0), (x1, y1) in pairwise(pixels):
            steps = max(2, int(math.hypot(x1 - x0, y1 - y0) / 8))
            for t in np.linspace(0, 1, steps):
                x, y = x0 + (x1 - x0) * float(t), y0 + (y1 - y0) * float(t)
                boxes.append((x - 2.5, y - 2.5, x + 2.5, y + 2.5))
    return boxes


def _spot(ax: Axes, p: Point, rail: float) -> tuple[float, float]:
    x, y = ax.transData.transform((rail if p.x is None else p.x, p.y))
    return float(x), float(y)


def _box(spot: tuple[float, float], size: float, scale: float, words: str, place: int) -> tuple[float, ...]:
    """Estimate the box in pixels of a label at one of `PLACES`."""
    dx, dy, ha, va = PLACES[place]
    wide, high = 0.62 * size * scale * len(words), 1.15 * size * scale
    left = spot[0] + dx * scale - {"left": 0.0, "center": wide / 2, "right": wide}[ha]
    low = spot[1] + dy * scale - {"bottom": 0.0, "center": high / 2, "top": high}[va]
    return left, low, left + wide, low + high


def _place_labels(ax: Axes, plane: Plane, rail: float) -> None:
    """Write labels where they cover the least, greedily, in a fixed order; minor ones without room are left out."""
    taken: list[tuple[float, ...]] = list(_obstacles(ax, plane))
    frame = ax.get_window_extent()
    bounds = (frame.x0, frame.y0, frame.x1, frame.y1)
    figure = ax.get_figure(root=True)
    scale = (figure.dpi if figure is not None else 72) / 72
    order = ("truth", "distilled", "direct", "baseline", "teacher", "adopted", "decoded", "decoded_neutral")
    for kind, _, points in sorted(plane.lines, key=lambda line: order.index(line[0])):
        start = _spot(ax, points[0], rail) if points else (0.0, 0.0)
        follows = kind in ("decoded", "decoded_neutral")
        for i, p in enumerate(points):
            spot = _spot(ax, p, rail)
            # A decoded path starts at a model that has a label already; one that does not move needs no other.
            if not p.label or (follows and (i == 0 or math.dist(spot, start) < 8)):
                continue
            size = 7.0 if follows else 8.0
            boxes = [_box(spot, size, scale, p.label, n) for n in range(len(PLACES))]
            area = (boxes[0][2] - boxes[0][0]) * (boxes[0][3] - boxes[0][1])
            covered = [sum(_overlap(b, t) for t in taken) + 3 * (area - _overlap(b, bounds)) for b in boxes]
            best = min(range(len(PLACES)), key=lambda n, c=covered: c[n] + n)
            if covered[best] > 0.6 * area and (follows or (kind == "teacher" and i > 0)):
                continue
            taken.append(boxes[best])
            dx, dy, ha, va = PLACES[best]
            ax.annotate(
                p.label,
                ((rail if p.x is None else p.x), p.y),
                (dx, dy),
                ha=ha,
                va=va,
                fontsize=size,
                color=LOOKS[kind].color,
                zorder=6,
                **FREE,
            )


def _cloud(ax: Axes, plane: Plane) -> None:
    for kind, cloud in plane.cloud.items():
        x, y = zip(*cloud, strict=True)
        dots = dict[str, Any](marker="o", markersize=1.8, markeredgewidth=0)
        ax.plot(x, y, linestyle="none", color=LOOKS[kind].color, alpha=0.22, zorder=1, **dots)


Labels = Callable[[], None]


def draw_plane(ax: Axes, plane: Plane) -> Labels:
    """Draw precision against recall: the truth's lines, ties of equal entropy, paths, error bars.

    Returns what writes the labels; to be called when the layout is settled.
    """
    xs, ys = _limits(_extent(plane, 0)), _limits(_extent(plane, 1))
    railed = any(p.x is None for _, _, points in plane.lines for p in points)
    rail = xs[0] - 0.04 * (xs[1] - xs[0]) if railed else xs[0]
    ax.set_xlim(rail, xs[1])
    ax.set_ylim(*ys)
    for p in plane.paths.get("truth", []):
        if p.x is not None:
            ax.axvline(p.x, color=FAINT, linewidth=1, zorder=0)
            ax.axhline(p.y, color=FAINT, linewidth=1, zorder=0)
    for (x0, y0), (x1, y1) in plane.ties:
        ax.plot([x0, x1], [y0, y1], color=QUIET, linewidth=0.9, zorder=2.5, alpha=0.9)
        ax.plot([x1], [y1], marker="x", markersize=4.5, color=QUIET, markeredgewidth=1.2, zorder=4)
    _cloud(ax, plane)
    for kind, method, points in plane.lines:
        _path(ax, kind, look_of(kind, method, plane.methods), points, rail)
    if railed:
        ax.text(0.0, 1.01, "recall = −∞", transform=ax.transAxes, ha="left", va="bottom", fontsize=7, color=QUIET)
    ax.set_xlabel(f"recall  E$_{{p*}}$ log q, {plane.unit}", parse_math=True)
    ax.set_ylabel(f"precision  E$_{{q}}$ log {plane.under}, {plane.unit}", parse_math=True)
    return lambda: _place_labels(ax, plane, rail)


def _guides(ax: Axes, xs: tuple[float, float], ys: tuple[float, float], unit: str) -> None:
    """Draw diagonals of equal KL(q||p*): precision = -H - c. Above c = 0 no model can lie."""
    reach = -xs[0] - ys[0]
    step = _round_step(max(reach, 1e-9) / 7)
    for i in range(16):
        c = i * step
        ax.plot(xs, [-xs[0] - c, -xs[1] - c], color=FAINT, linewidth=1.0 if i else 1.6, zorder=0)
        # The label stands where the line leaves the panel, at its right or its lower edge.
        right = -xs[1] - c
        x, y = (xs[1], right) if right > ys[0] else (-ys[0] - c, ys[0])
        if xs[0] < x <= xs[1] and y <= ys[1] and (x == xs[1] or (x - xs[0]) / (xs[1] - xs[0]) > 0.08):
            words = "KL = 0" if i == 0 else f"{c:g}"
            at_right = x == xs[1]
            ax.annotate(
                words,
                (x, y),
                (3, 0) if at_right else (0, 3),
                fontsize=7,
                color=QUIET,
                ha="left" if at_right else "center",
                va="center" if at_right else "bottom",
                **FREE,
            )
    top = [min(ys[1], -x) for x in xs]
    corner = min(max(-ys[1], xs[0]), xs[1])
    edge = [top[0], min(ys[1], -corner), top[1]]
    ax.fill_between([xs[0], corner, xs[1]], edge, ys[1], color=FAINT, alpha=0.35, linewidth=0, zorder=0)


def _round_step(raw: float) -> float:
    power = 10 ** math.floor(math.log10(raw))
    return next(m * power for m in (1, 2, 2.5, 5, 10) if m * power >= raw * 0.999)


def draw_entropy_plane(ax: Axes, plane: Plane) -> Labels:
    """Draw precision against entropy with diagonals of equal KL(q||p*): along one, a model gains by cooling alone.

    Returns what writes the labels; to be called when the layout is settled.
    """
    xs, ys = _limits(_extent(plane, 0)), _limits(_extent(plane, 1))
    ax.set_xlim(*xs)
    ax.set_ylim(*ys)
    _guides(ax, xs, ys, plane.unit)
    _cloud(ax, plane)
    for kind, method, points in plane.lines:
        _path(ax, kind, look_of(kind, method, plane.methods), points, xs[0])
    ax.set_xlabel(f"entropy H(q), {plane.unit}")
    ax.set_ylabel(f"precision, {plane.unit}")
    return lambda: _place_labels(ax, plane, xs[0])


def draw_panel(ax: Axes, curves: Curves, panel: Panel) -> None:
    """Draw one metric along a scale: paths with bars, and levels of the direct student, teacher and truth."""
    for kind, (y, reach) in panel.levels.items():
        look = LOOKS[kind]
        line, alpha = look.line if kind == "teacher" else "-", 0.75 if kind != "truth" else 0.9
        ax.axhline(y, color=look.color, linewidth=1.1, linestyle=line, zorder=1, alpha=alpha)
        if reach and any(reach):
            ax.axhspan(y - reach[0], y + reach[1], color=look.color, alpha=0.1, linewidth=0, zorder=0)
    others = [(look_of("distilled", m, panel.methods), points) for m, points in panel.methods.items()]
    for look, points in [*((LOOKS[kind], points) for kind, points in panel.series.items()), *others]:
        x, y = [p[0] for p in points], [p[1] for p in points]
        yerr = [[(p[2] or (0.0, 0.0))[end] for p in points] for end in (0, 1)]
        ax.errorbar(x, y, yerr, fmt="none", ecolor=look.color, elinewidth=0.9, alpha=0.6, zorder=2)
        ax.plot(x, y, color=look.color, linestyle=look.line, zorder=4, **look.markers(look.size - 1))
    ax.set_title(panel.title)
    ax.set_xlabel(curves.scale.name)
    ax.set_ylabel(curves.unit)
    if curves.scale.ticks is None:
        ax.xaxis.set_major_formatter(lambda value, _: f"{-value:g}".replace("-", "−"))
        ax.xaxis.set_major_locator(_locator())
    else:
        ax.set_xticks([t for t, _ in curves.scale.ticks], [label for _, label in curves.scale.ticks])
        ax.tick_params(axis="x", length=3)
    ax.margins(x=0.07, y=0.12)


def _locator() -> Any:
    from matplotlib.ticker import MaxNLocator

    return MaxNLocator(nbins=5)


def single(width: float, height: float, draw: Any, *data: Any) -> Figure:
    """Return a figure of one panel, for the page, where panels wrap; with a key if it has many methods."""
    methods = [m for d in data if isinstance(d, Plane | Panel) for m in d.methods]
    rows = len(handles_of((), methods)) if len(methods) > FEW_METHODS else 0
    with drawing(width, height + 0.16 * rows) as figure:
        labels = draw(figure.subplots(), *data)
        if rows:
            _legend(figure, handles_of((), methods), 1)
        settle(figure)
        if labels is not None:
            labels()
    return figure


def handles_of(kinds: Iterable[Kind], methods: Iterable[str] = ()) -> list[Any]:
    """Return a legend's entries: of many methods one for each objective, and one for each source of rows."""
    handles: list[Any] = []
    order: list[tuple[Kind, str]] = [(k, "") for k in KINDS if k in set(kinds)]
    methods = list(dict.fromkeys(methods))
    many = len(methods) > FEW_METHODS
    order.extend(("distilled", m) for m in (objectives_of(methods) if many else methods))
    for kind, method in order:
        look = look_of(kind, method, methods)
        marks: dict[str, Any] = {"marker": look.marker, "markersize": look.size}
        marks["linestyle"] = "none" if kind in ("truth", "direct") or (many and method) else look.line
        marks["markerfacecolor"] = PAPER if look.hollow else look.color
        handles.append(Line2D([], [], color=look.color, label=look.label, **marks))
    if many:
        handles += [Line2D([], [], color=QUIET, linestyle=line, label=label) for label, line in sources_of(methods)]
    return handles


def _legend(figure: Figure, handles: list[Any], ncols: int = 3) -> None:
    figure.legend(handles=handles, loc="outside lower center", ncols=ncols)


def plane_figure(plane: Plane, entropy: Plane) -> Figure:
    """Return figure 1 for download: both planes side by side, with a legend."""
    rows = len(handles_of((), plane.methods)) if len(plane.methods) > FEW_METHODS else 0
    with drawing(9.2, 4.6 + 0.1 * rows) as figure:
        left, right = figure.subplots(1, 2)
        tie = [Line2D([], [], color=QUIET, marker="x", markersize=4.5, label="equal entropy")] if plane.ties else []
        _legend(
            figure,
            handles_of([*plane.paths, *entropy.paths], [*plane.methods, *entropy.methods]) + tie,
            2 if rows else 3,
        )
        labels = [draw_plane(left, plane), draw_entropy_plane(right, entropy)]
        settle(figure)
        for write in labels:
            write()
    return figure


def curves_figure(curves: Curves) -> Figure:
    """Return figure 2 for download: the four panels along one scale, with a legend."""
    methods = curves.panels[0].methods
    rows = len(handles_of((), methods)) if len(methods) > FEW_METHODS else 0
    with drawing(9.2, 6.4 + 0.1 * rows) as figure:
        kinds: set[Kind] = {k for p in curves.panels for k in (*p.series, *p.levels)}
        for ax, panel in zip(figure.subplots(2, 2).flat, curves.panels, strict=True):
            draw_panel(ax, curves, panel)
        _legend(figure, handles_of(kinds, [m for p in curves.panels for m in p.methods]), 2 if rows else 3)
    return figure
