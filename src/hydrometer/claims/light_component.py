"""Align and distil, in either order, mixtures on a line whose one light component is wanted: tilts by quadrature.

Every law is its log-density at the nodes of a line, so that tilting is a sum, and figures are sums over the nodes: of
densities as smooth as these, and with their tails, a trapezoid sum errs by rounding alone.

Shapes: X nodes. float64, nats.
"""

from __future__ import annotations

from typing import Annotated, NamedTuple

import numpy as np
from pydantic import BeforeValidator, Field

from hydrometer.claims.worlds import fitted_mixture
from hydrometer.core.arguments import of_type
from hydrometer.core.array_types import Floats
from hydrometer.core.rng import Stream
from hydrometer.core.spec import Strict, as_tuple
from hydrometer.models.mixture.em import fit_mixture
from hydrometer.models.mixture.law import Mixture

__all__ = [
    "BUMP", "NODES", "LightFigures", "LightRun", "LightSetting", "LightWorld", "drawn", "figures_of", "powered",
    "tilted",
]  # fmt: skip

_STEP, _HEAVY, _WHERE, _WIDE = 0.004, 4, 12.0, 0.7
NODES: Floats = np.arange(-14.0, 22.0, _STEP)
BUMP: Floats = np.exp(-0.5 * ((NODES - _WHERE) / _WIDE) ** 2)
"""(X,) the reward: 1 at the mean of the light component, and as wide."""
_LEAST_VARIANCE = 0.01  # of a component that is fitted: wide beside the step


class LightSetting(NamedTuple):
    """A setting; see `LightWorld`."""

    components: int
    rarity: float
    strength: float
    temperature: float


class LightWorld(Strict):
    """Mixtures on a line: four heavy components, drawn at random, and a light one far from them.

    The reward is a bump at the light one, the teacher a fit of as many components from the truth's own, and the student
    one from k-means. Of the tuples the first is the base; the others are varied alone.

    Attributes
    ----------
    students : components; the truth has five.
    rarities : weight of the light component.
    strengths : b of the tilt exp(reward / b).
    temperatures : of the law that the student's rows are drawn from, p^(1 / temperature) of the teacher's density.
    train, rows : of the teacher and of the student.
    """

    students: Annotated[tuple[int, ...], BeforeValidator(as_tuple)] = Field(default=(3, 5), min_length=1)
    rarities: Annotated[tuple[float, ...], BeforeValidator(as_tuple)] = Field(default=(0.01, 0.001), min_length=1)
    strengths: Annotated[tuple[float, ...], BeforeValidator(as_tuple)] = Field(default=(0.2, 1.0), min_length=1)
    temperatures: Annotated[tuple[float, ...], BeforeValidator(as_tuple)] = Field(default=(1.0, 0.5), min_length=1)
    train: int = Field(default=50_000, ge=10)
    rows: int = Field(default=1000, ge=10)

    def settings(self) -> dict[str, LightSetting]:
        """Return the settings, the base first, by what is changed in them."""
        base = LightSetting(self.students[0], self.rarities[0], self.strengths[0], self.temperatures[0])
        out = {"mixture": base}
        out |= {f"mixture, {x} components": base._replace(components=x) for x in self.students[1:]}
        out |= {f"mixture, rarity {x:g}": base._replace(rarity=x) for x in self.rarities[1:]}
        out |= {f"mixture, b {x:g}": base._replace(strength=x) for x in self.strengths[1:]}
        return out | {f"mixture, temperature {x:g}": base._replace(temperature=x) for x in self.temperatures[1:]}


def _normal(log_p: Floats) -> Floats:
    return log_p - float(np.logaddexp.reduce(log_p)) - np.log(_STEP)


def tilted(log_p: Floats, strength: float) -> Floats:
    """Return the log-density of ``p exp(BUMP / b) / Z``."""
    return _normal(log_p + BUMP / strength)


def powered(log_p: Floats, temperature: float) -> Floats:
    """Return the log-density of ``p^(1 / temperature) / Z``."""
    return _normal(log_p / temperature)


class LightFigures(NamedTuple):
    """Reward, and mass within two widths of the bump, in shares of the target's; nats a point."""

    reward: float
    mass: float
    precision: float
    recall: float
    kl_student_target: float
    kl_target_student: float


def figures_of(target: Floats, law: Floats) -> LightFigures:
    """Judge a law against the target, by log-densities (X,)."""
    p, q = np.exp(target) * _STEP, np.exp(law) * _STEP
    near = np.abs(NODES - _WHERE) < 2 * _WIDE
    return LightFigures(
        reward=float(q @ BUMP / (p @ BUMP)),
        mass=float(q[near].sum() / p[near].sum()),
        precision=float(q @ target),
        recall=float(p @ law),
        kl_student_target=float(q @ (law - target)),
        kl_target_student=float(p @ (target - law)),
    )


def drawn(log_p: Floats, n: int, stream: Stream) -> Floats:
    """Draw points (n, 1) of a density, by its distribution function, which is taken as linear between nodes."""
    below = np.cumsum(np.exp(log_p))
    ends = NODES + 0.5 * _STEP
    return np.interp(stream.uniforms(0, n, 1)[:, 0], below / below[-1], ends)[:, None]


class LightRun:
    """One world of a seed."""

    def __init__(self, world: LightWorld, seed: int) -> None:
        self.world = world
        self.stream = Stream(seed).child("align-first", "light")

    def law(self, rarity: float) -> Mixture:
        """Draw the truth."""
        u = self.stream.child("truth").uniforms(0, _HEAVY, 3)
        weights = (0.5 + u[:, 0]) * (1 - rarity) / (0.5 + u[:, 0]).sum()
        means = -6.0 + 4.0 * np.arange(_HEAVY) + 2 * u[:, 1] - 1
        deviations = np.append(0.5 + 0.7 * u[:, 2], _WIDE)
        means = np.append(means, _WHERE)[:, None]
        return Mixture(np.append(weights, rarity), means, deviations[:, None] ** 2, covariance_type="diag")

    def distilled(self, log_p: Floats, s: LightSetting) -> Floats:
        """Fit a student to rows of a law."""
        rows = drawn(powered(log_p, s.temperature), self.world.rows, self.stream.child("distill"))
        fitted = fitted_mixture(rows, s.components, self.stream.child("fit"), reg_covar=_LEAST_VARIANCE, n_init=4)
        return fitted.log_prob(NODES[:, None])

    def laws(self, s: LightSetting) -> tuple[Floats, Floats, Floats]:
        """Return the target, and what aligning first and aligning last end at."""
        truth = self.law(s.rarity)
        log_truth = truth.log_prob(NODES[:, None])
        fit = fit_mixture(
            drawn(log_truth, self.world.train, self.stream.child("train")),
            _HEAVY + 1,
            covariance_type="diag",
            means_init=truth.means,
            weights_init=truth.weights,
            precisions_init=1 / truth.covariances,
        )
        teacher = of_type(Mixture, fit.model).log_prob(NODES[:, None])
        first = self.distilled(tilted(teacher, s.strength), s)
        last = tilted(self.distilled(teacher, s), s.strength)
        return tilted(log_truth, s.strength), first, last
