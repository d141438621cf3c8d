"""Precision by cooling and recall by heating, of the teacher and of the student decoded, beside recall by other losses.

Students are the exact optimum of their objective on the teacher's law, kl_teacher_student on the teacher's prefixes but
for the other losses: what is seen is no noise of distilling. "Teacher heated" is the student of a heated teacher. The
best loss and the best temperature are chosen in each world; temperatures are those from 1 up, of both ways.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import fmean
from typing import Annotated

from pydantic import BeforeValidator, Field

from hydrometer.claims.claim_chart import Chart, Line
from hydrometer.claims.claim_verdict import Check, Measured, over_worlds
from hydrometer.claims.worlds import ChainWorld
from hydrometer.core.distillation import MLE, Objective
from hydrometer.core.errors import SpecError
from hydrometer.core.rng import Stream
from hydrometer.core.spec import Selectivity, as_tuple
from hydrometer.core.watching import doing
from hydrometer.metrics.exact import judge_exact
from hydrometer.models.markov.law import Markov
from hydrometer.models.markov.optimum import fit_objective
from hydrometer.models.objectives import Divergence, PolicyGradient, divergence_of

__all__ = ["World", "measure"]

_DIGITS = 9  # laws that are equal but for rounding have equal figures
_PLAIN = Divergence("kl_teacher_student")
_WAYS = {"teacher": "teacher heated", "student": "student decoded"}

Point = tuple[float, float]
"""Precision and recall, nats a row; recall is minus infinity where the student cannot say what the truth does."""


class World(ChainWorld):
    """Truths drawn at random, a teacher of rows of each, and students that are exact optima; all n-gram chains.

    Attributes
    ----------
    order, teacher : of the truth and of its teacher.
    students : orders; each is a condition.
    train : rows of the teacher; each number is a condition.
    cold, hot : temperatures below and above 1.
    path : further temperatures that are drawn.
    losses : at temperature 1, on the teacher's prefixes; with ``on truth`` behind, on the truth's.
    vocabulary, max_new_tokens : of the truth (`MarkovTruth`), whose rows end with probability `end` at every step;
        the other ids' shares are Dirichlet of `concentration`. smoothing : of the teacher's counts alone.
    """

    order: int = Field(default=3, ge=1, le=5)
    teacher: int = Field(default=2, ge=0, le=5)
    students: Annotated[tuple[int, ...], BeforeValidator(as_tuple)] = (1, 2)
    train: Annotated[tuple[int, ...], BeforeValidator(as_tuple)] = (200, 2000)
    cold: float = Field(default=0.6, gt=0, lt=1)
    hot: Annotated[tuple[float, ...], BeforeValidator(as_tuple)] = (1.25, 1.6)
    path: Annotated[tuple[float, ...], BeforeValidator(as_tuple)] = (0.8,)
    losses: Annotated[tuple[str, ...], BeforeValidator(as_tuple)] = (
        "kl_teacher_student on truth",
        "skew_kl_teacher_student",
        "skew_kl_student_teacher",
        "jsd",
    )


def _point(truth: Markov, law: Markov) -> Point:
    found = judge_exact(truth, law, strings=0)
    precision, recall = (found[name].value for name in ("precision", "recall"))
    if precision is None:
        raise SpecError("the truth gives some rows no probability", fix="a larger concentration")
    return round(precision, _DIGITS), -math.inf if recall is None else round(recall, _DIGITS)


def _loss(text: str) -> tuple[Divergence | PolicyGradient, bool]:
    """Return the objective, and whether it is taken on the truth's prefixes."""
    name = text.removesuffix(" on truth")
    objective = Objective.from_json(name)
    d = divergence_of(objective)
    if d is None:
        raise SpecError("a loss is a divergence", got=MLE.to_json(), fix="kl_teacher_student")
    return d, name != text


def _world(
    world: World, order: int, truth: Markov, teacher: Markov, ts: Sequence[float]
) -> dict[tuple[str, str], Point]:
    """All students of one teacher: by way and temperature, and by loss."""
    out: dict[tuple[str, str], Point] = {}
    plain = fit_objective(teacher, teacher, _PLAIN, order).model
    for t in ts:
        s = Selectivity(temperature=t)
        heated = teacher.select(s)
        out["teacher", f"{t:g}"] = _point(truth, fit_objective(heated, heated, _PLAIN, order).model)
        out["student", f"{t:g}"] = _point(truth, plain.select(s))
    for text in world.losses:
        d, on_truth = _loss(text)
        out["loss", text] = _point(truth, fit_objective(teacher, truth if on_truth else teacher, d, order).model)
    return out


