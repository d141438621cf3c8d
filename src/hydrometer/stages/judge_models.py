"""Judge models that exist: draw and score, artifact in, artifact out; and the figures of what was scored.

Every score is one artifact: one law's log-probabilities of one set of rows, as token ids or as texts in canonical
tokenisation. A figure is made from two or four of them. Shapes: N rows.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from hydrometer.core.errors import StageError
from hydrometer.core.io.arrays import open_arrays
from hydrometer.core.rng import Stream
from hydrometer.core.statistics.estimate import Estimate, share_estimate
from hydrometer.core.statistics.sampling_design import PromptsAre, Strata
from hydrometer.metrics.held_out import Column, estimates, share_outside
from hydrometer.metrics.likelihood import Scores, likelihood_metrics
from hydrometer.models.rows.sequences import Sequences, load_sequences, save_sequences
from hydrometer.stages.judge import sequence_figures

if TYPE_CHECKING:
    from hydrometer.models.causal_lm.inference.law import CausalLaw
    from hydrometer.models.causal_lm.inference.retokenize import Texts

__all__ = [
    "VERSIONS", "Figures", "Scored", "draw_block", "held_out_figures", "load_rows", "load_scored", "reference_figures",
    "score_ids", "score_texts", "truth_figures",
]  # fmt: skip

VERSIONS = {"draw": 1, "score": 2, "score_texts": 3}
"""Raised whenever this module's code changes its results; texts are scored by code of their own."""

Floats = NDArray[np.float64]
ROWS_FILE, SCORES_FILE = "rows.parquet", "scores.npz"


@dataclass(frozen=True, slots=True, eq=False)
class Scored:
    """One law's scores of one set of rows.

    Attributes
    ----------
    log_prob : (N,) nats.
    tokens : (N,) of the law's own tokenizer, the stop token included.
    n_bytes, round_trip, spans : (N,) of texts, as in `canonical.Canonical`; None for token ids.
    near_edge : (N,) steps near a selectivity's edge as the scorer counts them in a law's own rows; None where the rows'
        own record is the better one.
    """

    log_prob: Floats
    tokens: Floats
    n_bytes: Floats | None = None
    round_trip: Floats | None = None
    spans: Floats | None = None
    near_edge: Floats | None = None

    def counted(self, rows: Sequences) -> Sequences:
        """Return the rows that were scored, with the steps near an edge as the scorer counts them where it does."""
        return rows if self.near_edge is None else replace(rows, near_edge=self.near_edge.astype(np.int64))


def draw_block(law: CausalLaw, stream: Stream, start: int, n: int, folder: Path) -> dict[str, object]:
    """Draw one block of rows. Raises StageError on a row without probability under its own law."""
    rows = law.sample_block(n, stream=stream, start=start)
    lowest = float(rows.log_prob.min())
    if not lowest > float("-inf"):
        raise StageError("a drawn row has no probability under its own law", got=lowest)
    save_sequences(rows, folder / ROWS_FILE)
    return {"rows": len(rows), "tokens": int(rows.lengths.sum())}


def load_rows(folders: list[Path], n: int, prompts_are: PromptsAre) -> Sequences:
    """Open the first n rows of the blocks; what prompts are says how errors are computed, not what was drawn."""
    whole = Sequences.concatenate([load_sequences(f / ROWS_FILE) for f in folders])
    return replace(whole.take(slice(0, n)), prompts_are=prompts_are)


def score_ids(law: CausalLaw, rows: Sequences, folder: Path, *, own: bool) -> dict[str, object]:
    """Score token ids; `own`: the law drew them. Raises StageError on NaN."""
    beside = law.score_beside(rows, law) if own else None
    found = law.log_prob(rows) if beside is None else beside.own
    if np.isnan(found).any() or np.isposinf(found).any():
        raise StageError("scores hold NaN or +inf", fix="the model diverged or its weights are broken")
    columns: dict[str, Any] = {"log_prob": found, "tokens": rows.lengths.astype(np.float64)}
    facts: dict[str, object] = {"rows": len(rows)}
    if beside is not None and beside.near_edge is not None and beside.as_if_kept is not None:
        columns["near_edge"] = beside.near_edge.astype(np.float64)
        facts["edge_tokens"] = int(beside.as_if_kept.sum())
    np.savez(folder / SCORES_FILE, **columns)
    return facts


def score_texts(law: CausalLaw, texts: Texts, folder: Path) -> dict[str, object]:
    """Score texts in the law's canonical tokenisation. Raises StageError."""
    from hydrometer.models.causal_lm.inference.retokenize import canonical

    found = canonical(texts, law)
    np.savez(
        folder / SCORES_FILE, log_prob=found.log_prob, tokens=found.rows.lengths.astype(np.float64),
        n_bytes=texts.n_bytes, round_trip=found.round_trip, spans=found.spans,
    )  # fmt: skip
    return {"rows": len(texts.texts)}


def load_scored(folder: Path) -> Scored:
    """Read what `score_ids` or `score_texts` wrote."""
    with open_arrays(folder / SCORES_FILE) as archive:
        return Scored(**{name: archive[name] for name in archive.files})


@dataclass(frozen=True, slots=True, eq=False)
class Figures:
    """A cell's figures, and the rows of those that are compared between models."""

    metrics: dict[str, Estimate]
    columns: dict[str, Column]


