"""Modes covered and the capacity gap, where they can be counted by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import norm

import hydrometer as hm
from hydrometer.core.statistics.estimate import Estimate
from hydrometer.metrics.modes import capacity_gap, emphasised, mode_metrics, modes_covered
from hydrometer.models.mixture.law import Mixture

GRID = [[-1, 1], [0, 1], [1, 1], [-1, 0], [1, 0], [-1, -1], [0, -1], [1, -1]]
PAPER = Mixture([1 / 8] * 8, GRID, [0.025] * 8, covariance_type="spherical")
HARD = hm.Selectivity(weight_power=math.inf)


def value(truth: Mixture, law: Mixture, name: str) -> float:
    e = mode_metrics(truth, law)[name]
    assert e.value is not None
    assert (e.se, e.method) == (0.0, "exact")
    return e.value


def test_the_truth_covers_itself_and_each_component_one_mode() -> None:
    assert value(PAPER, PAPER, "modes_covered") == 8
    assert value(PAPER, PAPER, "n_components") == 8
    assert value(PAPER, PAPER, "effective_components") == pytest.approx(8, rel=1e-12)
    for k in range(8):
        alone = PAPER.component(k)
        assert value(PAPER, alone, "modes_covered") == 1
        assert value(PAPER, alone, "effective_components") == 1


@pytest.mark.parametrize("kind", ["full", "tied", "diag", "spherical"])
def test_all_forms_of_covariance_count_alike(kind: str) -> None:
    eye = 0.025 * np.eye(2)
    covariances = {"full": np.stack([eye] * 3), "tied": eye, "diag": np.full((3, 2), 0.025), "spherical": [0.025] * 3}
    law = Mixture([0.5, 0.3, 0.2], GRID[:3], covariances[kind], covariance_type=kind)  # pyright: ignore
    assert value(PAPER, law, "modes_covered") == 3
    assert value(law, PAPER, "modes_covered") == 3


def test_a_sharpened_teacher_covers_what_its_heaviest_components_cover() -> None:
    weights = [0.25, 0.25, 0.2, 0.3 - 1e-9, 1e-9]
    wide = [[0.025, 0.025]] * 3 + [[0.025, 0.6], [0.025, 0.025]]
    teacher = Mixture(weights, [[-1, 1], [0, 1], [1, 1], [1, 0], [0, -1]], wide, covariance_type="diag")
    heaviest = teacher.component(3)
    assert modes_covered(PAPER, teacher.select(HARD)) == modes_covered(PAPER, heaviest) == 3
    tied = Mixture([0.4, 0.4, 0.2], GRID[:3], [0.025] * 3, covariance_type="spherical")
    assert modes_covered(PAPER, tied.select(HARD)) == 2
    # The wide one alone reaches three modes, of which one is covered twice; the lightest is not emphasised.
    assert modes_covered(PAPER, teacher) == 5


def test_emphasised_are_the_fewest_that_hold_the_mass() -> None:
    def named(weights: list[float]) -> list[int]:
        k = len(weights)
        return emphasised(Mixture(weights, np.arange(k)[:, None], [1.0] * k, covariance_type="spherical")).tolist()

    assert named([0.04, 0.96]) == [1]
    assert named([0.06, 0.94]) == [1, 0]
    assert named([0.05, 0.95]) == [1]
    assert named([0.0, 1.0, 0.0]) == [1]
    assert named([0.25] * 4) == [0, 1, 2, 3]
    assert named([0.05] * 20) == list(range(19))


@given(st.lists(st.floats(1e-6, 1), min_size=1, max_size=12), st.sampled_from((1.0, 3.0, 30.0, math.inf)))
def test_emphasised_hold_it_and_one_fewer_would_not(raw: list[float], beta: float) -> None:
    k = len(raw)
    weights = np.array(raw) / np.sum(raw)
    law = Mixture(weights, np.arange(k)[:, None], [1.0] * k, covariance_type="spherical")
    law = law.select(hm.Selectivity(weight_power=beta))
    chosen = emphasised(law)
    w = law.weights
    assert w[chosen].sum() >= 0.95 - 1e-9
    assert w[chosen[:-1]].sum() < 0.95
    assert len(chosen) == k or w[chosen].min() >= np.delete(w, chosen).max()
    effective = value(law, law, "effective_components")
    assert 1 - 1e-12 <= effective <= (w > 0).sum() * (1 + 1e-12)


def test_responsibilities_are_those_of_the_truth() -> None:
    """In one dimension, between two modes: the share of a narrow component is a logistic function of its place."""
    truth = Mixture([0.5, 0.5], [[-1.0], [1.0]], [1.0, 1.0], covariance_type="spherical")
    edge = 0.5 * math.log(3)  # log odds of 2 x are log 3 there: responsibilities 1/4 and 3/4
    for at, modes in ((edge - 0.05, 2), (edge + 0.05, 1), (-edge + 0.05, 2), (-edge - 0.05, 1), (0.0, 2), (40.0, 1)):
        law = Mixture([1.0], [[at]], [1e-8], covariance_type="spherical")
        assert modes_covered(truth, law) == modes
    # A wide one averages over its points: by quadrature, a standard deviation either side of 1/4.
    x = np.linspace(-40, 40, 400_001)
    for mean, sd in ((2.0, 1.0), (1.0, 3.0), (0.7, 1.0), (1.2, 0.2)):
        share = float((norm.pdf(x, mean, sd) / (1 + np.exp(2 * x))).sum() * (x[1] - x[0]))
        assert abs(share - 0.25) > 0.02
        law = Mixture([1.0], [[mean]], [sd**2], covariance_type="spherical")
        assert modes_covered(truth, law) == (2 if share > 0.25 else 1)


def test_a_law_far_from_every_mode_covers_the_one_nearest() -> None:
    for far in (1e3, 1e6, 1e9):
        law = Mixture([1.0], [[far, 0.9 * far]], [1.0], covariance_type="spherical")
        assert modes_covered(PAPER, law) == 1


def test_modes_without_weight_are_not_covered() -> None:
    truth = Mixture([0.5, 0.5, 0.0], [[-3.0], [3.0], [0.0]], [1.0, 1.0, 1.0], covariance_type="spherical")
    assert modes_covered(truth, truth) == 2
    assert modes_covered(truth, truth.component(2)) == 2


def test_capacity_gap_is_modes_less_components() -> None:
    teacher = Mixture([0.4, 0.3, 0.3], GRID[:3], [0.025] * 3, covariance_type="spherical")
    for law, modes in ((teacher, 3), (teacher.select(HARD), 1), (PAPER, 8)):
        for k in (1, 2, 4):
            student = Mixture([1 / k] * k, GRID[:k], [0.1] * k, covariance_type="spherical")
            gap = capacity_gap(mode_metrics(PAPER, law), mode_metrics(PAPER, student))
            assert gap is not None
            assert (gap.value, gap.se, gap.method) == (modes - k, 0.0, "exact")
    assert capacity_gap({}, mode_metrics(PAPER, teacher)) is None
    assert capacity_gap(mode_metrics(PAPER, teacher), {}) is None
    unknown = {"modes_covered": Estimate(None, None, None, 0, 0, "exact", "modes")}
    assert capacity_gap(unknown, mode_metrics(PAPER, teacher)) is None
