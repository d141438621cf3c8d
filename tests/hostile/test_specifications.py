"""Specifications by somebody who means harm: each is planned, or refused in one line, in bounded time and memory."""

from __future__ import annotations

import copy
import time
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from hostile.strategies import RECIPES, TEXTS, YAML_TEXT, mutated_recipes
from hydrometer.core.errors import InputError, SpecError, brief
from hydrometer.core.io.yaml_io import apply_overrides, parse_yaml
from hydrometer.models.families import parse_run_spec
from hydrometer.run.graph.plan import MAX_STAGES, plan_run
from hydrometer.run.graph.recipes import load_spec, shipped_recipes
from hydrometer.run.preflight.design import examine_design

BASE = shipped_recipes()
SOURCES = {chain["truth"].get("source") for recipe in RECIPES.values() for chain in recipe["chains"].values()}
PARTS = 4  # of the ten thousand, so that they are made by as many processes as there are
SECONDS = 60.0  # of the processor; a plan of any size that is not refused takes a few
SMALL = settings(
    max_examples=300, derandomize=True, database=None, deadline=None, phases=[Phase.generate],
    suppress_health_check=list(HealthCheck),
)  # fmt: skip
LARGE = settings(SMALL, max_examples=10_000 // PARTS, derandomize=False)


def _harmless(body: dict[str, Any], model: Path, line_of: Any) -> None:
    began = time.process_time()
    for chain in body["chains"].values() if isinstance(body.get("chains"), dict) else ():
        truth = chain.get("truth") if isinstance(chain, dict) else None
        if isinstance(truth, dict) and isinstance(truth.get("source"), str) and truth["source"] in SOURCES:
            chain["truth"] = {**truth, "source": str(model)}
    try:
        spec = parse_run_spec(body, "spec.yaml", BASE)
        plan = plan_run(spec)
        assert 0 < len(plan.nodes) <= MAX_STAGES
        for name in spec.chains:
            examine_design(spec, name)
    except InputError as e:
        line_of(e)
    assert time.process_time() - began < SECONDS


@pytest.mark.smoke
@SMALL
@given(body=mutated_recipes())
def test_a_mutated_recipe_is_planned_or_refused(body: dict[str, Any], deep_model: Path, line_of: Any) -> None:
    _harmless(body, deep_model, line_of)


@pytest.mark.faults
@pytest.mark.timeout(7200)
@pytest.mark.parametrize("part", range(PARTS))
def test_ten_thousand_mutated_recipes(part: int, deep_model: Path, line_of: Any, injected: Any) -> None:
    @LARGE
    @given(body=mutated_recipes())
    def each(body: dict[str, Any]) -> None:
        _harmless(body, deep_model, line_of)

    each()
    injected("specification: a recipe, mutated", "planned, or refused in one line", LARGE.max_examples)


def _read(text: bytes | str, line_of: Any) -> None:
    try:
        parse_run_spec(parse_yaml(text, "spec.yaml"), "spec.yaml", BASE)
    except InputError as e:
        line_of(e)


@SMALL
@given(text=YAML_TEXT)
def test_text_that_resembles_yaml(text: bytes | str, line_of: Any) -> None:
    _read(text, line_of)


@pytest.mark.faults
@pytest.mark.timeout(7200)
@pytest.mark.parametrize("part", range(PARTS))
def test_ten_thousand_texts(part: int, line_of: Any, injected: Any) -> None:
    @LARGE
    @given(text=YAML_TEXT)
    def each(text: bytes | str) -> None:
        _read(text, line_of)

    each()
    injected("specification: text that resembles YAML", "read, or refused in one line", LARGE.max_examples)


@SMALL
@given(
    path=st.one_of(
        TEXTS,
        st.lists(st.sampled_from(["chains", "m", "mixture", "truth", "means", "0", "²", "9" * 5000, "-1", ""])).map(
            ".".join
        ),
    ),
    value=st.one_of(TEXTS, YAML_TEXT.filter(lambda t: isinstance(t, str))),
)
def test_overrides(path: str, value: str, line_of: Any) -> None:
    body = parse_yaml(yaml.safe_dump(RECIPES["paper-mixture"]).replace("*id001", "{}"), "x")
    try:
        parse_run_spec(apply_overrides(body, [f"{path}={value}"]), "spec.yaml", BASE)
    except InputError as e:
        line_of(e)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("a: &a [*a]\n", "itself"),
        ("a: " + "[" * 5000, "levels deep"),
        ("a: 0x" + "f" * 5000, "digits"),
        ("a: " + ":".join(["59"] * 60), "bits"),
        ("a: " + "9" * 100_000, "digits"),
        ("a: [" + "1," * 60_000 + "]", "values"),
        ("a: &a [1]\nb: [" + "*a," * 50 + "]", "aliases"),
        ("a: &a [" + "1," * 30_000 + "]\nb: [" + "*a," * 15 + "]", "aliases make more than"),
        ("? [a]\n: 1\n", "no single value"),
        ("a: !!python/object/apply:os.system [id]", "python"),
        ("a: 2001-99-99", "cannot be read"),
        ("x" * 1_000_001, "too large"),
        ("a: \x00", "plain YAML"),
        (b"\xff\xfe\x00", "UTF-8"),
    ],
)
def test_yaml_bombs(text: str | bytes, said: str, line_of: Any) -> None:
    with pytest.raises(SpecError) as caught:
        parse_yaml(text, "spec.yaml")
    assert said in line_of(caught.value)


