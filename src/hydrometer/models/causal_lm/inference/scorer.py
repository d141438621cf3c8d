"""Scores sequences under a causal LM: log-probability of the stopped process, in total and by step.

Shapes: N sequences, B rows scored together, T positions, M wanted positions, D width, W rows of the output matrix.

Each prompt is run once, and all its answers share its cache. Networks of Llama type compute no padding, others little
(rows of similar length are batched). The head is applied to wanted positions only, a few at a time, and its logits are
reduced in place: no (B, T, V) tensor exists.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from hydrometer.core.array_types import Floats, Ints
from hydrometer.core.errors import LawMismatchError, StageError
from hydrometer.core.spec import Selectivity
from hydrometer.models.base import PairedScores
from hydrometer.models.causal_lm.cpu.llama import Llama
from hydrometer.models.causal_lm.cpu.packed_source import PackedSource
from hydrometer.models.causal_lm.cpu.thread_pool import ThreadPool
from hydrometer.models.causal_lm.cuda.device_llama import DeviceLlama
from hydrometer.models.causal_lm.cuda.device_source import DeviceSource
from hydrometer.models.causal_lm.inference.opened import Asked
from hydrometer.models.causal_lm.networks import next_token
from hydrometer.models.causal_lm.networks.hidden_state_cache import HiddenStateCache, cached_states
from hydrometer.models.causal_lm.networks.next_token import Logits, TokenScores
from hydrometer.models.causal_lm.networks.sources import GeneralSource, Source
from hydrometer.models.rows.sequences import Sequences

__all__ = [
    "PACKED_TOKENS",
    "PADDED_ROWS",
    "PADDED_TOKENS",
    "PROMPTS_TOGETHER",
    "StepScores",
    "row_batches",
    "score",
    "score_beside",
    "score_steps",
]


PROMPTS_TOGETHER = 64
PACKED_TOKENS = 1024  # of a batch of packed rows
PADDED_ROWS, PADDED_TOKENS = 128, 4096
_LOGITS_TOGETHER = 256  # padded positions where the states are the logits themselves
_HEAD_POSITIONS = 64  # positions a worker computes logits of at once, 6 MB in bfloat16; more is no faster
_DEVICE_TOKENS, _DEVICE_POSITIONS = 1 << 16, 1024  # the same on an accelerator


@dataclass(frozen=True, slots=True, eq=False)
class StepScores:
    """Scores at each step of N sequences; zero beyond a row's length.

    Attributes
    ----------
    selected, unselected : (N, T) float64 nats, log-probability of each token under the selected law and under the law
        itself.
    near_edge : (N, T) bool, whether rounding at the selectivity's edge could show there; see `logit_kernels.NEAR_EDGE`.
    entropy : (N, T) float64 nats, of the selected next-token law, or None.
    cross_entropy : (N, T) float64 nats, of the selected next-token law relative to another's, or None.
    other : (N, T) float64 nats, log-probability of each token under that other law as it is selected, or None.
    as_if_kept : (N, T) bool, tokens of the law's own rows that its selectivity drops by no more than rounding, scored
        as if kept; or None if not requested.
    """

    selected: Floats
    unselected: Floats
    near_edge: NDArray[np.bool_]
    entropy: Floats | None
    cross_entropy: Floats | None
    other: Floats | None = None
    as_if_kept: NDArray[np.bool_] | None = None


def score(law: Asked, x: Sequences, *, rows_together: int = PADDED_ROWS) -> Floats:
    """Log-probability of each row, (N,) float64; -inf for impossible rows."""
    possible_N = law.possible(x)
    total_N = np.full(len(x), -math.inf)
    rows = np.flatnonzero(possible_N)
    if rows.size:
        total_N[rows] = score_steps(law, x.take(rows), rows_together=rows_together).selected.sum(-1)
    return total_N


def score_beside(law: Asked, x: Sequences, other: Asked, *, again: bool = False) -> PairedScores:
    """Score rows that `law` drew under it and under `other`; the controls are the martingales of both.

    ``sum_t (log r(x_t | x_<t) - E[log r(X | x_<t)])``, X of the next-token law that draws, has mean zero under that
    law whatever r is: r is `law` itself, and `other` wherever its expectations are finite.

    In bfloat16 a drawn token may lie just outside the kept set that is computed here, as drawing and scoring round
    differently. It is scored as if kept, and stays in its step's control: rounding moves tokens across the edge in both
    directions.
    """
    law.compatible(other)
    if not (law.possible(x).all() and other.possible(x).all()):
        raise StageError("rows that their own law cannot say", fix="score them with log_prob instead")
    same = other is law
    steps = score_steps(law, x, entropy=True, against=None if same else other, again=again, drawn=True)
    near = None if steps.as_if_kept is None else steps.near_edge.sum(-1)
    kept = None if steps.as_if_kept is None else steps.as_if_kept.sum(-1)
    own = steps.selected.sum(-1)
    assert steps.entropy is not None
    columns = [own + steps.entropy.sum(-1)]
    if same:
        return PairedScores(own, own, np.stack(columns, axis=1), near_edge=near, as_if_kept=kept)
    assert steps.other is not None
    assert steps.cross_entropy is not None
    theirs = steps.other.sum(-1)
    with np.errstate(invalid="ignore"):  # where the other law drops a token both terms may be infinite
        columns.append(theirs + steps.cross_entropy.sum(-1))
    usable = [c for c in columns if np.isfinite(c).all()]
    controls = np.stack(usable, axis=1) if usable else np.empty((len(x), 0))
    return PairedScores(own, theirs, controls, steps.selected, steps.other, near_edge=near, as_if_kept=kept)


@torch.inference_mode()
def score_steps(
    law: Asked,
    x: Sequences,
    *,
    entropy: bool = False,
    against: Asked | None = None,
    again: bool = False,
    drawn: bool = False,
    rows_together: int = PADDED_ROWS,
) -> StepScores:
    """Score every token of every row, however the row ends.

    Parameters
    ----------
    x : rows that answer the law's prompts.
    entropy : also the entropy of the next-token law at each step.
    against : also the cross-entropy of `law`'s next-token law relative to this one's at each step,
        ``-sum_j p(j | prefix) log q(j | prefix)``, p of `law` and q of `against`; and log q of each token.
    again : cache the states of `law`'s network at these rows for the next call, 256 MiB at most in total.
    drawn : the rows are `law`'s own. In bfloat16 tokens that a selectivity drops by no more than rounding
        (`next_token.BF16_ERROR`) are scored as if kept, and are near the edge; no effect in float32.
    rows_together : maximum rows of a padded batch.

    Raises
    ------
    LawMismatchError : the rows answer other prompts, or the laws are not of the same outcomes.
    """
    if x.prompt_ids != law.prompts.ids:
        raise LawMismatchError("the rows answer other prompts than this law's", got=len(x.prompt_ids))
    if against is not None:
        law.compatible(against)
    if x.ids.size and not 0 <= x.ids.min() <= x.ids.max() < law.lm.vocab_size:
        raise LawMismatchError("the rows hold ids that the tokenizer does not know", got=int(x.ids.max()))
    shape = x.ids.shape
    rounds = drawn and law.selectivity is not None and law.lm.dtype == torch.bfloat16
    out = StepScores(
        np.zeros(shape),
        np.zeros(shape),
        np.zeros(shape, np.bool_),
        np.zeros(shape) if entropy else None,
        None if against is None else np.zeros(shape),
        None if against is None else np.zeros(shape),
        np.zeros(shape, np.bool_) if rounds else None,
    )
    laws = [law] if against is None else [law, against]
    engines = [a.lm.engine or _packing(a.lm.on_device) for a in laws]
    kept = None
    if again and law.lm.frozen:  # not of weights that may change
        kept = cached_states(law.lm.hidden_states, x)
        law.lm.hidden_states = kept[0]
    prompts = np.unique(x.prompt_index)
    for at in range(0, len(prompts), PROMPTS_TOGETHER):
        group = prompts[at : at + PROMPTS_TOGETHER]
        rows = np.flatnonzero(np.isin(x.prompt_index, group) & (x.lengths > 0))
        texts = [law.prompts.ids[p] for p in group]
        packed = [e for e in engines if e is not None]
        if is_packed := len(packed) == len(laws):
            threaded = all(isinstance(e, Llama) for e in packed)
            batches = list(_full_batches(rows, x.lengths, PACKED_TOKENS if threaded else _DEVICE_TOKENS))
            pool = ThreadPool(len(batches) if threaded else 1)
        else:
            tokens = PADDED_TOKENS if all(a.lm.is_split for a in laws) else _LOGITS_TOGETHER
            batches = list(row_batches(rows, x.lengths, rows_together, tokens))
            pool = ThreadPool(1)
        found = None if kept is None else _CachedBlock(*kept, f"{'packed' if is_packed else 'padded'} {at}/".encode())
        after = [texts] * len(laws)
        if found is not None and all(
            found.has([x.row(int(i)) for i in b], np.searchsorted(group, x.prompt_index[b])) for b in batches
        ):
            after[0] = []  # all states are cached: no prompt is run
        sources: list[Source] = (
            [
                PackedSource(e, t, pool) if isinstance(e, Llama) else DeviceSource(e, t)
                for e, t in zip(packed, after, strict=True)
            ]
            if is_packed
            else [GeneralSource(a.lm.network, a.way, t) for a, t in zip(laws, after, strict=True)]
        )
        if found is not None:
            sources[0] = _CachedSource(sources[0], found)

        def work(batch: Ints, group: Ints = group, sources: list[Source] = sources) -> None:
            _score_batch(laws, sources, x, batch, np.searchsorted(group, x.prompt_index[batch]), out)

        pool.each(work, batches)
    return out


def _packing(llama: DeviceLlama | None) -> DeviceLlama | None:
    return llama if llama is not None and llama.packs else None


@dataclass(frozen=True, slots=True, eq=False)
class _CachedBlock:
    """Cached states of a network at a block of rows, by batch; `how`: packed or padded, and after which prompts."""

    kept: HiddenStateCache
    states: dict[bytes, Tensor]
    how: bytes

    def key(self, ids: list[Ints], of_B: Ints) -> bytes:
        return hashlib.sha256(self.how + b"".join(row.tobytes() + b"/" for row in ids) + of_B.tobytes()).digest()

    def has(self, ids: list[Ints], of_B: Ints) -> bool:
        return self.key(ids, of_B) in self.states


class _CachedSource:
    def __init__(self, source: Source, kept: _CachedBlock) -> None:
        self.source, self.kept = source, kept

    def states(self, ids: list[Ints], of_B: Ints) -> Tensor:
        batch = self.kept.key(ids, of_B)
        found = self.kept.states.get(batch)
        if found is None:
            found = self.source.states(ids, of_B)
            self.kept.kept.keep(self.kept.states, batch, found)
        return found

    def logits(self, states_MD: Tensor) -> Logits:
        return self.source.logits(states_MD)


def _score_batch(
    laws: list[Asked], sources: list[Source], x: Sequences, batch: Ints, of_B: Ints, out: StepScores
) -> None:
    ids = [x.row(int(i)) for i in batch]
    wanted = np.concatenate(ids)
    row_M = np.repeat(batch, [len(row) for row in ids])
    step_M = np.concatenate([np.arange(len(row)) for row in ids])
    states = [source.states(ids, of_B) for source in sources]
    mine = laws[0]
    together = _DEVICE_POSITIONS if isinstance(sources[0], DeviceSource) else _HEAD_POSITIONS
    for a in range(0, len(wanted), together):
        part = slice(a, a + together)
        at = row_M[part], step_M[part]
        logits = [source.logits(s[part]) for source, s in zip(sources, states, strict=True)]
        found = next_token.score(
            logits[0], mine.lm.vocab_size, mine.selectivity, wanted[part], entropy=out.entropy is not None
        )
        out.selected[at] = _known(found)
        out.unselected[at], out.near_edge[at] = found.unselected, found.near_edge
        if out.as_if_kept is not None and mine.selectivity is not None:
            _keep_the_drawn(logits[0], mine.lm.vocab_size, mine.selectivity, wanted[part], at, out)
        if out.entropy is not None:
            out.entropy[at] = found.entropy
        if out.cross_entropy is not None and out.other is not None:
            theirs = next_token.score(logits[1], mine.lm.vocab_size, laws[1].selectivity, wanted[part])
            out.other[at] = _known(theirs)
            out.cross_entropy[at] = next_token.cross_entropy(
                logits[0], mine.selectivity, logits[1], laws[1].selectivity, mine.lm.vocab_size
            )


def _keep_the_drawn(
    logits_MW: Logits, vocab_size: int, s: Selectivity, ids_M: Ints, at: tuple[Ints, Ints], out: StepScores
) -> None:
    """Score tokens that are dropped by no more than rounding as if kept."""
    dropped = np.flatnonzero(np.isneginf(out.selected[at]))
    if dropped.size and out.as_if_kept is not None:
        log_p, inside = next_token.score_dropped(logits_MW[dropped], vocab_size, s, ids_M[dropped])
        rows, steps = (index[dropped[inside]] for index in at)
        out.selected[rows, steps] = log_p[inside]
        out.near_edge[rows, steps] = out.as_if_kept[rows, steps] = True


def _known(found: TokenScores) -> Floats:
    """Log-probability under the selected law; NaN of a diverged network must not become -inf."""
    return np.where(np.isnan(found.unselected), np.nan, found.selected)


def row_batches(rows: Ints, lengths: Ints, most: int, tokens: int) -> Iterator[Ints]:
    """Rows of similar length together, longest first, at most `tokens` positions a batch."""
    rows = rows[np.argsort(-lengths[rows], kind="stable")]
    at = 0
    while at < len(rows):
        n = max(1, min(most, tokens // int(lengths[rows[at]])))
        yield rows[at : at + n]
        at += n


def _full_batches(rows: Ints, lengths: Ints, tokens: int) -> Iterator[Ints]:
    """Rows packed as close to `tokens` positions a batch as they go, longest first.

    Batches of one size allocate pieces of one size, which the allocator uses again; with sizes that differ it grows.
    """
    left = {int(n): list(rows[lengths[rows] == n]) for n in np.unique(lengths[rows])}
    sizes = sorted(left, reverse=True)
    while sizes:
        room, batch = tokens, []
        for n in [*sizes]:
            while left[n] and (n <= room or not batch):
                batch.append(left[n].pop())
                room -= n
            if not left[n]:
                sizes.remove(n)
        yield np.array(batch, np.int64)
