"""Control variates: zero-mean by enumeration and quadrature, never dearer than plain, and intervals that still hold."""

from dataclasses import replace

import numpy as np
import pytest

import hydrometer as hm
from hydrometer.core.controls import Controls
from hydrometer.core.estimate import mean_estimate, ratio_estimate
from hydrometer.core.rng import Stream
from hydrometer.metrics.likelihood import likelihood_metrics
from hydrometer.models.base import Controlled
from hydrometer.stages.judge import scores_of

RNG = np.random.default_rng


def test_a_figure_that_is_its_controls_keeps_a_hundredth_of_its_error() -> None:
    c = RNG(0).normal(size=(200, 2))
    v = 3 + c @ [2.0, -1.0]
    e, plain = mean_estimate(v, "nats", controls=Controls.of(c)), mean_estimate(v, "nats")
    assert (e.value or 0) - 3 == pytest.approx(((plain.value or 0) - 3) / 100)
    assert e.se == pytest.approx((plain.se or 0) / 100, rel=0.02)
    assert e.method == "cv"


def test_adjusting_is_linear_so_identities_between_figures_survive() -> None:
    rng = RNG(1)
    strata = np.arange(120) % 5
    c, a, b = rng.normal(size=(120, 3)), rng.normal(size=120), rng.normal(size=120)
    controls = Controls(c, strata)
    np.testing.assert_allclose(controls.adjust(2 * a - b), 2 * controls.adjust(a) - controls.adjust(b), atol=1e-12)
    numerator = mean_estimate(a, "nats", strata, controls).value
    denominator = mean_estimate(b + 9, "tokens", strata, controls).value
    assert numerator is not None
    assert denominator is not None
    assert ratio_estimate(a, b + 9, "nats/token", strata, controls).value == pytest.approx(numerator / denominator)


def test_columns_that_repeat_or_only_round_change_nothing() -> None:
    rng = RNG(2)
    c, v = rng.normal(size=(90, 1)), rng.normal(size=90)
    v += c[:, 0]
    plain = mean_estimate(v, "nats", controls=Controls.of(c))
    noise = 1e-13 * (1 + rng.random(90))[:, None]  # of constant sign: taken at its word it would wreck the error
    padded = mean_estimate(v, "nats", controls=Controls.of(np.hstack([c, 2 * c, np.zeros((90, 1)), noise])))
    assert padded.value == pytest.approx(plain.value, rel=1e-9)
    assert padded.se == pytest.approx(plain.se, rel=1e-9)


def test_too_few_rows_take_no_controls() -> None:
    c = RNG(3).normal(size=(90, 2))
    assert Controls.of(c) is not None
    assert Controls.of(c[:60]) is None  # 59 degrees of freedom for two coefficients
    assert Controls.of(c, np.arange(90) % 31) is None
    assert Controls.of(np.hstack([c[:62], c[:62]])) is not None  # equal columns are one
    assert Controls.of(c[:, :0]) is None
    assert Controls.of(None) is None


@pytest.mark.parametrize(("n", "groups"), [(70, 1), (64, 3), (400, 1)])
def test_intervals_cover_with_skewed_rows_and_fitted_coefficients(n: int, groups: int) -> None:
    rng = RNG(4)
    times = 2000
    strata = np.arange(n) % groups if groups > 1 else None
    held = narrower = 0.0
    for _ in range(times):
        c = rng.exponential(size=(n, 2)) - 1
        v = c @ [1.0, 0.5] + rng.normal(size=n) * 0.7 + (0 if strata is None else strata)
        mean = 0.0 if strata is None else float(strata.mean())
        e, plain = (mean_estimate(v, "nats", strata, x) for x in (Controls.of(c, strata), None))
        low, high = e.interval() or (np.nan, np.nan)
        held += low <= mean <= high
        narrower += (e.se or 0) ** 2 / (plain.se or 1) ** 2 / times
    se = np.sqrt(0.05 * 0.95 / times)
    assert abs(held / times - 0.95) < 4 * se
    assert 0.2 < narrower < 0.45  # 0.49 of 1.74, and what fitting two coefficients costs


# -- chains ------------------------------------------------------------------------------------------------------------

V, L = 3, 4


def chain(order: int, seed: int, *, holes: bool = False) -> hm.Markov:
    p = RNG(seed).dirichlet(np.full(V, 2.0), size=(V + 1) ** order)
    if holes:
        p[:, 2] = 0
        p /= p.sum(axis=1, keepdims=True)
    with np.errstate(divide="ignore"):
        return hm.Markov(np.log(p), order=order, max_new_tokens=L)


def every_row(law: hm.Markov):
    """All strings of the stopped process, as many times as they are needed once."""
    strings: list[list[int]] = []

    def grow(s: list[int]) -> None:
        if s and (s[-1] == 0 or len(s) == L):
            strings.append(s)
            return
        for v in range(V):
            grow([*s, v])

    grow([])
    ids = np.zeros((len(strings), L), np.int64)
    for i, s in enumerate(strings):
        ids[i, : len(s)] = s
    lengths = np.array([len(s) for s in strings])
    one = law.sample(1, seed=0)
    rows = replace(
        one, prompt_index=np.zeros(len(strings), np.int64), ids=ids, lengths=lengths,
        stopped=ids[np.arange(len(strings)), lengths - 1] == 0, log_prob=np.zeros(len(strings)), token_log_prob=None,
    )  # fmt: skip
    return rows, np.exp(law.log_prob(rows))


