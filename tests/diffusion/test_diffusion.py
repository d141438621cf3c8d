"""Samplers of the plane against autograd, a closed form, quadrature, finite differences and scikit-learn."""

from __future__ import annotations

import math
from dataclasses import replace
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy.special import ndtri
from scipy.stats import multivariate_normal

import hydrometer as hm
from hydrometer.core.errors import FitError, InputError
from hydrometer.core.rng import Stream
from hydrometer.models.base import FitRequest
from hydrometer.models.diffusion.convex_steps import Step
from hydrometer.models.diffusion.family import DIFFUSION
from hydrometer.models.diffusion.law import Diffusion
from hydrometer.models.diffusion.pair_regression import fit_pairs, loss_and_gradient
from hydrometer.models.diffusion.spec import DiffusionChain, DiffusionStudent
from hydrometer.models.diffusion.spherical import Spherical, ddim, noise_levels
from hydrometer.models.diffusion.spherical_em import fit_spherical
from hydrometer.models.families import parse_run_spec

TRUTH = Spherical(
    np.array([0.5, 0.3, 0.2]), np.array([[-1.5, 0.0], [1.0, 1.2], [0.8, -1.6]]), np.array([0.15, 0.3, 0.1])
)
LEVEL = {"sigma_max": 20.0, "sigma_min": 0.02, "rho": 7.0}
COLD = hm.Selectivity(temperature=0.5)


def sampler(n: int, mixture: Spherical = TRUTH, **level: float) -> Diffusion:
    return ddim(mixture, noise_levels(n, **(LEVEL | level)))


def grid(reach: float, n: int) -> tuple[np.ndarray, float]:
    """Midpoints of a square around 0, and the area of a cell."""
    axis = (np.arange(n) + 0.5) * (2 * reach / n) - reach
    return np.stack(np.meshgrid(axis, axis), axis=-1).reshape(-1, 2), (2 * reach / n) ** 2


@pytest.mark.parametrize("s", [0.05, 0.7, 20.0])
def test_the_score_and_its_jacobian_are_those_of_autograd(s: float) -> None:
    torch = pytest.importorskip("torch")
    weights, means, variances = (torch.tensor(a) for a in (TRUTH.weights, TRUTH.means, TRUTH.covariances))

    def log_density(x: Any) -> Any:
        v = variances + s * s
        return torch.logsumexp(weights.log() - (2 * math.pi * v).log() - ((x - means) ** 2).sum(1) / (2 * v), 0)

    x = Stream(1).child("x").uniforms(0, 40, 2) * 8 - 4
    (step,) = ddim(TRUTH, np.array([s])).steps  # from s to 0: the denoiser itself
    at, (xx, xy, yy, det) = step.at(x)
    for i, point in enumerate(torch.tensor(x)):
        point.requires_grad_()
        (score,) = torch.autograd.grad(log_density(point), point, create_graph=True)
        rows = [torch.autograd.grad(score[d], point, retain_graph=True)[0].numpy() for d in range(2)]
        hessian = np.eye(2) + s * s * np.stack(rows)
        assert (at[i] - x[i]) / s**2 == pytest.approx(score.detach().numpy(), abs=1e-9)
        assert [xx[i], xy[i], yy[i]] == pytest.approx([hessian[0, 0], hessian[0, 1], hessian[1, 1]], abs=1e-9)
        assert det[i] == pytest.approx(np.linalg.det(hessian), rel=1e-6)


@pytest.mark.parametrize("c", [1e-4, 1e-10, 1e-16])
def test_the_determinant_of_pieces_on_a_line_does_not_cancel(c: float) -> None:
    """Of two pieces of one curvature C has rank one, so the determinant is c (c + b tr C)."""
    step = Step(np.zeros(2), np.array([[-1.0, -0.7], [1.0, 0.9]]), np.full(2, c), 3.0)
    x = Stream(4).child("x").uniforms(0, 50, 2) - 0.5
    r = step.shares(x)[0]
    expected = c * (c + 3.0 * r[0] * r[1] * (2.0**2 + 1.6**2))
    np.testing.assert_allclose(step.at(x)[1][3], expected, rtol=1e-12)


