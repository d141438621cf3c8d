"""Tilts in specifications: what is refused, what is equal, what is written and read back."""

import itertools
import json
from typing import Any

import pytest
from pydantic import ValidationError

from hydrometer.core.distillation import Distillation, parse_wanted
from hydrometer.core.errors import SpecError
from hydrometer.core.io.yaml_io import explain, parse_yaml
from hydrometer.core.spec import Selectivity, Tilt, parse_selectivity
from hydrometer.models.finite_selectivity import canonical
from hydrometer.report.values import read_setting
from hydrometer.report.wording import setting as worded

HERE = {"center": [0, 1], "width": 0.5}


def tilted(reward: object, strength: float = 0.5, **others: Any) -> Selectivity:
    return Selectivity.model_validate({"tilt": {"reward": reward, "strength": strength}, **others})


@pytest.mark.parametrize(
    ("tilt", "says"),
    [
        ({"reward": "length"}, "tilt.strength: this key is missing"),
        ({"strength": 1}, "tilt.reward: this key is missing"),
        (
            {"reward": "length", "strength": 0},
            "tilt.strength: the strength b of a tilt must be a finite number above 0",
        ),
        ({"reward": "length", "strength": float("nan")}, "above 0"),
        ({"reward": "length", "strength": float("inf")}, "above 0"),
        ({"reward": "lenght", "strength": 1}, "'length' or '-length'"),
        ({"reward": "length", "beta": 1}, "unknown key 'beta'"),
        ({"reward": 3, "strength": 1}, "valid dictionary"),
        ({"reward": {}, "strength": 1}, "one of tokens, starts_with, quadratic, bump"),
        (
            {"reward": {"tokens": {1: 1}, "starts_with": 2}, "strength": 1},
            "one of tokens, starts_with, quadratic, bump",
        ),
        ({"reward": {"contains": 3}, "strength": 1}, "tokens: {ID: 1} counts it, starts_with: ID reads the first"),
        ({"reward": {"start_with": 3}, "strength": 1}, "did you mean 'starts_with'"),
        ({"reward": {"starts_with": -1}, "strength": 1}, "greater than or equal to 0"),
        ({"reward": {"tokens": {}}, "strength": 1}, "at least 1 item"),
        ({"reward": {"tokens": [1, 2]}, "strength": 1}, "a mapping of ids to values"),
        ({"reward": {"tokens": {"a": 1}}, "strength": 1}, "valid integer"),
        ({"reward": {"tokens": {-1: 1}}, "strength": 1}, "greater than or equal to 0"),
        ({"reward": {"tokens": {1: float("inf")}}, "strength": 1}, "finite"),
        ({"reward": {"tokens": {1: 0}}, "strength": 1}, "changes nothing"),
        ({"reward": {"tokens": {1: 1, "1": 2}}, "strength": 1}, "two values"),
        ({"reward": {"quadratic": {"center": [0]}}, "strength": 1}, "width: this key is missing"),
        ({"reward": {"quadratic": HERE | {"height": 1}}, "strength": 1}, "unknown key 'height'"),
        ({"reward": {"quadratic": {"center": [], "width": 1}}, "strength": 1}, "at least 1 item"),
        ({"reward": {"quadratic": {"center": [0], "width": 0}}, "strength": 1}, "greater than 0"),
        ({"reward": {"quadratic": {"center": [0], "width": [1, 2]}}, "strength": 1}, "as many as center has"),
        ({"reward": {"quadratic": {"center": [float("nan")], "width": 1}}, "strength": 1}, "finite"),
        ({"reward": {"bump": HERE}, "strength": 1}, "height: this key is missing"),
        ({"reward": {"bump": HERE | {"height": -1}}, "strength": 1}, "greater than 0"),
        ("length", "valid dictionary"),
    ],
)
def test_wrong_tilts_are_refused_in_one_line(tilt: object, says: str) -> None:
    with pytest.raises(ValidationError) as caught:
        Selectivity.model_validate({"tilt": tilt})
    message = str(explain(caught.value, "here", {"tilt": tilt}))
    assert says in message
    assert "\n" not in message


