"""Advice from finished runs: the verb `advise` of library and command line.

`stages.statistics.decision` decides. This module reads candidates from run folders, judges the leader and its closest
rival again on held-out rows, and writes the answer as data; the report words it.

A run records the decision for the default need among its own students (`answer`), without fresh rows, which cost
draws, and without costs in seconds, which differ from run to run.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from hydrometer.core.arguments import one_of
from hydrometer.core.errors import InputError
from hydrometer.core.io.files import write_atomic
from hydrometer.core.shown import html_table
from hydrometer.core.statistics.sampling_design import Clusters
from hydrometer.report.tables.advice_table import advice_table
from hydrometer.report.words.advice_notes import advice_notes
from hydrometer.report.words.advice_text import advice_sentences
from hydrometer.run.advice.candidate_table import Field, field_of, is_on_texts, unit_of
from hydrometer.run.advice.candidates import Entry, Excluded, Source, open_source
from hydrometer.run.advice.checks import checks_of, figure_json
from hydrometer.run.advice.holdout import Again, judge_again
from hydrometer.run.graph.outcome import Monitor, SilentMonitor
from hydrometer.run.graph.plan import ChainPlan, Plan
from hydrometer.stages.cells import Cell
from hydrometer.stages.statistics.decision import ERROR, Candidate, Decision, Need, decide, left_out
from hydrometer.store.artifacts import ArtifactStore
from hydrometer.store.records import RunFolder, plain
from hydrometer.store.storage_uri import Url, resolved

__all__ = ["Advice", "advise", "advise_on", "answer", "as_setting", "completed", "decided", "decision_of", "keep"]

SCHEMA = 1
DEFAULT_LOSS = 0.1

Json = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Advice:
    """The answer to a need.

    Attributes
    ----------
    status : "decided", "undecided" (see `reason`), or "none": every candidate breaks a constraint.
    take : group id of the setting to take; None where undecided.
    leader : the best candidate by point estimates, or the one nearest to the need.
    runner_up : its closest rival.
    data : the content of advice.json (docs, Advice); `hydrometer.report.advice_sentences` words it.
    """

    status: Literal["decided", "undecided", "none"]
    reason: str | None
    take: str | None
    leader: str
    runner_up: str | None
    data: Json = field(repr=False)

    def _repr_html_(self) -> str:
        words = [*advice_sentences(self.data), *advice_notes(self.data)]
        return html_table([], [], "", words) + advice_table(self.data).html()


def advise(
    folders: str | Path | Url | Sequence[str | Path | Url],
    need: Need | None = None,
    *,
    chain: str | None = None,
    fresh: bool = True,
    cache: str | Path | None = None,
    monitor: Monitor | None = None,
) -> Advice:
    """Say which student of finished runs to take, distilled or merely decoded, or that the runs do not decide it.

    For an unfinished run the answer is provisional: what leads so far, never decided, without fresh rows.

    Parameters
    ----------
    folders : one or several runs on one truth, judged on the same rows of it. The answer is also kept as `advice.json`
        in the first.
    need : what is wanted; by default a recall loss of at most 0.1 nats per token (or point).
    chain : which chain, where a run has several.
    fresh : judge the leader, its closest rival and the baseline again on new rows, for unbiased expected figures.
        Otherwise, with two seeds or more, expected figures are leave-one-seed-out.
    cache : where artifacts are, for runs made with one.
    monitor : watches the fresh judging.

    Raises
    ------
    InputError : no run, nothing distilled in it, another truth, or a need that cannot be met by any figure of the run.
    StageError : the fresh judging failed.

    Examples
    --------
    >>> import tempfile, hydrometer as hm
    >>> small = ["seeds=6", "chains.markov.data.evaluate=400", "chains.markov.selectivity=[{temperature: 1}, {temperature: 0.5}]"]
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     _ = hm.run("markov", out=folder, overrides=small)
    ...     advice = hm.advise(folder, hm.Need(max_recall_loss=0.5))
    >>> advice.status in ("decided", "undecided"), len(advice.data["candidates"])
    (True, 5)
    """  # noqa: E501  (an example's line cannot be broken)
    paths = list(folders) if isinstance(folders, Iterable) and not isinstance(folders, str) else [folders]
    if need is not None:
        one_of(need, Need, "need", "for example Need(max_recall_loss=0.1)")
    if not paths:
        raise InputError("no run to advise from", got=paths, fix="give at least one run folder")
    wanted, stated = completed(need)
    sources = [open_source(p, chain, cache, reads_alone=not fresh) for p in paths]
    return advise_on(sources, wanted, stated=stated, fresh=fresh, monitor=monitor or SilentMonitor())


def advise_on(sources: list[Source], need: Need, *, stated: bool, fresh: bool, monitor: Monitor) -> Advice:
    """Advise from opened runs; see `advise`."""
    # Texts in the place of a truth cannot be drawn anew.
    fresh = fresh and not any(s.missing or is_on_texts(s) for s in sources)
    books = {resolved(s.folder): s.books for s in sources}
    with ExitStack() as held:
        for folder in books.values() if fresh else ():  # reading alone needs no lock: a run may be in progress
            held.enter_context(folder.hold())
        field = field_of(sources, need)
        decision = decision_of(sources, field, need)
        again = judge_again(field, need, decision, monitor) if fresh else None
        if decision.status == "decided" and again is not None and not again.confirmed:
            decision = replace(decision, status="undecided", reason="unconfirmed")
        data = _data(sources, field, need, decision, again, stated=stated)
        keep(sources[0].books, data)
    return Advice(decision.status, decision.reason, data["take"], data["leader"], data["runner_up"], data)


def completed(need: Need | None) -> tuple[Need, bool]:
    """Return the need, or the default if none is stated; and whether one was.

    Raises
    ------
    InputError : nothing is stated per sequence, for which there is no default.
    """
    wanted = need or Need()
    if wanted.states_something:
        return wanted, True
    if wanted.per == "sequence":
        raise InputError("nothing is wanted of the student", fix="state a need, for example a largest recall loss")
    return replace(wanted, max_recall_loss=DEFAULT_LOSS), False


def keep(books: RunFolder, data: Json) -> None:
    """Write advice.json."""
    write_atomic(books.root / "advice.json", json.dumps(plain(data), indent=1) + "\n")
    books.push()


def decision_of(sources: list[Source], field: Field, need: Need) -> Decision:
    """Decide on the runs' own rows; an unfinished run is never decided."""
    decision = decide(field.arms, field.design, need, field.baseline)
    early = any(s.missing for s in sources)
    if early and (decision.status == "decided" or (decision.reason == "one_seed" and _planned_seeds(sources) > 1)):
        return replace(decision, status="undecided", reason="partial")
    return decision


