"""A chain's picture: answers in the truth's embedding space, brought to the plane, each model over the truth's points.

Columns as in the contours of a mixture: truth over teacher, then per setting the distilled student over the direct one
decoded to it.
"""

# matplotlib leaves the type of its keyword arguments open.
# pyright: reportUnknownMemberType=false

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from typing import Any

import numpy as np
from markupsafe import Markup, escape
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from hydrometer.core.array_types import Floats
from hydrometer.report.data.plotdata import Kind, kinds_of
from hydrometer.report.data.samples import visible
from hydrometer.report.figures.grid_views import FigureView, Panel, Save
from hydrometer.report.figures.style import LOOKS, QUIET, drawing
from hydrometer.report.read_results import read_exhibit
from hydrometer.report.typed_results import Chain, Group, Run
from hydrometer.report.values import Setting, items, mapping, number, read_interval, text
from hydrometer.report.wording import distilled_at, is_neutral, setting, with_error

__all__ = ["Cloud", "Picture", "picture_data", "picture_figure", "picture_view"]

MAX_POINTS = 512
MAX_COLUMNS = 9
MAX_WORDS = 80
_STYLED_POINTS = re.compile(r"<g( clip-path=[^>]*)>((?:\s*<use [^>]*/>)+\s*)</g>")
POINTS = "points"  # the id of a panel's own points, to which their words are given


@dataclass(frozen=True, slots=True)
class Cloud:
    """One model's rows: its heading and kind, xy (N, 2), their first words, and its figures as (value, s.e.)."""

    title: str
    kind: Kind
    xy: Floats
    words: list[str]
    spread: tuple[float, float | None] | None
    mixing: tuple[float, float | None] | None


Column = tuple[Cloud | None, Cloud | None]


@dataclass(frozen=True, slots=True)
class Picture:
    """A chain's picture.

    Attributes
    ----------
    columns : of two clouds one above the other, or None where there is no such model; the first begins with the truth.
    method : "pca" or "umap".
    limits : (2, 2), of x and of y, the same for all panels.
    """

    columns: list[Column]
    method: str
    explained: tuple[float, float] | None
    rows: float
    dimensions: float
    within_prompts: bool
    limits: Floats

    @property
    def truth(self) -> Cloud:
        """The truth's rows."""
        truth = self.columns[0][0]
        assert truth is not None  # else there is no picture
        return truth

    @property
    def clouds(self) -> list[Cloud]:
        """All clouds, column by column."""
        return [c for column in self.columns for c in column if c is not None]


def _figure(value: object) -> tuple[float, float | None] | None:
    found = mapping(value)
    v, se = number(found.get("value")), number(found.get("se"))
    return None if v is None or not math.isfinite(v) else (v, se if se is not None and math.isfinite(se) else None)


def _cloud(value: object, title: str, kind: Kind) -> Cloud | None:
    """Read one model of the exhibit; None where it holds no points that can be drawn."""
    m = mapping(value)
    x, y, words = (items(m.get(k))[:MAX_POINTS] for k in ("x", "y", "words"))
    xy = np.array([[number(a), number(b)] for a, b in zip(x, y, strict=False)], dtype=np.float64).reshape(-1, 2)
    words = [text(w) for w in words] + [""] * (len(xy) - len(words))
    known = np.flatnonzero(np.isfinite(xy).all(axis=1) & (np.abs(xy) < 1e30).all(axis=1))
    if not known.size:
        return None
    return Cloud(
        title, kind, xy[known], [words[i] for i in known], _figure(m.get("spread_ratio")), _figure(m.get("mixing"))
    )


def _columns(run: Run, chain: Chain, by_group: dict[str, object]) -> list[Column]:
    kinds = kinds_of(run, chain)

    def cloud(group: Group | None, kind: Kind, title: str) -> Cloud | None:
        return _cloud(by_group[group.id], title, kind) if group is not None and group.id in by_group else None

    def first(kind: Kind) -> Group | None:
        return next((g for g in kinds[kind] if g.id in by_group), None)

    direct = cloud(first("direct"), "direct", "direct student")
    found = [(cloud(first("truth"), "truth", "truth p*"), cloud(first("teacher"), "teacher", "teacher"))]
    decoded: list[tuple[Setting | None, Cloud | None]] = [
        (g.decoding, cloud(g, "decoded", f"direct, decoded at {setting(g.decoding, short=True)}"))
        for g in kinds["decoded"]
        if g.decoding and not is_neutral(g.decoding)
    ]
    settings = [g.selectivity for g in kinds["distilled"]]
    if direct is not None and not any(is_neutral(s) for s in settings):
        found.append((None, direct))
    for group in kinds["distilled"][:MAX_COLUMNS]:
        title = f"distilled at {distilled_at(group, short=True)}"
        below = direct if is_neutral(group.selectivity) else None
        below = below or next((c for s, c in decoded if s == group.selectivity), None)
        above = cloud(group, "distilled", title)
        if above is not None or below is not None:
            found.append((above, below))
    return found


