"""Selectivities applied to next-token logits, once for the sampler and the scorer alike.

Shapes: B rows, V ids. The order is that of transformers: temperature, top_k, top_p, min_p, each on what the one before
left. Ties at a threshold are kept, so what is kept does not depend on the order of equal logits.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from hydrometer.core.spec import Selectivity
from hydrometer.models.causal_lm.cpu.logit_kernels import LEAST, NEAR_EDGE, WEIGHTY

__all__ = [
    "Kept",
    "as_if_kept",
    "inverse_temperature",
    "running_sum",
    "running_sum_by_products",
    "selected_log_weights",
]

_LIKELY = 1024  # a nucleus is looked for among so many of the likeliest before all are sorted
_ROUNDING = 2e-7  # of a mass
_TRIANGLE = 256  # numbers that one product sums


class Kept(NamedTuple):
    """A selected law, and how certain its kept set is.

    Attributes
    ----------
    log_weights : (B, V) float32, unnormalised; dropped ids are -inf.
    tempered : (B, V) float32, the same before anything is dropped.
    low, high : (B, 1) span of `tempered` in which a token is near the edge; see `logit_kernels.NEAR_EDGE`.
    """

    log_weights: Tensor
    tempered: Tensor
    low: Tensor
    high: Tensor


def selected_log_weights(logits_BV: Tensor, s: Selectivity | None) -> Kept:
    """Apply a token selectivity, or None for the law itself, to (B, V) float32 logits."""
    nowhere = torch.full_like(logits_BV[:, :1], math.inf), torch.full_like(logits_BV[:, :1], -math.inf)
    if s is None or s.is_neutral:
        return Kept(logits_BV, logits_BV, *nowhere)
    rate = inverse_temperature(s)
    # Shifted first: a tiny temperature may take all but the likeliest to -inf, never one to +inf.
    x_BV = (logits_BV - logits_BV.amax(-1, keepdim=True)) * rate
    x_BV = x_BV.masked_fill(x_BV < LEAST, -math.inf)
    step = 2 * NEAR_EDGE * rate
    w_BV = x_BV
    edge_B1 = torch.full_like(x_BV[:, :1], -math.inf)
    unsure_B1 = torch.zeros_like(edge_B1, dtype=torch.bool)
    if s.top_k is not None and s.top_k < w_BV.shape[-1]:
        edge_B1 = w_BV.topk(s.top_k, dim=-1).values[:, -1:]
        unsure_B1 = (w_BV >= edge_B1).sum(-1, keepdim=True) > s.top_k
        w_BV = _keep(w_BV, edge_B1)
    if s.top_p is not None and s.top_p < 1:
        nucleus_B1, share_B1 = _nucleus(w_BV, s.top_p)
        moved = max(step * s.top_p * (1 - s.top_p), _ROUNDING)
        unsure_B1 = (unsure_B1 & (nucleus_B1 <= edge_B1)) | ((nucleus_B1 >= edge_B1) & (share_B1 <= moved))
        edge_B1 = torch.maximum(edge_B1, nucleus_B1)
        w_BV = _keep(w_BV, edge_B1)
    if s.min_p:
        at = math.log(s.min_p)
        unsure_B1 = unsure_B1 & (edge_B1 >= at)
        edge_B1 = edge_B1.clamp_min(at)
        close_BV = (x_BV < 0) & (x_BV >= edge_B1 - step) & ((x_BV - at).abs() <= step)
        unsure_B1 = unsure_B1 | close_BV.any(-1, keepdim=True)
        w_BV = _keep(w_BV, edge_B1)
    drops_B1 = edge_B1 > -math.inf
    last_B1 = torch.where(w_BV == -math.inf, math.inf, w_BV).amin(-1, keepdim=True)
    below_B1 = torch.where(x_BV < edge_B1, x_BV, -math.inf).amax(-1, keepdim=True)
    unsure_B1 = drops_B1 & (unsure_B1 | (last_B1 - below_B1 <= step))
    mass_BV = w_BV.double().softmax(-1)
    weighty_B1 = (mass_BV * (w_BV == last_B1)).sum(-1, keepdim=True) > WEIGHTY
    low_B1 = torch.where(weighty_B1, -math.inf, below_B1)
    high_B1 = torch.where(weighty_B1, math.inf, last_B1 + step)
    return Kept(w_BV, x_BV, torch.where(unsure_B1, low_B1, nowhere[0]), torch.where(unsure_B1, high_B1, nowhere[1]))


def inverse_temperature(s: Selectivity) -> float:
    """Return the factor of logits; at most 1e38, beyond which all but the likeliest are -inf anyway."""
    return 1.0 if s.temperature is None else min(1 / s.temperature, 1e38)


def running_sum(x_BN: Tensor) -> Tensor:
    """Cumulative sums of rows of weights. On CUDA by products: torch's has no fixed order there, and fits refuse it."""
    return x_BN.cumsum(-1) if x_BN.device.type == "cpu" else running_sum_by_products(x_BN)


