"""What lies between the matrix products of a Llama-type layer: norms, rotary attention over a cache, gated unit.

Shapes: M tokens packed without padding, D width, H query heads on G key heads of size d, S room of a row's cache,
P room of a prompt's, F inner width.

Stored numbers are float32, or bfloat16 as the uint16 of their bits; arithmetic, and the residual stream, are float32.
One thread, without the interpreter's lock.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from hydrometer.models.causal_lm.kernels import exp32, kernel, narrow, wide

__all__ = ["add_rms_norm", "attend", "gate"]

f32 = np.float32


@kernel
def add_rms_norm(residual: Any, delta: Any, weight: Any, epsilon: Any, out: Any) -> None:
    """Add `delta` to the residual stream and write its norm, x / sqrt(mean x^2 + epsilon) * weight.

    Parameters
    ----------
    residual : (M, D) float32, changed in place. delta : (M, D), or (0, D) for none.
    weight : (D,) float32. out : (M, D), filled.
    """
    width = residual.shape[1]
    for r in range(residual.shape[0]):
        if delta.shape[0] > 0:
            for i in range(width):
                residual[r, i] += wide(delta[r, i])
        squares = f32(0.0)
        for i in range(width):
            squares += residual[r, i] * residual[r, i]
        scale = f32(1.0) / f32(math.sqrt(squares / f32(width) + f32(epsilon)))
        for i in range(width):
            out[r, i] = narrow(residual[r, i] * scale * weight[i], out[r, i])


@kernel
def gate(both: Any, out: Any) -> None:
    """SiLU-gated unit: both (M, 2F) holds gate then up; out (M, F) = gate * sigmoid(gate) * up."""
    inner = out.shape[1]
    for r in range(out.shape[0]):
        for i in range(inner):
            g = wide(both[r, i])
            # exp32 ends at exp(-87), so clip the other end alike: sigmoid is 0 there to float32.
            sigmoid = f32(1.0) / (f32(1.0) + exp32(min(-g, f32(87.0))))
            out[r, i] = narrow(g * sigmoid * wide(both[r, inner + i]), out[r, i])


@kernel
def _rotated(
    x: Any, t: Any, at: Any, norm: Any, epsilon: Any, cos: Any, sin: Any, where: Any, out: Any, g: Any
) -> None:
    """Head at x[t, at:], normed where there is a norm, turned by its position's angles, as float32 into out[g]."""
    size = out.shape[1]
    for i in range(size):
        out[g, i] = wide(x[t, at + i])
    if norm.shape[0] > 0:
        squares = f32(0.0)
        for i in range(size):
            squares += out[g, i] * out[g, i]
        scale = f32(1.0) / f32(math.sqrt(squares / f32(size) + f32(epsilon)))
        for i in range(size):
            out[g, i] *= scale * norm[i]
    half = size // 2
    for i in range(half):
        a, b = out[g, i], out[g, half + i]
        out[g, i] = a * cos[where, i] - b * sin[where, i]
        out[g, half + i] = b * cos[where, half + i] + a * sin[where, half + i]


# Arrays are indexed whole below: a view of a part would be counted in and out of use, which costs more than the sums.


