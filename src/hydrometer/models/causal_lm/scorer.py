"""Scores sequences under a causal LM: the log-probability of the stopped process.

Shapes: N sequences, B rows scored together, T positions, D width, M wanted positions, V ids.

A prompt's prefix is run once and its cache shared by all its answers; answers of similar length go together; the head
is applied to wanted positions only, a few hundred at a time, so no (B, T, V) tensor ever exists.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from transformers import DynamicCache

from hydrometer.models.causal_lm.model import CausalLM, select_rows
from hydrometer.models.causal_lm.sampler import prefill
from hydrometer.models.causal_lm.selectivity import selected_log_weights
from hydrometer.models.sequences import Sequences

if TYPE_CHECKING:
    from hydrometer.core.spec import Selectivity
    from hydrometer.models.causal_lm.law import CausalLaw

__all__ = ["score", "token_log_prob"]

_PROMPTS_TOGETHER = 64
_ROWS_TOGETHER = 128
_TOKENS_TOGETHER = 4096
_LOGITS_TOGETHER = 256  # where the states are the logits themselves
_HEAD_POSITIONS = 512


@torch.inference_mode()
def score(law: CausalLaw, x: Sequences, *, rows_together: int = _ROWS_TOGETHER) -> NDArray[np.float64]:
    """Log-probability of each row, (N,) float64; -inf for what the process cannot give."""
    lm = law.lm
    total_N = np.full(len(x), -math.inf)
    possible = np.flatnonzero(_is_outcome(law, x))
    prompts = np.unique(x.prompt_index[possible])
    for at in range(0, len(prompts), _PROMPTS_TOGETHER):
        group = prompts[at : at + _PROMPTS_TOGETHER]
        rows = possible[np.isin(x.prompt_index[possible], group)]
        first_UD, cache, mask_US = prefill(lm, [law.prompts.ids[p] for p in group])
        tokens = _TOKENS_TOGETHER if lm.is_split else _LOGITS_TOGETHER
        for batch in _batches(rows, x.lengths, rows_together, tokens):
            of = torch.from_numpy(np.searchsorted(group, x.prompt_index[batch])).to(lm.device)
            length_B = torch.from_numpy(x.lengths[batch]).to(lm.device)
            ids_BT = torch.from_numpy(x.ids[batch, : x.lengths[batch].max()]).to(lm.device)
            logp_B = _score_batch(
                lm, law.selectivity, first_UD[of], select_rows(cache, of), mask_US[of], ids_BT, length_B
            )
            total_N[batch] = logp_B.cpu().numpy()
    return total_N


def _score_batch(
    lm: CausalLM,
    selectivity: Selectivity | None,
    first_BD: Tensor,
    cache: DynamicCache,
    mask_BS: Tensor,
    ids_BT: Tensor,
    length_B: Tensor,
) -> Tensor:
    """Sum of the log-probabilities of each row's tokens, (B,) float64."""
    steps = torch.arange(ids_BT.shape[1], device=ids_BT.device)
    wanted_BT = steps < length_B[:, None]
    states_BTD = first_BD[:, None]
    if ids_BT.shape[1] > 1:
        mask_BS = torch.cat([mask_BS, wanted_BT[:, :-1]], dim=1)
        states_BTD = torch.cat([states_BTD, lm.body(ids_BT[:, :-1], mask_BS, cache)], dim=1)
    logp_BT = torch.zeros_like(ids_BT, dtype=torch.float64)
    logp_BT[wanted_BT] = token_log_prob(lm, selectivity, states_BTD[wanted_BT], ids_BT[wanted_BT])
    return logp_BT.sum(-1)


def token_log_prob(lm: CausalLM, selectivity: Selectivity | None, states_MD: Tensor, ids_M: Tensor) -> Tensor:
    """Log-probability of each id under the selected next-token law at its state, (M,) float64."""
    parts: list[Tensor] = []
    for states, ids in zip(states_MD.split(_HEAD_POSITIONS), ids_M.split(_HEAD_POSITIONS), strict=True):
        known = ids < lm.vocab_size
        w = selected_log_weights(lm.head(states), selectivity)
        chosen = w.gather(-1, torch.where(known, ids, 0)[:, None])[:, 0]
        log_p = chosen.double() - w.logsumexp(-1).double()
        parts.append(torch.where(known, log_p, -math.inf))
    return torch.cat(parts)


def _is_outcome(law: CausalLaw, x: Sequences) -> NDArray[np.bool_]:
    """Whether the stopped process can give each row: no token after a stop, no end but a stop or the cut, (N,)."""
    at = np.arange(x.ids.shape[1])
    last_N1 = x.lengths[:, None] - 1
    stop_NT = np.isin(x.ids, law.stop_ids)
    early_N = (stop_NT & (at < last_N1)).any(-1)
    ends_N = (stop_NT & (at == last_N1)).any(-1)
    cut_N = x.lengths == law.max_new_tokens
    return (ends_N | cut_N) & ~early_N & (x.lengths >= 1) & (x.lengths <= law.max_new_tokens)


def _batches(
    rows: NDArray[np.int64], lengths: NDArray[np.int64], most: int, tokens: int
) -> Iterator[NDArray[np.int64]]:
    """Rows of similar length together, longest first, at most `tokens` positions a batch."""
    rows = rows[np.argsort(-lengths[rows], kind="stable")]
    at = 0
    while at < len(rows):
        n = max(1, min(most, tokens // int(lengths[rows[at]])))
        yield rows[at : at + n]
        at += n
