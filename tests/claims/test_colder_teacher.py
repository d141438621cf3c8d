"""Cooled mixtures in closed form, where components lie far apart; and a small world of both kinds."""

from __future__ import annotations

import numpy as np
import pytest

from hydrometer.claims.measures.colder_teacher import Mixtures, World, as_cold, measure
from hydrometer.claims.worlds import mixture_entropy
from hydrometer.models.mixture.law import Mixture

APART = Mixture([0.7, 0.3], [[-40.0], [40.0]], [1.0, 4.0], covariance_type="spherical")


def _entropy(weights: np.ndarray) -> float:
    own = 0.5 * np.log(2 * np.pi * np.e * np.array([1.0, 4.0]))
    return float(weights @ (own - np.log(weights)))


def test_a_mixture_is_cooled_to_an_entropy() -> None:
    expected = np.array([0.7**3, 0.3**3]) / (0.7**3 + 0.3**3)
    law, there = as_cold(APART, _entropy(expected))
    assert there
    assert law.weights == pytest.approx(expected, rel=1e-6)


def test_one_that_cannot_be_that_cold_goes_as_far_as_it_can() -> None:
    law, there = as_cold(APART, 0.5 * np.log(2 * np.pi * np.e) - 0.1)
    assert not there
    assert law.weights == pytest.approx([1.0, 0.0], abs=1e-12)
    same, there = as_cold(APART, 5.0)
    assert not there
    assert same.weights == pytest.approx(APART.weights, rel=1e-12)


def test_a_student_of_one_has_nothing_to_cool() -> None:
    chain = {"students": (1,), "path": (1.0,), "max_new_tokens": 6, "late": (), "train": 100, "distill": 100}
    mixtures = Mixtures(students=(1, 2), powers=(1.0, 50.0), train=50, distill=200)
    world = World(**chain, mixtures=mixtures)
    a, b = (measure(world, range(3)) for _ in range(2))
    assert a.checks == b.checks
    found = {(c.condition, c.figure.partition(",")[0]): c.estimate for c in a.checks}
    assert len(a.checks) == 3 + 2 * 3
    for figure in ("value", "se"):  # its cooled self is the warm student
        warm, cooled = (
            getattr(found[f"{of}, mixtures, student of 1", "precision"], figure)
            for of in ("against a warm teacher", "against cooling")
        )
        assert warm == pytest.approx(cooled, rel=1e-9)
    line = next(x for x in a.charts[-1].lines if x.label == "student of 1")
    gain = line.y[1] - line.y[0]
    assert found["against a warm teacher, mixtures, student of 1", "precision"].value == pytest.approx(gain, rel=1e-9)


def test_the_papers_truth_is_the_recipes() -> None:
    truth = Mixtures().truth.law()
    assert truth.n_components == 8
    assert mixture_entropy(truth) == pytest.approx(1.224, abs=5e-4)  # docs, The paper