def running_sum_by_products(x_BN: Tensor) -> Tensor:
    """Do the same by matrix products with triangles of ones, whose order is fixed; flat where a weight is zero."""
    n = x_BN.shape[-1]
    x_BKC = F.pad(x_BN, (0, -n % _TRIANGLE)).unflatten(-1, (-1, _TRIANGLE))
    within_BKC = x_BKC @ x_BN.new_ones(_TRIANGLE, _TRIANGLE).triu()
    sums_BK = within_BKC[..., -1]
    before_BK = sums_BK @ x_BN.new_ones(2 * sums_BK.shape[-1:]).triu(1)
    sums_BN = (within_BKC + before_BK[..., None]).flatten(-2)[..., :n]
    return sums_BN.where(x_BN > 0, 0.0).cummax(-1).values


def as_if_kept(logits_EV: Tensor, s: Selectivity, token_E1: Tensor, error: Tensor) -> tuple[Tensor, Tensor]:
    """Log-probability of tokens with themselves among the kept, and whether errors within `error` let them in, (E,).

    An error of `error` in each logit moves two of them by up to 2 * error, which the temperature magnifies. A nucleus
    keeps a token while what is likelier than it holds less than top_p; that mass is taken with all that certainly lies
    above lowered and all else raised, among all that top_k may have left.

    Parameters
    ----------
    logits_EV : float32. token_E1 : ids. error : nats, (E, 1) or a scalar.
    """
    kept = selected_log_weights(logits_EV, s)
    x_EV = kept.tempered.double()
    x_E1 = x_EV.gather(-1, token_E1)
    others_EV = kept.log_weights.double().scatter(-1, token_E1, -math.inf)
    log_p_E = (x_E1 - torch.logaddexp(others_EV.logsumexp(-1, keepdim=True), x_E1))[:, 0]
    moved_E1 = (2 * inverse_temperature(s) * error.double()).expand_as(x_E1)
    inside_E = torch.isfinite(log_p_E)
    pool_EV = x_EV
    if s.top_k is not None and s.top_k < x_EV.shape[-1]:
        last_E1 = x_EV.topk(s.top_k, dim=-1).values[:, -1:]
        inside_E &= (x_E1 >= last_E1 - moved_E1)[:, 0]
        # Ties are kept: whatever errors may have made a tie of the last one widens the pool of the nucleus.
        pool_EV = x_EV.masked_fill(x_EV < torch.minimum(last_E1 - moved_E1, x_E1), -math.inf)
    if s.min_p:
        inside_E &= (x_E1 - x_EV.amax(-1, keepdim=True) >= math.log(s.min_p) - moved_E1)[:, 0]
    if s.top_p is not None and s.top_p < 1:
        mass_EV = pool_EV.softmax(-1)
        above_E = (mass_EV * (pool_EV > x_E1 + moved_E1)).sum(-1)
        lowered_E = above_E * torch.exp(-moved_E1[:, 0])
        inside_E &= lowered_E / (lowered_E + 1 - above_E).clamp_min(1e-300) < s.top_p + 1e-6
    return log_p_E, inside_E


def _keep(w_BV: Tensor, edge_B1: Tensor) -> Tensor:
    return w_BV.masked_fill(w_BV < edge_B1, -math.inf)


def _nucleus(w_BV: Tensor, top_p: float) -> tuple[Tensor, Tensor]:
    """Find the smallest set of likeliest ids that holds mass `top_p`.

    Returns
    -------
    log-weight of its last id, (B, 1), -inf where rounding leaves the whole mass short; and the share of mass by which
    the set could miss, or do without one of the ids tied at its edge.
    """
    log_mass_B1 = w_BV.double().logsumexp(-1, keepdim=True)
    edge_B1 = torch.full_like(log_mass_B1, -math.inf, dtype=w_BV.dtype)
    share_B1 = torch.ones_like(log_mass_B1)
    left = torch.arange(w_BV.shape[0], device=w_BV.device)
    for k in sorted({min(_LIKELY, w_BV.shape[1]), w_BV.shape[1]}):
        sorted_BK = w_BV[left].topk(k, dim=-1).values
        cdf_BK = running_sum((sorted_BK.double() - log_mass_B1[left]).exp())
        last_B = (cdf_BK < top_p).sum(-1)  # index of the first id at which the mass is reached
        found_B = last_B < k
        found, last_F1 = left[found_B], last_B[found_B][:, None]
        edge_F1 = sorted_BK[found_B].gather(-1, last_F1)
        edge_B1[found] = edge_F1
        mass_FV = (w_BV[found].double() - log_mass_B1[found]).exp()
        whole_F1 = (mass_FV * (w_BV[found] >= edge_F1)).sum(-1, keepdim=True)
        one_F1 = (edge_F1.double() - log_mass_B1[found]).exp()
        spare_F1 = whole_F1 - one_F1 - top_p
        close_F1 = torch.minimum(-spare_F1, (whole_F1 - top_p).abs())
        share_B1[found] = torch.where(spare_F1 >= 0, 0.0, close_F1)
        left = left[~found_B]
        if left.numel() == 0:
            break
    return edge_B1, share_B1
