"""Frontiers, typicality and collapse against closed forms, quadrature and enumeration."""

from __future__ import annotations

import itertools
import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy.stats import norm
from threadpoolctl import threadpool_limits

import hydrometer as hm
from hydrometer.metrics.frontiers.curves import SCALE, WEIGHTS, area_of, frontier_metrics
from hydrometer.metrics.frontiers.densities import curves
from hydrometer.metrics.frontiers.outcomes import chain_outcomes, outcome_metrics
from hydrometer.metrics.frontiers.typicality import typicality_metrics
from hydrometer.metrics.likelihood import Scores
from hydrometer.metrics.pooled import pool, pool_scores
from hydrometer.stages.judge import scores_of

Floats = NDArray[np.float64]
FRONTIER = (
    "prd_alpha_half", "prd_alpha_one", "prd_alpha_two", "prd_beta_half", "prd_beta_one", "prd_beta_two",
    "total_variation", "divergence_area",
)  # fmt: skip
TYPICAL = ("typicality_50", "typicality_90")


def line(weights: list[float], means: list[float], variances: list[float]) -> hm.Mixture:
    return hm.Mixture(weights, np.array(means)[:, None], variances, covariance_type="spherical")


def chain(order: int, seed: int, v: int = 3, longest: int = 4, sharp: float = 2.0) -> hm.Markov:
    table = np.random.default_rng(seed).random(((v + 1) ** order, v)) ** sharp
    return hm.Markov(np.log(table / table.sum(axis=1, keepdims=True)), order=order, max_new_tokens=longest)


def near(found: dict[str, hm.Estimate], exact: dict[str, float], names: tuple[str, ...]) -> None:
    for name in names:
        e = found[name]
        assert e.value is not None
        assert e.se is not None
        assert e.se > 0, name
        assert abs(e.value - exact[name]) < 4.5 * e.se, (name, e, exact[name])


def test_two_normals_are_their_closed_forms() -> None:
    """N(0, 1) and N(1, 1): all regions are half lines or intervals."""
    p, q = line([1.0], [0.0], [1.0]), line([1.0], [1.0], [1.0])
    exact: dict[str, float] = {"total_variation": 2 * norm.cdf(0.5) - 1}
    for name, slope in (("half", 0.5), ("one", 1.0), ("two", 2.0)):
        cut = 0.5 + math.log(slope)  # below it q is the smaller
        exact[f"prd_alpha_{name}"] = norm.cdf(cut - 1) + slope * norm.sf(cut)
        exact[f"prd_beta_{name}"] = exact[f"prd_alpha_{name}"] / slope
    for name, level in (("typicality_50", 0.5), ("typicality_90", 0.9)):
        z = norm.ppf((1 + level) / 2)
        exact[name] = norm.cdf(z - 1) - norm.cdf(-z - 1)
    found = hm.judge_exact(p, q)
    for name, value in exact.items():
        assert found[name].value == pytest.approx(value, abs=2e-5), name
        assert found[name].method == "exact"
    near(hm.judge(p, q, n=4000, seed=3), exact, tuple(exact))


