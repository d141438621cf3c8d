"""n-gram chains with an end of sequence: the sequence family in which every figure can be computed exactly.

    p(y) = prod_t p_t(y_t | y_{t-m} .. y_{t-1}),   stopped at the first end of sequence or after L tokens

Shapes: N rows, L max_new_tokens, V ids, id 0 the end of sequence; m the order; C = (V + 1)^m contexts. A context is the
last m ids as digits in base V + 1, the newest last; the digit V stands for what lies before the start. float64, nats.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import ArrayLike

from hydrometer.core.array_types import Floats, Ints
from hydrometer.core.errors import DataError, InputError, LawMismatchError
from hydrometer.core.rng import Stream, as_stream
from hydrometer.core.shown import Shown
from hydrometer.core.spec import Selectivity
from hydrometer.models.base import Law, PairedScores, Samples, ScoreKind
from hydrometer.models.finite_selectivity import canonical, refuse_choice
from hydrometer.models.markov.rewards import in_nats, reward_table
from hydrometer.models.rows.sequences import Sequences

__all__ = ["END", "Markov", "contexts", "reached", "refuse_large", "selected"]

END = 0
MOST_ENTRIES = 50_000_000  # of a table; 400 MB


def contexts(ids: Ints, order: int, vocabulary: int) -> Ints:
    """Return the context of every position of padded rows (N, T), as an index below (V + 1)^m."""
    n, width = ids.shape
    base = vocabulary + 1
    padded = np.concatenate([np.full((n, order), vocabulary), ids], axis=1)
    out = np.zeros((n, width), np.int64)
    for back in range(order):
        out = out * base + padded[:, back : back + width]
    return out


def refuse_large(entries: int, what: str, fix: str) -> None:
    """Refuse an array of more than `MOST_ENTRIES`. Raises InputError."""
    if entries > MOST_ENTRIES:
        raise InputError(f"{what} too many entries", got=entries, fix=fix)


class Markov(Shown):
    """A chain of order m over V ids, immutable.

    Parameters
    ----------
    log_table : (C, V) next-id log-probabilities of every context, or (L, C, V) of every step and context; -inf allowed.
    order : m
    max_new_tokens : L

    Raises
    ------
    InputError : shapes that do not fit, rows that do not sum to 1.

    Examples
    --------
    >>> coin = Markov(np.log([[0.5, 0.5]]), order=0, max_new_tokens=3)  # ends with probability 1/2 at each step
    >>> x = coin.sample(1000, seed=0)
    >>> bool(np.allclose(coin.log_prob(x), -x.lengths * np.log(2)))
    True
    """

    __slots__ = ("log_table", "max_new_tokens", "order", "vocabulary")

    score_kind: ScoreKind = "exact"
    block_rows: int | None = None  # a row's bits do not depend on the rows drawn with it
    n_prompts: int = 1

    def __init__(self, log_table: ArrayLike, *, order: int, max_new_tokens: int) -> None:
        table = np.asarray(log_table, np.float64)
        if table.ndim not in (2, 3) or order < 0 or max_new_tokens < 1:
            raise InputError("a chain needs a table (C, V) or (L, C, V), order >= 0, max_new_tokens >= 1")
        vocabulary = int(table.shape[-1])
        shape = ((vocabulary + 1) ** order, vocabulary)
        if table.shape[-2:] != shape or (table.ndim == 3 and len(table) != max_new_tokens):
            raise InputError(f"a chain of order {order} needs a table of {shape}, or L of them", got=table.shape)
        with np.errstate(invalid="ignore"):
            off = np.abs(np.exp(table).sum(axis=-1) - 1).max()
        if not off <= 1e-9:
            raise InputError("the rows of a chain must sum to 1", got=f"off by {off:.1e}")
        self.log_table: Floats = table
        self.order, self.vocabulary, self.max_new_tokens = order, vocabulary, max_new_tokens

    def _facts(self) -> dict[str, object]:
        return {name: getattr(self, name) for name in ("order", "vocabulary", "max_new_tokens")}

    def step_table(self, t: int) -> Floats:
        """Log-probabilities (C, V) at step t."""
        return self.log_table if self.log_table.ndim == 2 else self.log_table[t]

    @property
    def start(self) -> int:
        """The context before the first id."""
        return (self.vocabulary + 1) ** self.order - 1

    def follow(self, context: Ints, ids: Ints) -> Ints:
        """Return the contexts after these ids."""
        return (context * (self.vocabulary + 1) + ids) % (self.vocabulary + 1) ** self.order

    def sample(self, n: int, *, seed: int | Stream = 0, start: int = 0) -> Sequences:
        """Draw rows ``start .. start + n``: one uniform a row and step, inverse CDF."""
        return self.draw(as_stream(seed).uniforms(start, n, self.max_new_tokens), np.zeros(n, np.int64))

    def draw(self, uniforms: Floats, prompt_index: Ints) -> Sequences:
        """Draw one row from each row of uniforms (N, L); there is one prompt, number 0."""
        u, n = uniforms, len(uniforms)
        ids = np.zeros((n, self.max_new_tokens), np.int64)
        scores = np.zeros((n, self.max_new_tokens))
        lengths = np.full(n, self.max_new_tokens, np.int64)
        alive, context = np.arange(n), np.full(n, self.start)
        for t in range(self.max_new_tokens):
            table = self.step_table(t)
            rows = table[context]
            cumulative = np.cumsum(np.exp(rows), axis=1)
            # Against the row's own end, and below it, so that rounding in a sum reaches no id of probability zero.
            wanted = (u[alive, t] * cumulative[:, -1])[:, None]
            drawn = (cumulative <= np.minimum(wanted, np.nextafter(cumulative[:, -1:], 0))).sum(axis=1)
            ids[alive, t] = drawn
            scores[alive, t] = rows[np.arange(len(alive)), drawn]
            ended = drawn == END
            lengths[alive[ended]] = t + 1
            alive, context = alive[~ended], self.follow(context, drawn)[~ended]
            if alive.size == 0:
                break
        width = int(lengths.max()) if n else 0
        stopped = ids[np.arange(n), lengths - 1] == END
        drawn_rows = Sequences(
            ((),),
            prompt_index,
            ids[:, :width],
            lengths,
            stopped,
            scores.sum(axis=1),
            token_log_prob=scores[:, :width].astype(np.float32),
        )
        return drawn_rows

    def token_log_prob(self, x: Sequences) -> Floats:
        """Log-probability of every token, (N, T) float64; 0 beyond a row's length."""
        self._check(x)
        context = contexts(x.ids, self.order, self.vocabulary)
        steps: Ints = np.arange(x.ids.shape[1], dtype=np.int64)
        if self.log_table.ndim == 2:
            scores = self.log_table[context, x.ids]
        else:
            scores = self.log_table[steps[None], context, x.ids]
        return np.where(x.within, scores, 0.0)

    def log_prob(self, x: Samples) -> Floats:
        """Log-probability of each row under the stopped process, (N,) nats; -inf for impossible rows."""
        if not isinstance(x, Sequences):
            raise DataError("a chain scores Sequences", got=type(x).__name__)
        return self.token_log_prob(x).sum(axis=1)

    def score_beside(self, x: Samples, other: Law, *, again: bool = False) -> PairedScores:
        """Score rows that this chain drew under it and under `other`, with both martingales as control variates.

        See `models.base.Controlled`; nothing is kept, `again` or not.

        Raises
        ------
        LawMismatchError : other outcomes.
        """
        self.compatible(other)
        if not isinstance(x, Sequences) or not isinstance(other, Markov):
            raise LawMismatchError("a chain is scored beside chains", got=type(other).__name__)
        own_steps, other_steps = self.token_log_prob(x), other.token_log_prob(x)
        own, theirs = own_steps.sum(axis=1), other_steps.sum(axis=1)
        columns: list[Floats] = []
        for log_r, total in ((self, own),) if other is self else ((self, own), (other, theirs)):
            with np.errstate(invalid="ignore"):  # where r drops an id both terms may be infinite
                column = total - self._expected(log_r, x)
            if np.isfinite(column).all():
                columns.append(column)
        controls = np.stack(columns, axis=1) if columns else np.empty((len(x), 0))
        return PairedScores(own, theirs, controls, own_steps, other_steps)

    def _expected(self, r: Markov, x: Sequences) -> Floats:
        """Sum along each row of E[log r(next | context)] under this chain, (N,) nats; -inf where r drops an id."""
        mine, theirs = (contexts(x.ids, m, self.vocabulary) for m in (self.order, r.order))
        out = np.zeros(len(x))
        for t in range(x.ids.shape[1]):
            rows = np.flatnonzero(x.lengths > t)
            log_p, log_r = self.step_table(t)[mine[rows, t]], r.step_table(t)[theirs[rows, t]]
            said = log_p > -np.inf
            with np.errstate(invalid="ignore"):
                out[rows] += np.where(said, np.exp(log_p) * log_r, 0.0).sum(axis=1)
        return out

    def _check(self, x: Sequences) -> None:
        within = x.within
        if x.ids.shape[1] > self.max_new_tokens or ((x.ids < 0) | (x.ids >= self.vocabulary))[within].any():
            raise DataError(
                f"rows must hold ids below {self.vocabulary}, at most {self.max_new_tokens} of them", got=x.ids.shape
            )
        last = x.ids[np.arange(len(x)), np.maximum(x.lengths - 1, 0)] == END
        early: Ints = ((x.ids == END) & within).sum(axis=1) - last
        if len(x) and ((x.lengths < 1).any() or early.any() or (~last & (x.lengths < self.max_new_tokens)).any()):
            raise DataError("a row ends at its first end of sequence (id 0), or after max_new_tokens")

    def select(self, s: Selectivity) -> Markov:
        """Return the law sharpened by a token selectivity, or by `sequence_power`: p(y)^s, normalised over sequences.

        What these make is tilted last, where there is a `tilt`.

        Raises
        ------
        InputError : weight_power, since a chain has no components; best_of and accept, which `hydrometer.choose` takes;
            a tilt by another reward than `length`, `tokens` and `starts_with`.
        """
        refuse_choice(s)
        if s.weight_power is not None:
            what = "a chain is selected by token selectivities, sequence_power or tilt"
            raise InputError(what, got=s.label)
        law, first = self, canonical(s.untilted)
        if first is not None:
            power = first.sequence_power
            chosen = selected(self.log_table, first) if power is None else self._powered(power)
            law = Markov(chosen, order=self.order, max_new_tokens=self.max_new_tokens)
        if s.tilt is None:
            return law
        return law.tilted(reward_table(s.tilt, self.vocabulary, self.max_new_tokens), s.tilt.strength)

    def tilted(self, reward: ArrayLike, strength: float) -> Markov:
        """Return the law ``p(y) exp(r(y) / b) / Z`` of a reward that adds up along a row: what aligning aims at.

        It is the law of largest ``E[r(y)] - b KL(q, p)``.

        Parameters
        ----------
        reward : (V,) of each id, or (L, V) of each id at each step; r(y) is the sum over the ids of a row. Finite.
        strength : b > 0, in units of the reward a nat; small ones tilt more.

        Raises
        ------
        InputError : a reward or strength out of range; a chain too large for a table a step.

        Examples
        --------
        >>> coin = Markov(np.log([[0.5, 0.25, 0.25]]), order=0, max_new_tokens=1)
        >>> np.exp(coin.tilted([0, 0, np.log(2)], 1.0).log_table[0, 0]).round(3).tolist()
        [0.4, 0.2, 0.4]
        """
        added = np.asarray(reward, np.float64)
        shapes = (self.vocabulary,), (self.max_new_tokens, self.vocabulary)
        if added.shape not in shapes or not np.isfinite(added).all():
            raise InputError(f"a reward has finite numbers of shape {shapes[0]} or {shapes[1]}", got=added.shape)
        if not 0 < strength < math.inf:
            raise InputError("the strength b of a tilt must be a finite number above 0", got=strength)
        table = self._powered(1.0, in_nats(np.broadcast_to(added, shapes[1]), strength))
        return Markov(table, order=self.order, max_new_tokens=self.max_new_tokens)

    def _powered(self, power: float, added: Floats | None = None) -> Floats:
        """p(y)^s exp(sum of `added` (L, V)) / Z by the transfer matrix, backwards: a chain whose steps differ.

        Z_t(c) = sum_v p(v | c)^s exp(added_tv) Z_{t+1}(c v),  Z after the end of sequence and after L is 1.
        """
        width, count = self.max_new_tokens, (self.vocabulary + 1) ** self.order
        refuse_large(
            width * count * self.vocabulary, "the powered chain has", "lower order, vocabulary or max_new_tokens"
        )
        every: Ints = np.arange(count, dtype=np.int64)
        after = np.stack([self.follow(every, np.array(v)) for v in range(self.vocabulary)], axis=1)
        out = np.empty((width, count, self.vocabulary))
        log_z = np.zeros(count)
        for t in reversed(range(width)):
            ahead = log_z[after]
            ahead[:, END] = 0.0
            joint = power * self.step_table(t) + ahead + (0.0 if added is None else added[t])
            log_z = _log_sum(joint, 1)[:, 0]
            out[t] = joint - log_z[:, None]
        return out

    def compatible(self, other: object) -> None:
        """Refuse a law over other outcomes. Raises LawMismatchError."""
        theirs = (other.vocabulary, other.max_new_tokens) if isinstance(other, Markov) else type(other).__name__
        mine = (self.vocabulary, self.max_new_tokens)
        if theirs != mine:
            raise LawMismatchError(
                f"a chain over {mine[0]} ids of at most {mine[1]} is compared with its like", got=theirs
            )


