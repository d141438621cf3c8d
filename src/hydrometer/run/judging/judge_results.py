"""Results of a judgement, in the schema of a run: cells, contrasts, groups of one cell each, one chain."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from hydrometer.core.spec import Selectivity
from hydrometer.core.statistics.estimate import Contrast, Estimate
from hydrometer.core.statistics.sampling_design import Clusters, Strata
from hydrometer.metrics.held_out import contrast
from hydrometer.metrics.plausibility import implausible
from hydrometer.models.finite_selectivity import canonical
from hydrometer.models.rows.sequences import texts_exhibit
from hydrometer.run.graph.outcome import Outcome
from hydrometer.run.judging.judge_jobs import Work
from hydrometer.run.judging.judge_plan import JudgedCell, Question
from hydrometer.run.results.provenance import versions
from hydrometer.stages.judge_models import Figures, Scored, held_out_figures, reference_figures, truth_figures
from hydrometer.stages.statistics.spread import NO_SPREAD
from hydrometer.store.migrate import SCHEMA

__all__ = ["results_of"]

Json = dict[str, Any]


def results_of(
    name: str, question: Question, cells: list[JudgedCell], work: Work, outcome: Outcome, spec: Json
) -> tuple[Json, dict[str, Json]]:
    """Return the content of results.json, and exhibits by cell id."""
    reasons = {c.id: next((outcome.failed[k] for k in c.needs if k in outcome.failed), None) for c in cells}
    if cells[0].role != "student" and reasons[cells[0].id] is not None:
        # Without the truth's or the reference's scores no other cell has any.
        reasons = {k: v or reasons[cells[0].id] for k, v in reasons.items()}
    found = {c.id: _figures(question, cells, c, work) for c in cells if reasons[c.id] is None}
    records = [_record(name, c, found.get(c.id), reasons[c.id], _seconds(c, work, outcome)) for c in cells]
    contrasts = _contrasts(cells, found)
    shown = {c.id: e for c in cells if c.id in found and (e := _exhibit(question, c, work)) is not None}
    return {
        "schema": SCHEMA,
        "name": name,
        "specs": [spec],
        "versions": versions(),
        "cells": records,
        "contrasts": [asdict(c) for c in contrasts],
        "summary": {
            "groups": {c.id: _group(name, c, found.get(c.id)) for c in cells},
            "chains": {name: _chain(question, cells)},
            "findings": [f.to_json() for f in implausible(name, {k: v.metrics for k, v in found.items()})],
        },
    }, shown


def _figures(q: Question, cells: list[JudgedCell], c: JudgedCell, work: Work) -> Figures:
    ids = {name: work.scored(key) for name, key in c.ids.items()}
    texts = {name: work.scored(key) for name, key in c.texts.items()}
    if q.held_out is None:
        truth = cells[0].own
        if truth is None or c.own is None:
            raise ValueError("a cell against a truth has rows")
        own = work.rows(c.own)
        rows = own if c is cells[0] else work.rows(truth)
        return truth_figures(rows, own, ids or None, texts or None)
    found = held_out_figures(texts["law_on_text"], _text_strata(q))
    if c.own is not None:
        as_texts = "law_on_law" in texts
        from_scores: dict[str, Scored] = texts if as_texts else ids
        more = reference_figures(
            work.rows(c.own), from_scores["law_on_law"], from_scores["reference_on_law"], as_texts=as_texts
        )
        found = Figures(found.metrics | more.metrics, found.columns | more.columns)
    return found


def _text_strata(q: Question) -> Strata | None:
    """Rows of held-out text by prompt; documents follow one prompt, and each is a row of its own."""
    if q.held_out is None or q.n_prompts == 1:
        return None
    index = q.held_out.texts.prompt_index
    return Clusters(index) if q.prompts_are == "sample" else index


def _record(name: str, c: JudgedCell, figures: Figures | None, reason: str | None, seconds: float) -> Json:
    return {
        "id": c.id, "group": c.id, "chain": name, "level": 0 if c.role == "truth" else 1, "role": c.role,
        "training": None, "parent": c.parent, "selectivity": None,
        "decoding": None if c.decoding is None else c.decoding.to_json(), "prefix_source": None, "loss": None,
        "seed": None, "model": c.law.label, "status": "failed" if figures is None else "ok", "reason": reason,
        "metrics": {} if figures is None else {k: v.to_json() for k, v in figures.metrics.items()},
        "seconds": round(seconds, 3) if figures is not None else 0.0,
    }  # fmt: skip


def _seconds(c: JudgedCell, work: Work, outcome: Outcome) -> float:
    keys = [("score", k) for k in {*c.ids.values(), *c.texts.values()}]
    keys += [("draw", k) for k in (c.own.blocks if c.own else ())]
    return sum(float(work.store.meta(s, k)["seconds"]) for s, k in keys if k not in outcome.failed)


def _contrasts(cells: list[JudgedCell], found: dict[str, Figures]) -> list[Contrast]:
    """Every student's cell minus the truth, then minus the first student's as it is.

    KLs are to the truth already. Of one model twice there is nothing to compare.
    """
    students = [c for c in cells if c.role == "student"]
    pairs = [(c, cells[0]) for c in students if cells[0].role == "truth"] + [(c, students[0]) for c in students[1:]]
    return [
        contrast(a.id, b.id, metric, found[a.id].columns[metric], column)
        for a, b in pairs
        if a.id in found and b.id in found and _law(a) != _law(b)
        for metric, column in found[b.id].columns.items()
        if metric in found[a.id].columns and not (b.role == "truth" and metric.startswith("kl_"))
    ]


def _law(c: JudgedCell) -> tuple[str, Selectivity | None]:
    return c.law.key, canonical(c.decoding)


def _group(name: str, c: JudgedCell, figures: Figures | None) -> Json:
    def plain(e: Estimate) -> Json:
        df = None if e.se is None else e.freedom
        return {"value": e.value, "se": e.se, "se_mc": e.se_mc, "df": df, "ci95": e.interval(), "unit": e.unit,
                "n_neg_inf": e.n_neg_inf, **NO_SPREAD}  # fmt: skip

    return {
        "chain": name, "role": c.role, "level": 0 if c.role == "truth" else 1, "training": None, "selectivity": None,
        "decoding": None if c.decoding is None else c.decoding.to_json(), "model": c.law.label,
        "seeds": 0 if figures is None else 1, "unseen": None, "failed": int(figures is None),
        "metrics": {} if figures is None else {k: plain(v) for k, v in figures.metrics.items()},
    }  # fmt: skip


def _chain(q: Question, cells: list[JudgedCell]) -> Json:
    truth = next((c.id for c in cells if c.role == "truth"), None)
    described = "held-out text" if q.anchor is None or q.held_out is not None else q.anchor.model.resolved.description
    return {
        "family": "causal_lm", "truth": described, "kind": "sequences", "unit": "nats", "seeds": 1,
        "truth_group": truth, "teacher_group": None, "direct_group": None, "neutral_group": None,
        "gate": {"passed": None, "contrast": None, "reason": "models judged as they are"},
        "tradeoff": [], "control": [],
        "judged": {
            "models": {law.label: law.model.resolved.description for law in q.laws},
            "reference": None if q.held_out is None or q.anchor is None else q.anchor.label,
            "held_out_rows": None if q.held_out is None else len(q.held_out.texts.texts),
            "prompts": q.n_prompts, "prompts_are": q.prompts_are, "chat": q.chat,
            "answers": None if q.anchor is None else q.rows,
            "max_new_tokens": None if q.anchor is None else q.laws[0].max_new_tokens,
            "seed": q.seed, "dtype": q.dtype, "notes": list(q.notes),
        },
    }  # fmt: skip


def _exhibit(q: Question, c: JudgedCell, work: Work) -> Json | None:
    """The first answers as text, with their log-probabilities under the truth or the reference."""
    from hydrometer.models.causal_lm.data.answer_text import prompt_ends

    if c.own is None:
        return None
    rows = work.rows(c.own)
    name = "truth_on_law" if q.held_out is None else "reference_on_law"
    scores = work.scored((c.ids or c.texts)[name]).log_prob
    ends = prompt_ends(c.law.prompts, c.law.model.tokenizer)
    return texts_exhibit(
        rows, scores, lambda i: c.law.prompts.texts[int(rows.prompt_index[i])],
        lambda i: ends[int(rows.prompt_index[i])].decode(rows.row(i).tolist()),
    )  # fmt: skip
