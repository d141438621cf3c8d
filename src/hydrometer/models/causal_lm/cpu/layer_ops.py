"""What lies between the matrix products of a Llama-type layer: norms, rotary attention over a cache, gated unit.

Shapes: M tokens packed without padding, D width, H query heads on G key heads of size d, S room of a row's cache,
P room of a prompt's, F inner width.

Stored numbers are float32, or bfloat16 as the uint16 of their bits; arithmetic, and the residual stream, are float32.
One thread, without the interpreter's lock. Arrays that belong together are passed as plain tuples: named ones cost
4 microseconds more a call.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from hydrometer.models.arithmetic import exp32, inlined, kernel, narrow, wide

__all__ = ["add_rms_norm", "attend", "gate"]

f32 = np.float32
_LANES = 16


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


@inlined
def _norm_head(raw: Any, at: Any, norm: Any, epsilon: Any, size: Any) -> None:
    """Norm the head at raw[at:] in place, where there is a norm."""
    if norm.shape[0] > 0:
        squares = f32(0.0)
        for i in range(size):
            squares += raw[at + i] * raw[at + i]
        scale = f32(1.0) / f32(math.sqrt(squares / f32(size) + f32(epsilon)))
        for i in range(size):
            raw[at + i] *= scale * norm[i]


@inlined
def _rotate(raw: Any, at: Any, cos: Any, sin: Any, where: Any, out: Any, g: Any) -> None:
    """Turn the head at raw[at:] by its position's angles, into out[g]; all float32."""
    size = out.shape[1]
    half = size // 2
    for i in range(half):
        out[g, i] = raw[at + i] * cos[where, i] - raw[at + half + i] * sin[where, i]
    for i in range(half):
        out[g, half + i] = raw[at + half + i] * cos[where, half + i] + raw[at + i] * sin[where, half + i]


# Arrays are indexed whole below: a view of a part would be counted in and out of use, which costs more than the sums.


