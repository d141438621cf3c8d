"""Gradients of KL(teacher, student) from what is kept of a teacher's law: means and errors, in closed form.

Shapes: V ids, B positions of a batch, D width of the student's states.
"""

from __future__ import annotations

import math

import numpy as np

from hydrometer.claims.worlds import degrees_between
from hydrometer.core.array_types import Floats, Ints

__all__ = ["LAWS", "batch_figures", "figures_of", "gradients", "likeliest_first"]

LAWS = ("top_k", "top_k_renormalised", "top_k_bucket", "sampled")


def likeliest_first(p: Floats, k: int) -> Ints:
    """Return an order of ids that begins with the k likeliest, row by row, (B, V) of (B, V).

    Examples
    --------
    >>> sorted(likeliest_first(np.array([[0.1, 0.5, 0.1, 0.3]]), 2)[0, :2].tolist())
    [1, 3]
    """
    return np.argpartition(-p, k - 1, axis=1)


def gradients(p: Floats, q: Floats, k: int) -> dict[str, Floats]:
    """Return the expected gradient in the student's logits of each teacher law, and of the dense one.

    Parameters
    ----------
    p, q : (V,) laws of teacher and student, the teacher's k likeliest ids first.
    k : of ids that are kept, or drawn; V at most.
    """
    kept = np.where(np.arange(len(p)) < k, p, 0.0)
    mass, rest = float(kept.sum()), float(p[k:].sum())
    bucket = np.concatenate([p[:k], rest * q[k:] / q[k:].sum()])  # the student's own law divides what is left
    return {
        "dense": q - p,
        "top_k": mass * q - kept,
        "top_k_renormalised": q - kept / mass,
        "top_k_bucket": q - bucket,
        "sampled": q - p,
    }


def figures_of(p: Floats, q: Floats, k: int) -> dict[str, dict[str, float]]:
    """Return for each teacher law the figures of one position.

    Returns
    -------
    angle : between expected and dense gradient, degrees.
    ratio : of their norms.
    error : root of the expected square of the distance from the dense gradient, over its norm.
    overconfidence : mass that the optimum gives the k likeliest ids, less the teacher's.
    """
    found = gradients(p, q, k)
    dense = found["dense"]
    size = float(np.linalg.norm(dense))
    noise = {"sampled": (1 - float(p @ p)) / k}  # of shares of k draws
    confident = {"top_k": float(p[k:].sum()), "top_k_renormalised": float(p[k:].sum())}
    out: dict[str, dict[str, float]] = {}
    for law in LAWS:
        g = found[law]
        long = float(np.linalg.norm(g))
        error = math.sqrt(float(np.sum((g - dense) ** 2)) + noise.get(law, 0.0)) / size
        out[law] = {
            "angle": degrees_between(g, dense),
            "ratio": long / size,
            "error": error,
            "overconfidence": confident.get(law, 0.0),
        }
    return out


def batch_figures(p: Floats, q: Floats, states: Floats, k: int) -> dict[str, dict[str, float]]:
    """Return for each teacher law the figures of the gradient in the student's output matrix, mean over a batch.

    A position's share of it is its gradient in the logits times its state, so what positions have in common adds up,
    and what is each one's own averages out; draws are independent.

    Parameters
    ----------
    p, q : (B, V) laws of teacher and student, ids in one order for all positions. states : (B, D) of the student.
    k : of ids that are kept, or drawn, at each position; V at most.

    Returns
    -------
    angle, ratio, error : as of `figures_of`.
    """
    apart: dict[str, Floats] = {law: np.empty_like(p) for law in LAWS}
    for b, ids in enumerate(likeliest_first(p, k)):
        found = gradients(p[b, ids], q[b, ids], k)
        for law in LAWS:
            apart[law][b, ids] = found[law] - found["dense"]
    gram = states @ states.T / len(p) ** 2
    dense = q - p
    size = math.sqrt(float(np.sum(gram * (dense @ dense.T))))
    noise = {"sampled": float(np.diag(gram) @ (1 - np.sum(p * p, axis=1))) / k}
    out: dict[str, dict[str, float]] = {}
    for law, away in apart.items():
        square = float(np.sum(gram * (away @ away.T)))
        along = float(np.sum(gram * (away @ dense.T))) / size
        across = math.sqrt(max(square - along**2, 0.0))
        out[law] = {
            "angle": math.degrees(math.atan2(across, size + along)),
            "ratio": math.hypot(size + along, across) / size,
            "error": math.sqrt(max(square, 0.0) + noise.get(law, 0.0)) / size,
        }
    return out
