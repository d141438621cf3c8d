"""Figures under a model that can be neither opened nor served: from log-probabilities that a user brings.

    precision          E_{y ~ q} log p(y)            user_precision_NAME
    KL(q || p)         E_{y ~ q} log q(y) - log p(y)  user_kl_student_NAME
    recall             E_{y ~ p} log q(y)            user_recall_NAME
    KL(p || q)         E_{y ~ p} log p(y) - log q(y)  user_kl_NAME_student

q is the judged law and p the model. The first two are means over rows of q, which were exported; the others over
answers that p drew, which q scores in its own tokens: without control variates, with errors as those of the run's own
figures (docs, Uncertainty).
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hydrometer.core.array_types import Floats
from hydrometer.core.errors import DataError, FolderError, InputError
from hydrometer.core.statistics.estimate import Estimate
from hydrometer.core.statistics.estimators import mean_estimate, ratio_estimate
from hydrometer.models.base import Samples
from hydrometer.models.causal_lm.data.prompts import Prompts
from hydrometer.models.causal_lm.data.text_dataset import Answered, Turns
from hydrometer.stages.artifact_loader import ArtifactLoader
from hydrometer.stages.nodes import JudgeNode
from hydrometer.stages.score import load_columns
from hydrometer.store.artifacts import ArtifactStore

__all__ = ["TruthAnswers", "of_answers", "one_column", "own_scores", "under"]


COLUMN = "logprob"
_NAME = re.compile(r"[A-Za-z][A-Za-z0-9_]{0,39}")
_ROUNDING = 1e-4  # nats a row, by which float32 sums of log-probabilities may exceed 0
_SURE = 5.0  # standard errors


def one_column(truth: str, columns: Sequence[str] | None) -> str:
    """Return the column of log-probabilities. Raises InputError."""
    if not _NAME.fullmatch(truth) or truth.endswith("_per_token") or truth.startswith("student"):
        fix = "use letters, digits and _, 40 at most, a letter first, not student first nor _per_token last"
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
    columns = {f"user_precision_{truth}": log_p}
    if log_q is not None:
        columns[f"user_kl_student_{truth}"] = log_q - log_p
    fix = "give sums over the answer's tokens, the end among them, in nats: not means a token, nor log10"
    return _figures(owner, log_p, columns, rows, fix)


@dataclass(frozen=True, slots=True, eq=False)
class TruthAnswers:
    """Answers that a model drew itself, to prompts that a run's models are judged on.

    Attributes
    ----------
    rows : prompts and answers. log_prob : (N,) nats, under the model.
    ended : (N,) whether the answer ended; else it was cut, and its log-probability has no end.
    """

    rows: Sequence[Answered]
    log_prob: Floats
    ended: NDArray[np.bool_]


def of_answers(
    truth: str, owner: str, given: TruthAnswers, node: JudgeNode, bench: ArtifactLoader
) -> dict[str, Estimate] | None:
    """Return recall and KL of a cell under a model, by metric name; None where the cell's law scores nothing.

    Raises
    ------
    DataError : a prompt that models are not judged on, or as `under`. StageError : a text that the law cannot score.
    """
    from hydrometer.models.causal_lm.inference.retokenize import Texts, canonical
    from hydrometer.models.causal_lm.texts_and_given import as_law

    family, chain = node.context.family, node.context.spec
    law = bench.law(node.context, node.law, family.precision(chain, "judge"), node.decoding)
    if law.score_kind == "none":
        return None
    law = as_law(law)
    ends: Any = law.lm.tokenizer.convert_ids_to_tokens(list(law.stop_ids))
    if (other := next((r for r in given.rows if (r.answer or "").endswith(tuple(ends))), None)) is not None:
        what = f"{other.where}: the answer's text has the end token in it"
        raise DataError(what, got=(other.answer or "")[-40:], fix="leave it out: an answer ends where its text does")
    texts = Texts(tuple(r.answer or "" for r in given.rows), given.ended, _places(law.prompts, given.rows))
    found = canonical(texts, law)
    columns = {
        f"user_recall_{truth}": found.log_prob,
        f"user_kl_{truth}_student": given.log_prob - found.log_prob,
    }
    fix = "bring answers that the model drew, with its log-probabilities of them in nats, not in bits"
    return _figures(owner, given.log_prob, columns, found.rows, fix)


def _places(prompts: Prompts, rows: Sequence[Answered]) -> NDArray[np.int64]:
    """Return which prompt each row answers, (N,), by its messages or as it was rendered. Raises DataError."""
    known: dict[Turns, int] = {}
    for i, text in enumerate(prompts.texts):
        known.setdefault(prompts.turns[i] if prompts.turns else (("user", text),) if text else (), i)
        if prompts.written is not None:
            known.setdefault((("user", prompts.written[i]),), i)
    if (other := next((r for r in rows if r.turns not in known), None)) is not None:
        fix = "bring answers to the prompts that `export --cell` writes"
        what = f"{other.where}: models are not judged on this prompt"
        raise DataError(what, got=other.turns[-1][1] if other.turns else "a whole document", fix=fix)
    return np.array([known[r.turns] for r in rows], np.int64)


def _figures(owner: str, log_p: Floats, columns: Mapping[str, Floats], rows: Samples, fix: str) -> dict[str, Estimate]:
    """Return means of columns, and by token. `fix`: of a KL below 0. Raises DataError."""
    if (highest := float(log_p.max())) > _ROUNDING:
        what = f"row {int(log_p.argmax())} of {owner}: a log-probability is at most 0"
        raise DataError(what, got=highest, fix="give log p of the answer's tokens, nats, not a probability or a loss")
    out = {name: mean_estimate(x, "nats", rows.strata) for name, x in columns.items()}
    if rows.lengths is not None:
        per = rows.lengths.astype(np.float64)
        out |= {f"{n}_per_token": ratio_estimate(x, per, "nats/token", rows.strata) for n, x in columns.items()}
    name = next((n for n in columns if n.startswith("user_kl_")), "")
    kl = out.get(name)
    if kl is not None and kl.value is not None and kl.se is not None and kl.value < -_SURE * max(kl.se, _ROUNDING):
        what = f"{owner}: {name} would be {kl.value:.3g} ± {kl.se:.2g} nats, and no KL is below 0"
        raise DataError(what, fix=fix)
    return out
