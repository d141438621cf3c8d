"""The page: figures to files, everything into one self-contained HTML.

The page loads nothing: styles and figures are inside. There is no script but the explorer's, on pages that have one; a
content security policy allows that one, by its hash, and no other.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import yaml
from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup
from matplotlib.figure import Figure

from hydrometer._version import __version__
from hydrometer.core.errors import FolderError, InputError
from hydrometer.core.io.files import write_atomic
from hydrometer.core.watching import doing
from hydrometer.report.data import plotdata
from hydrometer.report.data.grid_data import axis_of
from hydrometer.report.data.samples import prompt_rows, visible
from hydrometer.report.figures import contours, frontier_figure, panels
from hydrometer.report.figures.grid_views import (
    ExplorerView,
    FigureView,
    explorer_view,
    gap_view,
    map_views,
    script_hash,
)
from hydrometer.report.figures.picture_figure import picture_view
from hydrometer.report.figures.style import LOOKS, inline_svg, render
from hydrometer.report.read_results import read_run
from hydrometer.report.tables import model_tables as tables
from hydrometer.report.tables.gap_table import gap_table
from hydrometer.report.typed_results import Chain, Group, Run
from hydrometer.report.wording import distilled_at, per, setting
from hydrometer.report.wording import figure as figure_words
from hydrometer.report.words.first_sentence import answer
from hydrometer.report.words.kept_advice import advice_of
from hydrometer.report.words.verdict import Sentence, sentences
from hydrometer.store.mirror import Mirror, send_folder
from hydrometer.store.path_safety import refuse_links
from hydrometer.store.storage_uri import Url, place_of

__all__ = ["build_report"]

FORMATS = ("svg", "png", "pdf")
FAILED_SHOWN = 50
VISIBLE_PROMPTS = 4
NAMES_SHOWN = 8


@dataclass(frozen=True, slots=True)
class ChainView:
    """One chain's part of the page."""

    chain: Chain
    anchor: str
    answer: Sentence
    sentences: list[Sentence]
    figures: list[FigureView]
    explorer: ExplorerView | None
    keys: list[tuple[str, str]]
    has_ties: bool
    tables: list[tuple[str, tables.TableData, bool]]
    prompts: list[Any]
    facts: list[tuple[str, str]]
    released: tables.TableData | None


@dataclass(frozen=True, slots=True)
class RunView:
    """One run's part of the page."""

    run: Run
    chains: list[ChainView]
    specs: list[str]
    versions: list[tuple[str, str]]
    failed: list[tuple[str, str]]
    failed_more: int
    seconds: float
    cells: int = field(default=0)
    missing: int = field(default=0)


def _slug(name: str) -> str:
    safe = "".join(c if c.isascii() and (c.isalnum() or c in "-_") else "-" for c in name)[:64]
    return safe.strip("-_") or "chain"


def _stems(runs: list[Run]) -> dict[tuple[int, str], str]:
    """Give every chain of every run a unique name for files and anchors."""
    taken: set[str] = set()
    found: dict[tuple[int, str], str] = {}
    for i, run in enumerate(runs):
        for name in run.chains:
            stem = _slug(name) if len(runs) == 1 else f"{i + 1}-{_slug(run.name)}-{_slug(name)}"
            while stem in taken:
                stem += "-x"
            taken.add(stem)
            found[i, name] = stem
    return found


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
    """Describe the plane for screen readers."""
    kinds = plotdata.kinds_of(run, chain)
    words: list[str] = []
    for kind in ("truth", "teacher", "direct", "baseline", "distilled"):
        for group in kinds[kind][:8]:
            at = f" {setting(plotdata.knob(group, kind), short=True)}" if plotdata.knob(group, kind) else ""
            pair = [figure_words(group.metrics.get(m)) for m in ("recall", "precision")]
            at += f" {group.method or group.baseline}" if group.method or group.baseline else ""
            words.append(f"{kind}{at}: recall {pair[0]}, precision {pair[1]}")
    return "Precision against recall. " + "; ".join(words) + ". All figures are in the tables below."


def _figures(run: Run, chain: Chain, stem: str, folder: Path) -> list[FigureView]:
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
            "student, the unselected teacher and the truth.",
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


def _facts(run: Run, chain: Chain) -> list[tuple[str, str]]:
    def seen(group: Group | None) -> str:
        return figure_words(group.metrics.get("entropy")) if group else ""

    truth = run.groups.get(chain.truth_group or "")
    facts = [
        ("truth p*", chain.truth),
        ("family", chain.family.replace("_", " ")),
        ("H(p*)", f"{seen(truth)} {chain.unit} per {per(chain)}" if seen(truth) else ""),
        ("seeds", str(chain.seeds) if chain.seeds else ""),
        ("settings", ", ".join(distilled_at(s, short=True) for s in chain.tradeoff)),
    ]
    names = [c.name for c in run.cells if c.chain == chain.name and c.name and c.ok]
    if names:
        more = f" and {len(names) - NAMES_SHOWN} more" if len(names) > NAMES_SHOWN else ""
        facts.append(("models", f"{', '.join(names[:NAMES_SHOWN])}{more}; `hydrometer models` says where they are"))
    if chain.points:
        axes = [axis_of(chain, key) for key in ("setting", *chain.axes)]
        facts.append(("points of the map", str(len(chain.points))))
        facts += [(a.name, ", ".join(a.labels)) for a in axes]
    return [f for f in facts if f[1]]


