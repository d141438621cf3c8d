"""Align the teacher and distil, or distil and align the student: n-gram chains, a rare kind of row, exact tilts."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import product
from typing import Annotated

import numpy as np
from pydantic import BeforeValidator, Field

from hydrometer.claims.claim_chart import Chart, Line
from hydrometer.claims.claim_verdict import Check, Measured, over_worlds
from hydrometer.claims.worlds import ChainWorld, exact_figures
from hydrometer.core.rng import Stream
from hydrometer.core.spec import as_tuple
from hydrometer.core.watching import doing
from hydrometer.models.markov.law import Markov

__all__ = ["World", "measure", "rare_share", "with_rare_id"]

ORDERS = ("align, then distil", "distil, then align")
LEAST = 0.01
"""Nats a row, or share of rows: differences below it are none that anybody would pay for."""


class World(ChainWorld):
    """Truths in which rows that begin with the last id are rare, a teacher and a student of rows.

    The reward is 1 for such a row and 0 for others, so the target, the truth's tilt, is the truth with more of them.

    Attributes
    ----------
    order, teacher, student : of truth, teacher and student.
    rarities : share of rows of the truth that begin with the rare id; each is a condition. In other contexts the id's
        probability is multiplied by it.
    rows : of the teacher's law that the student is fitted to; each is a condition.
    strength : b of the tilt exp(reward / b).
    vocabulary, max_new_tokens, end, concentration : of the truth (`MarkovTruth`).
    train : rows of the teacher. smoothing : of counts.
    """

    order: int = Field(default=3, ge=1, le=5)
    teacher: int = Field(default=2, ge=0, le=5)
    student: int = Field(default=1, ge=0, le=5)
    rarities: Annotated[tuple[float, ...], BeforeValidator(as_tuple)] = (0.1, 0.02, 0.002)
    rows: Annotated[tuple[int, ...], BeforeValidator(as_tuple)] = (300, 10_000)
    strength: float = Field(default=0.2, gt=0)
    vocabulary: int = Field(default=8, ge=3, le=32)
    train: int = Field(default=20_000, ge=1)
    smoothing: float = Field(default=0.01, gt=0)


def with_rare_id(law: Markov, rarity: float) -> Markov:
    """Return the chain of which that share of rows begins with the last id, which is rarer elsewhere, too."""
    p = np.exp(law.log_table)
    p[:, -1] *= rarity
    p[law.start, -1] = 0.0
    p[law.start, -1] = p[law.start].sum() * rarity / (1 - rarity)
    return Markov(np.log(p / p.sum(axis=1, keepdims=True)), order=law.order, max_new_tokens=law.max_new_tokens)


def rare_share(law: Markov) -> float:
    """Share of rows that begin with the last id, exact."""
    return float(np.exp(law.step_table(0)[law.start, -1]))


def measure(world: World, seeds: Sequence[int]) -> Measured:
    """Measure the claim against the truth's own tilt: figures exact in each world, over worlds."""
    reward = np.zeros((world.max_new_tokens, world.vocabulary))
    reward[0, -1] = 1.0
    found: dict[tuple[float, int, str], list[dict[str, float]]] = {}
    for seed in seeds:
        doing(f"world {seed + 1} of {len(seeds)}")
        drawn = world.truth(world.order, seed)
        stream = Stream(seed).child("align-first")
        for rarity in world.rarities:
            truth = with_rare_id(drawn, rarity)
            target = truth.tilted(reward, world.strength)
            rows = truth.sample(world.train, seed=stream.child("train"))
            teacher = world.fitted(rows, world.teacher)
            for n in world.rows:

                def distilled(law: Markov, n: int = n, stream: Stream = stream) -> Markov:
                    drawn_rows = law.sample(n, seed=stream.child("distill"))
                    return world.fitted(drawn_rows, world.student)

                ends = (
                    distilled(teacher.tilted(reward, world.strength)),
                    distilled(teacher).tilted(reward, world.strength),
                )
                for order, law in zip(ORDERS, ends, strict=True):
                    figures = {**exact_figures(target, law, ("precision", "recall")), "reward": rare_share(law)}
                    found.setdefault((rarity, n, order), []).append(figures)
    checks: list[Check] = []
    notes: list[str] = []
    for rarity, n in product(world.rarities, world.rows):
        first, last = (found[rarity, n, order] for order in ORDERS)
        for figure, unit in (("reward", "share"), ("precision", "nats"), ("recall", "nats")):
            gap = over_worlds([x[figure] - y[figure] for x, y in zip(first, last, strict=True)], unit)
            what = f"{figure} at {n:,} rows, aligned first minus aligned last, {unit}"
            checks.append(Check(f"{figure}, rarity {rarity:g}", what, gap, "above", LEAST))
        a, b = (float(np.std([x["reward"] for x in y], ddof=1)) for y in (first, last))
        notes.append(f"Rarity {rarity:g}, {n:,} rows: spread of the reward over worlds {a:.2g} first, {b:.2g} last.")
    charts = [
        Chart(
            title,
            "rows of the teacher",
            label,
            tuple(
                Line.of(
                    f"{order}, rarity {rarity:g}",
                    world.rows,
                    [over_worlds([x[figure] for x in found[rarity, n, order]]) for n in world.rows],
                    color=i,
                )
                for i, (rarity, order) in enumerate(product(world.rarities, ORDERS))
            ),
            log_x=True,
        )
        for title, figure, label in (
            ("What is rewarded", "reward", "share of rows of the rare kind"),
            ("Cover of the target", "recall", "recall of the truth's tilt, nats"),
        )
    ]
    return Measured(tuple(checks), tuple(charts), tuple(notes))
