"""The page: figures to files, everything into one self-contained HTML.

The page loads nothing: styles and figures are inside. There is no script but the explorer's, on pages that have one; a
content security policy allows that one, by its hash, and no other.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import yaml
from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from hydrometer._version import __version__
from hydrometer.core.errors import FolderError, InputError
from hydrometer.core.io.files import write_atomic
from hydrometer.core.watching import doing
from hydrometer.report.data import plotdata
from hydrometer.report.data.grid_data import axis_of
from hydrometer.report.data.samples import prompt_rows, visible
from hydrometer.report.figures import chain_figures
from hydrometer.report.figures.grid_views import ExplorerView, FigureView, explorer_view, script_hash
from hydrometer.report.figures.style import LOOKS
from hydrometer.report.read_results import read_run
from hydrometer.report.tables import model_tables as tables
from hydrometer.report.typed_results import Chain, Group, Run
from hydrometer.report.wording import figure as figure_words
from hydrometer.report.wording import per, prompts_words, setting
from hydrometer.report.words.first_sentence import answer
from hydrometer.report.words.kept_advice import advice_of
from hydrometer.report.words.verdict import Sentence, sentences
from hydrometer.store.mirror import Mirror, send_folder
from hydrometer.store.path_safety import refuse_links
from hydrometer.store.storage_uri import Url, place_of

__all__ = ["build_report"]

FAILED_SHOWN = 50
VISIBLE_PROMPTS = 4
NAMES_SHOWN = 8
LIVE = 10
"""Seconds after which a page of a run that goes on renews itself."""


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


def _facts(run: Run, chain: Chain) -> list[tuple[str, str]]:
    def seen(group: Group | None) -> str:
        return figure_words(group.metrics.get("entropy")) if group else ""

    truth = run.groups.get(chain.truth_group or "")
    ways = list(dict.fromkeys(s.method or "by mle" for s in chain.tradeoff))
    facts = [
        ("truth p*", chain.truth),
        ("family", chain.family.replace("_", " ")),
        ("H(p*)", f"{seen(truth)} {chain.unit} per {per(chain)}" if seen(truth) else ""),
        ("seeds", str(chain.seeds) if chain.seeds else ""),
        ("prompts", prompts_words(chain)),
        ("settings", ", ".join(dict.fromkeys(setting(s.selectivity, short=True) for s in chain.tradeoff))),
        ("ways to distil", ", ".join(ways) if len(ways) > 1 else ""),
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
    if len(others) <= plotdata.FEW_METHODS:  # else each chart has a key of its own
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
            ("Generalisation: prompts kept apart minus prompts of training, nats", tables.gap_table(run, chain), False)
        )
    contrasts = tables.contrast_table(run, chain)
    if contrasts.rows:
        found.append(("Contrasts, a − b", contrasts, False))
    return ChainView(
        chain=chain,
        anchor=stem,
        answer=answer(run, chain),
        sentences=[*sentences(run, chain), *advice_of(run, chain)],
        figures=chain_figures.views_of(run, chain, stem, folder),
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


def build_report(
    runs: Sequence[str | Path | Url], *, out: str | Path | Url | None = None, live: bool = False
) -> Path | Url:
    """Write the page of one or several runs, and its figures beside it.

    Parameters
    ----------
    runs : run folders or URLs, each with its results.json and any exhibits.
    out : target: a folder or URL, or the name of an .html file; None takes the first run's folder.
    live : make a page that renews itself in the browser, for runs that go on.

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
        return _build(read, wanted, live=live)
    with TemporaryDirectory(prefix="hydrometer-report-") as made:
        _build(read, Path(made) / wanted.name, live=live)
        send_folder(Path(made), wanted.parent)
    return wanted


def _build(read: list[Run], target: Path, *, live: bool) -> Path:
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
            formats=chain_figures.FORMATS,
            renewed=LIVE if live else None,
        )
        write_atomic(target, page.encode("utf-8", "backslashreplace"))
    except OSError as error:
        raise FolderError(
            f"the report cannot be written: {error.strerror}", got=str(target), fix="give another folder with out="
        ) from None
    return target
