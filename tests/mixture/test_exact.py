"""Figures without Monte Carlo, against closed forms, adaptive quadrature, and Monte Carlo."""

from __future__ import annotations

import math
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy import integrate
from scipy.optimize import brentq  # pyright: ignore[reportUnknownVariableType]
from scipy.special import chdtr, chdtri, chndtr

import hydrometer as hm
from hydrometer.core.errors import InputError, LawMismatchError
from hydrometer.metrics.exact import expected_log_prob, judge_exact
from hydrometer.models.mixture.law import CovarianceType, Mixture

Floats = NDArray[np.float64]
KL = ("precision", "recall", "entropy", "entropy_truth", "kl_student_truth", "kl_truth_student")


def values(truth: Mixture, law: Mixture) -> dict[str, float]:
    found = {name: e.value for name, e in judge_exact(truth, law).items()}
    assert all(v is not None for v in found.values())
    return {name: v for name, v in found.items() if v is not None}


def gaussian(rng: np.random.Generator, d: int) -> tuple[Mixture, Floats, Floats]:
    a, m = rng.normal(size=(d, d + 1)), rng.normal(size=d)
    return Mixture([1.0], m[None], (a @ a.T)[None]), m, a @ a.T


def line(weights: list[float], means: list[float], variances: list[float]) -> Mixture:
    return Mixture(weights, np.array(means)[:, None], variances, covariance_type="spherical")


def cross_1d(p: Mixture, q: Mixture) -> float:
    """E_p log q by adaptive quadrature between all places where something happens."""
    sds = {(m, s) for law in (p, q) for m, s in zip(law.means[:, 0], np.sqrt(law.covariances), strict=True)}
    marks = sorted({m + t * s for m, s in sds for t in (-40, -12, -6, -3, -1, 0, 1, 3, 6, 12, 40)})
    low, high = (f(p.means[:, 0] + t * np.sqrt(p.covariances)) for f, t in ((np.min, -12), (np.max, 12)))
    edges = [low, *(m for m in marks if low < m < high), high]

    def f(x: float) -> float:
        at = np.array([[x]])
        return float(np.exp(p.log_prob(at)[0]) * q.log_prob(at)[0])

    return sum(integrate.quad(f, a, b, epsabs=1e-13, epsrel=1e-11, limit=200)[0] for a, b in pairwise(edges))


@pytest.mark.parametrize("d", [1, 2, 3, 7])
def test_single_gaussians_are_their_closed_forms(d: int) -> None:
    rng = np.random.default_rng(d)
    for _ in range(5):
        (p, m, s), (q, n, t) = gaussian(rng, d), gaussian(rng, d)
        found = values(p, q)
        for name, (a, c, b, e) in {"kl_truth_student": (m, s, n, t), "kl_student_truth": (n, t, m, s)}.items():
            inverse, log_dets = np.linalg.inv(e), np.linalg.slogdet(e)[1] - np.linalg.slogdet(c)[1]
            kl = 0.5 * (np.trace(inverse @ c) + (b - a) @ inverse @ (b - a) - d + log_dets)
            assert found[name] == pytest.approx(kl, rel=1e-9)
        for name, c in (("entropy", t), ("entropy_truth", s)):
            expected = 0.5 * (d * math.log(2 * math.pi * math.e) + np.linalg.slogdet(c)[1])
            assert found[name] == pytest.approx(expected, rel=1e-10)


LINES = {
    "overlapping": line([0.3, 0.7], [-1, 1.5], [1, 0.25]),
    "apart": line([0.2, 0.5, 0.3], [-20, 0, 30], [1, 0.01, 4]),
    "weightless": line([0.5, 0.0, 0.5], [0, 3, 4], [1, 1e-8, 1]),
    "a collapsed component": line([0.5, 0.5], [0, 0.0123], [1, 1e-6]),
    "one": line([1.0], [0.3], [2.0]),
}


@pytest.mark.parametrize("name", list(LINES))
@pytest.mark.parametrize("other", list(LINES))
def test_one_dimension_is_adaptive_quadrature(name: str, other: str) -> None:
    p, q = LINES[name], LINES[other]
    assert expected_log_prob(p, q)[0] == pytest.approx(cross_1d(p, q), rel=1e-8, abs=1e-8)