def enumerated(p: hm.Markov, q: hm.Markov, m: int) -> dict[str, float]:
    """Every figure of the first m tokens, string by string."""
    v = p.vocabulary
    whole = [s for n in range(1, m + 1) for s in itertools.product(range(v), repeat=n)
             if 0 not in s[:-1] and (s[-1] == 0 or n == m)]  # fmt: skip

    def mass(law: hm.Markov, s: tuple[int, ...]) -> float:
        at, total = law.start, 1.0
        for t, i in enumerate(s):
            total *= math.exp(law.step_table(t)[at, i])
            at = int(law.follow(np.array(at), np.array(i)))
        return total

    a, b = (np.array([mass(law, s) for s in whole]) for law in (p, q))
    out = {"total_variation": 0.5 * float(np.abs(a - b).sum())}
    for name, slope in (("half", 0.5), ("one", 1.0), ("two", 2.0)):
        out[f"prd_alpha_{name}"] = float(np.minimum(b, slope * a).sum())
        out[f"prd_beta_{name}"] = float(np.minimum(b / slope, a).sum())
    with np.errstate(divide="ignore", invalid="ignore"):
        r = [w * a + (1 - w) * b for w in WEIGHTS]
        x = [1.0, *(math.exp(-SCALE * float(np.nansum(b * np.log(b / k)))) for k in r), 0.0]
        y = [0.0, *(math.exp(-SCALE * float(np.nansum(a * np.log(a / k)))) for k in r), 1.0]
    out["divergence_area"] = float(-np.trapezoid(y, x))
    for name, level in (("typicality_50", 0.5), ("typicality_90", 0.9)):
        held = got = 0.0
        for value in sorted(set(np.round(a, 14)), reverse=True):
            here = np.round(a, 14) == value
            share = min(1.0, (level - held) / a[here].sum()) if a[here].sum() else 0.0
            held, got = held + share * a[here].sum(), got + share * b[here].sum()
            if share < 1:
                break
        out[name] = float(got)
    return out


@pytest.mark.parametrize("orders", [(0, 2), (2, 1), (1, 1)])
@pytest.mark.parametrize("s", [None, hm.Selectivity(top_k=2), hm.Selectivity(sequence_power=2.0)])
def test_chains_are_enumerated_at_every_prefix_length(orders: tuple[int, int], s: hm.Selectivity | None) -> None:
    p, q = chain(orders[0], 1), chain(orders[1], 2)
    q = q if s is None else q.select(s)
    found = hm.judge_exact(p, q)
    for m in (1, 2, 4):
        exact = enumerated(p, q, m)
        names = (*FRONTIER, *TYPICAL) if m == 4 else ("total_variation", "prd_alpha_two", "prd_beta_half",
                                                     "divergence_area", "typicality_50")  # fmt: skip
        for name in names:
            e = found[name if m == 4 else f"{name}_first_{m}"]
            assert e.value == pytest.approx(exact[name], abs=1e-10), (name, m)
    drawn = hm.judge(p, q, n=3000, seed=5)
    near(drawn, enumerated(p, q, 4), (*FRONTIER, *TYPICAL))
    exact = {f"{k}_first_2": v for k, v in enumerated(p, q, 2).items()}
    near(drawn, exact, ("total_variation_first_2", "prd_beta_half_first_2", "typicality_50_first_2"))


@given(st.integers(0, 10_000), st.sampled_from((20, 80, 200)))
def test_bounds_hold_the_figure_and_tighten(seed: int, most: int) -> None:
    p, q = chain(1, seed, longest=7), chain(2, seed + 1, longest=7)
    *_, (_, whole) = chain_outcomes(p, q, 10**6)
    *_, (_, part) = chain_outcomes(p, q, most)
    assert whole.rest_p.size == 0
    exact, found = outcome_metrics(whole), outcome_metrics(part)
    assert part.p.sum() + part.rest_p.sum() == pytest.approx(1, abs=1e-9)
    assert part.q.sum() + part.rest_q.sum() == pytest.approx(1, abs=1e-9)
    width = {}
    for name in FRONTIER:
        value = exact[name].value or 0.0
        if name in found:
            assert found[name].value == pytest.approx(value, abs=1e-9)
            continue
        low, high = (found[f"{name}_{end}"].value for end in ("lower", "upper"))
        assert low is not None
        assert high is not None
        assert low - 1e-12 <= value <= high + 1e-12
        width[name] = high - low
    assert set(width) == set(FRONTIER)  # 255 strings are more than 200
    for name in TYPICAL:
        if name in found:
            assert found[name].value == pytest.approx(exact[name].value, abs=1e-9)


