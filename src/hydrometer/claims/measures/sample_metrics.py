"""Nearest-neighbour precision, recall, density, coverage, and MAUVE, of points, beside what they are of the laws.

A ball reaches from a point to its k-th nearest other of its own set. Precision is the share of generated points in a
ball of a real one, recall the reverse; density the number of real balls about a generated point, over k; coverage the
share of real balls with a generated point. With p of the real and q of the generated points

    alpha(1) = E_p min(1, q/p) = E_q min(1, p/q)
    KL(q || r_w) = -E_q log(w p/q + 1 - w),   KL(p || r_w) = -E_p log(w + (1 - w) q/p),   r_w = w p + (1 - w) q

and MAUVE is the area under ( exp(-5 KL(q || r_w)), exp(-5 KL(p || r_w)) ) at 25 weights w evenly from 1e-6 to 1 - 1e-6,
joined by straight lines to (1, 0) and (0, 1). Of points it is that of the shares that fall into the clusters of k-means
over both sets, started from points of them and stopped after 50 steps.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import product
from statistics import fmean
from typing import Annotated

import numpy as np
from pydantic import BeforeValidator, Field
from scipy.spatial.distance import cdist

from hydrometer.claims.claim_chart import Chart, Line
from hydrometer.claims.claim_verdict import Check, Measured, in_words, over_worlds
from hydrometer.claims.embedded_answers import AnswerSets, AnswerWorld, answer_sets, shared_mass
from hydrometer.claims.mauve import cluster_shares, mauve, mauve_of_rows, mauve_of_shift
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
    language_model : a language model's answers as points beside these (`AnswerWorld`), for the same neighbours and
        points a cluster, or None.
    """

    dimensions: Annotated[tuple[int, ...], BeforeValidator(as_tuple)] = (1, 2, 8, 32)
    points: Annotated[tuple[int, ...], BeforeValidator(as_tuple)] = (200, 1000)
    neighbours: Annotated[tuple[int, ...], BeforeValidator(as_tuple)] = (3, 5, 10)
    per_cluster: int = Field(default=10, ge=1)
    shift: float = Field(default=2.0, gt=0)
    language_model: AnswerWorld | None = None


_Figures = dict[int, dict[str, float]]
"""Of k: precision, recall, density and coverage."""


def neighbour_figures(real: Floats, generated: Floats, neighbours: Sequence[int]) -> _Figures:
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
    out: _Figures = {}
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


@dataclass(frozen=True, slots=True)
class _Found:
    """Figures of points of two pairs of laws, equal and apart, and the words for them.

    Attributes
    ----------
    laws : of a pair, equal and apart, in words. title : what is embedded.
    points : fewest and most. neighbours : every k. clusters : that go with the fewest and with the most points.
    dimensions : of points. checked : those that are conditions.
    alpha, area : alpha(1) and MAUVE of the laws apart; or (S,) of each set, with their errors.
    near, areas : of each set, by dimensions, whether apart, points, and of MAUVE clusters.
    """

    laws: tuple[str, str]
    title: str
    points: tuple[int, int]
    neighbours: tuple[int, ...]
    clusters: tuple[int, int]
    dimensions: tuple[int, ...]
    checked: tuple[int, ...]
    alpha: float | Floats
    area: float | Floats
    near: dict[tuple[int, bool, int], list[_Figures]] = field(default_factory=dict)
    areas: dict[tuple[int, bool, int, int], list[float]] = field(default_factory=dict)

    def add(self, d: int, apart: bool, pairs: Sequence[tuple[Floats, Floats]], stream: Stream) -> None:
        """Add a set's figures: means over its pairs of real and of generated points, of equal sizes."""
        n, found = len(pairs[0][0]), [neighbour_figures(*pair, self.neighbours) for pair in pairs]
        means = {k: {f: fmean(x[k][f] for x in found) for f in FIGURES} for k in self.neighbours}
        self.near.setdefault((d, apart, n), []).append(means)
        for k in self.clusters:
            seed = stream.child("clusters", str(k)).integer()
            mean = fmean(mauve(*cluster_shares(*pair, k, seed)) for pair in pairs)
            self.areas.setdefault((d, apart, n, k), []).append(mean)

    def both(self, d: int, apart: bool, n: int, k: int) -> Floats:
        """Mean of precision and recall, of each set; of equal and of shifted laws the two are equal in law."""
        return np.array([(x[k]["precision"] + x[k]["recall"]) / 2 for x in self.near[d, apart, n]])

    def own(self, apart: bool) -> tuple[float, float]:
        """alpha(1) and MAUVE of the laws."""
        return (float(np.mean(self.alpha)), float(np.mean(self.area))) if apart else (1.0, 1.0)


