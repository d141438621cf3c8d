"""What is kept of a teacher's law, and what the gradient of KL(teacher, student) loses with it."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from statistics import fmean
from typing import TYPE_CHECKING, Annotated, Self, cast

import numpy as np
from pydantic import BeforeValidator, Field, model_validator
from pydantic_core import PydanticCustomError
from scipy.optimize import brentq  # pyright: ignore[reportUnknownVariableType]
from scipy.special import ndtri

from hydrometer.claims.claim_chart import Chart, Line
from hydrometer.claims.claim_verdict import Check, Measured, in_words, over_worlds
from hydrometer.claims.measures.top_k_gradients import LAWS, batch_figures, figures_of, likeliest_first
from hydrometer.claims.model_world import Along, CutModelWorld, along_answers
from hydrometer.core.array_types import Floats
from hydrometer.core.rng import Stream
from hydrometer.core.spec import Strict, as_tuple
from hydrometer.core.statistics.estimate import Estimate

if TYPE_CHECKING:
    from hydrometer.models.causal_lm.inference.whole_laws import WholeLaws

__all__ = ["World", "equal_exponent", "measure"]

DEGREE, SHARE = 1.0, 0.01  # below these a bias is called none: of the angle, and of the mass of the k ids
_SHOWN = {"top_k_renormalised": 0, "top_k_bucket": 1, "sampled": 2, "top_k": 3}
_BIASED = ("top_k_renormalised", "top_k_bucket")
_STREAM = "top-k-teachers"


class World(Strict):
    """One position: a teacher of probabilities rank^-exponent, and a student whose logits are off by normal errors.

    Attributes
    ----------
    kept : numbers k of ids. exponents : of the teachers; each pair is a condition. The first and the last are drawn.
    vocabulary : ids.
    gap : standard deviation of the student's logits about the teacher's.
    language_model : teachers beside these that are a language model, along its own answers (`CutModelWorld`), or None.
    batch : prompts whose positions make a batch of the language model's.
    """

    kept: Annotated[tuple[int, ...], BeforeValidator(as_tuple)] = (12, 50, 300)
    exponents: Annotated[tuple[float, ...], BeforeValidator(as_tuple)] = (1.0, 2.0)
    vocabulary: int = Field(default=32000, ge=2, le=1_000_000)
    gap: float = Field(default=0.5, gt=0)
    language_model: CutModelWorld | None = None
    batch: int = Field(default=8, ge=1)

    @model_validator(mode="after")
    def _two_batches(self) -> Self:
        if self.language_model is not None and self.language_model.prompts < 2 * self.batch:
            raise PydanticCustomError("batch", "an interval needs two batches: prompts are at least twice batch")
        return self


@dataclass(frozen=True, slots=True)
class _Teacher:
    """What was found of one teacher: figures over students, or over prompts.

    Attributes
    ----------
    name : of its conditions. short : in legends.
    found : by prompts of a batch (0 for one position), k, law and figure.
    ids : V. kl : of a language model's student, nats a token. missed : by k, at how many positions k ids miss `SHARE`.
    """

    name: str
    short: str
    ids: int
    found: dict[tuple[int, int, str, str], list[float]] = field(default_factory=dict)
    kl: list[float] = field(default_factory=list)
    missed: dict[int, list[float]] = field(default_factory=dict)

    def add(self, k: int, figures: Mapping[str, Mapping[str, float]], prompts: int = 0) -> None:
        for law, values in figures.items():
            for figure, value in values.items():
                self.found.setdefault((prompts, k, law, figure), []).append(value)

    def estimate(self, k: int, law: str, figure: str, prompts: int = 0) -> Estimate:
        unit = {"angle": "degrees", "overconfidence": "probability"}.get(figure, "")
        return over_worlds(self.found[prompts, k, law, figure], unit)

    def mean(self, k: int, law: str, figure: str) -> float:
        return fmean(self.found[0, k, law, figure])


def _laws(world: World, exponent: float, seed: int) -> tuple[Floats, Floats]:
    """Teacher and student of a world."""
    log_p = -exponent * np.log(np.arange(1, world.vocabulary + 1, dtype=np.float64))
    u = Stream(seed).child(_STREAM).uniforms(0, 1, world.vocabulary)[0]
    log_q = log_p + world.gap * np.asarray(ndtri(u), np.float64)
    p, q = (np.exp(x - np.logaddexp.reduce(x)) for x in (log_p, log_q))
    return p, q


def _drawn(world: World, exponent: float, seeds: Sequence[int]) -> _Teacher:
    """A teacher of falling powers, over students."""
    out = _Teacher(f"teacher rank^-{exponent:g}", f"rank^-{exponent:g}", world.vocabulary)
    for seed in seeds:
        p, q = _laws(world, exponent, seed)
        for k in world.kept:
            out.add(k, figures_of(p, q, k))
    return out


def _of_model(world: World, asked: CutModelWorld, seed: int) -> list[_Teacher]:
    """A language model, once for each student, over prompts and over batches of them."""
    layers = [f"{len(x)} layers fewer" if len(x) > 1 else "a layer fewer" for x in asked.left_out]
    out: list[_Teacher] = []
    waiting: list[Along] = []
    for along in along_answers(asked, Stream(seed).child(_STREAM, "answers")):
        waiting.append(along)
        if not out:
            ids = along.teacher.log_p.shape[1]
            out = [_Teacher(f"teacher {asked.source}, student of {x}", f"student of {x}", ids) for x in layers]
        for teacher, student in zip(out, along.students, strict=True):
            _add_answer(teacher, world.kept, along.teacher, student)
        for prompts in {1, world.batch}:
            if prompts == 1 or len(waiting) == prompts:
                _add_batch(out, world.kept, waiting[-prompts:])
        if len(waiting) == world.batch:
            waiting.clear()
    return out


def _add_answer(out: _Teacher, kept: Sequence[int], teacher: WholeLaws, student: WholeLaws) -> None:
    """Add the means over one answer's positions."""
    p, q = np.exp(teacher.log_p), np.exp(student.log_p)
    out.kl.append(float(np.where(p > 0, p * (teacher.log_p - student.log_p), 0.0).sum(1).mean()))
    for k in kept:
        order = likeliest_first(p, k)
        a, b = (np.take_along_axis(x, order, 1) for x in (p, q))
        each = [figures_of(*pair, k) for pair in zip(a, b, strict=True)]
        out.add(k, {law: {f: fmean(x[law][f] for x in each) for f in each[0][law]} for law in LAWS})
        out.missed.setdefault(k, []).append(fmean(a[:, k:].sum(1) > SHARE))


