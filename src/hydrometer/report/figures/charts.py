"""The report's charts by name, each drawn on axes that are given."""

# matplotlib leaves the type of its keyword arguments open.
# pyright: reportUnknownMemberType=false

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import partial
from typing import Any

from matplotlib.axes import Axes

from hydrometer.report.data.grid_data import largest, sheets, spread
from hydrometer.report.data.plotdata import PARTS, Curves, Panel, Plane, curves_data, plane_data
from hydrometer.report.figures import contours, frontier_figure, grid_tiles, panels, picture_figure
from hydrometer.report.figures.grid_views import gap_data
from hydrometer.report.typed_results import Chain, Run

__all__ = ["Draw", "charts"]

Draw = Callable[[Axes], object]


def _plane(draw: Callable[[Axes, Plane], panels.Labels], plane: Plane, ax: Axes) -> None:
    labels = draw(ax, plane)
    ax.legend(handles=panels.handles_of(plane.paths, plane.methods), loc="best")
    figure = ax.get_figure(root=True)
    if figure is not None:
        figure.draw_without_rendering()  # labels are placed in pixels
    labels()


def _part(curves: Curves, panel: Panel, ax: Axes) -> None:
    panels.draw_panel(ax, curves, panel)
    ax.legend(handles=panels.handles_of([*panel.series, *panel.levels], panel.methods), loc="best")


def charts(run: Run, chain: Chain) -> dict[str, Draw]:
    """Return what draws each chart of a chain's part of the page, panel by panel."""
    found: dict[str, Draw] = {}
    plane, entropy = plane_data(run, chain), plane_data(run, chain, x="entropy")
    if any(k != "truth" for k in plane.paths):
        found["plane"] = partial(_plane, panels.draw_plane, plane)
        found["entropy plane"] = partial(_plane, panels.draw_entropy_plane, entropy)
    for against in ("setting", "entropy"):
        if (curves := curves_data(run, chain, against=against)) is not None:
            for (metric, _, _), panel in zip(PARTS, curves.panels, strict=True):
                found[f"{metric} by {against}"] = partial(_part, curves, panel)
    if (frontier := frontier_figure.frontier_data(run, chain)) is not None:
        if frontier.lines:
            found["frontier"] = partial(frontier_figure.draw_frontiers, data=frontier)
        if frontier.overlap:
            found["overlap"] = partial(frontier_figure.draw_overlap, data=frontier)
        for level in frontier.typicality:
            found[f"typicality {level}"] = partial(frontier_figure.draw_typicality, data=frontier, level=level)
    found |= {f"density: {name}": draw for name, draw in _densities(run, chain)}
    for sheet in sheets(run, chain):
        scale = spread([sheet]), largest([sheet])
        for r, row in enumerate(sheet.panels):
            for c, tiles in enumerate(row):
                at = grid_tiles.panel_title(sheet, r, c)
                name = f"map: {sheet.title}" + (f" at {at}" if at else "")
                found[name] = partial(
                    grid_tiles.draw_tiles, sheet=sheet, panel=tiles, scale=scale, title=name[5:], below=True
                )
    points, metrics, joined = gap_data(run, chain)
    for metric in metrics:
        found[f"gap: {metric}"] = partial(grid_tiles.draw_gap, found=points, metric=metric, joined=joined)
    picture = picture_figure.picture_data(run, chain)
    if isinstance(picture, picture_figure.Picture):
        for cloud in picture.clouds:
            found[f"picture: {cloud.title}"] = partial(picture_figure.draw_cloud, cloud=cloud, picture=picture)
    return found


def _densities(run: Run, chain: Chain) -> Iterable[tuple[str, Draw]]:
    columns = contours.columns(run, chain)
    for column in columns:
        for title, kind, density in (column.upper, column.lower):
            if density is not None:
                more = dict[str, Any](title=title, kind=kind, density=density, truth=columns[0].upper[2])
                yield title, partial(contours.draw_density, **more)
