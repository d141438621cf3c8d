"""The page's figures of maps and of the capacity gap, and its explorer, with captions."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Callable
from dataclasses import dataclass

from markupsafe import Markup
from matplotlib.figure import Figure

from hydrometer.report.data.capacity_gap import GapPoint, gap_points
from hydrometer.report.data.grid_data import Sheet, counted, largest, sheets, spread
from hydrometer.report.figures import grid_tiles
from hydrometer.report.figures.explore import SIDE, Explorer, explorer
from hydrometer.report.typed_results import Chain, Run

__all__ = ["ExplorerView", "FigureView", "explorer_view", "gap_data", "gap_view", "map_views", "script_hash"]

JOINED = 16  # points of a map up to which their settings are joined by lines
Panel = Callable[[Figure, str], Markup]
Save = Callable[[str, Figure], None]


@dataclass(frozen=True, slots=True)
class FigureView:
    """One figure of the page: inline panels, caption and file stem."""

    title: str
    caption: Markup | str
    panels: list[Markup]
    layout: str
    stem: str


@dataclass(frozen=True, slots=True)
class ExplorerView:
    """The explorer of a chain: its content, its data as JSON, and the side of its pictures."""

    explorer: Explorer
    data: Markup
    side: int


HOW = {
    "precision": (
        "Where precision is gained",
        "Precision of the distilled student less that of the direct one, at every point and setting.",
    ),
    "recall": (
        "What it costs in recall",
        "Recall of the distilled student less that of the direct one, at every point and setting.",
    ),
    "recall at equal entropy": (
        "Where decoding does as well: recall",
        "Recall of the distilled student less that of the direct student decoded to the same entropy: where it is not "
        "above zero, decoding, which costs nothing, does as well.",
    ),
}
FIT = (
    "Where decoding does as well: fit",
    "−KL(q‖p*) of the distilled student less that of the direct student decoded to the same entropy; at equal entropy "
    "this is the whole difference in precision.",
)
READING = (
    " Orange: the distilled student is ahead, blue: the direct one, deeper the further, on an asinh scale; numbers are "
    "nats. In full colour only where the 95 % interval excludes zero; hatched tiles are undecided. "
)
BLANKS = (
    "A × marks students to whose entropy no two decoded settings lead, a dot where there is nothing to compare: a "
    "teacher as it is, or a student of one component, which no power changes. "
)


def _seeds(chain: Chain) -> str:
    return f"Means over {chain.seeds} seeds." if chain.seeds > 1 else "One seed."


def _words(sheet: Sheet) -> str:
    n = counted(sheet.tiles)
    return (
        f"{sheet.title}, distilled less direct student: above zero at {n['up']} tiles, below at {n['down']}, undecided "
        f"at {n['open']}, no comparison at {n['none']}. Every tile is in the table of points and settings."
    )


def _axes(sheet: Sheet) -> str:
    names = [a.name for a in (sheet.columns, sheet.rows) if a.key]
    inner = f"Across: {sheet.x.name}" + (f"; upwards: {sheet.y.name}" if sheet.y.key else "")
    return f"{inner}; panels: {' and '.join(names)}. " if names else f"{inner}. "


def map_views(run: Run, chain: Chain, stem: str, save: Save, panel: Panel) -> list[FigureView]:
    """Draw a map: one figure where every comparison fits one panel, else one a comparison.

    Parameters
    ----------
    run, chain, stem : what to draw, and the name that files begin with.
    save : writes a figure for download; panel : returns it inline for the page.
    """
    found = [(s, (spread([s]), largest([s]))) for s in sheets(run, chain)]
    if not found:
        return []
    if all(len(s.columns.values) * len(s.rows.values) == 1 for s, _ in found):
        save(f"{stem}-map", grid_tiles.sheets_figure(found))
        shown = [panel(grid_tiles.single_figure(s, scale), _words(s)) for s, scale in found]
        matched = any("entropy" in s.title for s, _ in found)
        caption = (
            "Distilled less direct student: precision and recall"
            + (", and against the direct student decoded to the same entropy recall and −KL(q‖p*)." if matched else ".")
            + READING
            + (BLANKS if any(t.state == "none" for s, _ in found for t in s.tiles) else "")
            + _axes(found[0][0])
            + _seeds(chain)
        )
        return [FigureView("The map", caption, shown, "two", f"{stem}-map")]
    views: list[FigureView] = []
    for i, (sheet, scale) in enumerate(found):
        title, words = HOW.get(sheet.title, FIT)
        name = f"{stem}-map-{i + 1}"
        save(name, grid_tiles.sheet_figure(sheet, scale))
        shown = [
            panel(grid_tiles.column_figure(sheet, c, scale), _words(sheet) if c == 0 else f"{sheet.title}, next column")
            for c in range(len(sheet.columns.values))
        ]
        shown.append(panel(grid_tiles.scale_figure(scale, sheet.unit), "Key to the colours"))
        blanks = BLANKS if any(t.state == "none" for t in sheet.tiles) else ""
        caption = words + READING + blanks + _axes(sheet) + _seeds(chain)
        views.append(FigureView(title, caption, shown, "maps", name))
    return views


def gap_data(run: Run, chain: Chain) -> tuple[list[GapPoint], list[str], bool]:
    """Return the points of the gap's charts, their metrics (none below two gaps), and whether to join the settings."""
    found = gap_points(run, chain)
    if len({p.gap for p in found}) < 2:
        return found, [], False
    joined = len({tuple(sorted(p.point.items())) for p in found}) <= JOINED
    return (
        found,
        ["precision", *(["recall"] if any(p.recall and p.recall.value is not None for p in found) else [])],
        joined,
    )


def gap_view(run: Run, chain: Chain, stem: str, save: Save, panel: Panel) -> list[FigureView]:
    """Draw what is gained against the capacity gap; nothing where fewer than two gaps were measured."""
    found, metrics, joined = gap_data(run, chain)
    if not metrics:
        return []
    save(f"{stem}-gap", grid_tiles.gap_figure(found, metrics, joined))
    shown = [
        panel(grid_tiles.gap_figure(found, [m], joined), f"{m} gained against the capacity gap, {len(found)} marks")
        for m in metrics
    ]
    caption = (
        "What the distilled student gains on the direct one against its capacity gap: the true modes that the "
        "sharpened teacher emphasises, less the student’s components K″. Emphasised are the fewest components that "
        "hold a mass of 0.95; a component covers a true mode j where its mean responsibility E[r_j] is at least "
        "1/(2K), K the number of true modes. Each mark is one point and setting, with its 95 % interval; hollow where "
        "that holds zero. "
        + ("Lines join the settings of a point. " if joined else "")
        + "Vertical scales are asinh: linear near zero. "
        + _seeds(chain)
    )
    return [FigureView("Capacity gap", caption, shown, "two", f"{stem}-gap")]


def explorer_view(run: Run, chain: Chain) -> ExplorerView | None:
    """Compute the explorer of a chain, None where it has none."""
    found = explorer(run, chain)
    return None if found is None else ExplorerView(found, Markup(found.data()), SIDE)  # escaped there


def script_hash(script: str) -> str:
    """Return the source expression by which a content security policy allows exactly this inline script.

    Examples
    --------
    >>> script_hash("")
    "'sha256-47DEQpj8HBSa+/TImW+5JCeuQeRkm5NMpJWZG3hSuFU='"
    """
    return f"'sha256-{base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()}'"