@pytest.mark.parametrize("temperature", [1.0, 0.4])
def test_of_one_gaussian_the_law_is_a_gaussian(temperature: float) -> None:
    mean, v, levels = np.array([0.7, -0.4]), 0.3, noise_levels(5, **LEVEL)
    law = ddim(Spherical(np.ones(1), mean[None], np.array([v])), levels)
    shrunk = 1.0
    for s, t in zip(levels, [*levels[1:], 0.0], strict=True):
        shrunk *= t / s + (1 - t / s) * v / (v + s * s)
    exact = multivariate_normal(mean * (1 - shrunk), (levels[0] * shrunk) ** 2 * np.eye(2))
    x = Stream(2).child("x").uniforms(0, 50, 2) * 6 - 3
    assert law.select(hm.Selectivity(temperature=temperature)).log_prob(x) == pytest.approx(exact.logpdf(x), rel=1e-12)


@pytest.mark.parametrize("n", [3, 5, 9, 20])
@pytest.mark.parametrize("temperature", [1.0, 0.5])
def test_a_density_integrates_to_one(n: int, temperature: float) -> None:
    x, area = grid(4.5, 240)
    density = np.exp(sampler(n).select(hm.Selectivity(temperature=temperature)).log_prob(x))
    assert density.sum() * area == pytest.approx(1, abs=1e-3)


def test_the_density_is_the_latent_one_over_the_determinant_by_finite_differences() -> None:
    law, h = sampler(6).select(COLD), 1e-6
    z = Stream(3).child("z").uniforms(0, 30, 2) * 4 - 2
    ends = [[law.sent(z + sign * h * np.eye(2)[d])[0] for sign in (1, -1)] for d in range(2)]
    jacobians = np.stack([(a - b) / (2 * h) for a, b in ends], axis=2)
    expected = multivariate_normal(np.zeros(2)).logpdf(z) - np.log(np.linalg.det(jacobians))
    x, recorded = law.sent(z)
    assert recorded == pytest.approx(expected, abs=1e-5)
    assert law.log_prob(x) == pytest.approx(recorded, abs=1e-8)
    assert law.latent(x) == pytest.approx(z, abs=1e-8)


def test_the_law_tends_to_the_truth_at_the_order_of_its_steps() -> None:
    x, area = grid(4.5, 100)
    p = TRUTH.log_prob(x)

    def kl(n: int) -> float:
        q = sampler(n, sigma_max=200.0, sigma_min=0.002).log_prob(x)
        return float((np.exp(p) * (p - q)).sum() * area)

    found = [kl(n) for n in (32, 64, 128)]
    assert found[-1] < 4e-3
    assert [a / b for a, b in pairwise(found)] == pytest.approx([4, 4], rel=0.2)  # of order one


def test_a_step_is_undone_anywhere() -> None:
    u = Stream(4).child("step").uniforms(0, 20, 4)
    step = Step(u[:, 0] * 3, u[:, 1:3] * 10 - 5, 0.01 + u[:, 3], 500.0)  # steep: regions with kinks between them
    near = Stream(5).child("near").uniforms(0, 500, 2) * 20 - 10
    x = np.concatenate([near, 1e4 * near])
    assert step.inverse(step.at(x)[0]) == pytest.approx(x, rel=1e-8, abs=1e-8)
    assert sampler(5).log_prob(np.array([[1e3, -1e3]])) < -1e3
    assert sampler(5).log_prob(np.array([[math.inf, 0.0]])).tolist() == [-math.inf]


def test_a_point_beyond_float64_is_refused_and_not_a_number_less() -> None:
    step = Step(np.zeros(2), np.array([[0.0, 0.0], [1.0, 1.0]]), np.array([0.5, 0.7]), 2.0)
    with np.errstate(all="ignore"), pytest.raises(FitError, match="traced back") as caught:
        step.inverse(np.array([[0.5, 0.5], [1e160, 0.0]]))
    assert "1e+160" in str(caught.value)


