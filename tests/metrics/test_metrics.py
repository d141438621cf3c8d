import math
from dataclasses import replace

import numpy as np
import pytest

from hydrometer.core.statistics.estimate import Estimate
from hydrometer.core.statistics.estimators import mean_estimate
from hydrometer.metrics.held_out import Column, share_outside
from hydrometer.metrics.likelihood import Scores, likelihood_metrics, mean_on
from hydrometer.metrics.text import text_metrics
from hydrometer.models.rows.points import Points
from hydrometer.models.rows.sequences import Sequences, load_sequences, save_sequences


def rows(n: int, lengths: list[int] | None = None) -> Sequences:
    lens = np.array(lengths or [2] * n)
    ids = np.arange(n * lens.max()).reshape(n, -1) % 7
    return Sequences(((0,), (1, 2)), np.arange(n) % 2, ids, lens, lens < 3, np.full(n, -1.0))


def test_recall_is_infinite_where_a_row_cannot_be_said_and_has_a_finite_companion() -> None:
    x = Points(np.zeros((4, 1)), np.zeros(4))
    s = Scores(x, x, np.full(4, -1.0), np.array([-1.0, -math.inf, -3.0, -2.0]), np.full(4, -2.0), np.full(4, -1.5))
    m = likelihood_metrics(s)
    assert m["recall"].value is None
    assert m["recall"].n_neg_inf == 1
    assert m["kl_truth_student"].value is None
    assert m["recall_on_support"].value == pytest.approx(-2.0)
    assert m["truth_mass_outside_support"].value == pytest.approx(0.25)
    assert 0 < (m["truth_mass_outside_support"].se or 0) < 0.5
    assert m["precision"].value == pytest.approx(-2.0)
    assert m["kl_student_truth"].value == pytest.approx(0.5)


def test_mass_outside_support_has_an_error_bar_even_where_no_row_was_missed() -> None:
    x = Points(np.zeros((50, 1)), np.zeros(50))
    m = likelihood_metrics(Scores(x, x, np.zeros(50), np.zeros(50), np.zeros(50), np.zeros(50)))
    assert m["truth_mass_outside_support"].value == 0
    assert (m["truth_mass_outside_support"].se or 0) > 0.01


def test_per_token_is_a_ratio_of_sums() -> None:
    a = rows(4, [1, 2, 3, 4])
    log_p = np.array([-1.0, -4.0, -3.0, -8.0])
    m = likelihood_metrics(Scores(a, a, log_p, log_p, log_p, log_p))
    assert m["precision_per_token"].value == pytest.approx(-16 / 10)
    assert m["recall_per_token"].value == pytest.approx(-16 / 10)
    assert m["entropy_per_token"].value == pytest.approx(16 / 10)
    assert m["kl_student_truth_per_token"].value == 0


def test_text_metrics_by_hand() -> None:
    ids = np.array([[1, 2, 1, 2, 1, 2, 1], [3, 4, 5, 0, 0, 0, 0]])
    x = Sequences(((0,),), np.zeros(2, int), ids, np.array([7, 3]), np.array([False, True]), np.zeros(2))
    m = text_metrics(x)
    assert m["length"].value == 5
    assert m["eos_rate"].value == 0.5
    # 4-grams of row 0: 1212 2121 1212 2121 -> half repeat; row 1 has none
    assert m["repetition"].value == pytest.approx(0.25)
    # bigrams 12 21 34 45 of 6 + 2
    assert m["distinct_2"].value == pytest.approx(4 / 8)


def test_distinct_jackknife_is_the_loop() -> None:
    x = rows(6, [3, 4, 5, 2, 4, 6])
    e = text_metrics(x)["distinct_2"]

    def value(keep: list[int]) -> float:
        grams = [g for i in keep for g in zip(x.row(i)[:-1].tolist(), x.row(i)[1:].tolist(), strict=True)]
        return len(set(grams)) / len(grams)

    left = np.array([value([j for j in range(6) if j != i]) for i in range(6)])
    within = [left[i::2] for i in range(2)]  # rows i and i + 2 answer one prompt
    assert e.se == pytest.approx(math.sqrt(sum(2 / 3 * ((v - v.mean()) ** 2).sum() for v in within)))