MADE = [
    tilted("length"), tilted("-length"), tilted("length", 0.25), tilted("length", temperature=0.8),
    tilted("length", best_of=2, rank_by="length"), tilted({"tokens": {3: 1}}), tilted({"tokens": {3: -1}}),
    tilted({"tokens": {3: 1, 0: 2}}), tilted({"tokens": dict.fromkeys(range(40), 1.5)}),
    tilted({"tokens": dict.fromkeys(range(41), 1.5)}), tilted({"starts_with": 3}), tilted({"starts_with": 0}),
    tilted({"quadratic": HERE}), tilted({"quadratic": {"center": [0, 1], "width": [0.5, 1]}}),
    tilted({"bump": HERE | {"height": 1}}), tilted({"bump": HERE | {"height": 2}}),
    tilted({"bump": HERE | {"height": 2}}, weight_power=3), Selectivity(temperature=0.8),
]  # fmt: skip


def test_tilts_that_differ_have_other_names_and_come_back_as_they_were() -> None:
    for a, b in itertools.combinations(MADE, 2):
        assert a != b
        assert a.slug != b.slug
        assert a.label != b.label
    safe = set("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_-.")
    for s in MADE:
        assert set(s.slug) <= safe
        assert len(s.slug) < 120
        written = json.loads(json.dumps(s.to_json()))
        again = Selectivity.model_validate(written)
        assert (again, hash(again), again.to_json()) == (s, hash(s), s.to_json())
        kept = json.loads(json.dumps(s.model_dump(mode="json", exclude_none=True)))  # as a run's folder keeps it
        assert Selectivity.model_validate(kept) == s
        assert Distillation.from_json(Distillation(s).to_json()) == Distillation(s)
        assert not s.is_neutral
        assert canonical(s) is s


def test_the_order_of_ids_and_whole_numbers_make_no_difference() -> None:
    a, b = tilted({"tokens": {3: 1, 5: 2}}, 1), tilted({"tokens": {"5": 2.0, "3": 1.0}}, 1.0)
    assert a == b
    assert json.dumps(a.to_json()) == json.dumps(b.to_json())


def test_selectivities_without_a_tilt_are_written_as_before() -> None:
    assert Selectivity(temperature=0.8, top_p=0.9).to_json() == {"temperature": 0.8, "top_p": 0.9}
    assert "tilt" not in Selectivity(temperature=0.8).model_dump(exclude_none=True)


def test_a_tilt_is_part_of_the_candidates_law_and_what_it_tilts_is_the_rest() -> None:
    s = tilted("length", temperature=0.8, best_of=4, rank_by="log_prob")
    assert s.candidates == tilted("length", temperature=0.8)
    assert s.untilted == Selectivity(temperature=0.8)
    assert tilted("length").untilted is None
    assert tilted("length").candidates == tilted("length")
    assert Selectivity(best_of=4, rank_by="length").candidates is None


def test_a_command_line_takes_a_tilt() -> None:
    s = parse_selectivity("temperature=0.8, tilt={strength: 0.5, reward: {tokens: {3: 1, 0: -2}}}")
    assert s == tilted({"tokens": {3: 1, 0: -2}}, temperature=0.8)
    assert parse_selectivity("accept={by: length, max: 5}") == Selectivity.model_validate(
        {"accept": {"by": "length", "max": 5}}
    )
    found = parse_wanted("tilt={reward: {bump: {center: [0, 1], width: 0.5, height: 1}}, strength: 0.5},loss=jsd")
    assert found is not None
    assert found.selectivity == tilted({"bump": HERE | {"height": 1}})
    assert found.objective is not None
    with pytest.raises(SpecError):
        parse_selectivity("tilt={reward: length, strength: 1")


def test_yaml_has_whole_numbers_as_ids() -> None:
    found = parse_yaml("tilt: {reward: {tokens: {3: 1, 0: -0.5}}, strength: 2}", "here")
    assert Selectivity.model_validate(found) == tilted({"tokens": {3: 1, 0: -0.5}}, 2)


def test_pages_name_a_tilt_and_never_take_it_for_neutral() -> None:
    for s in MADE[:-1]:
        found = read_setting(s.to_json())
        assert found is not None
        assert s.tilt is not None
        assert s.tilt.label in worded(found)
    assert read_setting({"temperature": 1, "tilt": {"reward": "<b>", "strength": 1}}) == {"temperature": 1.0}
    with pytest.raises(SpecError, match="unknown key"):
        Tilt(reward="length", strenght=1)  # pyright: ignore[reportCallIssue]
