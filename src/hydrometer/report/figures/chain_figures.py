"""All figures of one chain: drawn for the page, saved as files, with their captions."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from markupsafe import Markup
from matplotlib.figure import Figure

from hydrometer.core.io.files import write_atomic
from hydrometer.report.data import plotdata
from hydrometer.report.figures import contours, frontier_figure, panels
from hydrometer.report.figures.grid_views import FigureView, gap_view, map_views
from hydrometer.report.figures.picture_figure import picture_view
from hydrometer.report.figures.style import inline_svg, render
from hydrometer.report.typed_results import Chain, Run
from hydrometer.report.wording import figure as figure_words
from hydrometer.report.wording import setting

__all__ = ["FORMATS", "views_of"]

FORMATS = ("svg", "png", "pdf")


def _save(folder: Path, stem: str, figure: Figure) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for kind in FORMATS:
        write_atomic(folder / f"{stem}.{kind}", render(figure, kind))


def _plane_captions(chain: Chain, plane: plotdata.Plane) -> Markup:
    bars = "Bars are 95 % intervals."
    ties = (
        " A grey line leads from a distilled student to the × where the direct student, decoded selectively, has the "
        "same entropy: the shift that is not explained by cooling."
        if plane.ties
        else ""
    )
    cloud = " The faint dots are single seeds." if plane.cloud else ""
    if chain.reference:
        return Markup(
            "<b>Left:</b> precision under the {0} against recall over texts; up and right is better.{1} <b>Right:</b> "
            "precision against the model’s own entropy. Since precision = −H(q) − KL(q‖{0}), the diagonals are lines "
            "of equal KL(q‖{0}): moving along one is cooling alone, crossing towards the bold one is a better fit, and "
            "no model lies in the shaded region beyond it. {2}{3}"
        ).format(chain.reference, ties, bars, cloud)
    return Markup(
        "<b>Left:</b> precision against recall; up and right is better. The faint cross is the truth, where both are "
        "−H(p*). Since recall = −H(p*) − KL(p*‖q), verticals are lines of equal KL(p*‖q); no model lies right of the "
        "truth.{} <b>Right:</b> precision against the model’s own entropy. Since precision = −H(q) − KL(q‖p*), the "
        "diagonals are lines of equal KL(q‖p*): moving along one is cooling alone, crossing towards the bold one is a "
        "better fit, and no model lies in the shaded region beyond it. {}{}"
    ).format(ties, bars, cloud)


def _describe(run: Run, chain: Chain) -> str:
    kinds = plotdata.kinds_of(run, chain)
    words: list[str] = []
    for kind in ("truth", "teacher", "direct", "baseline", "distilled"):
        for group in kinds[kind][:8]:
            at = f" {setting(plotdata.knob(group, kind), short=True)}" if plotdata.knob(group, kind) else ""
            pair = [figure_words(group.metrics.get(m)) for m in ("recall", "precision")]
            at += f" {group.method or group.baseline}" if group.method or group.baseline else ""
            words.append(f"{kind}{at}: recall {pair[0]}, precision {pair[1]}")
    return "Precision against recall. " + "; ".join(words) + ". All figures are in the tables below."


def views_of(run: Run, chain: Chain, stem: str, folder: Path) -> list[FigureView]:
    """Draw a chain's figures for the page, and save them in `folder`, their files' names starting with `stem`."""
    views: list[FigureView] = []
    if chain.judged:  # no teacher and no path to plot: tables suffice
        return views

    def panel(figure: Figure, label: str) -> Markup:
        count[0] += 1
        return Markup(inline_svg(figure, f"{stem}-{count[0]}", label))  # ours, escaped there

    def save(name: str, figure: Figure) -> None:
        _save(folder, name, figure)

    count = [0]
    views += map_views(run, chain, stem, save, panel)
    plane, entropy = plotdata.plane_data(run, chain), plotdata.plane_data(run, chain, x="entropy")
    if any(k != "truth" for k in plane.paths):
        _save(folder, f"{stem}-plane", panels.plane_figure(plane, entropy))
        shown = [
            panel(panels.single(4.5, 4.0, panels.draw_plane, plane), _describe(run, chain)),
            panel(
                panels.single(4.5, 4.0, panels.draw_entropy_plane, entropy), "Precision against entropy, same models."
            ),
        ]
        views.append(FigureView("The trade-off", _plane_captions(chain, plane), shown, "two", f"{stem}-plane"))
    views += _curve_views(run, chain, stem, folder, panel)
    views += _frontier_views(run, chain, stem, folder, panel)
    found = contours.columns(run, chain)
    if found:
        _save(folder, f"{stem}-contours", contours.contour_figure(found))
        truth = found[0].upper[2]
        shown = [panel(contours.column_figure(c, truth), f"{c.upper[0]} above, {c.lower[0]} below") for c in found]
        caption = (
            "Regions that hold 50, 80 and 95 % of each model’s mass, first seed; the grey outline is the truth’s 80 % "
            "region, + marks component means. Above the teacher sharpened at each setting, below its student."
        )
        views.append(FigureView("Where the mass goes", caption, shown, "many", f"{stem}-contours"))
    return views + gap_view(run, chain, stem, save, panel) + picture_view(run, chain, stem, save, panel)


def _curve_views(
    run: Run, chain: Chain, stem: str, folder: Path, panel: Callable[[Figure, str], Markup]
) -> list[FigureView]:
    words = {
        "setting": (
            "Parts of the gain, by setting",
            "What each setting does, split in parts: the first panel is the sum of the second and the third. A "
            "distilled student stands at its teacher’s setting, a decoded one at its own. Lines across are the direct "
            + (
                "student and the unselected teacher."
                if chain.reference
                else "student, the unselected teacher and the truth."
            ),
        ),
        "entropy": (
            "Parts of the gain, by teacher entropy",
            "The same against the entropy that the teacher reached, the axis on which temperatures, weight powers and "
            "cut-offs can be compared. A decoded model stands where the teacher at the same setting stands.",
        ),
    }
    views: list[FigureView] = []
    for against in ("setting", "entropy"):
        curves = plotdata.curves_data(run, chain, against=against)
        if curves is None:
            continue
        title, caption = words[against]
        _save(folder, f"{stem}-by-{against}", panels.curves_figure(curves))
        shown = [
            panel(panels.single(4.4, 2.9, panels.draw_panel, curves, p), f"{p.title}, along {curves.scale.name}")
            for p in curves.panels
        ]
        views.append(FigureView(title, caption, shown, "two", f"{stem}-by-{against}"))
    return views


def _frontier_views(
    run: Run, chain: Chain, stem: str, folder: Path, panel: Callable[[Figure, str], Markup]
) -> list[FigureView]:
    data = frontier_figure.frontier_data(run, chain)
    if data is None:
        return []
    name = f"{stem}-frontier"
    _save(folder, name, frontier_figure.frontier_figure(data))
    shown = [panel(figure, words) for words, figure in frontier_figure.frontier_panels(data)]
    return [FigureView("Frontiers and typicality", frontier_figure.caption(data), shown, "two", name)]
