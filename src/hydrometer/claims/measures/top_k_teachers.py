"""What is kept of a teacher's law, and what the gradient of KL(teacher, student) loses with it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import fmean
from typing import Annotated

import numpy as np
from pydantic import BeforeValidator, Field
from scipy.special import ndtri

from hydrometer.claims.claim_chart import Chart, Line
from hydrometer.claims.claim_verdict import Check, Measured, over_worlds
from hydrometer.claims.worlds import degrees_between
from hydrometer.core.array_types import Floats
from hydrometer.core.rng import Stream
from hydrometer.core.spec import Strict, as_tuple

__all__ = ["World", "figures_of", "gradients", "measure"]

LAWS = ("top_k", "top_k_renormalised", "top_k_bucket", "sampled")
DEGREE, SHARE = 1.0, 0.01  # below these a bias is called none: of the angle, and of the mass of the k ids
_SHOWN = {"top_k_renormalised": 0, "top_k_bucket": 1, "sampled": 2, "top_k": 3}


class World(Strict):
    """One position: a teacher of probabilities rank^-exponent, and a student whose logits are off by normal errors.

    Attributes
    ----------
    kept : numbers k of ids. exponents : of the teachers; each pair is a condition.
    vocabulary : ids.
    gap : standard deviation of the student's logits about the teacher's.
    """

    kept: Annotated[tuple[int, ...], BeforeValidator(as_tuple)] = (12, 50, 300)
    exponents: Annotated[tuple[float, ...], BeforeValidator(as_tuple)] = (1.0, 2.0)
    vocabulary: int = Field(default=32000, ge=2, le=1_000_000)
    gap: float = Field(default=0.5, gt=0)


def gradients(p: Floats, q: Floats, k: int) -> dict[str, Floats]:
    """Return the expected gradient in the student's logits of each teacher law, and of the dense one.

    Parameters
    ----------
    p, q : (V,) laws of teacher and student, p falling, so that the k likeliest ids are the first.
    k : of ids that are kept, or drawn; below V.
    """
    kept = np.where(np.arange(len(p)) < k, p, 0.0)
    mass, rest = float(kept.sum()), float(p[k:].sum())
    bucket = np.concatenate([p[:k], rest * q[k:] / q[k:].sum()])  # the student's own law divides what is left
    return {
        "dense": q - p,
        "top_k": mass * q - kept,
        "top_k_renormalised": q - kept / mass,
        "top_k_bucket": q - bucket,
        "sampled": q - p,
    }


def figures_of(p: Floats, q: Floats, k: int) -> dict[str, dict[str, float]]:
    """Return for each teacher law the figures of one position.

    Returns
    -------
    angle : between expected and dense gradient, degrees.
    ratio : of their norms.
    error : root of the expected square of the distance from the dense gradient, over its norm.
    overconfidence : mass that the optimum gives the k likeliest ids, less the teacher's.
    """
    found = gradients(p, q, k)
    dense = found["dense"]
    size = float(np.linalg.norm(dense))
    noise = {"sampled": (1 - float(p @ p)) / k}  # of shares of k draws
    confident = {"top_k": float(p[k:].sum()), "top_k_renormalised": float(p[k:].sum())}
    out: dict[str, dict[str, float]] = {}
    for law in LAWS:
        g = found[law]
        long = float(np.linalg.norm(g))
        error = math.sqrt(float(np.sum((g - dense) ** 2)) + noise.get(law, 0.0)) / size
        out[law] = {
            "angle": degrees_between(g, dense),
            "ratio": long / size,
            "error": error,
            "overconfidence": confident.get(law, 0.0),
        }
    return out


def _laws(world: World, exponent: float, seed: int) -> tuple[Floats, Floats]:
    """Teacher and student of a world."""
    log_p = -exponent * np.log(np.arange(1, world.vocabulary + 1, dtype=np.float64))
    u = Stream(seed).child("top-k-teachers").uniforms(0, 1, world.vocabulary)[0]
    log_q = log_p + world.gap * np.asarray(ndtri(u), np.float64)
    p, q = (np.exp(x - np.logaddexp.reduce(x)) for x in (log_p, log_q))
    return p, q


def measure(world: World, seeds: Sequence[int]) -> Measured:
    """Measure the claim: figures of expected gradients, each exact in its world, over students."""
    found: dict[tuple[float, int, str, str], list[float]] = {}
    for seed in seeds:
        for exponent in world.exponents:
            p, q = _laws(world, exponent, seed)
            for k in world.kept:
                for law, figures in figures_of(p, q, k).items():
                    for figure, value in figures.items():
                        found.setdefault((exponent, k, law, figure), []).append(value)
    checks: list[Check] = []
    for exponent in world.exponents:
        for k in world.kept:
            for law in ("top_k_renormalised", "top_k_bucket"):
                condition = f"{law} of {k}, teacher rank^-{exponent:g}"
                angle = over_worlds(found[exponent, k, law, "angle"], "degrees")
                checks.append(Check(condition, "angle from the dense gradient, degrees", angle, "above", DEGREE))
                if law == "top_k_renormalised":
                    mass = over_worlds(found[exponent, k, law, "overconfidence"], "probability")
                    what = "mass of these ids at the optimum minus the teacher's"
                    checks.append(Check(condition, what, mass, "above", SHARE))

    def mean(exponent: float, k: int, law: str, figure: str) -> float:
        return fmean(found[exponent, k, law, figure])

    def lines(figure: str, laws: Sequence[str]) -> tuple[Line, ...]:
        return tuple(
            Line(
                f"{law}, rank^-{exponent:g}",
                world.kept,
                [mean(exponent, k, law, figure) for k in world.kept],
                color=_SHOWN[law],
                dashed=i > 0,
            )
            for law in laws
            for i, exponent in enumerate(world.exponents)
        )

    two = ("top_k_renormalised", "top_k_bucket", "sampled")
    charts = (
        Chart("Direction of the mean", "ids kept, k", "angle from dense, degrees", lines("angle", two), log_x=True),
        Chart("Size of the mean", "ids kept, k", "norm over dense", lines("ratio", LAWS), log_x=True, log_y=True),
        Chart("Error at one position", "ids kept, k", "rms error over dense norm", lines("error", two), True, True),
    )
    notes = [
        "The mean over draws of sampled is the dense gradient by algebra, whatever k is; its figures of the mean are 0 "
        "and 1 without measuring. What it pays is noise, in the third picture.",
        "top_k without renormalising has the direction and the optimum of top_k_renormalised; its gradient is shorter "
        "by the mass that is kept.",
        "top_k_bucket gives its ids the teacher's mass at the optimum: no overconfidence; what is in the bucket stays "
        "divided as the student divided it.",
    ]
    for exponent in world.exponents:
        even = {law: [_even(found, exponent, k, law) for k in world.kept] for law in two[:2]}
        notes.append(
            f"Teacher rank^-{exponent:g}: over how many such positions independent draws must be averaged until "
            "sampled (a run's own draws are systematic, which is less noisy) is as near to dense "
            f"as the bias of {two[0]}: " + ", ".join(f"{n:.2g}" for n in even[two[0]])
            + f"; of {two[1]}: " + ", ".join(f"{n:.2g}" for n in even[two[1]])
            + f" (k = {', '.join(map(str, world.kept))})."
        )  # fmt: skip
    return Measured(tuple(checks), charts, tuple(notes))


def _even(found: dict[tuple[float, int, str, str], list[float]], exponent: float, k: int, law: str) -> float:
    """Positions over which the error of draws falls to the bias of a law."""
    drawn, biased = (fmean(x**2 for x in found[exponent, k, name, "error"]) for name in ("sampled", law))
    return drawn / biased
