"""Both directions of KL: descent on a flexible student's logits, and the optimum of an inflexible one."""

# scipy leaves the type of what it finds open.
# pyright: reportUnknownMemberType=false, reportUnknownArgumentType=false
# pyright: reportUnknownLambdaType=false, reportUnknownVariableType=false

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Literal, get_args

import numpy as np
from numpy.typing import NDArray
from pydantic import Field
from scipy.optimize import minimize

from hydrometer.claims.claim_chart import Chart, Line
from hydrometer.claims.claim_verdict import Check, Measured, over_worlds
from hydrometer.core.array_types import Floats
from hydrometer.core.rng import Stream
from hydrometer.core.spec import Strict

__all__ = [
    "World",
    "bell",
    "descend",
    "fit_bell",
    "head_of",
    "kl_gradient",
    "laws_on_the_way",
    "measure",
    "toys",
    "two_bells",
]

Direction = Literal["forward", "reverse"]
DIRECTIONS: tuple[Direction, ...] = get_args(Direction)
TEACHERS, STARTS = ("teacher of two bells", "Dirichlet teacher"), ("uniform", "random")
_EARLY: tuple[tuple[int, str, Literal["above", "below"]], ...] = ((0, "head", "below"), (1, "tail", "above"))
_INFLEXIBLE: tuple[tuple[Direction, Literal["above", "below"], float], ...] = (
    ("reverse", "below", 0.1),
    ("forward", "above", 0.5),
)
NARROWEST = 0.3  # bins; of a bell that is fitted


class World(Strict):
    """Teachers over bins, drawn at random; a softmax student with a logit a bin, and one of two parameters.

    Attributes
    ----------
    bins : outcomes.
    rate, steps : of gradient descent on the student's logits.
    early : the step at which the directions are compared.
    head : mass of the fewest likeliest bins that are the head. The paper's own toys have their own bins and steps.
    apart, near : distances of the modes that the inflexible student meets, in standard deviations of each.
    end : total variation below which a student has arrived.
    """

    bins: int = Field(default=50, ge=8, le=1000)
    rate: float = Field(default=0.5, gt=0, le=1)
    steps: int = Field(default=20_000, ge=10)
    early: int = Field(default=20, ge=1)
    head: float = Field(default=0.5, gt=0, lt=1)
    apart: float = Field(default=6.0, gt=0)
    near: float = Field(default=2.0, gt=0)
    end: float = Field(default=0.01, gt=0, lt=1)


def bell(bins: int, mean: float, sd: float) -> Floats:
    """Return a law over bins proportional to a Gaussian density at their numbers."""
    logits = -0.5 * ((np.arange(bins) - mean) / sd) ** 2
    law = np.exp(logits - logits.max())
    return law / law.sum()


def two_bells(bins: int, means: tuple[float, float], sds: tuple[float, float], lighter: float) -> Floats:
    """Return a mixture of two bells; the second has the weight `lighter`."""
    return (1 - lighter) * bell(bins, means[0], sds[0]) + lighter * bell(bins, means[1], sds[1])


def head_of(p: Floats, mass: float) -> NDArray[np.bool_]:
    """Return, for each row of laws, which bins are the fewest likeliest ones that hold this mass."""
    order = np.argsort(-p, axis=-1, kind="stable")
    sorted_p = np.take_along_axis(p, order, -1)
    inside = np.cumsum(sorted_p, -1) - sorted_p < mass
    head = np.zeros(p.shape, np.bool_)
    np.put_along_axis(head, order, inside, -1)
    return head


def kl_gradient(p: Floats, q: Floats, direction: Direction) -> Floats:
    """Return the gradient of KL(p, q), forward, or KL(q, p), reverse, in the logits of q, for each row of laws."""
    if direction == "forward":
        return q - p
    ratio = np.log(q) - np.log(p)
    return q * (ratio - (q * ratio).sum(-1, keepdims=True))


