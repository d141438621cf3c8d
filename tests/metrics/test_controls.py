"""Control variates: zero-mean by enumeration and quadrature, never dearer than plain, and intervals that still hold."""

from dataclasses import replace

import numpy as np
import pytest
from scipy.special import expit
from threadpoolctl import threadpool_limits

import hydrometer as hm
from hydrometer.core.rng import Stream
from hydrometer.core.statistics.controls import Controls
from hydrometer.core.statistics.estimators import carried_by, mean_estimate, ratio_estimate
from hydrometer.metrics.likelihood import Scores, likelihood_metrics
from hydrometer.metrics.pooled import pool_scores
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


def test_rows_that_do_not_stand_for_their_law_take_no_controls() -> None:
    """A rare part that no row has met leaves its column nearly constant, away from zero: its coefficient is noise."""
    rng = RNG(5)
    common = 1e-3 * rng.normal(size=(400, 1)) - 0.02
    v = rng.normal(size=400)
    assert Controls.of(common) is None
    e = mean_estimate(v, "nats", controls=Controls.of(common))
    assert (e.value, e.method) == (v.mean(), "mc")
    met = common.copy()
    met[7] = 1.0  # one row alone would decide
    assert Controls.of(met) is None
    usual = rng.normal(size=(400, 1))
    assert Controls.of(usual) is not None


def test_an_error_that_few_rows_carry_says_so() -> None:
    v = RNG(6).normal(size=200)
    assert mean_estimate(v, "nats").caution is None
    v[3] = 500.0
    assert mean_estimate(v, "nats").caution == "few_rows"
    assert carried_by(v - v.mean()) < 1.1


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
    assert found.controls.shape[1] == 2
    assert found.reference is not None
    assert found.reference.weights.sum() == pytest.approx(1)
    assert found.reference.weights @ found.reference.controls == pytest.approx(0, abs=2e-3)


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


def ring() -> hm.Mixture:
    means = [[-1, 1], [0, 1], [1, 1], [-1, 0], [1, 0], [-1, -1], [0, -1], [1, -1]]
    return hm.Mixture([0.125] * 8, means, [0.025] * 8, covariance_type="spherical")


def rare(w: float) -> hm.Mixture:
    return hm.Mixture([1 - w, w], [[-0.5, -1], [0.8, 0.6]], [[0.3, 0.025], [0.1, 0.2]], covariance_type="diag")


def test_the_sample_that_missed_a_component_is_not_off_by_nats() -> None:
    """Seed 44 drew hardly a row of the component: precision was +2.09 +- .05, KL -2.51 +- .05."""
    found, exact = hm.judge(ring(), rare(0.001), n=2000, seed=44), hm.judge_exact(ring(), rare(0.001))
    for name in ("precision", "recall", "entropy", "kl_student_truth", "kl_truth_student"):
        e = found[name]
        assert abs((e.value or np.nan) - (exact[name].value or np.nan)) < 4 * (e.se or np.nan), name


@pytest.mark.parametrize(("w", "n"), [(0.05, 80), (0.01, 300), (0.001, 2000)])
def test_rare_components_leave_estimates_better_than_plain_and_intervals_that_hold(w: float, n: int) -> None:
    truth, law, times = ring(), rare(w), 400
    exact = hm.judge_exact(truth, law)
    x, y = truth.sample(times * n, seed=Stream(1, ("x",))), law.sample(times * n, seed=Stream(1, ("y",)))
    of_p, of_q = truth.score_beside(x, law), law.score_beside(y, truth)
    names = ["precision", "recall", "entropy", "kl_student_truth", "kl_truth_student"]
    held, square, plain = (dict.fromkeys(names, 0.0) for _ in range(3))
    for r in range(times):
        rows = slice(r * n, (r + 1) * n)
        p, q = (Controls.of(o.controls[rows], None, o.reference) for o in (of_p, of_q))
        drawn = [hm.Points(z.x[rows], z.log_prob[rows]) for z in (x, y)]
        s = Scores(*drawn, of_p.own[rows], of_p.other[rows], of_q.other[rows], of_q.own[rows], p, q)
        found = likelihood_metrics(s)
        for name in names:
            e, right = found[name], exact[name].value or np.nan
            low, high = e.interval() or (np.nan, np.nan)
            held[name] += low <= right <= high
            square[name] += ((e.value or np.nan) - right) ** 2
            plain[name] += ((e.plain or np.nan) - right) ** 2
            assert not (name.startswith("kl_") and high < 0)
    for name in names:
        assert abs(held[name] / times - 0.95) < 4 * np.sqrt(0.05 * 0.95 / times), name
        assert square[name] < 1.02**2 * plain[name], name


