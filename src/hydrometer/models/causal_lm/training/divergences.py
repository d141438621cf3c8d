"""Divergences between the next-token laws of a teacher and a student.

Shapes: m rows, V ids that exist, W >= V rows of an output matrix. p is the teacher's law, q the student's.

Their formulas are in `models.objectives`.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor

from hydrometer.core.spec import Selectivity
from hydrometer.models.causal_lm.cpu import divergence_kernels as kernels
from hydrometer.models.causal_lm.cpu.llama import as_array
from hydrometer.models.causal_lm.cuda import has_kernels
from hydrometer.models.causal_lm.networks.next_token import terms_of
from hydrometer.models.causal_lm.networks.selected_logits import selected_log_weights
from hydrometer.models.objectives import Divergence

__all__ = ["KINDS", "terms", "to_gradient", "to_gradient_fused"]

KINDS = {
    "kl_teacher_student": kernels.FORWARD,
    "kl_student_teacher": kernels.REVERSE,
    "jsd": kernels.JSD,
    "jsd_scaled": kernels.JSD,
    "skew_kl_teacher_student": kernels.SKEW_FORWARD,
    "skew_kl_student_teacher": kernels.SKEW_REVERSE,
    "skew_kl_student_teacher_detached": kernels.SKEW_REVERSE_DETACHED,
    "adaptive_kl": kernels.ADAPTIVE,
    "generalised_kl": kernels.GENERALISED,
    "total_variation": kernels.TOTAL_VARIATION,
}


_PLAIN = {
    "skew_kl_teacher_student": kernels.FORWARD,
    "skew_kl_student_teacher": kernels.REVERSE,
    "skew_kl_student_teacher_detached": kernels.REVERSE,
}


def to_gradient(
    student_mW: Tensor, teacher_mW: Tensor, vocab_size: int, s: Selectivity | None, d: Divergence, scale: float
) -> float | Tensor:
    """Turn the student's logits into ``scale`` times their divergence's gradient, in place.

    By kernels on the processor, and on CUDA where Triton is installed; else by torch's operations.

    Parameters
    ----------
    student_mW, teacher_mW : logits; -inf where an id does not exist.
    s : the teacher's selectivity.

    Returns
    -------
    The sum of the rows' divergences, nats; infinite where the teacher's selectivity makes it so. From kernels on CUDA
    it is a tensor, for which nobody has waited.
    """
    if has_kernels(student_mW):
        return to_gradient_fused(student_mW, teacher_mW, vocab_size, s, d, scale)
    if student_mW.device.type != "cpu" or student_mW.dtype == torch.float64:
        return _to_gradient_by_torch(student_mW, teacher_mW, vocab_size, s, d, scale)
    value = np.empty(len(student_mW))
    form = _kind(d), float(d.weight), np.float32(1 / d.temperature)
    kernels.divergence_rows(
        as_array(student_mW),
        as_array(teacher_mW),
        vocab_size,
        terms_of(s),
        form,
        np.float32(scale * d.factor),
        value,
    )
    return float(value.sum()) * d.factor


def _kind(d: Divergence) -> int:
    """Return a kernel's number: with weight 0 the mixture is one law, which underflows where its logarithm does not."""
    return _PLAIN.get(d.kind, KINDS[d.kind]) if d.weight == 0 else KINDS[d.kind]


def to_gradient_fused(
    student_mW: Tensor, teacher_mW: Tensor, vocab_size: int, s: Selectivity | None, d: Divergence, scale: float
) -> float | Tensor:
    """Do as `to_gradient` does, in one Triton kernel; what of a teacher is kept is found by torch's operations.

    Where a head is sought, or mass is left out, all is done by torch's operations.
    """
    drops = s is not None and (s.top_k is not None or s.top_p is not None or bool(s.min_p))
    if d.kind == "adaptive_kl" or (drops and d.kind == "generalised_kl"):
        return _to_gradient_by_torch(student_mW, teacher_mW, vocab_size, s, d, scale)
    from hydrometer.models.causal_lm.cuda.loss_kernels import divergence_rows

    theirs_mV, rate = teacher_mW[:, :vocab_size], float(terms_of(s)[0])
    if drops:
        theirs_mV, rate = selected_log_weights(theirs_mV.float(), s).log_weights, 1.0
    form = _kind(d), float(d.weight), 1 / d.temperature, rate / d.temperature
    return divergence_rows(student_mW, theirs_mV, vocab_size, form, scale * d.factor / d.temperature).sum() * d.factor


