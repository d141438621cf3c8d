"""Candidates of finished runs: every student, distilled or merely decoded, with its figures by seed and its cost.

Read from a run's records and artifacts; nothing is drawn or scored here.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from hydrometer.core.errors import FolderError, InputError
from hydrometer.core.findings import SHARED_PROMPTS
from hydrometer.core.io.files import file_digest
from hydrometer.core.io.yaml_io import nearest
from hydrometer.core.statistics.estimate import Estimate
from hydrometer.models.fit_capabilities import DrawsInFits
from hydrometer.report.values import items, mapping, text
from hydrometer.run.advice.recorded_plan import recorded_plan
from hydrometer.run.graph.plan import ChainPlan, Plan
from hydrometer.run.graph.reopen import reopen
from hydrometer.run.preflight.diagnosis import shared_prompts
from hydrometer.stages.cells import Cell
from hydrometer.stages.nodes import FitNode, Rows
from hydrometer.store.artifacts import ArtifactStore
from hydrometer.store.records import RunFolder, load_results
from hydrometer.store.remote import open_store
from hydrometer.store.storage_uri import Url, place_of

__all__ = ["Entry", "Excluded", "Source", "entries", "is_finite", "open_source", "the_chain"]

Metrics = dict[str, Estimate]


@dataclass(frozen=True, slots=True)
class Source:
    """One chain of one finished run.

    Attributes
    ----------
    cells : records of results.json, by id.
    digest : of results.json; tells whether kept advice is of these results.
    missing : ids of the chain's cells that are not judged yet.
    shared_prompts : whether models are judged on the prompts that they are trained on, and no description says so.
    reference : what precision is measured under where the truth is texts; else empty.
    controls : by group of a distilled student, what it is minus the direct student decoded to the same entropy.
    """

    books: RunFolder
    name: str
    plan: Plan
    chain: ChainPlan
    store: ArtifactStore
    cells: Mapping[str, Mapping[str, Any]]
    digest: str
    missing: tuple[str, ...] = ()
    shared_prompts: bool = False
    reference: str = ""
    controls: Mapping[str, Mapping[str, Any]] = field(default_factory=dict[str, Mapping[str, Any]])

    @property
    def folder(self) -> Path | Url:
        """Where the run is."""
        return self.books.place

    @property
    def is_taught_by_truth(self) -> bool:
        """Whether the teacher of the last level is the truth, whose rows are then draws of the teacher."""
        return {c.role for c in self.chain.cells} == {"truth", "student"}

    @property
    def truth_rows(self) -> dict[tuple[str, ...], Rows]:
        """The truth's rows that students were judged on, by their blocks, or by key where they are not stored."""
        nodes = self.plan.judges_of(c for c in self.chain.cells if c.training is not None)
        return {n.truth_rows.blocks or (n.truth_rows.key,): n.truth_rows for n in nodes}


@dataclass(frozen=True, slots=True)
class Entry:
    """One candidate: a student of a run, as it is or decoded.

    Attributes
    ----------
    id : the group's; with several runs, after the run folder's name.
    cells : planned cells by seed; the single key None where one serves all seeds.
    figures : by the same keys.
    cost : mean over seeds of teacher rows and tokens, of its own, and of seconds in this run. Empty for an adopted
        model: its training took place elsewhere.
    """

    source: Source
    id: str
    cells: dict[int | None, Cell]
    figures: dict[int | None, Metrics]
    cost: dict[str, float | None]

    @property
    def cell(self) -> Cell:
        """One of its cells, for what all seeds share."""
        return next(iter(self.cells.values()))

    @property
    def is_adopted(self) -> bool:
        """Whether it was trained elsewhere."""
        return self.cell.origin is not None

    @property
    def is_neutral(self) -> bool:
        """Whether it was distilled from the unselected teacher and is not decoded."""
        s = self.cell.selectivity
        return self.cell.training == "distilled" and self.cell.decoding is None and s is not None and s.is_neutral


@dataclass(frozen=True, slots=True)
class Excluded:
    """A student that is no candidate, and why."""

    cell: Cell
    reason: str


def the_chain(names: Sequence[str], wanted: str | None, where: str) -> str:
    """Choose a chain by name, or the only one. Raises InputError: no chain of that name, or several and no name."""
    if wanted is None:
        if len(names) == 1:
            return names[0]
        raise InputError(f"{where} has several chains", got=", ".join(names), fix="name one with --chain")
    if wanted not in names:
        raise InputError(f"{where} has no such chain", got=wanted, fix=nearest(wanted, list(names)))
    return wanted


def _advisable(results: dict[str, Any], where: str) -> list[str]:
    """Return the chains, other than maps, that have a distilled student."""
    try:
        summary: dict[str, dict[str, Any]] = results["summary"]["chains"]
        distilled = {c["chain"] for c in results["cells"] if c["training"] == "distilled"}
        return [name for name, chain in summary.items() if name in distilled and "map" not in chain]
    except (KeyError, TypeError, AttributeError) as e:
        raise FolderError(
            f"results.json lacks what a run writes: {e}", got=where, fix="run it again with this version"
        ) from None