@pytest.mark.parametrize(("k", "d"), [(3, 1), (2, 3), (20, 5), (40, 8)])
def test_surrogates_gain_in_any_dimension_and_their_error_is_known(k: int, d: int) -> None:
    """Pairs of coordinates, then squares alone, then shares alone: whatever there is room for."""
    rng = RNG(k)

    def drawn() -> hm.Mixture:
        means, variances = 2 * rng.normal(size=(k, d)), rng.uniform(0.3, 1, size=(k, d))
        return hm.Mixture(rng.dirichlet(np.full(k, 2.0)), means, variances, covariance_type="diag")

    p, q = drawn(), drawn()
    n, times = 200, 100
    x = p.sample(n * times, seed=3)
    found = p.score_beside(x, q)
    assert found.reference is not None
    controls = Controls.of(found.controls, None, found.reference)
    assert controls is not None
    rows = controls.adjust(found.own - found.other, (1.0, -1.0))
    assert np.var(rows) < np.var(found.own - found.other)
    error, carried = controls.known_error((1.0, -1.0), n) or (np.nan, np.nan)
    # Its relative error, of n * times rows whose kurtosis is n / carried.
    assert error * np.sqrt(n) == pytest.approx(rows.std(), rel=5 * np.sqrt(n / carried / (4 * n * times)) + 0.05)


@pytest.mark.parametrize("k", [8, 16])
def test_surrogates_have_the_same_bits_whatever_the_number_of_threads(k: int) -> None:
    """16 components in four dimensions have 240 columns: libraries use all threads from about a hundred."""
    p, q = ring(), rare(0.1)
    if k == 16:
        means = RNG(9).normal(size=(2, k, 4))
        p, q = (hm.Mixture(np.full(k, 1 / k), m, np.ones(k), covariance_type="spherical") for m in means)
    x = p.sample(500, seed=1)
    with threadpool_limits(1):
        one = p.score_beside(x, q)
        alone = hm.judge(p, q, n=300)
    with threadpool_limits(2):
        two = p.score_beside(x, q)
        assert hm.judge(p, q, n=300) == alone
    assert (one.controls == two.controls).all()


def test_a_density_that_ends_somewhere_takes_no_surrogate() -> None:
    p = hm.Mixture([1.0], [[0.0]], [1.0], covariance_type="spherical")

    class HalfLine(hm.Mixture):
        def log_prob(self, x):
            points = x.x if isinstance(x, hm.Points) else x
            return np.where(points[:, 0] > 0, np.log(2) + super().log_prob(x), -np.inf)

    found = p.score_beside(p.sample(50, seed=0), HalfLine([1.0], [[0.0]], [1.0], covariance_type="spherical"))
    assert found.reference is None
    assert found.controls.shape == (50, 0)


# -- narrow against wide -----------------------------------------------------------------------------------------------


def on_a_line(weights: list[float], means: list[float], deviations: list[float]) -> hm.Mixture:
    variances = np.square(deviations)
    return hm.Mixture(weights, np.array(means)[:, None], variances, covariance_type="spherical")


def quadrature(*laws: hm.Mixture) -> tuple[hm.Points, np.ndarray]:
    """Points dense about every component of all laws, and the trapezoid's weights."""
    parts = [
        m + s * np.linspace(-14, 14, 4001)
        for law in laws
        for m, s in zip(law.means[:, 0], np.sqrt(law.covariances), strict=True)
    ]
    x = np.unique(np.concatenate(parts))
    between = np.diff(x, prepend=x[0], append=x[-1])
    return hm.Points(x[:, None], np.zeros(x.size)), (between[1:] + between[:-1]) / 2


