"""What is said of the values over seeds: median, quartiles, two peaks."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
from scipy.optimize import linprog

from hydrometer.stages.statistics.dip import dip
from hydrometer.stages.statistics.spread import NO_SPREAD, spread_of, two_peaks, widest_gap

Draw = Callable[[np.random.Generator, int], np.ndarray]


def nearest_of_one_peak(x: np.ndarray) -> float:
    """The dip by its definition: least distance to a distribution that is convex, then concave; a linear programme.

    Unknown are the nearest distribution's values at the points, twice at the mode, where it may jump.
    """
    n = len(x)
    best = 1.0
    for m in range(n):
        at = np.concatenate([x[: m + 1], x[m:]])
        size = n + 2  # values at n + 1 places, and the distance
        rows: list[np.ndarray] = []
        limits: list[float] = []

        def at_most(limit: float, size: int = size, rows: list = rows, limits: list = limits, **terms: float) -> None:
            row = np.zeros(size)
            for name, c in terms.items():
                row[int(name[1:])] = c
            rows.append(row)
            limits.append(limit)

        for j in range(n + 1):
            i = j if j <= m else j - 1
            sides = [i / n] if j == m else [(i + 1) / n] if j == m + 1 else [i / n, (i + 1) / n]
            for side in sides:
                at_most(side, **{f"v{j}": 1.0, f"v{n + 1}": -1.0})
                at_most(-side, **{f"v{j}": -1.0, f"v{n + 1}": -1.0})
        for j in range(n):
            at_most(0.0, **{f"v{j}": 1.0, f"v{j + 1}": -1.0})
        for j in [*range(1, m), *range(m + 2, n)]:
            left, right = 1 / (at[j] - at[j - 1]), 1 / (at[j + 1] - at[j])
            sign = 1.0 if j < m else -1.0
            terms = {f"v{j - 1}": -sign * left, f"v{j}": sign * (left + right), f"v{j + 1}": -sign * right}
            at_most(0.0, **terms)
        cost = np.zeros(size)
        cost[-1] = 1.0
        best = min(best, linprog(cost, np.array(rows), limits, bounds=[(0, 1)] * size).fun)
    return best


@pytest.mark.parametrize("n", [4, 5, 7, 11])
def test_dip_is_the_distance_from_the_nearest_of_one_peak(n: int) -> None:
    rng = np.random.default_rng(n)
    for i in range(8):
        x = np.sort(rng.random(n) if i % 2 else rng.normal(size=n) + 6 * (rng.random(n) < 0.4))
        assert dip(x) == pytest.approx(nearest_of_one_peak(x), abs=1e-9)


ONE: dict[str, Draw] = {
    "normal": lambda rng, s: rng.normal(size=s),
    "exponential": lambda rng, s: rng.exponential(size=s),
    "uniform": lambda rng, s: rng.random(s),
    "minus exponential": lambda rng, s: -3.0 - rng.exponential(size=s),
}


@pytest.mark.parametrize("seeds", [4, 5, 10, 30, 200])
@pytest.mark.parametrize("name", ONE)
def test_one_peak_is_rarely_marked(name: str, seeds: int) -> None:
    rng, runs = np.random.default_rng(7), 1000
    found = sum(two_peaks(np.sort(ONE[name](rng, seeds))) is True for _ in range(runs))
    assert found / runs <= 0.05 + 3 * math.sqrt(0.05 * 0.95 / runs)


@pytest.mark.parametrize(
    ("share", "apart", "seeds", "least"),
    [(0.5, 12, 10, 0.9), (0.3, 12, 10, 0.75), (0.2, 12, 30, 0.95), (0.1, 12, 30, 0.7), (0.5, 5, 200, 0.95)],
)
def test_two_peaks_are_marked(share: float, apart: float, seeds: int, least: float) -> None:
    rng, runs = np.random.default_rng(8), 300
    draws = (np.sort(rng.normal(size=seeds) - apart * (rng.random(seeds) < share)) for _ in range(runs))
    assert sum(two_peaks(x) is True for x in draws) / runs >= least


def test_a_single_far_value_is_no_peak() -> None:
    x = np.sort(np.append(np.random.default_rng(0).normal(size=29), -400.0))
    assert two_peaks(x) is False


def test_what_moves_and_scales_all_values_changes_nothing() -> None:
    x = np.sort(np.random.default_rng(1).normal(size=20) + 9.5 * (np.arange(20) < 6))
    for scale in (1e-9, 1.0, 1e9):
        assert widest_gap(scale * x) == pytest.approx(widest_gap(x))
        assert two_peaks(scale * x + 3 * scale) is True
        assert two_peaks(np.sort(-scale * x)) is True


@pytest.mark.parametrize(
    "values",
    [[1.0, 2.0, 9.5], [2.0, 2.0, 3.0, 3.0, 2.0, 3.0], [0.1] * 5 + [0.9] * 5, [4.0, 3.0, 4.0, 1.0, 2.0]],
    ids=["three", "counts", "steps", "whole numbers"],
)
def test_what_cannot_be_told_is_null(values: list[float]) -> None:
    found = spread_of(values)
    assert found["two_peaks"] is None
    assert found["median"] == np.median(values)


def test_equal_values_have_no_two_peaks() -> None:
    assert two_peaks(np.full(6, 0.1) + 1e-18 * np.arange(6)) in (None, False)
    x = 1.1 + 2.3e-16 * np.arange(8)
    assert two_peaks(x) in (None, False)


def test_median_and_quartiles_are_numpys() -> None:
    x = np.random.default_rng(2).normal(size=7)
    found = spread_of(x.tolist())
    assert (found["q25"], found["median"], found["q75"]) == tuple(np.quantile(x, [0.25, 0.5, 0.75]))


@pytest.mark.parametrize("values", [[], [1.0], [1.0, None], [1.0, -math.inf, 2.0]])
def test_one_value_or_an_infinite_one_has_no_spread(values: list[float | None]) -> None:
    assert spread_of(values) == NO_SPREAD