def test_a_narrow_component_between_nodes_is_seen_or_refused() -> None:
    """All coarse grids miss it and agree with one another; its share of the integral is 0.014 at a width of 1e-3."""
    p = line([1.0], [0.0], [1.0])
    for width in (0.3, 0.03, 3e-3, 1e-3):
        q = line([0.5, 0.5], [0.0, 0.0123], [1.0, width**2])
        assert expected_log_prob(p, q)[0] == pytest.approx(cross_1d(p, q), abs=1e-8)
    for width in (1e-5, 1e-7):
        with pytest.raises(InputError, match="too sharp") as caught:
            expected_log_prob(p, line([0.5, 0.5], [0.0, 0.0123], [1.0, width**2]))
        assert "\n" not in str(caught.value)
    plane = Mixture([1.0], [[0, 0]], [1.0], covariance_type="spherical")
    with pytest.raises(InputError, match="too sharp"):
        expected_log_prob(plane, Mixture([0.5, 0.5], [[0, 0], [0.01, 0.04]], [1.0, 1e-6], covariance_type="spherical"))
    # Out of reach it does not count, nor without weight.
    far = line([0.5, 0.5], [0.0, 100.0], [1.0, 1e-12])
    assert expected_log_prob(p, far)[0] == pytest.approx(math.log(0.5) - 0.5 * math.log(2 * math.pi) - 0.5, abs=1e-9)
    none = line([1.0, 0.0], [0.0, 0.01], [1.0, 1e-12])
    assert expected_log_prob(p, none)[0] == pytest.approx(-0.5 * math.log(2 * math.pi) - 0.5, abs=1e-9)


def plane(seed: int, k: int, kind: CovarianceType) -> Mixture:
    rng = np.random.default_rng(seed)
    a = rng.normal(size=(k, 2, 3))
    full = a @ a.swapaxes(1, 2) + 0.2 * np.eye(2)
    variances = np.diagonal(full, axis1=1, axis2=2)
    covariances = {"full": full, "tied": full[0], "diag": variances, "spherical": variances[:, 0]}[kind]
    return Mixture(rng.dirichlet(np.ones(k)), 2 * rng.normal(size=(k, 2)), covariances, covariance_type=kind)


@pytest.mark.parametrize("d", [1, 2])
def test_monte_carlo_is_within_its_error(d: int) -> None:
    p, q = (LINES["overlapping"], LINES["apart"]) if d == 1 else (plane(1, 3, "full"), plane(2, 2, "diag"))
    exact, drawn = values(p, q), hm.judge(p, q, n=40_000, seed=3)
    for name in KL:
        e = drawn[name]
        assert e.value is not None
        assert e.se is not None
        assert 0 < e.se < 0.01 * (1 + abs(exact[name]))
        assert abs(e.value - exact[name]) < 5 * e.se


@pytest.mark.parametrize("kind", ["full", "tied", "diag", "spherical"])
def test_two_dimensions_are_products_where_coordinates_are_independent(kind: CovarianceType) -> None:
    """A mixture over x times one Gaussian over y: every figure is the sum of the two."""
    w, m, v = [0.25, 0.75], np.array([-1.0, 2.0]), np.array([0.5, 0.5])
    means = np.column_stack([m, np.full(2, 0.7)])
    eye = 0.5 * np.eye(2)
    as_kind = {"full": np.stack([eye, eye]), "tied": eye, "diag": np.full((2, 2), 0.5), "spherical": v}[kind]
    p = Mixture(w, means, as_kind, covariance_type=kind)
    px, py = line(w, m.tolist(), v.tolist()), line([1.0], [0.7], [0.5])
    q = Mixture([0.5, 0.5], [[0, 0], [1, 0]], [[1.0, 2.0], [0.4, 2.0]], covariance_type="diag")
    qx, qy = line([0.5, 0.5], [0, 1], [1.0, 0.4]), line([1.0], [0.0], [2.0])
    x, y, both = values(px, qx), values(py, qy), values(p, q)
    for name in KL:
        assert both[name] == pytest.approx(x[name] + y[name], abs=1e-9)


