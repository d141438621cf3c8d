"""Mixtures fitted by objectives between densities, against closed forms, quadrature with descent, and Monte Carlo."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.optimize import minimize

import hydrometer as hm
from chains import write_spec
from hydrometer.core.distillation import Objective
from hydrometer.core.errors import FitError, SpecError
from hydrometer.models.mixture.divergence_fit import KINDS, fit_divergence
from hydrometer.models.mixture.law import CovarianceType, Mixture
from hydrometer.models.objectives import Divergence, divergence_of
from hydrometer.run.graph.plan import plan_run

Floats = NDArray[np.float64]
TWO_MODES = Mixture([0.65, 0.35], [[-2.0], [2.5]], [0.5, 0.8], covariance_type="spherical")


def of(written: str) -> Divergence:
    d = divergence_of(Objective.from_json(written))
    assert isinstance(d, Divergence)
    return d


def fit(teacher: Mixture, written: str, k: int, kind: CovarianceType = "diag") -> tuple[Mixture, dict[str, float]]:
    rows = hm.fit_mixture(teacher.sample(500, seed=1).x, k, covariance_type=kind, seed=2).model
    assert isinstance(rows, Mixture)
    return fit_divergence(teacher, of(written), rows)


def formula(d: Divergence, p: Floats, q: Floats) -> Floats:
    """What is integrated, or summed, at densities p and q: the papers' formulas."""
    w = d.weight

    def kl(a: Floats, b: Floats) -> Floats:
        return a * (np.log(a) - np.log(b))

    m = w * p + (1 - w) * q
    return {
        "kl_teacher_student": lambda: kl(p, q),
        "kl_student_teacher": lambda: kl(q, p),
        "jsd": lambda: w * kl(p, m) + (1 - w) * kl(q, m),
        "jsd_scaled": lambda: (w * kl(p, m) + (1 - w) * kl(q, m)) / (w * (1 - w)),
        "skew_kl_teacher_student": lambda: kl(p, m),
        "skew_kl_student_teacher": lambda: kl(q, (1 - w) * p + w * q),
    }[d.kind]()


LINE = np.linspace(-14, 14, 2801)


def on_line(theta: Floats) -> Floats:
    """Log density on `LINE` of logits, means and logarithms of standard deviations, within bounds."""
    theta = np.clip(theta, -20.0, 20.0)
    logits, mean, log_sd = theta.reshape(3, -1)
    z = (LINE[:, None] - mean) / np.exp(log_sd)
    return np.logaddexp.reduce(
        logits - np.logaddexp.reduce(logits) - 0.5 * z**2 - log_sd - 0.5 * np.log(2 * np.pi), axis=1
    )


@pytest.mark.parametrize("k", [1, 2])
@pytest.mark.parametrize("written", [*KINDS[:-1], "jsd(weight=0.2)", "skew_kl_student_teacher(weight=0.6)"])
def test_no_descent_on_the_line_finds_a_lower_value(written: str, k: int) -> None:
    d = of(written)
    teacher = (
        TWO_MODES
        if k == 1
        else Mixture([0.5, 0.3, 0.2], [[-2], [0.5], [3]], [0.4, 1, 0.3], covariance_type="spherical")
    )
    log_p = teacher.log_prob(LINE[:, None])

    def value(theta: Floats) -> float:
        log_q = np.maximum(on_line(theta), -600.0)
        return float(formula(d, np.exp(log_p), np.exp(log_q)).sum() * (LINE[1] - LINE[0]))

    law, info = fit(teacher, written, k)
    mine = value(np.concatenate([law.log_weights, law.means[:, 0], 0.5 * np.log(law.covariances[:, 0])]))
    assert mine == pytest.approx(info["value"], abs=1e-8)
    assert info["tolerance"] < 1e-8
    rng = np.random.default_rng(0)
    starts = [np.concatenate([np.zeros(k), rng.uniform(-4, 4, k), rng.normal(size=k) / 2]) for _ in range(5)]
    starts.append(np.concatenate([law.log_weights, law.means[:, 0] + 0.2, 0.5 * np.log(law.covariances[:, 0]) + 0.1]))
    found = [minimize(value, x, method="BFGS", options={"gtol": 1e-8}) for x in starts]
    # Of a law that is narrower than the points are dense, or wider than they reach, the sum says nothing.
    others = [x.fun for x in found if (np.abs(x.x[2 * k :]) < 1.5).all()]
    assert min(others) - 1e-6 <= mine <= min(others) + 1e-8


