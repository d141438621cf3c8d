"""Judge a model as it is: figures of token ids where vocabularies are equal, of texts where they are not.

    its own rows, the truth's rows, or held-out texts   --score, score_texts-->   columns   --judge-->   figures

Scores by token ids are those of every run (`stages.score`), with their control variates, prefixes and rounding. Scores
of texts are plain: a canonical tokenisation has no expectations along its rows. Shapes: N rows.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from pathlib import Path

import numpy as np

from hydrometer.core.array_types import Floats, Ints
from hydrometer.core.io.arrays import open_arrays
from hydrometer.core.io.yaml_io import artifact_json
from hydrometer.core.statistics.controls import Controls
from hydrometer.core.statistics.estimate import Estimate
from hydrometer.core.statistics.estimators import share_estimate
from hydrometer.core.statistics.sampling_design import Clusters, PromptsAre, Strata
from hydrometer.metrics.frontiers.densities import curves
from hydrometer.metrics.held_out import Column, Compared, share_outside
from hydrometer.metrics.likelihood import Scores
from hydrometer.models.base import Samples
from hydrometer.models.capabilities import TextScores, given_models
from hydrometer.models.rows.sequences import Sequences, texts_exhibit
from hydrometer.stages.artifact_loader import ArtifactLoader, Outline
from hydrometer.stages.given_nodes import JudgeGivenNode, ScoreTextsNode
from hydrometer.stages.judge import rounding_bias, scored_figures, sequence_figures
from hydrometer.stages.judge_files import ROWS_FILE, kept_rows, write_metrics
from hydrometer.stages.score import Columns, load_columns, scores_from
from hydrometer.stages.stage import Rows
from hydrometer.stages.statistics.groups import TruthRows

__all__ = ["judge_given", "load_compared", "load_exhibit", "score_texts", "text_figures", "text_rows_of"]


SCORES_FILE, COLUMNS_FILE, EXHIBIT_FILE = "scores.npz", "columns.npz", "exhibit.json"
_SHOWN = 16  # texts of an exhibit


def score_texts(node: ScoreTextsNode, bench: ArtifactLoader, folder: Path) -> dict[str, object]:
    """Score one block of texts under one law. Raises StageError, DataError."""
    context = node.context
    precision = context.family.precision(context.spec, "judge")
    law = bench.law(context, node.law, precision, node.decoding)
    family = given_models(context.family)
    if node.writer is None or node.block is None:
        found = family.score_texts(context.spec, law, range(node.start, node.start + node.n), node.law.role)
    else:
        rows = bench.block(context, node.block, node.n)
        found = family.score_texts(context.spec, law, rows, node.writer.role)
    np.savez(folder / SCORES_FILE, **{f.name: getattr(found, f.name) for f in fields(found)})
    return {"rows": node.n}


def _load_texts(bench: ArtifactLoader, keys: tuple[str, ...]) -> TextScores:
    parts: list[Mapping[str, Floats]] = []
    for key in keys:
        with open_arrays(bench.store.path("score_texts", key) / SCORES_FILE) as archive:
            parts.append({name: archive[name] for name in archive.files})
    return TextScores(**{f.name: np.concatenate([p[f.name] for p in parts]) for f in fields(TextScores)})


@dataclass(slots=True)
class _Found:
    """Figures, columns that models are compared by, frontiers, and what comparisons within a run need of the rows."""

    metrics: dict[str, Estimate] = field(default_factory=dict[str, Estimate])
    columns: dict[str, Column] = field(default_factory=dict[str, Column])
    curves: Mapping[str, object] | None = None
    shown: Floats | None = None
    rows: Mapping[str, Floats] = field(default_factory=dict[str, Floats])

    def add(self, columns: Mapping[str, Column], *, compared: bool = True) -> None:
        self.metrics |= {name: c.estimate() for name, c in columns.items()}
        if compared:
            self.columns |= columns


def judge_given(node: JudgeGivenNode, bench: ArtifactLoader, folder: Path) -> dict[str, object]:
    """Judge one model and write its figures, the rows of those that are compared, and its exhibit into `folder`."""
    found = _on_text(node, bench) if node.held_out else _against_truth(node, bench)
    write_metrics(found.metrics, folder)
    _save_columns(found, folder)
    if found.rows:
        np.savez(folder / ROWS_FILE, allow_pickle=False, **found.rows)
    if found.shown is not None:
        context = node.context
        rows = bench.head(context, node.law_rows, _SHOWN)
        prompts, answers = given_models(context.family).answers(context.spec, node.law.role, rows)
        exhibit = texts_exhibit(_sequences(rows), found.shown, prompts.__getitem__, answers.__getitem__)
        exhibit |= {} if found.curves is None else {"curves": found.curves}
        (folder / EXHIBIT_FILE).write_text(json.dumps(exhibit))
    return {"rows": node.law_rows.n}


def _against_truth(node: JudgeGivenNode, bench: ArtifactLoader) -> _Found:
    out = _Found()
    own = _drawn(node, bench)
    truth = own if node.is_anchor else _outline(node, bench, node.truth_rows)
    if node.truth_scores:
        x = load_columns([bench.store.path("score", k) for k in node.truth_scores])
        y = load_columns([bench.store.path("score", k) for k in node.law_scores]) if node.law_scores else None
        s = scores_from(truth, own, x, y)
        out.metrics |= scored_figures(s, x, y)
        out.columns |= _columns_by_ids(s)
        out.shown = s.truth_on_law
        out.rows = kept_rows(s, len(truth)) if node.as_texts else out.rows
        out.curves = curves(s) if y is not None and x.exact and y.exact else None
    else:
        out.metrics |= sequence_figures(own, None)  # the scorer saw texts, not these ids
    if node.texts.all:
        keys = node.texts
        on_own, of_own = _load_texts(bench, keys.own_rows_own), _load_texts(bench, keys.own_rows_anchor)
        on_truth, of_truth = _load_texts(bench, keys.truth_rows_own), _load_texts(bench, keys.truth_rows_anchor)
        out.add(
            {
                "precision_per_byte": _per_byte(of_own, own.strata),
                "recall_per_byte": _per_byte(on_truth, truth.strata, shared=True),
                "entropy_per_byte": _per_byte(on_own, own.strata, sign=-1.0),
            }
        )
        entropy_truth = _per_byte(of_truth, truth.strata, shared=True, sign=-1.0)
        out.add({"entropy_truth_per_byte": entropy_truth}, compared=False)
        out.metrics |= _round_trips("truth", on_truth, truth.strata) | _round_trips("own", of_own, own.strata)
        out.shown = of_own.log_prob if out.shown is None else out.shown
        if node.as_texts:
            out.rows = {**out.rows, "text_on_truth": on_truth.log_prob, "bytes": on_truth.n_bytes}
        if node.as_texts and not node.truth_scores:
            out.add({"entropy": _per_answer(on_own, own.strata, sign=-1.0)}, compared=False)
    return out


def _columns_by_ids(s: Scores) -> dict[str, Column]:
    """Return the rows of the figures that models are compared by."""
    own, truth = s.law_rows.strata, s.truth_rows.strata
    p, q = s.truth_controls, s.law_controls
    return {
        "precision": Column(s.truth_on_law, None, "nats", own, controls=q, of=(0.0, 1.0)),
        "recall": Column(s.law_on_truth, None, "nats", truth, shared=True, controls=p, of=(0.0, 1.0)),
        "entropy": Column(-s.law_on_law, None, "nats", own, controls=q, of=(-1.0, 0.0)),
        "kl_student_truth": Column(s.law_on_law - s.truth_on_law, None, "nats", own, controls=q, of=(1.0, -1.0)),
        "kl_truth_student": Column(
            s.truth_on_truth - s.law_on_truth, None, "nats", truth, shared=True, controls=p, of=(1.0, -1.0)
        ),
    }


def _on_text(node: JudgeGivenNode, bench: ArtifactLoader) -> _Found:
    """Recall on held-out text, in canonical tokenisation; with a reference, a model's own draws under it.

    Of a model that is scored without its decoding alone there is no recall, and of its own draws no entropy.
    """
    out = _Found()
    if not node.texts.truth_rows_own:
        y = load_columns([bench.store.path("score", k) for k in node.law_scores])
        _by_reference(out, _drawn(node, bench), y, is_scored=False)
        return out
    on_text = _load_texts(bench, node.texts.truth_rows_own)
    _recall(out, on_text, _held_out_strata(node))
    out.rows = {"law_on_truth": on_text.log_prob, "tokens": on_text.tokens}
    if not node.law_rows.n:
        return out
    own = _drawn(node, bench)
    if node.law_scores:
        _by_reference(out, own, load_columns([bench.store.path("score", k) for k in node.law_scores]))
        return out
    theirs, mine = _load_texts(bench, node.texts.own_rows_anchor), _load_texts(bench, node.texts.own_rows_own)
    out.add(
        {
            "precision_reference_per_byte": _per_byte(theirs, own.strata),
            "entropy_per_byte": _per_byte(mine, own.strata, sign=-1.0),
        }
    )
    out.metrics |= sequence_figures(own, None) | _round_trips("own", theirs, own.strata)
    out.shown = theirs.log_prob
    if node.as_texts:
        _by_reference_as_texts(out, own, theirs, mine)
    return out


def text_figures(on_text: TextScores, strata: Strata | None, own: Sequences, y: Columns) -> dict[str, Estimate]:
    """Return a model's figures on held-out texts and beside a reference of its vocabulary.

    Parameters
    ----------
    on_text, strata : scores of the texts under the model, and which prompt each answers.
    own, y : rows that the model drew, under it and under the reference.
    """
    out = _Found()
    _recall(out, on_text, strata)
    _by_reference(out, own, y)
    return out.metrics


def _recall(out: _Found, on_text: TextScores, strata: Strata | None) -> None:
    recall = Column(on_text.log_prob, None, "nats", strata, shared=True, canonical=True)
    out.add({"recall": recall, "recall_per_byte": _per_byte(on_text, strata, shared=True)})
    out.add({"recall_per_token": replace(recall, per=on_text.tokens, unit="nats/token")}, compared=False)
    out.metrics |= share_outside(recall) | _round_trips("truth", on_text, strata)


def _by_reference_as_texts(out: _Found, own: Sequences, theirs: TextScores, mine: TextScores) -> None:
    """Add a law's own draws, as texts, under itself and under the reference, where all models are compared so.

    No KL: a difference of two lower bounds bounds nothing.
    """
    columns = {
        "precision_reference": _per_answer(theirs, own.strata),
        "entropy": _per_answer(mine, own.strata, sign=-1.0),
    }
    out.add(columns)
    lengths = own.lengths.astype(np.float64)
    out.add({f"{k}_per_token": replace(c, per=lengths, unit="nats/token") for k, c in columns.items()}, compared=False)


def _by_reference(out: _Found, own: Sequences, y: Columns, *, is_scored: bool = True) -> None:
    """Add a law's own draws under itself and under a named reference, which is not the truth.

    Where it `is_scored` without its decoding alone, its log-probability bounds the entropy.
    """
    counted = _sequences(y.counted(own))
    controls = Controls.of(y.controls, own.strata, y.reference)
    columns = {
        "precision_reference": Column(y.other, None, "nats", own.strata, controls=controls, of=(0.0, 1.0)),
        "entropy": Column(-y.own, None, "nats", own.strata, controls=controls, of=(-1.0, 0.0)),
        "kl_student_reference": Column(y.own - y.other, None, "nats", own.strata, controls=controls, of=(1.0, -1.0)),
    }
    if not is_scored:
        columns = {"precision_reference": columns["precision_reference"], "entropy_bound": columns["entropy"]}
    out.add(columns)
    lengths = own.lengths.astype(np.float64)
    per_token = {f"{k}_per_token": replace(c, per=lengths, unit="nats/token") for k, c in columns.items()}
    out.add(per_token, compared=False)
    out.metrics |= sequence_figures(counted, y.own, controls)
    if y.other_exact is not None:
        out.metrics["precision_reference_bias"] = rounding_bias(y.other, y.other_exact, own.strata, 1.0)
    if y.own_exact is not None:
        out.metrics["entropy_bias"] = rounding_bias(y.own, y.own_exact, own.strata, -1.0)
    out.shown = y.other


def _per_answer(scored: TextScores, strata: Strata | None, *, sign: float = 1.0) -> Column:
    return Column(sign * scored.log_prob, None, "nats", strata, canonical=True)


def _per_byte(scored: TextScores, strata: Strata | None, *, shared: bool = False, sign: float = 1.0) -> Column:
    return Column(sign * scored.log_prob, scored.n_bytes, "nats/byte", strata, shared, canonical=True)


def _round_trips(name: str, scored: TextScores, strata: Strata | None) -> dict[str, Estimate]:
    """Shares of texts that are given back as they were, and of those without a boundary of tokens at the prompt."""
    shares = {f"round_trip_{name}": scored.round_trip, f"spans_prompt_{name}": scored.spans}
    return {k: replace(share_estimate(v, strata), method="canonical") for k, v in shares.items()}


def _drawn(node: JudgeGivenNode, bench: ArtifactLoader) -> Sequences:
    """Open a model's rows; what its prompts are says how errors are computed, not what was drawn."""
    rows = _sequences(bench.texts(node.context, node.law_rows))
    return rows if node.prompts_are is None else replace(rows, prompts_are=node.prompts_are)


