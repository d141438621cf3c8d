"""Records as the page shows them."""

from __future__ import annotations

import pytest

from hydrometer.report.data.capacity_gap import Correlation
from hydrometer.report.read_results import parse
from hydrometer.report.typed_results import Figure, Group
from hydrometer.report.words.grid_text import _correlation
from hydrometer.store.migrate import SCHEMA


@pytest.mark.parametrize(
    ("given", "shown"),
    [
        ([{"weight_power": 3}, {"weight_power": 1}, {"weight_power": "inf"}, {"weight_power": 10}], [1, 3, 10, "inf"]),
        ([{"temperature": 0.8}, {"temperature": 1.2}, {"temperature": 1}], [1.2, 1, 0.8]),
    ],
)
def test_settings_of_one_number_stand_in_its_order(given: list[dict[str, object]], shown: list[object]) -> None:
    """Records have them by achieved entropy, where chance orders settings that change nothing."""
    tradeoff = [{"selectivity": s, "coldest": i == 2} for i, s in enumerate(given)]
    run = parse({"schema": SCHEMA, "summary": {"chains": {"c": {"tradeoff": tradeoff}}}})
    steps = run.chains["c"].tradeoff
    assert [next(iter(s.selectivity.values())) for s in steps] == [float(str(v)) for v in shown]
    assert [s.selectivity for s in steps if s.coldest] == [{k: float(str(v)) for k, v in given[2].items()}]


def test_settings_of_several_numbers_stay_in_the_order_of_the_records() -> None:
    given = [{"temperature": 0.8, "top_p": 0.9}, {"temperature": 1.0}, {"temperature": 0.9}]
    run = parse({"schema": SCHEMA, "summary": {"chains": {"c": {"tradeoff": [{"selectivity": s} for s in given]}}}})
    assert [s.selectivity for s in run.chains["c"].tradeoff] == given


def test_points_without_a_sign_are_counted_too() -> None:
    assert "2 negative, 1 positive, 1 zero" in _correlation(Correlation(-0.1, (-1.0, 1.0), 4, 2, 1, 0))
    assert "zero" not in _correlation(Correlation(-0.1, (-1.0, 1.0), 3, 2, 1, 0))


def test_an_interval_reaches_as_far_as_its_ends() -> None:
    figures = {
        "a": Figure(2.0, 1.0, (-1.0, 3.5), "nats", 0),
        "b": Figure(None, None, None, "nats", 3),
        "c": Figure(2.0, 1.0, None, "nats", 0),
    }
    group = Group("g", "c", "student", 1, "direct", None, None, 5, 0, figures)
    assert group.reach("a") == (3.0, 1.5)
    assert group.reach("a", -1.0) == (1.5, 3.0)  # of minus it
    assert [group.reach(m) for m in ("b", "c", "none")] == [None] * 3