def _clusters(points: Sequence[int], per_cluster: int) -> tuple[int, int]:
    """Numbers of clusters that go with the fewest and with the most points."""
    few, many = (n // per_cluster for n in (min(points), max(points)))
    if few < 2 or few == many:
        raise SpecError("numbers of clusters differ, and are two or more", got=(few, many), fix="lower per_cluster")
    return few, many


def measure(world: World, seeds: Sequence[int]) -> Measured:
    """Measure the claim: figures of drawn points less those of the laws, over independent draws."""
    few, many, k, widest = min(world.points), max(world.points), min(world.neighbours), max(world.neighbours)
    if k < 1 or widest >= few or few == many or k == widest or min(world.dimensions) < 1:
        raise SpecError("a world has two numbers of points, and two of neighbours, fewer than points", got=world.points)
    model = world.language_model
    if model is not None and widest >= model.points[0]:
        raise SpecError("neighbours are fewer than a language model's points", got=widest, fix="raise its points")
    shifted = _shifted(world, seeds)
    kinds = [shifted]
    notes = [*_notes(shifted), *_mauve_notes(shifted)]
    if model is not None:
        stream = Stream(seeds[0]).child("nearest-neighbours", "answers")
        sets = answer_sets(model, stream.child("drawn"))
        answers = _answered(world, model, sets, stream)
        kinds.append(answers)
        notes += [*_answer_notes(answers, sets), *_notes(answers), *_mauve_notes(answers)]
    checks = [c for f in kinds for d in f.checked for c in (*_near_checks(f, d), *_mauve_checks(f, d))]
    charts = [chart for f in kinds for chart in (*_near_charts(f), _mauve_chart(f))]
    return Measured(tuple(checks), tuple(charts), tuple(notes))


def _shifted(world: World, seeds: Sequence[int]) -> _Found:
    """Gaussians; a set is a seed's draw."""
    found = _Found(
        ("equal laws", f"laws {world.shift:g} apart"),
        "MAUVE",
        (min(world.points), max(world.points)),
        world.neighbours,
        _clusters(world.points, world.per_cluster),
        world.dimensions,
        world.dimensions,
        math.erfc(world.shift / 2 / math.sqrt(2)),
        mauve_of_shift(world.shift),
    )
    for seed in seeds:
        doing(f"draw {seed + 1} of {len(seeds)}")
        for d, n, shift in product(world.dimensions, world.points, (0.0, world.shift)):
            stream = Stream(seed).child("nearest-neighbours").child(f"{d}-{n}-{shift:g}")
            x = np.random.default_rng(stream.integer()).standard_normal((2, n, d))
            found.add(d, shift > 0, [(x[0], x[1] + shift / math.sqrt(d))], stream)
    return found


def _answered(world: World, model: AnswerWorld, sets: AnswerSets, stream: Stream) -> _Found:
    """A language model's answers."""
    whole = sets.real.shape[-1]
    found = _Found(
        ("answers of equal laws", f"answers at temperatures 1 and {model.temperature:g}"),
        "MAUVE of answers",
        model.points,
        world.neighbours,
        _clusters(model.points, world.per_cluster),
        (*model.directions, whole),
        (model.directions[0], whole),
        sets.own(shared_mass),
        sets.own(mauve_of_rows),
    )
    for d in found.dimensions:
        doing(f"figures of answers in {d} dimensions")
        here = sets if d == whole else sets.projected(d, stream.child("directions", str(d)))
        for apart, s, n in product((False, True), range(model.sets), model.points):
            generated = (here.colder if apart else here.again)[s]
            parts = [np.split(x, len(x) // n) for x in (here.real[s], generated)]
            found.add(d, apart, list(zip(*parts, strict=True)), stream.child("sets", f"{d}-{n}-{apart}-{s}"))
    return found


def _where(laws: str, d: int) -> str:
    return f"{laws}, {d} dimension{'s' * (d > 1)}"


def _near_checks(f: _Found, d: int) -> list[Check]:
    (few, many), k, widest = f.points, min(f.neighbours), max(f.neighbours)

    def check(where: str, figure: str, values: Floats, says: str) -> Check:
        return Check(where, figure, over_worlds(values, "probability"), says)

    where = _where(f.laws[0], d)
    low, high = f.both(d, False, few, k) - 1, f.both(d, False, many, k) - 1
    wide = f.both(d, False, many, widest) - 1
    checks = [
        check(where, f"precision and recall, less 1, {many} points, k = {k}", high, "below"),
        check(where, f"the same less half of that at {few} points", high - _LEFT * low, "below"),
        check(where, f"k = {widest} less k = {k}, {many} points", wide - high, "above"),
    ]
    where, alpha = _where(f.laws[1], d), f.own(True)[0]
    high = f.both(d, True, many, k)
    return [
        *checks,
        check(where, f"precision and recall, less 1 (of supports), {many} points, k = {k}", high - 1, "below"),
        check(where, f"the same less alpha(1) = {alpha:.3f}", high - f.alpha, "above"),
    ]


def _mauve_checks(f: _Found, d: int) -> list[Check]:
    (few, many), (a_few, a_many) = f.points, f.clusters

    def area(apart: bool, n: int, k: int) -> Floats:
        return np.array(f.areas[d, apart, n, k])

    low, high = area(False, few, a_few) - 1, area(False, many, a_many) - 1
    apart = area(True, many, a_many), area(True, many, a_few)
    equal, other = (_where(f"MAUVE of {laws}", d) for laws in f.laws)
    found = (
        (equal, f"MAUVE, less 1, {many} points, {a_many} clusters", high, "below"),
        (equal, f"the same less half of that at {few} points, {a_few} clusters", high - _LEFT * low, "below"),
        (other, f"MAUVE, less {f.own(True)[1]:.3f}, {many} points, {a_many} clusters", apart[0] - f.area, "above"),
        (other, f"{a_few} clusters less {a_many}, {many} points", apart[1] - apart[0], "above"),
    )
    return [Check(where, figure, over_worlds(x, "probability"), says) for where, figure, x, says in found]


def _near_charts(f: _Found) -> tuple[Chart, ...]:
    ks = min(f.neighbours), max(f.neighbours)
    axis = [math.log2(d) for d in f.dimensions]

    def line(n: int, j: int, apart: bool) -> Line:
        means = [float(f.both(d, apart, n, j).mean()) for d in f.dimensions]
        return Line(f"{n} points, k = {j}", axis, means)

    return tuple(
        Chart(
            f"{laws[0].upper()}{laws[1:]}: {right}",
            "log2 of dimensions",
            "precision and recall, probability",
            (
                *(line(n, j, apart) for j in ks for n in f.points),
                Line(label, axis, [f.own(apart)[0]] * len(axis), dashed=True),
            ),
        )
        for laws, apart, right, label in zip(
            f.laws, (False, True), ("1 is right", "supports say 1"), ("exact", "alpha(1)"), strict=True
        )
    )


def _mauve_chart(f: _Found) -> Chart:
    axis = [math.log2(d) for d in f.dimensions]
    (few, many), (a_few, a_many) = f.points, f.clusters
    lines = tuple(
        Line(
            f"{f.laws[apart]}: {n} points, {k} clusters",
            axis,
            [fmean(f.areas[d, apart, n, k]) - f.own(apart)[1] for d in f.dimensions],
        )
        for apart in (False, True)
        for n, k in ((few, a_few), (many, a_many), (many, a_few))
    )
    return Chart(f"{f.title}: 0 is right", "log2 of dimensions", "MAUVE less that of the laws", lines, zero=True)


def _notes(f: _Found) -> tuple[str, ...]:
    """Density and coverage, of equal laws and of laws apart."""
    n, k = max(f.points), min(f.neighbours)
    exact = 1 - math.prod((n - i) / (2 * n - i) for i in range(1, k + 1))
    notes = [f"Coverage of equal laws has mean {exact:.3f} at {n} points and k = {k}, whatever the law; density 1."]
    for apart, laws in enumerate(f.laws):
        said = "; ".join(
            f"{d}: " + " and ".join(f"{fmean(x[k][g] for x in f.near[d, bool(apart), n]):.3f}" for g in FIGURES[2:])
            for d in f.dimensions
        )
        notes.append(f"Density and coverage of {laws}, {n} points, k = {k}, by dimensions: {said}.")
    return tuple(notes)


def _mauve_notes(f: _Found) -> tuple[str, ...]:
    """Means of MAUVE, beside those of the laws."""
    return tuple(
        f"MAUVE of {laws}, which is {f.own(bool(apart))[1]:.3f}, at {n} points and {k} clusters, by "
        "dimensions: " + "; ".join(f"{d}: {fmean(f.areas[d, bool(apart), n, k]):.3f}" for d in f.dimensions) + "."
        for apart, laws in enumerate(f.laws)
        for n in f.points
        for k in f.clusters
    )


def _answer_notes(f: _Found, sets: AnswerSets) -> list[str]:
    """What the laws are, precision and recall apart, and of all sets taken as one."""
    k, many, whole = min(f.neighbours), max(f.points), f.dimensions[-1]
    alpha, area = (over_worlds(x, "probability") for x in (f.alpha, f.area))
    each = "; ".join(
        f"{d}: " + " and ".join(f"{fmean(x[k][g] for x in f.near[d, True, many]):.3f}" for g in FIGURES[:2])
        for d in f.dimensions
    )
    real, again, colder = (x.reshape(-1, whole) for x in (sets.real, sets.again, sets.colder))
    together = [neighbour_figures(real, x, (k,))[k] for x in (again, colder)]
    said = ", and of ".join(
        f"{laws} precision {x['precision']:.3f} and recall {x['recall']:.3f}"
        for laws, x in zip(f.laws, together, strict=True)
    )
    to_p, to_q = (over_worlds(x.mean(axis=1)) for x in (-sets.of_colder, sets.of_real))
    of_p, of_q = (f"{100 * x:.0f} %" for x in sets.alike)
    return [
        f"Of {f.laws[1]}: alpha(1) is {in_words(alpha)}, MAUVE {in_words(area)}, KL(q || p) {in_words(to_p)} and "
        f"KL(p || q) {in_words(to_q)} nats an answer, of p at 1 and q colder. Another of its own equals {of_p} of all "
        f"{len(real)} answers of p, and {of_q} of those of q.",
        f"Precision and recall of {f.laws[1]}, {many} points, k = {k}, by dimensions: {each}.",
        f"All {len(real)} answers as one set, {whole} dimensions, k = {k}: of {said}.",
    ]