def measure(world: World, seeds: Sequence[int]) -> Measured:
    """Measure the claim: differences in nats a row, each exact in its world, over worlds."""
    if not world.hot or min(world.hot) <= 1:
        raise SpecError("to heat is to take temperatures above 1", got=list(world.hot))
    ts = sorted({1.0, world.cold, *world.hot, *world.path})
    found: dict[tuple[int, int], list[dict[tuple[str, str], Point]]] = {}
    for seed in seeds:
        doing(f"world {seed + 1} of {len(seeds)}")
        truth = world.truth(world.order, seed)
        for n in world.train:
            rows = truth.sample(n, seed=Stream(seed).child("heating").child(str(n)))
            teacher = world.fitted(rows, world.teacher)
            for order in world.students:
                found.setdefault((order, n), []).append(_world(world, order, truth, teacher, ts))
    checks: list[Check] = []
    for (order, n), points in found.items():
        where = f"of order {order}, {n} rows"
        for way, words in _WAYS.items():
            condition = f"{words}, {where}"
            gain = over_worlds([x[way, f"{world.cold:g}"][0] - x[way, "1"][0] for x in points])
            checks.append(Check(condition, f"precision, at {world.cold:g} minus at 1, nats", gain, "above"))
            for t in world.hot:
                gain = over_worlds([x[way, f"{t:g}"][1] - x[way, "1"][1] for x in points])
                checks.append(Check(condition, f"recall, at {t:g} minus at 1, nats", gain, "below"))
        warm = [(way, f"{t:g}") for way in _WAYS for t in ts if t >= 1]
        gain = over_worlds([
            max(x["loss", text][1] for text in world.losses) - max(x[key][1] for key in warm) for x in points
        ])  # fmt: skip
        what = "recall, best loss minus best temperature from 1 up, nats"
        checks.append(Check(f"another loss, {where}", what, gain, "above"))
    return Measured(tuple(checks), _charts(world, found, ts), _notes(world, found))


def _charts(
    world: World, found: dict[tuple[int, int], list[dict[tuple[str, str], Point]]], ts: Sequence[float]
) -> tuple[Chart, ...]:
    """Both figures by temperature; a student of the teacher's order or more is the teacher, and is drawn once."""
    titles = "Precision by temperature", "Recall by temperature"
    return tuple(
        Chart(
            titles[i], "temperature", f"change of {figure} from 1, nats", tuple(
                Line(
                    f"{_WAYS[way]}, order {order}, {n} rows", ts,
                    [fmean(x[way, f"{t:g}"][i] - x[way, "1"][i] for x in points) for t in ts],
                    color=2 * number, dashed=way == "student",
                )
                for number, ((order, n), points) in enumerate(found.items())
                for way in _WAYS
                if way == "teacher" or order < world.teacher
            ), zero=True,
        )
        for i, figure in enumerate(("precision", "recall"))
    )  # fmt: skip


def _notes(world: World, found: dict[tuple[int, int], list[dict[tuple[str, str], Point]]]) -> tuple[str, ...]:
    """What each loss changes."""
    notes: list[str] = []
    if same := [order for order in world.students if order >= world.teacher]:
        orders = ", ".join(map(str, same))
        notes.append(
            f"A student of order {orders} is its teacher: heating either is one thing, and no loss changes it."
        )
    for (order, n), points in found.items():
        if order >= world.teacher:
            continue
        said: list[str] = []
        for text in world.losses:
            recall = [x["loss", text][1] - x["teacher", "1"][1] for x in points]
            precision = fmean(x["loss", text][0] - x["teacher", "1"][0] for x in points)
            low = sum(math.isinf(r) for r in recall)
            what = f"{fmean(recall):+.3g}" if not low else f"minus infinity in {low} of {len(points)}"
            said.append(f"{text} {precision:+.3g} and {what}")
        notes.append(
            f"Order {order}, {n} rows: what a loss adds to precision and to recall, nats, beside kl_teacher_student on "
            f"the teacher's prefixes: {'; '.join(said)}."
        )
    return tuple(notes)
