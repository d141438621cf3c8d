"""The frontier figure: what share of each student is of the truth and the other way round, and how typical it is.

Left the PRD frontier (docs, Frontiers) of the first seed's students, of whole points, or of the first tokens of
sequences, whose frontiers collapse at full length; for sequences then the overlap 1 - TV by prefix length. Right the
share of each model among the truth's likeliest half and nine tenths.
"""

# matplotlib leaves the type of its keyword arguments open.
# pyright: reportUnknownMemberType=false

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from hydrometer.core.array_types import Floats
from hydrometer.report.data.plotdata import Kind, Scale, by_method, kinds_of, knob, setting_scale
from hydrometer.report.figures.panels import single
from hydrometer.report.figures.style import FAINT, LOOKS, QUIET, Look, drawing, look_of
from hydrometer.report.read_results import exhibits
from hydrometer.report.typed_results import Chain, Group, Run
from hydrometer.report.values import Json, items, mapping, number
from hydrometer.report.wording import distilled_at, is_neutral

__all__ = ["Frontier", "caption", "frontier_data", "frontier_figure", "frontier_panels"]

PREFIX = 4  # tokens, of which the PRD frontier of sequences is drawn
MAX_LINES = 7
_KINDS = ("density-2d", "texts", "curves")


@dataclass(frozen=True, slots=True)
class Line:
    """One model's frontier: beta and alpha with half a 95 % band each, (L,)."""

    label: str
    kind: Kind
    beta: Floats
    alpha: Floats
    beta_half: Floats
    alpha_half: Floats


@dataclass(frozen=True, slots=True)
class Track:
    """One model's figure along an axis: points (x, y, reach of the 95 % interval below, above).

    `look` stands where a method of distilling has another than its kind.
    """

    label: str
    kind: Kind
    points: list[tuple[float, float, float, float]]
    look: Look | None = None


@dataclass(frozen=True, slots=True)
class Frontier:
    """What the figure draws.

    Attributes
    ----------
    lines : PRD frontiers. tokens : of how many first tokens, None for whole rows.
    overlap : 1 - TV by prefix length, sequences only.
    typicality : by level in per cent, along `scale`.
    """

    lines: list[Line]
    tokens: int | None
    overlap: list[Track]
    typicality: dict[int, list[Track]]
    scale: Scale


def _curves(run: Run, group: Group) -> Json:
    """Return the curves that a group's first seed left, or nothing."""
    curves = (mapping(e.get("curves")) for e in exhibits(run, group, *_KINDS))
    return mapping(next((c for c in curves if c), None))


def _column(curve: Json, name: str) -> Floats:
    values = [number(v) for v in items(curve.get(name))]
    return np.array([math.nan if v is None else v for v in values], np.float64)


def _line(label: str, kind: Kind, curve: Json) -> Line | None:
    """Read one frontier; None where its columns do not fit."""
    names = ("beta", "alpha", "beta_se", "alpha_se")
    beta, alpha, beta_se, alpha_se = (_column(curve, name) for name in names)
    if not 2 <= beta.size == alpha.size == beta_se.size == alpha_se.size or not np.isfinite(beta + alpha).all():
        return None
    halves = (1.96 * np.where(np.isfinite(se), np.maximum(se, 0.0), 0.0) for se in (beta_se, alpha_se))
    return Line(label, kind, beta, alpha, *halves)


def _prefix(found: list[Json]) -> int | None:
    """Return the longest prefix of at most `PREFIX` tokens that the curves have; None where they have none."""
    lengths = [int(m) for curves in found for m in mapping(curves.get("first")) if m.isdecimal()]
    return max((m for m in lengths if m <= PREFIX), default=None)


def _students(run: Run, chain: Chain) -> list[tuple[Kind, str, Group]]:
    kinds = kinds_of(run, chain)
    direct = [g for g in kinds["direct"] if not g.decoding or is_neutral(g.decoding)]
    out: list[tuple[Kind, str, Group]] = [("direct", "direct", g) for g in direct[:1]]
    return out + [("distilled", distilled_at(g, short=True), g) for g in kinds["distilled"][: MAX_LINES - 1]]


def _overlap(label: str, kind: Kind, group: Group) -> Track | None:
    stem = "total_variation_first_"
    points: list[tuple[float, float, float, float]] = []
    for name in group.metrics:
        value, length = group.value(name), name.removeprefix(stem)
        if name.startswith(stem) and length.isdecimal() and value is not None:
            points.append((float(int(length)), 1.0 - value, *(group.reach(name, -1.0) or (0.0, 0.0))))
    return Track(label, kind, sorted(points)) if points else None


