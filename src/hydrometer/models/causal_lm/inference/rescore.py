"""Scores an engine's rows under the requested law, and checks that they were drawn from it.

Shapes: N rows, T positions, E tokens at an edge, V ids.

Log-probabilities are the scorer's, in the chain's `draw_dtype`. Two figures, in nats per token, test the engine:

    gap       mean of the engine's log-probability minus the scorer's. Where the engine reports the law that it draws
              from, an unbiased estimate of KL(engine's law || recorded law).
    surprise  mean of log p(x_t | x_<t) minus its expectation under p(. | x_<t). A martingale: zero in expectation if
              the rows are drawn from p, whatever p is. It detects a sampler of another temperature, even if the engine
              reports log-probabilities without the selectivity.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from hydrometer.core.array_types import Floats, Ints
from hydrometer.core.errors import StageError
from hydrometer.core.spec import Selectivity
from hydrometer.core.statistics.estimate import Estimate
from hydrometer.core.statistics.estimators import ratio_estimate
from hydrometer.models.causal_lm.engines.engine import MOST_LOG_PROB, Answer, LogProbsAre
from hydrometer.models.causal_lm.networks.selected_logits import as_if_kept, inverse_temperature
from hydrometer.models.causal_lm.networks.sources import GeneralSource
from hydrometer.models.rows.sequences import Sequences

if TYPE_CHECKING:
    from hydrometer.models.causal_lm.inference.law import CausalLaw
    from hydrometer.models.causal_lm.inference.outcome_law import Outcomes

__all__ = ["MOST_GAP", "Rescored", "drawn_rows", "refuse_repeats", "rescore"]


LOGIT_ERROR = {"float32": 1e-3, "bfloat16": 0.5}
"""Nats by which two computations of one network may differ in a logit, and so move a token across a kept set's edge.
bfloat16: the maximum measured between two equivalent paths of SmolLM2-135M."""
MOST_GAP = {"float32": 1e-3, "bfloat16": 0.05}
"""Nats per token of `gap` that arithmetic explains at temperature 1 and above; 1/tau times that below. A law whose
logits have independent errors of deviation e has a KL of about e^2 / 2 to the true one: bfloat16 with e = 0.1 makes
0.005, so ten times that is another model; float32 makes 1e-8."""
_ERRORS = 4.0  # standard errors beyond that
_CHANCE = 20.0  # minus the logarithm of how often chance alone may refuse rows
_ROWS_TOGETHER, _LOGITS_TOGETHER = 16, 64


@dataclass(frozen=True, slots=True)
class Rescored:
    """Rows with their log-probabilities, and statistics of the engine's.

    Attributes
    ----------
    gap, surprise : per token, with standard errors over rows.
    gap_max : the largest absolute difference of a token.
    dropped : tokens that the scorer drops at a selectivity's edge.
    """

    rows: Sequences
    gap: Estimate
    gap_max: float
    surprise: Estimate
    dropped: int


def rescore(
    law: CausalLaw, prompt_index: Ints, answers: Sequence[Answer], kind: LogProbsAre, *, dtype: str
) -> Rescored:
    """Score an engine's rows and test them against the law.

    Parameters
    ----------
    law : the requested selected law. prompt_index : (N,) the prompt of each row.
    kind : the law of the engine's log-probabilities.
    dtype : "float32" or "bfloat16", the arithmetic of `law`.

    Raises
    ------
    StageError : rows that are impossible under the law, or not drawn from it.
    """
    rows = drawn_rows(law, prompt_index, answers)
    steps = law.score_steps(rows, entropy=True)
    within = rows.within
    if np.isnan(steps.selected[within]).any() or np.isnan(steps.unselected[within]).any():
        raise StageError("the model scores an engine's row as NaN", fix="open the model in float32: draw_dtype")
    if not np.isfinite(steps.unselected[within]).all():
        raise StageError("the engine draws ids that the model gives no probability", fix="serve the chain's own model")
    selected, near = steps.selected.copy(), steps.near_edge & within
    edge = within & (selected == -np.inf)
    if edge.any():
        selected[edge] = _edge_log_prob(law, rows, edge, LOGIT_ERROR[dtype])
    told = np.zeros(rows.ids.shape)
    told[within] = np.concatenate([a.log_probs for a in answers])
    lengths = rows.lengths.astype(np.float64)
    off = np.where(within, told - (selected if kind == "selected" else steps.unselected), 0.0)
    gap = ratio_estimate(off.sum(-1), lengths, "nats/token", rows.strata)
    assert steps.entropy is not None
    entropy = steps.entropy
    moves = np.where(within & ~edge, selected + entropy, 0.0)
    surprise = ratio_estimate(moves.sum(-1), lengths, "nats/token", rows.strata)
    log_prob = np.where(within, selected, 0.0).sum(-1)
    refuse_repeats(rows, log_prob)
    _refuse_gap(gap, float(lengths.sum()), law.selectivity, dtype)
    _refuse_surprise(moves[within], entropy[within], law.lm.vocab_size, dtype)
    scored = replace(
        rows,
        log_prob=log_prob,
        token_log_prob=np.where(within, selected, 0.0).astype(np.float32),
        token_log_prob_unselected=np.where(within, steps.unselected, 0.0).astype(np.float32),
        near_edge=(near | edge).sum(-1).astype(np.int64),
    )
    return Rescored(scored, gap, float(np.abs(off).max(initial=0.0)), surprise, int(edge.sum()))


def drawn_rows(law: Outcomes, prompt_index: Ints, answers: Sequence[Answer]) -> Sequences:
    """Rows of ids, without log-probabilities yet. Raises StageError for impossible rows."""
    longest, stops, n = law.max_new_tokens, set(law.stop_ids), len(prompt_index)
    if len(answers) != n:
        raise StageError("the engine does not give the rows that were asked for", got=(len(answers), n))
    for a in answers:
        if len(a.ids) != len(a.log_probs) or not all(abs(v) <= MOST_LOG_PROB for v in a.log_probs):
            raise StageError("the engine gives no finite log-probability for every token", got=len(a.ids))
        if not 1 <= len(a.ids) <= longest or not all(0 <= t < law.lm.vocab_size for t in a.ids):
            raise StageError(
                "the engine draws a row that is no answer of the law: its length, or an id beyond the tokenizer",
                got=a.ids,
                fix="serve the chain's own model",
            )
        if any(t in stops for t in a.ids[:-1]):
            raise StageError("the engine goes on after a stop token", got=a.ids, fix="it must honour stop_token_ids")
        if a.ids[-1] not in stops and len(a.ids) < longest:
            fix = "serve without stop strings, and with --generation-config vllm: ends of its own make another law"
            raise StageError("the engine ends a row where neither a stop token nor L does", got=a.ids, fix=fix)
    lengths = np.array([len(a.ids) for a in answers], np.int64)
    ids = np.zeros((n, int(lengths.max())), np.int64)
    for i, a in enumerate(answers):
        ids[i, : len(a.ids)] = a.ids
    stopped = np.array([a.ids[-1] in stops for a in answers], np.bool_)
    return Sequences(law.prompts.ids, prompt_index, ids, lengths, stopped, np.zeros(n), prompts_are=law.prompts.are)


def _refuse_gap(gap: Estimate, tokens: float, s: Selectivity | None, dtype: str) -> None:
    """Refuse rows of another model; with few tokens, allow for the error of logits."""
    colder = 1.0 if s is None else max(1.0, inverse_temperature(s))
    error = math.hypot(gap.se or 0.0, LOGIT_ERROR[dtype] * colder / math.sqrt(tokens))
    most = MOST_GAP[dtype] * colder + _ERRORS * error
    if gap.value is None or abs(gap.value) > most:
        raise StageError(
            "the engine's log-probabilities are not the model's: another model, another precision or another law",
            got=f"{gap} where {most:.2g} is allowed",
            fix=f"serve the chain's own weights in draw_dtype ({dtype}), without quantisation",
        )


def _refuse_surprise(moves_M: Floats, entropy_M: Floats, n_ids: int, dtype: str) -> None:
    """Refuse rows whose tokens are likelier, or less likely, than those of the requested law.

    The moves are a martingale's: their sum exceeds ``sqrt(2 c W)`` with probability below about ``2 exp(-c)``, W the
    sum of their squares and of their conditional variances, however heavy their tails (Bercu and Touati 2008, theorem
    2.1). A next-token law of entropy H over V ids has ``Var log p`` of at most ``log(V - 1)^2 / 4 + 1`` (Reeb and Wolf
    2015) and of at most ``(log V + 12) H + 0.01``, since ids below e^-12 / V add less than 0.01 to ``E (log p)^2``.
    """
    most_V = 0.25 * math.log(max(n_ids - 1, 1)) ** 2 + 1
    variance_M = np.minimum(most_V, (math.log(n_ids) + 12) * entropy_M + 0.01)
    chance = math.sqrt(2 * _CHANCE * float(np.square(moves_M).sum() + variance_M.sum()))
    mean, most = float(moves_M.mean()), MOST_GAP[dtype] + chance / moves_M.size
    if not abs(mean) <= most:
        raise StageError(
            "the engine does not draw from the law that was asked for: its tokens are "
            + ("likelier" if mean > 0 else "less likely")
            + " than that law's own",
            got=f"{mean:.2g} nats/token where {most:.2g} is allowed",
            fix="switch off penalties, biases and sampling defaults of the engine; see docs, Engines",
        )


def refuse_repeats(rows: Sequences, log_prob: Floats) -> None:
    """Refuse answers that repeat more often than chance allows, as from a server that draws every row with one seed.

    Of m answers to a prompt, c are equal to one of log-probability l with a probability of at most
    ``m C(m - 1, c - 1) exp((c - 1) l)``.
    """
    for prompt in np.unique(rows.prompt_index):
        mine = np.flatnonzero(rows.prompt_index == prompt)
        _, first, count = np.unique(rows.ids[mine], axis=0, return_index=True, return_counts=True)
        m = len(mine)
        for at, c in zip(mine[first].tolist(), count.tolist(), strict=True):
            if c < 2:
                continue
            ways = math.lgamma(m) - math.lgamma(c) - math.lgamma(m - c + 1)
            if math.log(m) + ways + (c - 1) * float(log_prob[at]) < -_CHANCE:
                fix = "the server must honour a seed of each request, or draw afresh for each"
                raise StageError(f"the engine gives one answer {c} times in {m}, which is no chance", fix=fix)


@torch.inference_mode()
def _edge_log_prob(law: CausalLaw, rows: Sequences, edge: NDArray[np.bool_], error: float) -> Floats:
    """Log-probability of tokens that the scorer drops, as if each were kept, (E,), in the order of `edge`.

    Raises
    ------
    StageError : a token that no error of the logits within `error` explains.
    """
    s = law.selectivity
    assert s is not None  # without one no token is dropped
    row_E, step_E = np.nonzero(edge)
    out = np.empty(len(row_E))
    for i in range(0, len(hit := np.unique(row_E)), _ROWS_TOGETHER):
        group = hit[i : i + _ROWS_TOGETHER]
        wanted = np.flatnonzero(np.isin(row_E, group))
        states_ED = _states(law, rows, group, row_E[wanted], step_E[wanted])
        for a in range(0, len(wanted), _LOGITS_TOGETHER):
            part = wanted[a : a + _LOGITS_TOGETHER]
            logits_EV = law.lm.network.logits(states_ED[a : a + _LOGITS_TOGETHER])[:, : law.lm.vocab_size].float()
            token_E1 = torch.from_numpy(rows.ids[row_E[part], step_E[part]]).to(logits_EV.device)[:, None]
            found, inside = as_if_kept(logits_EV, s, token_E1, torch.tensor(error))
            if not bool(inside.all()):
                raise StageError(
                    f"the engine draws tokens that {s.label} drops, by more than rounding explains",
                    got=int((~inside).sum()),
                    fix="it must apply temperature, top_k, top_p and min_p as they are sent",
                )
            out[part] = found.cpu().numpy()
    return out


def _states(law: CausalLaw, rows: Sequences, group: Ints, row_E: Ints, step_E: Ints) -> Tensor:
    """States that predict the tokens at (row, step), (E, D)."""
    ids = [rows.row(int(i)) for i in group]
    source = GeneralSource(law.lm.network, law.way, [law.prompts.ids[int(rows.prompt_index[i])] for i in group])
    lengths = np.array([len(row) for row in ids], np.int64)
    first = np.cumsum(lengths) - lengths
    at_E = first[np.searchsorted(group, row_E)] + step_E
    return source.states(ids, np.arange(len(ids)))[torch.from_numpy(at_E)]