def _add_batch(out: Sequence[_Teacher], kept: Sequence[int], answers: Sequence[Along]) -> None:
    """Add what a batch of these answers' positions gives."""
    p = np.exp(np.concatenate([a.teacher.log_p for a in answers]))
    for i, teacher in enumerate(out):
        q = np.exp(np.concatenate([a.students[i].log_p for a in answers]))
        states = np.concatenate([a.students[i].states for a in answers])
        for k in kept:
            teacher.add(k, batch_figures(p, q, states, k), len(answers))


def equal_exponent(mass: float, k: int, vocabulary: int) -> float:
    """Return the exponent at which a teacher of rank^-exponent leaves this mass beyond its k likeliest ids.

    Examples
    --------
    >>> round(equal_exponent(1 - 1.5 / sum(1 / r for r in range(1, 21)), 2, 20), 9)
    1.0
    """
    log_rank = np.log(np.arange(1, vocabulary + 1, dtype=np.float64))

    def gap(exponent: float) -> float:
        p = np.exp(-exponent * log_rank)
        return float(p[k:].sum() / p.sum()) - mass

    return cast("float", brentq(gap, 0.0, 20.0, xtol=1e-9))


def measure(world: World, seeds: Sequence[int]) -> Measured:
    """Measure the claim: figures of expected gradients, each exact in its world, over students or prompts."""
    drawn = [_drawn(world, exponent, seeds) for exponent in world.exponents]
    model = world.language_model
    real = [] if model is None else _of_model(world, model, seeds[0])
    checks = [c for t in (*drawn, *real) for k in world.kept for law in _BIASED for c in _checks(t, k, law, world)]
    charts = _charts_drawn(world, (drawn[0], drawn[-1]))
    notes = [
        "The mean over draws of sampled is the dense gradient by algebra, whatever k is; its figures of the mean are 0 "
        "and 1 without measuring. What it pays is noise, in the third picture.",
        "top_k without renormalising has the direction and the optimum of top_k_renormalised; its gradient is shorter "
        "by the mass that is kept.",
        "top_k_bucket gives its ids the teacher's mass at the optimum: no overconfidence; what is in the bucket stays "
        "divided as the student divided it.",
        *(note for t in drawn for note in (_turned_note(t, world), _even_note(t, world))),
    ]
    if model is not None:
        charts += _charts_of_model(world, model, real)
        notes += [x for t in real for x in _model_notes(t, world)]
    return Measured(tuple(checks), charts, tuple(notes))


def _checks(t: _Teacher, k: int, law: str, world: World) -> list[Check]:
    condition = f"{law} of {k}, {t.name}"
    what = "angle from the dense gradient, degrees"
    out = [Check(condition, what, t.estimate(k, law, "angle"), "above", DEGREE)]
    if (world.batch, k, law, "angle") in t.found:
        angle = t.estimate(k, law, "angle", world.batch)
        out.append(Check(condition, f"the same, of a batch of {world.batch} prompts", angle, "above", DEGREE))
    if law == "top_k_renormalised":
        what = "mass of these ids at the optimum minus the teacher's"
        out.append(Check(condition, what, t.estimate(k, law, "overconfidence"), "above", SHARE))
    return out


