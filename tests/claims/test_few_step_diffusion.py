"""The figures of `few-step-diffusion`, against means over drawn rows, and students fitted by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy.special import logsumexp

from hydrometer.claims.measures.few_step_diffusion import World, figures, measure
from hydrometer.core.errors import SpecError
from hydrometer.core.rng import Stream
from hydrometer.core.spec import Selectivity
from hydrometer.models.diffusion.law import Diffusion
from hydrometer.models.diffusion.spherical import Spherical

WORLD = World(components=3, many=12, few=(3,), path=(), pairs=60, pieces=2)


def drawn(truth: Spherical, law: Diffusion, n: int = 40_000) -> list[tuple[float, float]]:
    """Precision and recall as means over rows, with their standard errors; densities of the truth by hand."""

    def log_truth(x: np.ndarray) -> np.ndarray:
        v = truth.covariances
        square = np.square(x[:, None] - truth.means).sum(axis=2)
        return logsumexp(np.log(truth.weights / (2 * math.pi * v)) - square / (2 * v), axis=1)

    own, theirs = log_truth(law.sample(n, seed=1).x), law.log_prob(truth.sample(n, seed=2))
    return [(v.mean(), v.std() / math.sqrt(n)) for v in (own, theirs)]


@pytest.mark.parametrize(("steps", "temperature"), [(3, 1.0), (3, 0.5), (12, 0.5)])
def test_figures_are_means_over_rows(steps: int, temperature: float) -> None:
    truth = WORLD.truth(Stream(5))
    assert truth.weights @ truth.means == pytest.approx([0, 0], abs=1e-12)
    law = WORLD.sampler(truth, steps).select(Selectivity(temperature=temperature))
    for exact, (mean, se) in zip(figures(truth, law), drawn(truth, law), strict=True):
        assert abs(exact - mean) < 5 * se
    finer = figures(truth, law, latent=0.025, own=0.3)
    assert figures(truth, law) == pytest.approx(finer, abs=3e-3)


def test_checks_are_differences_over_worlds() -> None:
    by_hand = []
    for seed in range(2):
        stream = Stream(seed).child("few-step-diffusion")
        truth = WORLD.truth(stream)
        few, many = WORLD.sampler(truth, 3), WORLD.sampler(truth, 12)
        cold = Selectivity(temperature=0.5)
        student = WORLD.student(truth, many, Selectivity(temperature=1), stream)
        of_cold = WORLD.student(truth, many, cold, stream)
        f, m, r = (np.array(figures(truth, law)) for law in (few, many, student))
        guided = (np.array(figures(truth, law)) for law in (few.select(cold), many.select(cold), of_cold))
        by_hand.append(np.concatenate([f - m, r - f, *(g - x for g, x in zip(guided, (f, m, r), strict=True))]))
    found = measure(WORLD, range(2))
    assert [c.estimate.value for c in found.checks] == pytest.approx(np.mean(by_hand, axis=0), abs=1e-9)
    assert [c.says for c in found.checks] == ["below"] * 2 + ["above"] * 2 + ["above", "below"] * 3
    assert [c.figure.split(",")[0] for c in found.checks] == ["precision", "recall"] * 5
    assert np.abs(by_hand).min() > 1e-3  # no figure is too small to tell


def test_few_steps_that_are_many_are_refused() -> None:
    with pytest.raises(SpecError, match="fewer than many"):
        measure(World(few=(32,), many=32), range(2))