def test_a_law_is_its_own_equal_and_laws_apart_are_apart() -> None:
    p = line([0.3, 0.7], [0.0, 4.0], [1.0, 0.5])
    own = hm.judge_exact(p, p)
    assert own["total_variation"].value == pytest.approx(0, abs=1e-9)
    assert own["divergence_area"].value == pytest.approx(1, abs=1e-9)
    assert own["typicality_90"].value == pytest.approx(0.9, abs=1e-9)
    far = line([1.0], [100.0], [1.0])
    found = hm.judge(p, far, n=500)
    assert found["total_variation"].value == 1.0
    assert 0 < (found["total_variation"].se or 0) < 0.02  # an overlap of under one row in 500 could not be seen
    assert found["prd_alpha_two"].value == 0.0
    x, y = np.exp(SCALE * np.log1p(-WEIGHTS)), np.exp(SCALE * np.log(WEIGHTS))
    polygon = -np.trapezoid([0, *y, 1], [1, *x, 0])
    assert found["divergence_area"].value == pytest.approx(float(polygon), abs=1e-9)


def test_the_pooled_estimate_is_no_worse_than_either_sample_alone() -> None:
    """Beta at slope 1 from the truth's rows, alpha from the law's, and the best weighting of the two."""
    p, q, n, reps = line([1.0], [0.0], [1.0]), line([0.5, 0.5], [-0.5, 2.0], [0.5, 0.3]), 300, 400
    x, y = p.sample(reps * n, seed=1).x, q.sample(reps * n, seed=2).x
    on_x, on_y = (q.log_prob(z) - p.log_prob(z) for z in (x, y))
    by_truth = np.minimum(1, np.exp(on_x)).reshape(reps, n).mean(axis=1)
    by_law = np.minimum(1, np.exp(-on_y)).reshape(reps, n).mean(axis=1)
    pooled = np.array([
        frontier_metrics(pool(a, b, None, None))["prd_alpha_one"].value
        for a, b in zip(on_x.reshape(reps, n), on_y.reshape(reps, n), strict=True)
    ])  # fmt: skip
    best = 1 / (1 / by_truth.var() + 1 / by_law.var())
    assert pooled.var() < best * (1 + 3 * math.sqrt(2 / reps))
    assert pooled.var() < 0.9 * min(by_truth.var(), by_law.var())


def test_total_variation_is_one_less_alpha_and_curves_pass_through_the_figures() -> None:
    p, q = line([1.0], [0.0], [1.0]), line([1.0], [1.0], [0.5])
    s = scores_of(p, q, p.sample(400, seed=1), q.sample(300, seed=2))
    found = frontier_metrics(pool_scores(s))
    assert (found["prd_alpha_one"].value or 0) + (found["total_variation"].value or 0) == pytest.approx(1, abs=1e-12)
    assert found["prd_beta_two"].value == pytest.approx((found["prd_alpha_two"].value or 0) / 2, rel=1e-12)
    shown: Any = curves(s)
    prd = shown["whole"]["prd"]
    middle = prd["slope"].index(1.0)
    assert prd["alpha"][middle] == pytest.approx(found["prd_alpha_one"].value, abs=1e-6)
    assert prd["alpha_se"][middle] == pytest.approx(found["prd_alpha_one"].se, abs=1e-6)
    assert prd["alpha"] == sorted(prd["alpha"])
    assert prd["beta"] == sorted(prd["beta"], reverse=True)
    x, y = shown["whole"]["divergence"]["x"], shown["whole"]["divergence"]["y"]
    area = float(-np.trapezoid([0, *y, 1], [1, *x, 0]))
    assert area == pytest.approx(found["divergence_area"].value, abs=1e-5)
    assert shown["first"] == {}
    assert shown["n"] == 300


