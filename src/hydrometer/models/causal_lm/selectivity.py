"""Selectivities applied to next-token logits, once for the sampler and the scorer alike.

Shapes: B rows, V ids. The order is that of transformers: temperature, top_k, top_p, min_p, each on what the one before
left. Ties at a threshold are kept, so what is kept does not depend on the order of equal logits.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from hydrometer.core.spec import Selectivity

__all__ = ["selected_log_weights"]

_LIKELY = 1024  # a nucleus is looked for among so many of the likeliest before all are sorted


def selected_log_weights(logits_BV: Tensor, s: Selectivity | None) -> Tensor:
    """Unnormalised log-weights of the selected law; dropped ids are -inf.

    Parameters
    ----------
    logits_BV : (B, V) float32
    s : a token selectivity, or None for the law itself.

    Returns
    -------
    (B, V) float32
    """
    if s is None or s.is_neutral:
        return logits_BV
    w_BV = logits_BV
    if s.temperature not in (None, 1):
        # Shifted first: a tiny temperature may take all but the likeliest to -inf, never one to +inf.
        w_BV = (w_BV - w_BV.amax(-1, keepdim=True)) / s.temperature
    if s.top_k is not None and s.top_k < w_BV.shape[-1]:
        w_BV = _keep(w_BV, w_BV.topk(s.top_k, dim=-1).values[:, -1:])
    if s.top_p is not None and s.top_p < 1:
        w_BV = _keep(w_BV, _nucleus_edge(w_BV, s.top_p))
    if s.min_p:
        w_BV = _keep(w_BV, w_BV.amax(-1, keepdim=True) + math.log(s.min_p))
    return w_BV


def _keep(w_BV: Tensor, edge_B1: Tensor) -> Tensor:
    return w_BV.masked_fill(w_BV < edge_B1, -math.inf)


def _nucleus_edge(w_BV: Tensor, top_p: float) -> Tensor:
    """Return the log-weight of the last id of the smallest set of likeliest ids that holds mass `top_p`, (B, 1)."""
    log_mass_B1 = w_BV.double().logsumexp(-1, keepdim=True)
    edge_B1 = torch.full_like(log_mass_B1, -math.inf, dtype=w_BV.dtype)
    left = torch.arange(w_BV.shape[0], device=w_BV.device)
    for k in sorted({min(_LIKELY, w_BV.shape[1]), w_BV.shape[1]}):
        sorted_BK = w_BV[left].topk(k, dim=-1).values
        mass_BK = (sorted_BK.double() - log_mass_B1[left]).exp().cumsum(-1)
        last_B = (mass_BK < top_p).sum(-1)  # index of the first id at which the mass is reached
        found_B = last_B < k
        found, last = left[found_B], last_B[found_B]
        edge_B1[found] = sorted_BK[found_B].gather(-1, last[:, None])
        left = left[~found_B]
        if left.numel() == 0:
            break
    return edge_B1  # -inf where rounding leaves the whole mass below top_p: everything is kept
