"""Draws one block of rows from a causal LM by inverse transform, and records their exact log-probability.

Shapes: B rows of the block, U distinct prompts of it, A rows still active, V ids, C = 256 ids in a chunk.

The uniform of (row, step) is an entry of a counter-based stream, so a row does not depend on its neighbours' luck: only
the shape of the products it takes part in may move its last bits, and a block is always drawn whole.

The inverse CDF is looked up in two stages, over sums of chunks and then within one chunk, both in float64: one pass
over the weights, where `torch.multinomial` makes several and a sort.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F
from transformers import DynamicCache

from hydrometer.core.rng import Stream
from hydrometer.models.causal_lm.model import CausalLM, select_rows
from hydrometer.models.causal_lm.selectivity import selected_log_weights
from hydrometer.models.sequences import Sequences

if TYPE_CHECKING:
    from hydrometer.models.causal_lm.law import CausalLaw

__all__ = ["draw", "draw_block", "prefill"]

_CHUNK = 256
_COMPACT_BELOW = 0.8  # finished rows leave the cache when fewer than this share are active


@torch.inference_mode()
def draw_block(law: CausalLaw, stream: Stream, start: int) -> Sequences:
    """Draw rows ``start .. start + law.block_rows`` of the stream."""
    lm, n, longest = law.lm, law.block_rows, law.max_new_tokens
    u_BL = torch.from_numpy(stream.uniforms(start, n, longest)).to(lm.device)
    prompt_B = (np.arange(start, start + n) % len(law.prompts.ids)).astype(np.int64)
    distinct_U, of_B = np.unique(prompt_B, return_inverse=True)
    states_UD, cache, mask_US = prefill(lm, [law.prompts.ids[p] for p in distinct_U])
    of = torch.from_numpy(of_B).to(lm.device)
    states_AD, mask_AS, cache = states_UD[of], mask_US[of], select_rows(cache, of)

    stop = torch.tensor(law.stop_ids, dtype=torch.long, device=lm.device)
    ids_BL = torch.zeros(n, longest, dtype=torch.long, device=lm.device)
    length_B = torch.full((n,), longest, dtype=torch.long, device=lm.device)
    stopped_B = torch.zeros(n, dtype=torch.bool, device=lm.device)
    log_prob_B = torch.zeros(n, dtype=torch.float64, device=lm.device)
    rows_A = torch.arange(n, device=lm.device)  # which row of the block each cached row is
    for step in range(longest):
        token_A, log_p_A = draw(selected_log_weights(lm.head(states_AD), law.selectivity), u_BL[rows_A, step])
        going_A = ~stopped_B[rows_A]
        going = rows_A[going_A]
        ids_BL[going, step] = token_A[going_A]
        log_prob_B[going] += log_p_A[going_A]
        ended = going[torch.isin(token_A[going_A], stop)]
        stopped_B[ended] = True
        length_B[ended] = step + 1
        going_A = ~stopped_B[rows_A]
        active = int(going_A.sum())
        if active == 0 or step + 1 == longest:
            break
        if active < _COMPACT_BELOW * rows_A.numel():
            kept = going_A.nonzero()[:, 0]
            rows_A, token_A, mask_AS, cache = rows_A[kept], token_A[kept], mask_AS[kept], select_rows(cache, kept)
        mask_AS = F.pad(mask_AS, (0, 1), value=True)
        states_AD = lm.body(token_A[:, None], mask_AS, cache)[:, -1]
    width = int(length_B.max())
    return Sequences(
        law.prompts.ids,
        prompt_B,
        ids_BL[:, :width].cpu().numpy(),
        length_B.cpu().numpy(),
        stopped_B.cpu().numpy(),
        log_prob_B.cpu().numpy(),
    )


def prefill(lm: CausalLM, prompts: list[tuple[int, ...]]) -> tuple[Tensor, DynamicCache, Tensor]:
    """Run U prompts, padded on the left so that all end at the same place.

    Returns
    -------
    states_UD : the state that predicts the first token of the answer.
    cache : of the U prompts.
    mask_US : True on real tokens.
    """
    width = max(len(p) for p in prompts)
    ids_US = torch.tensor([[0] * (width - len(p)) + list(p) for p in prompts], device=lm.device)
    mask_US = torch.tensor([[False] * (width - len(p)) + [True] * len(p) for p in prompts], device=lm.device)
    cache = DynamicCache(config=lm.model.config)
    return lm.body(ids_US, mask_US, cache)[:, -1], cache, mask_US


def draw(log_weights_BV: Tensor, u_B: Tensor) -> tuple[Tensor, Tensor]:
    """Draw one id a row by inverse transform.

    Parameters
    ----------
    log_weights_BV : (B, V) float32, unnormalised; -inf is never drawn.
    u_B : (B,) float64 in (0, 1)

    Returns
    -------
    ids : (B,) int64
    log_prob : (B,) float64, of the drawn ids.
    """
    top_B1 = log_weights_BV.amax(-1, keepdim=True)
    w_BV = (log_weights_BV - top_B1).exp_()
    w_BKC = F.pad(w_BV, (0, -w_BV.shape[1] % _CHUNK)).view(w_BV.shape[0], -1, _CHUNK)
    cdf_BK = w_BKC.sum(-1, dtype=torch.float64).cumsum(-1)
    total_B1 = cdf_BK[:, -1:]
    target_B1 = u_B[:, None] * total_B1
    chunk_B1 = _first_above(cdf_BK, target_B1)
    before_B1 = F.pad(cdf_BK, (1, 0)).gather(-1, chunk_B1)
    rows = torch.arange(w_BV.shape[0], device=w_BV.device)
    cdf_BC = w_BKC[rows, chunk_B1[:, 0]].double().cumsum(-1)
    ids_B1 = chunk_B1 * _CHUNK + _first_above(cdf_BC, target_B1 - before_B1)
    log_p_B1 = (log_weights_BV.gather(-1, ids_B1) - top_B1).double() - total_B1.log()
    return ids_B1[:, 0], log_p_B1[:, 0]


def _first_above(cdf_BN: Tensor, target_B1: Tensor) -> Tensor:
    """Return the first index at which the CDF exceeds the target, (B, 1): never an entry of weight zero.

    Where rounding puts the target at or above the whole mass, it is the last entry with weight.
    """
    last_B1 = (cdf_BN < cdf_BN[:, -1:]).sum(-1, keepdim=True)
    return torch.minimum(torch.searchsorted(cdf_BN, target_B1, right=True), last_B1)