def _planned_seeds(sources: list[Source]) -> int:
    return len({c.seed for s in sources for c in s.chain.cells if c.seed is not None})


def _so_far(sources: list[Source], field: Field) -> Json:
    """Return how many seeds there are of how many, where cells are missing."""
    if not any(s.missing for s in sources):
        return {}
    return {"seeds_so_far": [len(field.seeds), max(_planned_seeds(sources), len(field.seeds))]}


def _data(
    sources: list[Source], field: Field, need: Need, decision: Decision, again: Again | None, *, stated: bool
) -> Json:
    """Return the content of advice.json (docs, Advice)."""
    return {
        "schema": SCHEMA,
        "runs": [s.name for s in sources],
        "folders": [str(s.folder) for s in sources],
        "results": [s.digest for s in sources],
        "chain": sources[0].chain.context.name,
        "per": unit_of(sources[0], need),
        "need": {**asdict(need), "margin": need.indifference, "stated": stated},
        "objective": need.objective,
        **({"reference": sources[0].reference} if sources[0].reference else {}),
        "error": ERROR,
        **_design(field),
        **decided(field, decision),
        **_so_far(sources, field),
        "baseline": field.found[field.baseline].id,
        "expected": _expected(field, need, decision, again),
        "candidates": [_candidate(e, c) for e, c in zip(field.found, decision.candidates, strict=True)],
        "checks": checks_of(field, need, decision, again),
        "excluded": [_excluded(x) for x in field.excluded],
        "lacking": field.lacking,
        "missing": [cell for s in sources for cell in s.missing],
        "shared_prompts": any(s.shared_prompts for s in sources),
        "pilot": None,
    }


def _design(field: Field) -> Json:
    """Return how many seeds and rows are behind every figure, and prompts where those are a sample."""
    seeds = 0 if field.seeds == [None] else len(field.seeds)
    strata = field.design.strata
    prompts = {"prompts": strata.count} if isinstance(strata, Clusters) else {}
    return {"seeds": seeds, "rows": field.design.n, **prompts}


