"""Nearest-neighbour precision, recall, density and coverage of Gaussians, beside what they are of the laws."""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import fmean
from typing import Annotated

import numpy as np
from pydantic import BeforeValidator, Field
from scipy.spatial.distance import cdist

from hydrometer.claims.claim_chart import Chart, Line
from hydrometer.claims.claim_verdict import Check, Measured, over_worlds
from hydrometer.core.array_types import Floats
from hydrometer.core.errors import SpecError
from hydrometer.core.rng import Stream
from hydrometer.core.spec import Strict, as_tuple
from hydrometer.core.watching import doing

__all__ = ["World", "measure", "neighbour_figures"]

FIGURES = ("precision", "recall", "density", "coverage")
_LEFT = 0.5  # share of the bias at the fewest points


class World(Strict):
    """Points of N(0, I) as real ones, and as many of N(mu, I) as generated ones, with mu of length 0 or `shift`.

    Both laws have full support, so precision and recall of supports are 1; on the frontier, alpha(1) is 1 less the
    total variation, 2 Phi(-shift / 2).

    Attributes
    ----------
    dimensions : each is a condition.
    points : fewest and most, of either law. neighbours : k; the least is checked.
    shift : length of mu, along the diagonal.
    """

    dimensions: Annotated[tuple[int, ...], BeforeValidator(as_tuple)] = (1, 2, 8, 32)
    points: Annotated[tuple[int, ...], BeforeValidator(as_tuple)] = (200, 1000)
    neighbours: Annotated[tuple[int, ...], BeforeValidator(as_tuple)] = (3, 5, 10)
    shift: float = Field(default=2.0, gt=0)


def neighbour_figures(real: Floats, generated: Floats, neighbours: Sequence[int]) -> dict[int, dict[str, float]]:
    """Return precision, recall, density and coverage for each k.

    A ball reaches from a point to its k-th nearest other of its own set. Precision is the share of generated points in
    a ball of a real one, recall the reverse (Kynkaanniemi et al. 2019); density the number of real balls about a
    generated point, over k, and coverage the share of real balls with a generated point (Naeem et al. 2020).

    Parameters
    ----------
    real, generated : (N, d), (M, d). neighbours : k, each less than N and M.
    """
    across = np.asarray(cdist(real, generated), np.float64)
    own = [np.sort(np.asarray(cdist(x, x), np.float64), axis=1) for x in (real, generated)]
    out: dict[int, dict[str, float]] = {}
    for k in neighbours:
        in_real = across <= own[0][:, k, None]
        in_generated = across <= own[1][None, :, k]
        out[k] = {
            "precision": float(in_real.any(axis=0).mean()),
            "recall": float(in_generated.any(axis=1).mean()),
            "density": float(in_real.sum(axis=0).mean()) / k,
            "coverage": float(in_real.any(axis=1).mean()),
        }
    return out


def measure(world: World, seeds: Sequence[int]) -> Measured:
    """Measure the claim: figures of drawn points less those of the laws, over independent draws."""
    few, many, k, widest = min(world.points), max(world.points), min(world.neighbours), max(world.neighbours)
    if k < 1 or widest >= few or few == many or k == widest or min(world.dimensions) < 1:
        raise SpecError("a world has two numbers of points, and two of neighbours, fewer than points", got=world.points)
    found: dict[tuple[int, float, int], list[dict[int, dict[str, float]]]] = {}
    for seed in seeds:
        doing(f"draw {seed + 1} of {len(seeds)}")
        for d in world.dimensions:
            for n in world.points:
                for shift in (0.0, world.shift):
                    stream = Stream(seed).child("nearest-neighbours").child(f"{d}-{n}-{shift:g}")
                    x = np.random.default_rng(stream.integer()).standard_normal((2, n, d))
                    figures = neighbour_figures(x[0], x[1] + shift / math.sqrt(d), world.neighbours)
                    found.setdefault((d, shift, n), []).append(figures)

    def both(d: int, shift: float, n: int, k: int) -> Floats:
        """Mean of precision and recall, which are equal in law."""
        return np.array([(x[k]["precision"] + x[k]["recall"]) / 2 for x in found[d, shift, n]])

    def check(where: str, figure: str, values: Floats, says: str) -> Check:
        return Check(where, figure, over_worlds(values, "probability"), "above" if says == "above" else "below")

    alpha = math.erfc(world.shift / 2 / math.sqrt(2))
    checks: list[Check] = []
    for d in world.dimensions:
        where = f"equal laws, {d} dimension{'s' * (d > 1)}"
        low, high = both(d, 0.0, few, k) - 1, both(d, 0.0, many, k) - 1
        checks += [
            check(where, f"precision and recall, less 1, {many} points, k = {k}", high, "below"),
            check(where, f"the same less half of that at {few} points", high - _LEFT * low, "below"),
            check(where, f"k = {widest} less k = {k}, {many} points", both(d, 0.0, many, widest) - 1 - high, "above"),
        ]
        where = f"laws {world.shift:g} apart, {d} dimension{'s' * (d > 1)}"
        high = both(d, world.shift, many, k)
        checks += [
            check(where, f"precision and recall, less 1 (of supports), {many} points, k = {k}", high - 1, "below"),
            check(where, f"the same less alpha(1) = {alpha:.3f}", high - alpha, "above"),
        ]
    axis = [math.log2(d) for d in world.dimensions]

    def line(n: int, j: int, shift: float) -> Line:
        return Line(f"{n} points, k = {j}", axis, [float(both(d, shift, n, j).mean()) for d in world.dimensions])

    charts = tuple(
        Chart(
            title,
            "log2 of dimensions",
            "precision and recall, probability",
            (
                *(line(n, j, shift) for j in (k, widest) for n in (few, many)),
                Line(label, axis, [level] * len(axis), dashed=True),
            ),
        )
        for title, shift, level, label in (
            ("Equal laws: 1 is right", 0.0, 1.0, "exact"),
            (f"Laws {world.shift:g} apart: supports say 1", world.shift, alpha, "alpha(1)"),
        )
    )
    return Measured(tuple(checks), charts, _notes(world, found))


def _notes(world: World, found: dict[tuple[int, float, int], list[dict[int, dict[str, float]]]]) -> tuple[str, ...]:
    """Density and coverage, of equal and of shifted laws."""
    n, k = max(world.points), min(world.neighbours)
    exact = 1 - math.prod((n - i) / (2 * n - i) for i in range(1, k + 1))
    notes = [f"Coverage of equal laws has mean {exact:.3f} at {n} points and k = {k}, whatever the law; density 1."]
    for shift in (0.0, world.shift):
        said = "; ".join(
            f"{d}: " + " and ".join(f"{fmean(x[k][f] for x in found[d, shift, n]):.3f}" for f in FIGURES[2:])
            for d in world.dimensions
        )
        notes.append(f"Density and coverage of laws {shift:g} apart, {n} points, k = {k}, by dimensions: {said}.")
    return tuple(notes)
