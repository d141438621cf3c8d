"""Students of teachers of several orders: whether a smaller teacher than the largest makes the better one."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated

import numpy as np
from pydantic import BeforeValidator, Field

from hydrometer.claims.claim_chart import Chart, Line
from hydrometer.claims.claim_verdict import Check, Measured, over_worlds
from hydrometer.claims.worlds import ChainWorld, exact_figures
from hydrometer.core.array_types import Floats
from hydrometer.core.errors import InputError
from hydrometer.core.rng import Stream
from hydrometer.core.spec import Selectivity, as_tuple
from hydrometer.core.watching import doing
from hydrometer.models.markov.law import Markov
from hydrometer.models.markov.optimum import fit_objective
from hydrometer.models.objectives import Divergence

__all__ = ["World", "held_out", "measure", "student_of"]

FIGURES = {"kl_truth_student": "KL(truth, student)", "kl_student_truth": "KL(student, truth)"}


class World(ChainWorld):
    """Truths drawn at random, teachers of rows of each, students of all that each teacher says; n-gram chains.

    Attributes
    ----------
    order, vocabulary, max_new_tokens, end, concentration : of the truth (`MarkovTruth`).
    student : order of the student, which is the best of that order for rows without end of its teacher.
    teachers : orders; the last is the largest, the others are the smaller ones.
    rows : of a teacher; each is a condition. smoothing : of its counts.
    temperatures : of a teacher; each is a condition.
    """

    order: int = Field(default=4, ge=1, le=5)
    vocabulary: int = Field(default=4, ge=2, le=16)
    student: int = Field(default=1, ge=0, le=5)
    teachers: Annotated[tuple[int, ...], Field(min_length=2), BeforeValidator(as_tuple)] = (0, 1, 2, 3, 4)
    rows: Annotated[tuple[int, ...], BeforeValidator(as_tuple)] = (300, 20_000)
    temperatures: Annotated[tuple[float, ...], BeforeValidator(as_tuple)] = (1.0, 0.6)


def student_of(teacher: Markov, order: int) -> Markov:
    """Return the chain of an order that is most likely for rows without end of the teacher."""
    return fit_objective(teacher, teacher, Divergence("kl_teacher_student"), order).model


def held_out(values: Floats) -> tuple[int, Floats]:
    """Choose the best of all columns but the last in half of the worlds, and compare it in the others.

    Parameters
    ----------
    values : (W, teachers) a figure of which less is better, largest teacher last; even worlds choose.

    Returns
    -------
    The chosen column, and (W // 2,) the last column minus the chosen one in odd worlds.
    """
    if values.ndim != 2 or values.shape[0] < 4 or values.shape[1] < 2:
        raise InputError("choosing and comparing need four worlds and two teachers", got=values.shape)
    best = int(values[::2, :-1].mean(axis=0).argmin())
    other = values[1::2]
    return best, other[:, -1] - other[:, best]


def measure(world: World, seeds: Sequence[int]) -> Measured:
    """Measure the claim: differences in nats a row, exact in each world, over the worlds that did not choose."""
    shape = len(seeds), len(world.rows), len(world.temperatures), len(world.teachers)
    students = {figure: np.zeros(shape) for figure in FIGURES}
    own = np.zeros((len(seeds), len(world.rows), len(world.teachers)))
    for w, seed in enumerate(seeds):
        doing(f"world {seed + 1} of {len(seeds)}")
        truth = world.truth(world.order, seed)
        for i, n in enumerate(world.rows):
            drawn = truth.sample(n, seed=Stream(seed).child("teacher-too-good", str(n)))
            for k, order in enumerate(world.teachers):
                teacher = world.fitted(drawn, order)
                own[w, i, k] = exact_figures(truth, teacher, ("kl_truth_student",))["kl_truth_student"]
                for j, temperature in enumerate(world.temperatures):
                    student = student_of(teacher.select(Selectivity(temperature=temperature)), world.student)
                    for figure, value in exact_figures(truth, student, tuple(FIGURES)).items():
                        students[figure][w, i, j, k] = value
    checks: list[Check] = []
    notes: list[str] = []
    largest = world.teachers[-1]
    for i, n in enumerate(world.rows):
        means = ", ".join(f"{x:.3g}" for x in own[:, i].mean(axis=0))
        orders = ", ".join(map(str, world.teachers))
        notes.append(f"Teachers of {n} rows, orders {orders}: their own KL(truth, teacher), nats: {means}.")
        for j, temperature in enumerate(world.temperatures):
            for figure, words in FIGURES.items():
                values = students[figure][:, i, j]
                best, gap = held_out(values)
                condition = f"{words}, teachers of {n} rows at temperature {temperature:g}"
                what = f"{words}, largest teacher's (order {largest}) minus best smaller one's, nats"
                checks.append(Check(condition, what, over_worlds(gap), "above"))
                means = ", ".join(f"{x:.4g}" for x in values.mean(axis=0))
                chosen = f"the best smaller teacher is of order {world.teachers[best]}"
                notes.append(f"{condition}: {chosen}; by order, nats: {means}.")
    return Measured(tuple(checks), _charts(students, world), tuple(notes))


def _charts(students: dict[str, Floats], world: World) -> tuple[Chart, ...]:
    """Figures minus the largest teacher's, of teachers that can say what the student can."""
    kept = [k for k, order in enumerate(world.teachers) if order >= world.student]
    out: list[Chart] = []
    for figure, words in FIGURES.items():
        lines: list[Line] = []
        for i, n in enumerate(world.rows):
            for j, temperature in enumerate(world.temperatures):
                gaps = students[figure][:, i, j] - students[figure][:, i, j, -1:]
                label = f"{n} rows, temperature {temperature:g}"
                each = [over_worlds(gaps[:, k]) for k in kept]
                lines.append(Line.of(label, [world.teachers[k] for k in kept], each))
        out.append(Chart(words, "order of the teacher", "minus the largest teacher's, nats", tuple(lines), zero=True))
    return tuple(out)
