import contextlib
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from hydrometer.core.errors import SpecError, one_line
from hydrometer.core.io.yaml_io import apply_overrides, explain, parse_yaml
from hydrometer.core.spec import Selectivity, as_tuple, as_tuples


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"temperature": 0}, "temperature must be"),
        ({"temperature": -1}, "temperature must be"),
        ({"temperature": math.inf}, "temperature must be"),
        ({"temperature": math.nan}, "temperature must be"),
        ({"top_p": 0}, "top_p must lie"),
        ({"top_p": 1.1}, "top_p must lie"),
        ({"min_p": -0.1}, "min_p must lie"),
        ({"top_k": 0}, "top_k must be"),
        ({"weight_power": 0.5}, "weight_power (beta) must be at least 1"),
        ({"weight_power": math.nan}, "weight_power (beta) must be at least 1"),
        ({"weight_power": 2, "temperature": 0.5}, "cannot be combined"),
        ({}, "needs one of"),
        ({"temprature": 0.5}, "did you mean 'temperature'"),
    ],
)
def test_wrong_selectivities_are_refused(fields: dict[str, float], says: str) -> None:
    with pytest.raises(ValidationError) as caught:
        Selectivity.model_validate(fields)
    message = str(explain(caught.value, "here"))
    assert says in message
    assert "\n" not in message


def test_selectivity_says_infinity_as_a_string_and_reads_it_back() -> None:
    s = Selectivity(weight_power=math.inf)
    assert s.to_json() == {"weight_power": "inf"}
    assert Selectivity.model_validate({"weight_power": "inf"}) == s


def test_slugs_differ_where_laws_differ() -> None:
    settings = [
        Selectivity(temperature=0.8), Selectivity(temperature=0.80000001), Selectivity(temperature=0.8, top_p=0.95),
        Selectivity(top_k=8), Selectivity(weight_power=8), Selectivity(weight_power=math.inf),
    ]  # fmt: skip
    assert len({s.slug for s in settings}) == len(settings)


BOMB = "a: &a [x, x]\n" + "\n".join(
    f"{c}: &{c} [*{p}, *{p}, *{p}]" for p, c in zip("abcdefgh", "bcdefghi", strict=True)
)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        (b"", "mapping"),
        (b"- 1\n- 2", "mapping"),
        (b"just words", "mapping"),
        (b"\x00\x01\x02", "not plain YAML"),
        (b"\xff\xfe\x00", "not text"),
        (b"a: !!python/object/apply:os.system ['true']", "not plain YAML"),
        (b"!!python/object:dict {}", "not plain YAML"),
        (BOMB.encode(), "aliases"),
        (b"a: 1\na: 2", "twice"),
        (b"a: [1", "not plain YAML"),
        (b"a:\n  b: 1\n c: 2", "line 3: it does not fit the block above it; got 'c: 2'"),
        (b"a:\n\tb: 1", "line 2: a tab in the indentation; got 'b: 1'; indent with blanks"),
        (b"a: 1\nb: c: 2", "line 2: mapping values are not allowed here; got 'b: c: 2'"),
        (b"? {a: 1}\n: 2", "not plain YAML"),
        (b"a: 1\n---\nb: 2", "not plain YAML"),
        (b"a: " + b"[" * 5000, "cannot be read"),
        (b"x: " + b"y" * 1_000_001, "too large"),
    ],
)
def test_bad_yaml_is_one_line(text: bytes, says: str) -> None:
    with pytest.raises(SpecError) as caught:
        parse_yaml(text, "spec.yaml")
    assert says in str(caught.value)
    assert "\n" not in str(caught.value)


@given(st.binary(max_size=200))
def test_yaml_never_raises_anything_else(text: bytes) -> None:
    with contextlib.suppress(SpecError):
        assert parse_yaml(text, "x")


def test_overrides_reach_into_lists_and_make_keys() -> None:
    data: dict[str, object] = {"a": [{"b": 1}, {"b": 2}]}
    assert apply_overrides(data, ["a.1.b=[3, 4]", "c.d=.inf"]) == {"a": [{"b": 1}, {"b": [3, 4]}], "c": {"d": math.inf}}


@pytest.mark.parametrize("item", ["a", "=1", "a..b=1", "a.5.b=1", "b.c=1", "a=[1"])
def test_bad_overrides_are_refused(item: str) -> None:
    with pytest.raises(SpecError):
        apply_overrides({"a": [{"b": 1}], "b": 2}, [item])


def test_messages_are_one_harmless_line() -> None:
    hostile = "a\nb\x1b[31m\u202ec"
    assert one_line(hostile).isprintable()
    assert "\n" not in str(SpecError("x", got=hostile))


def test_lists_become_tuples() -> None:
    assert as_tuple([1, [2]]) == (1, [2])
    assert as_tuples([1, [2, [3]]]) == (1, (2, (3,)))
    assert as_tuple("ab") == as_tuples("ab") == "ab"
