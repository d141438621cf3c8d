"""Draws one block of rows from a causal LM by inverse transform, and records their exact log-probabilities.

Shapes: n rows of the block, A rows kept, L the longest answer, V ids.

The uniform of (row, step) is an entry of a counter-based stream, so a row does not depend on its neighbours' draws. The
shape of a matrix product may change its last bits, so a block's size is part of its identity. How its rows are divided
among workers depends on that size and on torch's thread count only.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from numpy.typing import NDArray

from hydrometer.core.array_types import Ints
from hydrometer.core.rng import Stream
from hydrometer.models.causal_lm.cpu.llama import Llama
from hydrometer.models.causal_lm.cpu.thread_pool import ThreadPool
from hydrometer.models.causal_lm.cuda.device_llama import DeviceLlama
from hydrometer.models.causal_lm.inference.device_sampler import draw_on_device
from hydrometer.models.causal_lm.inference.opened import Asked
from hydrometer.models.causal_lm.networks import next_token
from hydrometer.models.causal_lm.networks.decoders import CachedDecoder, Decoder, LlamaDecoder, RecomputeDecoder
from hydrometer.models.rows.sequences import Sequences

__all__ = ["draw_blocks", "draw_rows"]


_WORKER_ROWS = 32  # least rows of a worker


@torch.inference_mode()
def draw_blocks(law: Asked, stream: Stream, first: int, last: int) -> Sequences:
    """Draw whole blocks ``first .. last`` of the stream, each of ``law.block_rows`` rows."""
    engine, n = _packed_engine(law), law.block_rows
    blocks: list[Sequences] = []
    for start in range(first * n, last * n, n):
        prompt_n = np.arange(start, start + n, dtype=np.int64) % len(law.prompts.ids)
        blocks.append(_draw_rows(law, engine, stream.uniforms(start, n, law.max_new_tokens), prompt_n))
    return Sequences.concatenate(blocks)


@torch.inference_mode()
def draw_rows(law: Asked, u_nL: NDArray[np.float64], prompt_n: Ints) -> Sequences:
    """Draw n rows together, each from its own uniforms and after its own prompt."""
    return _draw_rows(law, _packed_engine(law), u_nL, prompt_n)


def _packed_engine(law: Asked) -> Llama | DeviceLlama | None:
    engine = law.lm.engine
    if engine is not None:
        engine.pack()
    return engine or law.lm.on_device


def _draw_rows(law: Asked, engine: Llama | DeviceLlama | None, u_nL: NDArray[np.float64], prompt_n: Ints) -> Sequences:
    if isinstance(engine, DeviceLlama):
        return draw_on_device(law, engine, u_nL, prompt_n)
    lm, (n, longest) = law.lm, u_nL.shape
    distinct, of_n = np.unique(prompt_n, return_inverse=True)
    prompts = [law.prompts.ids[p] for p in distinct]
    if engine is not None:
        pool = ThreadPool(n // _WORKER_ROWS)
        cached = engine.prompts(prompts, pool)

        def work(part: slice) -> Sequences:
            decoder = LlamaDecoder(engine, cached, of_n[part], longest)
            return _draw(law, decoder, u_nL[part], prompt_n[part], pool.check)

        return Sequences.concatenate(pool.each(work, pool.split(n)))
    way = law.way
    decoder: Decoder = (
        CachedDecoder(lm.network, prompts, of_n)
        if way == "cached"
        else RecomputeDecoder(lm.network, way, prompts, of_n)
    )
    return _draw(law, decoder, u_nL, prompt_n)


def _draw(
    law: Asked,
    decoder: Decoder,
    u_nL: NDArray[np.float64],
    prompt_n: Ints,
    check: Callable[[], None] = lambda: None,
) -> Sequences:
    """Draw rows to their end; finished rows are dropped when that pays for the decoder."""
    n, longest = u_nL.shape
    ids_nL = np.zeros((n, longest), np.int64)
    selected_nL, unselected_nL = np.zeros((n, longest)), np.zeros((n, longest))
    near_n = np.zeros(n, np.int64)
    length_n = np.full(n, longest)
    stopped_n = np.zeros(n, np.bool_)
    rows_A = np.arange(n)  # which row of the block each kept row is
    logits_AW = decoder.start()
    for step in range(longest):
        check()
        token_A, found = next_token.draw(logits_AW, law.lm.vocab_size, law.selectivity, u_nL[rows_A, step].copy())
        going_A = ~stopped_n[rows_A]
        going = rows_A[going_A]
        ids_nL[going, step] = token_A[going_A]
        selected_nL[going, step] = found.selected[going_A]
        unselected_nL[going, step] = found.unselected[going_A]
        near_n[going] += found.near_edge[going_A]
        ended = going[np.isin(token_A[going_A], law.stop_ids)]
        stopped_n[ended] = True
        length_n[ended] = step + 1
        going_A = ~stopped_n[rows_A]
        active = int(going_A.sum())
        if active == 0 or step + 1 == longest:
            break
        if decoder.pays(active, len(rows_A)):
            kept = np.flatnonzero(going_A)
            rows_A, token_A = rows_A[kept], token_A[kept]
            decoder.keep(kept)
        logits_AW = decoder.step(token_A)
    return law.drawn(prompt_n, ids_nL, length_n, stopped_n, selected_nL, unselected_nL, near_n)
