"""Generations of models, each fitted to rows of the one before, with and without a share of fresh real rows."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from statistics import fmean
from typing import Annotated

import numpy as np
from pydantic import BeforeValidator, Field
from scipy.special import gammaincinv, ndtri  # pyright: ignore[reportUnknownVariableType]

from hydrometer.claims.claim_chart import Chart, Line
from hydrometer.claims.claim_verdict import Check, Measured, over_worlds
from hydrometer.claims.worlds import ChainWorld, exact_figures, fitted_mixture
from hydrometer.core.array_types import Floats
from hydrometer.core.errors import InputError
from hydrometer.core.rng import Stream
from hydrometer.core.spec import Strict, as_tuple
from hydrometer.core.watching import doing
from hydrometer.models.markov.law import Markov
from hydrometer.models.markov.ngram_fit import fit_markov
from hydrometer.models.mixture.law import Mixture
from hydrometer.models.mixture.spec import MixtureWorld
from hydrometer.models.rows.sequences import Sequences

__all__ = [
    "GaussianFigures",
    "Mixtures",
    "World",
    "chain_generations",
    "gaussian_generations",
    "measure",
    "mixture_generations",
]

FIGURES = ("entropy", "recall")
_REACH, _STEP = 12.0, 0.01  # of the line, in standard deviations of the truth's components


class Mixtures(Strict):
    """A truth, and mixtures of as many components, fitted to points of it and of one another."""

    truth: MixtureWorld = MixtureWorld(n_components=4, n_features=1, separation=4.0, weight_ratio=4.0)
    reg_covar: float = Field(default=1e-3, ge=1e-3)
    lines: int = Field(default=40, ge=1)


class World(ChainWorld):
    """Truths drawn at random and n-gram chains of their order; and Gaussians, and mixtures of them, by likelihood.

    Every generation has equally many rows: real ones, drawn afresh from the truth, and else of the generation before.
    The first has real rows alone.

    Attributes
    ----------
    order, vocabulary, max_new_tokens, end, concentration : of the truth (`MarkovTruth`).
    smoothing : of counts.
    rows : of a generation; each is a condition.
    shares : of real rows from the second generation on; 0 is always measured.
    generations : the last is compared with the first.
    gaussians : lines of Gaussians a seed, of which the mean is taken.
    mixtures : `truth`, Gaussians on an axis whose means are drawn anew with each seed (`MixtureWorld`); what is added
        to the variances of a fit, `reg_covar`; and lines of generations a seed, `lines`, of which the mean is taken.
    """

    order: int = Field(default=2, ge=0, le=5)
    smoothing: float = Field(default=0.01, gt=0)
    rows: Annotated[tuple[int, ...], BeforeValidator(as_tuple)] = (200, 2000)
    shares: Annotated[tuple[float, ...], BeforeValidator(as_tuple)] = (0.0, 0.1, 0.5)
    generations: int = Field(default=10, ge=2, le=100)
    gaussians: int = Field(default=2000, ge=2)
    mixtures: Mixtures = Mixtures()


def _split(n: int, share: float) -> tuple[int, int]:
    """Return rows of the generation before, and real rows."""
    real = round(share * n)
    if not 0 <= real < n:
        raise InputError("a share of real rows is at least 0 and leaves some of the generation before", got=share)
    return n - real, real


def chain_generations(
    truth: Markov, n: int, share: float, *, generations: int, smoothing: float, stream: Stream
) -> list[dict[str, float]]:
    """Return entropy and recall of each generation of chains of the truth's order, nats a row, exact."""
    own, real = _split(n, share)

    def fit(rows: Sequences) -> Markov:
        sizes = {"vocabulary": truth.vocabulary, "max_new_tokens": truth.max_new_tokens}
        return fit_markov(rows, truth.order, smoothing=smoothing, **sizes).model

    law = fit(truth.sample(n, seed=stream.child("real", "1")))
    out = [_figures(truth, law)]
    for g in range(2, generations + 1):
        parts = [law.sample(own, seed=stream.child("own", str(g)))]
        if real:
            parts.append(truth.sample(real, seed=stream.child("real", str(g))))
        law = fit(Sequences.concatenate(parts))
        out.append(_figures(truth, law))
    return out


def _figures(truth: Markov, law: Markov) -> dict[str, float]:
    return exact_figures(truth, law, (*FIGURES, "entropy_truth"))


@dataclass(frozen=True, slots=True)
class GaussianFigures:
    """Figures of lines of Gaussians about a standard normal truth, (generations, lines); nats.

    Attributes
    ----------
    mean, variance : of each.
    entropy, recall : of each, in closed form.
    """

    mean: Floats
    variance: Floats
    entropy: Floats
    recall: Floats


