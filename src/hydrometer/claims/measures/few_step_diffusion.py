"""Diffusion samplers of few steps: one score in fewer steps, students regressed on pairs, and guidance of either.

Truths are mixtures in the plane, drawn at random. A sampler's score is the truth's own at every noise level, and its
density is exact; precision and recall are sums over grids, right to 0.002 nats. A student by regression (docs, Laws,
Diffusion samplers) has the noise of its pairs, and where its teacher is guided it may sharpen without end: then the
search's bound decides its recall.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from statistics import fmean
from typing import Annotated

import numpy as np
from pydantic import BeforeValidator, Field
from scipy.special import gammaincinv, ndtri  # pyright: ignore[reportUnknownVariableType]

from hydrometer.claims.claim_chart import Chart, Line
from hydrometer.claims.claim_verdict import Check, Measured, over_worlds
from hydrometer.core.arguments import of_type
from hydrometer.core.array_types import Floats
from hydrometer.core.errors import SpecError
from hydrometer.core.rng import Stream
from hydrometer.core.spec import Selectivity, Strict, as_tuple
from hydrometer.core.watching import doing
from hydrometer.models.base import FitRequest
from hydrometer.models.diffusion.family import DIFFUSION
from hydrometer.models.diffusion.law import Diffusion
from hydrometer.models.diffusion.spec import DiffusionStudent
from hydrometer.models.diffusion.spherical import Spherical, ddim, noise_levels

__all__ = ["World", "figures", "measure"]

Figures = tuple[float, float]
"""Precision and recall, nats a point."""


class World(Strict):
    """Truths drawn at random in the plane, samplers of their exact scores, and students of one step.

    Attributes
    ----------
    components : of a truth. Its weights are Dirichlet of `concentration`.
    spread : standard deviation of the means, each coordinate.
    narrow, wide : the components' standard deviations lie between, uniformly.
    many, few : steps of DDIM; each of `few` is a condition.
    sigma_max, sigma_min, rho : noise levels (docs, Specification).
    temperature : of guidance, the posterior to the power 1 / temperature; of a sampler itself, and for students of one
        step, which are not guided, of the teacher of `many` steps.
    path : further temperatures that are drawn.
    pairs : rows of the sampler of many steps, with their latent points, for a student by regression.
    pieces : of the one step of such a student.
    """

    components: int = Field(default=5, ge=1, le=64)
    concentration: float = Field(default=2.0, gt=0)
    spread: float = Field(default=1.5, gt=0)
    narrow: float = Field(default=0.2, gt=0)
    wide: float = Field(default=0.5, gt=0)
    many: int = Field(default=32, ge=1, le=1000)
    few: Annotated[tuple[int, ...], BeforeValidator(as_tuple)] = (4, 8, 16)
    sigma_max: float = Field(default=20.0, gt=0)
    sigma_min: float = Field(default=0.02, gt=0)
    rho: float = Field(default=7.0, ge=1)
    temperature: float = Field(default=0.5, gt=0, lt=1)
    path: Annotated[tuple[float, ...], BeforeValidator(as_tuple)] = (0.7,)
    pairs: int = Field(default=1000, ge=10)
    pieces: int = Field(default=5, ge=1, le=64)

    def truth(self, stream: Stream) -> Spherical:
        """Draw a truth, its mean at 0."""
        u = stream.child("truth").uniforms(0, self.components, 4)
        gamma = np.asarray(gammaincinv(self.concentration, u[:, 0]), np.float64)
        weights, means = gamma / gamma.sum(), self.spread * np.asarray(ndtri(u[:, 1:3]), np.float64)
        return Spherical(weights, means - weights @ means, (self.narrow + (self.wide - self.narrow) * u[:, 3]) ** 2)

    def sampler(self, truth: Spherical, steps: int) -> Diffusion:
        """Return DDIM with the truth's own score."""
        return ddim(truth, noise_levels(steps, self.sigma_max, self.sigma_min, self.rho))

    def student(self, truth: Spherical, teacher: Diffusion, s: Selectivity, stream: Stream) -> Diffusion:
        """Fit one step to pairs of the selected teacher."""
        levels = {"sigma_max": self.sigma_max, "sigma_min": self.sigma_min, "rho": self.rho}
        level = DiffusionStudent(steps=1, n_components=self.pieces, **levels)
        rows = teacher.select(s).sample(self.pairs, seed=stream.child("pairs"))
        fit = stream.child("fit")
        asked = FitRequest(rows, None, truth, teacher, level, "teacher", "regression", fit, selectivity=s)
        return of_type(Diffusion, DIFFUSION.fit(asked).model)


@cache
def _normal(step: float) -> tuple[Floats, Floats]:
    """Points (N, 2) and weights (N,) of a trapezoid sum over a standard normal of the plane."""
    axis = np.arange(-round(6 / step), round(6 / step) + 1, dtype=np.float64) * step
    z = np.stack(np.meshgrid(axis, axis), axis=-1).reshape(-1, 2)
    w = np.exp(-0.5 * np.square(z).sum(axis=1))
    kept = w > 1e-8
    return z[kept], np.asarray(w[kept] / w[kept].sum(), np.float64)


