"""Students of teachers of several sizes: whether a smaller teacher than the largest makes the better one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from itertools import product
from typing import Annotated, Self

import numpy as np
from pydantic import BeforeValidator, Field, model_validator
from pydantic_core import PydanticCustomError

from hydrometer.claims.claim_chart import Chart, Line
from hydrometer.claims.claim_verdict import Check, Measured, over_worlds
from hydrometer.claims.next_tokens import (
    Contexts,
    TokenWorld,
    at_temperature,
    drawn,
    fitted,
    leading,
    token_figures,
    token_worlds,
)
from hydrometer.claims.worlds import ChainWorld, exact_figures, fitted_mixture, mixture_entropy, mixture_figures
from hydrometer.core.array_types import Floats
from hydrometer.core.errors import InputError
from hydrometer.core.rng import Stream
from hydrometer.core.spec import Selectivity, Strict, as_tuple
from hydrometer.core.watching import doing
from hydrometer.models.markov.law import Markov
from hydrometer.models.markov.optimum import fit_objective
from hydrometer.models.mixture.law import Mixture
from hydrometer.models.mixture.spec import MixtureWorld
from hydrometer.models.objectives import Divergence

__all__ = ["Mixtures", "World", "held_out", "measure", "student_of"]

FIGURES = {"kl_truth_student": "KL(truth, student)", "kl_student_truth": "KL(student, truth)"}


class Mixtures(Strict):
    """Truths drawn at random, teachers of points of each, students of all that each teacher says; mixtures."""

    truth: MixtureWorld = MixtureWorld(n_components=16, n_features=1, separation=2.0, weight_ratio=4.0)
    student: int = Field(default=4, ge=1, le=16)
    teachers: Annotated[tuple[int, ...], Field(min_length=2), BeforeValidator(as_tuple)] = (4, 6, 10, 16, 24)
    rows: Annotated[tuple[int, ...], BeforeValidator(as_tuple)] = (300, 20_000)
    powers: Annotated[tuple[float, ...], BeforeValidator(as_tuple)] = (1.0, 2.0)
    distill: int = Field(default=5000, ge=1)
    reg_covar: float = Field(default=0.01, ge=0)
    n_init: int = Field(default=5, ge=1)


class Tokens(TokenWorld):
    """A language model's next tokens: teachers of its first layers, of rows, students of all that each teacher says.

    Attributes
    ----------
    layers : of the teachers; the last is the largest, the others are the smaller ones.
    student : layers of the student, one of `layers`.
    rows : of a teacher; each is a condition. temperatures : of a teacher; each is a condition.
    distill : as how many rows all that a teacher says weighs beside the penalty of its student's fit.
    narrow : leading directions of teachers and students of a further condition, at most rows and the first temperature.
    """

    layers: Annotated[tuple[int, ...], Field(min_length=2), BeforeValidator(as_tuple)] = (3, 6, 12, 30)
    student: int = 3
    rows: Annotated[tuple[int, ...], Field(min_length=1), BeforeValidator(as_tuple)] = (300, 3000)
    temperatures: Annotated[tuple[float, ...], Field(min_length=1), BeforeValidator(as_tuple)] = (1.0, 0.6)
    distill: int = Field(default=3000, ge=1)
    narrow: int = Field(default=8, ge=1)

    @model_validator(mode="after")
    def _student_is_there(self) -> Self:
        if self.student not in self.layers:
            raise PydanticCustomError("student", "the student's number of layers is one of layers")
        return self


class World(ChainWorld):
    """Truths drawn at random, teachers of rows of each, students of all that each teacher says; chains, and mixtures.

    Attributes
    ----------
    order, vocabulary, max_new_tokens, end, concentration : of the truth (`MarkovTruth`).
    student : order of the student, which is the best of that order for rows without end of its teacher.
    teachers : orders; the last is the largest, the others are the smaller ones.
    rows : of a teacher; each is a condition. smoothing : of its counts.
    temperatures : of a teacher; each is a condition.
    mixtures : Gaussians, mixed, on a line: `truth`, drawn anew with each seed (`MixtureWorld`); `student` and
        `teachers`, numbers of components, the teachers fitted to `rows` points, and students to `distill` points of a
        teacher, with `reg_covar` added to variances, the best of `n_init` starts; `powers` of a teacher's weights in
        the place of temperatures.
    language_model : the same of its next tokens (`Tokens`), or None.
    """

    order: int = Field(default=4, ge=1, le=5)
    vocabulary: int = Field(default=4, ge=2, le=16)
    student: int = Field(default=1, ge=0, le=5)
    teachers: Annotated[tuple[int, ...], Field(min_length=2), BeforeValidator(as_tuple)] = (0, 1, 2, 3, 4)
    rows: Annotated[tuple[int, ...], BeforeValidator(as_tuple)] = (300, 20_000)
    temperatures: Annotated[tuple[float, ...], BeforeValidator(as_tuple)] = (1.0, 0.6)
    mixtures: Mixtures = Mixtures()
    language_model: Tokens | None = None


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


@dataclass(frozen=True, slots=True)
class _Found:
    """Figures of a kind of world, and its words.

    Attributes
    ----------
    students : by figure, (W, rows, coolings, teachers). own : of the teachers, KL(truth, teacher), (W, rows, teachers).
    sizes : of teachers; the last is the largest. size : what it is. student : its size.
    where : by rows and cooling, in words.
    """

    students: dict[str, Floats]
    own: Floats
    sizes: tuple[int, ...]
    size: str
    student: int
    where: tuple[tuple[str, ...], ...]


def measure(world: World, seeds: Sequence[int]) -> Measured:
    """Measure the claim: differences in nats, exact in each world, over the worlds that did not choose."""
    checks: list[Check] = []
    notes: list[str] = []
    charts: list[Chart] = []
    model = world.language_model
    kinds: dict[str, tuple[_Found, ...]] = {
        "Chains": (_chains(world, seeds),),
        "Mixtures": (_mixtures(world.mixtures, seeds),),
    }
    if model is not None:
        kinds["Next tokens"] = _tokens(model, seeds[0])
    for kind, each in kinds.items():
        for found in each:
            more, said = _compared(found)
            checks += more
            notes += said
        charts += _charts(kind, each)
    charts = charts[:: len(FIGURES)] + charts[1 :: len(FIGURES)]  # a figure a row
    return Measured(tuple(checks), tuple(charts), tuple(notes))


def _chains(world: World, seeds: Sequence[int]) -> _Found:
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
    where = tuple(tuple(f"teachers of {n} rows at temperature {t:g}" for t in world.temperatures) for n in world.rows)
    return _Found(students, own, world.teachers, "order", world.student, where)


def _mixtures(world: Mixtures, seeds: Sequence[int]) -> _Found:
    shape = len(seeds), len(world.rows), len(world.powers), len(world.teachers)
    students = {figure: np.zeros(shape) for figure in FIGURES}
    own = np.zeros((len(seeds), len(world.rows), len(world.teachers)))
    # Looser fits end before they have settled, by more than what teachers differ by.
    fitted = partial(fitted_mixture, reg_covar=world.reg_covar, n_init=world.n_init, tol=1e-5, max_iter=1000)
    for w, seed in enumerate(seeds):
        doing(f"mixtures {seed + 1} of {len(seeds)}")
        truth = world.truth.model_copy(update={"seed": seed}).law()
        entropy = mixture_entropy(truth)

        def figures(law: Mixture, truth: Mixture = truth, entropy: float = entropy) -> dict[str, float]:
            found = mixture_figures(truth, law)
            return {**found, "kl_truth_student": -entropy - found["recall"]}

        stream = Stream(seed).child("teacher-too-good", "mixtures")
        for (i, n), (k, size) in product(enumerate(world.rows), enumerate(world.teachers)):
            drawn = truth.sample(n, seed=stream.child(str(n))).x
            teacher = fitted(drawn, size, stream.child("teacher", str(size)))
            own[w, i, k] = figures(teacher)["kl_truth_student"]
            for j, power in enumerate(world.powers):
                cold = teacher.select(Selectivity(weight_power=power))
                points = cold.sample(world.distill, seed=stream.child("distill")).x
                found = figures(fitted(points, world.student, stream.child("student")))
                for figure in FIGURES:
                    students[figure][w, i, j, k] = found[figure]
    where = tuple(
        tuple(f"mixtures, teachers of {n} points at weight power {b:g}" for b in world.powers) for n in world.rows
    )
    return _Found(students, own, world.teachers, "number of components", world.student, where)


def _tokens(world: Tokens, seed: int) -> tuple[_Found, _Found]:
    """Of all directions, and of few."""
    stream = Stream(seed).child("teacher-too-good", "tokens")
    most, first = max(world.rows), world.temperatures[0]
    wide = _TokenFigures(world, world.directions, world.rows, world.temperatures)
    narrow = _TokenFigures(world, world.narrow, (most,), (first,))
    for w, contexts in enumerate(token_worlds(world, stream.child("answers"))):
        for n in world.rows:
            rows = drawn(contexts.log_p, n, stream.child(str(w), str(n)))
            for figures in (wide, narrow):
                if n in figures.rows:
                    figures.add(w, n, contexts, rows)
    return wide.found(f"{world.directions} directions"), narrow.found(f"{world.narrow} directions")


class _TokenFigures:
    """Figures of next tokens, of laws of some directions."""

    def __init__(self, world: Tokens, directions: int, rows: Sequence[int], temperatures: Sequence[float]) -> None:
        self.world, self.directions, self.rows, self.temperatures = world, directions, rows, temperatures
        shape = world.worlds, len(rows), len(temperatures), len(world.layers)
        self.students = {figure: np.zeros(shape) for figure in FIGURES}
        self.own = np.zeros((world.worlds, len(rows), len(world.layers)))

    def add(self, w: int, n: int, contexts: Contexts, counts: Floats) -> None:
        world, i = self.world, self.rows.index(n)
        states = [leading(s, self.directions) for s in contexts.states]
        mine = states[world.layers.index(world.student)]
        for k, theirs in enumerate(states):
            teacher = fitted(theirs, counts, world.penalty)
            self.own[w, i, k] = token_figures(contexts.log_p, teacher)["kl_truth_student"]
            for j, temperature in enumerate(self.temperatures):
                said = np.exp(at_temperature(teacher, temperature)) * (world.distill / len(teacher))
                found = token_figures(contexts.log_p, fitted(mine, said, world.penalty))
                for figure in FIGURES:
                    self.students[figure][w, i, j, k] = found[figure]

    def found(self, width: str) -> _Found:
        where = tuple(
            tuple(f"next tokens, {width}, teachers of {n} rows at temperature {t:g}" for t in self.temperatures)
            for n in self.rows
        )
        return _Found(self.students, self.own, self.world.layers, "layers", self.world.student, where)


def _compared(found: _Found) -> tuple[list[Check], list[str]]:
    """The largest teacher's student against that of the best smaller one, and what each teacher's is."""
    checks: list[Check] = []
    notes: list[str] = []
    sizes, largest = ", ".join(map(str, found.sizes)), found.sizes[-1]
    for i, coolings in enumerate(found.where):
        means = ", ".join(f"{x:.3g}" for x in found.own[:, i].mean(axis=0))
        teachers = coolings[0].rpartition(" at ")[0]
        teachers = f"{teachers[0].upper()}{teachers[1:]}"
        notes.append(f"{teachers}, {found.size} {sizes}: their own KL(truth, teacher), nats: {means}.")
        for j, where in enumerate(coolings):
            for figure, words in FIGURES.items():
                values = found.students[figure][:, i, j]
                best, gap = held_out(values)
                what = f"{words}, largest teacher's ({found.size} {largest}) minus best smaller one's, nats"
                checks.append(Check(f"{words}, {where}", what, over_worlds(gap), "above"))
                means = ", ".join(f"{x:.4g}" for x in values.mean(axis=0))
                chosen = f"the best smaller teacher has {found.size} {found.sizes[best]}"
                notes.append(f"{words}, {where}: {chosen}; by {found.size}, nats: {means}.")
    return checks, notes


def _charts(kind: str, each: Sequence[_Found]) -> list[Chart]:
    """Figures minus the largest teacher's, of teachers that can say what the student can."""
    out: list[Chart] = []
    for figure, words in FIGURES.items():
        lines: list[Line] = []
        for found in each:
            kept = [k for k, size in enumerate(found.sizes) if size >= found.student]
            for i, coolings in enumerate(found.where):
                for j, where in enumerate(coolings):
                    gaps = found.students[figure][:, i, j] - found.students[figure][:, i, j, -1:]
                    label = where.replace("next tokens, ", "").replace("mixtures, ", "").replace("teachers of ", "")
                    gap = [over_worlds(gaps[:, k]) for k in kept]
                    lines.append(Line.of(label.replace(" at ", ", "), [found.sizes[k] for k in kept], gap))
        size = f"{each[0].size} of the teacher"
        out.append(Chart(f"{kind}: {words}", size, "minus the largest teacher's, nats", tuple(lines), zero=True))
    return out
