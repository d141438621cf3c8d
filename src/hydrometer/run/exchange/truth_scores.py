"""Precision and KL under a model that can be neither opened nor served: from log-probabilities that a user brings.

    precision          E_{y ~ q} log p(y)            user_precision_NAME
    KL(q || p)         E_{y ~ q} log q(y) - log p(y)  user_kl_student_NAME

q is the judged law, whose rows were exported, p the model: means over the same rows, without control variates, with
errors as those of the run's own figures (docs, Uncertainty). Its recall needs rows that it drew.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from hydrometer.core.errors import DataError, FolderError, InputError
from hydrometer.core.statistics.estimate import Estimate, mean_estimate, ratio_estimate
from hydrometer.models.base import Samples
from hydrometer.stages.nodes import JudgeNode
from hydrometer.stages.score import load_columns
from hydrometer.store.artifacts import ArtifactStore

__all__ = ["one_column", "own_scores", "under"]

Floats = NDArray[np.float64]

COLUMN = "logprob"
_NAME = re.compile(r"[A-Za-z][A-Za-z0-9_]{0,39}")
_ROUNDING = 1e-4  # nats a row, by which float32 sums of log-probabilities may exceed 0
_SURE = 5.0  # standard errors


def one_column(truth: str, columns: Sequence[str] | None) -> str:
    """Return the column of log-probabilities. Raises InputError."""
    if not _NAME.fullmatch(truth) or truth.endswith("_per_token"):
        fix = "use letters, digits and _, 40 at most, a letter first, not _per_token last"
        raise InputError("this cannot name the model of --truth", got=truth, fix=fix)
    if columns is not None and len(columns) > 1:
        raise InputError("with --truth there is one column of log-probabilities", got=list(columns))
    return columns[0] if columns else COLUMN


def own_scores(store: ArtifactStore, node: JudgeNode) -> Floats | None:
    """Return log q of the rows that a cell was judged on, (N,) nats; None where a choice among candidates has none.

    Raises
    ------
    FolderError : the scores are not kept.
    """
    if node.decoding is not None and node.decoding.chooses:
        return None
    keys = node.law_scores or node.truth_scores  # the truth's own cell has one side
    if not keys or not all(store.has("score", k) for k in keys):
        raise FolderError("the run's own scores of these rows are not there", got=store.location, fix="run it again")
    return load_columns([store.path("score", k) for k in keys]).own


def under(truth: str, owner: str, log_p: Floats, log_q: Floats | None, rows: Samples) -> dict[str, Estimate]:
    """Return precision and KL of a cell under a model, by metric name.

    Parameters
    ----------
    truth, owner : names of the model and of the cell.
    log_p, log_q : (N,) nats, of the cell's rows under the model, and under the cell's law or None.
    rows : lengths and strata of the rows.

    Raises
    ------
    DataError : no sums of log-probabilities in nats: one is above 0, or KL is below 0 beyond doubt.
    """
    if (highest := float(log_p.max())) > _ROUNDING:
        what = f"row {int(log_p.argmax())} of {owner}: a log-probability is at most 0"
        raise DataError(what, got=highest, fix="give log p of the answer's tokens, nats, not a probability or a loss")
    columns = {f"user_precision_{truth}": log_p}
    if log_q is not None:
        columns[f"user_kl_student_{truth}"] = log_q - log_p
    out = {name: mean_estimate(x, "nats", rows.strata) for name, x in columns.items()}
    if rows.lengths is not None:
        per = rows.lengths.astype(np.float64)
        out |= {f"{n}_per_token": ratio_estimate(x, per, "nats/token", rows.strata) for n, x in columns.items()}
    kl = out.get(f"user_kl_student_{truth}")
    if kl is not None and kl.value is not None and kl.se is not None and kl.value < -_SURE * max(kl.se, _ROUNDING):
        what = f"{owner}: KL(q||{truth}) would be {kl.value:.3g} ± {kl.se:.2g} nats, and none is below 0"
        fix = "give sums over the answer's tokens, the end among them, in nats: not means a token, nor log10"
        raise DataError(what, fix=fix)
    return out
