"""Selectivities that choose among candidates: what is refused, what is equal, what is neutral."""

import itertools
import math
from typing import Any

import pytest
from pydantic import ValidationError

from hydrometer.core.io.yaml_io import explain
from hydrometer.core.spec import ChainSpec, Selectivity
from hydrometer.models.finite_selectivity import canonical

LENGTH = {"by": "length", "min": 2, "max": 5}


def setting(**fields: Any) -> Selectivity:
    return Selectivity.model_validate(fields)


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"best_of": 4}, "go together"),
        ({"rank_by": "length"}, "go together"),
        ({"best_of": 0, "rank_by": "length"}, "greater than or equal to 1"),
        ({"best_of": 1e9, "rank_by": "length"}, "less than or equal to"),
        ({"best_of": 2.5, "rank_by": "length"}, "integer"),
        ({"best_of": 2, "rank_by": "../../x"}, "a name"),
        ({"best_of": 2, "rank_by": "--length"}, "a name"),
        ({"best_of": 2, "rank_by": ""}, "a name"),
        ({"best_of": 2, "rank_by": "x" * 65}, "a name"),
        ({"accept": {"by": "length"}}, "min, max, or both"),
        ({"accept": {"by": "length", "min": 3, "max": 2}}, "min not above max"),
        ({"accept": {"by": "length", "min": math.nan}}, "finite"),
        ({"accept": {"by": "length", "max": math.inf}}, "finite"),
        ({"accept": {"by": "-length", "max": 3}}, "a name"),
        ({"accept": {"min": 1}}, "missing"),
        ({"accept": {"by": "length", "minimum": 1}}, "did you mean 'min'"),
        ({"accept": {"by": "length", "min": 1, "tries": 0}}, "greater than or equal to 1"),
        ({"accept": "length"}, "valid dictionary"),
    ],
)
def test_wrong_choices_are_refused(fields: dict[str, Any], says: str) -> None:
    with pytest.raises(ValidationError) as caught:
        Selectivity.model_validate(fields)
    message = str(explain(caught.value, "here"))
    assert says in message
    assert "\n" not in message


def test_tries_are_no_part_of_the_law() -> None:
    few, many = (setting(accept=LENGTH | {"tries": n}) for n in (10, 1000))
    assert few == many
    assert hash(few) == hash(many)
    assert few.to_json() == many.to_json() == {"accept": {"by": "length", "min": 2.0, "max": 5.0}}
    assert few.model_dump()["accept"]["tries"] == 10  # the run keeps what was written
    with pytest.raises(ValidationError, match="listed twice"):
        ChainSpec.model_validate({"family": "markov", "selectivity": [few, many]})


def test_settings_that_differ_have_other_names() -> None:
    made = [
        setting(best_of=4, rank_by="length"), setting(best_of=4, rank_by="-length"),
        setting(best_of=8, rank_by="length"), setting(best_of=4, rank_by="log_prob"),
        setting(best_of=4, rank_by="length", temperature=0.8), setting(accept=LENGTH),
        setting(accept={"by": "length", "min": 2}), setting(accept={"by": "length", "max": 5}),
        setting(accept={"by": "stopped", "min": 2, "max": 5}), setting(accept=LENGTH, best_of=4, rank_by="length"),
        setting(accept={"by": "length", "max": 2}), setting(temperature=0.8),
    ]  # fmt: skip
    for a, b in itertools.combinations(made, 2):
        assert a != b
        assert a.slug != b.slug
        assert a.label != b.label
        assert a.to_json() != b.to_json()
    assert all(s == Selectivity.model_validate(s.to_json()) for s in made)
    assert all(set(s.slug) <= set("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_-.") for s in made)


def test_best_of_one_is_neutral_and_the_candidates_are_what_is_left() -> None:
    assert canonical(setting(best_of=1, rank_by="length")) is None
    assert not setting(best_of=1, rank_by="length", temperature=0.5).chooses
    assert setting(best_of=2, rank_by="length").chooses
    assert setting(accept=LENGTH).chooses
    assert not setting(accept=LENGTH).is_neutral
    assert setting(best_of=2, rank_by="length").candidates is None
    both = setting(best_of=2, rank_by="length", accept=LENGTH, temperature=0.5, top_p=0.9)
    assert both.candidates == Selectivity(temperature=0.5, top_p=0.9)
    assert both.label == "temperature 0.5, top_p 0.9, best of 2 by length, accept 2 <= length <= 5"