def test_sequences_round_trip_through_parquet(tmp_path) -> None:
    x = rows(5, [1, 3, 2, 4, 1])
    save_sequences(x, tmp_path / "rows.parquet")
    y = load_sequences(tmp_path / "rows.parquet")
    assert [y.row(i).tolist() for i in range(5)] == [x.row(i).tolist() for i in range(5)]
    assert y.prompt_ids == x.prompt_ids
    assert y.finish_reason == x.finish_reason
    assert (y.log_prob == x.log_prob).all()
    assert (y.prompt_index == x.prompt_index).all()
    joined = Sequences.concatenate([x.take(slice(0, 2)), x.take(slice(2, 5))])
    assert [joined.row(i).tolist() for i in range(5)] == [x.row(i).tolist() for i in range(5)]


def test_recall_on_the_support_knows_that_its_rows_of_each_prompt_are_chance() -> None:
    """Two prompts of unlike recall, half of either's rows on the support: errors are those of 2,000 repetitions."""
    rng = np.random.default_rng(0)
    strata, reps = np.arange(80) % 2, 2000
    found: dict[str, list[Estimate]] = {"row": [], "token": []}
    for _ in range(reps):
        kept = rng.random(80) < 0.5
        y = np.where(kept, -20.0 - 80.0 * strata + rng.normal(size=80), -math.inf)
        found["row"].append(mean_on(kept, y, None, "nats", strata))
        found["token"].append(mean_on(kept, y, rng.integers(4, 9, 80).astype(float), "nats/token", strata))
    for estimates in found.values():
        values = np.array([e.value for e in estimates])
        # The spread of a sample's variance, and a fortieth for the ratio's second order.
        assert np.mean([e.se**2 for e in estimates]) == pytest.approx(values.var(), rel=5 * math.sqrt(2 / reps) + 0.025)
        assert all(e.n == k for e, k in zip(estimates, [e.n for e in found["row"]], strict=True))
        assert max(e.df for e in estimates) < 55


def test_recall_on_the_support_where_no_row_is_missed_is_recall() -> None:
    strata, y = np.arange(12) % 3, -np.arange(12.0)
    assert mean_on(np.ones(12, bool), y, None, "nats", strata) == mean_estimate(y, "nats", strata)
    one = mean_on(np.arange(12) == 4, y, None, "nats", strata)
    assert (one.value, one.se, one.n) == (-4.0, None, 1)
    assert mean_on(np.zeros(12, bool), y, None, "nats", strata).value is None


def test_every_recall_on_the_support_has_that_error() -> None:
    x = rows(8, [1, 2, 3, 4, 5, 6, 7, 8])
    log_q = np.array([-9.0, -1.0, -8.0, -math.inf, -7.0, -2.0, -math.inf, -1.5])
    kept = np.isfinite(log_q)
    m = likelihood_metrics(Scores(x, x, np.full(8, -1.0), log_q, np.full(8, -1.0), np.full(8, -1.0)))
    assert m["recall_on_support"] == mean_on(kept, log_q, None, "nats", x.strata)
    per = x.lengths.astype(float)
    assert m["recall_on_support_per_token"] == mean_on(kept, log_q, per, "nats/token", x.strata)
    text = share_outside(Column(log_q, None, "nats", x.strata, True, canonical=True))["recall_on_support"]
    assert text == replace(m["recall_on_support"], method="canonical")
    within = mean_estimate(log_q[kept], "nats", np.arange(8)[kept] % 2)
    assert (m["recall_on_support"].se or 0) > 1.5 * (within.se or 0)
