"""Generations of one-token chains by enumeration of a Wright-Fisher chain; of Gaussians in closed form."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.special import digamma
from scipy.stats import binom

from hydrometer.claims.measures import self_distillation
from hydrometer.claims.measures.self_distillation import (
    Mixtures,
    World,
    chain_generations,
    gaussian_generations,
    measure,
    mixture_generations,
)
from hydrometer.claims.worlds import mixture_figures
from hydrometer.core.errors import InputError
from hydrometer.core.rng import Stream
from hydrometer.models.markov.spec import MarkovTruth
from hydrometer.models.mixture.law import Mixture
from hydrometer.models.mixture.spec import MixtureWorld


def _enumerated(n: int, real: int, p: float, smoothing: float, generations: int) -> np.ndarray:
    """Expected entropy and recall of each generation of a coin that is fitted to n throws, (generations, 2)."""
    k = np.arange(n + 1)
    q = (k + smoothing) / (n + 2 * smoothing)
    figures = np.stack([-q * np.log(q) - (1 - q) * np.log(1 - q), p * np.log(q) + (1 - p) * np.log(1 - q)], axis=1)
    mass = binom.pmf(k, n, p)
    own = n - real
    step = np.array([np.convolve(binom.pmf(np.arange(own + 1), own, x), binom.pmf(np.arange(real + 1), real, p))
                     for x in q])  # fmt: skip
    out = []
    for _ in range(generations):
        out.append(mass @ figures)
        mass = mass @ step
    return np.array(out)


@pytest.mark.parametrize("share", [0.0, 0.25])
def test_chains_are_as_enumerated(share: float) -> None:
    n, p, smoothing, generations, worlds = 20, 0.3, 0.1, 6, 600
    truth = MarkovTruth(order=0, vocabulary=2, max_new_tokens=1, end=p, seed=0).law()
    runs = [
        chain_generations(truth, n, share, generations=generations, smoothing=smoothing, stream=Stream(s).child("test"))
        for s in range(worlds)
    ]
    found = np.array([[[g["entropy"], g["recall"]] for g in run] for run in runs])
    se = found.std(axis=0, ddof=1) / worlds**0.5
    expected = _enumerated(n, round(share * n), p, smoothing, generations)
    assert (np.abs(found.mean(axis=0) - expected) < 4 * se).all()
    other = _enumerated(n, round((0.25 - share) * n), p, smoothing, generations)
    assert abs(other[-1, 0] - expected[-1, 0]) > 6 * se[-1, 0]  # another share would be told apart


@pytest.mark.parametrize("share", [0.0, 0.1, 0.5])
def test_gaussian_variance_is_a_closed_form(share: float) -> None:
    n, generations, lines = 20, 10, 40_000
    found = gaussian_generations(n, share, generations=generations, lines=lines, stream=Stream(1))
    r = round(share * n)
    a = n - r
    variance, square = (n - 1) / n, 1 / n  # expected, of the variance and of the squared mean
    for g in range(generations):
        got = found.variance[g]
        assert abs(got.mean() - variance) < 4 * got.std() / lines**0.5
        if r == 0:
            assert variance == pytest.approx(((n - 1) / n) ** (g + 1))
            expected = 0.5 * (np.log(2 * np.pi * np.e) + (g + 1) * (digamma((n - 1) / 2) + np.log(2 / n)))
            assert abs(found.entropy[g].mean() - expected) < 4 * found.entropy[g].std() / lines**0.5
        second = a / n * (variance + square) + r / n
        square = (a * variance + r) / n**2 + (a / n) ** 2 * square
        variance = second - square
    assert abs(found.mean[-1].mean()) < 4 * found.mean[-1].std() / lines**0.5


def test_gaussian_figures_are_integrals() -> None:
    found = gaussian_generations(5, 0.4, generations=3, lines=1, stream=Stream(2))
    m, v = float(found.mean[2, 0]), float(found.variance[2, 0])
    x = np.linspace(-12, 12, 40_001)
    p, log_q = np.exp(-0.5 * x**2) / np.sqrt(2 * np.pi), -0.5 * (np.log(2 * np.pi * v) + (x - m) ** 2 / v)
    assert float(found.entropy[2, 0]) == pytest.approx(-np.trapezoid(np.exp(log_q) * log_q, x), rel=1e-8)
    assert float(found.recall[2, 0]) == pytest.approx(np.trapezoid(p * log_q, x), rel=1e-8)


@pytest.mark.parametrize("share", [0.0, 0.5])
def test_mixtures_of_one_are_gaussians(share: float) -> None:
    n, generations, worlds = 20, 4, 300
    truth = Mixture([1.0], [[0.0]], [1.0], covariance_type="spherical")
    runs = [
        mixture_generations(truth, n, share, generations=generations, reg_covar=1e-12, stream=Stream(s).child("test"))
        for s in range(worlds)
    ]
    found = np.array([[[g["entropy"], g["recall"]] for g in run] for run in runs])
    lines = gaussian_generations(n, share, generations=generations, lines=40_000, stream=Stream(3))
    expected = np.stack([lines.entropy.mean(axis=1), lines.recall.mean(axis=1)], axis=1)
    se = found.std(axis=0, ddof=1) / worlds**0.5
    assert (np.abs(found.mean(axis=0) - expected) < 4.5 * se).all()
    other = gaussian_generations(n, 0.5 - share, generations=generations, lines=40_000, stream=Stream(3))
    assert abs(other.entropy[-1].mean() - expected[-1, 0]) > 4.5 * se[-1, 0]  # another share would be told apart


def test_figures_on_a_line_are_those_of_quadrature() -> None:
    truth = MixtureWorld(n_components=3, n_features=1, separation=4.0).law()
    law = Mixture([0.2, 0.5, 0.3], truth.means + 0.3, [0.001, 1.2, 0.5], covariance_type="spherical")
    found, exact = self_distillation._on_line(truth, law), mixture_figures(truth, law)
    assert found == pytest.approx({name: exact[name] for name in found}, rel=1e-5)


def test_a_small_world_repeats_and_bad_shares_are_refused() -> None:
    mixtures = Mixtures(truth=MixtureWorld(n_components=2, n_features=1), lines=2)
    sizes = {"vocabulary": 3, "max_new_tokens": 3, "rows": (20,), "shares": (0.5,), "generations": 3}
    world = World(**sizes, gaussians=10, mixtures=mixtures)
    a, b = (measure(world, range(3)) for _ in range(2))
    assert a == b
    assert len(a.checks) == 3 * 4
    with pytest.raises(InputError, match="share"):
        measure(world.model_copy(update={"shares": (1.0,)}), range(2))
