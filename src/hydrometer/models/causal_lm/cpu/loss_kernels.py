"""The gradient of a cross-entropy in one pass over a row of logits."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from hydrometer.models.arithmetic import kernel, narrow, wide
from hydrometer.models.causal_lm.cpu.logit_kernels import CHUNK, f32, row_maximum, weight_at

__all__ = ["softmax_gradient"]


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
