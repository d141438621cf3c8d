"""Prompts as a sample: cluster-robust errors, their degrees of freedom, and what strata would have claimed."""

import math

import numpy as np
import pytest
from scipy.special import ndtri

from hydrometer.core.rng import Stream
from hydrometer.core.statistics.estimators import mean_estimate, mean_variance, ratio_estimate, share_estimate
from hydrometer.core.statistics.sampling_design import Clusters
from hydrometer.core.statistics.seeds import crossed_variance


def normals(stream: Stream, n: int, width: int = 1) -> np.ndarray:
    return ndtri(stream.uniforms(0, n, width))


def test_the_variance_is_the_cluster_robust_one() -> None:
    labels = np.array([3, 3, 3, 1, 1, 7, 7, 7, 7])
    y = normals(Stream(0), 9)[:, 0] + labels
    sums = np.array([(y[labels == g] - y.mean()).sum() for g in (1, 3, 7)])
    assert mean_variance(y, Clusters(labels)) == pytest.approx(3 / 2 * (sums**2).sum() / 81, rel=1e-12)


def test_one_row_a_cluster_is_the_simple_sample() -> None:
    y = normals(Stream(1), 12)[:, 0]
    found = mean_estimate(y, "nats", Clusters(np.arange(12)))
    plain = mean_estimate(y, "nats")
    assert found.se == pytest.approx(plain.se, rel=1e-12)
    assert found.interval() == pytest.approx(plain.interval(), rel=1e-12)


def test_one_cluster_has_no_error() -> None:
    found = mean_estimate(np.array([1.0, 2.0]), "nats", Clusters(np.zeros(2, np.int64)))
    assert (found.value, found.se, found.interval()) == (1.5, None, None)


def test_intervals_cover_new_prompts_where_strata_do_not() -> None:
    """30 prompts x 4 answers, twice as much variance between prompts as within: nominal 95 %, 2,000 replications."""
    reps, prompts, answers = 2000, 30, 4
    between = normals(Stream(2, ("prompt",)), reps * prompts)[:, 0].reshape(reps, prompts)
    within = normals(Stream(2, ("answer",)), reps * prompts * answers)[:, 0].reshape(reps, answers * prompts)
    labels = np.tile(np.arange(prompts), answers)
    lengths = 5.0 + np.floor(6 * Stream(2, ("length",)).uniforms(0, reps, prompts * answers))
    hits = {"clusters": 0, "strata": 0, "ratio": 0}
    for r in range(reps):
        y = -3.0 + math.sqrt(2) * between[r][labels] + within[r]
        for name, strata in (("clusters", Clusters(labels)), ("strata", labels)):
            low, high = mean_estimate(y, "nats", strata).interval() or (0.0, 0.0)
            hits[name] += low <= -3.0 <= high
        ratio = ratio_estimate(y * lengths[r], lengths[r], "nats/token", Clusters(labels))
        assert ratio.df is not None
        assert ratio.df <= prompts - 1  # fewer where they are skewed
        low, high = ratio.interval() or (0.0, 0.0)
        hits["ratio"] += low <= -3.0 <= high
    share = {k: v / reps for k, v in hits.items()}
    assert 0.93 < share["clusters"] < 0.97
    assert 0.93 < share["ratio"] < 0.97
    assert share["strata"] < 0.6


def test_seeds_crossed_with_clusters_cover() -> None:
    reps, seeds, prompts, answers = 1000, 4, 15, 3
    a, p, e = (
        normals(Stream(3, (k,)), reps * m)[:, 0].reshape(reps, -1)
        for k, m in (("s", seeds), ("p", prompts), ("e", seeds * prompts * answers))
    )
    labels = np.tile(np.arange(prompts), answers)
    hits = only_rows = 0
    for r in range(reps):
        noise = e[r].reshape(seeds, -1)
        table = 0.4 * a[r][:, None] + 1.5 * p[r][labels][None, :] + noise
        for strata, name in ((Clusters(labels), "c"), (labels, "s")):
            variance, df, _, _ = crossed_variance(table, strata)
            from scipy.special import stdtrit

            inside = abs(table.mean()) <= stdtrit(df, 0.975) * math.sqrt(variance)
            hits += inside and name == "c"
            only_rows += inside and name == "s"
    assert hits / reps > 0.95 - 5 * math.sqrt(0.95 * 0.05 / reps)
    assert only_rows / reps < hits / reps - 0.05


def test_a_share_that_all_rows_agree_on_counts_clusters() -> None:
    labels = np.repeat(np.arange(5), 100)
    assert (share_estimate(np.zeros(500), Clusters(labels)).se or 0) > 3 * (share_estimate(np.zeros(500)).se or 0)
