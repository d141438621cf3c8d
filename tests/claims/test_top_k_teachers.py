"""The closed forms of top-k teachers, against finite differences, enumeration of draws, and a numerical optimum."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest
from scipy.optimize import approx_fprime, minimize

from hydrometer.claims.claim_spec import load_claim, measure_of
from hydrometer.claims.measures.top_k_gradients import LAWS, batch_figures, figures_of, gradients
from hydrometer.claims.measures.top_k_teachers import World, equal_exponent, measure
from hydrometer.core.errors import SpecError

P = np.array([0.4, 0.25, 0.15, 0.12, 0.08])
Z = np.array([0.3, 0.1, -0.4, 0.2, -0.9])
K = 2


def _q(z: np.ndarray) -> np.ndarray:
    return np.exp(z) / np.exp(z).sum()


def _loss(z: np.ndarray, law: str) -> float:
    q = _q(z)
    if law == "sampled":  # every outcome of K draws, with its probability
        return sum(
            float(np.prod(P[list(ids)]) * -np.mean(np.log(q[list(ids)]))) for ids in product(range(len(P)), repeat=K)
        )
    if law == "top_k_bucket":
        p, q = (np.append(x[:K], x[K:].sum()) for x in (P, q))
        return float(p @ np.log(p / q))
    kept = {"dense": P, "top_k": P[:K], "top_k_renormalised": P[:K] / P[:K].sum()}[law]
    return float(kept @ np.log(kept / q[: len(kept)]))


@pytest.mark.parametrize("law", ["dense", *LAWS])
def test_gradients_are_those_of_the_losses(law: str) -> None:
    steps = 1e-5 * np.eye(len(Z))
    slope = [(_loss(Z + d, law) - _loss(Z - d, law)) / 2e-5 for d in steps]
    np.testing.assert_allclose(gradients(P, _q(Z), K)[law], slope, atol=1e-9)


@pytest.mark.parametrize("law", LAWS)
def test_overconfidence_is_that_of_the_optimum(law: str) -> None:
    best = minimize(_loss, Z, args=(law,), method="BFGS", options={"gtol": 1e-7})
    gained = _q(best.x)[:K].sum() - P[:K].sum()
    assert figures_of(P, _q(Z), K)[law]["overconfidence"] == pytest.approx(gained, abs=1e-3)


def test_figures_are_those_of_every_draw() -> None:
    q = _q(Z)
    square, dense = 0.0, q - P
    for ids in product(range(len(P)), repeat=K):
        g = q - np.bincount(ids, minlength=len(P)) / K
        square += float(np.prod(P[list(ids)])) * float(np.sum((g - dense) ** 2))
    found = figures_of(P, q, K)
    assert found["sampled"]["error"] == pytest.approx(np.sqrt(square) / np.linalg.norm(dense), rel=1e-12)
    assert found["sampled"]["angle"] == 0
    slope = approx_fprime(Z, _loss, 1e-7, "top_k_bucket")
    cosine = slope @ dense / np.linalg.norm(slope) / np.linalg.norm(dense)
    assert found["top_k_bucket"]["angle"] == pytest.approx(np.degrees(np.arccos(cosine)), abs=1e-3)


def test_a_small_world_is_measured() -> None:
    world = World(kept=(2, 5), exponents=(1.0,), vocabulary=20)
    found = measure(world, range(3))
    assert len(found.checks) == 2 * (2 + 1)
    mass = next(c for c in found.checks if "mass" in c.figure)
    assert mass.estimate.value == pytest.approx(1 - 1.5 / sum(1 / r for r in range(1, 21)), rel=1e-12)


def test_a_batch_is_the_gradient_in_the_output_matrix() -> None:
    rng = np.random.default_rng(0)
    p, q = (rng.dirichlet(np.full(4, 0.5), size=2) for _ in range(2))
    h = rng.normal(size=(2, 3))
    dense = (q - p).T @ h / 2
    square = 0.0
    for drawn in product(range(4), repeat=2 * K):  # K ids at each of two positions
        shares = np.stack([np.bincount(drawn[b * K : b * K + K], minlength=4) / K for b in range(2)])
        chance = np.prod([p[b, i] for b in range(2) for i in drawn[b * K : b * K + K]])
        square += chance * np.sum(((q - shares).T @ h / 2 - dense) ** 2)
    found = batch_figures(p, q, h, K)
    assert found["sampled"]["error"] == pytest.approx(np.sqrt(square) / np.linalg.norm(dense), rel=1e-12)
    target = np.where(p >= np.sort(p, axis=1)[:, [-K]], p, 0.0)
    biased = (q - target / target.sum(1, keepdims=True)).T @ h / 2
    assert_same_figures(found["top_k_renormalised"], biased, dense)
    short = (target.sum(1, keepdims=True) * q - target).T @ h / 2
    assert_same_figures(found["top_k"], short, dense)
    assert batch_figures(p, q, h, 4)["top_k_bucket"]["error"] == 0


def assert_same_figures(found: dict[str, float], g: np.ndarray, dense: np.ndarray) -> None:
    cosine = np.sum(g * dense) / np.linalg.norm(g) / np.linalg.norm(dense)
    assert found["angle"] == pytest.approx(np.degrees(np.arccos(cosine)), rel=1e-9)
    assert found["ratio"] == pytest.approx(np.linalg.norm(g) / np.linalg.norm(dense), rel=1e-9)
    assert found["error"] == pytest.approx(np.linalg.norm(g - dense) / np.linalg.norm(dense), rel=1e-9)


def test_a_mass_is_that_of_a_power() -> None:
    p = np.arange(1, 1001) ** -1.3
    assert equal_exponent(float(p[50:].sum() / p.sum()), 50, 1000) == pytest.approx(1.3, abs=1e-8)


def test_fewer_than_two_batches_are_refused() -> None:
    with pytest.raises(SpecError, match="two batches"):
        World(language_model={"prompts": 6, "left_out": [[1]]}, batch=4)


def test_the_model_can_be_left_out() -> None:
    shipped, alone = (measure_of(load_claim("top-k-teachers", sets))[1] for sets in ([], ["world.language_model=null"]))
    assert isinstance(shipped, World)
    assert shipped.language_model is not None
    assert alone == shipped.model_copy(update={"language_model": None})