def _typicality(run: Run, chain: Chain, level: int) -> tuple[Scale, list[Track]]:
    scale, place = setting_scale(run, chain)
    kinds = kinds_of(run, chain)
    tracks: list[Track] = []
    name = f"typicality_{level}"
    starts = {"decoded": chain.direct_group, "decoded_neutral": chain.neutral_group}
    first, *others = by_method(run, chain).items()
    kinds["distilled"] = first[1]
    methods = [m for m, _ in others]
    paths: list[tuple[Kind, str, list[Group]]] = [
        (k, "", kinds[k]) for k in ("direct", "teacher", "decoded", "distilled")
    ]
    paths.extend(("distilled", method, groups) for method, groups in others)
    for kind, method, groups in paths:
        points = [
            (x, y, *(g.reach(name) or (0.0, 0.0)))
            for g in groups
            if (x := place(None if g.id == starts.get(kind) else knob(g, kind))) is not None
            and (y := g.value(name)) is not None
        ]
        if points:
            look = look_of(kind, method, methods)
            tracks.append(Track(look.label, kind, sorted(points), look))
    return scale, tracks


def frontier_data(run: Run, chain: Chain) -> Frontier | None:
    """Collect what the figure draws; None where neither curves nor typicality were left."""
    students = _students(run, chain)
    found = [_curves(run, g) for _, _, g in students]
    tokens = _prefix(found)
    lines: list[Line] = []
    for (kind, label, _), curves in zip(students, found, strict=True):
        whole = curves.get("whole") if tokens is None else mapping(curves.get("first")).get(str(tokens))
        line = _line(label, kind, mapping(mapping(whole).get("prd")))
        if line is not None:
            lines.append(line)
    overlap = [t for kind, label, g in students if (t := _overlap(label, kind, g)) is not None]
    by_level = {level: _typicality(run, chain, level) for level in (50, 90)}
    typicality = {level: tracks for level, (_, tracks) in by_level.items() if tracks}
    if not lines and not typicality:
        return None
    return Frontier(lines, tokens, overlap, typicality, by_level[50][0])


def _alpha(i: int, n: int) -> float:
    """Fade from the widest to the most selective student."""
    return 0.35 + 0.65 * (i + 1) / max(n, 1)


def _shades(kinds: list[Kind]) -> list[float]:
    n = sum(k == "distilled" for k in kinds)
    seen = iter(range(n))
    return [_alpha(next(seen), n) if k == "distilled" else 1.0 for k in kinds]


def draw_frontiers(ax: Axes, data: Frontier) -> None:
    """Draw alpha against beta with bands, and the corner of the truth."""
    ax.plot([0, 1, 1], [1, 1, 0], color=FAINT, linewidth=1.2, zorder=0)
    for line, shade in zip(data.lines, _shades([x.kind for x in data.lines]), strict=True):
        color = LOOKS[line.kind].color
        low = np.column_stack([line.beta - line.beta_half, line.alpha - line.alpha_half])
        high = np.column_stack([line.beta + line.beta_half, line.alpha + line.alpha_half])
        ring = np.clip(np.concatenate([low, high[::-1]]), 0.0, 1.02)
        ax.fill(ring[:, 0], ring[:, 1], color=color, alpha=0.18 * shade, linewidth=0, zorder=2)
        dashes = _dashes(line.kind, shade)
        ax.plot(
            line.beta, line.alpha, color=color, alpha=shade, linewidth=1.5, zorder=3, label=line.label, linestyle=dashes
        )
    ax.legend(loc="upper right", fontsize=7.5, handlelength=2.4, borderaxespad=1.0)
    ax.set_xlim(0, 1.03)
    ax.set_ylim(0, 1.03)
    ax.set_aspect("equal")
    ax.set_xlabel("β(λ), share of the truth the student has room for")
    ax.set_ylabel("α(λ), share of the student the truth has room for")
    ax.set_title("PRD frontier" + ("" if data.tokens is None else f", first {_tokens(data.tokens)}"))


def _tokens(n: int) -> str:
    return "token" if n == 1 else f"{n} tokens"


