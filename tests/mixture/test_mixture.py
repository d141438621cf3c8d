import math

import numpy as np
import pytest
from scipy import integrate, stats

import hydrometer as hm
from hydrometer.core.errors import DataError, InputError
from hydrometer.models.finite_selectivity import power_log_weights
from hydrometer.models.mixture.law import CovarianceType, Mixture

A = np.array([[0.6, 0.2], [0.2, 0.3]])
LAWS: dict[CovarianceType, Mixture] = {
    "full": Mixture([0.5, 0.3, 0.2], [[0, 0], [1, 2], [-2, 1]], np.stack([A, 0.5 * A, np.eye(2)])),
    "tied": Mixture([0.5, 0.3, 0.2], [[0, 0], [1, 2], [-2, 1]], A, covariance_type="tied"),
    "diag": Mixture([0.5, 0.3, 0.2], [[0, 0], [1, 2], [-2, 1]], [[1, 2], [0.1, 0.5], [1, 1]], covariance_type="diag"),
    "spherical": Mixture([0.5, 0.3, 0.2], [[0, 0], [1, 2], [-2, 1]], [1, 0.2, 0.5], covariance_type="spherical"),
}


@pytest.fixture(params=list(LAWS))
def law(request: pytest.FixtureRequest) -> Mixture:
    return LAWS[request.param]


def test_log_prob_is_scikit_learns(law: Mixture) -> None:
    x = law.sample(500, seed=1).x * 3
    assert law.log_prob(x) == pytest.approx(law.to_sklearn().score_samples(x), rel=1e-10)


def test_density_integrates_to_one_at_every_power(law: Mixture) -> None:
    for beta in (1.0, 2.5, math.inf):
        m = law.select(hm.Selectivity(weight_power=beta))
        total, _ = integrate.dblquad(
            lambda y, x, m=m: math.exp(m.log_prob(np.array([[x, y]]))[0]), -9, 9, -9, 9, epsabs=1e-4
        ) if law.covariance_type == "diag" else (_grid_sum(m), 0)  # fmt: skip
        assert total == pytest.approx(1, abs=2e-3)


def _grid_sum(m: Mixture) -> float:
    g = np.linspace(-10, 10, 801)
    grid = np.stack(np.meshgrid(g, g), -1).reshape(-1, 2)
    return float(np.exp(m.log_prob(grid)).sum() * (g[1] - g[0]) ** 2)


def test_samples_have_the_laws_moments(law: Mixture) -> None:
    n = 200_000
    x = law.sample(n, seed=3).x
    mean = law.weights @ law.means
    se = x.std(0) / math.sqrt(n)
    assert (abs(x.mean(0) - mean) < 5 * se).all()
    # the density at the draws has the entropy of a fresh, independent grid sum
    g = np.linspace(-10, 10, 801)
    grid = np.stack(np.meshgrid(g, g), -1).reshape(-1, 2)
    lp = law.log_prob(grid)
    entropy = -float((np.exp(lp) * lp).sum() * (g[1] - g[0]) ** 2)
    drawn = -law.log_prob(x)
    assert abs(drawn.mean() - entropy) < 5 * drawn.std() / math.sqrt(n) + 1e-6


def test_component_shares_pass_chi_square() -> None:
    m = Mixture([0.7, 0.0, 0.3], [[0.0], [50.0], [100.0]], [1, 1, 1], covariance_type="spherical")
    counts = np.bincount(np.rint(m.sample(100_000, seed=2).x[:, 0] / 50).astype(int), minlength=3)
    assert counts[1] == 0
    assert stats.chisquare(counts[[0, 2]], [70_000, 30_000]).pvalue > 1e-6


def test_rows_are_equal_whatever_the_call(law: Mixture) -> None:
    whole = law.sample(300, seed=9).x
    assert (law.sample(100, seed=9, start=120).x == whole[120:220]).all()


@pytest.mark.parametrize("beta", [1, 1.5, 10, 1e4, 1e300, math.inf])
def test_weight_power_keeps_ties_and_normalises(beta: float) -> None:
    w = np.exp(power_log_weights(np.log(np.array([0.35, 0.35, 0.2, 0.1])), beta))
    assert w.sum() == pytest.approx(1, abs=1e-12)
    assert w[0] == w[1]
    assert (np.diff(w) <= 0).all()
    if beta >= 1e4:
        assert w.tolist() == pytest.approx([0.5, 0.5, 0, 0], abs=1e-12)


def test_power_of_zero_weights_stays_zero() -> None:
    with np.errstate(divide="ignore"):
        log_w = np.log(np.array([0.5, 0.5, 0.0]))
    for beta in (1.0, 7.0, math.inf):
        assert np.exp(power_log_weights(log_w, beta)).tolist() == pytest.approx([0.5, 0.5, 0])


def test_power_below_one_and_token_selectivity_are_refused() -> None:
    with pytest.raises(InputError, match="at least 1"):
        power_log_weights(np.zeros(1), 0.9)
    with pytest.raises(InputError, match="weight_power"):
        LAWS["diag"].select(hm.Selectivity(temperature=0.5))


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"weights": [0.5, 0.5]}, "means"),
        ({"weights": [0.5, 0.3, 0.3]}, "sum to 1"),
        ({"weights": [1.5, -0.3, -0.2]}, "negative"),
        ({"means": [[0, 0], [1, math.nan], [2, 2]]}, "finite"),
        ({"covariances": [1.0, 1.0]}, "shape"),
        ({"covariances": [1.0, 0.0, 1.0]}, "above 0"),
    ],
)
def test_bad_parameters_are_refused(change: dict[str, list[float]], says: str) -> None:
    fields = {"weights": [0.5, 0.3, 0.2], "means": [[0, 0], [1, 2], [-2, 1]], "covariances": [1.0, 0.2, 0.5]} | change
    with pytest.raises(InputError, match=says):
        Mixture(**fields, covariance_type="spherical")


