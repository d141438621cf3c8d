"""Figures of mixtures without Monte Carlo: quadrature in one and two dimensions, closed forms for single Gaussians.

    E_p log q = sum_k a_k integral phi(z) log q(mu_k + L_k z) dz

Each integral is a trapezoid sum over z in [-8.5, 8.5]^d, which converges faster than any power of the step for a smooth
integrand with Gaussian tails (Trefethen and Weideman 2014); the step is halved until the sum no longer changes, and
until no component of q is narrow enough to lie between two nodes. For q of
one component N(m, S) it is closed, -1/2 [d log 2 pi + log|S| + tr S^-1 (C + (mu - m)(mu - m)')], by p's mean mu and
covariance C.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import pairwise
from typing import cast

import numpy as np
from scipy.optimize import brentq  # pyright: ignore[reportUnknownVariableType]
from scipy.special import expit, ndtr  # pyright: ignore[reportUnknownVariableType]

from hydrometer.core.array_types import Floats
from hydrometer.core.errors import InputError, LawMismatchError
from hydrometer.core.statistics.estimate import Estimate, Figures
from hydrometer.metrics.chains import judge_chain
from hydrometer.metrics.collapse import collapse_metrics
from hydrometer.metrics.frontiers.outcomes import Outcomes, chain_outcomes, outcome_frontiers, outcome_metrics
from hydrometer.metrics.frontiers.prefixes import PREFIX_METRICS
from hydrometer.metrics.frontiers.typicality import LEVELS
from hydrometer.metrics.modes import mode_metrics
from hydrometer.models.markov.law import Markov
from hydrometer.models.mixture.law import Mixture
from hydrometer.models.mixture.normal_points import REACH, grid

__all__ = ["expected_log_prob", "judge_exact"]

_STEPS = {1: tuple(0.1 / 2**i for i in range(11)), 2: tuple(0.2 / 2**i for i in range(6))}
_STILL = 1e-10
_NEAR = 7.0
_CELLS = {1: tuple(256 * 2**i for i in range(9)), 2: (64, 128, 256, 512)}  # along one axis
_CELLS_STILL = {1: 1e-7, 2: 1e-4}


def _covariances(law: Mixture) -> Floats:
    return np.array([law.component(int(k)).moments()[1] for k in np.flatnonzero(law.weights > 0)], np.float64)


def _narrowest(p: Mixture, q: Mixture) -> float:
    """Return the least standard deviation of a component of q within reach of one of p, in units of that one's."""
    unit = np.linalg.inv(np.linalg.cholesky(_covariances(p)))[:, None]
    squares = np.linalg.eigvalsh(unit @ _covariances(q)[None] @ unit.swapaxes(-1, -2))
    apart = q.means[q.weights > 0][None] - p.means[p.weights > 0][:, None]
    distance = np.linalg.norm(unit @ apart[..., None], axis=(-2, -1))
    widths = np.sqrt(np.maximum(squares, 0.0))
    within = distance < REACH * (1.0 + widths[..., -1])
    return float(widths[..., 0][within].min(initial=math.inf))


def _by_quadrature(p: Mixture, q: Mixture, still: float) -> tuple[float, float]:
    found: list[float] = []
    # Two sums also agree where both step over the same narrow component.
    narrowest = _narrowest(p, q)
    if narrowest < _STEPS[p.n_features][-1]:
        raise InputError(
            "the densities are too sharp for quadrature",
            got=f"a component {narrowest:.1e} times as wide as another",
            fix="use judge, by Monte Carlo",
        )
    for step in _STEPS[p.n_features]:
        z, w = grid(p.n_features, step)
        total = 0.0
        for k in np.flatnonzero(p.weights > 0):
            total += float(p.weights[k]) * float(w @ q.log_prob(p.component_points(np.array([k]), z)[0]))
        found.append(total)
        for a, b in pairwise(found[-2:]):
            if step <= narrowest and abs(a - b) <= still * (1 + abs(b)):
                return b, abs(a - b)
    gap = abs(found[-1] - found[-2])
    if gap > 1e-6 * (1 + abs(found[-1])):
        raise InputError(
            "the densities are too sharp for quadrature",
            got=f"a change of {gap:.1e} at the finest step",
            fix="use judge, by Monte Carlo",
        )
    return found[-1], gap


