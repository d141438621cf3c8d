"""Two directions of the KL by two sources of prefixes, each at its exact optimum."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import product
from statistics import fmean
from typing import Annotated

from pydantic import BeforeValidator, Field

from hydrometer.claims.claim_chart import Chart, Line
from hydrometer.claims.claim_verdict import Check, Measured, over_worlds
from hydrometer.claims.worlds import ChainWorld, exact_figures
from hydrometer.core.rng import Stream
from hydrometer.core.spec import Selectivity, as_tuple
from hydrometer.core.watching import doing
from hydrometer.models.markov.law import Markov
from hydrometer.models.markov.optimum import fit_objective
from hydrometer.models.objectives import Divergence

__all__ = ["World", "measure"]

DIRECTIONS = {"forward": "kl_teacher_student", "reverse": "kl_student_teacher"}
PREFIXES = ("teacher", "student")
LEAST = 0.01
"""Nats a row: differences below it are none that anybody would pay for."""


class World(ChainWorld):
    """Truths drawn at random, a teacher of rows of each, students that are exact optima under the teacher.

    Attributes
    ----------
    order, teacher : of the truth and of its teacher.
    students : orders; each is a condition.
    temperatures : of the teacher; the checks are at the first.
    vocabulary, max_new_tokens, end, concentration : of the truth (`MarkovTruth`).
    train : rows of the teacher. smoothing : of its counts.
    least : smoothing of the optima, in expected visits of a row.
    """

    order: int = Field(default=3, ge=1, le=5)
    teacher: int = Field(default=3, ge=0, le=5)
    students: Annotated[tuple[int, ...], BeforeValidator(as_tuple)] = (1, 2, 3)
    temperatures: Annotated[tuple[float, ...], BeforeValidator(as_tuple)] = (1.0, 0.8, 0.6)
    train: int = Field(default=2000, ge=1)
    least: float = Field(default=1e-5, ge=0)


def students_of(world: World, teacher: Markov, order: int) -> dict[tuple[str, str], Markov]:
    """Return the optimum of each direction on each source of prefixes."""
    out: dict[tuple[str, str], Markov] = {}
    for (direction, kind), prefixes in product(DIRECTIONS.items(), PREFIXES):
        own = prefixes == "student"
        source = None if own else teacher
        best = fit_objective(teacher, source, Divergence(kind), order, world.least, float(own))
        out[direction, prefixes] = best.model
    return out


def measure(world: World, seeds: Sequence[int]) -> Measured:
    """Measure the claim: differences in nats a row, each exact in its world, over worlds."""
    found: dict[tuple[int, float, str, str], list[dict[str, float]]] = {}
    for seed in seeds:
        doing(f"world {seed + 1} of {len(seeds)}")
        truth = world.truth(world.order, seed)
        rows = truth.sample(world.train, seed=Stream(seed).child("direction-and-prefixes"))
        warm = world.fitted(rows, world.teacher)
        for temperature, order in product(world.temperatures, world.students):
            teacher = warm.select(Selectivity(temperature=temperature))
            for (direction, prefixes), student in students_of(world, teacher, order).items():
                figures = exact_figures(truth, student, ("precision", "recall", "entropy"))
                figures["from teacher"] = exact_figures(teacher, student, ("kl_student_truth",))["kl_student_truth"]
                found.setdefault((order, temperature, direction, prefixes), []).append(figures)
    return Measured(tuple(_checks(world, found)), tuple(_charts(world, found)))


def _checks(world: World, found: dict[tuple[int, float, str, str], list[dict[str, float]]]) -> list[Check]:
    first = world.temperatures[0]

    def less(order: int, a: tuple[str, str], b: tuple[str, str], figure: str) -> list[float]:
        return [x[figure] - y[figure] for x, y in zip(found[order, first, *a], found[order, first, *b], strict=True)]

    out: list[Check] = []
    for order in world.students:
        for prefixes in PREFIXES:
            pair = ("reverse", prefixes), ("forward", prefixes)
            for figure, says, bound in (("precision", "above", LEAST), ("entropy", "below", -LEAST)):
                what = f"{figure} on the {prefixes}'s prefixes, reverse minus forward, nats"
                gap = over_worlds(less(order, *pair, figure))
                out.append(Check(f"direction, order {order}", what, gap, says, bound))
        for direction in DIRECTIONS:
            condition = f"own prefixes, {direction} KL, order {order}"
            pair = (direction, "student"), (direction, "teacher")
            gap = over_worlds(less(order, *pair, "from teacher"))
            out.append(
                Check(condition, "KL(student, teacher), own minus teacher's prefixes, nats", gap, "below", -LEAST)
            )
    return out


def _charts(world: World, found: dict[tuple[int, float, str, str], list[dict[str, float]]]) -> list[Chart]:
    charts: list[Chart] = []
    for order in world.students:
        lines: list[Line] = []
        for i, (direction, prefixes) in enumerate(product(DIRECTIONS, PREFIXES)):
            x, y = (
                [fmean(f[figure] for f in found[order, t, direction, prefixes]) for t in world.temperatures]
                for figure in ("recall", "precision")
            )
            lines.append(Line(f"{direction} KL, {prefixes}'s prefixes", x, y, color=i))
        charts.append(Chart(f"Students of order {order}", "recall, nats", "precision, nats", tuple(lines)))
    return charts