@pytest.mark.parametrize("cov", [[[1, 2], [2, 1]], [[1, 0.5], [0, 1]]])
def test_indefinite_or_asymmetric_covariance_is_refused(cov: list[list[float]]) -> None:
    with pytest.raises(InputError):
        Mixture([1.0], [[0, 0]], [cov])


@pytest.mark.parametrize("kind", list(LAWS))
def test_one_component_fit_is_the_closed_form(kind: CovarianceType) -> None:
    x = LAWS["full"].sample(400, seed=4).x
    model = hm.fit_mixture(x, 1, covariance_type=kind, reg_covar=0.0).model
    assert isinstance(model, Mixture)
    s = np.cov(x.T, bias=True)
    expected = {"full": s[None], "tied": s, "diag": np.diag(s)[None], "spherical": np.array([np.diag(s).mean()])}[kind]
    assert model.means[0] == pytest.approx(x.mean(0), rel=1e-10)
    assert model.covariances == pytest.approx(expected, rel=1e-8)


def test_fit_recovers_a_separated_mixture_and_is_reproducible() -> None:
    truth = Mixture([0.6, 0.4], [[-5.0], [5.0]], [1.0, 0.5], covariance_type="spherical")
    x = truth.sample(4000, seed=1).x
    fit = hm.fit_mixture(x, 2, covariance_type="spherical", seed=3)
    again = hm.fit_mixture(x, 2, covariance_type="spherical", seed=3)
    assert isinstance(fit.model, Mixture)
    assert isinstance(again.model, Mixture)
    assert (fit.model.means == again.model.means).all()
    order = np.argsort(fit.model.means[:, 0])
    assert fit.model.weights[order] == pytest.approx(truth.weights, abs=5 * math.sqrt(0.24 / 4000))
    assert fit.info.log_likelihood[0] == pytest.approx(truth.log_prob(x).mean(), abs=5 / math.sqrt(4000))


def test_a_batch_is_its_fits_one_by_one() -> None:
    x = np.stack([LAWS["diag"].sample(80, seed=s).x for s in range(3)])
    batch = hm.fit_mixture(x, 2, seed=5)
    assert isinstance(batch.model, hm.MixtureBatch)
    assert batch.info.log_likelihood.shape == (3,)
    for b in range(3):
        assert batch.info.log_likelihood[b] == pytest.approx(batch.model[b].log_prob(x[b]).mean(), rel=1e-12)
    assert len({m.means.tobytes() for m in batch.model}) == 3


@pytest.mark.parametrize(
    ("x", "k", "says"),
    [
        ([[0.0, math.nan], [1, 1]], 1, "finite"),
        ([[0.0, math.inf], [1, 1]], 1, "finite"),
        ([[0.0, 1], [1, 1]], 3, "3 components cannot be fitted to 2 points"),
        ([[0.0, 1], [1, 1]], 0, "components"),
        ([1.0, 2.0], 1, "shape"),
    ],
)
def test_bad_points_are_refused(x: list[list[float]], k: int, says: str) -> None:
    with pytest.raises(DataError, match=says):
        hm.fit_mixture(x, k)


def test_duplicated_points_give_a_finite_model() -> None:
    fit = hm.fit_mixture(np.ones((20, 2)), 3, covariance_type="diag")
    assert isinstance(fit.model, Mixture)
    assert np.isfinite(fit.model.log_prob(np.ones((1, 2)))).all()


def test_scikit_learn_round_trip(law: Mixture) -> None:
    back = Mixture.from_sklearn(law.to_sklearn())
    x = law.sample(20, seed=0).x
    assert back.log_prob(x) == pytest.approx(law.log_prob(x), rel=1e-12)


def test_judge_recovers_the_identities() -> None:
    """precision = -H(q) - KL(q||p*), recall = -H(p*) - KL(p*||q), exactly on the same rows."""
    found = hm.judge(LAWS["full"], LAWS["diag"], n=2000, seed=1)
    value = {k: e.value or 0.0 for k, e in found.items()}
    assert value["precision"] == pytest.approx(-value["entropy"] - value["kl_student_truth"], abs=1e-10)
    assert value["recall"] == pytest.approx(-value["entropy_truth"] - value["kl_truth_student"], abs=1e-10)


def test_judge_agrees_with_the_closed_form_of_gaussians() -> None:
    p = Mixture([1.0], [[0.0, 0.0]], [[1.0, 2.0]], covariance_type="diag")
    q = Mixture([1.0], [[0.5, -1.0]], [[0.5, 3.0]], covariance_type="diag")

    def cross(a: Mixture, b: Mixture) -> float:
        """E_a log b for diagonal Gaussians."""
        va, vb = a.covariances[0], b.covariances[0]
        return float(-0.5 * (np.log(2 * np.pi * vb) + (va + (a.means[0] - b.means[0]) ** 2) / vb).sum())

    found = hm.judge(p, q, n=20_000, seed=2)
    exact = {"precision": cross(q, p), "recall": cross(p, q), "entropy": -cross(q, q), "entropy_truth": -cross(p, p)}
    for name, value in exact.items():
        e = found[name]
        assert e.value is not None
        assert e.se is not None
        assert abs(e.value - value) < 5 * e.se