def picture_data(run: Run, chain: Chain) -> Picture | str | None:
    """Read a chain's picture.

    Returns
    -------
    The picture; why there is none, where it was asked for and failed; None where there is nothing to show.
    """
    exhibit = read_exhibit(run, f"{chain.name}.picture", "picture")
    if exhibit is None:
        return None
    if exhibit.get("status") == "failed":
        return text(exhibit.get("reason")) or "no reason recorded"
    group_of = {c.id: c.group for c in run.cells if c.ok}
    models = [mapping(m) for m in items(exhibit.get("models"))]
    by_group: dict[str, object] = {group_of[c]: m for m in models if (c := text(m.get("cell"))) in group_of}
    columns = _columns(run, chain, by_group)
    if columns[0][0] is None or len(columns) == 1:
        return None
    every = np.concatenate([c.xy for column in columns for c in column if c is not None])
    low, high = every.min(axis=0), every.max(axis=0)
    pad = np.maximum(high - low, 1e-9 + 1e-6 * np.abs(high)) * 0.04
    rows, dimensions = (number(exhibit.get(k)) or 0.0 for k in ("rows", "dimensions"))
    return Picture(
        columns,
        text(exhibit.get("method")),
        read_interval(exhibit.get("explained")),
        rows,
        dimensions,
        exhibit.get("within_prompts") is True,
        np.stack([low - pad, high + pad], axis=1),
    )


def _numbers(cloud: Cloud) -> str:
    parts: list[str] = []
    for name, pair in (("spread", cloud.spread), ("mixing", cloud.mixing)):
        if pair is not None:
            value, se = pair
            parts.append(f"{name} {with_error(value, se)}")
    return "\n".join(parts)


def draw_cloud(ax: Axes, cloud: Cloud | None, picture: Picture, *, name: str = POINTS) -> None:
    """Draw one model's points over the truth's, its figures below; nothing where there is no such model.

    Parameters
    ----------
    name : id of the model's own points in an SVG.
    """
    ax.set_box_aspect(1)
    if cloud is None:
        ax.set_axis_off()
        return
    look = LOOKS[cloud.kind]
    ax.set_title(cloud.title, fontsize=9, color=look.color, loc="center")
    ax.set_xlabel(_numbers(cloud) or "grey in the other panels\n", fontsize=8)
    ax.set_xticks([])
    ax.set_yticks([])
    for spine in ax.spines.values():
        spine.set_visible(True)
        spine.set_alpha(0.5)
    ax.set_xlim(*picture.limits[0])
    ax.set_ylim(*picture.limits[1])
    own = dict[str, Any](linestyle="none", zorder=3, gid=name)
    dots = dict[str, Any](marker="o", markersize=2.6, markeredgewidth=0)
    if cloud.kind == "truth":
        ax.plot(*cloud.xy.T, color=look.color, alpha=0.6, **dots, **own)
        return
    ax.plot(*picture.truth.xy.T, linestyle="none", color=QUIET, alpha=0.38, zorder=1, **dots)
    ax.plot(*cloud.xy.T, alpha=0.85, **look.markers(3.1, 0.3), **own)


def column_figure(column: Column, picture: Picture) -> Figure:
    """Return one column, for the page, where columns wrap."""
    with drawing(2.2, 5.2) as figure:
        for i, (ax, cloud) in enumerate(zip(figure.subplots(2, 1), column, strict=True)):
            draw_cloud(ax, cloud, picture, name=f"{POINTS}{i}")
    return figure


def picture_figure(picture: Picture) -> Figure:
    """Return the figure for download: all columns side by side."""
    n = len(picture.columns)
    with drawing(2.15 * n, 5.3) as figure:
        axes = figure.subplots(2, n, squeeze=False)
        for i, column in enumerate(picture.columns):
            for ax, cloud in zip(axes[:, i], column, strict=True):
                draw_cloud(ax, cloud, picture)
    return figure


