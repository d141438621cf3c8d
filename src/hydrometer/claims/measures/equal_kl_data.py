"""Students of best of n, of rejection and of a colder teacher, all three laws equally far from the teacher."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product
from statistics import fmean
from typing import Annotated, Self, cast

import numpy as np
from pydantic import BeforeValidator, Field, model_validator
from pydantic_core import PydanticCustomError
from scipy.optimize import brentq  # pyright: ignore[reportUnknownVariableType]
from scipy.special import xlogy

from hydrometer.claims.claim_chart import Chart, Line
from hydrometer.claims.claim_verdict import Check, Measured, over_worlds
from hydrometer.claims.next_tokens import (
    Contexts,
    TokenWorld,
    at_temperature,
    drawn,
    fitted,
    token_figures,
    token_worlds,
)
from hydrometer.claims.worlds import ChainWorld, exact_figures
from hydrometer.core.arguments import of_type
from hydrometer.core.array_types import Floats
from hydrometer.core.errors import InputError
from hydrometer.core.rng import Stream
from hydrometer.core.spec import Accept, Selectivity, as_tuple
from hydrometer.core.watching import doing
from hydrometer.models.choosing.best_of_n import choose
from hydrometer.models.markov.law import Markov
from hydrometer.models.rows.sequences import Sequences

__all__ = ["World", "best_of_kl", "best_tokens", "colder", "colder_tokens", "kept_tokens", "measure"]

DATA = ("colder", "best of n", "rejection")
AS_DRAWN = "as drawn"
FIGURES = {"kl_student_truth": "KL(student, truth)", "kl_truth_student": "KL(truth, student)"}
LEAST = 0.01
"""Nats a row: differences below it are none that anybody would pay for."""
_STREAM = "equal-kl-data"

Candidates = Annotated[int, Field(ge=2, le=64)]
Found = dict[str, list[dict[str, float]]]
"""By way to make the data, figures of its student in each world."""


class Tokens(TokenWorld):
    """A language model's next tokens: the teacher is the model itself, or fitted; students of data made in three ways.

    A row is a context and a token, and KL is between laws of both; in the teacher's all contexts of a world weigh
    alike. Best of n: in a context, the likeliest of n tokens that the teacher draws there. Token v has probability
    F(v)^n - F(v-)^n, where F(v) is the teacher's mass of tokens that are no likelier than v, F(v-) of those that are
    less likely; equally likely tokens share it by probability. Its KL from the teacher is that of the others, too, in
    each world. Colder: the teacher at one temperature for all contexts of a world. Rejection: rows whose
    log-probability under the teacher is above a threshold, one for all contexts, and a share of the rows at it, drawn
    by lot, so that the KL is exactly equal; some contexts then have more rows than others, or none. As drawn: the
    teacher's own rows, for students of the base.

    Attributes
    ----------
    layers : of the students; each is a condition.
    best_of : n, ranked by the teacher's log-probability.
    distill : as how many rows all that the data's law says weighs beside the penalty of a student's fit.
    teacher : layers of a fitted teacher, one of `layers`. train : rows of the truth's that it is fitted to.

    The base is the model as its own teacher, the first n, and students fitted to the law itself. Then one thing is
    otherwise, the student being the first of `layers`: each further n; as many rows as `distill`, drawn from the law;
    the fitted teacher.
    """

    layers: Annotated[tuple[int, ...], Field(min_length=1), BeforeValidator(as_tuple)] = (3, 30)
    best_of: Annotated[tuple[Candidates, ...], Field(min_length=1), BeforeValidator(as_tuple)] = (4, 16)
    distill: int = Field(default=2000, ge=1)
    teacher: int = 30
    train: int = Field(default=20_000, ge=1)

    @model_validator(mode="after")
    def _teacher_is_there(self) -> Self:
        if self.teacher not in self.layers:
            raise PydanticCustomError("teacher", "the teacher's number of layers is one of layers")
        return self


class World(ChainWorld):
    """Truths drawn at random, a teacher of rows of each, students of rows drawn in three ways; n-gram chains.

    Attributes
    ----------
    order, teacher : of the truth and of its teacher.
    students : orders; each is a condition.
    best_of : candidates, ranked by the teacher's log-probability.
    vocabulary, max_new_tokens, end, concentration : of the truth (`MarkovTruth`).
    train, distill : rows. probe : rows by which the teacher's log-probabilities are known. smoothing : of counts.
    language_model : the same of its next tokens (`Tokens`), or None.
    """

    order: int = Field(default=3, ge=1, le=5)
    teacher: int = Field(default=2, ge=0, le=5)
    students: Annotated[tuple[int, ...], BeforeValidator(as_tuple)] = (1, 2)
    best_of: Candidates = 4
    train: int = Field(default=2000, ge=1)
    distill: int = Field(default=4000, ge=1)
    probe: int = Field(default=50_000, ge=1000)
    language_model: Tokens | None = None


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


def best_tokens(log_p: Floats, n: int) -> Floats:
    """Return the log law of the likeliest of n tokens of each context, (C, K), as `Tokens` says.

    Examples
    --------
    >>> np.exp(best_tokens(np.log([[0.25, 0.75]]), 2)).round(4).tolist()
    [[0.0625, 0.9375]]
    """
    out = np.empty_like(log_p)
    for row, of_row in enumerate(log_p):
        levels, level = np.unique(of_row, return_inverse=True)
        mass = np.bincount(level, np.exp(of_row), len(levels))
        up_to = np.cumsum(mass)
        with np.errstate(divide="ignore"):  # below the least is nothing
            below = n * np.log1p(-np.minimum(mass / up_to, 1.0))
        out[row] = of_row + (n * np.log(up_to) + np.log(-np.expm1(below)) - np.log(mass))[level]
    return out


def colder_tokens(log_p: Floats, kl: float) -> float:
    """Return the temperature below 1 at which these laws, (C, K), are so far from themselves, nats a token."""

    def gap(temperature: float) -> float:
        return _from(at_temperature(log_p, temperature), log_p) - kl

    return cast("float", brentq(gap, 1e-4, 1.0, xtol=1e-6))


def kept_tokens(log_p: Floats, kl: float) -> Floats:
    """Return the log law of rows that a threshold keeps, (C, K), whose KL from all rows is so large.

    As `Tokens` says; the mean of its probabilities' sums over contexts is 1, as it is of `log_p`.

    Raises
    ------
    InputError : so large a KL would leave no row but the likeliest.

    Examples
    --------
    >>> np.exp(kept_tokens(np.log([[0.2, 0.8], [0.4, 0.6]]), -math.log(0.7))).round(4).tolist()
    [[0.0, 1.1429], [0.0, 0.8571]]
    """
    levels, level = np.unique(log_p, return_inverse=True)
    level = level.reshape(log_p.shape)
    mass = np.bincount(level.ravel(), np.exp(log_p).ravel()) / len(log_p)
    from_top = np.cumsum(mass[::-1])[::-1]
    at = int(np.flatnonzero(from_top >= math.exp(-kl))[-1])
    if at == len(levels) - 1:
        raise InputError("no threshold is so far from the teacher", got=f"KL {kl:.3g}", fix="lower best_of")
    above, there = from_top[at + 1], mass[at]

    def gap(share: float) -> float:
        held = above + share * there
        return -math.log(held) + there / held * float(xlogy(share, share)) - kl

    share = cast("float", brentq(gap, 0.0, 1.0, xtol=1e-12))
    kept = np.array([0.0, share, 1.0])[np.sign(level - at) + 1]
    with np.errstate(divide="ignore"):
        return log_p + np.log(kept) - math.log(above + share * there)


def _from(log_q: Floats, log_p: Floats) -> float:
    """KL(q, p), nats, mean over contexts."""
    return float(np.sum(np.exp(log_q) * (log_q - log_p))) / len(log_p)


def measure(world: World, seeds: Sequence[int]) -> Measured:
    """Measure the claim: exact figures of students against the truth in each world, over worlds."""
    checks, chart, notes = _chains(world, seeds)
    if world.language_model is None:
        return Measured(tuple(checks), (chart,), tuple(notes))
    more, other, said = _tokens(world.language_model, seeds[0])
    return Measured((*checks, *more), (chart, other), (*notes, *said))


def _checks(found: Found, where: str) -> list[Check]:
    """What the claim says of students of one condition."""
    return [
        Check(
            f"{words}, {name}, {where}",
            f"{name} minus colder, nats",
            over_worlds([a[f] - b[f] for a, b in zip(found[name], found["colder"], strict=True)]),
            "below",
            -LEAST,
        )
        for name, (f, words) in product(DATA[1:], FIGURES.items())
    ]


def _mean(found: Found, name: str, figure: str) -> float:
    return fmean(x[figure] for x in found[name])


def _chains(world: World, seeds: Sequence[int]) -> tuple[list[Check], Chart, list[str]]:
    names = ("precision", "recall", "entropy", *FIGURES)
    found: dict[int, Found] = {order: {name: [] for name in DATA} for order in world.students}
    distance: list[float] = []
    lengths: dict[str, list[float]] = {name: [] for name in (*DATA, AS_DRAWN)}
    for seed in seeds:
        doing(f"world {seed + 1} of {len(seeds)}")
        truth = world.truth(world.order, seed)
        stream = Stream(seed).child(_STREAM)
        rows = truth.sample(world.train, seed=stream.child("train"))
        teacher = world.fitted(rows, world.teacher)
        probe = teacher.sample(world.probe, seed=stream.child("probe"))
        scores = probe.log_prob
        kl = best_of_kl(scores, world.best_of)
        distance.append(kl)
        least = float(np.quantile(scores, 1 - math.exp(-kl)))  # KL of a law given an event is -log of its probability
        best = Selectivity(best_of=world.best_of, rank_by="log_prob")
        kept = Selectivity(accept=Accept(by="log_prob", min=least))
        source = stream.child("distill")
        data = {
            "colder": teacher.select(Selectivity(temperature=colder(teacher, kl))).sample(world.distill, seed=source),
            "best of n": choose(teacher, best).sample(world.distill, seed=source),
            "rejection": choose(teacher, kept).sample(world.distill, seed=source),
        }
        for name, of_way in {**data, AS_DRAWN: probe}.items():
            lengths[name].append(float(of_type(Sequences, of_way).lengths.mean()))
        for order, name in product(world.students, DATA):
            student = world.fitted(of_type(Sequences, data[name]), order)
            found[order][name].append(exact_figures(truth, student, names))
    checks = [check for order in world.students for check in _checks(found[order], f"order {order}")]
    lines = tuple(
        Line(
            f"{name}, order {order}",
            [x["recall"] for x in found[order][name]],
            [x["precision"] for x in found[order][name]],
            connected=False,
        )
        for order, name in product(world.students, DATA)
    )
    notes = [f"KL of the data from the teacher: {fmean(distance):.3g} nats a row, over worlds, in all three ways."]
    said = ", ".join(f"{name} {fmean(each):.3g}" for name, each in lengths.items())
    notes.append(f"Mean length of the data's rows, tokens: {said}.")
    for order, name in product(world.students, DATA):
        figures = ", ".join(f"{f} {_mean(found[order], name, f):.3g}" for f in names[:3])
        notes.append(f"Student of order {order} of {name}: {figures} nats.")
    return checks, Chart("Data equally far from the teacher", "recall, nats", "precision, nats", lines), notes


@dataclass(frozen=True, slots=True)
class _Case:
    """One condition of next tokens.

    Attributes
    ----------
    where : in words. layers : of the student. n : of best of n.
    own : whether the teacher is the model itself, or fitted. whole : whether the student is fitted to the law itself.
    base : whether a student of the teacher's own rows is measured beside the others.
    """

    where: str
    layers: int
    n: int
    own: bool = True
    whole: bool = True
    base: bool = False


def _cases(world: Tokens) -> list[_Case]:
    """The conditions: base ones, one for each student, and those in which one thing is otherwise."""
    small, n = world.layers[0], world.best_of[0]
    first = f"next tokens, student of {small} layers"
    return [
        *(_Case(f"next tokens, student of {k} layers", k, n, base=True) for k in world.layers),
        *(_Case(f"{first}, n = {more}", small, more) for more in world.best_of[1:]),
        _Case(f"{first}, {world.distill} rows", small, n, whole=False),
        _Case(f"{first}, fitted teacher", small, n, own=False),
    ]


def _tokens(world: Tokens, seed: int) -> tuple[list[Check], Chart, list[str]]:
    stream = Stream(seed).child(_STREAM, "tokens")
    cases = _cases(world)
    found: list[Found] = [{name: [] for name in (*DATA, *((AS_DRAWN,) if c.base else ()))} for c in cases]
    made: dict[tuple[bool, int], list[tuple[float, ...]]] = {}
    for w, contexts in enumerate(token_worlds(world, stream.child("answers"))):
        of_world = stream.child(str(w))
        ways = _ways(world, contexts, of_world)
        for key, (_, figures) in ways.items():
            made.setdefault(key, []).append(figures)
        for case, students in zip(cases, found, strict=True):
            laws, _ = ways[case.own, case.n]
            states = contexts.states[world.layers.index(case.layers)]
            for name, each in students.items():
                data = laws[name]
                share = np.exp(data) * (world.distill / len(data))
                rows = share if case.whole else drawn(data, world.distill, of_world.child("distill"))
                each.append(token_figures(contexts.log_p, fitted(states, rows, world.penalty)))
    checks = [check for case, students in zip(cases, found, strict=True) for check in _checks(students, case.where)]
    return checks, _plane(world, found), _token_notes(cases, found, made)


def _ways(
    world: Tokens, contexts: Contexts, stream: Stream
) -> dict[tuple[bool, int], tuple[dict[str, Floats], tuple[float, ...]]]:
    """By whether the teacher is the model, and n: laws of the data; KL, temperature, share of contexts without rows."""
    states = contexts.states[world.layers.index(world.teacher)]
    taught = fitted(states, drawn(contexts.log_p, world.train, stream.child("train")), world.penalty)
    out: dict[tuple[bool, int], tuple[dict[str, Floats], tuple[float, ...]]] = {}
    for own, n in (*((True, n) for n in world.best_of), (False, world.best_of[0])):
        teacher = contexts.log_p if own else taught
        best = best_tokens(teacher, n)
        kl = _from(best, teacher)
        temperature = colder_tokens(teacher, kl)
        kept = kept_tokens(teacher, kl)
        none = float(np.mean(np.isneginf(kept).all(axis=1)))
        laws = {"colder": at_temperature(teacher, temperature), "best of n": best, "rejection": kept, AS_DRAWN: teacher}
        out[own, n] = laws, (kl, temperature, none)
    return out


def _plane(world: Tokens, found: Sequence[Found]) -> Chart:
    """Precision and recall of the base conditions: a line for each way, from the first student to the last."""
    students = found[: len(world.layers)]
    lines = tuple(
        Line(
            name,
            [_mean(s, name, "recall") for s in students],
            [_mean(s, name, "precision") for s in students],
            color=color,
        )
        for name, color in zip((*DATA, AS_DRAWN), (0, 1, 2, 6), strict=True)  # ways have the colours of order 1
    )
    layers = " to ".join(map(str, world.layers))
    return Chart(f"Next tokens, from {layers} layers", "recall, nats a token", "precision, nats a token", lines)


def _token_notes(
    cases: Sequence[_Case], found: Sequence[Found], made: dict[tuple[bool, int], list[tuple[float, ...]]]
) -> list[str]:
    notes: list[str] = []
    for (own, n), each in made.items():
        kl, temperature, none = (fmean(x) for x in zip(*each, strict=True))
        teacher = "the model itself" if own else "fitted"
        notes.append(
            f"Next tokens, best of {n}, teacher {teacher}: {kl:.3g} nats a token from the teacher, over worlds, in all "
            f"three ways; temperature {temperature:.2g}; rejection leaves {none:.2g} of the contexts without a row."
        )
    for case, students in zip(cases, found, strict=True):
        said = "; ".join(
            f"{words} " + ", ".join(f"{name} {_mean(students, name, f):.3g}" for name in students)
            for f, words in (*FIGURES.items(), ("entropy", "entropy"))
        )
        notes.append(f"{case.where[0].upper()}{case.where[1:]}, nats a token: {said}.")
    return notes