def _softmax(z: Floats) -> Floats:
    e = np.exp(z - z.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


def laws_on_the_way(
    p: Floats, logits: Floats, direction: Direction, *, rate: float, adam: bool = False
) -> Iterator[Floats]:
    """Yield the students' laws (W, bins), from the start on, as one direction of KL is descended.

    Parameters
    ----------
    p, logits : (W, bins) teachers, and the students' logits at the start.
    adam : descend the mean over bins by Adam (Kingma and Ba 2015, its defaults) instead of KL by plain gradients.
    """
    z = logits.copy()
    mean, square = np.zeros_like(z), np.zeros_like(z)
    t = 0
    while True:
        q = _softmax(z)
        yield q
        g, t = kl_gradient(p, np.maximum(q, 1e-300), direction), t + 1
        if adam:
            g = g / p.shape[1]
            mean, square = 0.9 * mean + 0.1 * g, 0.999 * square + 0.001 * g * g
            g = mean / (1 - 0.9**t) / (np.sqrt(square / (1 - 0.999**t)) + 1e-8)
        z -= rate * g


def descend(
    p: Floats, logits: Floats, direction: Direction, *, rate: float, steps: int, head: float
) -> tuple[Floats, Floats]:
    """Descend one direction of KL, and return the errors along the way.

    Parameters
    ----------
    p, logits : (W, bins) teachers, and the students' logits at the start.

    Returns
    -------
    head, tail : (steps + 1, W) sum of abs(p - q) over the head of p, and over the rest.
    """
    inside = head_of(p, head)
    found = np.empty((2, steps + 1, len(p)))
    for t, q in enumerate(islice(laws_on_the_way(p, logits, direction, rate=rate), steps + 1)):
        error = np.abs(p - q)
        found[0, t] = (error * inside).sum(-1)
        found[1, t] = error.sum(-1) - found[0, t]
    return found[0], found[1]


@dataclass(frozen=True, slots=True)
class Toy:
    """A toy of the paper, as its notebooks have it: a student's logits, from uniform ones in (0, 1), by Adam.

    Attributes
    ----------
    teacher : in words.
    law : (bins,) not normalised. noise : each bin is multiplied by up to 1 + noise, drawn anew.
    rate, steps : of Adam.
    early, far : the step at which it shows the tail, and the first bin that it then shows; None where it does not.
    """

    teacher: str
    law: Floats
    noise: float
    rate: float
    steps: int
    early: int | None = None
    far: int | None = None


def toys() -> tuple[Toy, ...]:
    """Return the toys of github.com/wutaiqiang/LLM_KD_AKL, notebooks FR_KL (50 bins) and FR_compare (80 bins)."""
    x, long = np.arange(0.0, 100.0, 2.0), np.arange(0.0, 100.0, 1.25)

    def normal(at: Floats, mean: float, sd: float) -> Floats:
        return np.exp(-0.5 * ((at - mean) / sd) ** 2)

    return (
        Toy("two bells of 50 bins", 0.3 * normal(x, 25, 10) + 0.5 * normal(x, 75, 10), 0.0, 0.1, 200),
        Toy("bell of 50 bins", normal(x, 50, 15), 0.0, 0.1, 200),
        Toy("long tail of 80 bins", normal(long, 0, 16), 0.01, 0.2, 800, 10, 47),
    )


def _toy(toy: Toy, world: World, seeds: Sequence[int]) -> tuple[list[Check], str]:
    """Checks of one toy of the paper, and what is left at its end."""
    laws: list[Floats] = []
    logits: list[Floats] = []
    for seed in seeds:
        rng = np.random.default_rng(Stream(seed).child("kl-directions", "toy", toy.teacher).integer())
        law = toy.law * (1 + toy.noise * rng.uniform(size=len(toy.law)))
        laws.append(law / law.sum())
        logits.append(rng.uniform(size=len(toy.law)))
    p, z = np.stack(laws), np.stack(logits)
    way = {d: list(islice(laws_on_the_way(p, z, d, rate=toy.rate, adam=True), toy.steps)) for d in DIRECTIONS}
    where = f"the paper's {toy.teacher}, by Adam"
    left = np.maximum(*(np.abs(p - way[d][-1]).sum(-1) / 2 for d in DIRECTIONS))
    what = f"total variation at step {toy.steps - 1}, the greater of both"
    checks = [Check(f"at the end, {where}", what, over_worlds(left, "1"), "below", world.end)]
    if toy.early is not None:
        f, r = (np.abs(p - way[d][toy.early]) for d in DIRECTIONS)
        head, far = head_of(p, world.head), np.arange(p.shape[1]) >= (toy.far or 0)
        parts = (
            (where, "head", head, "below"),
            (where, f"bins from {toy.far} on, the paper's tail", far, "above"),
            (f"{where}, tail of the other half of the mass", "tail", ~head, "above"),
        )
        for condition, name, inside, says in parts:
            gap = over_worlds(((f - r) * inside).sum(-1), "1")
            what = f"error in the {name}, forward minus reverse"
            checks.append(Check(f"at step {toy.early}, {condition}", what, gap, says))
    ends = (p, way["forward"][-1]), (way["reverse"][-1], p)  # each its own loss
    kl = [float((a * (np.log(a) - np.log(b))).sum(-1).mean()) for a, b in ends]
    said = f"forward KL {kl[0]:.2g} and reverse KL {kl[1]:.2g} nats are left at step {toy.steps - 1}"
    return checks, f"The paper's {toy.teacher}, by Adam: {said}."


def fit_bell(p: Floats, direction: Direction, starts: Sequence[tuple[float, float]]) -> Floats:
    """Return the bell of least KL from or to p: the best of local optima from several means and standard deviations."""
    bins, log_p = len(p), np.log(p)

    def log_bell(x: Floats) -> Floats:
        logits = -0.5 * ((np.arange(bins) - x[0]) / max(np.exp(x[1]), NARROWEST)) ** 2
        top = logits.max()
        return logits - top - np.log(np.exp(logits - top).sum())

    def loss(x: Floats) -> float:
        log_q = log_bell(x)
        a, b = (log_p, log_q) if direction == "forward" else (log_q, log_p)
        return float(np.exp(a) @ (a - b))

    options = {"xatol": 1e-6, "fatol": 1e-10, "maxiter": 2000}
    fits = [minimize(loss, np.array([mean, np.log(sd)]), method="Nelder-Mead", options=options) for mean, sd in starts]
    return np.exp(log_bell(min(fits, key=lambda f: float(f.fun)).x))


def _flexible(world: World, teacher: str, start: str, seeds: Sequence[int]) -> tuple[Floats, Floats]:
    """Teachers and starting logits, (W, bins) each."""
    laws: list[Floats] = []
    logits: list[Floats] = []
    for seed in seeds:
        rng = np.random.default_rng(Stream(seed).child("kl-directions", teacher).integer())
        if teacher == "Dirichlet teacher":
            law = rng.dirichlet(np.ones(world.bins))
        else:
            left, right = rng.uniform(0.15, 0.4), rng.uniform(0.6, 0.85)
            wide = rng.uniform(0.04, 0.08, 2) * world.bins
            means = (left * world.bins, right * world.bins)
            law = two_bells(world.bins, means, (wide[0], wide[1]), rng.uniform(0.2, 0.45))
        laws.append(np.maximum(law, 1e-300))
        logits.append(rng.normal(size=world.bins) if start == "random" else np.zeros(world.bins))
    return np.stack(laws), np.stack(logits)


def _inflexible(world: World, distance: float, seed: int) -> dict[Direction, float]:
    """Each direction's mass on the lighter mode's side, over the teacher's."""
    rng = np.random.default_rng(Stream(seed).child("kl-directions", "inflexible").integer())
    sd = 0.06 * world.bins
    middle = (world.bins - 1) / 2 + rng.uniform(-1, 1)
    lighter = rng.uniform(0.2, 0.45)
    means = (middle - distance * sd / 2, middle + distance * sd / 2)
    p = np.maximum(two_bells(world.bins, means, (sd, sd), lighter), 1e-300)
    side = np.arange(world.bins) > middle
    starts = [(means[0], sd), (means[1], sd), (middle, sd * (1 + distance / 2))]
    return {d: float(fit_bell(p, d, starts)[side].sum() / p[side].sum()) for d in DIRECTIONS}


def measure(world: World, seeds: Sequence[int]) -> Measured:
    """Measure the claim: errors are sums of abs(p - q) over bins, exact in each world, over worlds."""
    checks: list[Check] = []
    notes: list[str] = []
    charts: list[Chart] = []
    ticks = np.unique(np.geomspace(1, world.steps, 25).astype(int))
    for teacher in TEACHERS:
        lines: list[Line] = []
        for start in STARTS:
            p, logits = _flexible(world, teacher, start, seeds)
            found = {d: descend(p, logits, d, rate=world.rate, steps=world.steps, head=world.head) for d in DIRECTIONS}
            setting = f"{teacher} from a {start} start"
            early = min(world.early, world.steps)
            for part, name, says in _EARLY:
                gap = found["forward"][part][early] - found["reverse"][part][early]
                what = f"error in the {name}, forward minus reverse"
                checks.append(Check(f"at step {early}, {setting}", what, over_worlds(gap, "1"), says))
            shares = {d: _share_at_half(*found[d]) for d in DIRECTIONS}
            gap = shares["forward"] - shares["reverse"]
            what = f"share of the head in the error, forward minus reverse, {setting}"
            checks.append(Check("where half of the error is left", what, over_worlds(gap, "1"), "below"))
            ends = {d: (found[d][0][-1] + found[d][1][-1]) / 2 for d in DIRECTIONS}
            left = np.maximum(ends["forward"], ends["reverse"])
            what = f"total variation, the greater of both, {setting}"
            checks.append(Check("at the end", what, over_worlds(left, "1"), "below", world.end))
            arrived = " and ".join(f"{float(ends[d].mean()):.2g} ({d})" for d in DIRECTIONS)
            halves = " and ".join(f"{float(np.mean(_half(*found[d]))):.3g} ({d})" for d in DIRECTIONS)
            begin = f"{setting[0].upper() + setting[1:]}: half the error is left at step {halves}"
            notes.append(f"{begin}; total variation at the end {arrived}.")
            if start == "uniform":
                lines = [
                    Line(f"{d}, {name}", ticks.tolist(), found[d][part][ticks].mean(-1).tolist(), color=2 * k + part)
                    for k, d in enumerate(DIRECTIONS)
                    for part, name in ((0, "head"), (1, "tail"))
                ]
        title = f"{teacher[0].upper() + teacher[1:]}, uniform start"
        charts.append(Chart(title, "step", "error, sum of |p - q|", tuple(lines), log_x=True, log_y=True))
    for toy in toys():
        more, said = _toy(toy, world, seeds)
        checks += more
        notes.append(said)
    for distance in (world.apart, world.near):
        ratios = [_inflexible(world, distance, seed) for seed in seeds]
        condition = f"inflexible student, modes {distance:g} sd apart"
        for d, says, bound in _INFLEXIBLE:
            what = f"mass on the lighter mode over the teacher's, {d}"
            checks.append(Check(condition, what, over_worlds([r[d] for r in ratios], "1"), says, bound))
    notes.append("Two equally wide bells 2 sd apart or nearer make one peak, and there is no mode to choose.")
    return Measured(tuple(checks), tuple(charts), tuple(notes))


def _half(head: Floats, tail: Floats) -> NDArray[np.int64]:
    """First step of each world at which half of the starting error is left, or the last one."""
    total = head + tail
    below = total <= total[0] / 2
    return np.where(below.any(0), below.argmax(0), len(total) - 1)


def _share_at_half(head: Floats, tail: Floats) -> Floats:
    """Head's share of the error at that step."""
    at = _half(head, tail)
    worlds: NDArray[np.int64] = np.arange(head.shape[1])
    return head[at, worlds] / (head + tail)[at, worlds]
