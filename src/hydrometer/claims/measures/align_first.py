"""Align the teacher and distil, or distil and align the student: rare rows of chains, a light component of a mixture.

Chains are aligned by the exact tilt, by policy gradients and by DPO; mixtures by the exact tilt. Where a language model
is named, the same is done of its next tokens in fixed contexts, with softmax regressions on its states in the place of
trained networks.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from itertools import product
from statistics import fmean, stdev
from typing import Annotated, NamedTuple

import numpy as np
from pydantic import BeforeValidator, Field

from hydrometer.claims.aligning import ORDERS, WAYS, Figures, Order, Way, dpo, policy_gradient
from hydrometer.claims.claim_chart import Chart, Line
from hydrometer.claims.claim_verdict import Check, Measured, over_worlds
from hydrometer.claims.light_component import NODES, LightFigures, LightRun, LightWorld, figures_of
from hydrometer.claims.token_alignment import SELDOM, TokenEnds, Tokens, token_ends
from hydrometer.claims.worlds import ChainWorld, exact_figures
from hydrometer.core.array_types import Floats
from hydrometer.core.rng import Stream
from hydrometer.core.spec import Selectivity, as_tuple
from hydrometer.core.watching import doing
from hydrometer.models.markov.law import Markov

__all__ = ["Run", "Setting", "World", "measure", "rare_share", "with_rare_id"]

LEAST = 0.01
"""Nats a row, or share of the target's reward: differences below it are none that anybody would pay for."""
_Few = Annotated[tuple[int, ...], BeforeValidator(as_tuple)]
_Some = Annotated[tuple[float, ...], BeforeValidator(as_tuple)]


class Setting(NamedTuple):
    """A setting; see `World`."""

    rarity: float
    rows: int
    student: int
    strength: float
    temperature: float
    drawn: int


class World(ChainWorld):
    """Truths in which rows that begin with the last id are rare, a teacher and a student of rows.

    The reward is 1 for such a row and 0 for others, so it is their share, the mass on what is wanted; the target, the
    truth's tilt, is the truth with more of them. Of the tuples the first is the base; the others are varied alone.

    Attributes
    ----------
    order, teacher : of truth and teacher.
    rarities : share of rows of the truth that begin with the rare id. In other contexts the id's probability is
        multiplied by it.
    rows : of the teacher's law that the student is fitted to.
    students : orders.
    strengths : b of the tilt exp(reward / b).
    temperatures : at which the rows that the student is fitted to are drawn.
    drawn : rows that a policy gradient or DPO sees in all.
    batch, rate : of a policy gradient: own rows a step, each against the mean of the others, and rate / b times the
        gradient of E[r] - b KL as the step of the logits. It begins at its reference.
    sharpness : of DPO's annotator: of two rows of the reference y is preferred to z with probability
        sigmoid(sharpness (r(y) - r(z))). Ties are left out; the fit ends where a fifth of the pairs, held out, says so.
    vocabulary, max_new_tokens, end, concentration : of the truth (`MarkovTruth`).
    train : rows of the teacher. smoothing : of counts.
    light : mixtures on a line, tilted exactly. Of the truth's five components four are heavy: weights from 0.5 to 1.5,
        normalised, means -6, -2, 2 and 6, each moved by 1 at most, standard deviations from 0.5 to 1.2, all uniform.
        The light one, N(12, 0.7^2), has the rarity as its weight, and the reward is exp(-((x - 12) / 0.7)^2 / 2). The
        teacher is a fit of `train` rows from the truth's own parameters, the student, of `students` components, one of
        `rows` from k-means. At a temperature T these are drawn from the density p^(1 / T).
    language_model : the same of its next tokens (`Tokens`), or None.
    """

    order: int = Field(default=3, ge=1, le=5)
    teacher: int = Field(default=2, ge=1, le=5)
    rarities: _Some = Field(default=(0.01, 0.1, 0.001), min_length=1)
    rows: _Few = Field(default=(300, 100, 3000), min_length=1)
    students: _Few = Field(default=(1, 2), min_length=1)
    strengths: _Some = Field(default=(0.2, 1.0), min_length=1)
    temperatures: _Some = Field(default=(1.0, 0.7, 0.5), min_length=1)
    drawn: _Few = Field(default=(20_000, 2000), min_length=1)
    batch: int = Field(default=100, ge=2)
    rate: float = Field(default=2.0, gt=0)
    sharpness: float = Field(default=2.0, gt=0)
    vocabulary: int = Field(default=8, ge=3, le=32)
    train: int = Field(default=50_000, ge=1)
    smoothing: float = Field(default=0.01, gt=0)
    light: LightWorld = LightWorld()
    language_model: Tokens | None = None

    def settings(self) -> dict[str, Setting]:
        """Return the settings, the base first, by what is changed in them."""
        rarity, rows, student = self.rarities[0], self.rows[0], self.students[0]
        base = Setting(rarity, rows, student, self.strengths[0], self.temperatures[0], self.drawn[0])
        out = {"base": base}
        out |= {f"rarity {x:g}": base._replace(rarity=x) for x in self.rarities[1:]}
        out |= {f"{x:,} rows": base._replace(rows=x) for x in self.rows[1:]}
        out |= {f"student of order {x}": base._replace(student=x) for x in self.students[1:]}
        out |= {f"b {x:g}": base._replace(strength=x) for x in self.strengths[1:]}
        out |= {f"temperature {x:g}": base._replace(temperature=x) for x in self.temperatures[1:]}
        return out | {f"{x:,} drawn": base._replace(drawn=x) for x in self.drawn[1:]}


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


