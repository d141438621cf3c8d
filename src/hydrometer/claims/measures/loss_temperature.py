"""Students of either direction of KL at several temperatures of the loss, each at its exact optimum."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Literal

import numpy as np
from pydantic import BeforeValidator, Field

from hydrometer.claims.claim_chart import Chart, Line
from hydrometer.claims.claim_verdict import Check, Measured, over_worlds
from hydrometer.claims.worlds import ChainWorld, exact_figures
from hydrometer.core.distillation import Objective
from hydrometer.core.rng import Stream
from hydrometer.core.spec import as_tuple
from hydrometer.core.watching import doing
from hydrometer.models.markov.law import Markov
from hydrometer.models.markov.optimum import fit_objective
from hydrometer.models.objectives import divergence_of

__all__ = ["World", "measure", "student_of"]

OBJECTIVES = {"forward": "kl_teacher_student", "reverse": "kl_student_teacher"}
FIGURES = ("precision", "recall")


class World(ChainWorld):
    """Truths drawn at random, a teacher of rows of each, students of its laws on its own rows; all n-gram chains.

    Attributes
    ----------
    order, teacher : of the truth and of its teacher.
    students : orders; each is a condition.
    temperatures : of the loss; 1 is always taken, and those above it are where forward KL is said to be better.
    vocabulary, max_new_tokens, end, concentration : of the truth (`MarkovTruth`).
    train : rows of the teacher. smoothing : of its counts.
    """

    order: int = Field(default=3, ge=1, le=5)
    teacher: int = Field(default=2, ge=0, le=5)
    students: Annotated[tuple[int, ...], BeforeValidator(as_tuple)] = (0, 1)
    temperatures: Annotated[tuple[float, ...], BeforeValidator(as_tuple)] = (0.5, 1.0, 2.0, 4.0)
    train: int = Field(default=2000, ge=1)


def student_of(teacher: Markov, direction: str, temperature: float, order: int) -> Markov:
    """Return the chain of least ``forward`` or ``reverse`` KL at a temperature of the loss, on the teacher's rows."""
    objective = Objective(OBJECTIVES[direction], (("temperature", temperature),))
    d = divergence_of(objective)
    assert d is not None  # only `mle` is no divergence
    return fit_objective(teacher, teacher, d, order).model


def measure(world: World, seeds: Sequence[int]) -> Measured:
    """Measure the claim: differences in nats a row, each exact in its world, over worlds."""
    temperatures = sorted({1.0, *world.temperatures})
    found: dict[tuple[int, str, float, str], list[float]] = {}
    moved = 0.0
    for seed in seeds:
        doing(f"world {seed + 1} of {len(seeds)}")
        truth = world.truth(world.order, seed)
        rows = truth.sample(world.train, seed=Stream(seed).child("loss-temperature", "train"))
        teacher = world.fitted(rows, world.teacher)
        for order in world.students:
            still = student_of(teacher, "reverse", 1.0, order)
            for direction in OBJECTIVES:
                for t in temperatures:
                    student = student_of(teacher, direction, t, order)
                    if direction == "reverse":
                        moved = max(moved, float(np.abs(student.log_table - still.log_table).max()))
                    for figure, value in exact_figures(truth, student, FIGURES).items():
                        found.setdefault((order, direction, t, figure), []).append(value)

    def gap(order: int, t: float, figure: str) -> list[float]:
        a, b = (found[order, direction, t, figure] for direction in ("forward", "reverse"))
        return [x - y for x, y in zip(a, b, strict=True)]

    checks: list[Check] = []
    for order in world.students:
        for figure in FIGURES:
            for t in temperatures:
                if t < 1:
                    continue
                says: Literal["above", "below"] = "below" if t == 1 else "above"
                what = f"{figure}, forward minus reverse, temperature {t:g}, nats"
                condition = f"ranked by {figure}, student of order {order}"
                checks.append(Check(condition, what, over_worlds(gap(order, t, figure)), says))
            hot = temperatures[-1]
            if hot > 1:
                gains = [x - y for x, y in zip(gap(order, hot, figure), gap(order, 1.0, figure), strict=True)]
                what = f"{figure}, temperature {hot:g} minus 1, forward's gain less reverse's, nats"
                condition = f"{figure} gained by temperature, student of order {order}"
                checks.append(Check(condition, what, over_worlds(gains), "above"))
    charts = tuple(_chart(figure, world.students, temperatures, found) for figure in FIGURES)
    notes = (
        f"No log-probability of reverse KL's optimum moves by more than {moved:.1g} nats with the temperature: it is "
        "the geometric mean of the teacher's laws at any.",
        "Forward KL's optimum is the mean of the tempered laws, raised to the power of the temperature: at a high "
        "temperature that is the geometric mean, too, and the directions end at one student.",
        "These are optima: what temperature does to the gradients on the way there is not measured here.",
    )
    return Measured(tuple(checks), charts, notes)


def _chart(
    figure: str,
    orders: Sequence[int],
    temperatures: Sequence[float],
    found: dict[tuple[int, str, float, str], list[float]],
) -> Chart:
    """A figure's difference from reverse KL's at each temperature."""
    lines: list[Line] = []
    for order in orders:
        gaps = [
            np.asarray(found[order, "forward", t, figure]) - np.asarray(found[order, "reverse", t, figure])
            for t in temperatures
        ]
        lines.append(Line.of(f"student of order {order}", temperatures, [over_worlds(gap) for gap in gaps]))
    label = "forward minus reverse, nats"
    return Chart(figure.capitalize(), "temperature of the loss", label, tuple(lines), zero=True)