@inlined
def _dots(query: Any, keys: Any, r: Any, h: Any, n: Any, score: Any, at: Any) -> None:
    """Products of each query with n stored keys: score[g, at + s] = <query[g], keys[r, h, s]>.

    Two queries and four keys at a time, so that a number once widened is used twice.
    """
    group, size = query.shape
    for g in range(0, group - 1, 2):
        for block in range(n // 4):
            s = 4 * block
            a0, a1, a2, a3 = f32(0.0), f32(0.0), f32(0.0), f32(0.0)
            b0, b1, b2, b3 = f32(0.0), f32(0.0), f32(0.0), f32(0.0)
            for i in range(size):
                p, q = query[g, i], query[g + 1, i]
                k0, k1 = wide(keys[r, h, s, i]), wide(keys[r, h, s + 1, i])
                k2, k3 = wide(keys[r, h, s + 2, i]), wide(keys[r, h, s + 3, i])
                a0 += p * k0
                a1 += p * k1
                a2 += p * k2
                a3 += p * k3
                b0 += q * k0
                b1 += q * k1
                b2 += q * k2
                b3 += q * k3
            score[g, at + s], score[g, at + s + 1], score[g, at + s + 2], score[g, at + s + 3] = a0, a1, a2, a3
            score[g + 1, at + s], score[g + 1, at + s + 1] = b0, b1
            score[g + 1, at + s + 2], score[g + 1, at + s + 3] = b2, b3
    if group % 2:
        g = group - 1
        for block in range(n // 4):
            s = 4 * block
            a0, a1, a2, a3 = f32(0.0), f32(0.0), f32(0.0), f32(0.0)
            for i in range(size):
                p = query[g, i]
                a0 += p * wide(keys[r, h, s, i])
                a1 += p * wide(keys[r, h, s + 1, i])
                a2 += p * wide(keys[r, h, s + 2, i])
                a3 += p * wide(keys[r, h, s + 3, i])
            score[g, at + s], score[g, at + s + 1], score[g, at + s + 2], score[g, at + s + 3] = a0, a1, a2, a3
    for g in range(group):
        for s in range(n // 4 * 4, n):
            dot = f32(0.0)
            for i in range(size):
                dot += query[g, i] * wide(keys[r, h, s, i])
            score[g, at + s] = dot


@inlined
def _mix(weight: Any, at: Any, values: Any, r: Any, h: Any, n: Any, mixed: Any) -> None:
    """mixed[g] += sum over s of weight[g, at + s] values[r, h, s]. Two queries and four values at a time."""
    group, size = mixed.shape
    for g in range(0, group - 1, 2):
        for block in range(n // 4):
            s = 4 * block
            a0, a1, a2, a3 = weight[g, at + s], weight[g, at + s + 1], weight[g, at + s + 2], weight[g, at + s + 3]
            b0, b1 = weight[g + 1, at + s], weight[g + 1, at + s + 1]
            b2, b3 = weight[g + 1, at + s + 2], weight[g + 1, at + s + 3]
            for i in range(size):
                v0, v1 = wide(values[r, h, s, i]), wide(values[r, h, s + 1, i])
                v2, v3 = wide(values[r, h, s + 2, i]), wide(values[r, h, s + 3, i])
                mixed[g, i] += (a0 * v0 + a1 * v1) + (a2 * v2 + a3 * v3)
                mixed[g + 1, i] += (b0 * v0 + b1 * v1) + (b2 * v2 + b3 * v3)
    if group % 2:
        g = group - 1
        for block in range(n // 4):
            s = 4 * block
            a0, a1, a2, a3 = weight[g, at + s], weight[g, at + s + 1], weight[g, at + s + 2], weight[g, at + s + 3]
            for i in range(size):
                v0, v1 = wide(values[r, h, s, i]), wide(values[r, h, s + 1, i])
                v2, v3 = wide(values[r, h, s + 2, i]), wide(values[r, h, s + 3, i])
                mixed[g, i] += (a0 * v0 + a1 * v1) + (a2 * v2 + a3 * v3)
    for g in range(group):
        for s in range(n // 4 * 4, n):
            w = weight[g, at + s]
            for i in range(size):
                mixed[g, i] += w * wide(values[r, h, s, i])


@kernel
def attend(projected: Any, at: Any, prompts: Any, cache: Any, rotary: Any, norms: Any, scale: Any, out: Any) -> None:
    """Causal attention of packed tokens, each over its prompt's cache and its own row's.

    Parameters
    ----------
    projected : (M, (H + 2G) d) queries, keys, values. Tokens of a row come in order.
    at : position, slot, place; (M,) absolute, row of the cache, place in that row.
    prompts : prompt_of_slot, prompt_length, prompt_keys, prompt_values; (slots,), -1 for none, (prompts,), and twice
        (prompts, G, P, d).
    cache : keys, values; (slots, G, S, d) each, filled at `place`.
    rotary : cos, sin; (positions, d) float32 each.
    norms : query_norm, key_norm, epsilon; (d,) float32 each, or (0,) for none.
    out : (M, H d), filled.
    """
    position, slot, place = at
    prompt_of_slot, prompt_length, prompt_keys, prompt_values = prompts
    keys, values = cache
    cos, sin = rotary
    query_norm, key_norm, epsilon = norms
    heads_k, size = keys.shape[1], keys.shape[3]
    heads_q = out.shape[1] // size
    group = heads_q // heads_k
    query = np.empty((group, size), np.float32)
    raw = np.empty((heads_q + heads_k) * size, np.float32)
    turned = np.empty((1, size), np.float32)
    kind = projected[0, 0]
    inverse = np.empty(group, np.float32)
    mixed = np.empty((group, size), np.float32)
    # A whole number of vectors, so that no exponential is left to be computed alone.
    score = np.empty((group, (prompt_keys.shape[2] + keys.shape[2] + _LANES) // _LANES * _LANES), np.float32)
    for t in range(projected.shape[0]):
        where, own, here = position[t], slot[t], place[t]
        p = prompt_of_slot[own]
        before = prompt_length[p] if p >= 0 else 0
        seen = before + here + 1
        for i in range(raw.shape[0]):
            raw[i] = wide(projected[t, i])
        for h in range(heads_k):
            _norm_head(raw, (heads_q + h) * size, key_norm, epsilon, size)
            _rotate(raw, (heads_q + h) * size, cos, sin, where, turned, 0)
            for i in range(size):
                keys[own, h, here, i] = narrow(turned[0, i], kind)
            for i in range(size):
                values[own, h, here, i] = projected[t, (heads_q + heads_k + h) * size + i]
            for g in range(group):
                _norm_head(raw, (h * group + g) * size, query_norm, epsilon, size)
                _rotate(raw, (h * group + g) * size, cos, sin, where, query, g)
            if before > 0:
                _dots(query, prompt_keys, p, h, before, score, 0)
            _dots(query, keys, own, h, here + 1, score, before)
            for g in range(group):
                padded = (seen + _LANES - 1) // _LANES * _LANES
                for s in range(seen, padded):
                    score[g, s] = f32(-1e30)
                top = score[g, 0]
                for s in range(seen):
                    v = score[g, s]
                    top = v if v > top else top
                total = f32(0.0)
                for s in range(padded):
                    w = exp32((score[g, s] - top) * f32(scale))
                    score[g, s] = w
                    total += w
                inverse[g] = f32(1.0) / total
                for i in range(size):
                    mixed[g, i] = f32(0.0)
            if before > 0:
                _mix(score, 0, prompt_values, p, h, before, mixed)
            _mix(score, before, values, own, h, here + 1, mixed)
            for g in range(group):
                first = (h * group + g) * size
                for i in range(size):
                    out[t, first + i] = narrow(mixed[g, i] * inverse[g], kind)