WIDE_AND_NARROW = {
    # A light, narrow component lies in the flank of a wide one, which had one reference point there by chance.
    "light and narrow in the flank": (
        on_a_line([0.0196, 0.8937, 0.0867, 4e-11], [-0.84, -0.54, -0.39, -2.0857], [1.8, 0.55, 0.073, 0.0014558]),
        on_a_line([1.0], [-18.4], [0.0027]),
    ),
    "heavy and narrow": (
        on_a_line([0.897, 0.103], [-3.3843, 0.4075], [1.9445, 0.0015684]), on_a_line([1.0], [-0.16], [1.13]),
    ),
    "the other narrow": (on_a_line([1.0], [0.0], [1.0]), on_a_line([0.5, 0.5], [0.1, 0.0], [1e-4, 1.0])),
    "ten thousand times": (on_a_line([0.999, 0.001], [0.0, 0.1], [1.0, 1e-4]), on_a_line([1.0], [0.0], [1.2])),
    "collapsed": (on_a_line([1.0], [0.0], [1.0]), on_a_line([1.0], [0.1], [1e-3])),
}  # fmt: skip


@pytest.mark.parametrize("name", WIDE_AND_NARROW)
def test_errors_are_known_where_narrow_meets_wide(name: str) -> None:
    """By quadrature, not by rows: the interesting ones are one in thousands."""
    p, q = WIDE_AND_NARROW[name]
    x, step = quadrature(p, q)
    for law, other in ((p, q), (q, p)):
        found = law.score_beside(x, other)
        controls = Controls.of(found.controls, None, found.reference)
        assert controls is not None
        mass = step * np.exp(found.own)
        mass /= mass.sum()
        for of in ((1.0, 0.0), (0.0, 1.0), (1.0, -1.0)):
            v = of[0] * found.own + of[1] * found.other
            rows = controls.adjust(v, of)
            plain, left = (np.sqrt(mass @ np.square(y - mass @ y)) for y in (v, rows))
            assert mass @ rows == pytest.approx(mass @ v, abs=1e-3 * left)
            assert left < (0.0101 if name == "collapsed" else 1.02) * plain  # of single Gaussians all is explained
            known, _ = controls.known_error(of, 1) or (np.nan, np.nan)
            assert known == pytest.approx(left, rel=0.02)


@pytest.mark.parametrize("name", ["heavy and narrow", "the other narrow", "ten thousand times", "collapsed"])
def test_errors_of_frontiers_are_known_where_narrow_meets_wide(name: str) -> None:
    p, q = WIDE_AND_NARROW[name]
    x, step = quadrature(p, q)
    log_p, log_q = p.log_prob(x), q.log_prob(x)
    a, b = 2 * expit(log_p - log_q), 2 * expit(log_q - log_p)
    n = 1000
    drawn = p.sample(n, seed=1), q.sample(n, seed=2)
    rows = pool_scores(scores_of(p, q, *drawn))
    assert rows.reference is not None
    for slope in (0.5, 1.0, 2.0):
        there = np.minimum(rows.reference.b, slope * rows.reference.a)
        c = float(there @ rows.reference.coefficient())
        known = rows.reference.settled(np.zeros(1), (there - c * rows.reference.a)[None])
        h = np.minimum(b, slope * a)
        left, plain = (
            np.sqrt(sum(w @ np.square(y - w @ y) for w in (step * np.exp(log_p), step * np.exp(log_q))) * n) / (2 * n)
            for y in (h - c * a, h)
        )
        assert left < 1.02 * plain
        assert known.se[0] == pytest.approx(left, rel=0.03)


def test_the_other_law_may_lie_where_a_law_has_no_density_at_all() -> None:
    p, q = on_a_line([1.0], [0.0], [1.0]), on_a_line([0.5, 0.5], [0.0, 1e160], [1.0, 1.0])
    found = p.score_beside(p.sample(50, seed=1), q)
    assert found.reference is not None
    assert np.isfinite(found.reference.own).all()
    assert np.isfinite(found.controls).all()


def test_thousands_of_components_are_judged_in_seconds_and_their_error_is_known() -> None:
    """Shares of all components were fitted: 2,000 took minutes."""
    rng = RNG(8)
    k = 2000
    p = hm.Mixture(np.full(k, 1 / k), rng.normal(size=(k, 1)), rng.uniform(0.1, 1, k), covariance_type="spherical")
    q = on_a_line([1.0], [0.0], [1.0])
    x = p.sample(2000, seed=1)
    found = p.score_beside(x, q)
    controls = Controls.of(found.controls, None, found.reference)
    assert controls is not None
    e = mean_estimate(found.other, "nats", controls=controls, of=(0.0, 1.0))
    assert e.value == e.plain
    assert e.se == pytest.approx(e.plain_se, rel=0.1)
