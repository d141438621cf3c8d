"""Students of a colder teacher, beside the student of the uncooled one and the same student decoded colder."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import product
from statistics import fmean
from typing import Annotated, cast

from pydantic import BeforeValidator, Field
from scipy.optimize import brentq  # pyright: ignore[reportUnknownVariableType]

from hydrometer.claims.claim_chart import Chart, Line
from hydrometer.claims.claim_verdict import Check, Measured, over_worlds
from hydrometer.claims.worlds import ChainWorld, exact_figures
from hydrometer.core.errors import FitError
from hydrometer.core.rng import Stream
from hydrometer.core.spec import Selectivity, as_tuple
from hydrometer.core.statistics.estimate import Estimate
from hydrometer.core.watching import doing
from hydrometer.models.markov.law import Markov

__all__ = ["World", "measure"]

FIGURES = ("precision", "recall", "entropy", "precision_per_token", "length")
REACH = 0.02, 2.0  # temperatures of the decoding control


class World(ChainWorld):
    """Truths drawn at random, a teacher of rows of each, students of rows of the teacher; all n-gram chains.

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
    """

    order: int = Field(default=3, ge=1, le=5)
    teacher: int = Field(default=2, ge=0, le=5)
    students: Annotated[tuple[int, ...], BeforeValidator(as_tuple)] = (1, 2)
    temperature: float = Field(default=0.5, gt=0, lt=1)
    path: Annotated[tuple[float, ...], BeforeValidator(as_tuple)] = (1.0, 0.85, 0.7, 0.6, 0.5)
    late: Annotated[tuple[float, ...], BeforeValidator(as_tuple)] = (0.1,)
    train: int = Field(default=2000, ge=1)
    distill: int = Field(default=4000, ge=1)


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
    """Measure the claim: differences in nats a row, each exact in its world, over worlds."""
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
