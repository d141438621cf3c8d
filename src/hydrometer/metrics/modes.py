"""Modes of a mixture truth that a mixture says something about, and the capacity gap.

    emphasised(q) = the fewest components of q that hold a mass of 0.95
    sigma(k)      = the true modes j with E_{x ~ N_k} r_j(x) >= 1 / (2 K),  r_j the truth's responsibilities
    modes_covered = |union of sigma(k) over emphasised k|
    capacity_gap  = modes_covered(sharpened teacher) - K''

At most 0, the student has a component for every mode that its teacher emphasises; above, it lacks so many. Cha and Cho
(2025), section 3, write the difference the other way round (it grows as the task gets easier) and call a component
emphasised when its weight is at least 1 - eps, which selects none of several equal ones; see docs, Theory. The soft
form of the number of emphasised components is exp H(w), `effective_components`.

Shapes: K true modes, M points a component, d dimensions.
"""

from __future__ import annotations

import math
from functools import cache

import numpy as np
from numpy.typing import NDArray

from hydrometer.core.array_types import Floats
from hydrometer.core.statistics.estimate import Estimate
from hydrometer.models.mixture.law import Mixture

__all__ = ["EMPHASISED", "capacity_gap", "mode_metrics"]

EMPHASISED = 0.95
_POINTS = 256


def _exact(value: float, unit: str) -> Estimate:
    return Estimate(value, 0.0, 0.0, 0, 0, "exact", unit)


@cache
def _normals(d: int) -> Floats:
    """Spread points (M, d) evenly under a standard normal: an additive recurrence of low discrepancy."""
    from scipy.special import ndtri

    root = 2.0
    for _ in range(64):  # the root of x^(d+1) = x + 1
        root = (1 + root) ** (1 / (d + 1))
    steps = root ** -np.arange(1, d + 1, dtype=np.float64)
    return ndtri(np.mod(0.5 + np.arange(1, _POINTS + 1, dtype=np.float64)[:, None] * steps, 1.0))


def emphasised(law: Mixture) -> NDArray[np.intp]:
    """Return the heaviest components that hold the mass `EMPHASISED`, heaviest first."""
    order = np.argsort(-law.weights, kind="stable")
    held = np.cumsum(law.weights[order])
    enough = float(held[-1]) * EMPHASISED - 1e-12
    return order[: int((held < enough).sum()) + 1]


def modes_covered(truth: Mixture, law: Mixture) -> int:
    """Count the true modes on which the law's emphasised components lie."""
    chosen = emphasised(law)
    x = law.component_points(chosen, _normals(law.n_features))
    joint_KN = truth.component_log_prob(x.reshape(-1, law.n_features)) + truth.log_weights[:, None]
    resp = np.exp(joint_KN - joint_KN.max(axis=0))
    resp /= resp.sum(axis=0)
    share = resp.reshape(truth.n_components, len(chosen), _POINTS).mean(axis=2)
    return int((share >= 0.5 / truth.n_components).any(axis=1).sum())


def mode_metrics(truth: object, law: object) -> dict[str, Estimate]:
    """Return `modes_covered`, `effective_components` (exp of the weights' entropy) and `n_components`, all exact.

    Laws of which one is no mixture have none of them.

    Examples
    --------
    >>> p = Mixture([0.5, 0.5], [[-3.0], [3.0]], [1.0, 1.0], covariance_type="spherical")
    >>> {name: e.value for name, e in mode_metrics(p, p.component(0)).items()}
    {'modes_covered': 1.0, 'effective_components': 1.0, 'n_components': 1.0}
    """
    if not isinstance(truth, Mixture) or not isinstance(law, Mixture):
        return {}
    w = law.weights[law.weights > 0]
    return {
        "modes_covered": _exact(float(modes_covered(truth, law)), "modes"),
        "effective_components": _exact(math.exp(-float((w * np.log(w)).sum())), "components"),
        "n_components": _exact(float(law.n_components), "components"),
    }


def capacity_gap(teacher: dict[str, Estimate], student: dict[str, Estimate]) -> Estimate | None:
    """Return the modes that the teacher emphasises less the student's components, from both cells' figures."""
    modes, components = teacher.get("modes_covered"), student.get("n_components")
    if modes is None or components is None or modes.value is None or components.value is None:
        return None
    return _exact(modes.value - components.value, "modes")