def _outline(node: JudgeGivenNode, bench: ArtifactLoader, rows: Rows) -> Outline:
    found = bench.outline(node.context, rows)
    return Outline(found.log_prob, found.lengths, _strata_of(found.strata, node.prompts_are))


def _held_out_strata(node: JudgeGivenNode) -> Strata | None:
    return _strata_of(given_models(node.context.family).held_out_strata(node.context.spec), node.prompts_are)


def _strata_of(strata: Strata | None, prompts_are: PromptsAre | None) -> Strata | None:
    if prompts_are is None:
        return strata
    labels = strata.labels if isinstance(strata, Clusters) else strata
    return labels if labels is None or prompts_are == "fixed" else Clusters(labels)


def _sequences(rows: Samples) -> Sequences:
    if not isinstance(rows, Sequences):
        raise TypeError(f"models as they are draw sequences, not {type(rows).__name__}")
    return rows


def _save_columns(found: _Found, folder: Path) -> None:
    """Keep the rows whose plain means are the figures, and which prompts they answer: once for each side."""
    arrays: dict[str, Floats | Ints] = {}
    for name, column in found.columns.items():
        side = "truth" if column.shared else "own"
        if (rows := column.rows()) is not None:
            arrays[f"{side}/{name}"] = rows
        if column.strata is not None:
            strata = column.strata
            arrays[f"{side}.prompts"] = strata.labels if isinstance(strata, Clusters) else strata
    with (folder / COLUMNS_FILE).open("wb") as file:
        np.savez(file, allow_pickle=False, **arrays)