def open_source(
    folder: str | Path | Url, chain: str | None, cache: str | Path | None, *, reads_alone: bool = False
) -> Source:
    """Open one chain of a finished run, with the models that it adopted.

    Parameters
    ----------
    reads_alone : nothing will be drawn: take the chain from records and artifacts, without its models, where they tell
        enough (`recorded_plan`).

    Raises
    ------
    FolderError : no run, or a run without its specifications or artifacts.
    InputError : no chain with a distilled student, several and no name, or a file that its specifications name is gone.
    """
    books = RunFolder(folder)
    if books.place != books.root and not (books.root / "results.json").is_file():
        raise FolderError("no results.json there", got=str(folder), fix="give the place of a finished run")
    results = load_results(books.root)
    if not books.accepted():
        raise FolderError("the folder holds results but no specification", got=str(folder), fix="give a whole run")
    names = _advisable(results, str(folder))
    if not names and "partial" in results and all("map" not in c for c in results["summary"]["chains"].values()):
        raise InputError("no distilled student is judged so far", got=str(folder), fix="wait, or let the run go on")
    if not names:
        fix = "maps and chains without `student` are not advised on; give a run of a chain"
        raise InputError("the run has no distilled student to advise on", got=str(folder), fix=fix)
    name = the_chain(names, chain, f"the run {folder}")
    kept = books.artifacts if cache is None else place_of(cache)
    if isinstance(kept, Path) and not kept.is_dir():
        raise FolderError("the run's artifacts are not there", got=str(kept), fix="name the run's --cache")
    store = open_store(kept)
    plan = recorded_plan(books, results, name, store) if reads_alone else None
    if plan is None:
        opened = reopen(books, cache, name)
        plan, store = opened.plan, opened.store
        shared = bool(shared_prompts(opened.spec, plan.chains[name]))
    else:
        shared = any(_is_shared(mapping(f), name) for f in items(mapping(results["summary"]).get("findings")))
    summary = mapping(results["summary"]["chains"][name])
    controls = [mapping(c) for c in items(summary.get("control"))]
    return Source(
        books,
        str(results.get("name", name)),
        plan,
        plan.chains[name],
        store,
        cells={c["id"]: c for c in results["cells"]},
        digest=file_digest(books.root / "results.json"),
        missing=tuple(results.get("partial", {}).get(name, [])),
        shared_prompts=shared,
        reference=text(summary.get("reference")),
        controls={text(c.get("distilled")): mapping(c.get("matched_entropy")) for c in controls},
    )


def _is_shared(finding: Mapping[str, object], chain: str) -> bool:
    """Whether a run's finding warns that models are judged on the prompts that they are trained on."""
    told = finding.get("code"), finding.get("severity"), finding.get("chain")
    return told == (SHARED_PROMPTS, "warning", chain)


def need_artifact(source: Source, stage: Literal["draw", "fit", "judge"], key: str) -> Path:
    if not source.store.has(stage, key):
        raise FolderError(
            f"a {stage} artifact of the run is missing, damaged, or was made by other versions or on another processor",
            got=source.store.location,
            fix=f"run it again into {source.folder}, or name its --cache",
        )
    return source.store.path(stage, key)


def entries(source: Source, recall: str, precision: str, *, priced: bool) -> tuple[list[Entry], list[Excluded]]:
    """Return the last level's students: candidates, and those excluded with the reason.

    Parameters
    ----------
    recall, precision : names of the metrics.
    priced : read costs from artifacts; otherwise give planned teacher rows alone.
    """
    last = max(c.level for c in source.chain.cells)
    groups: dict[str, dict[int | None, Cell]] = {}
    for cell in source.chain.cells:
        if cell.training is not None and cell.level == last:
            groups.setdefault(cell.group, {})[cell.seed] = cell
    found: list[Entry] = []
    excluded: list[Excluded] = []
    for name, cells in groups.items():
        figures: dict[int | None, Metrics] = {}
        reason = "it is not judged yet" if source.missing else "it was not judged"
        for seed, cell in cells.items():
            record = source.cells.get(cell.id)
            if record is None or record["status"] != "ok":
                reason = f"its cells failed: {record['reason']}" if record else reason
                continue
            figures[seed] = _metrics(source, record)
        example = next(iter(cells.values()))
        if not figures:
            excluded.append(Excluded(example, reason))
        elif why := _unusable(figures, recall, precision):
            excluded.append(Excluded(example, why))
        else:
            judged = [cells[s] for s in figures]
            cost = {} if example.origin is not None else (_cost if priced else _rows)(source, judged)
            found.append(Entry(source, name, cells, figures, cost))
    return sorted(found, key=_order), excluded


def _metrics(source: Source, record: Mapping[str, Any]) -> Metrics:
    try:
        return {k: Estimate.from_json(m) for k, m in record["metrics"].items()}
    except (KeyError, TypeError, AttributeError):
        raise FolderError(
            "results.json holds figures that cannot be read",
            got=f"{source.folder}, cell {record.get('id')}",
            fix="run it again with this version",
        ) from None


