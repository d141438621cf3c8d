"""The gradient of a divergence between two next-token laws, in one visit to a row of logits, for the CPU.

Shapes: M rows, V ids that exist, W >= V storage width of a row.

With q the student's law, p the teacher's and D = sum over v of phi(p_v, q_v), the gradient by a logit z_v of the
student's is

    dD/dz_v = s_v - q_v sum over u of s_u,        s = q dphi/dq

so an objective is its `phi` and its `s`, up to a multiple of q. `divergences` has the same in torch.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from hydrometer.models.arithmetic import kernel, log32, narrow, wide
from hydrometer.models.causal_lm.cpu.logit_kernels import CHUNK, f32, row_maximum, scratch_of, select_row, weight_at

__all__ = [
    "ADAPTIVE",
    "FORWARD",
    "GENERALISED",
    "JSD",
    "REVERSE",
    "SKEW_FORWARD",
    "SKEW_REVERSE",
    "SKEW_REVERSE_DETACHED",
    "TOTAL_VARIATION",
    "divergence_rows",
    "softmax_gradient",
]

FORWARD, REVERSE, JSD, SKEW_FORWARD, SKEW_REVERSE, TOTAL_VARIATION = range(6)
SKEW_REVERSE_DETACHED, ADAPTIVE, GENERALISED = range(6, 9)
_LEAST_MASS = f32(1.2e-38)  # the least normal float32
_DROPPED = f32(-1e30)


@kernel
def _law(row: Any, n: Any, m: Any, rate: Any, edge: Any, sharpness: Any, mass: Any) -> Any:
    """Fill `mass` with exp(x) of the kept ids, x = (logit - m) rate sharpness; return the log of their sum."""
    total = 0.0
    for k in range((n + CHUNK - 1) // CHUNK):
        s = f32(0.0)
        for j in range(k * CHUNK, min(n, (k + 1) * CHUNK)):
            x = (wide(row[j]) - m) * rate
            w = weight_at(x * sharpness) if x >= edge else f32(0.0)
            mass[j] = w
            s += w
        total += np.float64(s)
    return math.log(total)


@kernel
def _head_share(row: Any, n: Any, m: Any, rate: Any, edge: Any, p: Any, q: Any) -> Any:
    """Return the share of sum over v of abs(p - q) that lies in the head, the ids with (logit - m) rate >= edge."""
    mass_p, z_p = p
    mass_q, z_q = q
    head, whole = 0.0, 0.0
    for j in range(n):
        gap = np.float64(abs(mass_p[j] * z_p - mass_q[j] * z_q))
        whole += gap
        if (wide(row[j]) - m) * rate >= edge:
            head += gap
    return f32(head / whole) if whole > 0.0 else f32(0.5)


@kernel
def divergence_rows(student: Any, teacher: Any, n: Any, s: Any, terms: Any, scale: Any, value: Any) -> None:
    """Turn each row of the student's logits into `scale` times the gradient of its divergence, in place.

    Parameters
    ----------
    student : (M, W), overwritten; columns from n on with zeros. teacher : (M, W') logits.
    n : V ; s : the teacher's selectivity, as in `logit_kernels.select_row`.
    terms : kind, weight, sharpness. weight : of `ADAPTIVE` the head's mass. sharpness : float32, 1 / temperature of the
        loss, of both laws.
    scale : float32.
    value : (M,) float64, filled with the divergences, nats; infinite where the teacher drops what it must not,
        NaN where a logit is.
    """
    kind, weight, sharpness = terms
    rate, top_k, top_p, log_min_p = s
    a, b = f32(weight), f32(1.0 - weight)
    p, q, slope = np.empty(n, np.float32), np.empty(n, np.float32), np.empty(n, np.float32)
    whole = top_k == 0 and top_p >= 1.0 and log_min_p == f32(-np.inf)
    scratch = scratch_of(1 if whole and kind != ADAPTIVE else n)
    held, fixed = kind == SKEW_REVERSE_DETACHED, f32(0.0)
    for r in range(student.shape[0]):
        row, other = student[r], teacher[r]
        m_q = row_maximum(row, n)
        log_q = f32(_law(row, n, m_q, f32(1.0), f32(-np.inf), sharpness, q))
        if whole:
            m_p, edge = row_maximum(other, n), f32(-np.inf)
        else:
            m_p, edge, _, _, _, _, _ = select_row(other, n, s, scratch)
        over = f32(-np.inf) if kind == GENERALISED else edge  # mass of the dropped is not shared out
        log_p = f32(_law(other, n, m_p, rate, over, sharpness, p))
        z_p, z_q = f32(math.exp(-np.float64(log_p))), f32(math.exp(-np.float64(log_q)))
        found, mean = 0.0, 0.0
        outside = 0
        share = f32(0.5)
        if kind == ADAPTIVE and math.isfinite(log_p):
            _, head, _, _, _, _, _ = select_row(other, n, (rate * sharpness, 0, weight, f32(-np.inf)), scratch)
            share = _head_share(other, n, m_p, rate * sharpness, head, (p, z_p), (q, z_q))
        for k in range((n + CHUNK - 1) // CHUNK):
            start, stop = k * CHUNK, min(n, (k + 1) * CHUNK)
            f, g = f32(0.0), f32(0.0)
            if kind == FORWARD:
                for j in range(start, stop):
                    p_j, q_j = p[j] * z_p, q[j] * z_q
                    gap = ((wide(other[j]) - m_p) * rate - (wide(row[j]) - m_q)) * sharpness - (log_p - log_q)
                    f += p_j * gap if p_j > f32(0.0) else f32(0.0)
                    slope[j] = -p_j
                    g -= p_j
                    q[j] = q_j
            elif kind == REVERSE:
                for j in range(start, stop):
                    q_j = q[j] * z_q
                    x = (wide(other[j]) - m_p) * rate
                    kept = x >= edge and x > _DROPPED
                    gap = ((wide(row[j]) - m_q) - x) * sharpness - (log_q - log_p)
                    t = q_j * gap if kept and q_j > f32(0.0) else f32(0.0)
                    outside += q_j > f32(0.0) and not kept
                    f += t
                    slope[j] = t
                    g += t
                    q[j] = q_j
            elif kind == JSD:
                for j in range(start, stop):
                    p_j, q_j = p[j] * z_p, q[j] * z_q
                    log_m = log32(max(a * p_j + b * q_j, _LEAST_MASS))
                    of_p = (
                        ((wide(other[j]) - m_p) * rate * sharpness - log_p - log_m) * p_j
                        if p_j > f32(0.0)
                        else f32(0.0)
                    )
                    of_q = ((wide(row[j]) - m_q) * sharpness - log_q - log_m) * q_j if q_j > f32(0.0) else f32(0.0)
                    f += a * of_p + b * of_q
                    slope[j] = b * of_q
                    g += b * of_q
                    q[j] = q_j
            elif kind == SKEW_FORWARD:
                for j in range(start, stop):
                    p_j, q_j = p[j] * z_p, q[j] * z_q
                    m_j = max(a * p_j + b * q_j, _LEAST_MASS)
                    of_p = ((wide(other[j]) - m_p) * rate * sharpness - log_p - log32(m_j)) * p_j
                    f += of_p if p_j > f32(0.0) else f32(0.0)
                    t = -(b * p_j) * (q_j / m_j)
                    slope[j] = t
                    g += t
                    q[j] = q_j
            elif kind == SKEW_REVERSE or held:
                for j in range(start, stop):
                    p_j, q_j = p[j] * z_p, q[j] * z_q
                    m_j = max(a * q_j + b * p_j, _LEAST_MASS)
                    of_q = ((wide(row[j]) - m_q) * sharpness - log_q - log32(m_j)) * q_j if q_j > f32(0.0) else f32(0.0)
                    f += of_q
                    t = of_q - (fixed if held else (a * q_j) * (q_j / m_j))
                    slope[j] = t
                    g += t
                    q[j] = q_j
            elif kind == ADAPTIVE:
                for j in range(start, stop):
                    p_j, q_j = p[j] * z_p, q[j] * z_q
                    x = (wide(other[j]) - m_p) * rate
                    kept = x >= edge and x > _DROPPED
                    gap = ((wide(row[j]) - m_q) - x) * sharpness - (log_q - log_p)
                    of_q = (f32(1.0) - share) * q_j * gap if kept and q_j > f32(0.0) else f32(0.0)
                    outside += q_j > f32(0.0) and not kept
                    f += of_q - share * p_j * gap if p_j > f32(0.0) else of_q
                    t = of_q - share * p_j
                    slope[j] = t
                    g += t
                    q[j] = q_j
            elif kind == GENERALISED:
                for j in range(start, stop):
                    p_j, q_j = p[j] * z_p, q[j] * z_q
                    x = (wide(other[j]) - m_p) * rate
                    gap = (x - (wide(row[j]) - m_q)) * sharpness - (log_p - log_q)
                    t = q_j - p_j if x >= edge and x > _DROPPED else f32(0.0)
                    f += t + p_j * gap if x >= edge and p_j > f32(0.0) else t
                    slope[j] = t
                    g += t
                    q[j] = q_j
            else:
                for j in range(start, stop):
                    p_j, q_j = p[j] * z_p, q[j] * z_q
                    t = f32(0.5) * q_j if q_j > p_j else f32(-0.5) * q_j
                    t = t if q_j != p_j else f32(0.0)
                    f += f32(0.5) * abs(q_j - p_j)
                    slope[j] = t
                    g += t
                    q[j] = q_j
            found += np.float64(f)
            mean += np.float64(g)
        known = math.isfinite(log_q) and math.isfinite(log_p)  # not where a logit is NaN or +inf
        value[r] = np.nan if not known else np.inf if outside > 0 else found
        step, middle = scale * sharpness, f32(mean)
        for j in range(n):
            row[j] = narrow((slope[j] - q[j] * middle) * step, row[j])
        for j in range(n, student.shape[1]):
            row[j] = narrow(f32(0.0), row[j])


@kernel
def softmax_gradient(logits: Any, n: Any, ids: Any, scale: Any, loss: Any) -> None:
    """Turn each row into the gradient of `scale` times its loss, in place.

    Parameters
    ----------
    logits : (M, W), overwritten with scale (softmax - onehot); columns from n on with zeros.
    n : V ; ids : (M,) int64 ; scale : float32.
    loss : (M,) float64, filled with -log softmax at the ids, nats.
    """
    weight = np.empty(n, np.float32)
    for r in range(logits.shape[0]):
        m = row_maximum(logits[r], n)
        total = 0.0
        for k in range((n + CHUNK - 1) // CHUNK):
            s = f32(0.0)
            for j in range(k * CHUNK, min(n, (k + 1) * CHUNK)):
                w = weight_at(wide(logits[r, j]) - m)
                weight[j] = w
                s += w
            total += np.float64(s)
        log_mass = math.log(total)
        at = ids[r]
        own = wide(logits[r, at]) - m
        loss[r] = log_mass - np.float64(own)
        share = f32(np.float64(scale) / total)
        for j in range(n):
            logits[r, j] = narrow(weight[j] * share, logits[r, j])
        for j in range(n, logits.shape[1]):
            logits[r, j] = narrow(f32(0.0), logits[r, j])
        logits[r, at] = narrow(f32(math.exp(-loss[r]) - 1.0) * scale, logits[r, at])
