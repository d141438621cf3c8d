"""Mixtures of Gaussians by an objective between densities: the teacher's p itself, no rows, and the student's q.

    J = a E_p[log p - log m] + b E_q[log q - log m],      m = u p + (1 - u) q

| objective | a | b | u |
|---|---|---|---|
| `kl_teacher_student`: maximum likelihood of unlimited rows | 1 | 0 | 0 |
| `kl_student_teacher` | 0 | 1 | 1 |
| `jsd`, and `jsd_scaled` divided by w (1 - w) | w | 1 - w | w |
| `skew_kl_teacher_student` | 1 | 0 | w |
| `skew_kl_student_teacher` | 0 | 1 | 1 - w |
| `skew_kl_student_teacher_detached`: the gradient of `jsd(weight=1-w)` / w | 1 / w - 1 | 1 | 1 - w |

An expectation is a sum over the same points z of a standard normal under every component, x = mu_k + L_k z, and those
of q move with it, so J and its gradient are of one function of the parameters, which L-BFGS minimises. In one or two
dimensions the z are a grid, made finer until J stands; in more they are a scrambled Sobol sequence with its mirror
image and an exact covariance, and what another such sequence says of J is the tolerance. J has local minima: the least
one of those found from the fit of the rows by maximum likelihood, and from the teacher's own components, is taken.

Shapes: K components, d dimensions, n points z, M = K n points x.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import partial
from itertools import combinations, islice
from typing import Any

import numpy as np

from hydrometer.core.array_types import Floats
from hydrometer.core.errors import FitError
from hydrometer.models.mixture.law import CovarianceType, Mixture
from hydrometer.models.mixture.normal_points import grid
from hydrometer.models.objectives import Divergence

__all__ = ["KINDS", "STARTS", "fit_divergence"]

KINDS = (
    "kl_teacher_student",
    "kl_student_teacher",
    "jsd",
    "jsd_scaled",
    "skew_kl_teacher_student",
    "skew_kl_student_teacher",
    "skew_kl_student_teacher_detached",
)
_STEPS = {1: tuple(0.4 / 2**i for i in range(8)), 2: (0.5, 0.25, 0.125, 0.0625)}
_STILL = 1e-9
_UNSETTLED = 1e-3  # nats
_SHARP = "the densities are too sharp for quadrature"
_Rule = tuple[float, tuple[Floats, Floats]]  # step; points and weights
_SPREAD = 4096  # points a component, and their mirror images
STARTS = 16
"""Most choices of the teacher's components that descents start from."""
_BOUNDS = (-50, 50), (-1e4, 1e4), (-20, 20), (-1e4, 1e4)  # of the parts of a student's vector: no float overflows
_LEAST = 1e-4  # weight of a component in a start: one without weight has no gradient


@dataclass(frozen=True)
class _Gaussians:
    """A mixture as the sums need it: log_a (K,), mu (K, d), lower factors L (K, d, d)."""

    log_a: Floats
    mu: Floats
    lower: Floats
    inverse: Floats = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "inverse", np.linalg.inv(self.lower))

    def points(self, z: Floats) -> Floats:
        """mu_k + L_k z, (K n, d), component by component."""
        return (self.mu[:, None] + z @ self.lower.swapaxes(1, 2)).reshape(-1, self.mu.shape[1])

    def at(self, x: Floats) -> tuple[Floats, Floats, Floats, Floats]:
        """Return log density (M,), shares of the components r (K, M), y = L^-1 (x - mu) and L^-T y, (K, M, d)."""
        y = (x - self.mu[:, None]) @ self.inverse.swapaxes(1, 2)
        log_det = np.log(np.abs(np.diagonal(self.inverse, axis1=1, axis2=2))).sum(axis=1)
        joint = -0.5 * (y**2).sum(axis=-1) + (self.log_a + log_det - 0.5 * x.shape[1] * np.log(2 * np.pi))[:, None]
        log_p = np.logaddexp.reduce(joint, axis=0)
        return log_p, np.exp(joint - log_p), y, y @ self.inverse

    @classmethod
    def of(cls, law: Mixture, centre: Floats, scale: float) -> _Gaussians:
        """The components of a law that have weight, in a frame."""
        alive = np.flatnonzero(law.weights)
        covariances = np.array([law.component(int(k)).moments()[1] for k in alive])
        factors = np.asarray(np.linalg.cholesky(covariances) / scale, np.float64)
        return cls(law.log_weights[alive], (law.means[alive] - centre) / scale, factors)


