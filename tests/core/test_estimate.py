import math

import numpy as np
import pytest

from hydrometer.core.rng import Stream
from hydrometer.core.statistics.estimate import t_interval
from hydrometer.core.statistics.estimators import mean_estimate, mean_variance, ratio_estimate, share_estimate
from hydrometer.core.statistics.seeds import crossed_variance, welch_satterthwaite


def normals(stream: Stream, n: int, width: int = 1) -> np.ndarray:
    from scipy.special import ndtri

    return ndtri(stream.uniforms(0, n, width))


def test_infinite_is_counted_never_averaged() -> None:
    e = mean_estimate(np.array([-1.0, -math.inf, -2.0]), "nats")
    assert (e.value, e.se, e.n, e.n_neg_inf) == (None, None, 3, 1)
    assert e.interval() is None
    assert "1 of 3" in str(e)


def test_plain_variance_is_textbook() -> None:
    x = normals(Stream(0), 50)[:, 0]
    assert mean_variance(x) == pytest.approx(x.var(ddof=1) / 50, rel=1e-12)


def test_stratified_variance_is_textbook_and_drops_what_lies_between_strata() -> None:
    strata = np.arange(60) % 3
    x = normals(Stream(1), 60)[:, 0] + 100.0 * strata
    expected = sum((20 / 60) ** 2 * x[strata == k].var(ddof=1) / 20 for k in range(3))
    assert mean_variance(x, strata) == pytest.approx(expected, rel=1e-12)
    assert mean_variance(x, strata) < mean_variance(x) / 100


def test_a_stratum_of_one_row_falls_back_to_the_simple_sample() -> None:
    x = np.array([0.0, 1.0, 5.0])
    assert mean_variance(x, np.array([0, 0, 1])) == mean_variance(x)


@pytest.mark.parametrize("n", [64, 1024])
def test_ratio_interval_covers(n: int) -> None:
    """Nominal 95 % of 2,000 replications: the count's own error at 5 standard errors."""
    hits, reps = 0, 2000
    z = normals(Stream(2, (str(n),)), reps * n, 2)
    lengths = 1 + np.floor(8 * Stream(3, (str(n),)).uniforms(0, reps * n, 1)[:, 0])
    y = lengths * -2.0 + np.sqrt(lengths) * z[:, 0]
    for r in range(reps):
        part = slice(r * n, (r + 1) * n)
        e = ratio_estimate(y[part], lengths[part], "nats/token")
        low, high = e.interval() or (0, 0)
        hits += low <= -2.0 <= high
    assert abs(hits / reps - 0.95) < 5 * math.sqrt(0.95 * 0.05 / reps)


def test_crossed_variance_covers_where_either_part_alone_does_not() -> None:
    reps, s, n = 1500, 5, 40
    seeds, rows, noise = (normals(Stream(4, (k,)), reps * m) for k, m in (("s", s), ("r", n), ("e", s * n)))
    hits, only_seeds = 0, 0
    for r in range(reps):
        table = (
            0.5 * seeds[r * s : (r + 1) * s]
            + 2.0 * rows[r * n : (r + 1) * n, 0][None, :]
            + 0.7 * noise[r * s * n : (r + 1) * s * n].reshape(s, n)
        )
        variance, df, seed_part, _row_part = crossed_variance(table)
        low, high = t_interval(float(table.mean()), math.sqrt(variance), df)
        hits += low <= 0 <= high
        low, high = t_interval(float(table.mean()), math.sqrt(seed_part), s - 1)
        only_seeds += low <= 0 <= high
    assert hits / reps > 0.95 - 5 * math.sqrt(0.95 * 0.05 / reps)
    assert only_seeds / reps < 0.9


def test_crossed_variance_is_unbiased() -> None:
    reps, s, n = 4000, 4, 12
    seeds, rows, noise = (normals(Stream(5, (k,)), reps * m) for k, m in (("s", s), ("r", n), ("e", s * n)))
    table = seeds.reshape(reps, s, 1) + 1.5 * rows.reshape(reps, 1, n) + 0.5 * noise.reshape(reps, s, n)
    estimates = np.array([crossed_variance(t)[0] for t in table])
    truth = 1 / s + 1.5**2 / n + 0.5**2 / (s * n)
    # The floor at the larger one-way part can only raise it.
    error = estimates.mean() - truth
    assert -5 * estimates.std() / math.sqrt(reps) < error < 0.03 * truth + 5 * estimates.std() / math.sqrt(reps)


def test_welch_satterthwaite_of_one_part_is_its_own_df() -> None:
    assert welch_satterthwaite([2.0], [7]) == pytest.approx(7)
    assert welch_satterthwaite([1.0, 1.0], [4, 4]) == pytest.approx(8)
    assert welch_satterthwaite([0.0, 0.0], [4, 9]) == 9


def test_a_share_that_each_stratum_agrees_on_is_not_certain() -> None:
    """One prompt whose answers all end, one whose answers never do: 20 of each do not show it for certain."""
    strata = np.repeat([0, 1], 20)
    e, each = share_estimate(strata.astype(float), strata), share_estimate(np.ones(20))
    assert e.value == 0.5
    assert e.se == pytest.approx((each.se or 0) / math.sqrt(2))
    mixed = np.where(np.arange(40) < 3, 1.0, strata)  # where rows of a stratum differ, it is the plain error
    assert share_estimate(mixed, strata).se == mean_estimate(mixed, "probability", strata).se
    assert share_estimate(np.zeros(40), strata).se == share_estimate(np.zeros(40)).se