SETTINGS = [
    None, hm.Selectivity(temperature=0.6), hm.Selectivity(top_k=2), hm.Selectivity(sequence_power=2.0),
    hm.Selectivity(temperature=0.7, top_p=0.8),
]  # fmt: skip


@pytest.mark.parametrize("s", SETTINGS, ids=lambda s: "plain" if s is None else s.slug)
def test_a_chains_controls_have_mean_zero_by_enumeration(s: hm.Selectivity | None) -> None:
    law, other = chain(1, 1), chain(2, 2)
    law = law if s is None else law.select(s)
    assert isinstance(law, Controlled)
    x, p = every_row(law)
    can = p > 0
    drawn = replace(x, **{k: getattr(x, k)[can] for k in ("prompt_index", "ids", "lengths", "stopped", "log_prob")})
    found = law.score_beside(drawn, other)
    assert found.controls.shape == (can.sum(), 2)
    assert p[can] @ found.controls == pytest.approx(0, abs=1e-12)
    assert found.controls.std(axis=0).min() > 0.1
    np.testing.assert_allclose(found.own, law.log_prob(drawn))
    np.testing.assert_allclose(found.other, other.log_prob(drawn))


def test_where_the_other_law_drops_an_id_its_control_is_left_out() -> None:
    law, other = chain(1, 1), chain(1, 2, holes=True)
    found = law.score_beside(law.sample(50, seed=0), other)
    assert found.controls.shape == (50, 1)
    assert np.isneginf(found.other).any()


def test_estimates_of_chains_cover_the_exact_figures_and_gain() -> None:
    truth, law = chain(2, 5), chain(1, 6)
    exact = hm.judge_exact(truth, law)
    names = ["precision", "recall", "entropy", "kl_student_truth", "kl_truth_student", "kl_truth_student_per_token"]
    times, held, gain = 400, dict.fromkeys(names, 0), dict.fromkeys(names, 0.0)
    for i in range(times):
        x, y = truth.sample(200, seed=Stream(i, ("x",))), law.sample(200, seed=Stream(i, ("y",)))
        s = scores_of(truth, law, x, y)
        found, plain = likelihood_metrics(s), likelihood_metrics(replace(s, truth_controls=None, law_controls=None))
        for name in names:
            low, high = found[name].interval() or (np.nan, np.nan)
            held[name] += low <= (exact[name].value or np.nan) <= high
            gain[name] += (found[name].se or np.nan) ** 2 / (plain[name].se or np.nan) ** 2 / times
    for name in names:
        assert abs(held[name] / times - 0.95) < 4 * np.sqrt(0.05 * 0.95 / times), name
        assert gain[name] < 1.02, name
    assert max(gain["kl_student_truth"], gain["kl_truth_student"]) < 0.9


# -- mixtures ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["spherical", "diag", "full", "tied"])
def test_a_mixtures_controls_have_mean_zero(kind: str) -> None:
    rng = RNG(7)
    raw = rng.normal(size=(3, 2, 2))
    full = raw @ raw.swapaxes(1, 2) + 0.2 * np.eye(2)
    covariances = {"full": full, "tied": full[0], "diag": full[:, [0, 1], [0, 1]], "spherical": full[:, 0, 0]}[kind]
    law = hm.Mixture([0.6, 0.3, 0.1], rng.normal(size=(3, 2)), covariances, covariance_type=kind)
    other = hm.Mixture([1.0], [[0.0, 0.0]], [1.0], covariance_type="spherical")
    # Quadrature about each component: a point of a product rule stands for its weight.
    nodes, weights = np.polynomial.hermite_e.hermegauss(40)
    z = np.stack(np.meshgrid(nodes, nodes), axis=-1).reshape(-1, 2)
    w = np.outer(weights, weights).reshape(-1) / (2 * np.pi)
    points = law.component_points(np.arange(3), z)
    total = sum(
        a * (w @ law.score_beside(hm.Points(x, law.log_prob(x)), other).controls)
        for a, x in zip(law.weights, points, strict=True)
    )
    assert total == pytest.approx(0, abs=2e-4)
    found = law.score_beside(hm.Points(points[0], law.log_prob(points[0])), other)
    np.testing.assert_allclose(found.own, law.log_prob(points[0]))
    np.testing.assert_allclose(found.other, other.log_prob(points[0]))
    assert found.controls.shape[1] == 7


def test_recall_of_a_single_gaussian_has_no_monte_carlo_error_left() -> None:
    truth = hm.Mixture([0.5, 0.3, 0.2], [[-1, 0], [1, 0], [0, 2]], [0.05] * 3, covariance_type="spherical")
    law = hm.Mixture([1.0], [[0.0, 0.3]], [[0.9, 0.7]], covariance_type="diag")
    found, exact = hm.judge(truth, law, n=4000), hm.judge_exact(truth, law)
    for name in ("recall", "entropy"):
        se = found[name].se or np.nan
        assert abs((found[name].value or np.nan) - (exact[name].value or np.nan)) < 5 * se
        assert se < 0.01
        assert found[name].method == "cv"
    kl = found["kl_truth_student"]
    assert kl.se is not None
    assert abs((kl.value or np.nan) - (exact["kl_truth_student"].value or np.nan)) < 5 * kl.se
    assert kl.se < 0.1 * np.std(truth.log_prob(truth.sample(4000, seed=1))) / np.sqrt(4000)
