"""Students of a colder teacher, beside the student of the uncooled one and the same student decoded colder."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import product
from statistics import fmean
from typing import Annotated, cast

from pydantic import BeforeValidator, Field
from scipy.optimize import brentq  # pyright: ignore[reportUnknownVariableType]

from hydrometer.claims.claim_chart import Chart, Line
from hydrometer.claims.claim_verdict import Check, Measured, over_worlds
from hydrometer.claims.worlds import ChainWorld, exact_figures, fitted_mixture, mixture_entropy, mixture_figures
from hydrometer.core.errors import FitError
from hydrometer.core.rng import Stream
from hydrometer.core.spec import Selectivity, Strict, as_tuple
from hydrometer.core.statistics.estimate import Estimate
from hydrometer.core.watching import doing
from hydrometer.models.markov.law import Markov
from hydrometer.models.mixture.law import Mixture
from hydrometer.models.mixture.spec import MixtureTruth

__all__ = ["Mixtures", "World", "as_cold", "measure"]

FIGURES = ("precision", "recall", "entropy", "precision_per_token", "length")
REACH = 0.02, 2.0  # temperatures of the decoding control
COLDEST = 1e4  # weight power: the heaviest component alone, but for others as heavy to the fourth digit
RING = tuple((float(x), float(y)) for x in (-1, 0, 1) for y in (-1, 0, 1) if x or y)


class Mixtures(Strict):
    """Points of the truth, a teacher of them, students of points of the teacher; all mixtures of Gaussians."""

    truth: MixtureTruth = MixtureTruth(means=RING, covariances=0.025)
    teacher: int = Field(default=4, ge=1, le=64)
    students: Annotated[tuple[int, ...], BeforeValidator(as_tuple)] = (1, 2, 4)
    powers: Annotated[tuple[float, ...], BeforeValidator(as_tuple)] = (1.0, 3.0, 10.0, 30.0, 100.0)
    train: int = Field(default=100, ge=1)
    distill: int = Field(default=1000, ge=1)


class World(ChainWorld):
    """Truths drawn at random, a teacher of rows of each, students of rows of the teacher; n-gram chains, and mixtures.

    Attributes
    ----------
    order, teacher : of the truth and of its teacher.
    students : orders; each is a condition.
    temperature : of the cold teacher, in (0, 1).
    path : temperatures that are drawn.
    late : further probabilities of the end, in the place of `end`; each is a condition. A colder teacher writes longer
        rows, the more so where ends are rare. The student is decoded in the worlds of `end` alone, since cooling
        lengthens rows of others until no temperature gives an entropy.
    vocabulary, max_new_tokens, end, concentration : of the truth (`MarkovTruth`): rows of its table are Dirichlet.
    train, distill : rows. smoothing : of counts.
    mixtures : Gaussians, mixed, in the plane, by default those of the paper: `truth`; `teacher` and `students`,
        numbers of components, fitted to `train` points of the truth and `distill` of the teacher; `powers` of the
        teacher's weights, the greatest of which is the cold one's. The warm student is cooled, by its own weights, to
        the cold one's entropy, or where no power gives that, as far as it goes: to its heaviest component.
    """

    order: int = Field(default=3, ge=1, le=5)
    teacher: int = Field(default=2, ge=0, le=5)
    students: Annotated[tuple[int, ...], BeforeValidator(as_tuple)] = (1, 2)
    temperature: float = Field(default=0.5, gt=0, lt=1)
    path: Annotated[tuple[float, ...], BeforeValidator(as_tuple)] = (1.0, 0.85, 0.7, 0.6, 0.5)
    late: Annotated[tuple[float, ...], BeforeValidator(as_tuple)] = (0.1,)
    train: int = Field(default=2000, ge=1)
    distill: int = Field(default=4000, ge=1)
    mixtures: Mixtures = Mixtures()


def _figures(truth: Markov, law: Markov) -> dict[str, float]:
    return exact_figures(truth, law, FIGURES)


def _decoded(truth: Markov, student: Markov, entropy: float) -> dict[str, float]:
    """Figures of the student, decoded at the temperature that gives it this entropy."""

    def gap(temperature: float) -> float:
        return _figures(truth, student.select(Selectivity(temperature=temperature)))["entropy"] - entropy

    try:
        temperature = cast("float", brentq(gap, *REACH, xtol=1e-6))
    except ValueError:
        what = f"no temperature from {REACH[0]} to {REACH[1]} gives the student this entropy"
        raise FitError(what, got=f"{entropy:.3g} nats", fix="take a warmer teacher, or a larger world") from None
    return _figures(truth, student.select(Selectivity(temperature=temperature)))


def measure(world: World, seeds: Sequence[int]) -> Measured:
    """Measure the claim: differences in nats a row or a point, each exact in its world, over worlds."""
    chains, mixtures = _chains(world, seeds), _mixtures(world.mixtures, seeds)
    return Measured(chains.checks + mixtures.checks, chains.charts + mixtures.charts, chains.notes + mixtures.notes)


def _chains(world: World, seeds: Sequence[int]) -> Measured:
    temperatures = sorted({1.0, world.temperature, *world.path})
    found: dict[tuple[float, int, str, float], list[dict[str, float]]] = {}
    ends = dict.fromkeys((world.end, *world.late))
    for seed, end in product(seeds, ends):
        doing(f"world {seed + 1} of {len(seeds)}")
        truth = world.truth(world.order, seed, end=end)

        def fit(law: Markov, n: int, order: int, stream: Stream) -> Markov:
            return world.fitted(law.sample(n, seed=stream), order)

        stream = Stream(seed).child("colder-teacher")
        teacher = fit(truth, world.train, world.teacher, stream.child("train"))
        for order in world.students:
            students = {
                t: fit(teacher.select(Selectivity(temperature=t)), world.distill, order, stream.child("distill"))
                for t in temperatures
            }
            for t, student in students.items():
                mine = _figures(truth, student)
                found.setdefault((end, order, "distilled", t), []).append(mine)
                if end == world.end:
                    decoded = _decoded(truth, students[1.0], mine["entropy"])
                    found.setdefault((end, order, "decoded", t), []).append(decoded)
    checks: list[Check] = []
    charts: list[Chart] = []
    for end in ends:
        lines: list[Line] = []
        for i, order in enumerate(world.students):
            cold, warm = (found[end, order, "distilled", t] for t in (world.temperature, 1.0))
            for figure, says in (("precision", "above"), ("recall", "below")):
                what = f"{figure}, distilled at {world.temperature:g} minus at 1, nats"
                condition = f"against a warm teacher, order {order}, end {end:g}"
                checks.append(Check(condition, what, _less(cold, warm, figure), says))
            lines.append(_path(f"order {order}, distilled", found, (end, order, "distilled"), temperatures, i))
            if end == world.end:
                what = "precision, distilled minus decoded to the same entropy, nats"
                gap = _less(cold, found[end, order, "decoded", world.temperature], "precision")
                checks.append(Check(f"against decoding, order {order}, end {end:g}", what, gap, "above"))
                lines.append(_path(f"order {order}, decoded", found, (end, order, "decoded"), temperatures, i))
        title = f"Teachers at {', '.join(f'{t:g}' for t in reversed(temperatures))}; end {end:g}"
        charts.append(Chart(title, "recall, nats", "precision, nats", tuple(lines)))
    notes: list[str] = []
    for end, order in product(ends, world.students):
        cold, warm = (found[end, order, "distilled", t] for t in (world.temperature, 1.0))
        per_token = _less(cold, warm, "precision_per_token")
        lengths = [fmean(x["length"] for x in rows) for rows in (warm, cold)]
        notes.append(
            f"Order {order}, end {end:g}: rows have {lengths[0]:.1f} tokens at 1 and {lengths[1]:.1f} at "
            f"{world.temperature:g}; precision per token changes by {per_token.value:.2f} ± {per_token.se:.2f} nats."
        )
    if world.teacher in world.students:
        order = f"A student of the teacher's own order ({world.teacher})"
        notes.append(f"{order} differs from decoding by finite rows and smoothing alone.")
    return Measured(tuple(checks), tuple(charts), tuple(notes))


def as_cold(law: Mixture, entropy: float) -> tuple[Mixture, bool]:
    """Cool a mixture by its weights until it has this entropy, nats, or as far as that goes.

    Returns
    -------
    The mixture, and whether it has the entropy.
    """

    def cooled(log_power: float) -> Mixture:
        return law.select(Selectivity(weight_power=math.exp(log_power)))

    def gap(log_power: float) -> float:
        return mixture_entropy(cooled(log_power)) - entropy

    ends = 0.0, math.log(COLDEST)
    warm, cold = (gap(x) for x in ends)
    if warm <= 0 or cold >= 0:
        return cooled(ends[int(warm > 0)]), warm == 0 or cold == 0
    return cooled(cast("float", brentq(gap, *ends, xtol=1e-9))), True


_Found = dict[tuple[int, float | None], list[dict[str, float]]]  # by student and power; None: cooled itself


def _students(world: Mixtures, powers: Sequence[float], seeds: Sequence[int]) -> tuple[_Found, dict[int, int]]:
    """Figures of students in each world, and in how many the cooled one has the cold one's entropy."""
    truth, cold = world.truth.law(), powers[-1]
    found, reached = _Found(), dict.fromkeys(world.students, 0)
    for seed in seeds:
        doing(f"mixtures {seed + 1} of {len(seeds)}")
        stream = Stream(seed).child("colder-teacher", "mixtures")
        drawn = truth.sample(world.train, seed=stream.child("train"))
        teacher = fitted_mixture(drawn.x, world.teacher, stream.child("teacher"))
        for k in world.students:
            laws = {
                b: fitted_mixture(
                    teacher.select(Selectivity(weight_power=b)).sample(world.distill, seed=stream.child("distill")).x,
                    k,
                    stream.child("student", str(k)),
                )
                for b in powers
            }
            for b, law in laws.items():
                found.setdefault((k, b), []).append(mixture_figures(truth, law))
            cooled, there = as_cold(laws[1.0], found[k, cold][-1]["entropy"])
            found.setdefault((k, None), []).append(mixture_figures(truth, cooled))
            reached[k] += there
    return found, reached


