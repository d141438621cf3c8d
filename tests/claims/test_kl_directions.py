"""Gradients, descent and fitted bells of `kl-directions`, against finite differences, plain loops and a fine grid."""

from __future__ import annotations

from itertools import islice

import numpy as np
import pytest

from hydrometer.claims.measures.kl_directions import (
    DIRECTIONS,
    Direction,
    World,
    bell,
    descend,
    fit_bell,
    head_of,
    kl_gradient,
    laws_on_the_way,
    measure,
    toys,
    two_bells,
)


def _softmax(z: np.ndarray) -> np.ndarray:
    return np.exp(z) / np.exp(z).sum()


def _kl(p: np.ndarray, q: np.ndarray, direction: Direction) -> float:
    a, b = (p, q) if direction == "forward" else (q, p)
    return sum(float(x) * float(np.log(x / y)) for x, y in zip(a, b, strict=True) if x > 0)


def _slope(p: np.ndarray, z: np.ndarray, direction: Direction, h: float = 1e-5) -> np.ndarray:
    steps = h * np.eye(len(z))
    return np.array([_kl(p, _softmax(z + s), direction) - _kl(p, _softmax(z - s), direction) for s in steps]) / (2 * h)


@pytest.mark.parametrize("direction", DIRECTIONS)
def test_gradient_is_that_of_finite_differences(direction: Direction) -> None:
    rng = np.random.default_rng(1)
    p, z = rng.dirichlet(np.ones(7)), rng.normal(size=7)
    np.testing.assert_allclose(
        kl_gradient(p[None], _softmax(z)[None], direction)[0], _slope(p, z, direction), atol=1e-8
    )


def test_head_is_the_fewest_likeliest_bins() -> None:
    p = np.array([[0.1, 0.4, 0.15, 0.35], [0.6, 0.2, 0.1, 0.1]])
    assert head_of(p, 0.5).tolist() == [[False, True, False, True], [True, False, False, False]]


@pytest.mark.parametrize("direction", DIRECTIONS)
def test_descent_is_that_of_a_plain_loop(direction: Direction) -> None:
    rng = np.random.default_rng(2)
    p, start = rng.dirichlet(np.ones(6), size=2), rng.normal(size=(2, 6))
    head, tail = descend(p, start, direction, rate=0.5, steps=12, head=0.5)
    for w in range(2):
        z = start[w].copy()
        likeliest = np.argsort(-p[w])
        size = next(n for n in range(1, 7) if p[w][likeliest[:n]].sum() >= 0.5)
        for t in range(13):
            gap = np.abs(p[w] - _softmax(z))
            assert head[t, w] == pytest.approx(gap[likeliest[:size]].sum(), abs=1e-7)
            assert tail[t, w] == pytest.approx(gap[likeliest[size:]].sum(), abs=1e-7)
            z -= 0.5 * _slope(p[w], z, direction)


@pytest.mark.parametrize("direction", DIRECTIONS)
@pytest.mark.parametrize("gap", [4.0, 14.0])
def test_fitted_bell_is_the_best_of_a_grid(direction: Direction, gap: float) -> None:
    p = two_bells(30, (15 - gap / 2, 15 + gap / 2), (2.0, 2.0), 0.3)
    fitted = fit_bell(p, direction, [(15 - gap / 2, 2.0), (15 + gap / 2, 2.0), (15.0, 2.0 + gap / 2)])
    grid = [bell(30, m, s) for m in np.arange(2, 28, 0.1) for s in np.arange(0.5, 12, 0.1)]
    best = min(grid, key=lambda q: _kl(p, np.maximum(q, 1e-300), direction))
    assert _kl(p, fitted, direction) <= _kl(p, np.maximum(best, 1e-300), direction) + 1e-12
    assert np.abs(fitted - best).sum() < 0.05


def test_forward_bell_has_the_moments_of_the_teacher() -> None:
    p = two_bells(60, (24.0, 36.0), (2.0, 2.0), 0.3)
    q = fit_bell(p, "forward", [(24.0, 2.0), (36.0, 2.0), (30.0, 6.0)])
    x = np.arange(60)
    assert [q @ x, q @ x**2] == pytest.approx([p @ x, p @ x**2], rel=1e-4)


@pytest.mark.parametrize("direction", DIRECTIONS)
def test_adam_is_torchs(direction: Direction) -> None:
    torch = pytest.importorskip("torch")
    toy = toys()[0]
    p = toy.law / toy.law.sum()
    start = np.random.default_rng(0).uniform(size=len(p))
    theirs = torch.tensor(start, requires_grad=True)
    adam = torch.optim.Adam([theirs], lr=toy.rate)
    log_p = torch.tensor(np.log(p))
    for ours in islice(laws_on_the_way(p[None], start[None], direction, rate=toy.rate, adam=True), 60):
        log_q = torch.log_softmax(theirs, -1)
        np.testing.assert_allclose(ours[0], log_q.exp().detach().numpy(), rtol=1e-9)
        a, b = (log_p, log_q) if direction == "forward" else (log_q, log_p)
        adam.zero_grad()
        (a.exp() * (a - b)).mean().backward()
        adam.step()


def test_what_is_left_is_what_the_papers_notebook_prints() -> None:
    toy = toys()[2]
    rng = np.random.default_rng(0)
    p = toy.law * (1 + toy.noise * rng.uniform(size=(8, 80)))
    p /= p.sum(axis=1, keepdims=True)
    start = rng.uniform(size=p.shape)
    for direction, printed in zip(DIRECTIONS, (1.1492e-06, 5.1159e-06), strict=True):  # of FR_compare, means over bins
        *_, q = islice(laws_on_the_way(p, start, direction, rate=toy.rate, adam=True), toy.steps)
        left = np.mean([_kl(*pair, direction) for pair in zip(p, q, strict=True)]) / 80
        assert left == pytest.approx(printed, rel=0.05)


def test_equal_seeds_give_equal_figures_and_few_steps_do_not_arrive() -> None:
    world = World(bins=20, steps=30, early=5)
    one, other = (measure(world, range(3)) for _ in range(2))
    assert one.checks == other.checks
    ends = [c for c in one.checks if c.condition == "at the end"]
    assert len(ends) == 4
    assert all((c.estimate.value or 0) > world.end for c in ends)
