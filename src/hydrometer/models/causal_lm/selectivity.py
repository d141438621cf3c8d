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


def selected_log_weights(logits_BV: Tensor, s: Selectivity | None) -> tuple[Tensor, Tensor]:
    """Unnormalised log-weights of the selected law, dropped ids -inf, and the margin of what is kept.

    The margin is that of the threshold that binds, in nats of logit: see `kernels.NEAR_EDGE`.

    Parameters
    ----------
    logits_BV : (B, V) float32
    s : a token selectivity, or None for the law itself.

    Returns
    -------
    (B, V) float32, (B,) float64
    """
    margin_B1 = torch.ones_like(logits_BV[:, :1], dtype=torch.float64)
    if s is None or s.is_neutral:
        return logits_BV, margin_B1[:, 0]
    w_BV = logits_BV
    temperature = 1.0 if s.temperature is None else s.temperature
    if s.temperature not in (None, 1):
        # Shifted first: a tiny temperature may take all but the likeliest to -inf, never one to +inf.
        w_BV = (w_BV - w_BV.amax(-1, keepdim=True)) / s.temperature
    if s.top_k is not None and s.top_k < w_BV.shape[-1]:
        edges_B2 = w_BV.topk(s.top_k + 1, dim=-1).values[:, -2:]
        edge_B1 = edges_B2[:, :1]
        below_B1 = torch.where(w_BV < edge_B1, w_BV, -math.inf).amax(-1, keepdim=True)
        margin_B1 = (edge_B1 - below_B1).double() * temperature / 2
        w_BV = _keep(w_BV, edge_B1)
    if s.top_p is not None and s.top_p < 1:
        edge_B1, mass_margin_B1 = _nucleus_edge(w_BV, s.top_p)
        binds_B1 = edge_B1 > w_BV.masked_fill(w_BV == -math.inf, math.inf).amin(-1, keepdim=True)
        nats_B1 = mass_margin_B1 * temperature / (2 * s.top_p * (1 - s.top_p))
        margin_B1 = torch.where(binds_B1, nats_B1, margin_B1)
        w_BV = _keep(w_BV, edge_B1)
    if s.min_p:
        edge_B1 = w_BV.amax(-1, keepdim=True) + math.log(s.min_p)
        gap_B1 = (w_BV - edge_B1).abs().amin(-1, keepdim=True).double() * temperature / 2
        binds_B1 = ((w_BV < edge_B1) & (w_BV > -math.inf)).any(-1, keepdim=True)
        margin_B1 = torch.where(binds_B1, gap_B1, torch.minimum(margin_B1, gap_B1))
        w_BV = _keep(w_BV, edge_B1)
    return w_BV, margin_B1[:, 0]


def _keep(w_BV: Tensor, edge_B1: Tensor) -> Tensor:
    return w_BV.masked_fill(w_BV < edge_B1, -math.inf)


def _nucleus_edge(w_BV: Tensor, top_p: float) -> tuple[Tensor, Tensor]:
    """Log-weight of the last id of the smallest set of likeliest ids that holds mass `top_p`, (B, 1), and its margin.

    That margin is the mass by which the set could miss, or do without its last id.
    """
    log_mass_B1 = w_BV.double().logsumexp(-1, keepdim=True)
    edge_B1 = torch.full_like(log_mass_B1, -math.inf, dtype=w_BV.dtype)
    margin_B1 = torch.zeros_like(log_mass_B1)
    left = torch.arange(w_BV.shape[0], device=w_BV.device)
    for k in sorted({min(_LIKELY, w_BV.shape[1]), w_BV.shape[1]}):
        sorted_BK = w_BV[left].topk(k, dim=-1).values
        mass_BK = (sorted_BK.double() - log_mass_B1[left]).exp()
        cdf_BK = mass_BK.cumsum(-1)
        last_B = (cdf_BK < top_p).sum(-1)  # index of the first id at which the mass is reached
        found_B = last_B < k
        found, last_F1 = left[found_B], last_B[found_B][:, None]
        edge_F1 = sorted_BK[found_B].gather(-1, last_F1)
        edge_B1[found] = edge_F1
        before_F1 = (mass_BK[found_B] * (sorted_BK[found_B] > edge_F1)).sum(-1, keepdim=True)
        upto_F1 = ((w_BV[found].double() - log_mass_B1[found]).exp() * (w_BV[found] >= edge_F1)).sum(-1, keepdim=True)
        margin_B1[found] = torch.minimum(top_p - before_F1, (upto_F1 - top_p).abs())
        left = left[~found_B]
        if left.numel() == 0:
            break
    return edge_B1, margin_B1  # -inf where rounding leaves the whole mass below top_p: everything is kept
