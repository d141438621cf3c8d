"""Data of the explorer: one frame for every point and setting, as SVG paths.

All geometry is computed here. A frame is a list of path strings in a fixed order; the page's script only looks up a
frame and sets attributes.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise, product
from typing import Any, cast

import numpy as np
from contourpy import FillType, contour_generator
from numpy.typing import NDArray

from hydrometer.core.array_types import Floats
from hydrometer.core.errors import one_line
from hydrometer.report.data.capacity_gap import teacher_at
from hydrometer.report.data.grid_data import Axis, axis_of, map_axes, placed, places
from hydrometer.report.data.plotdata import kinds_of
from hydrometer.report.figures.contours import MASSES, Density, first_density, mass_levels
from hydrometer.report.figures.plane import Field, plane_field
from hydrometer.report.typed_results import Chain, Group, Run
from hydrometer.report.wording import figure, per, setting, where

__all__ = ["SIDE", "Explorer", "Slider", "explorer", "shape"]

SIDE = 600  # of a picture, in its own units; coordinates are whole numbers of them
MAX_FRAMES = 400
PATHS = 2 * 5 + 7  # of a frame: two pictures and the plane


@dataclass(frozen=True, slots=True)
class Slider:
    """One slider: its label, and per position the text shown and the text for screen readers."""

    label: str
    shown: list[str]
    said: list[str]


@dataclass(frozen=True, slots=True)
class Explorer:
    """Frames over sliders, the last slider fastest.

    Attributes
    ----------
    sliders : one or more.
    frames : per frame its paths: five of the teacher, five of the student (three regions, means, the truth's
        outline), then those of the plane.
    words : per frame the teacher's heading, the student's, and a reading.
    field : the static part of the plane.
    """

    sliders: list[Slider]
    frames: list[list[str]]
    words: list[list[str]]
    field: Field

    def data(self) -> str:
        """Return the frames as JSON that is safe inside a script element; equal strings are stored once."""
        strings: dict[str, int] = {}

        def index(value: str) -> int:
            return strings.setdefault(value, len(strings))

        body: dict[str, Any] = {
            "sizes": [len(s.shown) for s in self.sliders],
            "shown": [s.shown for s in self.sliders],
            "said": [s.said for s in self.sliders],
            "frames": [[index(p) for p in f] for f in self.frames],
            "words": [[index(w) for w in f] for f in self.words],
        }
        made = json.dumps({**body, "strings": list(strings)}, separators=(",", ":"), ensure_ascii=True)
        # ASCII alone leaves no line separators; without these three no markup can be closed or opened.
        return made.replace("&", "\\u0026").replace("<", "\\u003c").replace(">", "\\u003e")


@dataclass(frozen=True, slots=True)
class Box:
    """From data to picture units, the same scale both ways, y upwards."""

    x: float
    y: float
    scale: float

    def place(self, points: Floats) -> Floats:
        """Map points (N, 2) to whole picture units."""
        out = (points - np.array([self.x, self.y])) * self.scale
        out[:, 1] = SIDE - out[:, 1]
        return np.rint(out)


def _box(found: Sequence[Density]) -> Box:
    """Fit all grids into one picture, centred."""
    low = np.array([min(float(d.x[0]) for d in found), min(float(d.y[0]) for d in found)])
    high = np.array([max(float(d.x[-1]) for d in found), max(float(d.y[-1]) for d in found)])
    reach = max(float((high - low).max()), 1e-9)
    corner = (low + high - reach) / 2
    return Box(float(corner[0]), float(corner[1]), SIDE / reach)


def _ring(points: Floats) -> str:
    """Write a closed ring of whole numbers as a relative path, without zero steps."""
    steps = np.diff(points, axis=0)
    steps = steps[np.any(steps != 0, axis=1)].astype(int)
    if len(steps) < 3:
        return ""
    start = points[0].astype(int)
    walk = "".join(f"{dx}{dy:+d}" if i == 0 else f" {dx}{dy:+d}" for i, (dx, dy) in enumerate(steps[:-1].tolist()))
    return f"M{start[0]} {start[1]}l{walk}z"


def shape(density: Density, box: Box, level: float) -> str:
    """Write the region where a log-density lies above a level as a path, to be filled even-odd."""
    z = np.where(np.isfinite(density.log_density), density.log_density, level - 50)
    maker = contour_generator(density.x, density.y, z, fill_type=FillType.OuterOffset)
    made = maker.filled(level, max(float(z.max()), level) + 1.0)
    polygons, offsets = cast("tuple[list[Floats], list[NDArray[np.uint32]]]", made)
    out: list[str] = []
    for points, ends in zip(polygons, offsets, strict=True):
        placed, cuts = box.place(points), ends.tolist()
        out += [_ring(placed[a:b]) for a, b in pairwise(cuts)]
    return "".join(out)


def _means(density: Density, box: Box) -> str:
    """Write crosses at the components' means, the larger the heavier."""
    share = density.weights / max(float(density.weights.sum()), 1e-300)
    out: list[str] = []
    for (x, y), w in zip(box.place(density.means.copy()).astype(int).tolist(), share.tolist(), strict=True):
        size = round(4 + 14 * w**0.5)
        if 0 <= x <= SIDE and 0 <= y <= SIDE:
            out.append(f"M{x - size} {y}h{2 * size}M{x} {y - size}v{2 * size}")
    return "".join(out)


