"""Students of best of n, of rejection and of a colder teacher, all three laws equally far from the teacher."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import product
from statistics import fmean
from typing import Annotated, cast

import numpy as np
from pydantic import BeforeValidator, Field
from scipy.optimize import brentq  # pyright: ignore[reportUnknownVariableType]

from hydrometer.claims.claim_chart import Chart, Line
from hydrometer.claims.claim_verdict import Check, Measured, over_worlds
from hydrometer.claims.worlds import ChainWorld, exact_figures
from hydrometer.core.arguments import of_type
from hydrometer.core.array_types import Floats
from hydrometer.core.rng import Stream
from hydrometer.core.spec import Accept, Selectivity, as_tuple
from hydrometer.core.watching import doing
from hydrometer.models.choosing.best_of_n import choose
from hydrometer.models.markov.law import Markov
from hydrometer.models.rows.sequences import Sequences

__all__ = ["World", "best_of_kl", "colder", "measure"]

DATA = ("colder", "best of n", "rejection")
LEAST = 0.01
"""Nats a row: differences below it are none that anybody would pay for."""


class World(ChainWorld):
    """Truths drawn at random, a teacher of rows of each, students of rows drawn in three ways; n-gram chains.

    Attributes
    ----------
    order, teacher : of the truth and of its teacher.
    students : orders; each is a condition.
    best_of : candidates, ranked by the teacher's log-probability.
    vocabulary, max_new_tokens, end, concentration : of the truth (`MarkovTruth`).
    train, distill : rows. probe : rows by which the teacher's log-probabilities are known. smoothing : of counts.
    """

    order: int = Field(default=3, ge=1, le=5)
    teacher: int = Field(default=2, ge=0, le=5)
    students: Annotated[tuple[int, ...], BeforeValidator(as_tuple)] = (1, 2)
    best_of: int = Field(default=4, ge=2, le=64)
    train: int = Field(default=2000, ge=1)
    distill: int = Field(default=4000, ge=1)
    probe: int = Field(default=50_000, ge=1000)


def best_of_kl(log_prob: Floats, n: int) -> float:
    """KL of the law of the best of n from the law of one, both of these scores' distribution, nats.

    Ties are broken at random, so the ratio of the two laws depends on the score alone: with F the scores' distribution
    function it is (F(s)^n - F(s-)^n) / (F(s) - F(s-)). Without ties the KL is log n - (n - 1) / n.

    Parameters
    ----------
    log_prob : (N,) scores of rows of the law of one.

    Examples
    --------
    >>> abs(best_of_kl(np.arange(100_000.0), 4) - (math.log(4) - 3 / 4)) < 1e-4
    True
    """
    _, counts = np.unique(np.round(log_prob, 9), return_counts=True)
    ends = np.concatenate([[0.0], np.cumsum(counts)]) / counts.sum()
    chosen, share = np.diff(ends**n), np.diff(ends)
    return float((chosen * np.log(chosen / share)).sum())


def colder(teacher: Markov, kl: float) -> float:
    """Return the temperature below 1 at which the teacher's law is so far from the teacher, KL(cold, warm), nats."""

    def gap(temperature: float) -> float:
        cold = teacher.select(Selectivity(temperature=temperature))
        return exact_figures(teacher, cold, ("kl_student_truth",))["kl_student_truth"] - kl

    return cast("float", brentq(gap, 0.05, 1.0, xtol=1e-6))


def measure(world: World, seeds: Sequence[int]) -> Measured:
    """Measure the claim: exact figures of students against the truth in each world, over worlds."""
    names = ("precision", "recall", "entropy", "kl_student_truth", "kl_truth_student")
    found: dict[tuple[int, str], list[dict[str, float]]] = {}
    distance: list[float] = []
    for seed in seeds:
        doing(f"world {seed + 1} of {len(seeds)}")
        truth = world.truth(world.order, seed)
        stream = Stream(seed).child("equal-kl-data")
        rows = truth.sample(world.train, seed=stream.child("train"))
        teacher = world.fitted(rows, world.teacher)
        scores = teacher.sample(world.probe, seed=stream.child("probe")).log_prob
        kl = best_of_kl(scores, world.best_of)
        distance.append(kl)
        least = float(np.quantile(scores, 1 - math.exp(-kl)))  # KL of a law given an event is -log of its probability
        best = Selectivity(best_of=world.best_of, rank_by="log_prob")
        kept = Selectivity(accept=Accept(by="log_prob", min=least))
        drawn = stream.child("distill")
        data = {
            "colder": teacher.select(Selectivity(temperature=colder(teacher, kl))).sample(world.distill, seed=drawn),
            "best of n": choose(teacher, best).sample(world.distill, seed=drawn),
            "rejection": choose(teacher, kept).sample(world.distill, seed=drawn),
        }
        for order, name in product(world.students, DATA):
            student = world.fitted(of_type(Sequences, data[name]), order)
            found.setdefault((order, name), []).append(exact_figures(truth, student, names))
    checks = [
        Check(
            f"{words}, {name}, order {order}",
            f"{name} minus colder, nats",
            over_worlds([a[f] - b[f] for a, b in zip(found[order, name], found[order, "colder"], strict=True)]),
            "below",
            -LEAST,
        )
        for order, name, (f, words) in product(
            world.students,
            DATA[1:],
            (("kl_student_truth", "KL(student, truth)"), ("kl_truth_student", "KL(truth, student)")),
        )
    ]

    def mean(order: int, name: str, figure: str) -> list[float]:
        return [fmean(x[figure] for x in found[order, name])]

    lines = tuple(
        Line(f"{name}, order {order}", mean(order, name, "recall"), mean(order, name, "precision"), connected=False)
        for order, name in product(world.students, DATA)
    )
    means = {k: {f: fmean(x[f] for x in v) for f in ("precision", "recall", "entropy")} for k, v in found.items()}
    notes = [f"KL of the data from the teacher: {fmean(distance):.3g} nats a row, over worlds, in all three ways."]
    for (order, name), m in means.items():
        figures = ", ".join(f"{f} {v:.3g}" for f, v in m.items())
        notes.append(f"Student of order {order} of {name}: {figures} nats.")
    plane = Chart("Data equally far from the teacher", "recall, nats", "precision, nats", lines)
    return Measured(tuple(checks), (plane,), tuple(notes))