def expected_log_prob(p: Mixture, q: Mixture, *, still: float = _STILL) -> tuple[float, float]:
    """Return E_p log q, nats, and what the last refinement changed (0 for a closed form).

    Parameters
    ----------
    still : relative change below which a sum is refined no more.

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
        raise InputError("quadrature is for one or two dimensions", got=p.n_features, fix="use judge, by Monte Carlo")
    return _by_quadrature(p, q, still)


def _on_nodes(p: Mixture, q: Mixture, step: float) -> Outcomes:
    """Lay both laws on the nodes of ``(p + q) / 2``, component by component."""
    z, w = grid(p.n_features, step)
    x: list[Floats] = []
    mass: list[Floats] = []
    for law in (p, q):
        for k in np.flatnonzero(law.weights > 0):
            x.append(law.component_points(np.array([k]), z)[0])
            mass.append(0.5 * float(law.weights[k]) * w)
    points, masses = np.concatenate(x), np.concatenate(mass)
    log_p, log_q = p.log_prob(points), q.log_prob(points)
    gap = log_q - log_p
    on_p = 2 * masses * np.asarray(expit(-gap), np.float64)
    on_q = 2 * masses * np.asarray(expit(gap), np.float64)
    none = np.empty(0)
    return Outcomes(on_p / on_p.sum(), on_q / on_q.sum(), log_p, none, none)


def _frontiers(truth: Mixture, law: Mixture) -> dict[str, Estimate]:
    """Frontier by quadrature; none above two dimensions.

    Its integrands have kinks, at which a trapezoid sum errs by the square of the step: refinement ends when figures
    change by less than 1e-5, or at about a million nodes a law.
    """
    components = truth.n_components + law.n_components
    before: dict[str, Estimate] = {}
    for step in _STEPS[truth.n_features][2:]:
        found = outcome_frontiers(_on_nodes(truth, law, step))
        if _stand(before, found) or components * (2 * REACH / step) ** truth.n_features > 1e6:
            return found
        before = found
    return before


def _stand(before: dict[str, Estimate], found: dict[str, Estimate]) -> bool:
    return bool(before) and all(abs((found[k].value or 0.0) - (e.value or 0.0)) < 1e-5 for k, e in before.items())


@dataclass(frozen=True, slots=True, eq=False)
class _Simplices:
    """A law's mass in segments or triangles, and log p* at their corners, within which it is taken as linear.

    So what of a simplex lies above a threshold moves with the threshold and no mass jumps.

    Shapes: mass (C,), corners (d + 1, C), rising.
    """

    mass: Floats
    corners: Floats

    def above(self, t: float) -> float:
        """Return the law's mass where log p* is at least t."""
        whole = self.corners[0] >= t
        cut = (self.corners[-1] > t) & ~whole
        low, high = self.corners[0, cut], self.corners[-1, cut]
        if len(self.corners) == 2:
            share = np.asarray((high - t) / (high - low), np.float64)
        else:
            mid = self.corners[1, cut]
            with np.errstate(invalid="ignore", divide="ignore"):  # of the case that does not hold
                below = np.square(t - low) / ((mid - low) * (high - low))
                above = np.square(high - t) / ((high - low) * (high - mid))
                share = np.asarray(np.where(t <= mid, 1.0 - below, above), np.float64)
        return float(self.mass[whole].sum() + self.mass[cut] @ share)

    def threshold(self, level: float) -> float:
        """Return the t above which a share `level` of the mass lies, nats."""
        low, high = float(self.corners[0].min()), float(self.corners[-1].max())

        def excess(t: float) -> float:
            return self.above(t) - level

        return float(cast("float", brentq(excess, low, high, xtol=1e-9)))


def _simplices(law: Mixture, truth: Mixture, n: int) -> _Simplices:
    """Cut the plane about each component of a law into n^d cells, or triangles of such cells."""
    axis = np.linspace(-_NEAR, _NEAR, n + 1)
    along = np.diff(ndtr(axis))
    plane = law.n_features == 2
    z = np.stack(np.meshgrid(axis, axis, indexing="ij"), axis=-1).reshape(-1, 2) if plane else axis[:, None]
    share = np.outer(along, along) / 2 if plane else along
    kept = share > 1e-12
    mass: list[Floats] = []
    corners: list[Floats] = []
    for k in np.flatnonzero(law.weights > 0):
        f = truth.log_prob(law.component_points(np.array([k]), z)[0])
        if plane:
            f = f.reshape(n + 1, n + 1)
            a, b, c, d = (x[kept] for x in (f[:-1, :-1], f[1:, :-1], f[:-1, 1:], f[1:, 1:]))
            corners += [np.stack([a, b, d]), np.stack([a, c, d])]
            mass += [float(law.weights[k]) * share[kept]] * 2
        else:
            corners.append(np.stack([f[:-1], f[1:]])[:, kept])
            mass.append(float(law.weights[k]) * share[kept])
    every = np.concatenate(mass)
    return _Simplices(every / every.sum(), np.sort(np.concatenate(corners, axis=1), axis=0))


