"""Embeds answers: the mean over an answer's tokens of the last hidden state.

Shapes: N sequences, B rows run together, S positions, M packed tokens, D width.

The state is taken after the final norm, at the answer's tokens only. Equal answers are run once, so that their
embeddings have equal bits.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from hydrometer.core.array_types import Ints
from hydrometer.core.errors import LawMismatchError
from hydrometer.models.causal_lm.cpu.llama import Llama, Packing
from hydrometer.models.causal_lm.cpu.thread_pool import ThreadPool
from hydrometer.models.causal_lm.inference.opened import Asked
from hydrometer.models.causal_lm.inference.scorer import (
    PACKED_TOKENS,
    PADDED_ROWS,
    PADDED_TOKENS,
    PROMPTS_TOGETHER,
    row_batches,
)
from hydrometer.models.rows.sequences import Sequences

__all__ = ["embed"]

Embedding = NDArray[np.float32]


@torch.inference_mode()
def embed(law: Asked, x: Sequences) -> Embedding:
    """Embed answers, (N, D) float32.

    Parameters
    ----------
    law : with network and prompts.
    x : rows that answer its prompts.

    Raises
    ------
    LawMismatchError : ids that the tokenizer does not know, or a row without a token.
    """
    if x.ids.size and not 0 <= x.ids.min() <= x.ids.max() < law.lm.vocab_size:
        raise LawMismatchError("the rows hold ids that the tokenizer does not know", got=int(x.ids.max()))
    if (x.lengths < 1).any():
        raise LawMismatchError("an answer without tokens has no place", got=f"row {int(x.lengths.argmin())}")
    first, same_as = _distinct(x)
    chosen = x.take(first)
    engine = law.lm.engine
    found = _general(law, chosen) if engine is None else _packed(engine, law, chosen)
    return found[same_as]


def _distinct(x: Sequences) -> tuple[Ints, Ints]:
    """First row of each distinct answer, and for every row which of these it equals."""
    place: dict[tuple[int, bytes], int] = {}
    first: list[int] = []
    same_as = np.empty(len(x), np.int64)
    for i in range(len(x)):
        row = int(x.prompt_index[i]), x.row(i).tobytes()
        if row not in place:
            place[row] = len(first)
            first.append(i)
        same_as[i] = place[row]
    return np.array(first, np.int64), same_as


def _packed(engine: Llama, law: Asked, x: Sequences) -> Embedding:
    """Run without padding, each prompt once."""
    out = np.empty((len(x), int(law.lm.network.head.in_features)), np.float32)
    prompts = np.unique(x.prompt_index)
    for at in range(0, len(prompts), PROMPTS_TOGETHER):
        group = prompts[at : at + PROMPTS_TOGETHER]
        rows = np.flatnonzero(np.isin(x.prompt_index, group))
        parts = list(row_batches(rows, x.lengths, len(rows), PACKED_TOKENS))
        pool = ThreadPool(len(parts))
        read = engine.prompts([law.prompts.ids[p] for p in group], pool)

        def work(batch: Ints, group: Ints = group, read: Any = read) -> None:
            of_B = np.searchsorted(group, x.prompt_index[batch])
            own = x.lengths[batch]
            cache = engine.cache(len(batch), int(own.max()), shared=True)
            tokens = np.concatenate([x.row(int(i)) for i in batch])
            states_MD = engine.forward(tokens, Packing.of(own, read.length[of_B]), cache, read, of_B)
            sums = np.add.reduceat(states_MD.double().numpy(), np.cumsum(own) - own, axis=0)
            out[batch] = sums / own[:, None]

        pool.each(work, parts)
    return out


def _general(law: Asked, x: Sequences) -> Embedding:
    """Run prompt and answer together, padded on the right if that changes nothing, else each row alone."""
    lm, prompts = law.lm, law.prompts.ids
    before = np.array([len(prompts[p]) for p in x.prompt_index], np.int64)
    whole = before + x.lengths
    out: list[Embedding] = [np.empty(0, np.float32)] * len(x)
    together = PADDED_ROWS if lm.running.is_whole(int(whole.max())) else 1
    for batch in row_batches(np.arange(len(x)), whole, together, PADDED_TOKENS):
        ids_BS = torch.zeros(len(batch), int(whole[batch].max()), dtype=torch.long)
        for b, i in enumerate(batch):
            ids_BS[b, : whole[i]] = torch.tensor([*prompts[x.prompt_index[i]], *x.row(int(i)).tolist()])
        states_BSD = lm.network.last_hidden(ids_BS.to(lm.device))
        for b, i in enumerate(batch):
            out[i] = states_BSD[b, before[i] : whole[i]].double().mean(0).float().cpu().numpy()
    return np.stack(out)
