"""The next-token law at one state: draw from it, score ids under it, its entropy, cross-entropy between two.

Shapes: M states, V ids that exist, W >= V rows of the output matrix.

On the CPU kernels process a row of logits in place; on other devices torch operations compute the same. Tests compare
the two.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from hydrometer.core.spec import Selectivity
from hydrometer.models.causal_lm.cpu import logit_kernels
from hydrometer.models.causal_lm.cpu.llama import as_array
from hydrometer.models.causal_lm.cuda import has_kernels
from hydrometer.models.causal_lm.networks.selected_logits import (
    as_if_kept,
    inverse_temperature,
    running_sum,
    selected_log_weights,
)

__all__ = [
    "BF16_ERROR",
    "OnDevice",
    "TokenScores",
    "cross_entropy",
    "draw",
    "draw_fused",
    "draw_on_device",
    "score",
    "score_dropped",
    "terms_of",
]

Logits = NDArray[np.float32] | NDArray[np.uint16] | Tensor
_CHUNK = 256
BF16_ERROR = 2.0**-5
"""By what share of the largest logit's size two bfloat16 computations of one network may differ in a logit: eight
units of its last place (8 bits: 2^-8). Between drawing step by step and scoring whole rows, the log-probabilities of
200,000 tokens of tiny networks of GPT-2 and Llama type differed by up to 6.9 such units; docs, Laws, Numerics."""


@dataclass(frozen=True, slots=True)
class TokenScores:
    """Scores of M ids at M states.

    Attributes
    ----------
    selected, unselected : (M,) float64 nats, log-probability under the selected law and under the law itself.
    near_edge : (M,) bool, whether rounding at the selectivity's edge could show; see `logit_kernels.NEAR_EDGE`.
    entropy : (M,) float64 nats, of the selected law; (0,) if not requested.
    """

    selected: NDArray[np.float64]
    unselected: NDArray[np.float64]
    near_edge: NDArray[np.bool_]
    entropy: NDArray[np.float64]


class OnDevice(NamedTuple):
    """Ids drawn at M states, and their `TokenScores`, as tensors."""

    ids: Tensor
    selected: Tensor
    unselected: Tensor
    near_edge: Tensor


def terms_of(s: Selectivity | None) -> tuple[np.float32, int, float, np.float32]:
    """Return rate, top_k, top_p and log min_p for the kernels."""
    if s is None:
        return np.float32(1), 0, 1.0, np.float32(-np.inf)
    log_min_p = -math.inf if not s.min_p else math.log(s.min_p)
    return (
        np.float32(inverse_temperature(s)),
        s.top_k or 0,
        1.0 if s.top_p is None else float(s.top_p),
        np.float32(log_min_p),
    )


def _rows(logits_MW: Logits) -> NDArray[np.float32] | NDArray[np.uint16] | None:
    """Return rows for the kernels, or None on another device."""
    if not isinstance(logits_MW, Tensor):
        return logits_MW
    return as_array(logits_MW.contiguous()) if logits_MW.device.type == "cpu" else None


def draw(
    logits_MW: Logits, vocab_size: int, s: Selectivity | None, u_M: NDArray[np.float64]
) -> tuple[NDArray[np.int64], TokenScores]:
    """Draw one id a row by inverse transform.

    Parameters
    ----------
    logits_MW : float32 or bfloat16, (M, W); as an array, bfloat16 is the uint16 of its bits.
    vocab_size : V; later columns do not exist.
    s : a token selectivity, or None.
    u_M : uniforms in (0, 1).
    """
    rows = _rows(logits_MW)
    if rows is None:
        return _draw_by_torch(torch.as_tensor(logits_MW)[:, :vocab_size], s, u_M)
    m = len(rows)
    ids, log_p, near = np.empty(m, np.int64), np.empty((m, 2)), np.empty(m, np.bool_)
    logit_kernels.draw_rows(rows, vocab_size, u_M, terms_of(s), ids, log_p, near)
    return ids, TokenScores(log_p[:, 0], log_p[:, 1], near, np.empty(0))


def score(
    logits_MW: Logits, vocab_size: int, s: Selectivity | None, ids_M: NDArray[np.int64], *, entropy: bool = False
) -> TokenScores:
    """Score one id a row; -inf for ids that cannot be drawn. Parameters as in `draw`."""
    rows = _rows(logits_MW)
    if rows is None:
        logits = torch.as_tensor(logits_MW)[:, :vocab_size].float()
        return _score_by_torch(logits, s, torch.from_numpy(ids_M).to(logits.device), entropy=entropy)
    m = len(rows)
    log_p, near, h = np.empty((m, 2)), np.empty(m, np.bool_), np.empty(m if entropy else 0)
    logit_kernels.score_rows(rows, vocab_size, ids_M, terms_of(s), log_p, near, h)
    return TokenScores(log_p[:, 0], log_p[:, 1], near, h)


def score_dropped(
    logits_MW: Logits, vocab_size: int, s: Selectivity, ids_M: NDArray[np.int64]
) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
    """Score ids that the law drops as if each were kept, (M,) nats; whether bfloat16's rounding explains it, (M,).

    Parameters as in `score`; each id is one that exists.
    """
    whole = torch.as_tensor(logits_MW if isinstance(logits_MW, Tensor) else _as_float32(logits_MW))
    logits_MV = whole[:, :vocab_size].float()
    at_M1 = torch.from_numpy(ids_M).to(logits_MV.device)[:, None]
    size_M1 = torch.maximum(logits_MV.amax(-1, keepdim=True).abs(), logits_MV.gather(-1, at_M1).abs())
    log_p_M, inside_M = as_if_kept(logits_MV, s, at_M1, BF16_ERROR * size_M1)
    return log_p_M.cpu().numpy(), inside_M.cpu().numpy()


def cross_entropy(
    a_MW: Logits, s_a: Selectivity | None, b_MW: Logits, s_b: Selectivity | None, vocab_size: int
) -> NDArray[np.float64]:
    """Cross-entropy of two next-token laws a row, -sum p_a log p_b, (M,) nats; inf where a keeps what b drops."""
    rows_a, rows_b = _rows(a_MW), _rows(b_MW)
    if rows_a is None or rows_b is None:
        a, b = (torch.as_tensor(x)[:, :vocab_size].float() for x in (a_MW, b_MW))
        kept_a, kept_b = selected_log_weights(a, s_a), selected_log_weights(b, s_b)
        return _cross_by_torch(kept_a.log_weights, kept_b.log_weights).cpu().numpy()
    if rows_a.dtype != rows_b.dtype:
        rows_a, rows_b = (_as_float32(x) for x in (rows_a, rows_b))
    out = np.empty(len(rows_a))
    logit_kernels.cross_rows(rows_a, rows_b, vocab_size, terms_of(s_a), terms_of(s_b), out)
    return out


def _as_float32(x: NDArray[np.float32] | NDArray[np.uint16]) -> NDArray[np.float32]:
    return (x.astype(np.uint32) << 16).view(np.float32) if x.dtype == np.uint16 else x.astype(np.float32, copy=False)


# -- by torch operations -----------------------------------------------------------------------------------------------


def _draw_by_torch(
    logits_MV: Tensor, s: Selectivity | None, u_M: NDArray[np.float64]
) -> tuple[NDArray[np.int64], TokenScores]:
    found = draw_on_device(logits_MV, s, torch.from_numpy(u_M).to(logits_MV.device))
    ids, selected, unselected, near = (x.cpu().numpy() for x in found)
    return ids, TokenScores(selected, unselected, near, np.empty(0))


def draw_on_device(logits_MV: Tensor, s: Selectivity | None, u_M: Tensor) -> OnDevice:
    """Draw one id a row as `draw` does, and leave what is found where the logits are.

    By a kernel on CUDA where Triton is installed; else by torch's operations: the inverse CDF is looked up in two
    stages, over sums of chunks and then within one, both in float64.

    Parameters
    ----------
    logits_MV : (M, V), float32 or bfloat16. u_M : float64, on the same device.
    """
    if has_kernels(logits_MV):
        return draw_fused(logits_MV, s, u_M)
    logits_MV = logits_MV.float()
    w_MV = selected_log_weights(logits_MV, s).log_weights
    w_MV = (w_MV - w_MV.amax(-1, keepdim=True)).exp_()
    w_MKC = F.pad(w_MV, (0, -w_MV.shape[1] % _CHUNK)).view(w_MV.shape[0], -1, _CHUNK)
    cdf_MK = running_sum(w_MKC.sum(-1, dtype=torch.float64))
    target_M1 = u_M[:, None] * cdf_MK[:, -1:]
    chunk_M1 = _first_above(cdf_MK, target_M1)
    before_M1 = F.pad(cdf_MK, (1, 0)).gather(-1, chunk_M1)
    rows = torch.arange(w_MV.shape[0], device=w_MV.device)
    cdf_MC = running_sum(w_MKC[rows, chunk_M1[:, 0]].double())
    ids_M = (chunk_M1 * _CHUNK + _first_above(cdf_MC, target_M1 - before_M1))[:, 0]
    return OnDevice(ids_M, *_scored_on_device(logits_MV, s, ids_M)[0])


def draw_fused(logits_MV: Tensor, s: Selectivity | None, u_M: Tensor) -> OnDevice:
    """Draw as `draw_on_device` does, in one Triton kernel."""
    from hydrometer.models.causal_lm.cuda.draw_kernel import draw_rows

    return OnDevice(*draw_rows(logits_MV, terms_of(s), u_M))


def _first_above(cdf_MN: Tensor, target_M1: Tensor) -> Tensor:
    """Return the first index at which the CDF exceeds the target, (M, 1): never an entry of weight zero.

    Where rounding puts the target at or above the whole mass, it is the last entry with weight.
    """
    last_M1 = (cdf_MN < cdf_MN[:, -1:]).sum(-1, keepdim=True)
    return torch.minimum(torch.searchsorted(cdf_MN, target_M1, right=True), last_M1)


def _score_by_torch(logits_MV: Tensor, s: Selectivity | None, ids_M: Tensor, *, entropy: bool) -> TokenScores:
    scores, w_MV = _scored_on_device(logits_MV, s, ids_M)
    h = _cross_by_torch(w_MV, w_MV).cpu().numpy() if entropy else np.empty(0)
    selected, unselected, near = (x.cpu().numpy() for x in scores)
    return TokenScores(selected, unselected, near, h)


def _scored_on_device(
    logits_MV: Tensor, s: Selectivity | None, ids_M: Tensor
) -> tuple[tuple[Tensor, Tensor, Tensor], Tensor]:
    """Selected and unselected log-probability and nearness of an edge, (M,) each; and the selected log-weights."""
    kept = selected_log_weights(logits_MV, s)
    w_MV = kept.log_weights
    known_M = (ids_M >= 0) & (ids_M < w_MV.shape[1])
    at_M1 = torch.where(known_M, ids_M, 0)[:, None]

    def found(log_weights_MV: Tensor) -> Tensor:
        log_p_M = log_weights_MV.gather(-1, at_M1)[:, 0].double() - log_weights_MV.double().logsumexp(-1)
        return torch.where(known_M, log_p_M, -math.inf)

    x_M1 = kept.tempered.gather(-1, at_M1)
    near_M = known_M & ((kept.low <= x_M1) & (x_M1 <= kept.high))[:, 0]
    return (found(w_MV), found(logits_MV), near_M), w_MV


def _cross_by_torch(a_MV: Tensor, b_MV: Tensor) -> Tensor:
    log_a, log_b = (x.double().log_softmax(-1) for x in (a_MV, b_MV))
    terms = torch.where(log_b == -math.inf, -math.inf, log_a.exp() * log_b)
    return -torch.where(log_a == -math.inf, 0.0, terms).sum(-1)