class Run:
    """One world: its truths, their teachers and what is made of them."""

    def __init__(self, world: World, seed: int) -> None:
        self.world = world
        self.truth = world.truth(world.order, seed)
        self.stream = Stream(seed).child("align-first")
        self.reward = np.zeros((world.max_new_tokens, world.vocabulary))
        self.reward[0, -1] = 1.0
        self._teachers: dict[tuple[object, ...], Markov] = {}

    def teacher(self, p: Setting) -> Markov:
        """Fit the teacher."""
        key = ("none", p.rarity)
        if key not in self._teachers:
            rows = with_rare_id(self.truth, p.rarity).sample(self.world.train, seed=self.stream.child("train"))
            self._teachers[key] = self.world.fitted(rows, self.world.teacher)
        return self._teachers[key]

    def aligned_teacher(self, p: Setting, way: Way) -> Markov:
        """Align the teacher."""
        key = (way, p.rarity, p.strength, p.drawn)
        if key not in self._teachers:
            self._teachers[key] = self.aligned(self.teacher(p), p, way)
        return self._teachers[key]

    def aligned(self, law: Markov, p: Setting, way: Way) -> Markov:
        """Align any chain."""
        w, stream = self.world, self.stream.child(way)
        match way:
            case "exact tilt":
                return law.tilted(self.reward, p.strength)
            case "policy gradient":
                sizes = {"rows": p.drawn, "batch": w.batch}
                return policy_gradient(law, self.reward, p.strength, **sizes, rate=w.rate, stream=stream)
            case "DPO":
                return dpo(law, self.reward, p.strength, rows=p.drawn, sharpness=w.sharpness, stream=stream)

    def distilled(self, law: Markov, p: Setting) -> tuple[Markov, int]:
        """Fit a student to rows of a law; and how many of them are rare."""
        rows = law.select(Selectivity(temperature=p.temperature)).sample(p.rows, seed=self.stream.child("distill"))
        return self.world.fitted(rows, p.student), int((rows.ids[:, 0] == self.world.vocabulary - 1).sum())

    def ends(self, p: Setting, way: Way) -> dict[Order, Figures]:
        """Go both ways."""
        target = with_rare_id(self.truth, p.rarity).tilted(self.reward, p.strength)
        first, seen_first = self.distilled(self.aligned_teacher(p, way), p)
        student, seen_last = self.distilled(self.teacher(p), p)
        last = self.aligned(student, p, way)
        return {"first": _figures(target, first, seen_first), "last": _figures(target, last, seen_last)}


def _figures(target: Markov, law: Markov, rare_rows: int) -> Figures:
    exact = exact_figures(target, law, ("precision", "recall", "kl_student_truth", "kl_truth_student"))
    return Figures(
        reward=rare_share(law) / rare_share(target),
        precision=exact["precision"],
        recall=exact["recall"],
        kl_student_target=exact["kl_student_truth"],
        kl_target_student=exact["kl_truth_student"],
        rare_rows=rare_rows,
    )


Found = dict[tuple[str, Way, Order], list[Figures]]
"""By setting, way and order: a list over worlds."""
FoundLight = dict[tuple[str, Order], list[LightFigures]]