def figures(truth: Spherical, law: Diffusion, latent: float = 0.05, own: float = 0.4) -> Figures:
    """Return precision and recall of a sampler by quadrature.

    Parameters
    ----------
    latent, own : steps of the grids, of the sampler's latent points and of each component of the truth, in standard
        deviations.
    """
    z, w = _normal(latent)
    precision = float(w @ truth.log_prob(law.sent(z)[0]))
    z, w = _normal(own)
    x = truth.means[:, None] + np.sqrt(truth.covariances)[:, None, None] * z
    recall = float(truth.weights @ (law.log_prob(x.reshape(-1, 2)).reshape(len(x), -1) @ w))
    return precision, recall


def _one_world(world: World, seed: int) -> dict[tuple[str, float], Figures]:
    """Figures of DDIM by steps, and of the student of one step, by temperature of the sampler and of the teacher."""
    stream = Stream(seed).child("few-step-diffusion")
    truth = world.truth(stream)
    out: dict[tuple[str, float], Figures] = {}
    for t in (1.0, world.temperature, *world.path):
        s = Selectivity(temperature=t)
        for n in (*world.few, world.many):
            out[str(n), t] = figures(truth, world.sampler(truth, n).select(s))
        out["regressed", t] = figures(truth, world.student(truth, world.sampler(truth, world.many), s, stream))
    return out


def measure(world: World, seeds: Sequence[int]) -> Measured:
    """Measure the claim: differences in nats a point, over worlds."""
    if not world.few or max(world.few) >= world.many:
        raise SpecError("few steps are fewer than many", got=list(world.few), fix="lower few, or raise many")
    found: list[dict[tuple[str, float], Figures]] = []
    for i, seed in enumerate(seeds):
        doing(f"world {i + 1} of {len(seeds)}")
        found.append(_one_world(world, seed))

    def differ(i: int, a: tuple[str, float], b: tuple[str, float]) -> list[float]:
        return [x[a][i] - x[b][i] for x in found]

    many, t, checks = str(world.many), world.temperature, list[Check]()
    for n in world.few:
        for i, name in enumerate(("precision", "recall")):
            gap = over_worlds(differ(i, (str(n), 1.0), (many, 1.0)))
            checks.append(Check(f"{n} steps of one score", f"{name}, minus {many} steps, nats", gap, "below"))
    for i, name in enumerate(("precision", "recall")):
        for n in world.few:
            gap = over_worlds(differ(i, ("regressed", 1.0), (str(n), 1.0)))
            what = f"{name}, one step by regression minus {n} of the score, nats"
            checks.append(Check(f"one step in place of {n}", what, gap, "above"))
    for way in (*map(str, world.few), many, "regressed"):
        where = "guidance of one step's teacher" if way == "regressed" else f"guidance of {way} steps"
        for i, (name, says) in enumerate((("precision", "above"), ("recall", "below"))):
            gap = over_worlds(differ(i, (way, t), (way, 1.0)))
            checks.append(Check(where, f"{name}, at {t:g} minus at 1, nats", gap, says))
    return Measured(tuple(checks), _charts(world, found), _notes(world, found))


def _mean(found: Sequence[dict[tuple[str, float], Figures]], key: tuple[str, float], i: int) -> float:
    return fmean(x[key][i] for x in found)


def _charts(world: World, found: Sequence[dict[tuple[str, float], Figures]]) -> tuple[Chart, ...]:
    """Both figures by steps, and the plane by temperature."""
    steps = [*world.few, world.many]
    ts = sorted({1.0, world.temperature, *world.path}, reverse=True)
    by_steps = tuple(
        Line(f"{name}, {label}", steps, [_mean(found, (str(n), t), i) for n in steps], color=i, dashed=t != 1)
        for i, name in enumerate(("precision", "recall"))
        for t, label in ((1.0, "unguided"), (world.temperature, f"at {world.temperature:g}"))
    )
    ways = [*((str(n), f"{n} steps") for n in steps), ("regressed", "one step by regression")]
    plane = tuple(
        Line(label, [_mean(found, (way, t), 1) for t in ts], [_mean(found, (way, t), 0) for t in ts])
        for way, label in ways
    )
    return (
        Chart("What steps buy", "steps", "nats a point", by_steps, log_x=True),
        Chart("What guidance does, from 1 down", "recall, nats a point", "precision, nats a point", plane),
    )


def _notes(world: World, found: Sequence[dict[tuple[str, float], Figures]]) -> tuple[str, ...]:
    """Figures at the ends."""
    ways = [*((str(n), f"{n} steps") for n in (*world.few, world.many)), ("regressed", "one step by regression")]
    return tuple(
        f"{label}: precision {_mean(found, (way, 1.0), 0):.3g} and recall {_mean(found, (way, 1.0), 1):.3g} unguided, "
        f"{_mean(found, (way, world.temperature), 0):.3g} and {_mean(found, (way, world.temperature), 1):.3g} at "
        f"{world.temperature:g}."
        for way, label in ways
    )
