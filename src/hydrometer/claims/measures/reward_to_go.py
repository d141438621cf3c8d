"""Where each token's own reward leads on the student's own rows, beside the gradient of the KL between laws of rows."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated

import numpy as np
from pydantic import BeforeValidator, Field

from hydrometer.claims.claim_chart import Chart, Line
from hydrometer.claims.claim_verdict import Check, Measured, over_worlds
from hydrometer.claims.worlds import ChainWorld, degrees_between, exact_figures
from hydrometer.core.array_types import Floats
from hydrometer.core.distillation import Objective
from hydrometer.core.errors import SpecError
from hydrometer.core.rng import Stream
from hydrometer.core.spec import as_tuple
from hydrometer.core.watching import doing
from hydrometer.models.markov.law import Markov, reached
from hydrometer.models.markov.optimum import fit_objective, prefixes_of
from hydrometer.models.markov.row_optimum import RowsKL
from hydrometer.models.objectives import divergence_of

__all__ = ["World", "expected_gradients", "measure"]

ENDS = ("policy_gradient_token", "policy_gradient_reward_to_go")
FIGURES = ("kl_student_truth", "precision", "recall", "entropy")
DEGREE, NATS = 1.0, 0.01  # below these directions, and ends, are called equal


class World(ChainWorld):
    """Teachers drawn at random, students that train on their own rows from a fit of few of the teacher's.

    Attributes
    ----------
    pairs : orders of teacher and student, as "3-1"; each has two conditions.
    vocabulary, max_new_tokens, end, concentration : of the teacher (`MarkovTruth`).
    train : rows of the teacher that the student has seen before, where gradients are compared.
    smoothing : of their counts.
    """

    pairs: Annotated[tuple[str, ...], BeforeValidator(as_tuple)] = ("2-2", "2-1", "3-3", "3-2", "3-1")
    vocabulary: int = Field(default=6, ge=2, le=16)
    end: float = Field(default=0.1, gt=0, lt=1)
    train: int = Field(default=200, ge=1)
    smoothing: float = Field(default=0.5, gt=0)

    def orders(self) -> dict[str, tuple[int, int]]:
        """Return each pair as two numbers. Raises SpecError."""
        found: dict[str, tuple[int, int]] = {}
        for pair in self.pairs:
            teacher, dash, student = pair.partition("-")
            if not (dash and teacher.isdigit() and student.isdigit()) or max(int(teacher), int(student)) > 4:
                raise SpecError("a pair is two orders up to 4, of teacher and student", got=pair, fix="3-1")
            found[pair] = (int(teacher), int(student))
        return found


def expected_gradients(teacher: Markov, student: Markov) -> tuple[Floats, Floats]:
    """Return what both estimates are in expectation, in the student's logits: each token's own reward, and to go.

    Returns
    -------
    token : (C, V) gradient of the sum of KL(q, p) at the positions, with the law of the prefixes held fixed.
    rows : (C, V) gradient of KL between laws of rows.
    """
    log_q = student.log_table
    q = np.exp(log_q)

    def gradient(mean: Floats, visits: Floats) -> Floats:
        gap = log_q - mean
        return visits[:, None] * q * (gap - (q * gap).sum(axis=1, keepdims=True))

    weight, p, _ = prefixes_of(student, teacher, student.order)
    visits = weight.sum(axis=0)
    total = np.einsum("as,asv->sv", weight, np.log(np.where(weight[..., None] > 0, p, 1.0)))
    own = np.divide(total, visits[:, None], out=np.zeros_like(total), where=visits[:, None] > 0)
    _, mean, met = RowsKL(teacher, student.order)(log_q)
    return gradient(own, visits), gradient(mean, met)


def measure(world: World, seeds: Sequence[int]) -> Measured:
    """Measure the claim: angles in degrees and figures in nats a row, each exact in its world, over worlds."""
    orders = world.orders()
    found: dict[tuple[str, str], list[float]] = {}
    for seed in seeds:
        for pair, (of_teacher, order) in orders.items():
            doing(f"world {seed + 1} of {len(seeds)}, {pair}")
            teacher = world.truth(of_teacher, seed)
            rows = teacher.sample(world.train, seed=Stream(seed).child("reward-to-go", "train"))
            start = world.fitted(rows, order)
            token, to_go = expected_gradients(teacher, start)
            mine = {"angle": degrees_between(token, to_go)}
            for name in ENDS:
                d = divergence_of(Objective(name))
                assert d is not None
                fit = fit_objective(teacher, None, d, order)
                judged = exact_figures(teacher, fit.model, FIGURES)
                mine |= {f"{name} {figure}": value for figure, value in judged.items()}
                mine[f"{name} tokens"] = float(reached(fit.model, order).sum())
                mine[f"{name} ends"] = fit.info.get("fixed_points", 1.0)
            mine["tokens"] = float(reached(teacher, of_teacher).sum())
            for figure in FIGURES:
                mine[figure] = mine[f"{ENDS[0]} {figure}"] - mine[f"{ENDS[1]} {figure}"]
            for key, value in mine.items():
                found.setdefault((pair, key), []).append(value)
    checks: list[Check] = []
    notes: list[str] = []
    for pair, (of_teacher, order) in orders.items():
        where = f"teacher of order {of_teacher}, student of order {order}"
        angle = over_worlds(found[pair, "angle"], "degrees")
        checks.append(Check(f"the gradient, {where}", "angle between the two, degrees", angle, "above", DEGREE))
        what = "KL(student, teacher) of rows, without minus with reward-to-go, nats"
        checks.append(Check(f"the end, {where}", what, over_worlds(found[pair, "kl_student_truth"]), "above", NATS))
        least = float(np.mean(found[pair, f"{ENDS[1]} kl_student_truth"]))
        less = ", ".join(f"{figure} {np.mean(found[pair, figure]):+.3f}" for figure in FIGURES[1:])
        short = [float(np.mean(found[pair, key])) for key in (f"{ENDS[1]} tokens", f"{ENDS[0]} tokens", "tokens")]
        several = max(sum(n > 1 for n in found[pair, f"{name} ends"]) for name in ENDS)
        notes.append(
            f"{where.capitalize()}: with reward-to-go KL is {abs(least):.3f} nats, a row has {short[0]:.1f} tokens; "
            f"without it {short[1]:.1f}, the teacher's {short[2]:.1f}. Without it, less with it, nats: "
            f"{less}. Another end was found from another start in {several} of {len(seeds)} worlds."
        )
    teachers = sorted({of_teacher for of_teacher, _ in orders.values()})

    def lines(label: str, key: str, color: int) -> list[Line]:
        """One line a teacher's order."""
        out: list[Line] = []
        for i, of_teacher in enumerate(teachers):
            mine = sorted((a - b, pair) for pair, (a, b) in orders.items() if a == of_teacher)
            each = [over_worlds(found[pair, key]) for _, pair in mine]
            named = f"{label}, teacher of order {of_teacher}" if label else f"teacher of order {of_teacher}"
            out.append(Line.of(named, [gap for gap, _ in mine], each, color=color + i))
        return out

    axis = "orders that the student lacks"
    gaps = [line for i, name in enumerate(FIGURES[1:]) for line in lines(name, name, 2 * i)]
    charts = (
        Chart("Two gradients", axis, "angle between, degrees", tuple(lines("", "angle", 0)), zero=True),
        Chart(
            "Two ends", axis, "KL(student, teacher), nats a row",
            (
                *lines("own reward alone", f"{ENDS[0]} kl_student_truth", 0),
                *lines("reward-to-go", f"{ENDS[1]} kl_student_truth", 2),
            ),
            zero=True,
        ),
        Chart("Own reward alone, less to go", axis, "difference, nats a row", tuple(gaps), zero=True),
    )  # fmt: skip
    return Measured(tuple(checks), charts, tuple(notes))