def _picture(density: Density | None, truth: Density | None, box: Box) -> list[str]:
    """Return the five paths of a picture: regions of 95, 80 and 50 %, means, the truth's 80 %."""
    outline = "".join(shape(truth, box, v) for v in mass_levels(truth.log_density, (0.8,))) if truth else ""
    if density is None:
        return ["", "", "", "", outline]
    levels = mass_levels(density.log_density)
    levels = [levels[0]] * (len(MASSES) - len(levels)) + levels if levels else []
    regions = [shape(density, box, v) for v in levels] or ["", "", ""]
    return [*regions, _means(density, box), outline]


def _slider(chain: Chain, axis: Axis) -> Slider:
    names = {
        "setting": "Teacher’s weight power β",
        "student": "Student’s components K″",
        "teacher": "Teacher’s components K′",
        "separation": "Separation of the modes",
    }
    spoken = {"student": "components of the student", "teacher": "components of the teacher"}
    if axis.key == "setting":
        only = all(set(p.step.selectivity) == {"weight_power"} for p in places(chain))
        said = [str(v).replace("β =", "weight power").replace("∞", "infinity") for v in axis.values]
        return Slider(names["setting"] if only else "Teacher’s setting", axis.labels, said)
    label = one_line(names.get(axis.key, axis.key), 60)
    return Slider(label, axis.labels, [f"{v} {spoken.get(axis.key, label)}" for v in axis.labels])


def _reading(chain: Chain, group: Group | None, teacher: Group | None) -> str:
    if group is None:
        return "no such student"
    words = [f"precision {figure(group.metrics.get('precision'))}", f"recall {figure(group.metrics.get('recall'))}"]
    text = f"Student: {', '.join(words)} {chain.unit} per {per(chain)}"
    gap = group.value("capacity_gap")
    if gap is not None:
        text += f"; capacity gap {gap:+.1f} modes".replace("-", "−")
    components = teacher.value("effective_components") if teacher else None
    if components is not None:
        text += f". Teacher: {components:.1f} effective components"
    return text + "."


def explorer(run: Run, chain: Chain) -> Explorer | None:
    """Compute the explorer of a chain of mixtures in the plane.

    Parameters
    ----------
    run, chain : a map, whose varying axes become sliders beside the setting; or an ordinary chain.

    Returns
    -------
    None where there is but one frame, too many (`MAX_FRAMES`), or no exhibit.
    """
    axes = map_axes(chain) if chain.points else [a for a in (axis_of(chain, "setting"),) if len(a.values) > 1]
    every = placed(chain, axes)
    grid = list(product(*(a.values for a in axes)))
    if not axes or not 1 < len(grid) <= MAX_FRAMES:
        return None
    kinds = {id(p): kinds_of(run, p) for p in (chain.points or [chain])}
    truths = {i: first_density(run, next(iter(k["truth"]), None)) for i, k in kinds.items()}
    found = [t for t in truths.values() if t is not None]
    if not found:
        return None
    box, field = _box(found), plane_field(run, chain)
    frames: list[list[str]] = []
    words: list[list[str]] = []
    kept: dict[str, list[str]] = {}
    for values in grid:
        place = every.get(values)
        if place is None:  # it failed
            frames.append([""] * PATHS)
            words.append(["no teacher", "no student", "Nothing was judged here."])
            continue
        truth, group = truths[id(place.point)], run.groups.get(place.step.group)
        teacher = teacher_at(run, place.point, place.step.selectivity)
        pictures: list[str] = []
        for shown in (teacher, group):
            key = shown.id if shown else ""
            if key not in kept:
                kept[key] = _picture(first_density(run, shown), truth, box)
            pictures += kept[key]
        frames.append([*pictures, *field.paths(run, place)])
        short = setting(place.step.selectivity, short=True)
        names = where(place.point.point)
        student = one_line(f"student at {short}" + (f", {names}" if names else ""), 120)
        words.append([f"teacher at {short}", student, _reading(place.point, group, teacher)])
    if not any(f[2] or f[7] for f in frames):
        return None
    return Explorer([_slider(chain, a) for a in axes], frames, words, field)