def with_words(svg: str, column: Column) -> Markup:
    """Give every point of a column its first words, which a browser shows where the pointer rests; no script is needed.

    Parameters
    ----------
    svg : a drawn column; the points of its panels are uses of one marker in the groups that `draw_cloud` named.
    column : whose words they are; hostile until shown otherwise.
    """
    svg = _STYLED_POINTS.sub(_slim, str(svg))  # no Markup, which would escape what is joined to it
    for i, cloud in enumerate(column):
        if cloud is None:
            continue
        start = re.search(rf'<g id="[^"]*-{POINTS}{i}">', svg)
        if start is None:
            raise ValueError("the panel has no points")
        titles = [f"<title>{escape(visible(w, MAX_WORDS).striptags())}</title></use>" for w in cloud.words]
        parts = re.split(r"\s*/>", svg[start.end() :])
        svg = svg[: start.end()] + _titled(parts, titles)
    return Markup(svg)  # ours, and what is not is escaped above


def _slim(found: re.Match[str]) -> str:
    """Write the style that a marker's uses share once, on their group: it is most of a picture's bytes."""
    styles = set(re.findall(r' style="[^"]*"', found[2]))
    if len(styles) != 1:
        return found[0]
    style = styles.pop()
    return f"<g{found[1]}{style}>{found[2].replace(style, '')}</g>"


def _titled(parts: list[str], titles: list[str]) -> str:
    """Close each use with its title, and everything else as it was."""
    left = iter(titles)
    out: list[str] = []
    for part in parts[:-1]:
        is_point = part.rpartition("<")[2].startswith("use ")
        out += [part, (">" + title) if is_point and (title := next(left, "")) else "/>"]
    return "".join(out) + parts[-1]


def _caption(picture: Picture) -> Markup:
    how = {
        "umap": "UMAP, fitted once to the rows of all these models",
        "pca": "the first two principal components of the rows of all these models",
    }.get(picture.method, visible(picture.method, 40))
    if picture.explained is not None:
        a, b = (f"{100 * v:.0f} %" for v in picture.explained)
        how += f", which hold {a} and {b} of the variance"
    warning = {
        "umap": "Distances in this plane are not densities, and gaps are not distances: UMAP keeps who is next to "
        "whom, not how far or how many.",
        "pca": "Distances in this plane are not densities: what differs in other directions is not seen, and points "
        "that lie together here may lie far apart.",
    }.get(picture.method, "Distances in this plane are not densities.")
    prompt = " to the same prompt" if picture.within_prompts else ""
    return Markup(
        "{:g} answers of each model, first seed, in the truth’s embedding space: the mean of the truth’s last hidden "
        "state over an answer’s tokens ({:g} numbers), brought to the plane by {}. Grey: the truth’s answers. "
        "Distilled students above; below, the direct student decoded at the same setting. A point tells its first "
        "words under the pointer. <b>{}</b> What the picture suggests is claimed only by the figures under a panel, "
        "which are of the whole space: <b>spread</b>, the mean squared distance of answers{} from their mean, over "
        "that of the truth’s (1: as varied); <b>mixing</b>, the share of the model’s answers whose nearest neighbour, "
        "among equally many of both, is the truth’s (0.5: as if the two were one law; towards 0: they cluster among "
        "themselves, or elsewhere). ± is one standard error over answers, of these models of one seed."
    ).format(picture.rows, picture.dimensions, how, warning, prompt)


def picture_view(run: Run, chain: Chain, stem: str, save: Save, panel: Panel) -> list[FigureView]:
    """Draw a chain's picture; where it failed, say why; nothing where none was asked for."""
    found = picture_data(run, chain)
    if found is None:
        return []
    title = "Where the answers lie"
    if isinstance(found, str):
        return [FigureView(title, Markup("There is no picture: {}").format(visible(found, 400)), [], "many", "")]
    name = f"{stem}-picture"
    save(name, picture_figure(found))
    shown = [with_words(panel(column_figure(c, found), _words(c)), c) for c in found.columns]
    return [FigureView(title, _caption(found), shown, "pictures", name)]


def _words(column: Column) -> str:
    told = [f"{c.title}, {_numbers(c).replace(chr(10), ', ') or 'the grey points elsewhere'}" for c in column if c]
    return "Answers in the plane: " + "; ".join(told)