def _to_gradient_by_torch(
    student_mW: Tensor, teacher_mW: Tensor, vocab_size: int, s: Selectivity | None, d: Divergence, scale: float
) -> float:
    wide = torch.promote_types(student_mW.dtype, torch.float32)
    kept = selected_log_weights(teacher_mW[:, :vocab_size].to(wide), s)
    log_p_mV = (kept.log_weights / d.temperature).log_softmax(-1)
    if d.kind == "generalised_kl":  # mass of the dropped is not shared out
        whole_mV = (kept.tempered / d.temperature).log_softmax(-1)
        log_p_mV = torch.where(kept.log_weights == -torch.inf, -torch.inf, whole_mV)
    log_q_mV = (student_mW[:, :vocab_size].to(wide) / d.temperature).log_softmax(-1)
    value_mV, slope_mV = terms(d, log_p_mV, log_q_mV)
    gradient_mV = slope_mV - log_q_mV.exp() * slope_mV.sum(-1, keepdim=True)
    student_mW[:, :vocab_size] = (gradient_mV * (scale * d.factor / d.temperature)).to(student_mW.dtype)
    student_mW[:, vocab_size:] = 0
    unknown = log_p_mV.isnan().any() | log_q_mV.isnan().any()
    return math.nan if bool(unknown) else float(value_mV.double().sum()) * d.factor


def terms(d: Divergence, log_p: Tensor, log_q: Tensor) -> tuple[Tensor, Tensor]:
    """Return phi and s = q dphi/dq of every id, up to a multiple of q."""
    p, q, w = log_p.exp(), log_q.exp(), d.weight

    def where(weight: Tensor, log_ratio: Tensor) -> Tensor:
        return torch.where(weight > 0, weight * log_ratio, 0.0)

    def mixed(a: float) -> Tensor:
        """Log of a p + (1 - a) q."""
        return torch.logaddexp(log_p + _log(a), log_q + _log(1 - a))

    match d.kind:
        case "kl_teacher_student":
            return where(p, log_p - log_q), -p
        case "kl_student_teacher":
            found = where(q, log_q - log_p)
            return found, torch.where(torch.isfinite(found), found, 0.0)
        case "jsd" | "jsd_scaled":
            log_m = mixed(w)
            of_q = (1 - w) * where(q, log_q - log_m)
            return w * where(p, log_p - log_m) + of_q, of_q
        case "skew_kl_teacher_student":
            log_m = mixed(w)
            return where(p, log_p - log_m), -(1 - w) * where(p, (log_q - log_m).exp())
        case "skew_kl_student_teacher" | "skew_kl_student_teacher_detached":
            log_m = mixed(1 - w)
            found = where(q, log_q - log_m)
            of_m = 0.0 if d.kind.endswith("detached") else w * where(q, (log_q - log_m).exp())
            return found, found - of_m
        case "adaptive_kl":
            gap = (p - q).abs()
            in_head = selected_log_weights(log_p, Selectivity(top_p=w)).log_weights > -torch.inf
            share = torch.where(in_head, gap, 0.0).sum(-1, keepdim=True) / gap.sum(-1, keepdim=True)
            share = share.nan_to_num(0.5)  # equal laws
            found = (1 - share) * where(q, log_q - log_p)
            slope = torch.where(torch.isfinite(found), found, 0.0) - share * p
            return share * where(p, log_p - log_q) + found, slope
        case "generalised_kl":
            beside = torch.where(log_p == -torch.inf, 0.0, q - p)
            return where(p, log_p - log_q) + beside, beside
        case _:
            return (p - q).abs() / 2, q * torch.sign(q - p) / 2


def _log(x: float) -> float:
    return math.log(x) if x > 0 else -math.inf