def is_finite(e: Estimate | None) -> bool:
    """Whether a figure has a finite value."""
    value: object = None if e is None else e.value
    return isinstance(value, int | float) and math.isfinite(value)


def _order(entry: Entry) -> tuple[bool, bool, bool]:
    """Sort direct before distilled, undecoded before decoded: at equal cost the simpler comes first."""
    c = entry.cell
    return c.training == "distilled", not entry.is_neutral and c.training == "distilled", c.decoding is not None


def _unusable(figures: dict[int | None, Metrics], recall: str, precision: str) -> str:
    """Return why a student's figures cannot be compared, or an empty string."""
    for m in figures.values():
        for name in (recall, precision):
            e = m.get(name)
            if e is None:
                return f"it has no {name}"
            if e.value is None and e.n_neg_inf:
                return f"its {name} is minus infinity, since some rows have probability zero"
            if not is_finite(e):
                return f"its {name} is no finite number"
            if e.se_mc is None:
                return f"its {name} has no standard error"
    return ""


def _training(source: Source, cell: Cell) -> tuple[FitNode, list[Rows]]:
    node = source.plan.judge_of(cell)
    if node is None:
        raise InputError("maps are not advised on", got=cell.chain)
    fit = source.plan.nodes[node.law.key]
    assert isinstance(fit, FitNode)  # the run's own students are fits
    return fit, [r for r in (fit.data, fit.validate) if r is not None]


def _is_of_teacher(source: Source, fit: FitNode) -> bool:
    """Whether the student learns from rows that the teacher draws; where it draws all itself, theirs give prompts."""
    alone = fit.distillation is not None and fit.distillation.prefixes.own == 1
    of_teacher = source.is_taught_by_truth or fit.data.law.role != "truth"
    return fit.baseline is None and not alone and of_teacher


def _own_rows(fit: FitNode) -> int:
    """Return how many rows the student draws itself while it is fitted."""
    family, d = fit.context.family, fit.distillation
    if d is None or not d.prefixes.own or not isinstance(family, DrawsInFits):
        return 0
    return family.own_rows(fit.context.spec, fit.level, fit.data.n, d.prefixes.own)


def _rows(source: Source, cells: list[Cell]) -> dict[str, float | None]:
    """Return the planned rows that the teacher draws for the student, and that it draws itself, means over seeds."""
    fits = [_training(source, c) for c in cells]
    taught = sum(sum(r.n for r in rows) for fit, rows in fits if _is_of_teacher(source, fit))
    own = sum(_own_rows(fit) for fit, _ in fits)
    return {"teacher_rows": taught / len(cells), **({"own_rows": own / len(cells)} if own else {})}


def _cost(source: Source, cells: list[Cell]) -> dict[str, float | None]:
    """Return the cost of training the student, means over seeds: rows, tokens (of sequences) and seconds."""
    sums: dict[str, float] = dict.fromkeys(
        ("teacher_rows", "truth_rows", "tokens", "draw_seconds", "fit_seconds", "teacher_fit_seconds"), 0.0
    )
    own = dict.fromkeys(("own_rows", "own_tokens"), 0.0)
    has_tokens = False
    for cell in cells:
        fit, rows = _training(source, cell)
        drawn = sum(r.n for r in rows)
        of_teacher = _is_of_teacher(source, fit)
        sums["teacher_rows"] += drawn if of_teacher else 0
        sums["truth_rows"] += drawn if cell.training == "direct" or not (of_teacher or fit.baseline) else 0
        own["own_rows"] += _own_rows(fit)
        for key in (k for r in rows for k in r.blocks):
            need_artifact(source, "draw", key)
            meta = source.store.meta("draw", key)
            sums["draw_seconds"] += float(meta["seconds"])
            sums["tokens"] += float(meta["info"].get("tokens", 0))
            has_tokens = has_tokens or "tokens" in meta["info"]
            if of_teacher and "candidates" in meta["info"]:  # best-of-n: rejected candidates were drawn too
                sums["teacher_rows"] += float(meta["info"]["candidates"]) - float(meta["info"]["rows"])
        need_artifact(source, "fit", fit.key)
        made = source.store.meta("fit", fit.key)
        sums["fit_seconds"] += float(made["seconds"])
        own["own_tokens"] += float(made["info"].get("tokens_drawn", 0))
        if fit.teacher is not None and fit.teacher.kind == "fit":
            need_artifact(source, "fit", fit.teacher.key)
            sums["teacher_fit_seconds"] += float(source.store.meta("fit", fit.teacher.key)["seconds"])
    means: dict[str, float | None] = {k: v / len(cells) for k, v in sums.items()}
    tokens = means.pop("tokens")
    tokens = tokens if means["teacher_rows"] else 0.0
    means |= {k: v / len(cells) for k, v in own.items() if v}
    return {**means, "teacher_tokens": tokens if has_tokens else None}