class _Student:
    """Parameters as one vector: logits, means in units of the start's components, logarithms of L's diagonal, its rest.

    The rest of a row of L is in units of its diagonal entry.
    """

    def __init__(self, start: _Gaussians, kind: CovarianceType) -> None:
        k, d = start.mu.shape
        self.kind: CovarianceType = kind
        self.start = start
        self.unit = np.exp(np.log(np.diagonal(start.lower, axis1=1, axis2=2)).mean(axis=1))[:, None]
        self.sizes = k, k * d, {"full": k * d, "tied": d, "diag": k * d, "spherical": k}[kind]
        self.rest = np.tril_indices(d, -1) if kind in ("full", "tied") else (np.zeros(0, np.intp),) * 2

    def vector(self) -> Floats:
        """Return the start."""
        lower = self.start.lower[:1] if self.kind == "tied" else self.start.lower
        diagonal = np.diagonal(lower, axis1=1, axis2=2)
        log_diagonal = np.log(diagonal[:, 0] if self.kind == "spherical" else diagonal)
        rest = (lower / diagonal[..., None])[:, self.rest[0], self.rest[1]]
        parts = self.start.log_a, np.zeros(self.sizes[1]), log_diagonal.ravel(), rest.ravel()
        return np.concatenate(parts)

    def law(self, theta: Floats) -> _Gaussians:
        """Return the mixture of these parameters."""
        k, d = self.start.mu.shape
        logits, moved, log_diagonal, rest = np.split(theta, np.cumsum(self.sizes))
        lower = np.zeros((1 if self.kind == "tied" else k, d, d))
        lower[:, np.arange(d), np.arange(d)] = 1.0
        lower[:, self.rest[0], self.rest[1]] = rest.reshape(len(lower), -1)
        lower = lower * np.exp(log_diagonal.reshape(len(lower), -1))[..., None]
        log_a = logits - np.logaddexp.reduce(logits)
        return _Gaussians(
            log_a, self.start.mu + self.unit * moved.reshape(k, d), np.broadcast_to(lower, (k, d, d)).copy()
        )

    def gradient(self, q: _Gaussians, of_log_a: Floats, of_mu: Floats, of_lower: Floats) -> Floats:
        """Return the gradient in the vector from that in log_a (K,), mu (K, d) and L (K, d, d)."""
        lower = q.lower
        if self.kind == "tied":
            of_lower, lower = of_lower.sum(axis=0, keepdims=True), lower[:1]
        diagonal = np.diagonal(lower, axis1=1, axis2=2)
        of_diagonal = (of_lower * np.tril(lower)).sum(axis=2)
        if self.kind == "spherical":
            of_diagonal = of_diagonal.sum(axis=1)
        of_rest = (of_lower * diagonal[..., None])[:, self.rest[0], self.rest[1]]
        of_logits = of_log_a - np.exp(q.log_a) * of_log_a.sum()
        return np.concatenate([of_logits, (self.unit * of_mu).ravel(), of_diagonal.ravel(), of_rest.ravel()])


class _Objective:
    """J of a teacher on given points z (n, d) with their weights (n,)."""

    def __init__(self, p: _Gaussians, terms: tuple[float, float, float], z: Floats, weights: Floats) -> None:
        self.p, self.terms, self.z, self.weights = p, terms, z, weights
        self.x = p.points(z)
        self.log_p = p.at(self.x)[0]
        self.of_x = (np.exp(p.log_a)[:, None] * weights).ravel()

    def __call__(self, student: _Student, theta: Floats) -> tuple[float, Floats]:
        """Return J, nats, and its gradient."""
        a, b, u = self.terms
        q = student.law(theta)
        value, parts = 0.0, (np.zeros_like(q.log_a), np.zeros_like(q.mu), np.zeros_like(q.lower))
        if a > 0:
            log_q, *beside = q.at(self.x)
            log_m = _mixed(u, self.log_p, log_q)
            value += a * float(self.of_x @ (self.log_p - log_m))
            _add(parts, q, -a * (1 - u) * self.of_x * np.exp(log_q - log_m), *beside)
        if b > 0:
            x = q.points(self.z)
            log_q, *beside = q.at(x)
            log_p, of_p, _, away_p = self.p.at(x)
            log_m = _mixed(u, log_p, log_q)
            k, d = q.mu.shape
            of_x = (np.exp(q.log_a)[:, None] * self.weights).ravel()
            terms = of_x * (log_q - log_m)
            value += b * float(terms.sum())
            share = b * u * of_x * np.exp(log_p - log_m)
            _add(parts, q, share, *beside)
            # The points move with the parameters, too.
            uphill = np.einsum("km,kmi->mi", of_p, away_p) - np.einsum("km,kmi->mi", beside[0], beside[2])
            moved = (share[:, None] * uphill).reshape(k, -1, d)
            parts[0][:] += b * terms.reshape(k, -1).sum(axis=1)
            parts[1][:] += moved.sum(axis=1)
            parts[2][:] += moved.swapaxes(1, 2) @ self.z
        return value, student.gradient(q, *parts)