def test_a_detached_skew_ends_where_its_gradient_vanishes() -> None:
    """By finite differences, the mixture held at the student that was found."""
    law, _ = fit(TWO_MODES, "skew_kl_student_teacher_detached(weight=0.3)", 1)
    p = np.exp(TWO_MODES.log_prob(LINE[:, None]))
    theta = np.array([0.0, law.means[0, 0], 0.5 * np.log(law.covariances[0, 0])])
    log_m = np.log(0.7 * p + 0.3 * np.exp(on_line(theta)))

    def value(moved: Floats) -> float:
        log_q = on_line(theta + moved)
        return float((np.exp(log_q) * (log_q - log_m)).sum() * (LINE[1] - LINE[0]))

    for step in 1e-4 * np.eye(3)[1:]:
        assert abs(value(step) - value(-step)) / 2e-4 < 1e-6


def gaussian(d: int) -> tuple[Mixture, Floats]:
    a = np.random.default_rng(d).normal(size=(d, d + 1))
    covariance = a @ a.T
    return Mixture([1.0], np.arange(d)[None] * 100.0, covariance[None]), covariance


@pytest.mark.parametrize("d", [1, 2, 4])
@pytest.mark.parametrize("kind", ["full", "tied", "diag", "spherical"])
def test_of_single_gaussians_both_directions_are_closed(kind: CovarianceType, d: int) -> None:
    teacher, covariance = gaussian(d)
    precision = np.linalg.inv(covariance)
    forward: dict[str, Any] = {"full": covariance[None], "tied": covariance, "diag": np.diag(covariance)[None],
                               "spherical": [np.trace(covariance) / d]}  # fmt: skip
    reverse: dict[str, Any] = {"full": covariance[None], "tied": covariance, "diag": 1 / np.diag(precision)[None],
                               "spherical": [d / np.trace(precision)]}  # fmt: skip
    for written, expected in (("kl_teacher_student", forward), ("kl_student_teacher", reverse)):
        law, _ = fit(teacher, written, 1, kind)
        np.testing.assert_allclose(law.means, teacher.means, atol=1e-5)
        np.testing.assert_allclose(law.covariances, expected[kind], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("kind", ["full", "tied", "diag", "spherical"])
def test_one_component_covers_both_modes_forwards(kind: CovarianceType) -> None:
    teacher = Mixture([0.6, 0.4], [[-3.0, 0.0], [3.0, 1.0]], [[0.5, 0.7], [0.4, 0.6]], covariance_type="diag")
    covers, seeks, between = (fit(teacher, w, 1, kind)[0] for w in ("kl_teacher_student", "kl_student_teacher", "jsd"))
    mean, covariance = teacher.moments()
    np.testing.assert_allclose(covers.means[0], mean, atol=1e-6)
    np.testing.assert_allclose(covers.moments()[1].trace(), covariance.trace(), rtol=1e-6)
    np.testing.assert_allclose(seeks.means[0], teacher.means[0], atol=1e-3)  # the heavier
    assert seeks.moments()[1].trace() < 1.3
    assert np.abs(between.means[0] - teacher.means[0]).max() < 0.3


@pytest.mark.parametrize("d", [1, 2, 3])
@pytest.mark.parametrize("written", KINDS)
def test_a_student_that_can_be_its_teacher_is(written: str, d: int) -> None:
    rng = np.random.default_rng(d)
    a = rng.normal(size=(2, d, d))
    teacher = Mixture([0.7, 0.3], 3 * rng.normal(size=(2, d)), a @ a.swapaxes(1, 2) + np.eye(d))
    law, info = fit(teacher, written, 2, "full")
    assert abs(info["value"]) < (1e-8 if d < 3 else 1e-3)  # sums over finitely many points are not bounded by 0
    assert info["tolerance"] < (1e-8 if d < 3 else 1e-2)
    x = teacher.sample(100, seed=3).x
    np.testing.assert_allclose(law.log_prob(x), teacher.log_prob(x), atol=1e-3 if d < 3 else 0.3)


def test_in_more_dimensions_the_tolerance_is_that_of_monte_carlo() -> None:
    rng = np.random.default_rng(5)
    teacher = Mixture([0.6, 0.4], 1.5 * rng.normal(size=(2, 3)), [1.0, 0.5], covariance_type="spherical")
    law, info = fit(teacher, "jsd(weight=0.3)", 1)
    n, w, total, variance = 200_000, 0.3, 0.0, 0.0
    for share, rows in ((w, teacher.sample(n, seed=7).x), (1 - w, law.sample(n, seed=8).x)):
        log_p, log_q = teacher.log_prob(rows), law.log_prob(rows)
        log_m = np.logaddexp(np.log(w) + log_p, np.log(1 - w) + log_q)
        terms = share * ((log_p if share == w else log_q) - log_m)
        total, variance = total + terms.mean(), variance + terms.var() / n
    assert abs(total - info["value"]) < 5 * np.sqrt(variance) + 5 * info["tolerance"]
    assert 0 < info["tolerance"] < 5e-3


@pytest.mark.parametrize("written", ["kl_student_teacher", "kl_teacher_student", "jsd(weight=0.3)"])
@pytest.mark.parametrize("d", [3, 5])
def test_the_tolerance_is_of_the_size_of_the_error(written: str, d: int) -> None:
    """Modes apart along one axis alone: in all others the student is the teacher, so the value is that of the line."""
    means = np.zeros((2, d))
    means[:, 0] = TWO_MODES.means[:, 0]
    teacher = Mixture(TWO_MODES.weights, means, np.ones((2, d)), covariance_type="diag")
    line = Mixture(TWO_MODES.weights, TWO_MODES.means, [[1.0], [1.0]], covariance_type="diag")
    (_, found), (_, exact) = fit(teacher, written, 1), fit(line, written, 1)
    assert exact["tolerance"] < 1e-8
    assert 0 < found["tolerance"] < 5e-3
    assert abs(found["value"] - exact["value"]) < 10 * found["tolerance"]


def test_what_is_summed_under_the_teacher_alone_may_be_far_apart() -> None:
    teacher = Mixture([0.5, 0.5], [[-10.0, 0.0], [10.0, 0.0]], [1.0, 1.0], covariance_type="spherical")
    law, _ = fit(teacher, "kl_teacher_student", 1, "full")
    mean, covariance = teacher.moments()
    np.testing.assert_allclose(law.means[0], mean, atol=1e-6)
    np.testing.assert_allclose(law.covariances[0], covariance, rtol=1e-6, atol=1e-6)


def test_densities_too_sharp_for_a_grid_are_refused() -> None:
    needle = Mixture([0.5, 0.5], [[0.0, 0.0], [1.0, 0.0]], [1.0, 1e-8], covariance_type="spherical")
    for written in ("kl_teacher_student", "jsd"):
        with pytest.raises(FitError, match="too sharp"):
            fit(needle, written, 1)
    law, info = fit(needle, "kl_student_teacher", 1)  # one mode is sharp under neither
    assert info["value"] == pytest.approx(np.log(2), abs=1e-6)
    assert law.covariances[0] == pytest.approx(1e-8, rel=1e-3)


def spec(**changes: Any) -> dict[str, Any]:
    body = {"family": "mixture", "truth": {"means": [[-1, 1], [0, 1], [1, 1]], "covariances": 0.025},
            "teacher": {"n_components": 2}, "student": {"n_components": 1}, "data": {"evaluate": 4000},
            "selectivity": [{"weight_power": 1}, {"weight_power": float("inf")}]}  # fmt: skip
    return {"name": "objectives", "seeds": 2, "chains": {"m": {**body, **changes}}}


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"loss": ["kl_student_techer"]}, "did you mean 'kl_student_teacher'"),
        ({"loss": ["total_variation"]}, "mixtures have no such objective; got 'total_variation'; they have mle, kl_"),
        ({"loss": ["policy_gradient_token"]}, "they have mle, kl_"),
        ({"loss": ["jsd(temperature=2)"]}, "leave them out"),
        ({"loss": ["jsd(mle=0.5)"]}, "leave them out"),
        ({"loss": ["jsd", "jsd"]}, "listed twice"),
        ({"loss": ["jsd"], "prefixes": ["teacher"]}, "unknown key 'prefixes'"),
        ({"loss": ["jsd"], "grid": {"teacher": [2, 3]}}, "leave loss out"),
    ],
)
def test_what_makes_no_sense_is_refused(changes: dict[str, Any], says: str, tmp_path: Path) -> None:
    with pytest.raises(SpecError, match=says) as e:
        hm.load_spec(write_spec(spec(**changes), tmp_path))
    assert "\n" not in str(e.value)


def test_a_chain_has_a_student_of_every_objective(tmp_path: Path) -> None:
    losses = ["mle", "kl_teacher_student", "kl_student_teacher", "jsd(weight=0.3)"]
    result = hm.run(write_spec(spec(loss=losses), tmp_path), out=tmp_path / "out")
    assert not result.failed_cells
    cells = {c["id"]: c["metrics"] for c in result.results["cells"]}

    def kl(way: str, name: str = "kl_student_truth") -> float:
        return cells[f"m.student.distilled-weightpower1.0{way}.seed0"][name]["value"]

    assert kl(".kl_student_teacher") < kl(".jsd-weight0.3") < kl(".kl_teacher_student")
    assert kl("") == pytest.approx(kl(".kl_teacher_student"), rel=0.1)
    assert kl("") != kl(".kl_teacher_student")


def test_the_default_has_the_keys_that_it_had(tmp_path: Path) -> None:
    plain, named, more = (
        plan_run(hm.load_spec(write_spec(spec(**c), tmp_path)))
        for c in ({}, {"loss": ["mle"]}, {"loss": ["mle", "jsd"]})
    )
    assert set(plain.nodes) == set(named.nodes) < set(more.nodes)