@given(st.integers(0, 2**32 - 1), st.integers(1, 4), st.integers(1, 4))
def test_identities_hold_and_divergences_are_not_negative(seed: int, k: int, j: int) -> None:
    rng = np.random.default_rng(seed)
    p, q = (
        line(rng.dirichlet(np.ones(n)).tolist(), (3 * rng.normal(size=n)).tolist(), rng.uniform(0.1, 3, n).tolist())
        for n in (k, j)
    )
    found = values(p, q)
    assert found["precision"] == pytest.approx(-found["entropy"] - found["kl_student_truth"], abs=1e-9)
    assert found["recall"] == pytest.approx(-found["entropy_truth"] - found["kl_truth_student"], abs=1e-9)
    assert found["kl_student_truth"] >= -1e-9
    assert found["kl_truth_student"] >= -1e-9
    back = values(q, p)
    for a, b in (("precision", "recall"), ("entropy", "entropy_truth"), ("kl_student_truth", "kl_truth_student")):
        assert found[a] == pytest.approx(back[b], abs=1e-9)
    same = values(p, p)
    assert same["kl_student_truth"] == same["kl_truth_student"] == 0
    assert same["precision"] == same["recall"] == -same["entropy"]


def test_units_do_not_matter_to_divergences() -> None:
    p, q = plane(5, 3, "full"), plane(6, 2, "full")
    found = values(p, q)
    for s in (1e-6, 1e5):
        a, b = (Mixture(m.weights, m.means * s + 3 * s, m.covariances * s * s) for m in (p, q))
        scaled = values(a, b)
        assert scaled["kl_student_truth"] == pytest.approx(found["kl_student_truth"], abs=1e-8)
        assert scaled["entropy"] == pytest.approx(found["entropy"] + 2 * math.log(s), abs=1e-8)


def test_estimates_say_that_they_are_exact() -> None:
    found = judge_exact(LINES["one"], LINES["overlapping"])
    assert {*KL, "modes_covered", "effective_components", "n_components"} <= set(found)
    assert {e.method for e in found.values()} == {"exact"}
    assert {e.se for e in found.values()} == {0.0}
    assert found["precision"].unit == "nats"


def test_what_has_no_quadrature_is_refused_in_one_line() -> None:
    three = Mixture([0.5, 0.5], np.eye(3)[:2], [1.0, 1.0], covariance_type="spherical")
    for p, q in ((three, three), (three.component(0), three), (three, three.component(0))):
        with pytest.raises(InputError, match="one or two dimensions") as caught:
            judge_exact(p, q)
        assert "\n" not in str(caught.value)
    assert math.isfinite(expected_log_prob(three, three.component(0))[0])
    with pytest.raises(LawMismatchError):
        judge_exact(three.component(0), LINES["one"])


@pytest.mark.parametrize("d", [1, 2])
def test_typicality_under_a_gaussian_is_a_noncentral_chi_square(d: int) -> None:
    truth = Mixture([1.0], np.zeros((1, d)), [1.0], covariance_type="spherical")
    law = Mixture([0.7, 0.3], [[0.8] * d, [-2.0] * d], [0.25, 1.5], covariance_type="spherical")
    found = values(truth, law)
    for name, level in (("typicality_50", 0.5), ("typicality_90", 0.9)):
        square = chdtri(d, 1 - level)
        parts = zip(law.weights, law.means, law.covariances, strict=True)
        exact = sum(float(w * chndtr(square / c, d, m @ m / c)) for w, m, c in parts)
        assert found[name] == pytest.approx(exact, abs=1e-6 if d == 1 else 5e-5)


@pytest.mark.parametrize("rarest", [0.05, 0.001])
def test_typicality_where_a_threshold_cuts_one_component_and_spares_the_next(rarest: float) -> None:
    """Components far apart, so that log p* is a parabola about each; the law's lie askew and are of other widths."""
    weights, variances = np.array([1 - rarest - 0.3, 0.3, rarest]), np.array([1.0, 0.04, 4.0])
    centres = np.array([[0.0, 0.0], [60.0, 0.0], [0.0, 90.0]])
    means = centres + np.array([[0.5, 0.2], [0.1, -0.2], [1.0, 2.0]])
    law = Mixture([0.5, 0.3, 0.2], means, [0.3, 0.02, 9.0], covariance_type="spherical")
    truth = Mixture(weights, centres, variances, covariance_type="spherical")
    found = values(truth, law)

    def squares(t: float) -> Floats:
        return np.maximum(2 * (np.log(weights) - np.log(2 * math.pi * variances) - t), 0.0)

    shift = np.square(law.means - centres).sum(1) / law.covariances
    for name, level in (("typicality_50", 0.5), ("typicality_90", 0.9)):

        def excess(t: float, level: float = level) -> float:
            return float(weights @ chdtr(2, squares(t))) - level

        t: Any = brentq(excess, -30, 10, xtol=1e-12)
        exact = float(law.weights @ chndtr(squares(t) * variances / law.covariances, 2, shift))
        assert found[name] == pytest.approx(exact, abs=1e-4)