def _charts_drawn(world: World, teachers: Sequence[_Teacher]) -> tuple[Chart, ...]:
    def lines(figure: str, laws: Sequence[str]) -> tuple[Line, ...]:
        return tuple(
            Line(
                f"{law}, {t.short}",
                world.kept,
                [t.mean(k, law, figure) for k in world.kept],
                color=_SHOWN[law],
                dashed=i > 0,
            )
            for law in laws
            for i, t in enumerate(teachers)
        )

    two = (*_BIASED, "sampled")
    return (
        Chart("Direction of the mean", "ids kept, k", "angle from dense, degrees", lines("angle", two), log_x=True),
        Chart("Size of the mean", "ids kept, k", "norm over dense", lines("ratio", LAWS), log_x=True, log_y=True),
        Chart("Error at one position", "ids kept, k", "rms error over dense norm", lines("error", two), True, True),
    )


def _charts_of_model(world: World, model: CutModelWorld, teachers: Sequence[_Teacher]) -> tuple[Chart, ...]:
    middle = world.kept[len(world.kept) // 2]
    positions = {0: 1, 1: model.positions, world.batch: world.batch * model.positions}

    def lines(laws: Sequence[str], prompts: int) -> tuple[Line, ...]:
        return tuple(
            Line.of(
                f"{law}, {t.short}",
                world.kept,
                [t.estimate(k, law, "angle", prompts) for k in world.kept],
                color=_SHOWN[law] + 4 * i,
            )
            for law in laws
            for i, t in enumerate(teachers)
        )

    errors = tuple(
        Line.of(
            f"{law}, {t.short}",
            list(positions.values()),
            [t.estimate(middle, law, "error", prompts) for prompts in positions],
            color=_SHOWN[law] + 4 * i,
        )
        for law in (*_BIASED, "sampled")
        for i, t in enumerate(teachers)
    )
    axes = "ids kept, k", "angle from dense, degrees"
    batch = f"a batch of {positions[world.batch]} positions"
    return (
        Chart("Direction at a position of the model", *axes, lines(_BIASED, 0), log_x=True),
        Chart(f"Direction of {batch}", *axes, lines(_BIASED, world.batch), log_x=True),
        Chart(f"Error of a batch, k = {middle}", "positions", "rms error over dense norm", errors, True, True),
    )


def _turned_note(t: _Teacher, world: World) -> str:
    law = _BIASED[0]
    angles, longer = (", ".join(f"{t.mean(k, law, figure):.2g}" for k in world.kept) for figure in ("angle", "ratio"))
    return (
        f"{t.name[0].upper() + t.name[1:]}: {law} turns the gradient by {angles} degrees, and makes it {longer} times "
        f"as long (k = {', '.join(map(str, world.kept))})."
    )


def _even_note(t: _Teacher, world: World) -> str:
    """Positions over which the error of draws falls to the bias of each law."""

    def even(law: str) -> str:
        squares = {
            name: [fmean(x**2 for x in t.found[0, k, name, "error"]) for k in world.kept] for name in ("sampled", law)
        }
        return ", ".join(
            f"{a / b if b else math.inf:.2g}" for a, b in zip(squares["sampled"], squares[law], strict=True)
        )

    return (
        f"{t.name[0].upper()}{t.name[1:]}: over how many such positions independent draws must be averaged until "
        f"sampled (a run's own draws are systematic, which is less noisy) is as near to dense as the bias of "
        f"{_BIASED[0]}: {even(_BIASED[0])}; of {_BIASED[1]}: {even(_BIASED[1])} "
        f"(k = {', '.join(map(str, world.kept))})."
    )


def _model_notes(t: _Teacher, world: World) -> list[str]:
    """What the checks do not say of a language model: how far its student is, its tail, and errors and norms."""
    ids = f"k = {', '.join(map(str, world.kept))}"

    def each(law: str, figure: str, prompts: int = 0) -> str:
        return f"{law} " + ", ".join(in_words(t.estimate(k, law, figure, prompts)) for k in world.kept)

    def both(prompts: int) -> str:
        errors = "; ".join(each(law, "error", prompts) for law in LAWS)
        norms = "; ".join(each(law, "ratio", prompts) for law in LAWS[:3])
        return f"{errors}. Its norm over the dense one's: {norms} ({ids})."

    beyond = [t.mean(k, "top_k", "overconfidence") for k in world.kept]
    like = [equal_exponent(m, k, t.ids) for m, k in zip(beyond, world.kept, strict=True)]
    missed = ", ".join(f"{100 * fmean(t.missed[k]):.0f} %" for k in world.kept)
    head = f"{t.name[0].upper()}{t.name[1:]}"
    return [
        f"{head}: KL(teacher, student) {in_words(over_worlds(t.kl))} nats a token. Of the teacher's mass "
        f"{', '.join(f'{m:.3g}' for m in beyond)} lies beyond its k likeliest ids, as much as in teachers of rank^-"
        f"{', '.join(f'{s:.2f}' for s in like)}; k ids miss more than {SHARE:g} at {missed} of the positions ({ids}).",
        f"{head}: error of the gradient at a position over the dense norm, mean over positions: {both(0)}",
        f"{head}: error of the gradient of a batch of {world.batch} prompts over the dense norm: {both(world.batch)}",
    ]