def truth_figures(
    truth_rows: Sequences, law_rows: Sequences, ids: Mapping[str, Scored] | None, texts: Mapping[str, Scored] | None
) -> Figures:
    """Figures against a truth that was drawn from.

    Parameters
    ----------
    ids, texts : scores by name, ``truth_on_truth``, ``law_on_truth``, ``truth_on_law``, ``law_on_law``: of token ids
        where the vocabularies are equal, of texts where a model of another vocabulary is judged beside.
    """
    metrics: dict[str, Estimate] = {}
    columns: dict[str, Column] = {}
    if ids is not None:
        s = Scores(
            truth_rows, law_rows, ids["truth_on_truth"].log_prob, ids["law_on_truth"].log_prob,
            ids["truth_on_law"].log_prob, ids["law_on_law"].log_prob,
        )  # fmt: skip
        metrics |= likelihood_metrics(s) | sequence_figures(ids["law_on_law"].counted(law_rows), s.law_on_law)
        columns |= {
            "precision": _column(s.truth_on_law, law_rows.strata),
            "recall": _column(s.law_on_truth, truth_rows.strata, shared=True),
            "entropy": _column(-s.law_on_law, law_rows.strata),
            "kl_student_truth": _column(s.law_on_law - s.truth_on_law, law_rows.strata),
            "kl_truth_student": _column(s.truth_on_truth - s.law_on_truth, truth_rows.strata, shared=True),
        }
    else:
        metrics |= sequence_figures(law_rows, None)  # the scorer saw texts, not these ids
    if texts is not None:
        per_byte = {
            "precision_per_byte": _per_byte(texts["truth_on_law"], law_rows.strata),
            "recall_per_byte": _per_byte(texts["law_on_truth"], truth_rows.strata, shared=True),
            "entropy_per_byte": _per_byte(texts["law_on_law"], law_rows.strata, sign=-1.0),
            "entropy_truth_per_byte": _per_byte(texts["truth_on_truth"], truth_rows.strata, shared=True, sign=-1.0),
        }
        metrics |= estimates(per_byte)
        columns |= {k: v for k, v in per_byte.items() if k != "entropy_truth_per_byte"}
        metrics |= _round_trips({"truth": (texts["law_on_truth"], truth_rows.strata),
                                 "own": (texts["truth_on_law"], law_rows.strata)})  # fmt: skip
    return Figures(metrics, columns)


def held_out_figures(scored: Scored, strata: Strata | None) -> Figures:
    """Recall on held-out text, in canonical tokenisation: a row, a token of the model's own, a byte."""
    recall = _column(scored.log_prob, strata, shared=True, canonical=True)
    columns = {"recall": recall, "recall_per_byte": _per_byte(scored, strata, shared=True)}
    per_token = replace(recall, per=scored.tokens, unit="nats/token")
    metrics = estimates({"recall": recall, "recall_per_token": per_token, **columns})
    metrics |= share_outside(recall) | _round_trips({"truth": (scored, strata)})
    return Figures(metrics, columns)


def reference_figures(rows: Sequences, own: Scored, theirs: Scored, *, as_texts: bool) -> Figures:
    """A law's own draws under itself and under a named reference model, which is not the truth."""
    columns: dict[str, Column] = {}
    if as_texts:
        columns["precision_reference_per_byte"] = _per_byte(theirs, rows.strata)
        columns["entropy_per_byte"] = _per_byte(own, rows.strata, sign=-1.0)
        found = sequence_figures(rows, None)
        return Figures(estimates(columns) | found | _round_trips({"own": (theirs, rows.strata)}), columns)
    columns["precision_reference"] = _column(theirs.log_prob, rows.strata)
    columns["entropy"] = _column(-own.log_prob, rows.strata)
    columns["kl_student_reference"] = _column(own.log_prob - theirs.log_prob, rows.strata)
    lengths = rows.lengths.astype(np.float64)
    per_token = {f"{k}_per_token": replace(c, per=lengths, unit="nats/token") for k, c in columns.items()}
    return Figures(estimates({**columns, **per_token}) | sequence_figures(own.counted(rows), own.log_prob), columns)


def _column(values: Floats, strata: Strata | None, *, shared: bool = False, canonical: bool = False) -> Column:
    """Nats a row."""
    return Column(values, None, "nats", strata, shared, canonical)


def _per_byte(scored: Scored, strata: Strata | None, *, shared: bool = False, sign: float = 1.0) -> Column:
    if scored.n_bytes is None:
        raise ValueError("token ids have no bytes")
    return Column(sign * scored.log_prob, scored.n_bytes, "nats/byte", strata, shared, canonical=True)


def _round_trips(found: Mapping[str, tuple[Scored, Strata | None]]) -> dict[str, Estimate]:
    """Shares of the truth's texts and of the law's own: given back as they were, and without a boundary of tokens."""
    out: dict[str, Estimate] = {}
    for name, (scored, strata) in found.items():
        for what, column in (("round_trip", scored.round_trip), ("spans_prompt", scored.spans)):
            if column is not None:
                out[f"{what}_{name}"] = replace(share_estimate(column, strata), method="canonical")
    return out