@kernel
def _dots(query: Any, keys: Any, r: Any, h: Any, n: Any, score: Any, at: Any) -> None:
    """Products of each query with n stored keys: score[g, at + s] = <query[g], keys[r, h, s]>. Four keys at a time."""
    group, size = query.shape
    for g in range(group):
        for block in range(n // 4):
            s = 4 * block
            d0, d1, d2, d3 = f32(0.0), f32(0.0), f32(0.0), f32(0.0)
            for i in range(size):
                q = query[g, i]
                d0 += q * wide(keys[r, h, s, i])
                d1 += q * wide(keys[r, h, s + 1, i])
                d2 += q * wide(keys[r, h, s + 2, i])
                d3 += q * wide(keys[r, h, s + 3, i])
            score[g, at + s] = d0
            score[g, at + s + 1] = d1
            score[g, at + s + 2] = d2
            score[g, at + s + 3] = d3
        for s in range(n // 4 * 4, n):
            dot = f32(0.0)
            for i in range(size):
                dot += query[g, i] * wide(keys[r, h, s, i])
            score[g, at + s] = dot


@kernel
def _mix(weight: Any, at: Any, values: Any, r: Any, h: Any, n: Any, mixed: Any) -> None:
    """mixed[g] += sum over s of weight[g, at + s] values[r, h, s]. Four values at a time."""
    group, size = mixed.shape
    for g in range(group):
        for block in range(n // 4):
            s = 4 * block
            w0, w1, w2, w3 = (
                weight[g, at + s],
                weight[g, at + s + 1],
                weight[g, at + s + 2],
                weight[g, at + s + 3],
            )
            for i in range(size):
                a = w0 * wide(values[r, h, s, i]) + w1 * wide(values[r, h, s + 1, i])
                b = w2 * wide(values[r, h, s + 2, i]) + w3 * wide(values[r, h, s + 3, i])
                mixed[g, i] += a + b
        for s in range(n // 4 * 4, n):
            w = weight[g, at + s]
            for i in range(size):
                mixed[g, i] += w * wide(values[r, h, s, i])


@kernel
def attend(
    projected: Any,
    position: Any,
    slot: Any,
    place: Any,
    prompt_of_slot: Any,
    prompt_length: Any,
    prompt_keys: Any,
    prompt_values: Any,
    keys: Any,
    values: Any,
    cos: Any,
    sin: Any,
    query_norm: Any,
    key_norm: Any,
    epsilon: Any,
    scale: Any,
    out: Any,
) -> None:
    """Causal attention of packed tokens, each over its prompt's cache and its own row's.

    Parameters
    ----------
    projected : (M, (H + 2G) d) queries, keys, values. Tokens of a row come in order.
    position : (M,) absolute; slot : (M,) row of the cache; place : (M,) where in that row.
    prompt_of_slot : (slots,), -1 for none; prompt_length : (prompts,).
    prompt_keys, prompt_values : (prompts, G, P, d).
    keys, values : (slots, G, S, d), filled at `place`.
    cos, sin : (positions, d) float32. query_norm, key_norm : (d,) float32, or (0,).
    out : (M, H d), filled.
    """
    heads_k, size = keys.shape[1], keys.shape[3]
    heads_q = out.shape[1] // size
    group = heads_q // heads_k
    query = np.empty((group, size), np.float32)
    turned = np.empty((1, size), np.float32)
    mixed = np.empty((group, size), np.float32)
    score = np.empty((group, prompt_keys.shape[2] + keys.shape[2]), np.float32)
    for t in range(projected.shape[0]):
        where, own, here = position[t], slot[t], place[t]
        p = prompt_of_slot[own]
        before = prompt_length[p] if p >= 0 else 0
        seen = before + here + 1
        for h in range(heads_k):
            _rotated(projected, t, (heads_q + h) * size, key_norm, epsilon, cos, sin, where, turned, 0)
            for i in range(size):
                keys[own, h, here, i] = narrow(turned[0, i], keys[own, h, here, i])
                values[own, h, here, i] = projected[t, (heads_q + heads_k + h) * size + i]
            for g in range(group):
                at = (h * group + g) * size
                _rotated(projected, t, at, query_norm, epsilon, cos, sin, where, query, g)
            if before > 0:
                _dots(query, prompt_keys, p, h, before, score, 0)
            _dots(query, keys, own, h, here + 1, score, before)
            for g in range(group):
                top = score[g, 0]
                for s in range(1, seen):
                    top = max(top, score[g, s])
                total = f32(0.0)
                for s in range(seen):
                    w = exp32((score[g, s] - top) * f32(scale))
                    score[g, s] = w
                    total += w
                share = f32(1.0) / total
                for s in range(seen):
                    score[g, s] *= share
                for i in range(size):
                    mixed[g, i] = f32(0.0)
            if before > 0:
                _mix(score, 0, prompt_values, p, h, before, mixed)
            _mix(score, before, values, own, h, here + 1, mixed)
            for g in range(group):
                at = (h * group + g) * size
                for i in range(size):
                    out[t, at + i] = narrow(mixed[g, i], out[t, at + i])