def _chain_view(run: Run, chain: Chain, stem: str, folder: Path) -> ChainView:
    kinds = plotdata.kinds_of(run, chain)
    keys = [(kind, LOOKS[kind].label) for kind in plotdata.KINDS if kinds[kind]]
    others = list(plotdata.by_method(run, chain))[1:]
    keys += [("distilled", f"{LOOKS['distilled'].label}, {m}: dashed, a mark of its own") for m in others]
    found: list[tuple[str, tables.TableData, bool]] = []
    if chain.points:
        found.append(("At how many points: + above zero, − below, ? undecided", tables.setting_table(chain), False))
        found.append(("All points and settings, nats; ? undecided", tables.map_table(chain), False))
    found.append((f"Models, {chain.unit} per {per(chain)}", tables.group_table(run, chain), not chain.points))
    over_seeds = tables.spread_table(run, chain)
    if over_seeds.rows:
        found.append(("Over seeds: median, quartiles, two peaks", over_seeds, False))
    extra = tables.group_table(run, chain, extra=True)
    if len(extra.head) > 2:
        found.append(("Further figures", extra, False))
    if chain.gaps:
        found.append(
            ("Generalisation: prompts kept apart minus prompts of training, nats", gap_table(run, chain), False)
        )
    contrasts = tables.contrast_table(run, chain)
    if contrasts.rows:
        found.append(("Contrasts, a − b", contrasts, False))
    return ChainView(
        chain=chain,
        anchor=stem,
        answer=answer(run, chain),
        sentences=[*sentences(run, chain), *advice_of(run, chain)],
        figures=_figures(run, chain, stem, folder),
        explorer=explorer_view(run, chain),
        keys=keys,
        has_ties=any(c.matched for c in chain.control),
        tables=found,
        prompts=prompt_rows(run, chain),
        facts=_facts(run, chain),
        released=tables.released_table(run, chain) if chain.as_released else None,
    )


def _yaml(spec: Mapping[str, object]) -> str:
    try:
        return yaml.safe_dump(dict(spec), sort_keys=False, allow_unicode=False, width=100)
    except RecursionError:  # JSON may be nested as deep as it can be read; a specification is not
        return "nested too deeply to be shown"


def _run_view(run: Run, chains: list[ChainView]) -> RunView:
    failed = [(c.id, c.reason or "no reason recorded") for c in run.cells if not c.ok]
    return RunView(
        run=run,
        chains=chains,
        specs=[_yaml(s) for s in run.specs],
        versions=[
            *(("specification", h) for h in run.spec_hashes),
            *((str(k), str(v)) for k, v in run.versions.items()),
        ],
        failed=failed[:FAILED_SHOWN],
        failed_more=max(len(failed) - FAILED_SHOWN, 0),
        seconds=sum(c.seconds for c in run.cells),
        cells=len(run.cells),
        missing=sum(map(len, run.missing.values())),
    )


def _environment() -> Environment:
    env = Environment(
        loader=PackageLoader("hydrometer.report", "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    env.filters["seen"] = visible
    return env


def _target(places: list[Path | Url], out: Path | Url | None) -> Path | Url:
    if out is None:
        return places[0] / "report.html"
    return out if out.name.lower().endswith((".html", ".htm")) else out / "report.html"


def build_report(runs: Sequence[str | Path | Url], *, out: str | Path | Url | None = None) -> Path | Url:
    """Write the page of one or several runs, and its figures beside it.

    Parameters
    ----------
    runs : run folders or URLs, each with its results.json and any exhibits.
    out : target: a folder or URL, or the name of an .html file; None takes the first run's folder.

    Returns
    -------
    Path or Url : of report.html. Beside it `figures/` holds every figure as svg, png and pdf. The same results give the
        same bytes.

    Raises
    ------
    InputError : where no run is given.
    FolderError : where a folder has no results, or the page cannot be written, or its figures would go elsewhere.
    FolderError : where results have a newer release's schema.
    """
    given: Any = runs
    is_several = hasattr(given, "__iter__") and not isinstance(given, str)
    places = [place_of(r) for r in (given if is_several else [given])]
    if not places:
        raise InputError("no run to report on", got=runs, fix="give at least one run folder")
    mirrors = [Mirror(p) for p in places if isinstance(p, Url)]  # they last until the page is written
    at = {m.url: m.root for m in mirrors}
    read = [read_run(p if isinstance(p, Path) else at[p]) for p in places]
    wanted = _target(places, None if out is None else place_of(out))
    if isinstance(wanted, Path):
        return _build(read, wanted)
    with TemporaryDirectory(prefix="hydrometer-report-") as made:
        _build(read, Path(made) / wanted.name)
        send_folder(Path(made), wanted.parent)
    return wanted


def _build(read: list[Run], target: Path) -> Path:
    doing("drawing the report")
    refuse_links(target.parent, ("figures",))
    stems = _stems(read)
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        views = [
            _run_view(
                run, [_chain_view(run, c, stems[i, c.name], target.parent / "figures") for c in run.chains.values()]
            )
            for i, run in enumerate(read)
        ]
        env = _environment()
        # Ours: files of this package.
        css, script = (Markup(env.get_template(name).render()) for name in ("report.css", "explorer.js"))
        used = any(c.explorer for view in views for c in view.chains)
        page = env.get_template("report.html.j2").render(
            runs=views,
            css=css,
            script=script if used else None,
            script_hash=script_hash(script),
            version=__version__,
            prompts_shown=VISIBLE_PROMPTS,
            formats=FORMATS,
        )
        write_atomic(target, page.encode("utf-8", "backslashreplace"))
    except OSError as error:
        raise FolderError(
            f"the report cannot be written: {error.strerror}", got=str(target), fix="give another folder with out="
        ) from None
    return target
