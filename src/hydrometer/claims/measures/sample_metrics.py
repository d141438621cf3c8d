"""Nearest-neighbour precision, recall, density, coverage, and MAUVE, of Gaussians, beside what they are of the laws."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import product
from statistics import fmean
from typing import Annotated

import numpy as np
from pydantic import BeforeValidator, Field
from scipy.spatial.distance import cdist

from hydrometer.claims.claim_chart import Chart, Line
from hydrometer.claims.claim_verdict import Check, Measured, over_worlds
from hydrometer.claims.mauve import cluster_shares, mauve, mauve_of_shift
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
    total variation, 2 Phi(-shift / 2); and MAUVE, which is 1 of equal laws, is an integral along mu (`claims.mauve`).

    Attributes
    ----------
    dimensions : each is a condition.
    points : fewest and most, of either law. neighbours : k; the least is checked.
    per_cluster : points of either law for each of MAUVE's clusters, at fewest and at most points, which are both
        measured at either; ten is the rule of mauve-text.
    shift : length of mu, along the diagonal.
    """

    dimensions: Annotated[tuple[int, ...], BeforeValidator(as_tuple)] = (1, 2, 8, 32)
    points: Annotated[tuple[int, ...], BeforeValidator(as_tuple)] = (200, 1000)
    neighbours: Annotated[tuple[int, ...], BeforeValidator(as_tuple)] = (3, 5, 10)
    per_cluster: int = Field(default=10, ge=1)
    shift: float = Field(default=2.0, gt=0)

    @property
    def clusters(self) -> tuple[int, int]:
        """Numbers of clusters that go with the fewest and with the most points."""
        few, many = (n // self.per_cluster for n in (min(self.points), max(self.points)))
        return few, many


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


_Near = dict[tuple[int, float, int], list[dict[int, dict[str, float]]]]  # dimensions, shift, points; k, figure
_Mauve = dict[tuple[int, float, int, int], list[float]]  # dimensions, shift, points, clusters


def _drawn(world: World, seeds: Sequence[int]) -> tuple[_Near, _Mauve]:
    """Figures of points, a list of draws each."""
    near, areas = _Near(), _Mauve()
    for seed in seeds:
        doing(f"draw {seed + 1} of {len(seeds)}")
        for d, n, shift in product(world.dimensions, world.points, (0.0, world.shift)):
            stream = Stream(seed).child("nearest-neighbours").child(f"{d}-{n}-{shift:g}")
            x = np.random.default_rng(stream.integer()).standard_normal((2, n, d))
            real, generated = x[0], x[1] + shift / math.sqrt(d)
            near.setdefault((d, shift, n), []).append(neighbour_figures(real, generated, world.neighbours))
            for k in world.clusters:
                shares = cluster_shares(real, generated, k, stream.child("clusters", str(k)).integer())
                areas.setdefault((d, shift, n, k), []).append(mauve(*shares))
    return near, areas


def measure(world: World, seeds: Sequence[int]) -> Measured:
    """Measure the claim: figures of drawn points less those of the laws, over independent draws."""
    few, many, k, widest = min(world.points), max(world.points), min(world.neighbours), max(world.neighbours)
    if k < 1 or widest >= few or few == many or k == widest or min(world.dimensions) < 1:
        raise SpecError("a world has two numbers of points, and two of neighbours, fewer than points", got=world.points)
    if world.clusters[0] < 2 or world.clusters[0] == world.clusters[1]:
        raise SpecError("numbers of clusters differ, and are two or more", got=world.clusters, fix="lower per_cluster")
    near, areas = _drawn(world, seeds)
    checks = [c for d in world.dimensions for c in (*_near_checks(world, near, d), *_mauve_checks(world, areas, d))]
    charts = (*_near_charts(world, near), _mauve_chart(world, areas))
    return Measured(tuple(checks), charts, (*_notes(world, near), *_mauve_notes(world, areas)))


def _both(near: _Near, d: int, shift: float, n: int, k: int) -> Floats:
    """Mean of precision and recall, which are equal in law."""
    return np.array([(x[k]["precision"] + x[k]["recall"]) / 2 for x in near[d, shift, n]])


def _where(laws: str, d: int) -> str:
    return f"{laws}, {d} dimension{'s' * (d > 1)}"


def _alpha(world: World) -> float:
    return math.erfc(world.shift / 2 / math.sqrt(2))


def _near_checks(world: World, near: _Near, d: int) -> list[Check]:
    few, many, k, widest = min(world.points), max(world.points), min(world.neighbours), max(world.neighbours)

    def check(where: str, figure: str, values: Floats, says: str) -> Check:
        return Check(where, figure, over_worlds(values, "probability"), says)

    where = _where("equal laws", d)
    low, high = _both(near, d, 0.0, few, k) - 1, _both(near, d, 0.0, many, k) - 1
    wide = _both(near, d, 0.0, many, widest) - 1
    checks = [
        check(where, f"precision and recall, less 1, {many} points, k = {k}", high, "below"),
        check(where, f"the same less half of that at {few} points", high - _LEFT * low, "below"),
        check(where, f"k = {widest} less k = {k}, {many} points", wide - high, "above"),
    ]
    where, alpha = _where(f"laws {world.shift:g} apart", d), _alpha(world)
    high = _both(near, d, world.shift, many, k)
    return [
        *checks,
        check(where, f"precision and recall, less 1 (of supports), {many} points, k = {k}", high - 1, "below"),
        check(where, f"the same less alpha(1) = {alpha:.3f}", high - alpha, "above"),
    ]


def _mauve_checks(world: World, areas: _Mauve, d: int) -> list[Check]:
    few, many = min(world.points), max(world.points)
    a_few, a_many = world.clusters
    exact = mauve_of_shift(world.shift)

    def area(shift: float, n: int, k: int) -> Floats:
        return np.array(areas[d, shift, n, k])

    low, high = area(0.0, few, a_few) - 1, area(0.0, many, a_many) - 1
    apart = area(world.shift, many, a_many), area(world.shift, many, a_few)
    equal, shifted = _where("MAUVE of equal laws", d), _where(f"MAUVE of laws {world.shift:g} apart", d)
    found = (
        (equal, f"MAUVE, less 1, {many} points, {a_many} clusters", high, "below"),
        (equal, f"the same less half of that at {few} points, {a_few} clusters", high - _LEFT * low, "below"),
        (shifted, f"MAUVE, less {exact:.3f}, {many} points, {a_many} clusters", apart[0] - exact, "above"),
        (shifted, f"{a_few} clusters less {a_many}, {many} points", apart[1] - apart[0], "above"),
    )
    return [Check(where, figure, over_worlds(x, "probability"), says) for where, figure, x, says in found]


def _near_charts(world: World, near: _Near) -> tuple[Chart, ...]:
    few, many, k, widest = min(world.points), max(world.points), min(world.neighbours), max(world.neighbours)
    axis = [math.log2(d) for d in world.dimensions]

    def line(n: int, j: int, shift: float) -> Line:
        means = [float(_both(near, d, shift, n, j).mean()) for d in world.dimensions]
        return Line(f"{n} points, k = {j}", axis, means)

    return tuple(
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
            (f"Laws {world.shift:g} apart: supports say 1", world.shift, _alpha(world), "alpha(1)"),
        )
    )