def test_the_gradient_of_the_area_is_its_slope() -> None:
    rng = np.random.default_rng(0)
    q, p = np.sort(rng.random(15)), np.sort(rng.random(15))[::-1]
    _, by_q, by_p = area_of(q, p)
    for j in (0, 7, 14):
        step = np.zeros(15)
        step[j] = 1e-6
        assert by_q[j] == pytest.approx((area_of(q + step, p)[0] - area_of(q - step, p)[0]) / 2e-6, rel=1e-6)
        assert by_p[j] == pytest.approx((area_of(q, p + step)[0] - area_of(q, p - step)[0]) / 2e-6, rel=1e-6)


@given(st.integers(0, 10_000), st.integers(2, 60), st.integers(2, 60))
def test_any_two_samples_give_figures_in_range(seed: int, n: int, m: int) -> None:
    rng = np.random.default_rng(seed)
    x, y = rng.normal(0, 30, n), rng.normal(0, 30, m)
    x[rng.random(n) < 0.2], y[rng.random(m) < 0.2] = -np.inf, np.inf
    rows = pool(x, y, None, None)
    assert (n * rows.a + m * rows.b) / (n + m) == pytest.approx(np.ones(n + m))
    log_p = np.concatenate([rng.integers(-5, 0, n).astype(float), np.where(np.isposinf(y), -np.inf, -2.0)])
    found = frontier_metrics(rows) | typicality_metrics(rows, log_p)
    for name, e in found.items():
        assert e.value is not None
        assert 0 <= e.value <= 1, name
        assert e.se is not None
        assert e.se > 0
        assert math.isfinite(e.se)
        assert e.n == min(n, m)


def test_prompts_are_strata() -> None:
    """Prompts of different overlap: differences between them are no sampling error."""
    rng = np.random.default_rng(1)
    strata = np.arange(400) % 2
    x = np.where(strata == 0, 0.1, 6.0) * rng.normal(1, 0.2, 400)
    plain, split = (frontier_metrics(pool(-x, x, s, s))["prd_alpha_one"] for s in (None, strata))
    assert plain.value == pytest.approx(split.value, abs=0.02)
    assert (split.se or 0) < 0.5 * (plain.se or 0)


def test_typicality_of_a_truth_of_few_strings_splits_its_atom() -> None:
    """Three outcomes of masses .6, .3, .1: the median lies inside the first, and the truth's own P_50 is one half."""
    p, q = np.array([0.6, 0.3, 0.1]), np.array([0.2, 0.1, 0.7])
    drawn = [np.random.default_rng(i).choice(3, 4000, p=w) for i, w in enumerate((p, q))]
    gap, log_p = np.log(q / p), np.log(p)
    rows = pool(gap[drawn[0]], gap[drawn[1]], None, None)
    found = typicality_metrics(rows, log_p[np.concatenate(drawn)])
    near(found, {"typicality_50": 0.2 * 0.5 / 0.6, "typicality_90": 0.3}, TYPICAL)


def point_mass(v: int, longest: int, miss: float) -> hm.Markov:
    row = np.full(v, miss / (v - 1))
    row[1] = 1 - miss
    return hm.Markov(np.log(row)[None], order=0, max_new_tokens=longest)


def test_a_point_mass_wins_precision_and_is_called_collapsed() -> None:
    truth = hm.Mixture([0.5, 0.5], [[-1.0, 0.0], [1.0, 0.0]], [0.2, 0.2], covariance_type="spherical")
    mode = hm.Mixture([1.0], [[1.0, 0.0]], [1e-3], covariance_type="spherical")
    found = hm.judge(truth, mode, n=500)
    assert (found["precision"].value or 0) > -(found["entropy_truth"].value or 0)
    assert found["collapsed"].value == hm.judge_exact(truth, mode)["collapsed"].value == 1
    assert (found["effective_volume"].value or 1) == pytest.approx(
        hm.judge_exact(truth, mode)["effective_volume"].value, rel=0.2
    )
    table = np.random.default_rng(3).dirichlet(np.ones(4) * 3, size=5)
    table[:, 1] += 1.0  # id 1 is likeliest everywhere
    chains = hm.Markov(np.log(table / table.sum(axis=1, keepdims=True)), order=1, max_new_tokens=6)
    again = hm.judge(chains, point_mass(4, 6, 1e-3), n=500)
    assert (again["precision"].value or -99) > -(again["entropy_truth"].value or 0)
    assert again["collapsed"].value == 1
    assert (again["entropy_kept"].value or 1) < 0.1


