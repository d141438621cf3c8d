"""Densities at nodes: tilts against adaptive quadrature, figures against closed forms, draws against their law."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats
from scipy.integrate import quad

from hydrometer.claims.light_component import NODES, LightRun, LightWorld, drawn, figures_of, powered, tilted
from hydrometer.core.rng import Stream

STEP = NODES[1] - NODES[0]


def bump(x: float) -> float:
    return float(np.exp(-0.5 * ((x - 12.0) / 0.7) ** 2))


@pytest.mark.parametrize("strength", [0.2, 1.0])
def test_a_tilt_is_that_of_quadrature(strength: float) -> None:
    truth = LightRun(LightWorld(), 4).law(0.01)

    def p(x: float) -> float:
        return float(np.exp(truth.log_prob(np.array([[x]]))[0] + bump(x) / strength))

    total = quad(p, -14, 22, points=[-6, -2, 2, 6, 12], limit=500)[0]
    reward = quad(lambda x: p(x) * bump(x), 8, 16, points=[12])[0] / total
    found = tilted(truth.log_prob(NODES[:, None]), strength)
    at = [1000, 4000, 6500]
    np.testing.assert_allclose(np.exp(found[at]), [p(NODES[i]) / total for i in at], rtol=1e-9)
    uniform = np.full_like(NODES, -np.log(len(NODES) * STEP))
    flat = quad(bump, 8, 16, points=[12])[0] / (len(NODES) * STEP)
    assert figures_of(uniform, found).reward == pytest.approx(reward / flat, rel=1e-7)


def test_figures_and_powers_are_those_of_gaussians() -> None:
    p, q = stats.norm(11.0, 1.2), stats.norm(10.0, 0.8)
    found = figures_of(p.logpdf(NODES), q.logpdf(NODES))
    assert found.kl_student_target == pytest.approx(np.log(1.2 / 0.8) + (0.64 + 1) / (2 * 1.44) - 0.5, rel=1e-9)
    assert found.kl_target_student == pytest.approx(np.log(0.8 / 1.2) + (1.44 + 1) / (2 * 0.64) - 0.5, rel=1e-9)
    assert found.precision == pytest.approx(-q.entropy() - found.kl_student_target, rel=1e-9)
    assert found.recall == pytest.approx(-p.entropy() - found.kl_target_student, rel=1e-9)
    near = [(x.cdf(13.4) - x.cdf(10.6)) for x in (q, p)]
    assert found.mass == pytest.approx(near[0] / near[1], abs=2 * STEP)
    np.testing.assert_allclose(powered(q.logpdf(NODES), 0.5), stats.norm(10.0, 0.8 * 0.5**0.5).logpdf(NODES), atol=1e-9)


def test_draws_have_their_law() -> None:
    p = stats.norm(3.0, 1.5)
    x = drawn(p.logpdf(NODES), 20_000, Stream(2))[:, 0]
    assert stats.kstest(x, p.cdf).pvalue > 0.01
    assert stats.kstest(x + 0.1, p.cdf).pvalue < 1e-4


def test_a_student_without_the_component_cannot_be_aligned_to_it() -> None:
    world = LightWorld()
    for name, least in (("mixture", 0.5), ("mixture, temperature 0.5", 0.5)):
        target, first, last = LightRun(world, 0).laws(world.settings()[name])
        assert figures_of(target, first).reward - figures_of(target, last).reward > least, name
        assert figures_of(target, first).recall > figures_of(target, last).recall + 0.3, name
