"""Points that stand for a standard normal, for expectations of smooth functions under Gaussians."""

from __future__ import annotations

import math
from functools import lru_cache

import numpy as np

from hydrometer.core.array_types import Floats

__all__ = ["REACH", "grid", "spread"]

REACH = 8.5


def grid(d: int, step: float) -> tuple[Floats, Floats]:
    """Return points z (n^d, d), in one or two dimensions, and weights that sum to 1, without negligible ones.

    A trapezoid sum of a smooth function converges faster than any power of the step (Trefethen and Weideman 2014).
    """
    axis = np.arange(-math.floor(REACH / step), math.floor(REACH / step) + 1, dtype=np.float64) * step
    w = np.exp(-0.5 * axis**2)
    if d == 1:
        return axis[:, None], w / w.sum()
    z = np.stack(np.meshgrid(axis, axis, indexing="ij"), axis=-1).reshape(-1, 2)
    both = np.outer(w, w).ravel()
    kept = both > 1e-16
    return z[kept], both[kept] / both.sum()


@lru_cache(maxsize=8)
def spread(d: int, m: int, k: int) -> Floats:
    """Return points (k, m, d) of a Sobol sequence, each row of which is of a standard normal."""
    from scipy.special import ndtri
    from scipy.stats import qmc  # half a second

    uniforms = np.asarray(qmc.Sobol(d, scramble=False).random(k * m), np.float64) + 0.5 / (k * m)
    return np.asarray(ndtri(uniforms), np.float64).reshape(k, m, d)