@pytest.mark.parametrize(
    ("recipe", "override", "said"),
    [
        ("paper-mixture", "chains.mixture.data.train=1000000000000000000", "less than or equal to"),
        ("paper-mixture", "seeds=1000000000", "seeds must be a number"),
        ("paper-mixture", "seeds=100000", "too many stages"),
        ("paper-mixture", "seeds=[9223372036854775808]", "below 2^63"),
        ("paper-mixture", "chains.mixture.teacher.tol=.nan", "tol"),
        ("paper-mixture", "chains.mixture.teacher.tol=.inf", "tol"),
        ("paper-mixture", "chains.mixture.truth.means.²=1", "no item"),
        ("paper-mixture", "chains.mixture.selectivity=[" + "{weight_power: 2}," * 1001 + "]", "at most 1000"),
        ("mixture-map", "chains.map.grid.separation=[" + ",".join(str(i + 1) for i in range(9000)) + "]", "points"),
        ("paper-mixture", "name=../../x", "a name"),
        ("paper-mixture", "name=/etc", "a name"),
        ("paper-mixture", 'name="a\\0b"', "a name"),
        ("paper-mixture", "chains={../x: {family: mixture}}", "chains"),
        ("markov", "chains.markov.truth={order: 1, text: /dev/zero}", "no file"),
        ("markov", 'chains.markov.truth={order: 1, text: "a\\0b"}', "text"),
    ],
)
def test_numbers_and_names(recipe: str, override: str, said: str, line_of: Any) -> None:
    began = time.process_time()
    with pytest.raises(InputError) as caught:
        plan_run(load_spec(recipe, [override]))
    assert said in line_of(caught.value)
    assert time.process_time() - began < SECONDS


def test_a_point_of_a_map_that_no_float_holds(line_of: Any) -> None:
    body = copy.deepcopy(RECIPES["mixture-map"])
    body["chains"]["map"]["grid"]["teacher"] = [10**400]
    with pytest.raises(SpecError) as caught:
        parse_run_spec(body, "spec.yaml", BASE)
    assert "less than or equal to 1000000" in line_of(caught.value)


def test_a_draw_of_too_many_blocks_is_refused(deep_model: Path, line_of: Any) -> None:
    overrides = [f"chains.smollm2.truth.source={deep_model}", "chains.smollm2.data.train=1000000000000"]
    with pytest.raises(SpecError) as caught:
        plan_run(load_spec("smollm2-cpu", overrides))
    assert "blocks of 128 rows" in line_of(caught.value)


def test_what_was_got_is_shown_whatever_it_is(line_of: Any) -> None:
    itself: list[object] = []
    itself.append(itself)
    wide: Any = 0
    for _ in range(30):
        wide = [wide] * 50

    class Evil:
        def __repr__(self) -> str:
            raise ValueError

    for value in (
        16**5000,
        -(16**5000),
        itself,
        wide,
        Evil(),
        "\x1b[31m\u202e" * 10**6,
        {16**5000: [Evil()]},
        b"\x1b" * 10**7,
    ):
        line = line_of(InputError("wrong", got=value))
        assert "\x1b" not in line
        assert len(brief(value)) <= 200


def test_a_specification_without_an_end_is_not_read_to_it(line_of: Any, tmp_path: Path) -> None:
    (tmp_path / "zero.yaml").symlink_to("/dev/zero")
    with pytest.raises(SpecError) as caught:
        load_spec(tmp_path / "zero.yaml")
    assert "too large" in line_of(caught.value)