def _mixed(u: float, log_p: Floats, log_q: Floats) -> Floats:
    if u in (0, 1):
        return log_p if u else log_q
    return np.logaddexp(np.log(u) + log_p, np.log1p(-u) + log_q)


def _add(
    parts: tuple[Floats, Floats, Floats], q: _Gaussians, weight: Floats, r: Floats, y: Floats, away: Floats
) -> None:
    """Add sum over points of weight (M,) times the gradient of log q in log_a, mu and L."""
    each = weight * r
    pulled = each[..., None] * away
    parts[0][:] += each.sum(axis=1)
    parts[1][:] += pulled.sum(axis=1)
    d = q.mu.shape[1]
    parts[2][:] += pulled.swapaxes(1, 2) @ y
    diagonal = np.diagonal(q.lower, axis1=1, axis2=2)
    parts[2][:, np.arange(d), np.arange(d)] -= each.sum(axis=1)[:, None] / diagonal


def _terms(d: Divergence) -> tuple[float, float, float]:
    """Return a, b and u."""
    w = d.weight
    match d.kind:
        case "kl_teacher_student":
            return 1.0, 0.0, 0.0
        case "kl_student_teacher":
            return 0.0, 1.0, 1.0
        case "skew_kl_teacher_student":
            return 1.0, 0.0, w
        case "skew_kl_student_teacher_detached" if w > 0:
            return 1 / w - 1, 1.0, 1 - w
        case "skew_kl_student_teacher" | "skew_kl_student_teacher_detached":
            return 0.0, 1.0, 1 - w
        case _:
            return d.factor * w, d.factor * (1 - w), w


def _starts(p: _Gaussians, fitted: _Gaussians, kind: CovarianceType) -> list[_Student]:
    """The fit of the rows, and the first choices of K of the teacher's components, heaviest first."""
    k, d = len(fitted.mu), p.mu.shape[1]
    heaviest = np.argsort(-p.log_a, kind="stable")
    chosen = [np.array(c) for c in islice(combinations(heaviest.tolist(), k), STARTS)]
    found: list[_Student] = []
    for law, of in [(fitted, np.arange(k)), *((p, c) for c in chosen)]:
        a = np.maximum(np.exp(law.log_a[of]), _LEAST)
        covariance = law.lower[of] @ law.lower[of].swapaxes(1, 2)
        if kind == "tied":
            covariance = np.broadcast_to(np.einsum("k,kij->ij", a / a.sum(), covariance), covariance.shape)
        if kind in ("diag", "spherical"):
            variance = np.diagonal(covariance, axis1=1, axis2=2)
            variance = variance if kind == "diag" else np.broadcast_to(variance.mean(axis=1)[:, None], variance.shape)
            covariance = variance[..., None] * np.eye(d)
        found.append(
            _Student(
                _Gaussians(np.log(a / a.sum()), law.mu[of], np.asarray(np.linalg.cholesky(covariance), np.float64)),
                kind,
            )
        )
    return found


def _descended(j: _Objective, student: _Student, theta: Floats) -> Any:
    from scipy import optimize

    minimize: Any = optimize.minimize  # pyright: ignore[reportUnknownMemberType, reportUnknownVariableType]
    sizes = *student.sizes, len(theta) - sum(student.sizes)
    bounds = [b for b, n in zip(_BOUNDS, sizes, strict=True) for _ in range(n)]
    options = {"maxiter": 2000, "maxfun": 4000, "ftol": 1e-15, "gtol": 1e-9, "maxcor": 20}
    return minimize(partial(j, student), theta, jac=True, method="L-BFGS-B", bounds=bounds, options=options)


