"""Data of a map's figures: sheets of tiles, one tile a point and setting. Independent of matplotlib.

A sheet holds one comparison over all points and settings. Its innermost axes are the setting and the student; what else
varies becomes columns and rows of panels.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

from hydrometer.core.errors import one_line
from hydrometer.report.typed_results import Chain, Control, Diff, Run, Step
from hydrometer.report.values import Setting, in_order
from hydrometer.report.wording import KL, is_neutral, recall_of, setting

__all__ = [
    "COMPARISONS",
    "Axis",
    "Place",
    "Sheet",
    "Tile",
    "axis_of",
    "counted",
    "map_axes",
    "placed",
    "places",
    "sheets",
]

State = Literal["decided", "open", "none"]
SETTING = "setting"
# The order in which axes are laid out, innermost first; and their symbols.
AXES = {SETTING: "β", "student": "K″", "teacher": "K′", "separation": "separation"}


@dataclass(frozen=True, slots=True)
class Axis:
    """One axis of a map: its key, its symbol, and per value the value and its label."""

    key: str
    name: str
    values: list[float | str]
    labels: list[str]


@dataclass(frozen=True, slots=True)
class Place:
    """One point at one setting: where, the student distilled there, and its comparisons."""

    point: Chain
    step: Step
    control: Control | None


@dataclass(frozen=True, slots=True)
class Tile:
    """One tile: the difference, whether its 95 % interval excludes zero, or why it is missing."""

    value: float | None
    state: State
    reason: str = ""


@dataclass(frozen=True, slots=True)
class Sheet:
    """One comparison over a map.

    Attributes
    ----------
    title : what is compared; above zero the distilled student is ahead.
    x, y, columns, rows : axes; an axis that does not vary has one value.
    panels : (rows, columns, y, x) tiles.
    unit : of the values.
    """

    title: str
    x: Axis
    y: Axis
    columns: Axis
    rows: Axis
    panels: list[list[list[list[Tile]]]]
    unit: str

    @property
    def tiles(self) -> list[Tile]:
        """All tiles, row by row."""
        return [t for row in self.panels for panel in row for line in panel for t in line]


def places(chain: Chain) -> list[Place]:
    """List every point at every setting of a map; of an ordinary chain, its settings."""
    found: list[Place] = []
    for point in chain.points or [chain]:
        controls = {setting(c.selectivity): c for c in point.control}
        found += [Place(point, s, controls.get(setting(s.selectivity))) for s in point.tradeoff]
    return found


def _settings(chain: Chain) -> list[Setting]:
    """Collect the settings of all points from the widest to the most selective.

    Points order them by entropy, each its own way; a single number orders them the same everywhere.
    """
    found: list[Setting] = []
    for place in places(chain):
        if place.step.selectivity not in found:
            found.append(place.step.selectivity)
    return in_order(found)


def axis_of(chain: Chain, key: str) -> Axis:
    """Return one axis, with the labels of its values."""
    if key == SETTING:
        settings = _settings(chain)
        short = [setting(s, short=True) for s in settings]
        if all(set(s) == {"weight_power"} for s in settings):
            return Axis(key, AXES[key], [setting(s) for s in settings], [s.removeprefix("β=") for s in short])
        return Axis(key, SETTING, [setting(s) for s in settings], short)
    values = chain.axes.get(key, [])
    return Axis(key, one_line(AXES.get(key, key), 40), [*values], [f"{v:g}" for v in values])


def map_axes(chain: Chain) -> list[Axis]:
    """Return the axes that vary, innermost first: setting, student, teacher, separation, any others."""
    keys = [SETTING, *(k for k in AXES if k in chain.axes), *(k for k in chain.axes if k not in AXES)]
    return [a for a in (axis_of(chain, k) for k in keys) if len(a.values) > 1]


def _layout(chain: Chain) -> list[Axis]:
    """Return x, y, columns, rows; the longer outer axis becomes columns."""
    axes = map_axes(chain)[:4]
    axes += [Axis("", "", [""], [""]) for _ in range(4 - len(axes))]
    x, y, *outer = axes
    columns, rows = sorted(outer, key=lambda a: -len(a.values))
    return [x, y, columns, rows]


def tile(diff: Diff | None, sign: float = 1.0) -> Tile:
    """Make a tile of a contrast."""
    if diff is None:
        return Tile(None, "none", "not compared")
    if diff.value is None:
        return Tile(None, "none", "infinite on one side")
    return Tile(sign * diff.value, "decided" if diff.sign else "open")


def _matched(place: Place, metric: str) -> Tile:
    if place.control is None:
        neutral = is_neutral(place.step.selectivity)
        return Tile(None, "none", "nothing is sharpened" if neutral else "nothing to decode")
    if place.control.matched is None:
        return Tile(None, "none", "no bracket")
    if metric == "recall":
        return tile(recall_of(place.control.matched))
    return tile(place.control.matched.get(metric), -1.0)


COMPARISONS: list[tuple[str, Callable[[Place], Tile]]] = [
    ("precision", lambda p: tile(p.step.vs_direct.get("precision"))),
    ("recall", lambda p: tile(recall_of(p.step.vs_direct))),
    ("recall at equal entropy", lambda p: _matched(p, "recall")),
    (f"−{KL} at equal entropy", lambda p: _matched(p, "kl_student_truth")),
]


def placed(chain: Chain, axes: Sequence[Axis]) -> dict[tuple[float | str | None, ...], Place]:
    """Return every point and setting by its values on these axes; the first where several share them."""
    out: dict[tuple[float | str | None, ...], Place] = {}
    for place in places(chain):
        at = {**place.point.point, SETTING: setting(place.step.selectivity)}
        out.setdefault(tuple(at.get(a.key) for a in axes), place)
    return out


def sheets(run: Run, chain: Chain) -> list[Sheet]:
    """Compute the four sheets of a map: precision and recall against the direct student, and both at equal entropy.

    Returns
    -------
    Sheets in nats, distilled less direct; the last one with its sign turned, so that above zero distilling is ahead in
    all of them. Empty where the chain is no map. A value of an axis beyond the fourth is the first one's alone.
    """
    if not chain.points:
        return []
    layout = _layout(chain)
    inner = [a for a in layout if a.key]
    extra = map_axes(chain)[4:]
    first = tuple(a.values[0] for a in extra)
    at = placed(chain, [*inner, *extra])
    x, y, columns, rows = layout
    found: list[Sheet] = []
    for title, compare in COMPARISONS:

        def one(values: dict[str, float | str], compare: Callable[[Place], Tile] = compare) -> Tile:
            place = at.get((*(values[a.key] for a in inner), *first))
            return Tile(None, "none", "no such cell") if place is None else compare(place)

        panels = [
            [
                [[one({x.key: i, y.key: j, columns.key: c, rows.key: r}) for i in x.values] for j in y.values]
                for c in columns.values
            ]
            for r in rows.values
        ]
        sheet = Sheet(title, x, y, columns, rows, panels, chain.unit)
        if any(t.value is not None for t in sheet.tiles):
            found.append(sheet)
    return found


def spread(found: list[Sheet]) -> float:
    """Return the width of an asinh scale for these sheets: the median size of their decided values."""
    sizes = sorted(abs(t.value) for s in found for t in s.tiles if t.value and t.state == "decided")
    sizes = sizes or sorted(abs(t.value) for s in found for t in s.tiles if t.value)
    return max(sizes[len(sizes) // 2], 1e-6) if sizes else 1.0


def largest(found: list[Sheet]) -> float:
    """Return the largest size of any value of these sheets, 0 where there is none."""
    return max((abs(t.value) for s in found for t in s.tiles if t.value is not None), default=0.0)


def counted(tiles: list[Tile]) -> dict[str, int]:
    """Count tiles: ``up``, ``down`` (decided), ``open`` and ``none``."""
    out = {"up": 0, "down": 0, "open": 0, "none": 0}
    for t in tiles:
        if t.state == "decided" and t.value is not None and not math.isnan(t.value):
            out["up" if t.value > 0 else "down"] += 1
        else:
            out["open" if t.state == "open" else "none"] += 1
    return out
