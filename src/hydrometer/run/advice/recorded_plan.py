"""A finished chain as its records and artifacts tell of it: advice that draws nothing opens no model and no file of it.

Rows of language models are stored, and cells name what is behind them (docs, Schema), so that what advice reads of a
plan can be had without planning, whose keys need the models' content and the versions of their libraries.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from hydrometer.core.distillation import Distillation
from hydrometer.core.errors import SpecError, StoreError
from hydrometer.core.rng import Stream
from hydrometer.core.spec import Selectivity
from hydrometer.models.families import family_of
from hydrometer.report.values import items, mapping, text
from hydrometer.run.graph.reopen import spec_of
from hydrometer.run.graph.spec_merge import merge
from hydrometer.run.graph.stage_graph import ChainPlan, Plan
from hydrometer.stages.cells import Cell
from hydrometer.stages.nodes import Context, FitNode, JudgeNode, LawRef, Rows
from hydrometer.store.artifacts import ArtifactStore, content_key
from hydrometer.store.records import RunFolder

__all__ = ["recorded_plan"]

_ANY = Stream(0)  # nothing is drawn
_KEY = re.compile(r"[0-9a-f]{32}")


def recorded_plan(books: RunFolder, results: Mapping[str, Any], name: str, store: ArtifactStore) -> Plan | None:
    """Return a chain's judgements and last fits as its cells name them.

    Returns
    -------
    Plan : nothing can be made of it. None where records do not tell enough: of rows that are not stored, of texts in
        the place of a truth, of baselines, of students that draw rows of their own, of a run that is not whole, and of
        one of an earlier release.
    """
    cells = [c for c in map(mapping, results["cells"]) if c.get("chain") == name]
    if "partial" in results or not all(_tells(c) for c in cells):
        return None
    try:
        return _plan(books, cells, name, store)
    except (StoreError, SpecError, KeyError, TypeError, _Untold):
        return None


def _plan(books: RunFolder, cells: Sequence[Mapping[str, Any]], name: str, store: ArtifactStore) -> Plan:
    known = {text(c.get("id")): c for c in cells}
    accepted = books.accepted()
    spec = merge([spec_of(a, Path.cwd()) for a in accepted]).chains[name]
    truth = LawRef("truth", text(mapping(accepted[0].get("truths")).get(name)), "truth")
    reader = _Reader(Context(name, spec, family_of(spec)), truth, store, known)
    chain = ChainPlan(reader.context, truth, {}, [_cell(c) for c in cells])
    plan = Plan(chains={name: chain})
    nodes = [(cell, reader.judged(cell)) for cell in chain.cells]
    plan.nodes |= {node.key: node for _, node in nodes}
    used = {node.law for cell, node in nodes if known[cell.id].get("status") == "ok"}
    for cell, node in nodes:
        own = cell.training is not None and cell.origin is None and cell.decoding is None
        if own and node.law in used:
            plan.nodes[node.law.key] = reader.fitted(cell, node.law)
    return plan


class _Untold(Exception):
    """The records do not tell what was asked."""


def _tells(c: Mapping[str, Any]) -> bool:
    """Whether a cell names stored rows, and what its model was trained on is drawn rows alone."""
    artifacts = mapping(c.get("artifacts"))
    stored = bool(items(mapping(artifacts.get("draws")).get("truth")))
    return stored and c.get("training") != "baseline" and "student" not in text(c.get("prefix_source"))


def _key(name: object) -> str:
    """Return an artifact's key. Raises _Untold: results hold no such name, and might lead out of the store."""
    found = re.fullmatch(rf"[a-z_]+-({_KEY.pattern})", text(name))
    if found is None:
        raise _Untold
    return found[1]


def _cell(c: Mapping[str, Any]) -> Cell:
    decoding = c.get("decoding")
    place: dict[str, Any] = {k: c[k] for k in ("id", "group", "chain", "seed", "level", "role", "training", "parent")}
    return Cell(
        **place,
        origin=c.get("origin"),
        distillation=None if c.get("selectivity") is None else Distillation.from_json(c),
        decoding=None if decoding is None else Selectivity(**decoding),
        judge=_key(mapping(c.get("artifacts")).get("judge")),
    )


@dataclass(frozen=True, slots=True)
class _Reader:
    context: Context
    truth: LawRef
    store: ArtifactStore
    known: Mapping[str, Mapping[str, Any]]

    def judged(self, cell: Cell) -> JudgeNode:
        artifacts = mapping(self.known[cell.id].get("artifacts"))
        law, draws = self._law(cell.id), mapping(artifacts.get("draws"))
        on_truth, own = ([_key(k) for k in items(draws.get(side))] for side in ("truth", "own"))
        return JudgeNode(
            cell.judge,
            self.context,
            law,
            cell.decoding,
            self.truth,
            self._judged_on(self.truth, on_truth),
            self._judged_on(law, own),
            None,
            (),
            (),
        )

    def fitted(self, cell: Cell, law: LawRef) -> FitNode:
        """Read a fit's training rows: the first draws among its inputs, then those that the epoch is chosen by."""
        d, sizes = cell.distillation, self.context.family.sizes(self.context.spec)
        teacher = None if d is None else self._law(text(cell.parent))
        taught = d is not None and d.prefixes.name == "teacher"
        whose = teacher if taught and teacher is not None else self.truth
        inputs = map(text, items(self._meta("fit", law.key).get("inputs")))
        blocks = [k for k in inputs if _KEY.fullmatch(k) and self.store.has("draw", k)]
        data, rest = self._first(blocks, sizes["distill" if taught else "train"])
        held_out, _ = self._first(rest, sizes["validate"])
        on_data = _rows(whose, data, sizes["distill" if taught else "train"], "train")
        validate = _rows(whose, held_out, sizes["validate"], "train") if held_out else None
        level = self.context.family.levels(self.context.spec)[-1]
        return FitNode(law.key, self.context, level, self.truth, on_data, validate, teacher, d, _ANY)

    def _law(self, cell_id: str) -> LawRef:
        """Return the law of a cell before it is decoded."""
        if cell_id not in self.known:
            raise _Untold
        c = self.known[cell_id]
        fit = mapping(c.get("artifacts")).get("fit")
        if fit is not None:
            return LawRef("fit", _key(fit), text(c.get("role")))
        return self.truth if c.get("role") == "truth" else LawRef("given", cell_id, text(c.get("role")))

    def _meta(self, stage: str, key: str) -> Mapping[str, Any]:
        if not self.store.has(stage, key):
            raise _Untold
        return self.store.meta(stage, key)

    def _judged_on(self, law: LawRef, blocks: Sequence[str]) -> Rows:
        return _rows(law, blocks, self.context.family.sizes(self.context.spec)["evaluate"], "judge")

    def _first(self, blocks: list[str], n: int) -> tuple[list[str], list[str]]:
        """Split off the blocks that hold the first n rows."""
        taken = 0
        for i in range(len(blocks) + 1):
            if taken == n:
                return blocks[:i], blocks[i:]
            if i < len(blocks):
                taken += int(self._meta("draw", blocks[i])["info"]["rows"])
        raise _Untold


def _rows(law: LawRef, blocks: Sequence[str], n: int, purpose: Literal["train", "judge"]) -> Rows:
    return Rows(law, None, _ANY, n, purpose, tuple(blocks), content_key({"blocks": list(blocks)}))
