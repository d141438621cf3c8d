"""Gradients by logits of cross-entropy and of divergences, in place, in one Triton kernel; a row a program.

The processor's kernels of the same are in `cpu.divergence_kernels`, whose notation and formulas these have. A row is
read from memory once and from the cache thereafter: for both laws' sums, the value, and the gradient, which takes its
place. Sums of a block of ids are float32, those of blocks float64. Tests run the same kernels in Triton's interpreter.
"""

# pyright: reportMissingImports=false, reportIndexIssue=false, reportUntypedFunctionDecorator=false
# pyright: reportMissingParameterType=false, reportUnusedVariable=false

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from hydrometer.models.causal_lm.cpu import divergence_kernels as kinds

__all__ = ["cross_entropy_rows", "divergence_rows"]

_BLOCK = 4096
_FORWARD, _REVERSE = tl.constexpr(kinds.FORWARD), tl.constexpr(kinds.REVERSE)
_JSD, _SKEW_FORWARD = tl.constexpr(kinds.JSD), tl.constexpr(kinds.SKEW_FORWARD)
_SKEW_REVERSE, _DETACHED = tl.constexpr(kinds.SKEW_REVERSE), tl.constexpr(kinds.SKEW_REVERSE_DETACHED)
_GENERALISED = tl.constexpr(kinds.GENERALISED)
_LEAST_MASS = tl.constexpr(1.2e-38)  # the least normal float32


def divergence_rows(
    student_mW: Tensor, teacher_mW: Tensor, vocab_size: int, terms: tuple[int, float, float, float], scale: float
) -> Tensor:
    """Turn each row of the student's logits into `scale` times the gradient of its divergence.

    Parameters
    ----------
    student_mW : float32 or bfloat16, rows of adjacent numbers; columns from `vocab_size` on are set to zero.
    teacher_mW : logits, or log-weights; -inf where an id has no mass.
    terms : kind, but for `ADAPTIVE`; weight; and what the student's and the teacher's logits are multiplied by.

    Returns
    -------
    The divergences, (m,) float64 nats: infinite where the teacher has no mass and must have some, NaN where a logit is
    NaN or +inf. The gradient is by the student's logits multiplied, not by those that were given.
    """
    kind, weight, *rates = terms
    value = torch.empty(len(student_mW), dtype=torch.float64, device=student_mW.device)
    if len(value):
        sizes = vocab_size, student_mW.shape[1], student_mW.stride(0), teacher_mW.stride(0)
        numbers = weight, *(min(rate, 1e38) for rate in rates), scale
        _divergence[(len(value),)](student_mW, teacher_mW, *sizes, *numbers, value, KIND=kind, BLOCK=_block(vocab_size))
    return value


def cross_entropy_rows(logits_mW: Tensor, ids_m: Tensor, vocab_size: int, scale: float) -> Tensor:
    """Turn each row into the gradient of `scale` times its loss, ``scale (softmax - onehot)``.

    Parameters
    ----------
    logits_mW : float32 or bfloat16, rows of adjacent numbers; columns from `vocab_size` on are set to zero.
    ids_m : int64 in 0 .. vocab_size - 1.

    Returns
    -------
    -log softmax at the ids, (m,) float64 nats.
    """
    value = torch.empty(len(logits_mW), dtype=torch.float64, device=logits_mW.device)
    if len(value):
        width, stride, block = logits_mW.shape[1], logits_mW.stride(0), _block(vocab_size)
        _cross_entropy[(len(value),)](logits_mW, ids_m, vocab_size, width, stride, scale, value, BLOCK=block)
    return value


def _block(vocab_size: int) -> int:
    return min(_BLOCK, triton.next_power_of_2(vocab_size))


@triton.jit
def _logits(row, start, n, BLOCK: tl.constexpr):
    at = start + tl.arange(0, BLOCK)
    return tl.load(row + at, mask=at < n, other=-float("inf")).to(tl.float32)


@triton.jit
def _normaliser(row, n, rate, BLOCK: tl.constexpr):
    """Return the largest logit, and the log of the sum of exp of rate times what they are below it.

    The latter is NaN where a logit is, or is +inf, or all are -inf.
    """
    most = tl.full((), -float("inf"), tl.float32)
    mass = tl.zeros((), tl.float64)
    for start in range(0, n, BLOCK):
        x = _logits(row, start, n, BLOCK)
        here = tl.maximum(most, tl.max(x))
        shift = tl.where(here == -float("inf"), 0.0, here)
        before = tl.exp((most - shift) * rate).to(tl.float64)
        mass = mass * before + tl.sum(tl.exp((x - shift) * rate)).to(tl.float64)
        most = here
    return most, tl.log(mass)