def gaussian_generations(n: int, share: float, *, generations: int, lines: int, stream: Stream) -> GaussianFigures:
    """Draw lines of Gaussians, each fitted by maximum likelihood to n rows.

    Rows are not drawn: their mean and sum of squares are, a normal and a chi-squared.
    """
    own, real = _split(n, share)
    mean, variance = np.zeros(lines), np.ones(lines)
    kept: list[tuple[Floats, Floats]] = []
    for g in range(1, generations + 1):
        u = stream.child("gaussian", str(g)).uniforms(0, lines, 4)
        a, r = (n, 0) if g == 1 else (own, real)
        x = mean + np.sqrt(variance / a) * np.asarray(ndtri(u[:, 0]), np.float64)
        squares = variance * _chi_squared(u[:, 1], a - 1)
        if r:
            y = np.asarray(ndtri(u[:, 2]), np.float64) / math.sqrt(r)
            squares = squares + _chi_squared(u[:, 3], r - 1) + a * r / n * np.square(x - y)
            x = (a * x + r * y) / n
        mean, variance = x, squares / n
        kept.append((mean, variance))
    m, v = (np.stack(z) for z in zip(*kept, strict=True))
    log = np.log(2 * math.pi * v)
    return GaussianFigures(m, v, 0.5 * (log + 1), -0.5 * (log + (1 + np.square(m)) / v))


def _chi_squared(u: Floats, degrees: int) -> Floats:
    return 2 * np.asarray(gammaincinv(degrees / 2, u), np.float64) if degrees else np.zeros_like(u)


def mixture_generations(
    truth: Mixture, n: int, share: float, *, generations: int, reg_covar: float, stream: Stream
) -> list[dict[str, float]]:
    """Return entropy and recall of each generation of mixtures of the truth's components, nats a point, exact."""
    own, real = _split(n, share)
    law, out = truth, list[dict[str, float]]()
    for g in range(1, generations + 1):
        parts = [law.sample(n if g == 1 else own, seed=stream.child("real" if g == 1 else "own", str(g))).x]
        if real and g > 1:
            parts.append(truth.sample(real, seed=stream.child("real", str(g))).x)
        fit = stream.child("fit", str(g))
        law = fitted_mixture(
            np.concatenate(parts), truth.n_components, fit, reg_covar=reg_covar, tol=1e-6, max_iter=3000
        )
        out.append(_on_line(truth, law))
    return out


def _on_line(truth: Mixture, law: Mixture) -> dict[str, float]:
    """Entropy and recall by one sum over a line, which no component of a fit is narrow enough to slip through."""
    ends = truth.means.min() - _REACH, truth.means.max() + _REACH
    x = np.arange(*ends, _STEP)[:, None]
    log_p, log_q = truth.log_prob(x), law.log_prob(x)
    return {"entropy": -float(np.exp(log_q) @ log_q) * _STEP, "recall": float(np.exp(log_p) @ log_q) * _STEP}


def measure(world: World, seeds: Sequence[int]) -> Measured:
    """Measure the claim: differences in nats a row or a point, exact in each world, over worlds."""
    shares = tuple(sorted({0.0, *world.shares}))
    found: dict[tuple[str, int, float, str], list[list[float]]] = {}  # by generation, of each world
    for seed in seeds:
        doing(f"world {seed + 1} of {len(seeds)}")
        truth = world.truth(world.order, seed)
        for n in world.rows:
            for share in shares:
                stream = Stream(seed).child("self-distillation", str(n))
                chain = chain_generations(
                    truth, n, share, generations=world.generations, smoothing=world.smoothing, stream=stream
                )
                mixture = _mixtures(world, seed, n, share)
                for figure in (*FIGURES, "entropy_truth"):
                    found.setdefault(("chain", n, share, figure), []).append([x[figure] for x in chain])
                    found.setdefault(("mixture", n, share, figure), []).append([x[figure] for x in mixture])
                stream = stream.child(f"{share:g}")
                gaussian = gaussian_generations(
                    n, share, generations=world.generations, lines=world.gaussians, stream=stream
                )
                constant = np.full(world.generations, 0.5 * math.log(2 * math.pi * math.e))
                for figure, by_generation in (
                    ("entropy", gaussian.entropy.mean(axis=1)),
                    ("recall", gaussian.recall.mean(axis=1)),
                    ("entropy_truth", constant),
                ):
                    found.setdefault(("gaussian", n, share, figure), []).append(by_generation.tolist())
    got = {key: np.asarray(x, np.float64) for key, x in found.items()}  # (W, generations)
    kinds = {"chain": "chains", "gaussian": "Gaussians", "mixture": "mixtures"}
    checks = [c for kind, words in kinds.items() for n in world.rows for c in _checks(got, kind, words, n, shares)]
    return Measured(tuple(checks), _charts(got, world, shares), _notes(got, world, shares))


