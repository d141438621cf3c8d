"""The chain Q of a given order with the least KL(Q, P) between the laws of whole rows: where MiniLLM's gradient ends.

By dynamic programming over the prefixes i, told apart as far as P or Q tell them, with w_i the probability that a row
of Q meets i, and J(i) what KL(Q, P) costs from i on, every gradient is exact (that of `policy_gradient_reward_to_go`
without its noise):

    J(i) = sum_v q(v | i) [log q(v | i) - log p(v | i) + J(iv)],        KL(Q, P) = J(start)

It vanishes where log q(. | c) is, up to a constant, the mean over the prefixes of c of log p(v | i) - J(iv), weighted
by w_i. The step towards that mean is the natural gradient's: short enough, it leads down. It is halved where it does
not, and near the end where steps grow.

Shapes: L steps, A prefixes, S contexts of the student, V ids. float64, nats.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from hydrometer.core.array_types import Floats, Ints
from hydrometer.core.errors import FitError
from hydrometer.models.markov.law import END, Markov, reached, refuse_large

__all__ = ["RowsKL", "descend"]

_ROUNDS = 5000
_STILL = 1e-10
_NEAR = 1e-3
_SHORT = 0.05  # from a saddle steps must grow to leave it
_ROUNDING = 1e-14


@dataclass(frozen=True)
class RowsKL:
    """KL(Q, P) of chains Q of one order, with V `smoothing` prefixes of a uniform teacher in every context.

    Attributes
    ----------
    teacher : P. order : of Q. smoothing : >= 0, in expected visits of a row.
    """

    teacher: Markov
    order: int
    smoothing: float = 0.0

    def __post_init__(self) -> None:
        """Refuse too many prefixes. Raises InputError."""
        t = self.teacher
        count = (t.vocabulary + 1) ** max(t.order, self.order)
        refuse_large(t.max_new_tokens * count * t.vocabulary, "the laws of all prefixes have", "lower the orders")

    def __call__(self, log_q: Floats) -> tuple[float, Floats, Floats]:
        """Return the value at a student's table (S, V), the mean (S, V) to which it must be equal, and visits (S,).

        The gradient in the logits is ``visits q (log q - mean - their own mean under q)``.
        """
        teacher, v = self.teacher, self.teacher.vocabulary
        q = Markov(log_q, order=self.order, max_new_tokens=teacher.max_new_tokens)
        longest = max(teacher.order, self.order)
        every: Ints = np.arange((v + 1) ** longest, dtype=np.int64)
        mine, theirs = every % (v + 1) ** self.order, every % (v + 1) ** teacher.order
        after = (every[:, None] * (v + 1) + np.arange(v)) % len(every)
        w, said = reached(q, longest), log_q[mine] > -np.inf
        chance, smooth = np.exp(log_q[mine]), self.smoothing * v
        ahead = np.zeros(len(every))
        total = np.full_like(log_q, -smooth * np.log(v))
        for t in reversed(range(teacher.max_new_tokens)):
            later = ahead[after]
            later[:, END] = 0.0
            target = np.where(said, teacher.step_table(t)[theirs] - later, 0.0)
            target[w[t] == 0] = 0.0  # never met: whatever the teacher says there
            ahead = (chance * np.where(said, log_q[mine] - target, 0.0)).sum(axis=1)
            total += (w[t][:, None] * target).reshape(-1, *log_q.shape).sum(axis=0)
        visits = w.sum(axis=0).reshape(-1, len(log_q)).sum(axis=0) + smooth
        uniform = (np.exp(log_q) * (np.where(log_q > -np.inf, log_q, 0.0) + np.log(v))).sum()
        mean = np.divide(total, visits[:, None], out=np.zeros_like(total), where=visits[:, None] > 0)
        return float(ahead[-1] + smooth * uniform), np.where(log_q > -np.inf, mean, -np.inf), visits


def descend(kl: RowsKL, log_q: Floats) -> tuple[float, Floats, int]:
    """Go down from a table (S, V), of finite value, to where the gradient vanishes.

    Returns
    -------
    The value, the table, and after how many steps. A context that is never met is uniform.

    Raises
    ------
    FitError : the search does not end.
    """
    value, mean, visits = kl(log_q)
    rate, moved = 1.0, np.inf
    for rounds in range(1, _ROUNDS + 1):
        there = _normal(np.where(visits[:, None] > 0, mean, 0.0))
        before, moved = moved, float(np.abs(np.exp(there) - np.exp(log_q)).max())
        if moved < _STILL:
            return value, there, rounds
        # Near the end values differ by rounding alone, and steps that grow are too long.
        rate = max(rate / 2, _SHORT) if before < moved < _NEAR else min(1.0, rate * 1.1)
        while True:
            with np.errstate(invalid="ignore"):  # ids of probability 0
                new = _normal(np.where(np.isfinite(there), (1 - rate) * log_q + rate * there, -np.inf))
            found = kl(new)
            if found[0] <= value + _ROUNDING * (1 + abs(value)) or rate < 1e-6:
                break
            rate /= 2
        log_q, (value, mean, visits) = new, found
    raise FitError("the least KL between laws of rows was not found", got=f"{moved:.1e} a step", fix="raise smoothing")


def _normal(log_q: Floats) -> Floats:
    return log_q - np.logaddexp.reduce(log_q, axis=-1, keepdims=True)