@pytest.mark.parametrize("trial", range(12))
def test_drawn_and_scored_agree_for_odd_mixtures_and_levels(trial: int) -> None:
    u = Stream(trial).child("odd").uniforms(0, 6, 5)
    k, spread, narrow = 1 + trial % 6, (0.1, 1.0, 30.0)[trial % 3], (1e-3, 1.0)[trial % 2]
    odd = Spherical(u[:k, 0] / u[:k, 0].sum(), spread * (u[:k, 1:3] * 2 - 1), narrow * u[:k, 3])
    law = sampler(1 + 3 * trial, odd, sigma_max=(5.0, 80.0)[trial % 2], sigma_min=(0.2, 0.002)[trial // 6])
    law = law.select(hm.Selectivity(temperature=(0.05, 0.3, 2.0)[trial // 4]))
    x = law.sample(200, seed=trial)
    assert law.log_prob(x) == pytest.approx(x.log_prob, abs=1e-9)
    assert np.isfinite(law.log_prob(np.concatenate([odd.sample(200).x, u[:, :2] * 500]))).all()


def test_guidance_gives_heavier_components_more_and_the_plane_between_them_less() -> None:
    x, area = grid(4.5, 100)
    law, nearest = sampler(40), TRUTH.component_log_density(x).argmax(axis=0)
    masses = [
        [
            float(np.exp(law.select(hm.Selectivity(temperature=t)).log_prob(x[nearest == k])).sum() * area)
            for k in range(3)
        ]
        for t in (1.0, 0.5, 0.25)
    ]
    assert masses[0][0] < masses[1][0] < masses[2][0]
    twice = law.select(COLD).select(COLD).log_prob(x)
    assert (twice == law.select(hm.Selectivity(temperature=0.25)).log_prob(x)).all()


def test_the_gradient_of_the_squared_error_is_that_of_finite_differences() -> None:
    from hydrometer.models.diffusion.pair_regression import _law, _theta

    law, z = sampler(3, sigma_max=4.0, sigma_min=0.3), Stream(6).child("z").uniforms(0, 40, 2) * 4 - 2
    x = sampler(30).sent(z)[0]
    theta, h = _theta(law), 1e-6
    _, gradient = loss_and_gradient(law, z, x)
    for i in range(len(theta)):
        up, down = (loss_and_gradient(_law(law, theta + s * h * np.eye(len(theta))[i]), z, x)[0] for s in (1, -1))
        assert gradient[i] == pytest.approx((up - down) / (2 * h), abs=1e-7 + 1e-6 * np.abs(gradient).max())


@cache
def pairs() -> tuple[Diffusion, np.ndarray, np.ndarray]:
    teacher = sampler(64)
    x = teacher.sample(600, seed=7).x
    return teacher, teacher.latent(x), x


def test_a_student_of_one_step_learns_where_its_teacher_sends_latent_points() -> None:
    teacher, z, x = pairs()
    starts = [sampler(1, sigma_max=20 * 0.5**i, sigma_min=0.01) for i in range(8)]
    student, facts = fit_pairs(starts, z, x, lambda *_: None)
    assert facts["squared_error"] == pytest.approx(np.square(student.sent(z)[0] - x).sum(axis=1).mean(), rel=1e-9)
    assert facts["squared_error"] < 0.05 * min(loss_and_gradient(s, z, x)[0] for s in starts)
    fresh = teacher.sample(600, seed=8)
    recall = [law.log_prob(fresh).mean() for law in (teacher, student, starts[0])]
    assert recall[0] > recall[1] > recall[0] - 0.3 > recall[2] + 100
    same, facts = fit_pairs([student], z, student.sent(z)[0], lambda *_: None)  # pairs of its own
    assert facts["squared_error"] < 1e-20
    assert same.log_prob(x) == pytest.approx(student.log_prob(x), abs=1e-9)


def test_em_finds_what_scikit_learn_finds() -> None:
    mixture = pytest.importorskip("sklearn.mixture").GaussianMixture
    x = TRUTH.sample(800, seed=9).x
    for k in (1, 2, 3):
        fit, facts = fit_spherical(x, k, Stream(0))
        theirs = mixture(k, covariance_type="spherical", n_init=4, tol=1e-7, max_iter=1000, random_state=0).fit(x)
        assert facts["log_likelihood_train"] == pytest.approx(fit.log_prob(x).mean(), abs=1e-12)
        assert facts["log_likelihood_train"] == pytest.approx(theirs.score(x), abs=2e-5)
    with pytest.raises(FitError, match="more distinct points"):
        fit_spherical(np.zeros((50, 2)), 2, Stream(0))


def test_rows_of_the_truth_are_of_its_density() -> None:
    x = TRUTH.sample(20_000, seed=10).x
    edges = np.linspace(-3, 3, 7)
    counts = np.histogram2d(*x.T, bins=[edges, edges])[0].ravel()
    fine, area = grid(3.0, 600)
    cells = (np.floor(fine[:, 0]) + 3) * 6 + np.floor(fine[:, 1]) + 3
    expected = np.bincount(cells.astype(int), np.exp(TRUTH.log_prob(fine)) * area, 36) * len(x)
    assert (np.abs(counts - expected) < 5 * np.sqrt(np.maximum(expected, 1))).all()


def chain(**changes: Any) -> dict[str, Any]:
    truth = {"means": TRUTH.means.tolist(), "covariances": TRUTH.covariances.tolist(), "weights": [0.5, 0.3, 0.2]}
    body = {
        "family": "diffusion", "truth": truth, "teacher": {"steps": 20}, "student": {"steps": 2, "n_components": 3},
        "loss": ["mle", "regression"], "data": {"train": 100, "distill": 100, "evaluate": 300},
        "selectivity": [{"temperature": 1}, {"temperature": 0.5}],
    }  # fmt: skip
    return body | changes


def test_a_chain_runs_to_its_page(tmp_path: Path) -> None:
    done = hm.run(parse_run_spec({"name": "d", "seeds": 2, "chains": {"d": chain()}}, "test"), out=tmp_path / "run")
    cells = {c["id"]: c for c in done.results["cells"]}
    assert all(c["status"] == "ok" for c in cells.values()), cells
    recall = {
        k: cells[f"d.student.distilled-temperature1.0{k}.seed0"]["metrics"]["recall"]["value"]
        for k in ("", ".regression")
    }
    assert recall[".regression"] > recall[""] + 10  # two steps of DDIM collapse
    page = hm.build_report([done.folder])
    assert "by regression" in Path(page).read_text("utf-8")
    (truth,) = (done.folder / "truths").glob("*.spherical.npz")
    with np.load(truth) as arrays:
        assert (arrays["means"] == TRUTH.means).all()


def test_a_fit_by_regression_takes_the_latent_points_of_the_selected_teacher() -> None:
    teacher, level = sampler(20), DiffusionStudent(steps=1, n_components=3)
    rows = teacher.select(COLD).sample(200, seed=3)
    request = FitRequest(rows, None, TRUTH, teacher, level, "teacher", "regression", Stream(0), selectivity=COLD)
    fitted = DIFFUSION.fit(request)
    normals = ndtri(Stream(3).uniforms(0, 200, 2))  # what the rows were made of
    error = np.square(fitted.model.sent(normals)[0] - rows.x).sum(axis=1).mean()
    assert fitted.info["squared_error"] == pytest.approx(error, rel=1e-6)
    assert "squared_error" not in DIFFUSION.fit(replace(request, loss="mle", selectivity=None)).info


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"selectivity": [{"weight_power": 2}]}, "not selected by this"),
        ({"teacher": "truth"}, "teacher"),
        ({"teacher": {"steps": 4, "sigma_min": 30}}, "sigma_min must lie below sigma_max"),
        ({"teacher": {"steps": 4, "sigma_min": 1e-170}}, "sigma_min"),
        ({"teacher": {"steps": 999, "sigma_min": 20 * (1 - 1e-15)}}, "so many steps do not fit"),
        ({"student": {"steps": 2}}, "n_components"),
        ({"student": {"steps": 2, "n_components": 100}}, "not below the 100 points"),
        ({"truth": {"means": [[0, 0]], "covariances": -1}}, "above 0"),
        ({"truth": {"means": [[0, 0, 0]], "covariances": 1}}, "means"),
        ({"loss": ["kl_teacher_student"]}, "loss"),
    ],
)
def test_what_makes_no_sense_is_refused(changes: dict[str, Any], said: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=said):
        hm.plan(parse_run_spec({"name": "d", "chains": {"d": chain(**changes)}}, "test"), out=tmp_path)


def test_parts_that_make_no_law_are_refused() -> None:
    with pytest.raises(InputError, match="levels must fall"):
        ddim(TRUTH, np.array([1.0, 1.0]))
    with pytest.raises(InputError, match="above 0"):
        Diffusion(1.0, np.zeros((1, 1)), np.zeros((1, 1, 2)), np.zeros((1, 1)), np.ones(1))
    with pytest.raises(InputError, match="not selected"):
        TRUTH.select(COLD)
    assert DiffusionChain.model_validate(chain()).loss == ("mle", "regression")


def test_a_student_of_pairs_that_a_step_cannot_join_ends_at_the_bound() -> None:
    """Halves of the plane that go to two points: the sharper the nearer, without end."""
    rng = np.random.default_rng(0)
    z = rng.standard_normal((200, 2))
    x = np.where(z[:, :1] > 0, [[1.0, 0.0]], [[-1.0, 0.0]])
    slopes = np.array([[[0.5, 0.0], [-0.5, 0.0]]])
    start = Diffusion(1.0, np.zeros((1, 2)), slopes, np.full((1, 2), 0.5), np.ones(1))
    law, facts = fit_pairs([start], z, x, lambda *_: None)
    assert facts["squared_error"] < 0.01
    assert 10 < law.sharpness[0] <= 1000 * (1 + 1e-12)
    assert law.curvatures.min() >= 0.5e-3 * (1 - 1e-12)
    assert np.isfinite(law.log_prob(x)).all()