def _mixtures(world: World, seed: int, n: int, share: float) -> list[dict[str, float]]:
    truth = world.mixtures.truth.model_copy(update={"seed": seed}).law()
    stream = Stream(seed).child("self-distillation", "mixtures", str(n))
    generations = partial(
        mixture_generations, truth, n, share, generations=world.generations, reg_covar=world.mixtures.reg_covar
    )
    lines = [generations(stream=stream.child(str(line))) for line in range(world.mixtures.lines)]
    entropy = _on_line(truth, truth)["entropy"]
    return [
        {"entropy_truth": entropy, **{figure: fmean(x[figure] for x in each) for figure in FIGURES}}
        for each in zip(*lines, strict=True)
    ]


_Found = dict[tuple[str, int, float, str], Floats]


def _checks(got: _Found, kind: str, words: str, n: int, shares: tuple[float, ...]) -> list[Check]:
    where = f"{words} of {n} rows"
    out: list[Check] = []
    for figure in FIGURES:
        x = got[kind, n, 0.0, figure]
        what = f"{figure}, last generation minus first, no real rows, nats"
        out.append(Check(f"narrowing, {where}", what, over_worlds(x[:, -1] - x[:, 0]), "below"))
    for share in shares:
        if share == 0:
            continue
        condition = f"mending by a share of {share:g}, {where}"
        off, bare = (np.abs(_from_truth(got, kind, n, s)[:, -1]) for s in (share, 0.0))
        what = "entropy of the last generation, distance from the truth's, with real rows minus without, nats"
        out.append(Check(condition, what, over_worlds(off - bare), "below"))
        gain = got[kind, n, share, "recall"][:, -1] - got[kind, n, 0.0, "recall"][:, -1]
        what = "recall of the last generation, with real rows minus without, nats"
        out.append(Check(condition, what, over_worlds(gain), "above"))
    return out


def _from_truth(got: _Found, kind: str, n: int, share: float) -> Floats:
    return got[kind, n, share, "entropy"] - got[kind, n, share, "entropy_truth"]


def _lost(got: _Found, kind: str, n: int, share: float) -> Floats:
    """KL(truth, generation)."""
    return -got[kind, n, share, "recall"] - got[kind, n, share, "entropy_truth"]


def _charts(got: _Found, world: World, shares: tuple[float, ...]) -> tuple[Chart, ...]:
    generations = list(range(1, world.generations + 1))

    def lines(values: Callable[[int, float], Floats]) -> tuple[Line, ...]:
        return tuple(
            Line(f"{n} rows, {share:g} of them real", generations, values(n, share).tolist())
            for n in world.rows
            for share in shares
        )

    def gap(n: int, share: float) -> Floats:
        return _from_truth(got, "chain", n, share).mean(axis=0)

    def times(kind: str) -> Callable[[int, float], Floats]:
        return lambda n, share: _times(got, kind, n, share)

    times_label = "KL(truth, generation) / the first's"
    return (
        Chart("Chains: entropy", "generation", "entropy minus the truth's, nats", lines(gap), zero=True),
        Chart("Chains: recall lost", "generation", times_label, lines(times("chain"))),
        Chart("Mixtures: recall lost", "generation", times_label, lines(times("mixture"))),
    )


def _times(got: _Found, kind: str, n: int, share: float) -> Floats:
    """KL(truth, generation), mean over worlds, over that of the first generation."""
    lost = _lost(got, kind, n, share).mean(axis=0)
    return lost / lost[0]


def _notes(got: _Found, world: World, shares: tuple[float, ...]) -> tuple[str, ...]:
    out: list[str] = []
    for n in world.rows:
        by_share = "; ".join(
            f"share {s:g}: {x[:, 0].mean():.3g} and {x[:, -1].mean():.3g}"
            for s in shares
            for x in (_from_truth(got, "chain", n, s),)
        )
        out.append(f"Chains of {n} rows, entropy minus the truth's in the first and last generation, nats: {by_share}.")
    for kind, words in (("chain", "Chains"), ("gaussian", "Gaussians"), ("mixture", "Mixtures")):
        for n in world.rows:
            by_share = "; ".join(f"share {s:g}: {_times(got, kind, n, s)[-1]:.3g}" for s in shares)
            out.append(f"{words} of {n} rows, KL(truth, last generation) over the first's: {by_share}.")
    return tuple(out)
