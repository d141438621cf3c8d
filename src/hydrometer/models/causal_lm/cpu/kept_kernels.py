"""The passes over a row of logits that a divergence from k kept ids needs, for the CPU.

Shapes: m rows, V ids that exist, W >= V storage width of a row, k kept ids.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from hydrometer.models.arithmetic import kernel, narrow, wide
from hydrometer.models.causal_lm.cpu.logit_kernels import CHUNK, f32, row_maximum, weight_at

__all__ = ["spread_rows", "tail_rows"]


@kernel
def tail_rows(logits: Any, n: Any, ids: Any, sharpness: Any, kept: Any, weights: Any, sums: Any) -> None:
    """Read the kept logits, and sum over all others.

    Parameters
    ----------
    logits : (m, W); at the kept ids overwritten with -inf. n : V ; ids : (m, k) int64.
    sharpness : float32, what logits are multiplied by.
    kept : (m, k) float32, filled with the logits at the ids.
    weights : (m, V) float32, filled with exp(sharpness logit - top) of all others.
    sums : (m, 2) float64, filled with top, the largest of sharpness logit over all others, and the log of the sum of
        exp(sharpness logit) over them; -inf where there are none, NaN where a logit is.
    """
    for r in range(logits.shape[0]):
        row = logits[r]
        for i in range(ids.shape[1]):
            kept[r, i] = wide(row[ids[r, i]])
        for i in range(ids.shape[1]):
            row[ids[r, i]] = narrow(f32(-np.inf), row[0])
        m = row_maximum(row, n)
        if m == f32(-np.inf):
            weights[r, :n] = f32(0.0)
            sums[r, 0] = sums[r, 1] = -np.inf
            continue
        total = 0.0
        for c in range((n + CHUNK - 1) // CHUNK):
            s = f32(0.0)
            for j in range(c * CHUNK, min(n, (c + 1) * CHUNK)):
                w = weight_at((wide(row[j]) - m) * sharpness)
                weights[r, j] = w
                s += w
            total += np.float64(s)
        sums[r, 0] = np.float64(m * sharpness)
        sums[r, 1] = sums[r, 0] + math.log(total)


@kernel
def spread_rows(logits: Any, n: Any, ids: Any, weights: Any, factor: Any, values: Any) -> None:
    """Fill rows with `factor` times the weights, and with `values` at the kept ids.

    Parameters
    ----------
    logits : (m, W), overwritten; columns from n on with zeros.
    ids : (m, k) int64; of equal neighbours the first counts. weights : (m, V). factor : (m,). values : (m, k) float32.
    """
    for r in range(logits.shape[0]):
        row = logits[r]
        for j in range(n):
            row[j] = narrow(weights[r, j] * factor[r], row[j])
        for j in range(n, logits.shape[1]):
            row[j] = narrow(f32(0.0), row[j])
        for i in range(ids.shape[1]):
            if i == 0 or ids[r, i] != ids[r, i - 1]:
                row[ids[r, i]] = narrow(values[r, i], row[0])
