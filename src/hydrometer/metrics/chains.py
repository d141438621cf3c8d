"""Figures of n-gram chains by dynamic programming: no Monte Carlo error, whatever the length.

    E_p log q = sum_t sum_c alive_t(c) sum_v p_t(v | c) log q_t(v | c)
    alive_{t+1}(c v) += alive_t(c) p_t(v | c),  v not the end of sequence

over contexts c of the longer of both orders. Where q cannot say all of p's sequences, sums are restricted to those that
it can: a step counts with the probability S_{t+1} that what follows can be said too.

Shapes: C contexts, V ids, L steps.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from hydrometer.core.array_types import Floats, Ints
from hydrometer.core.statistics.estimate import Estimate
from hydrometer.models.markov.law import END, Markov, reached

__all__ = ["Cross", "cross", "judge_chain", "length_law"]


@dataclass(frozen=True, slots=True)
class Cross:
    """Expectations under p over the sequences that q can say.

    Attributes
    ----------
    log_prob : E_p [log q; q > 0], nats. length : E_p [length; q > 0]. support : P_p(q > 0).
    whole : whether q can say every sequence of p.
    """

    log_prob: float
    length: float
    support: float
    whole: bool


class _Walk:
    """Both chains over common contexts."""

    def __init__(self, p: Markov, q: Markov) -> None:
        self.p, self.q = p, q
        base, order = p.vocabulary + 1, max(p.order, q.order)
        every: Ints = np.arange(base**order, dtype=np.int64)
        self.of_p: Ints = every % base**p.order
        self.of_q: Ints = every % base**q.order
        self.after: Ints = (every[:, None] * base + np.arange(p.vocabulary, dtype=np.int64)) % base**order
        self.start = base**order - 1
        self.steps = p.max_new_tokens

    def tables(self, t: int) -> tuple[Floats, Floats]:
        """Return p (C, V), and log q (C, V)."""
        return np.exp(self.p.step_table(t)[self.of_p]), self.q.step_table(t)[self.of_q]


def cross(p: Markov, q: Markov) -> Cross:
    """Expectations of log q and of the length under p.

    Raises
    ------
    LawMismatchError : other vocabulary or max_new_tokens.

    Examples
    --------
    >>> coin = Markov(np.log([[0.5, 0.5]]), order=0, max_new_tokens=40)
    >>> round(cross(coin, coin).length, 9)
    2.0
    """
    q.compatible(p)
    walk = _Walk(p, q)
    said = np.empty((walk.steps + 1, len(walk.of_p)))
    said[-1] = 1.0
    for t in reversed(range(walk.steps)):
        mass, log_q = walk.tables(t)
        ahead = said[t + 1][walk.after]
        ahead[:, END] = 1.0
        said[t] = np.minimum((mass * np.isfinite(log_q) * ahead).sum(axis=1), 1.0)
    alive = np.zeros(len(walk.of_p))
    alive[walk.start] = 1.0
    log_prob = length = 0.0
    whole = True
    for t in range(walk.steps):
        mass, log_q = walk.tables(t)
        can = np.isfinite(log_q)
        flow = alive[:, None] * mass
        whole &= not (flow[~can] > 0).any()
        ahead = said[t + 1][walk.after]
        ahead[:, END] = 1.0
        flow = np.where(can, flow, 0.0)
        log_prob += float((flow * ahead * np.where(can, log_q, 0.0)).sum())
        length += float((flow * ahead).sum())
        flow[:, END] = 0.0
        alive = np.bincount(walk.after.ravel(), flow.ravel(), minlength=alive.size)
    return Cross(log_prob, length, float(said[0][walk.start]), whole)


def length_law(p: Markov) -> tuple[Floats, float]:
    """Return P(length = 1 .. L), (L,), and the probability that a sequence ends by itself."""
    alive = reached(p, p.order)
    ended = np.array([alive[t] @ np.exp(p.step_table(t)[:, END]) for t in range(p.max_new_tokens)])
    stops = float(ended.sum())
    ended[-1] += 1 - stops
    return ended, stops


def judge_chain(truth: Markov, law: Markov) -> dict[str, Estimate]:
    """Return the figures of `judge` for two chains, exact: all but repetition and distinct n-grams.

    Parameters
    ----------
    truth, law : chains over the same ids and lengths, of any orders.

    Returns
    -------
    dict of `Estimate` by metric name, method "exact"; infinite figures have no value.
    """
    own, true = cross(law, law), cross(truth, truth)
    precision, recall = cross(law, truth), cross(truth, law)
    lengths, stops = length_law(law)
    out: dict[str, Estimate] = {}

    def put(name: str, value: float, length: float, *, finite: bool = True) -> None:
        missed = 0 if finite else 1
        out[name] = _exact(value if finite else None, missed, "nats")
        out[f"{name}_per_token"] = _exact(value / length if finite and length > 0 else None, missed, "nats/token")

    put("precision", precision.log_prob, own.length, finite=precision.whole)
    put("recall", recall.log_prob, true.length, finite=recall.whole)
    put("entropy", -own.log_prob, own.length)
    put("entropy_truth", -true.log_prob, true.length)
    put("kl_student_truth", own.log_prob - precision.log_prob, own.length, finite=precision.whole)
    put("kl_truth_student", true.log_prob - recall.log_prob, true.length, finite=recall.whole)
    if recall.support > 0:
        put("recall_on_support", recall.log_prob / recall.support, recall.length / recall.support)
    out["truth_mass_outside_support"] = _exact(0.0 if recall.whole else 1 - recall.support, 0, "probability")
    out["length"] = _exact(float(lengths @ np.arange(1, lengths.size + 1)), 0, "tokens")
    out["eos_rate"] = _exact(stops, 0, "probability")
    return out


def _exact(value: float | None, missed: int, unit: str) -> Estimate:
    known = value is not None and math.isfinite(value)
    return Estimate(value if known else None, 0.0 if known else None, 0.0 if known else None, 0, missed, "exact", unit)