def _best_start(
    p: _Gaussians, terms: tuple[float, float, float], students: list[_Student], rules: list[_Rule]
) -> tuple[float, _Student, Floats, float]:
    """Return the step, student, parameters and value of the best descent, each on the first grid fine enough for it.

    A grid says nothing of a law whose components lie between its points, and descents find such laws. Raises FitError.
    """
    left, seen = students, list[tuple[float, _Student, Floats, float]]()
    for step, rule in rules[:-1]:
        j = _Objective(p, terms, *rule)
        ends = [(s, _descended(j, s, s.vector())) for s in left if step <= _narrowest(p, s.start, terms)]
        new = [(step, s, e.x, float(e.fun)) for s, e in ends if step <= _narrowest(p, s.law(e.x), terms)]
        seen += new
        left = [s for s in left if not any(s is done for _, done, _, _ in new)]
    if not seen:
        raise FitError(_SHARP, got="a component much narrower than another", fix="take mle")
    return min(seen, key=lambda x: x[3])


def fit_divergence(teacher: Mixture, d: Divergence, fitted: Mixture) -> tuple[Mixture, dict[str, float]]:
    """Fit the mixture for which an objective between densities is least.

    Parameters
    ----------
    teacher : p, as it is selected. d : of `KINDS`, without `temperature` and `mle`.
    fitted : the student by maximum likelihood of rows: its components, its covariance type, and a start.

    Returns
    -------
    The mixture; ``value`` of the objective, nats, ``tolerance``, by how much other points change it, and ``starts``.

    Raises
    ------
    FitError : densities too sharp for the grid.
    """
    mean, covariance = teacher.moments()
    dimensions, scale = teacher.n_features, float(np.sqrt(np.trace(covariance) / len(mean)))
    p, terms = _Gaussians.of(teacher, mean, scale), _terms(d)
    students = _starts(p, _Gaussians.of(fitted, mean, scale), fitted.covariance_type)
    rules = list(_rules(dimensions))
    used, student, theta, value = _best_start(p, terms, students, rules)
    change = np.inf
    for step, rule in rules[1:]:
        if step >= used > 0:
            continue
        j = _Objective(p, terms, *rule)
        change = abs(j(student, theta)[0] - value)
        if step > 0 and change <= _STILL * (1 + abs(value)):
            break
        if step > 0:
            end = _descended(j, student, theta)
            theta, value = end.x, float(end.fun)
    if dimensions <= max(_STEPS) and change > _UNSETTLED:
        raise FitError(_SHARP, got=f"a change of {change:.1e} nats by the finest grid", fix="take mle")
    q = student.law(theta)
    covariances = q.lower @ q.lower.swapaxes(1, 2) * scale**2
    shaped = {
        "full": covariances,
        "tied": covariances[0],
        "diag": np.diagonal(covariances, axis1=1, axis2=2),
        "spherical": covariances[:, 0, 0],
    }[student.kind]
    law = Mixture.from_log_weights(q.log_a, mean + scale * q.mu, shaped, student.kind)
    return law, {"value": value, "tolerance": change, "starts": float(len(students))}


def _narrowest(p: _Gaussians, q: _Gaussians, terms: tuple[float, float, float]) -> float:
    """Return the least standard deviation of a component of one law, in units of a component of that summed under."""
    widths = np.linalg.svd(p.inverse[:, None] @ q.lower[None], compute_uv=False)
    under_p, under_q = terms[:2]
    return float(min(widths.min() if under_p > 0 else np.inf, 1 / widths.max() if under_q > 0 else np.inf))


def _rules(d: int) -> Iterator[_Rule]:
    """Yield points z and their weights: finer ones in one or two dimensions, after their step; else two sequences."""
    if d in _STEPS:
        for step in _STEPS[d]:
            yield step, grid(d, step)
        return
    from scipy.special import ndtri
    from scipy.stats import qmc  # half a second

    sequence: Any = qmc.Sobol  # its seed bears another name from scipy 1.15 on
    for seed in range(2):  # scrambled: the halves of one sequence have equal margins, and say nothing of each other
        half = ndtri(sequence(d, scramble=True, seed=seed).random(_SPREAD))
        z = np.concatenate([half, -half])
        z = np.asarray(np.linalg.solve(np.linalg.cholesky(z.T @ z / len(z)), z.T).T, np.float64)
        yield 0.0, (z, np.full(len(z), 1 / len(z)))