def reached(p: Markov, order: int) -> Floats:
    """Probability that step t is reached in each context of that order, at least the chain's, (L, (V + 1)^order).

    Raises
    ------
    InputError : too many of them.
    """
    base, count = p.vocabulary + 1, (p.vocabulary + 1) ** order
    refuse_large(p.max_new_tokens * count, "the prefixes' law has", "lower the orders or max_new_tokens")
    every: Ints = np.arange(count, dtype=np.int64)
    after = (every[:, None] * base + np.arange(1, p.vocabulary)) % count
    out = np.zeros((p.max_new_tokens, count))
    out[0, -1] = 1.0
    for t in range(1, p.max_new_tokens):
        flow = out[t - 1][:, None] * np.exp(p.step_table(t - 1)[every % base**p.order, 1:])
        out[t] = np.bincount(after.ravel(), flow.ravel(), minlength=count)
    return out


def _log_sum(x: Floats, axis: int) -> Floats:
    """Keep the axis, with one entry."""
    from scipy.special import logsumexp  # pyright: ignore[reportUnknownVariableType]

    return np.asarray(logsumexp(x, axis=axis, keepdims=True), np.float64)


def selected(log_table: Floats, s: Selectivity) -> Floats:
    """Apply a token selectivity to every row, in the order temperature, top_k, top_p, min_p; ties are kept."""
    x = log_table - log_table.max(axis=-1, keepdims=True)
    if s.temperature is not None:
        x = x / s.temperature
    if s.top_k is not None and s.top_k < x.shape[-1]:
        x = np.where(x >= -np.partition(-x, s.top_k - 1, axis=-1)[..., s.top_k - 1 : s.top_k], x, -np.inf)
    if s.top_p is not None and s.top_p < 1:
        falling = -np.sort(-x, axis=-1)
        held = np.cumsum(np.exp(falling), axis=-1)
        last = np.argmax(held >= s.top_p * held[..., -1:] * (1 - 1e-12), axis=-1)
        x = np.where(x >= np.take_along_axis(falling, last[..., None], axis=-1), x, -np.inf)
    if s.min_p:
        x = np.where(x >= math.log(s.min_p), x, -np.inf)
    return x - _log_sum(x, -1)