def _mixtures(world: Mixtures, seeds: Sequence[int]) -> Measured:
    powers = sorted({1.0, *world.powers})
    cold = powers[-1]
    found, reached = _students(world, powers, seeds)
    checks: list[Check] = []
    lines: list[Line] = []
    notes: list[str] = []

    def mean(student: int, power: float | None, figure: str) -> float:
        return fmean(x[figure] for x in found[student, power])

    for k in world.students:
        where = f"mixtures, student of {k}"
        for figure, says in (("precision", "above"), ("recall", "below")):
            what = f"{figure}, distilled at weight power {cold:g} minus at 1, nats"
            gap = _less(found[k, cold], found[k, 1.0], figure)
            checks.append(Check(f"against a warm teacher, {where}", what, gap, says))
        what = "precision, distilled minus cooled to the same entropy, or as far as it goes, nats"
        gap = _less(found[k, cold], found[k, None], "precision")
        checks.append(Check(f"against cooling, {where}", what, gap, "above"))
        recall, precision = ([mean(k, b, figure) for b in powers] for figure in ("recall", "precision"))
        lines.append(Line(f"student of {k}", recall, precision))
        notes.append(
            f"Mixtures, student of {k}, at weight powers {', '.join(f'{b:g}' for b in powers)}: precision "
            f"{', '.join(f'{x:.3g}' for x in precision)}, recall {', '.join(f'{x:.3g}' for x in recall)} nats a point; "
            f"cooled, the warm student has the cold one's entropy in {reached[k]} of {len(seeds)} worlds, precision "
            f"{mean(k, None, 'precision'):.3g} and recall {mean(k, None, 'recall'):.3g}."
        )
    title = f"Mixtures, weight powers {', '.join(f'{b:g}' for b in powers)}"
    return Measured(tuple(checks), (Chart(title, "recall, nats", "precision, nats", tuple(lines)),), tuple(notes))


def _path(
    label: str,
    found: dict[tuple[float, int, str, float], list[dict[str, float]]],
    of: tuple[float, int, str],
    temperatures: Sequence[float],
    color: int,
) -> Line:
    """Means over worlds by temperature, in the plane."""
    recall, precision = (
        [fmean(x[figure] for x in found[(*of, t)]) for t in temperatures] for figure in ("recall", "precision")
    )
    return Line(label, recall, precision, color=color, dashed=of[-1] == "decoded")


def _less(a: Sequence[dict[str, float]], b: Sequence[dict[str, float]], figure: str) -> Estimate:
    """Mean over worlds of the difference of a figure."""
    return over_worlds([x[figure] - y[figure] for x, y in zip(a, b, strict=True)])
