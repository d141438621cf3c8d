"""Aligning n-gram chains from finite samples, as language models are: policy gradients on own rows, and DPO on pairs.

Both aim at the law of the largest E[r(y)] - b KL(q, p) from the reference p, the tilt p(y) exp(r(y) / b) / Z, which
`Markov.tilted` knows. They see the reward only of rows that are drawn, and have a logit for every context and id, as
the reference has: where the tilt is such a chain, unlimited samples lead to it.

Shapes: N rows, L steps, C contexts, V ids. float64, nats.
"""

# scipy leaves the type of what it finds open.
# pyright: reportUnknownMemberType=false, reportUnknownArgumentType=false, reportUnknownVariableType=false

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, Literal, NamedTuple, get_args

import numpy as np
from numpy.typing import NDArray
from scipy import sparse
from scipy.optimize import minimize
from scipy.special import expit, log_softmax

from hydrometer.core.array_types import Floats
from hydrometer.core.errors import InputError
from hydrometer.core.rng import Stream
from hydrometer.models.markov.law import Markov, contexts
from hydrometer.models.rows.sequences import Sequences

__all__ = [
    "ORDERS", "WAYS", "Figures", "Order", "Pairs", "Way", "dpo", "least_held_out", "policy_gradient",
    "policy_gradient_of", "row_rewards", "split",
]  # fmt: skip

Way = Literal["exact tilt", "policy gradient", "DPO"]
Order = Literal["first", "last"]
WAYS: tuple[Way, ...] = get_args(Way)
ORDERS: tuple[Order, ...] = get_args(Order)

HELD_OUT = 0.2
"""Share of the pairs that say when DPO stops."""
_PATIENCE, _ROUNDS = 20, 500


class Figures(NamedTuple):
    """Where one order ended in one world: the reward in shares of the target's, nats a row, rare rows distilled."""

    reward: float
    precision: float
    recall: float
    kl_student_target: float
    kl_target_student: float
    rare_rows: int


def row_rewards(rows: Sequences, reward: Floats) -> Floats:
    """Return each row's reward, (N,), for `reward` (L, V) of each id at each step."""
    width = rows.ids.shape[1]
    return np.where(rows.within, reward[np.arange(width)[None], rows.ids], 0.0).sum(axis=1)


def policy_gradient_of(log_q: Floats, reference: Markov, rows: Sequences, reward: Floats, strength: float) -> Floats:
    """Estimate the gradient of E[r] - b KL(q, p) in the logits of q, (C, V), from rows that q drew.

    REINFORCE on whole rows, each against the mean of the others (Ahmadian et al. 2024, arXiv 2402.14740, RLOO), which
    leaves the mean as it is:

        1 / N sum_i (R_i - mean of the other R) grad log q(y_i),      R = r(y) - b (log q(y) - log p(y))

    Where q is the tilt, R is equal for all rows, and the estimate is 0 without noise.
    """
    v, n = reference.vocabulary, len(rows)
    within = rows.within
    at = contexts(rows.ids, reference.order, v)
    ratio = np.where(within, (log_q - reference.log_table)[at, rows.ids], 0.0).sum(axis=1)
    value = row_rewards(rows, reward) - strength * ratio
    better = (value - value.mean()) / (n - 1)
    weight = np.broadcast_to(better[:, None], within.shape)[within]
    said = np.bincount(at[within] * v + rows.ids[within], weights=weight, minlength=log_q.size).reshape(log_q.shape)
    return said - np.exp(log_q) * said.sum(axis=1, keepdims=True)