def measure(world: World, seeds: Sequence[int]) -> Measured:
    """Measure the claim against the truth's own tilt: figures exact in each world, over worlds.

    Of chains the exact tilt is drawn and noted, not checked: it ends where policy gradients end, but for what they
    never drew.
    """
    found: Found = {}
    light: FoundLight = {}
    for seed in seeds:
        doing(f"world {seed + 1} of {len(seeds)}")
        run = Run(world, seed)
        for way, (name, setting) in product(WAYS, world.settings().items()):
            if way != "exact tilt" or setting.drawn == world.drawn[0]:  # which draws nothing
                for order, figures in run.ends(setting, way).items():
                    found.setdefault((name, way, order), []).append(figures)
        mixtures = LightRun(world.light, seed)
        for name, light_setting in world.light.settings().items():
            target, *ends = mixtures.laws(light_setting)
            for order, law in zip(ORDERS, ends, strict=True):
                light.setdefault((name, order), []).append(figures_of(target, law))
    model = world.language_model
    tokens = None if model is None else token_ends(model, seeds[0])
    checks = _both_ways(world.settings(), found)
    checks += [
        _check(figure, name, WAYS[0], light[name, "first"], light[name, "last"])
        for figure, name in product(("reward", "precision", "recall"), world.light.settings())
    ]
    charts = _charts(world, found, seeds[0])
    notes: tuple[str, ...] = ()
    if model is not None and tokens is not None:
        checks += _both_ways(model.settings(), tokens.ends)
        charts += _token_charts(model, tokens)
        found |= tokens.ends
        notes = _token_notes(model, tokens)
    return Measured(tuple(checks), charts, _notes(world, found, light) + notes)


def _both_ways(settings: Iterable[str], found: Found) -> list[Check]:
    """Both ways from samples, in every setting."""
    return [
        _check(figure, name, way, found[name, way, "first"], found[name, way, "last"])
        for figure, name, way in product(("reward", "recall"), settings, WAYS[1:])
    ]


def _check(figure: str, name: str, way: Way, first: Sequence[NamedTuple], last: Sequence[NamedTuple]) -> Check:
    unit, words = ("share", "of the target's") if figure == "reward" else ("nats", "nats")
    gap = over_worlds(_gaps(figure, first, last), unit)
    return Check(f"{figure}, {name}", f"{figure}, {way}, aligned first minus last, {words}", gap, "above", LEAST)


def _gaps(figure: str, first: Sequence[NamedTuple], last: Sequence[NamedTuple]) -> list[float]:
    return [getattr(x, figure) - getattr(y, figure) for x, y in zip(first, last, strict=True)]


def _lines(found: Found, x: Sequence[float], at: Sequence[str], figure: str) -> tuple[Line, ...]:
    """A figure at some settings, by way and order."""

    def line(way: Way, order: Order) -> Line:
        each = [over_worlds([getattr(f, figure) for f in found[name, way, order]]) for name in at]
        return replace(Line.of(f"{way}, aligned {order}", x, each, color=WAYS.index(way)), dashed=order == "last")

    ways: list[Way] = [way for way in WAYS if all((name, way, "first") in found for name in at)]
    return tuple(line(way, order) for way, order in product(ways, ORDERS))


def _charts(world: World, found: Found, seed: int) -> tuple[Chart, ...]:
    """What is earned by temperature, what is not covered by rarity, and the mixtures of one world."""
    names = {setting: name for name, setting in world.settings().items()}
    base = next(iter(names))

    def chart(title: str, field: str, values: Sequence[float], figure: str, x_label: str, y_label: str) -> Chart:
        x = sorted(values)
        at = [names[base._replace(**{field: v})] for v in x]
        return Chart(title, x_label, y_label, _lines(found, x, at, figure), log_x=field != "temperature")

    target, first, last = LightRun(world.light, seed).laws(next(iter(world.light.settings().values())))

    def curve(label: str, log_p: Floats, every: int, color: int | None = None) -> Line:
        shown = slice(1000, 7500, every)
        y = np.exp(log_p[shown]).tolist()
        return Line(label, NODES[shown].tolist(), y, dashed=label != "aligned first", color=color)

    return (
        chart(
            "Chains: what is rewarded", "temperature", world.temperatures, "reward",
            "temperature of the student's rows", "reward, of the target's",
        ),
        chart(
            "Chains: what is not covered", "rarity", world.rarities, "kl_target_student",
            "share of rare rows", "KL(target, student), nats a row",
        ),
        Chart(
            "One mixture, exact tilt", "x", "density",
            (curve("target", target, 20), curve("aligned first", first, 75, 0), curve("aligned last", last, 20, 0)),
        ),
    )  # fmt: skip


