"""Figures that cannot be right are found, and sound ones are left alone."""

from __future__ import annotations

from dataclasses import replace

import hydrometer as hm
from hydrometer.core.findings import FIGURE_CODES
from hydrometer.core.statistics.estimate import Estimate
from hydrometer.metrics.plausibility import implausible

GOOD = Estimate(1.0, 0.1, 0.1, 100, 0, "cv", "nats", plain=1.2, plain_se=0.3)


def codes(**metrics: Estimate) -> list[str]:
    return [f.code for f in implausible("m", {"m.student": metrics})]


def test_sound_figures_are_left_alone() -> None:
    assert codes(kl_student_truth=GOOD, precision=replace(GOOD, value=-3.0, plain=-2.9)) == []
    p, q = (hm.Mixture([1.0], [[m]], [1.0], covariance_type="spherical") for m in (0.0, 1.0))
    assert implausible("m", {"q": hm.judge(p, q, n=500), "p": hm.judge(p, p, n=500)}) == []


def test_a_divergence_below_zero_is_found() -> None:
    below = replace(GOOD, value=-0.5, plain=-0.4)
    assert codes(kl_student_truth=below) == ["kl-below-zero"]
    assert codes(entropy=below) == []
    assert codes(kl_truth_student_per_token=replace(below, value=-0.1)) == []  # its interval reaches zero


def test_an_adjusted_mean_far_from_the_plain_one_is_found() -> None:
    assert codes(precision=replace(GOOD, plain=1.0 + 4.9 * 0.28)) == []
    assert codes(precision=replace(GOOD, plain=1.0 + 5.1 * 0.29)) == ["controls-disagree"]
    (said,) = implausible("m", {"m.student": {"precision": replace(GOOD, plain=2.5)}})
    assert said.what == (
        "1 figure whose estimate with control variates and plain mean differ by more than 5 standard errors: "
        "precision (1 and 2.5) of m.student"
    )


def test_controls_that_explain_nothing_disagree_by_chance() -> None:
    useless = replace(GOOD, se=0.3, se_mc=0.3, plain=1.2, plain_se=0.3)
    assert codes(precision=useless) == []
    assert codes(precision=replace(useless, plain=1.31)) == ["controls-disagree"]


def test_what_is_found_is_listed_once() -> None:
    below = replace(GOOD, value=-0.5, plain=-0.4)
    (found,) = implausible("m", {f"cell{i}": {"kl_student_truth": below} for i in range(5)})
    assert found.chain == "m"
    assert "5 figures" in found.what
    assert "cell0" in found.what
    assert "2 more" in found.what
    assert found.code in FIGURE_CODES
