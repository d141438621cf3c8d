"""From checks to a verdict, against intervals computed by hand and by scipy."""

from __future__ import annotations

import pytest
from scipy import stats

from hydrometer.claims.claim_verdict import Check, checked, over_worlds, verdict_of
from hydrometer.core.errors import InputError
from hydrometer.core.statistics.estimate import Estimate


def sure(condition: str, value: float, says: str = "above") -> Check:
    return Check(condition, "recall, nats", Estimate(value, 0.0, 0.0, 0, method="exact"), says)


def verdict(*checks: Check) -> tuple[str, tuple[str, ...]]:
    return verdict_of(checked(checks))


def test_conditions_make_the_verdict() -> None:
    unsure = Check("c", "recall, nats", over_worlds([-1.0, 1.0, 0.5]), "above")
    assert verdict(sure("a", 1), sure("b", 2)) == ("holds", ("a", "b"))
    assert verdict(sure("a", 1), sure("b", -2)) == ("holds only where", ("a",))
    assert verdict(sure("a", -1), sure("a", 2)) == ("does not hold", ())  # one check of two is enough
    assert verdict(sure("a", 1), unsure) == ("undecided", ("a",))
    assert verdict(sure("a", -1), unsure) == ("does not hold", ())
    assert verdict(unsure) == ("undecided", ())
    assert verdict(sure("a", -1, "below")) == ("holds", ("a",))


def test_intervals_hold_for_all_checks_together() -> None:
    values = [0.2, 0.5, 0.9, 0.7, 0.1]
    few, many = (checked([Check("a", "x", over_worlds(values), "above")] * n)[0] for n in (1, 20))
    for found, level in ((few, 0.95), (many, 1 - 0.05 / 20)):
        expected = stats.t.interval(level, 4, loc=0.48, scale=stats.sem(values))
        assert found.interval == pytest.approx(expected, rel=1e-9)
    assert few.found == "as claimed"
    assert many.found == "undecided"


@pytest.mark.parametrize("values", [[1.0], [1.0, float("nan")], [1.0, float("inf")]])
def test_few_or_infinite_worlds_are_refused(values: list[float]) -> None:
    with pytest.raises(InputError, match="two finite numbers"):
        over_worlds(values)


def test_a_figure_is_worded_with_the_interval_that_decides_it() -> None:
    values = [0.2, 0.5, 0.9, 0.7, 0.1]
    found = checked([Check("a", "x", over_worlds(values), "above")])[0]
    low, high = stats.t.interval(0.95, 4, loc=0.48, scale=stats.sem(values))
    assert found.measured == f"0.48 ({low:.3g} to {high:.3g})"
    assert found.to_json()["measured"] == found.measured
    assert checked([sure("a", 1.25)])[0].measured == "1.25"