def decided(field: Field, decision: Decision) -> Json:
    """Return the decision with its candidates by their ids."""
    found = field.found
    cheaper = None if decision.cheaper is None else found[decision.cheaper]
    return {
        "status": decision.status,
        "reason": decision.reason,
        "take": found[decision.leader].id if decision.status == "decided" else None,
        "leader": found[decision.leader].id,
        "runner_up": None if decision.runner_up is None else found[decision.runner_up].id,
        "contenders": [found[g].id for g in decision.contenders],
        "cheaper": None if cheaper is None or cheaper.is_adopted else cheaper.id,  # no contender's cost is known
        "more": None if decision.more is None else asdict(decision.more),
    }


def as_setting(cell: Cell) -> Json:
    """Name a candidate as advice.json does."""
    return {
        "id": cell.group,
        "training": cell.training,
        **({} if cell.baseline is None else {"baseline": cell.baseline}),
        "selectivity": None if cell.selectivity is None else cell.selectivity.to_json(),
        **({} if cell.distillation is None else cell.distillation.variant),
        "decoding": None if cell.decoding is None else cell.decoding.to_json(),
        **({} if cell.origin is None else {"adopted": cell.origin["adopted"]}),
    }


def _candidate(entry: Entry, c: Candidate) -> Json:
    return {
        **as_setting(entry.cell),
        "id": entry.id,
        "run": resolved(entry.source.folder).name,
        **_standing(c),
        "p_best": c.p_best,
        "precision_gain": figure_json(c.gain),
        "recall_loss": figure_json(c.loss),
        "score": figure_json(c.score),
        "cost": entry.cost,
    }


def _standing(c: Candidate) -> Json:
    """Return what the words of an answer need of a candidate: whether and by how much it meets the need, and leads."""
    slack = {name: figure_json(x) for name, x in c.slack.items()}
    return {"feasible": c.feasible, "objective": figure_json(c.objective), "slack": slack}


def _excluded(x: Excluded) -> Json:
    return {**as_setting(x.cell), "reason": x.reason}


def _expected(field: Field, need: Need, decision: Decision, again: Again | None) -> Json:
    """Return the leader's figures on data that did not choose it, and what data that is."""
    if again is not None:
        return {
            "on": "fresh rows",
            "leader": field.found[again.leader].id,
            "precision": figure_json(again.precision),
            "recall": figure_json(again.recall),
            "precision_gain": figure_json(again.gain),
            "recall_loss": figure_json(again.loss),
            "lead": figure_json(again.lead),
        }
    found = left_out(field.arms, field.design, need, field.baseline)
    lead = figure_json(decision.lead)
    if found is None:
        c = decision.candidates[decision.leader]
        figures = {"precision_gain": figure_json(c.gain), "recall_loss": figure_json(c.loss)}
        return {"on": "the rows that chose it", **figures, "lead": lead}
    gain, loss, agreeing = found
    figures = {"precision_gain": figure_json(gain), "recall_loss": figure_json(loss)}
    return {"on": "seeds left out of the choice", "agreeing": agreeing, **figures, "lead": lead}


def answer(
    folder: RunFolder,
    name: str,
    plan: Plan,
    chain: ChainPlan,
    store: ArtifactStore,
    records: Mapping[str, Mapping[str, Any]],
    missing: Sequence[str],
) -> Json | None:
    """Decide for one chain of a run that has just been judged.

    Parameters
    ----------
    records : cells of results.json, by id. missing : ids of the chain's cells that are not judged yet.

    Returns
    -------
    dict : as advice.json (docs, Advice), without costs and expected figures; `why` says why there is no candidate.
        None for maps, and where nothing was distilled.
    """
    own = [c for c in chain.cells if c.origin is None]
    if chain.maps or not any(c.training == "distilled" for c in own):
        return None
    source = Source(folder, name, plan, replace(chain, cells=own), store, records, "", tuple(missing))
    need, _ = completed(None)
    try:
        field = field_of([source], need, priced=False)
    except InputError as e:
        return {"status": "undecided", "why": e.what + (f"; {e.fix}" if e.fix else "")}
    decision = decision_of([source], field, need)
    candidates = zip(field.found, decision.candidates, strict=True)
    return {
        **decided(field, decision),
        **_so_far([source], field),
        **_design(field),
        "per": unit_of(source, need),
        "objective": need.objective,
        "need": {"max_recall_loss": need.max_recall_loss, "margin": need.indifference},
        "candidates": [{**as_setting(e.cell), **_standing(c)} for e, c in candidates],
    }
