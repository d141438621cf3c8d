"""The explorer's plane of precision and recall: a static field, and each frame's paths."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from hydrometer.report.data.grid_data import Place, places
from hydrometer.report.typed_results import Chain, Group, Run

__all__ = ["Field", "Scale", "plane_field"]

LEFT, RIGHT, TOP, BOTTOM = 92, 584, 16, 512
STRETCHED = 6.0  # times the median distance from the best, from which an axis is stretched
STEPS = (1.0, 2.0, 5.0)


@dataclass(frozen=True, slots=True)
class Scale:
    """From nats to picture units: linear, or, where `width` is given, asinh of the distance below `best`."""

    low: float
    high: float
    best: float
    width: float | None
    start: float
    end: float

    def _bent(self, value: float) -> float:
        return value if self.width is None else -math.asinh((self.best - value) / self.width)

    def place(self, value: float) -> int:
        """Return the whole picture unit of a value, kept within a little of the frame."""
        a, b = self._bent(self.low), self._bent(self.high)
        share = (self._bent(value) - a) / (b - a)
        return round(self.start + min(max(share, -0.02), 1.02) * (self.end - self.start))

    def ticks(self, apart: float) -> list[tuple[int, str]]:
        """Return round values at least so many units apart, the roundest first."""
        taken: list[tuple[int, float]] = []
        for value in _round_values(self.low, self.high, self.width is None):
            at = self.place(value)
            if all(abs(at - other) >= apart for other, _ in taken):
                taken.append((at, value))
        return [(at, f"{v:g}".replace("-", "−")) for at, v in sorted(taken)]


def _round_values(low: float, high: float, linear: bool) -> list[float]:
    """List round numbers between two ends: evenly spaced, or of every size, larger steps first."""
    if linear:
        raw = (high - low) / 5
        power = 10 ** math.floor(math.log10(raw))
        step = next(m * power for m in (*STEPS, 10.0) if m * power >= raw * 0.999)
        return [round(i * step, 12) for i in range(math.ceil(low / step), math.floor(high / step) + 1)]
    sizes = [m * 10.0**e for e in range(4, -3, -1) for m in (1.0, 5.0, 2.0)]
    return [v for s in sizes for v in (-s, s) if low <= v <= high] + ([0.0] if low <= 0 <= high else [])


def _scale(values: Iterable[float], best: float | None, start: float, end: float) -> Scale:
    """Fit a scale around values, stretched near the best one where a few values lie far below it."""
    found = np.array([v for v in values if math.isfinite(v)] or [-1.0, 0.0])
    low, high = float(found.min()), float(found.max())
    top = max(high, best if best is not None else high)
    below = np.sort(top - found[found < top - 1e-12])
    typical = float(np.median(below)) if below.size else 0.0
    if best is not None and typical > 0 and top - low > STRETCHED * float(np.quantile(below, 0.25)):
        width = max(float(np.quantile(below, 0.25)), 1e-6)
        low = top - width * math.sinh(math.asinh((top - low) / width) * 1.06)
        return Scale(low, top + 0.35 * width, top, width, start, end)
    room = 0.08 * (high - low) or 0.1 * max(abs(high), 1.0)
    return Scale(low - room, high + room, top, None, start, end)


@dataclass(frozen=True, slots=True)
class Field:
    """The static part of the plane: scales, ticks and the truth's lines.

    Attributes
    ----------
    x, y : scales of recall and precision.
    truth : path of the truth's two lines.
    stretched : whether recall is.
    """

    x: Scale
    y: Scale
    truth: str
    stretched: bool
    unit: str

    @property
    def x_ticks(self) -> list[tuple[int, str]]:
        """Ticks of recall."""
        return self.x.ticks(64)

    @property
    def y_ticks(self) -> list[tuple[int, str]]:
        """Ticks of precision."""
        return self.y.ticks(40)

    @property
    def frame(self) -> str:
        """Path of the two axes."""
        return f"M{LEFT} {TOP}V{BOTTOM}H{RIGHT}"

    def _spot(self, group: Group) -> tuple[int, int] | None:
        x, y = group.value("recall"), group.value("precision")
        return None if x is None or y is None else (self.x.place(x), self.y.place(y))

    def _bars(self, group: Group) -> str:
        x, y = group.value("recall"), group.value("precision")
        if x is None or y is None:
            return ""
        at, up, out = self.x.place(x), self.y.place(y), ""
        dx, dy = group.reach("recall"), group.reach("precision")
        if dx and any(dx):
            out += f"M{self.x.place(x - dx[0])} {up}H{self.x.place(x + dx[1])}"
        if dy and any(dy):
            out += f"M{at} {self.y.place(y - dy[0])}V{self.y.place(y + dy[1])}"
        return out

    def paths(self, run: Run, place: Place) -> list[str]:
        """Return a frame's paths, in this order.

        Of all settings: faint bars, a line, squares. Of the direct student: bars, a disc. Of the chosen one: bars, a
        large square.
        """
        students = [g for s in place.point.tradeoff if (g := run.groups.get(s.group))]
        spots = [s for g in students if (s := self._spot(g))]
        line = "M" + "L".join(f"{x} {y}" for x, y in spots) if len(spots) > 1 else ""
        bars = "".join(self._bars(g) for g in students)
        direct, chosen = run.groups.get(place.point.direct_group or ""), run.groups.get(place.step.group)
        return [
            bars,
            line,
            "".join(_square(s, 6) for s in spots),
            self._bars(direct) if direct else "",
            _disc(self._spot(direct), 15) if direct else "",
            self._bars(chosen) if chosen else "",
            _square(self._spot(chosen), 10) if chosen else "",
        ]


def _square(at: tuple[int, int] | None, r: int) -> str:
    return f"M{at[0] - r} {at[1] - r}h{2 * r}v{2 * r}h{-2 * r}z" if at else ""


def _disc(at: tuple[int, int] | None, r: int) -> str:
    return f"M{at[0] - r} {at[1]}a{r} {r} 0 1 0 {2 * r} 0a{r} {r} 0 1 0 {-2 * r} 0z" if at else ""


def plane_field(run: Run, chain: Chain) -> Field:
    """Fit the plane around all students of a chain, with their bars, and the truths."""
    recall: list[float] = []
    precision: list[float] = []
    points = chain.points or [chain]
    groups = [run.groups.get(p.step.group) for p in places(chain)]
    groups += [run.groups.get(p.direct_group or "") for p in points]
    for g in groups:
        for name, into in (("recall", recall), ("precision", precision)):
            value = g.value(name) if g else None
            if g is not None and value is not None:
                below, above = g.reach(name) or (0.0, 0.0)
                into += [value, *([value - below, value + above] if name == "precision" else [value])]
    entropies = {
        e for p in points if (t := run.groups.get(p.truth_group or "")) and (e := t.value("entropy")) is not None
    }
    best = -min(entropies) if entropies else None
    x = _scale([*recall, *(-e for e in entropies)], best, LEFT, RIGHT)
    y = _scale([*precision, *(-e for e in entropies)], None, BOTTOM, TOP)
    lines = "".join(
        f"M{x.place(-e)} {TOP}V{BOTTOM}M{LEFT} {y.place(-e)}H{RIGHT}"
        for e in sorted(entropies)[:1]
        if len(entropies) == 1
    )
    return Field(x, y, lines, x.width is not None, chain.unit)