def load_compared(folder: Path, metrics: Mapping[str, Estimate], prompts_are: PromptsAre) -> dict[str, Compared]:
    """Return the figures by which models are compared, with their rows, as `judge_given` kept them."""
    with open_arrays(folder / COLUMNS_FILE) as archive:
        arrays = {name: archive[name] for name in archive.files}
    out: dict[str, Compared] = {}
    for side in ("truth", "own"):
        strata = _strata_of(arrays.get(f"{side}.prompts"), prompts_are)
        for name in COMPARED[side]:
            if name in metrics:
                out[name] = Compared(metrics[name], arrays.get(f"{side}/{name}"), strata, side == "truth")
    return {name: out[name] for name in metrics if name in out}


COMPARED = {
    "truth": ("recall", "kl_truth_student", "recall_per_byte"),
    "own": (
        "precision",
        "entropy",
        "kl_student_truth",
        "precision_per_byte",
        "entropy_per_byte",
        "precision_reference",
        "kl_student_reference",
        "precision_reference_per_byte",
    ),
}
"""Figures by which models are compared, by whose rows they are means over."""


def load_exhibit(folder: Path) -> dict[str, object] | None:
    """Return a judged model's exhibit; None where nothing was drawn."""
    path = folder / EXHIBIT_FILE
    return artifact_json(path, dict) if path.is_file() else None


def text_rows_of(node: JudgeGivenNode, folder: Path) -> TruthRows:
    """Return the held-out texts that a cell was judged on, as the rows of a truth that scores nothing."""
    strata = _held_out_strata(node)
    with open_arrays(folder / ROWS_FILE) as archive:
        tokens: Floats = archive["tokens"]
    return TruthRows(np.zeros(tokens.size), tokens, strata, tokens.size)
