"""Figures of mixtures without Monte Carlo: quadrature in one and two dimensions, closed forms for single Gaussians.

    E_p log q = sum_k a_k integral phi(z) log q(mu_k + L_k z) dz

Each integral is a trapezoid sum over z in [-8.5, 8.5]^d, which converges faster than any power of the step for a smooth
integrand with Gaussian tails (Trefethen and Weideman 2014); the step is halved until the sum stands still. For q of
one component N(m, S) it is closed, -1/2 [d log 2 pi + log|S| + tr S^-1 (C + (mu - m)(mu - m)')], by p's mean mu and
covariance C.
"""

from __future__ import annotations

import math
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from hydrometer.core.errors import InputError
from hydrometer.core.estimate import Estimate
from hydrometer.metrics.modes import mode_metrics
from hydrometer.models.mixture.law import Mixture

__all__ = ["expected_log_prob", "judge_exact"]

_REACH = 8.5
_STEPS = {1: (0.1, 0.05, 0.025, 0.0125, 0.00625, 0.003125, 0.0015625), 2: (0.2, 0.1, 0.05, 0.025, 0.0125, 0.00625)}
_STILL = 1e-10

Floats = NDArray[np.float64]


def _nodes(d: int, step: float) -> tuple[Floats, Floats]:
    """Return points z (n^d, d) and weights that sum to 1, without those of negligible weight."""
    axis = np.arange(-math.floor(_REACH / step), math.floor(_REACH / step) + 1) * step
    w = np.exp(-0.5 * axis**2)
    if d == 1:
        return axis[:, None], w / w.sum()
    z = np.stack(np.meshgrid(axis, axis, indexing="ij"), axis=-1).reshape(-1, 2)
    both = np.outer(w, w).ravel()
    kept = both > 1e-16
    return z[kept], both[kept] / both.sum()


def _by_quadrature(p: Mixture, q: Mixture) -> tuple[float, float]:
    found: list[float] = []
    for step in _STEPS[p.n_features]:
        z, w = _nodes(p.n_features, step)
        total = 0.0
        for k in np.flatnonzero(p.weights > 0):
            total += float(p.weights[k]) * float(w @ q.log_prob(p.component_points(np.array([k]), z)[0]))
        found.append(total)
        for a, b in pairwise(found[-2:]):
            if abs(a - b) <= _STILL * (1 + abs(b)):
                return b, abs(a - b)
    gap = abs(found[-1] - found[-2])
    if gap > 1e-6 * (1 + abs(found[-1])):
        raise InputError(
            "the densities are too sharp for quadrature", got=f"a change of {gap:.1e} at the finest step",
            fix="use judge, by Monte Carlo",
        )  # fmt: skip
    return found[-1], gap


def expected_log_prob(p: Mixture, q: Mixture) -> tuple[float, float]:
    """Return E_p log q, nats, and what the last refinement changed (0 for a closed form).

    Raises
    ------
    LawMismatchError : other dimensions.
    InputError : more than two dimensions, and q has several components; or densities too sharp for quadrature.
    """
    q.compatible(p)
    if q.n_components == 1:
        mean, covariance = p.moments()
        own_mean, own = q.moments()
        gap = mean - own_mean
        value = -0.5 * (
            q.n_features * math.log(2 * math.pi)
            + float(np.linalg.slogdet(own)[1])
            + float(np.trace(np.linalg.solve(own, covariance + np.outer(gap, gap))))
        )
        return value, 0.0
    if p.n_features not in _STEPS:
        raise InputError(
            "quadrature is for one or two dimensions", got=p.n_features, fix="use judge, by Monte Carlo"
        )  # fmt: skip
    return _by_quadrature(p, q)


def judge_exact(truth: Mixture, law: Mixture) -> dict[str, Estimate]:
    """Every figure of `judge` for two mixtures, without Monte Carlo error.

    Parameters
    ----------
    truth, law : mixtures of one or two dimensions; of any, where both have one component.

    Returns
    -------
    dict of `Estimate` by metric name, method "exact", nats. Theory, eqs. 5 to 10.

    Raises
    ------
    LawMismatchError, InputError : as `expected_log_prob`.

    Examples
    --------
    >>> p, q = (Mixture([1.0], [[m]], [1.0], covariance_type="spherical") for m in (0.0, 1.0))
    >>> round(judge_exact(p, q)["kl_student_truth"].value, 12)
    0.5
    """
    cross = {
        "precision": expected_log_prob(law, truth)[0],
        "recall": expected_log_prob(truth, law)[0],
        "entropy": -expected_log_prob(law, law)[0],
        "entropy_truth": -expected_log_prob(truth, truth)[0],
    }
    cross["kl_student_truth"] = -cross["entropy"] - cross["precision"]
    cross["kl_truth_student"] = -cross["entropy_truth"] - cross["recall"]
    out = {name: Estimate(value, 0.0, 0.0, 0, 0, "exact", "nats") for name, value in cross.items()}
    return out | mode_metrics(truth, law)