def policy_gradient(
    reference: Markov,
    reward: Floats,
    strength: float,
    *,
    rows: int,
    batch: int = 100,
    rate: float = 2.0,
    stream: Stream,
) -> Markov:
    """Align by policy gradients with a penalty on KL: at each step a batch of own rows, and one step of ascent.

    Parameters
    ----------
    reference : p, and where the ascent begins. One table for all steps.
    reward : (L, V) of each id at each step. strength : b.
    rows : that are drawn in all. batch : of them a step, 2 or more. rate : of ascent of E[r] / b - KL(q, p) on
        the logits.

    Raises
    ------
    InputError : a reference with a table a step; fewer rows than a batch.
    """
    if not 2 <= batch <= rows:
        raise InputError("a policy gradient needs a batch of two rows or more, and rows for one", got=(batch, rows))
    log_q, law = _table(reference), reference
    for step in range(rows // batch):
        uniforms = stream.uniforms(step * batch, batch, reference.max_new_tokens)
        drawn = law.draw(uniforms, np.zeros(batch, np.int64))
        ascent = policy_gradient_of(log_q, reference, drawn, reward, strength)
        log_q = np.asarray(log_softmax(log_q + rate / strength * ascent, axis=1), np.float64)
        law = Markov(log_q, order=reference.order, max_new_tokens=reference.max_new_tokens)
    return law


class Pairs:
    """Pairs of rows of a reference, and which of both is preferred: the loss of DPO and its gradient.

        mean of -log sigmoid(a b (log q / p of the preferred - log q / p of the other))

    (Rafailov et al. 2023, arXiv 2305.18290.) An annotator prefers y to z with probability sigmoid(a (r(y) - r(z))), as
    Bradley and Terry have it, so the least expected loss is that of the tilt; with `a` large the pairs are ranked by
    the reward, and the loss has no minimum. Pairs of equal reward say nothing of it and are left out, as ties are.

    Attributes
    ----------
    gap : (N, C V) how often the preferred row has each id in each context, less how often the other has.
    log_p : (C, V) of the reference. scale : a b, DPO's beta.
    """

    def __init__(self, gap: Any, log_p: Floats, scale: float) -> None:
        self.gap, self.log_p, self.scale = gap, log_p, scale
        self.gap_back = gap.T.tocsr()

    @classmethod
    def drawn(
        cls, reference: Markov, reward: Floats, strength: float, *, pairs: int, sharpness: float, stream: Stream
    ) -> Pairs:
        """Draw pairs of the reference and an annotator's preferences; `sharpness` is a, per unit of reward."""
        rows = reference.sample(2 * pairs, seed=stream.child("rows"))
        value = row_rewards(rows, reward)
        better = value[:pairs] - value[pairs:]
        tosses = stream.child("preferences").uniforms(0, pairs, 1)[:, 0]
        sign = np.where(tosses < expit(sharpness * better), 1.0, -1.0)
        log_p = _table(reference)
        counts = _counts(rows, reference.order, log_p.shape)
        gap = sparse.diags_array(sign) @ (counts[:pairs] - counts[pairs:])
        return cls(gap.tocsr()[better != 0], log_p, sharpness * strength)

    def __len__(self) -> int:
        """Return how many pairs are not of equal reward."""
        return int(self.gap.shape[0])

    def __getitem__(self, which: slice) -> Pairs:
        """Return some of the pairs."""
        return Pairs(self.gap[which], self.log_p, self.scale)

    def __call__(self, logits: NDArray[np.float64]) -> tuple[float, Floats]:
        """Return the loss, nats, and its gradient, both of flat logits (C V,)."""
        log_q = np.asarray(log_softmax(logits.reshape(self.log_p.shape), axis=1), np.float64)
        margin = self.scale * (self.gap @ (log_q - self.log_p).ravel())
        slope = -self.scale * np.asarray(expit(-margin)) / len(margin)
        by_id = (self.gap_back @ slope).reshape(log_q.shape)
        gradient = by_id - np.exp(log_q) * by_id.sum(axis=1, keepdims=True)
        return float(np.logaddexp(0.0, -margin).mean()), gradient.ravel()


def dpo(
    reference: Markov, reward: Floats, strength: float, *, rows: int, sharpness: float = 2.0, stream: Stream
) -> Markov:
    """Align by DPO on pairs of the reference's rows: L-BFGS from the reference, stopped early.

    Few pairs can be told apart entirely, and their loss has no minimum. So a fifth of them are held out, and of the
    tables on the way the one of the least held-out loss is taken; the reference's own is the first. Where all rows are
    of equal reward, nothing is learnt.

    Parameters
    ----------
    reference : p. One table for all steps.
    reward : (L, V) of each id at each step. strength : b.
    rows : that are drawn in all, two a pair. sharpness : a of `Pairs`, per unit of reward.

    Raises
    ------
    InputError : a reference with a table a step; fewer than ten rows.
    """
    if rows < 10:
        raise InputError("DPO needs ten rows or more, which are five pairs", got=rows)
    pairs = Pairs.drawn(reference, reward, strength, pairs=rows // 2, sharpness=sharpness, stream=stream)
    parts = split(pairs)
    if parts is None:
        return reference
    best = least_held_out(*parts, pairs.log_p.ravel())
    log_q = np.asarray(log_softmax(best.reshape(pairs.log_p.shape), axis=1), np.float64)
    return Markov(log_q, order=reference.order, max_new_tokens=reference.max_new_tokens)


def split(pairs: Pairs) -> tuple[Pairs, Pairs] | None:
    """Return the pairs to learn from, and a fifth held out; None where too few are not of equal reward."""
    held = math.ceil(HELD_OUT * len(pairs))
    return (pairs[held:], pairs[:held]) if len(pairs) > held else None


Loss = Callable[[NDArray[np.float64]], tuple[float, Floats]]
"""A loss and its gradient, of flat parameters."""


def least_held_out(train: Loss, test: Loss, start: Floats) -> Floats:
    """Descend `train` by L-BFGS, and return the parameters on the way that `test` likes best, `start` among them."""
    best, least, since = start, test(start)[0], 0

    def look(at: NDArray[np.float64]) -> None:
        nonlocal best, least, since
        loss = test(at)[0]
        since += 1
        if loss < least:
            best, least, since = at.copy(), loss, 0
        if since >= _PATIENCE:
            raise StopIteration

    minimize(train, start, jac=True, method="L-BFGS-B", callback=look, options={"maxiter": _ROUNDS})
    return best


def _table(law: Markov) -> Floats:
    if law.log_table.ndim != 2 or not np.isfinite(law.log_table).all():
        raise InputError("a chain is aligned from one table of finite numbers", got=law.log_table.shape)
    return law.log_table


def _counts(rows: Sequences, order: int, shape: tuple[int, ...]) -> Any:
    """How often each row has each id in each context, sparse (N, C V)."""
    within = rows.within
    column = contexts(rows.ids, order, shape[1])[within] * shape[1] + rows.ids[within]
    row = np.repeat(np.arange(len(rows)), rows.lengths)
    size = len(rows), shape[0] * shape[1]
    return sparse.csr_array((np.ones(len(row)), (row, column)), shape=size)
