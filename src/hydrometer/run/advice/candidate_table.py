"""Candidates of all folders made comparable: same truth, rows and seeds."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

from hydrometer.core.errors import InputError
from hydrometer.run.advice.arms import arm_of, common_seeds, design_of, kept_rows
from hydrometer.run.advice.candidates import Entry, Excluded, Source, entries, is_finite
from hydrometer.stages.given_nodes import JudgeGivenNode
from hydrometer.stages.statistics.covariance import Arm, Design
from hydrometer.stages.statistics.decision import Need
from hydrometer.store.storage_uri import resolved

__all__ = ["Field", "field_of", "is_on_texts", "unit_of"]


@dataclass(frozen=True, slots=True)
class Field:
    """Comparable candidates, and what they were judged on.

    Attributes
    ----------
    found, excluded : students that can be candidates, and those that cannot.
    seeds : common to all candidates.
    lacking : by candidate id, seeds that it lacks and others have.
    names : metrics: precision, recall and, where the need has one, the score.
    arms : figures of `found`, in the same order.
    baseline : index of the candidate that gains and losses are relative to; never an adopted one.
    """

    found: list[Entry]
    excluded: list[Excluded]
    seeds: list[int | None]
    lacking: dict[str, list[int]]
    names: tuple[str, ...]
    arms: list[Arm]
    design: Design
    baseline: int


def unit_of(source: Source, need: Need) -> Literal["token", "sequence", "point"]:
    """Return what nats are counted per."""
    first = next((c for c in source.chain.cells if c.role == "truth"), source.chain.cells[0])
    metrics = source.cells.get(first.id, {}).get("metrics", {})
    if "recall_per_token" not in metrics:
        if need.per == "sequence":
            raise InputError("this chain's outcomes are points, not sequences", got="per sequence", fix="leave it out")
        return "point"
    return need.per


def _same_truth(sources: list[Source]) -> None:
    first = sources[0]
    for other in sources[1:]:
        if other.chain.truth.key != first.chain.truth.key:
            raise InputError(
                "the runs have different truths", got=f"{first.folder}, {other.folder}", fix="advise on each by itself"
            )
        if set(other.truth_rows) != set(first.truth_rows):
            raise InputError(
                "the runs were judged on different rows of the truth",
                got=f"{first.folder}, {other.folder}",
                fix="runs with equal data.evaluate, seeds and resample can be compared",
            )


def field_of(sources: list[Source], need: Need, *, priced: bool = True) -> Field:
    """Gather the candidates of all sources; `priced` adds what each cost.

    Raises
    ------
    InputError : different truths or rows, no candidate, no baseline, or no such score.
    """
    _same_truth(sources)
    suffix = "_per_token" if unit_of(sources[0], need) == "token" else ""
    names = (f"{_precision(sources[0])}{suffix}", f"recall{suffix}", *(() if need.score is None else (need.score,)))
    found: list[Entry] = []
    excluded: list[Excluded] = []
    for source in sources:
        usable, others = entries(source, names[1], names[0], priced=priced)
        # Two folders may hold the same student; it is one candidate.
        known = {c.judge for e in found for c in e.cells.values()}
        if len(sources) > 1:
            usable = [replace(e, id=f"{resolved(source.folder).name}:{e.id}") for e in usable]
        found += [e for e in usable if e.cell.judge not in known]
        excluded += others
    found.sort(key=lambda e: e.is_adopted)
    found, excluded = _with_score(found, excluded, need)
    if not found:
        raise InputError(
            "no student of the run can be a candidate",
            got=excluded[0].reason if excluded else "no student",
            fix="see the failed cells, or add settings that cut nothing off",
        )
    own = [(i, e) for i, e in enumerate(found) if not e.is_adopted]
    baseline = next((i for i, e in own if e.is_neutral), None)
    if baseline is None:
        plain_direct = (i for i, e in own if e.cell.training == "direct" and e.cell.decoding is None)
        baseline = next(plain_direct, None)
    if baseline is None:
        raise InputError(
            "there is no baseline: neither the student distilled from the unselected teacher nor the direct one has "
            "figures",
            got="; ".join(x.reason for x in excluded),
            fix="run again, or add temperature 1 to selectivity",
        )
    found, excluded = _with_seeds(found, excluded)
    seeds = common_seeds(found)
    if not seeds:
        raise InputError("the candidates have no seed in common", fix="run again to retry the failed cells")
    design, lengths = design_of(sources[0], kept_rows(found[baseline]))
    arms = [arm_of(e, seeds, names, lengths, lambda c, e=e: (c.judge, e.figures[c.seed])) for e in found]
    return Field(found, excluded, seeds, _lacking(found), names, arms, design, baseline)


def _precision(source: Source) -> str:
    """Return the name of precision: a reference's own where the truth is texts."""
    return "precision_reference" if is_on_texts(source) else "precision"


def is_on_texts(source: Source) -> bool:
    """Whether texts stand in the place of a chain's truth."""
    return any(isinstance(n, JudgeGivenNode) and n.held_out for n in source.plan.judges_of(source.chain.cells))


def _with_seeds(found: list[Entry], excluded: list[Excluded]) -> tuple[list[Entry], list[Excluded]]:
    """Exclude adopted models that share no seed with the candidates before them."""
    kept = [e for e in found if not e.is_adopted]
    for entry in (e for e in found if e.is_adopted):
        if common_seeds([*kept, entry]):
            kept.append(entry)
        else:
            excluded = [*excluded, Excluded(entry.cell, "it has no seed in common with the other candidates")]
    return kept, excluded


def _lacking(found: list[Entry]) -> dict[str, list[int]]:
    """Return, by candidate id, the seeds that it lacks and others have."""
    seen = {s for e in found for s in e.figures if s is not None}
    lacks = {e.id: sorted(seen.difference(e.figures)) for e in found if None not in e.figures}
    return {name: seeds for name, seeds in lacks.items() if seeds}


def _with_score(found: list[Entry], excluded: list[Excluded], need: Need) -> tuple[list[Entry], list[Excluded]]:
    """Keep candidates that have the score; raise InputError if none has."""
    if need.score is None:
        return found, excluded
    having = [e for e in found if all(is_finite(m.get(need.score)) for m in e.figures.values())]
    if not having:
        known = sorted({k for e in found for m in e.figures.values() for k in m})
        raise InputError("no candidate has this score", got=need.score, fix="known: " + ", ".join(known))
    without = [Excluded(e.cell, f"it has no {need.score}") for e in found if e not in having]
    return having, excluded + without
