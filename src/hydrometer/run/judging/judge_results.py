"""Results of a judgement, in the schema of a run: cells, contrasts, groups of one cell each, one chain."""

from __future__ import annotations

from dataclasses import asdict
from functools import cached_property
from typing import Any

from hydrometer.core.spec import Selectivity
from hydrometer.core.statistics.estimate import Contrast, Estimate
from hydrometer.core.statistics.sampling_design import PromptsAre
from hydrometer.metrics.held_out import Compared, contrast
from hydrometer.metrics.plausibility import implausible
from hydrometer.models.finite_selectivity import canonical
from hydrometer.run.graph.outcome import Outcome
from hydrometer.run.graph.stage_graph import Plan
from hydrometer.run.judging.judge_graph import NAME
from hydrometer.run.judging.question import Question
from hydrometer.run.results.provenance import versions
from hydrometer.stages.cells import Cell
from hydrometer.stages.given_nodes import JudgeGivenNode
from hydrometer.stages.judge_files import load_metrics
from hydrometer.stages.judge_given import load_compared, load_exhibit
from hydrometer.stages.statistics.spread import NO_SPREAD
from hydrometer.store.artifacts import ArtifactStore, content_key
from hydrometer.store.migrate import SCHEMA
from hydrometer.store.records import RunFolder, plain

__all__ = ["write_results"]

Json = dict[str, Any]


def write_results(
    folder: RunFolder, spec: Json, question: Question, plan: Plan, store: ArtifactStore, outcome: Outcome
) -> None:
    """Write records, exhibits and results.json of what is judged so far; `spec` is what was asked."""
    cells = [_JudgedCell(question, plan, store, outcome, c) for c in plan.cells if c.judge not in outcome.left]
    for c in cells:
        folder.put("records", c.cell.id, c.record)
        if c.reason is None and (shown := load_exhibit(store.path("judge", c.cell.judge))) is not None:
            folder.put("exhibits", c.cell.id, shown)
    missing = [c.id for c in plan.cells if c.judge in outcome.left]
    figures = {c.cell.id: c.metrics for c in cells if c.reason is None}
    folder.write_results(
        {
            "schema": SCHEMA,
            "name": NAME,
            "specs": [spec],
            "spec_hashes": [content_key(plain(spec))],
            "versions": versions(),
            **({"partial": {NAME: missing}} if missing else {}),
            "cells": [c.record for c in cells],
            "contrasts": [asdict(c) for c in _contrasts(cells)],
            "summary": {
                "groups": {c.cell.id: c.group for c in cells},
                "chains": {NAME: _chain(question, plan)},
                "findings": [f.to_json() for f in implausible(NAME, figures)],
            },
        }
    )


class _JudgedCell:
    """One judged model with its figures, or why it has none."""

    def __init__(self, question: Question, plan: Plan, store: ArtifactStore, outcome: Outcome, cell: Cell) -> None:
        node = plan.nodes[cell.judge]
        if not isinstance(node, JudgeGivenNode):
            raise TypeError(f"{cell.id} is not judged as it is")
        self.node, self.cell, self.store = node, cell, store
        self.prompts_are: PromptsAre = question.prompts_are
        self.label = question.chain.model(node.law.role).label
        self.reason = outcome.failed.get(cell.judge)

    @property
    def law(self) -> tuple[str, Selectivity | None]:
        """What is judged, whatever it is called."""
        return self.node.law.key, canonical(self.cell.decoding)

    @cached_property
    def metrics(self) -> dict[str, Estimate]:
        return {} if self.reason is not None else load_metrics(self.store.path("judge", self.cell.judge))

    @cached_property
    def compared(self) -> dict[str, Compared]:
        if self.reason is not None:
            return {}
        return load_compared(self.store.path("judge", self.cell.judge), self.metrics, self.prompts_are)

    @cached_property
    def record(self) -> Json:
        figures = None if self.reason is not None else {k: v.to_json() for k, v in self.metrics.items()}
        seconds = 0.0
        if figures is not None:
            seconds = sum(float(self.store.meta(*stage)["seconds"]) for stage in dict.fromkeys(self.node.behind()))
        found = self.cell.record(figures, self.reason, seconds, self.node.artifacts())
        return {**found, "model": self.label, "artifacts": {**self.node.artifacts(), "truth": []}}

    @property
    def group(self) -> Json:
        c = self.cell
        return {
            "chain": NAME,
            "role": c.role,
            "level": c.level,
            "training": None,
            "selectivity": None,
            "decoding": None if c.decoding is None else c.decoding.to_json(),
            "model": self.label,
            "seeds": int(self.reason is None),
            "unseen": None,
            "failed": int(self.reason is not None),
            "metrics": {k: _plain(v) for k, v in self.metrics.items()},
        }


def _contrasts(cells: list[_JudgedCell]) -> list[Contrast]:
    """Every student's cell minus the truth, then minus the first student's as it is.

    KLs are to the truth already. Of one model twice there is nothing to compare.
    """
    truths = [c for c in cells if c.cell.role == "truth"]
    students = [c for c in cells if c.cell.role == "student"]
    pairs = [(c, truths[0]) for c in students if truths] + [(c, students[0]) for c in students[1:]]
    return [
        contrast(a.cell.id, b.cell.id, metric, a.compared[metric], of_b)
        for a, b in pairs
        if a.law != b.law
        for metric, of_b in b.compared.items()
        if metric in a.compared and not (b.cell.role == "truth" and metric.startswith("kl_"))
    ]


def _plain(e: Estimate) -> Json:
    return {
        "value": e.value,
        "se": e.se,
        "se_mc": e.se_mc,
        "df": None if e.se is None else e.freedom,
        "ci95": e.interval(),
        "unit": e.unit,
        "n_neg_inf": e.n_neg_inf,
        **NO_SPREAD,
    }


def _chain(q: Question, plan: Plan) -> Json:
    c, anchor = q.chain, q.anchor
    truth = next((cell.id for cell in plan.cells if cell.role == "truth"), None)
    held_out = None if c.held_out is None else len(c.held_out.answers)
    described = dict(zip((m.label for m in c.models), q.described, strict=True))
    return {
        "family": "causal_lm",
        "truth": "held-out text" if anchor is None or held_out is not None else described[anchor.label],
        "kind": "sequences",
        "unit": "nats",
        "seeds": 1,
        "truth_group": truth,
        "teacher_group": None,
        "direct_group": None,
        "neutral_group": None,
        "gate": {"passed": None, "contrast": None, "reason": "models judged as they are"},
        "tradeoff": [],
        "control": [],
        "judged": {
            "models": described,
            "reference": anchor.label if anchor is not None and held_out is not None else None,
            "held_out_rows": held_out,
            "prompts": q.n_prompts,
            "prompts_are": q.prompts_are,
            "chat": q.chat,
            "answers": None if anchor is None else c.rows,
            "max_new_tokens": None if anchor is None else c.models[0].max_new_tokens,
            "seed": q.seed,
            "dtype": c.dtype,
            "notes": list(q.notes),
        },
    }