def test_cooling_blur_and_a_mode_in_the_wrong_place_are_not_called_collapsed() -> None:
    truth = hm.Mixture([0.5, 0.5], [[-1.0, 0.0], [1.0, 0.0]], [0.2, 0.2], covariance_type="spherical")
    for law in (
        truth,
        hm.Mixture([1.0], [[0.0, 0.0]], [1.2], covariance_type="spherical"),
        hm.Mixture([1.0], [[0.0, 9.0]], [1e-3], covariance_type="spherical"),
        hm.Mixture([0.5, 0.5], [[-1.0, 0.0], [1.0, 0.0]], [0.1, 0.1], covariance_type="spherical"),
    ):
        assert hm.judge(truth, law, n=500)["collapsed"].value == 0
    chains = chain(1, 5, v=5, longest=6)
    assert hm.judge(chains, chains.select(hm.Selectivity(temperature=0.8)), n=800)["collapsed"].value == 0


def test_too_few_rows_do_not_show_collapse() -> None:
    table = np.random.default_rng(3).dirichlet(np.ones(4) * 3, size=5)
    table[:, 1] += 1.0  # id 1 is likeliest everywhere
    truth = hm.Markov(np.log(table / table.sum(axis=1, keepdims=True)), order=1, max_new_tokens=6)
    mode = point_mass(4, 6, 1e-3)
    assert hm.judge(truth, mode, n=2)["collapsed"].value == 0
    assert hm.judge(truth, mode, n=200)["collapsed"].value == 1


def test_laws_that_are_not_exact_have_no_frontier() -> None:
    p = line([1.0], [0.0], [1.0])

    class Bound:
        score_kind = "lower_bound"

        def __getattr__(self, name: str) -> Any:
            return getattr(p, name)

    found = hm.judge(p, Bound(), n=50)  # type: ignore[arg-type]
    assert "precision" in found
    assert not any(k in found for k in (*FRONTIER, *TYPICAL, "collapsed"))


def test_rows_that_a_law_cannot_say_count_fully_against_it() -> None:
    p = chain(1, 1)
    q = p.select(hm.Selectivity(top_k=1))
    found = hm.judge(p, q, n=2000, seed=2)
    assert found["recall"].value is None
    exact = {k: e.value or 0.0 for k, e in hm.judge_exact(p, q).items()}
    near(found, exact, ("prd_beta_half", "total_variation"))


def test_scores_without_steps_have_no_prefixes() -> None:
    p, q = chain(1, 1), chain(1, 2)
    x, y = p.sample(50, seed=1), q.sample(50, seed=2)
    whole = scores_of(p, q, x, y)
    assert curves(whole)["first"]
    bare = Scores(x, y, whole.truth_on_truth, whole.law_on_truth, whole.truth_on_law, whole.law_on_law)
    assert curves(bare)["first"] == {}


def test_one_row_of_each_law_has_wide_intervals_and_no_nan() -> None:
    p, q = line([1.0], [0.0], [1.0]), line([1.0], [1.0], [1.0])
    for name, e in hm.judge(p, q, n=1).items():
        interval = e.interval()
        assert interval is None or all(math.isfinite(x) for x in interval), name


def test_figures_are_the_same_bits_with_any_threads() -> None:
    p, q = (hm.Mixture([1.0], [[m]], [v], covariance_type="spherical") for m, v in ((0.0, 1.0), (0.3, 1.4)))
    found: list[dict[str, hm.Estimate]] = []
    for threads in (1, 2):
        with threadpool_limits(threads, user_api="blas"):
            found.append(hm.judge(p, q, n=20_000))
    assert found[0] == found[1]