@triton.jit
def _terms(log_p, log_q, a, KIND: tl.constexpr):
    """Give phi and s = q dphi/dq of some ids, up to a multiple of q."""
    p, q, b = tl.exp(log_p), tl.exp(log_q), 1.0 - a
    if KIND == _FORWARD:
        phi = tl.where(p > 0, p * (log_p - log_q), 0.0)
        s = -p
    elif KIND == _REVERSE:
        phi = tl.where(q > 0, q * (log_q - log_p), 0.0)
        s = tl.where(phi == float("inf"), 0.0, phi)
    elif KIND == _JSD:
        log_m = tl.log(tl.maximum(a * p + b * q, _LEAST_MASS))
        s = tl.where(q > 0, b * q * (log_q - log_m), 0.0)
        phi = tl.where(p > 0, a * p * (log_p - log_m), 0.0) + s
    elif KIND == _SKEW_FORWARD:
        m = tl.maximum(a * p + b * q, _LEAST_MASS)
        phi = tl.where(p > 0, p * (log_p - tl.log(m)), 0.0)
        s = -(b * p) * (q / m)
    elif KIND == _SKEW_REVERSE:
        m = tl.maximum(a * q + b * p, _LEAST_MASS)
        phi = tl.where(q > 0, q * (log_q - tl.log(m)), 0.0)
        s = phi - (a * q) * (q / m)
    elif KIND == _DETACHED:
        phi = tl.where(q > 0, q * (log_q - tl.log(tl.maximum(a * q + b * p, _LEAST_MASS))), 0.0)
        s = phi
    elif KIND == _GENERALISED:
        s = tl.where(log_p > -float("inf"), q - p, 0.0)
        phi = s + tl.where(p > 0, p * (log_p - log_q), 0.0)
    else:
        phi = tl.abs(q - p) * 0.5
        s = tl.where(q > p, 0.5 * q, tl.where(q < p, -0.5 * q, 0.0))
    return phi, s


@triton.jit
def _divergence(
    student,
    teacher,
    n,
    width,
    stride_q,
    stride_p,
    a,
    rate_q,
    rate_p,
    scale,
    out,
    KIND: tl.constexpr,
    BLOCK: tl.constexpr,
):
    r = tl.program_id(0)
    row, other = student + r.to(tl.int64) * stride_q, teacher + r.to(tl.int64) * stride_p
    m_q, mass_q = _normaliser(row, n, rate_q, BLOCK)
    m_p, mass_p = _normaliser(other, n, rate_p, BLOCK)
    z_q, z_p = mass_q.to(tl.float32), mass_p.to(tl.float32)
    value = tl.zeros((), tl.float64)
    mean = tl.zeros((), tl.float64)
    for start in range(0, n, BLOCK):
        log_q = (_logits(row, start, n, BLOCK) - m_q) * rate_q - z_q
        phi, s = _terms((_logits(other, start, n, BLOCK) - m_p) * rate_p - z_p, log_q, a, KIND)
        value += tl.sum(phi).to(tl.float64)
        mean += tl.sum(s).to(tl.float64)
    middle = mean.to(tl.float32)
    for start in range(0, width, BLOCK):
        at = start + tl.arange(0, BLOCK)
        log_q = (_logits(row, start, n, BLOCK) - m_q) * rate_q - z_q
        _, s = _terms((_logits(other, start, n, BLOCK) - m_p) * rate_p - z_p, log_q, a, KIND)
        slope = tl.where(at < n, (s - tl.exp(log_q) * middle) * scale, 0.0)
        tl.store(row + at, slope.to(student.dtype.element_ty), mask=at < width)
    unknown = (mass_q - mass_q != 0) | (mass_p - mass_p != 0)
    tl.store(out + r, tl.where(unknown, float("nan"), value))


@triton.jit
def _cross_entropy(logits, ids, n, width, stride, scale, out, BLOCK: tl.constexpr):
    r = tl.program_id(0)
    row = logits + r.to(tl.int64) * stride
    own = tl.load(ids + r)
    x = tl.load(row + own).to(tl.float32)  # before the sums, at which all wait: a faster warp may overwrite it later
    m, mass = _normaliser(row, n, 1.0, BLOCK)
    loss = mass - (x - m).to(tl.float64)
    z, at_own = mass.to(tl.float32), tl.exp(-loss.to(tl.float32)) - 1.0
    for start in range(0, width, BLOCK):
        at = start + tl.arange(0, BLOCK)
        q = tl.exp(_logits(row, start, n, BLOCK) - m - z)
        slope = tl.where(at < n, tl.where(at == own, at_own, q) * scale, 0.0)
        tl.store(row + at, slope.to(logits.dtype.element_ty), mask=at < width)
    tl.store(out + r, loss)
