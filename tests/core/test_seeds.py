"""Intervals over seeds: they hold for skewed and two-peaked spreads, and cost little on normal ones."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest

from hydrometer.core.statistics.estimate import t_interval
from hydrometer.core.statistics.seeds import few_seeds, skew_of_mean, skewed_interval, unseen

Draw = Callable[[np.random.Generator, tuple[int, int]], np.ndarray]
RUNS = 4000


def two(share: float, apart: float) -> Draw:
    return lambda rng, shape: rng.normal(size=shape) - apart * (rng.random(shape) < share)


WORLDS: dict[str, tuple[Draw, float]] = {
    "normal": (lambda rng, shape: rng.normal(size=shape), 0.0),
    "exponential": (lambda rng, shape: rng.exponential(size=shape), 1.0),
    "lognormal": (lambda rng, shape: np.exp(rng.normal(size=shape)), math.exp(0.5)),
    "half and half": (two(0.5, 12.0), -6.0),
    "three in ten": (two(0.3, 12.0), -3.6),
    "one in ten": (two(0.1, 12.0), -1.2),
}


def held(world: str, seeds: int, *, student: bool = False) -> tuple[float, float]:
    """Share of intervals that hold the mean, and their mean width over Student's."""
    draw, mean = WORLDS[world]
    hits, wide, plain = 0, 0.0, 0.0
    for x in draw(np.random.default_rng(20261127), (RUNS, seeds)):
        m, se = float(x.mean()), float(x.std(ddof=1)) / math.sqrt(seeds)
        low, high = skewed_interval(m, se, seeds - 1, 0.0 if student else skew_of_mean(x))
        hits += low <= mean <= high
        wide, plain = wide + high - low, plain + 2 * (t_interval(m, se, seeds - 1)[1] - m)
    return hits / RUNS, wide / plain


@pytest.mark.parametrize(
    ("world", "seeds"),
    [
        ("normal", 5), ("normal", 10), ("normal", 30), ("exponential", 10), ("exponential", 30), ("lognormal", 30),
        ("half and half", 5), ("half and half", 10), ("half and half", 30), ("three in ten", 10), ("three in ten", 30),
        ("one in ten", 30),
    ],
)  # fmt: skip
def test_intervals_hold(world: str, seeds: int) -> None:
    share, _ = held(world, seeds)
    assert share >= 0.935 - 3 * math.sqrt(0.05 * 0.95 / RUNS)


@pytest.mark.parametrize(("world", "seeds"), [("exponential", 10), ("lognormal", 30), ("one in ten", 30)])
def test_students_intervals_do_not(world: str, seeds: int) -> None:
    """So the test above can fail."""
    share, _ = held(world, seeds, student=True)
    assert share < 0.935 - 3 * math.sqrt(0.05 * 0.95 / RUNS)


@pytest.mark.parametrize(("seeds", "most"), [(5, 1.25), (10, 1.12), (30, 1.04)])
def test_normal_spreads_pay_little(seeds: int, most: float) -> None:
    assert held("normal", seeds)[1] < most


def test_no_interval_knows_of_what_no_seed_shows() -> None:
    """One run in ten lies far off: ten seeds miss it with probability 0.35, and with them the mean."""
    share, _ = held("one in ten", 10)
    missed = 0.9**10
    assert share < 1 - missed + 5 * math.sqrt(missed * (1 - missed) / RUNS)
    assert unseen(10) > 0.1 > unseen(30)


@pytest.mark.parametrize("seeds", [1, 2, 3, 5, 10, 30, 200])
def test_the_share_unseen_is_missed_one_time_in_twenty(seeds: int) -> None:
    assert (1 - unseen(seeds)) ** seeds == pytest.approx(0.05)


# the interval itself ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("level", [0.9, 0.95, 0.99])
@pytest.mark.parametrize("skew", [-0.95, -0.3, -1e-15, 0.0, 1e-15, 0.1, 0.3, 0.7])
def test_between_students_and_twice_it(skew: float, level: float) -> None:
    low, high = skewed_interval(2.0, 0.5, 9.0, skew, level)
    t = t_interval(2.0, 0.5, 9.0, level)
    below, above = (2.0 - low) / (2.0 - t[0]), (high - 2.0) / (t[1] - 2.0)
    assert 1 - 1e-12 <= min(below, above) <= max(below, above) <= 2 + 1e-12
    assert (above > 1 + 1e-9) == (skew > 0.01)
    assert (below > 1 + 1e-9) == (skew < -0.01)
    mirrored = skewed_interval(-2.0, 0.5, 9.0, -skew, level)
    assert mirrored == pytest.approx((-high, -low))


def test_the_end_is_halls() -> None:
    a, t = 0.2, 2.262157
    _, high = skewed_interval(0.0, 1.0, 9.0, a)
    found = -high  # T at the upper end: (m - mu) / s
    assert found + a * found**2 / 3 + a**2 * found**3 / 27 + a / 6 == pytest.approx(-t, abs=1e-6)


def test_no_error_has_no_width() -> None:
    assert skewed_interval(1.0, 0.0, 3.0, 0.5) == (1.0, 1.0)


def test_skewness_follows_units_and_not_their_size() -> None:
    x = np.array([0.1, 0.3, 0.2, 0.1, 2.0])
    a = skew_of_mean(x)
    assert a > 0.5
    for scale in (1e-200, 1e-9, 1e9, 1e200):
        assert skew_of_mean(scale * x) == pytest.approx(a)
    assert skew_of_mean(5.0 - x) == pytest.approx(-a)
    assert skew_of_mean(x, 0.25) == pytest.approx(a / 8)  # a quarter of the variance, an eighth of the third moment


@pytest.mark.parametrize("x", [[], [1.0], [1.0, 2.0, 9.0], [1.0] * 5, [1e9, 1e9, 1e9, 1e9 + 1e-7]])
def test_nothing_is_said_of_the_shape_of_too_few_or_equal_values(x: list[float]) -> None:
    assert skew_of_mean(np.array(x)) == 0.0


def test_few_seeds_are_few_for_their_skewness() -> None:
    one_of = [few_seeds(np.array([1.0] + [0.0] * (s - 1))) for s in (10, 30)]
    assert one_of == [True, True]
    half = [few_seeds(np.array([1.0, 0.0] * s)) for s in (5, 15)]
    assert half == [False, False]
    rng = np.random.default_rng(0)
    said = [few_seeds(x) for x in rng.normal(size=(2000, 10))]
    assert sum(s is True for s in said) <= 0.05 * 2000
    said = [few_seeds(x) for x in rng.exponential(size=(200, 200))]
    assert sum(s is True for s in said) <= 0.05 * 200


@pytest.mark.parametrize("seeds", [2, 3, 4, 5, 9])
def test_below_ten_seeds_none_is_sure(seeds: int) -> None:
    assert few_seeds(np.arange(float(seeds))) is True
    assert few_seeds(np.ones(1)) is None
    if seeds >= 5:  # an exponential spread: too few to be covered, and to be told from a normal one
        assert held("exponential", seeds)[0] < 0.945