def draw_overlap(ax: Axes, data: Frontier) -> None:
    """Draw 1 - TV by prefix length."""
    for track, shade in zip(data.overlap, _shades([t.kind for t in data.overlap]), strict=True):
        _track(ax, track, shade, label=track.label, line=_dashes(track.kind, shade))
    ax.legend(loc="lower left", fontsize=7.5, handlelength=2.4)
    lengths = sorted({p[0] for t in data.overlap for p in t.points})
    ax.set_xscale("log", base=2)
    ax.set_xticks(lengths, [f"{x:g}" for x in lengths])
    ax.minorticks_off()
    ax.set_ylim(0, 1.03)
    ax.margins(x=0.12)
    ax.set_xlabel("first tokens")
    ax.set_ylabel("1 − TV")
    ax.set_title("Overlap with the truth, by prefix length")


def _dashes(kind: Kind, shade: float) -> Any:
    """Break the lines of the less selective students the more, so that shade is not all that tells them apart."""
    return "-" if kind != "distilled" or shade >= 1.0 else (0, (1 + 8 * (shade - 0.35), 1.5))


def _track(ax: Axes, track: Track, shade: float = 1.0, *, label: str | None = None, line: Any = None) -> None:
    look = track.look or LOOKS[track.kind]
    x, y, below, above = (np.array(column) for column in zip(*track.points, strict=True))
    ax.errorbar(x, y, yerr=[below, above], fmt="none", ecolor=look.color, elinewidth=0.9, alpha=0.6 * shade, zorder=2)
    dashes = look.line if line is None else line
    markers = look.markers(look.size - 1)
    ax.plot(x, y, color=look.color, linestyle=dashes, label=label, alpha=shade, zorder=4, **markers)


def draw_typicality(ax: Axes, data: Frontier, level: int) -> None:
    """Draw the share among the truth's likeliest `level` per cent by setting, and the truth's own share."""
    ax.axhline(level / 100, color=QUIET, linewidth=1, linestyle=(0, (2, 2)), zorder=1)
    for track in data.typicality[level]:
        _track(ax, track)
    ax.set_ylim(0, 1.03)
    ax.margins(x=0.08)
    if data.scale.ticks is not None:
        size = 8 if len(data.scale.ticks) < 7 else 6
        ax.set_xticks([t for t, _ in data.scale.ticks], [label for _, label in data.scale.ticks], fontsize=size)
    ax.set_xlabel(data.scale.name)
    ax.set_ylabel("share of the model's rows")
    ax.set_title(f"Among the truth's likeliest {level} %; dashes: the truth itself")


def frontier_panels(data: Frontier) -> list[tuple[str, Figure]]:
    """Return the figure's panels one by one with a description each, for the page, where panels wrap."""
    return [(words, single(width, 3.6, draw)) for words, width, draw in _panels(data)]


def frontier_figure(data: Frontier) -> Figure:
    """Return the figure for download: all panels side by side."""
    panels = _panels(data)
    with drawing(4.3 * len(panels), 4.0) as figure:
        for ax, (_, _, draw) in zip(figure.subplots(1, len(panels), squeeze=False)[0], panels, strict=True):
            draw(ax)
    return figure


def _panels(data: Frontier) -> list[tuple[str, float, Callable[[Axes], None]]]:
    """What each panel shows in words, its width in inches, and what draws it."""
    out: list[tuple[str, float, Callable[[Axes], None]]] = []
    if data.lines:
        words = "Alpha against beta: " + ", ".join(x.label for x in data.lines)
        out.append((words, 3.9, lambda ax: draw_frontiers(ax, data)))
    if data.overlap:
        out.append(("One less total variation, by prefix length", 4.4, lambda ax: draw_overlap(ax, data)))
    for level in data.typicality:
        words = f"Share among the truth's likeliest {level} per cent, by setting"
        out.append((words, 4.4, lambda ax, at=level: draw_typicality(ax, data, at)))
    return out


CAPTION = (
    "{what} α(λ) = ∫ min(q, λp*) is the share of the student for which the truth, counted λ times, has room; β = α/λ "
    "the share of the truth for which the student has. The truth is the corner; where α = β, both are 1 − TV. First "
    "seed, 95 % bands.{overlap}{typical}"
)


def caption(data: Frontier) -> str:
    """Say what the panels show."""
    what = "The precision-recall frontier from densities"
    what += "." if data.tokens is None else f", of the first {_tokens(data.tokens)}; at full length it collapses."
    overlap = " Then the overlap 1 − TV as prefixes grow, means over seeds." if data.overlap else ""
    typical = (
        " Last, how many of a model’s rows lie among the truth’s likeliest: above the dashes it is too typical, below "
        "it says what the truth would hardly say."
        if data.typicality
        else ""
    )
    return CAPTION.format(what=what, overlap=overlap, typical=typical)
