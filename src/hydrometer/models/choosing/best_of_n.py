"""Best of n and rejection: rows chosen among candidates of a law.

    accept        keep drawing until a candidate's score lies between the bounds
    best of n     of the first n candidates kept, the one with the highest score; ties go to the first drawn

The result is a law that can be drawn from, but not one whose probabilities can be computed: that of a row needs the
share of candidates that score below it. Its Kullback-Leibler divergence from the candidates' law is known:
``-log(acceptance rate)`` for rejection, at most ``log n - (n - 1) / n`` for the best of n, their sum for both. Source:
Beirami et al. (2024), Theoretical guarantees on the best-of-n alignment policy; docs, Theory, eqs. 31 to 33.

Candidate k of row i is drawn from entry i of the stream's child ``candidate/k``, so a row does not depend on what
others needed.

Shapes: n rows of a block, R rows still wanting, m candidates of each in a batch, L uniforms a row.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Protocol, cast, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from hydrometer.core.arguments import one_of
from hydrometer.core.array_types import Floats, Ints
from hydrometer.core.errors import InputError, SpecError, StageError
from hydrometer.core.rng import Stream, as_stream
from hydrometer.core.shown import Shown
from hydrometer.core.spec import Accept, ChainSpec, Selectivity
from hydrometer.models.base import Family, Law, Samples, ScoreKind
from hydrometer.models.choosing.rankers import Scorer, Texts, check_score, score_identity, scorer
from hydrometer.models.rows.sequences import Sequences

__all__ = [
    "CandidateLaw",
    "ChosenLaw",
    "TextFamily",
    "candidates_of",
    "check_choices",
    "choice_identity",
    "choose",
    "needs_truth",
]


_ROWS_TOGETHER = 4096  # where rows need no block of their own


class CandidateLaw(Law, Protocol):
    """A law of sequences that can draw any set of rows: what rows can be chosen from."""

    @property
    def block_rows(self) -> int | None:
        """Rows whose bits depend on each other, or None."""
        ...

    @property
    def max_new_tokens(self) -> int:
        """Uniforms a row takes."""
        ...

    @property
    def n_prompts(self) -> int:
        """Row i answers prompt i mod this."""
        ...

    def draw(self, uniforms: Floats, prompt_index: Ints) -> Sequences:
        """Draw a row from each row of uniforms (N, L)."""
        ...


@runtime_checkable
class TextFamily(Protocol):
    """What a family offers besides the contract of `models.base`, so that rows of its laws can be chosen."""

    def texts(self, chain: ChainSpec, law: Law, x: Sequences) -> tuple[list[str], list[str]]:
        """Return the rows' prompts and answers as text."""
        ...


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class ChosenLaw(Shown):
    """The law of rows chosen among candidates. It draws; `log_prob` raises. Made by `choose`.

    Parameters
    ----------
    base : the candidates' law.
    best_of : n.
    rank : score that tells the best, or None where n is 1.
    accept, test : bounds, and the score that they hold, or None.
    label : the choice in words.
    """

    base: CandidateLaw
    best_of: int
    rank: Scorer | None
    accept: Accept | None
    test: Scorer | None
    label: str

    def _facts(self) -> dict[str, object]:
        return {"choice": self.label, "candidates": self.base}

    @property
    def score_kind(self) -> ScoreKind:
        """Probabilities of chosen rows cannot be computed."""
        return "none"

    def sample(self, n: int, *, seed: int | Stream = 0, start: int = 0) -> Sequences:
        """Draw rows ``start .. start + n`` of the stream, with `draws`; `log_prob` is the candidates' law's.

        Raises
        ------
        StageError : a row had `accept.tries` candidates without one kept. It is not left out or kept as it is: either
            would make another law of the rest.
        """
        if n < 1 or start < 0:
            raise InputError("sample needs n >= 1 and start >= 0", got=(n, start))
        size, end = self.base.block_rows, start + n
        first, last = (start, end) if size is None else (start // size * size, -(-end // size) * size)
        step = size or _ROWS_TOGETHER
        parts = [
            self.sample_block(min(step, last - at), stream=as_stream(seed), start=at) for at in range(first, last, step)
        ]
        return Sequences.concatenate(parts).take(slice(start - first, end - first))

    def sample_block(self, n: int, *, stream: Stream, start: int) -> Sequences:
        """Draw rows ``start .. start + n`` of the stream together, and no others. Raises StageError as `sample`."""
        return _Block(self, stream, start, start + n, self.base.block_rows or _ROWS_TOGETHER).fill()

    def log_prob(self, x: Samples) -> Floats:
        """Refuse: there is none. Raises InputError."""
        raise InputError(
            "rows chosen among candidates have no log-probability that can be computed",
            got=self.label,
            fix="distil a student from them, or score them under the candidates' law",
        )

    def select(self, s: Selectivity) -> Law:
        """Refuse: a choice comes last. Raises InputError."""
        raise InputError(
            "rows are chosen already", got=f"{self.label}, then {s.label}", fix="select the law, then choose"
        )

    def compatible(self, other: object) -> None:
        """Refuse a law over other outcomes. Raises LawMismatchError."""
        self.base.compatible(candidates_of(other))


def candidates_of(law: object) -> object:
    """Return the law that rows are chosen, or selected, from where they cannot be scored; else the law itself."""
    return getattr(law, "base") if getattr(law, "score_kind", None) == "none" else law  # noqa: B009  (of any such law)


def choose(law: Law, s: Selectivity, *, truth: Law | None = None, texts: Texts | None = None) -> Law:
    """Return the law under a selectivity, also one that chooses among candidates.

    Parameters
    ----------
    law : an unselected law; for `best_of` and `accept` one of sequences, a causal LM's or a chain's.
    s : selectivity; its other fields make the candidates' law.
    truth : p*, for the score `truth_log_prob`.
    texts : from rows to their prompts and answers, for scores of installed packages; a causal LM brings its own.

    Returns
    -------
    A `ChosenLaw`, or ``law.select(s)`` where nothing is chosen.

    Raises
    ------
    InputError : the law draws no sequences, or a score needs what was not given.

    Examples
    --------
    >>> from hydrometer import Markov
    >>> coin = Markov(np.log([[0.5, 0.5]]), order=0, max_new_tokens=40)  # E length = 2
    >>> longest = choose(coin, Selectivity(best_of=2, rank_by="length"))
    >>> x = longest.sample(20_000, seed=0)  # E of the greater of two = 8/3
    >>> bool(abs(x.lengths.mean() - 8 / 3) < 5 * x.lengths.std() / 20_000**0.5)
    True
    """
    one_of(s, Selectivity, "what a law is selected by", "for example Selectivity(temperature=0.8)")
    if not s.chooses:
        return law.select(s)
    base = law if s.candidates is None or s.candidates.is_neutral else law.select(s.candidates)
    if not hasattr(base, "draw"):
        raise InputError(
            "best_of and accept choose among sequences", got=type(law).__name__, fix="use a causal LM or a chain"
        )
    own: Texts | None = texts or getattr(law, "texts", None)

    def score(name: str) -> Scorer:
        return scorer(name, unselected=law, truth=truth, texts=own)

    n, accept = s.best_of or 1, s.accept
    rank = score(s.rank_by) if n > 1 and s.rank_by is not None else None
    test = None if accept is None else score(accept.by)
    return ChosenLaw(cast("CandidateLaw", base), n, rank, accept, test, s.label)


def check_choices(chain: ChainSpec, family: Family) -> None:
    """Refuse selectivities that choose where the family cannot, and scores that do not exist. Raises SpecError."""
    for s in (*chain.selectivity, *chain.controls):
        if not s.chooses:
            continue
        if not isinstance(family, TextFamily):
            fix = "leave them out, or take a family of sequences"
            raise SpecError(f"best_of and accept need a family of sequences, not {family.name}", got=s.label, fix=fix)
        for name in _scores(s):
            check_score(name)


def choice_identity(s: Selectivity | None) -> dict[str, object]:
    """Return what a draw's key needs besides the selectivity: the identity of installed scores."""
    found = {name: identity for name in _scores(s) if (identity := score_identity(name)) is not None}
    return {"scores": found} if found else {}


def needs_truth(s: Selectivity) -> bool:
    """Whether a choice looks at the truth's log-probability, so that the truth has to be opened."""
    return "truth_log_prob" in _scores(s)


def _scores(s: Selectivity | None) -> list[str]:
    if s is None:
        return []
    return [n.removeprefix("-") for n in (s.rank_by, None if s.accept is None else s.accept.by) if n is not None]


class _Block:
    """Chooses rows ``first .. last``, all of them together; `size` candidates make a full batch."""

    def __init__(self, law: ChosenLaw, stream: Stream, first: int, last: int, size: int) -> None:
        n = last - first
        self.law, self.stream, self.first, self.size = law, stream, first, size
        self.drawn_n = np.zeros(n, np.int64)
        self.kept_n = np.zeros(n, np.int64)
        self.kept_at_n = np.zeros(n, np.int64)  # candidates drawn when one was last kept
        self.best_n = np.zeros(n)
        self.where_n = np.zeros(n, np.int64)  # the best so far, in the rows of all parts
        self.parts: list[Sequences] = []
        self.stored = 0
        self.rate = 1.0  # of the last batch
        self.tries = math.inf if law.accept is None else law.accept.tries

    def fill(self) -> Sequences:
        while (wanting := np.flatnonzero(self.kept_n < self.law.best_of)).size:
            self._batch(*self._next(wanting))
        return replace(Sequences.concatenate(self.parts).take(self.where_n), draws=self.drawn_n)

    def _next(self, wanting: Ints) -> tuple[Ints, int]:
        """Which rows draw next, and how many candidates each. What is chosen does not depend on it."""
        room = self.size // (2 * wanting.size)
        if self.rate == 0 and room < 2:
            return wanting[:1], self.size  # nothing of a large batch was kept: a row that cannot be had fails soon
        need = int((self.law.best_of - self.kept_n[wanting]).max())
        hoped = room if self.rate == 0 else math.ceil(need / self.rate)
        return wanting, max(1, min(hoped, room))

    def _batch(self, rows_R: Ints, m: int) -> None:
        k_mR = self.drawn_n[rows_R] + np.arange(m, dtype=np.int64)[:, None]
        at = np.tile(rows_R, m)
        x = self.law.base.draw(self._uniforms(at, k_mR.ravel()), (self.first + at) % self.law.base.n_prompts)
        ok, score = self._judged(x)
        self.rate = float(ok.mean())
        better = np.zeros(len(x), np.bool_)
        for j in range(m):
            layer = slice(j * rows_R.size, (j + 1) * rows_R.size)
            better[layer] = self._layer(rows_R, ok[layer], score[layer], self.stored + layer.start)
        # Only what became a row's best is stored; `where_n` then counts these.
        self._store(x, better)
        self._check_tries(rows_R)

    def _layer(self, rows_R: Ints, ok_R: NDArray[np.bool_], score_R: Floats, offset: int) -> NDArray[np.bool_]:
        """Take in one more candidate of each row; those beyond the last needed do not count."""
        since_R = self.drawn_n[rows_R] - self.kept_at_n[rows_R]
        live_R = (self.kept_n[rows_R] < self.law.best_of) & (since_R < self.tries)
        ok_R = ok_R & live_R
        better_R = ok_R & ((self.kept_n[rows_R] == 0) | (score_R > self.best_n[rows_R]))
        self.drawn_n[rows_R[live_R]] += 1
        self.kept_n[rows_R[ok_R]] += 1
        self.kept_at_n[rows_R[ok_R]] = self.drawn_n[rows_R[ok_R]]
        self.best_n[rows_R[better_R]] = score_R[better_R]
        self.where_n[rows_R[better_R]] = offset + np.flatnonzero(better_R)
        return better_R

    def _store(self, x: Sequences, better: NDArray[np.bool_]) -> None:
        places = np.cumsum(better) - 1
        fresh = self.where_n >= self.stored
        fresh &= self.kept_n > 0
        self.where_n[fresh] = self.stored + places[self.where_n[fresh] - self.stored]
        if better.any():
            self.parts.append(x.take(np.flatnonzero(better)))
            self.stored += int(better.sum())

    def _judged(self, x: Sequences) -> tuple[NDArray[np.bool_], Floats]:
        """Which candidates are kept, and the score of those."""
        law, n = self.law, len(x)
        ok, score = np.ones(n, np.bool_), np.zeros(n)
        if law.test is not None and law.accept is not None:
            found = law.test(x)
            low, high = law.accept.min, law.accept.max
            ok = (found >= (-np.inf if low is None else low)) & (found <= (np.inf if high is None else high))
        if law.rank is not None and ok.any():
            kept = np.flatnonzero(ok)
            score[kept] = law.rank(x if kept.size == n else x.take(kept))
            if np.isnan(score).any():
                raise StageError("a score of candidates is NaN", got=law.label)
        return ok, score

    def _uniforms(self, at: Ints, k: Ints) -> Floats:
        """(len(at), L) uniforms of candidate k of row `at`."""
        out = np.empty((at.size, self.law.base.max_new_tokens))
        for one in np.unique(k):
            mine = np.flatnonzero(k == one)
            low, high = int(at[mine].min()), int(at[mine].max())
            stream = self.stream.child("candidate", str(one))
            out[mine] = stream.uniforms(self.first + low, high - low + 1, out.shape[1])[at[mine] - low]
        return out

    def _check_tries(self, rows_R: Ints) -> None:
        accept = self.law.accept
        wanting = rows_R[self.kept_n[rows_R] < self.law.best_of]
        late = wanting[self.drawn_n[wanting] - self.kept_at_n[wanting] >= self.tries]
        if accept is not None and late.size:
            kept, drawn = int(self.kept_n.sum()), int(self.drawn_n.sum())
            raise StageError(
                f"row {self.first + int(late[0])}: none of {accept.tries} candidates was accepted by {accept.label}",
                got=f"{kept} accepted of {drawn} drawn in its block",
                fix="widen accept, or raise accept.tries",
            )
