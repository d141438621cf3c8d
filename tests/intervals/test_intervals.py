"""95 % intervals hold what they should: on worlds where every figure is known, and on rows drawn thousands of times.

A few hundred replications always, and limits widened by their binomial error; 4,000 and the limits themselves with
HYPOTHESIS_PROFILE=thorough.
"""

from __future__ import annotations

import math
import os

import numpy as np
import pytest

from hydrometer.core.statistics.estimate import t_interval
from hydrometer.core.statistics.estimators import mean_estimate, skewed_df
from intervals.worlds import NAMES, WORLDS, coverage, exact

THOROUGH = os.environ.get("HYPOTHESIS_PROFILE") == "thorough"
REPLICATIONS = {64: 4000 if THOROUGH else 400, 1024: 4000 if THOROUGH else 200}
# P_50 of the chains is bent where atoms of unlike ratios meet, just at its threshold (docs, Frontiers).
BENT = {("chains", "typicality_50")}
# Of the rows of `line` one in two hundred is so far out that 64 rows cannot know what it would add.
TAILED = {
    ("line", "precision", 64),
    ("line", "kl_student_truth", 64),
    ("line", "prd_alpha_two", 64),
    ("line", "prd_beta_two", 64),
}
# The area is no mean, and of small samples its delta method is a little short.
LIMITS = {64: (0.91, 0.98), 1024: (0.94, 0.965)}


@pytest.mark.parametrize("n", [64, 1024])
@pytest.mark.parametrize("world", list(WORLDS))
def test_intervals_hold(world: str, n: int) -> None:
    replications = REPLICATIONS[n]
    found = coverage(world, n, replications, seed=7)
    low, high = LIMITS[n]
    wrong: dict[str, float] = {}
    for name in NAMES:
        if (world, name) in BENT or (world, name, n) in TAILED:
            assert found[name] > 0.7, name
            continue
        slack = 0.01 if name.startswith(("typicality", "divergence")) else 0.0
        few = 3.5 * math.sqrt(0.05 * 0.95 / replications) if not THOROUGH else 0.0
        if not low - slack - few <= found[name] <= high + slack + few:
            wrong[name] = found[name]
    assert not wrong


def test_worlds_are_no_corners() -> None:
    """Shares in the middle, divergences away from zero: intervals there have something to hold."""
    for world in WORLDS:
        for name in ("total_variation", "prd_alpha_half", "prd_alpha_two", "divergence_area", "typicality_90"):
            assert 0.02 < exact(world)[name] < 0.98
        assert exact(world)["kl_student_truth"] > 0.02


def test_skewed_rows_get_wider_intervals_that_hold_more() -> None:
    """Exponential rows, 20 of each: Student's interval holds their mean in 92 of 100, the corrected one in more."""
    rows = np.random.default_rng(5).exponential(size=(4000, 20))
    plain = corrected = 0
    for x in rows:
        e = mean_estimate(x, "nats")
        interval = e.interval()
        assert e.value is not None
        assert e.se is not None
        assert interval is not None
        low, high = t_interval(e.value, e.se, 19)
        plain += low <= 1 <= high
        corrected += interval[0] <= 1 <= interval[1]
    assert plain / 4000 < 0.93
    assert corrected / 4000 > 0.925
    assert corrected - plain > 40


def test_symmetric_rows_keep_their_degrees_of_freedom() -> None:
    x = np.random.default_rng(1).standard_normal(100_000)
    assert skewed_df(x - x.mean(), 99_999) > 20_000
    assert skewed_df(np.zeros(10), 9) == 9
    assert skewed_df(np.array([1.0, -1.0]), 1) == 1
    for scale in (1e-200, 1.0, 1e200):
        assert skewed_df(scale * np.array([-1.0] * 39 + [39.0]), 39) == pytest.approx(2.15, abs=0.1)