def _token_charts(world: Tokens, tokens: TokenEnds) -> tuple[Chart, ...]:
    """By rows, what is earned and what is not covered; and where the wanted lies in the contexts of one world."""
    names = {setting: name for name, setting in world.settings().items()}
    base = next(iter(names))
    x = sorted(world.rows)
    at = [names[base._replace(rows=n)] for n in x]

    def chart(title: str, figure: str, y_label: str) -> Chart:
        label = "rows that the student is fitted to"
        return Chart(title, label, y_label, _lines(tokens.ends, x, at, figure), log_x=True)

    order = np.argsort(-tokens.by_context[0], kind="stable")
    rank = np.arange(1.0, len(order) + 1).tolist()
    target, first, last = (y[order].tolist() for y in tokens.by_context)
    where = (
        Line("target", rank, target, dashed=True),
        Line("aligned first", rank, first, connected=False, color=0),
        Line("aligned last", rank, last, connected=False, color=1),
    )
    return (
        chart("Next tokens: what is rewarded", "reward", "reward, of the target's"),
        chart("Next tokens: what is not covered", "kl_target_student", "KL(target, student), nats a token"),
        Chart(
            "Contexts of one world, exact tilt",
            "context, by the target's share",
            f"share of the kind {base.kind}",
            where,
        ),
    )


def _token_notes(world: Tokens, tokens: TokenEnds) -> tuple[str, ...]:
    """Where the wanted lies before aligning: a student of few layers gives it to contexts that have none."""
    everywhere, seldom = (", ".join(f"{x:.3g}" for x in tokens.shares[:, i].mean(axis=0)) for i in range(2))
    base = next(iter(world.settings().values()))
    return (
        f"Next tokens, share of the kind {base.kind} in truth, teacher and student of {base.rows:,} rows, not aligned: "
        f"{everywhere}. Of the contexts {tokens.seldom.mean():.2g} have less than {SELDOM:g} of it in the truth; what "
        f"of it lies there is, in the same order: {seldom}.",
    )


Ends = dict[str, tuple[Sequence[Figures | LightFigures], Sequence[Figures | LightFigures]]]
"""By setting: aligned first, and last."""


def _both(ends: Ends, figure: str, over: Callable[[Iterable[float]], float] = fmean) -> str:
    """Say what a figure is for both orders, by setting."""
    return "; ".join(
        f"{name} " + " and ".join(f"{over([getattr(x, figure) for x in order]):.2g}" for order in both)
        for name, both in ends.items()
    )


def _notes(world: World, found: Found, light: FoundLight) -> tuple[str, ...]:
    """Spread, precision, distance and mass, and what came of students that saw no rare row."""
    notes: list[str] = []
    mixtures: Ends = {name: (light[name, "first"], light[name, "last"]) for name in world.light.settings()}
    for way in WAYS:
        names = dict.fromkeys(name for name, its, _ in found if its == way)
        ends: Ends = {name: (found[name, way, "first"], found[name, way, "last"]) for name in names}
        ends |= mixtures if way == "exact tilt" else {}
        label = way[0].upper() + way[1:]
        notes.append(
            f"{label}, spread of the reward over worlds, of the target's, first and last: "
            f"{_both(ends, 'reward', stdev)}."
        )
        gaps = {name: over_worlds(_gaps("precision", *both)) for name, both in ends.items()}
        said = [f"{name} {e.value:.2g} ({e.se:.2g})" for name, e in gaps.items()]
        notes.append(f"{label}, precision, first minus last, nats, with its standard error: {'; '.join(said)}.")
        notes.append(f"{label}, KL(student, target), nats, first and last: {_both(ends, 'kl_student_target')}.")
    notes.append(
        f"Mass within two widths of the light component, of the target's, first and last: {_both(mixtures, 'mass')}."
    )
    for name in dict.fromkeys(name for name, _, _ in found):
        last = found[name, "policy gradient", "last"]
        blind = [i for i, x in enumerate(last) if x.rare_rows == 0]
        if not blind:
            continue
        ends = {
            way: ([found[name, way, "first"][i] for i in blind], [found[name, way, "last"][i] for i in blind])
            for way in WAYS
            if (name, way, "last") in found
        }
        notes.append(
            f"{name[0].upper()}{name[1:]}: in {len(blind)} of {len(last)} worlds the student to align saw no rare row. "
            f"There the reward, of the target's, is, first and last: {_both(ends, 'reward')}."
        )
    return tuple(notes)