def _typicality(truth: Mixture, law: Mixture) -> dict[str, Estimate]:
    """P_a of `frontiers.typicality`; its error, of the order of the step squared, is extrapolated (Richardson)."""
    by_step: list[Floats] = []
    found: list[Floats] = []
    for n in _CELLS[truth.n_features]:
        own, other = (_simplices(m, truth, n) for m in (truth, law))
        by_step.append(np.array([other.above(own.threshold(level)) for level in LEVELS.values()]))
        found += [(4 * fine - coarse) / 3 for coarse, fine in pairwise(by_step[-2:])]
        if any(np.abs(b - a).max() < _CELLS_STILL[truth.n_features] for a, b in pairwise(found[-2:])):
            break
    values = np.clip(found[-1], 0.0, 1.0).tolist()
    return {
        f"typicality_{name}": Estimate(v, 0.0, 0.0, 0, 0, "exact", "probability")
        for name, v in zip(LEVELS, values, strict=True)
    }


def judge_exact(truth: Mixture | Markov, law: Mixture | Markov, *, strings: int = 1_000_000) -> Figures:
    """Every figure of `judge` for two mixtures or two n-gram chains, without Monte Carlo error.

    Parameters
    ----------
    truth, law : mixtures of one or two dimensions, or of any, where both have one component; or chains of any order
        (all figures but repetition and distinct n-grams).
    strings : strings of chains that are enumerated at most, for frontiers and typicality; 0 leaves those out.

    Returns
    -------
    Figures : by metric name, method "exact", nats. Theory, eqs. 5 to 10, 19, 20. Frontiers of chains with more
    strings have two figures each instead, ``..._lower`` and ``..._upper``, between which the figure lies for certain.
    Frontiers and typicality of mixtures are right to about 1e-5 in one dimension and 1e-4 in two; above two they are
    left out.

    Raises
    ------
    LawMismatchError, InputError : as `expected_log_prob`.

    Examples
    --------
    >>> p, q = (Mixture([1.0], [[m]], [1.0], covariance_type="spherical") for m in (0.0, 1.0))
    >>> round(judge_exact(p, q)["kl_student_truth"].value, 12)
    0.5
    """
    if isinstance(truth, Markov) and isinstance(law, Markov):
        out = judge_chain(truth, law)
        for m, found in chain_outcomes(truth, law, strings) if strings else ():
            part = outcome_metrics(found)
            out |= part if m == truth.max_new_tokens else _of_prefix(part, m)
        return Figures(out | collapse_metrics(out, sequences=True))
    if isinstance(truth, Markov) or isinstance(law, Markov):
        raise LawMismatchError("a chain is compared with its like", got=(type(truth).__name__, type(law).__name__))
    cross = {
        "precision": expected_log_prob(law, truth)[0],
        "recall": expected_log_prob(truth, law)[0],
        "entropy": -expected_log_prob(law, law)[0],
        "entropy_truth": -expected_log_prob(truth, truth)[0],
    }
    cross["kl_student_truth"] = -cross["entropy"] - cross["precision"]
    cross["kl_truth_student"] = -cross["entropy_truth"] - cross["recall"]
    out = {name: Estimate(value, 0.0, 0.0, 0, 0, "exact", "nats") for name, value in cross.items()}
    out["recall_on_support"] = out["recall"]  # a mixture has a positive density everywhere
    out["truth_mass_outside_support"] = Estimate(0.0, 0.0, 0.0, 0, 0, "exact", "probability")
    out |= mode_metrics(truth, law)
    if truth.n_features in _STEPS:
        out |= _frontiers(truth, law) | _typicality(truth, law)
    return Figures(out | collapse_metrics(out, sequences=False))


def _of_prefix(found: dict[str, Estimate], m: int) -> dict[str, Estimate]:
    """Name the figures of the first m tokens that `prefix_metrics` has, or their bounds."""
    out: dict[str, Estimate] = {}
    for name, e in found.items():
        base = name.removesuffix("_lower").removesuffix("_upper")
        if base in PREFIX_METRICS:
            out[f"{base}_first_{m}{name.removeprefix(base)}"] = e
    return out