def _mauve_chart(world: World, areas: _Mauve) -> Chart:
    axis = [math.log2(d) for d in world.dimensions]
    lines = tuple(
        Line(
            f"{shift:g} apart: {n} points, {k} clusters",
            axis,
            [fmean(areas[d, shift, n, k]) - mauve_of_shift(shift) for d in world.dimensions],
        )
        for shift in (0.0, world.shift)
        for n, k in _pairs(world)
    )
    return Chart("MAUVE: 0 is right", "log2 of dimensions", "MAUVE less that of the laws", lines, zero=True)


def _pairs(world: World) -> tuple[tuple[int, int], ...]:
    """Points and clusters of the package's rule, and the fewest clusters with the most points."""
    few, many = min(world.points), max(world.points)
    return (few, world.clusters[0]), (many, world.clusters[1]), (many, world.clusters[0])


def _notes(world: World, found: _Near) -> tuple[str, ...]:
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


def _mauve_notes(world: World, areas: _Mauve) -> tuple[str, ...]:
    """Means of MAUVE, beside those of the laws."""
    return tuple(
        f"MAUVE of laws {shift:g} apart, which is {mauve_of_shift(shift):.3f}, at {n} points and {k} clusters, by "
        "dimensions: " + "; ".join(f"{d}: {fmean(areas[d, shift, n, k]):.3f}" for d in world.dimensions) + "."
        for shift in (0.0, world.shift)
        for n in world.points
        for k in world.clusters
    )
