"""Every claim of the gallery has a measure, a kept verdict and a page; `run` measures one, and refuses what is none."""

from __future__ import annotations

import importlib.util
import json
import re
from dataclasses import replace
from pathlib import Path

import pytest
from typer.testing import CliRunner

from hydrometer.claims import claims, load_claim, run_claim
from hydrometer.claims.claim_spec import measure_of
from hydrometer.claims.run_claim import about
from hydrometer.cli.commands import app
from hydrometer.core.errors import MissingDependencyError, ModelError, SpecError
from hydrometer.core.spec import Strict
from hydrometer.run.graph.recipes import load_spec

DOCS = Path(__file__).parents[2] / "docs" / "claims"
SMALL = [
    *("seeds=3", "world.students=[1]", "world.path=[1.0, 0.5]", "world.max_new_tokens=8", "world.late=[]"),
    *("world.mixtures.students=[2]", "world.mixtures.powers=[1.0, 30.0]"),
]


@pytest.mark.parametrize("name", claims())
def test_each_claim_is_whole(name: str) -> None:
    spec = load_claim(name)
    assert spec.name == name
    measure, _ = measure_of(spec)
    assert callable(measure.measure)
    kept = json.loads((DOCS / "verdicts.json").read_text("utf-8"))[name]
    page = (DOCS / f"{name}.md").read_text("utf-8")
    assert kept["says"] == spec.says
    assert f"{kept['words'][1:]}.**" in page
    assert (DOCS / f"{name}.svg").is_file()


@pytest.mark.parametrize("name", claims())
def test_a_page_says_what_each_parameter_of_a_world_is(name: str) -> None:
    _, world = measure_of(load_claim(name))
    parts = [world, *(value for _, value in world if isinstance(value, Strict))]
    named = {field for part in parts if type(part).__module__.startswith("hydrometer.claims") for field, _ in part}
    assert sorted(named - set(re.findall(r"\w+", about(world)))) == []


@pytest.mark.parametrize("name", [n for n in claims() if load_claim(n).in_runs])
def test_figures_of_runs_stand_on_their_pages(name: str) -> None:
    said = load_claim(name).in_runs
    assert said in (DOCS / f"{name}.md").read_text("utf-8")
    linked = [(DOCS / place).resolve() for place in re.findall(r"\]\((.+?)\)", said)]
    pages = " ".join(p.read_text("utf-8") for p in linked).replace("\N{MINUS SIGN}", "-")
    figures = re.findall(r"-?\d[\d.]* (?:to|±) -?\d+(?:\.\d+)?", said)
    assert len(figures) >= len(linked)
    assert [f for f in figures if f not in pages] == []


def test_run_measures_a_claim(tmp_path: Path) -> None:
    sets = [x for s in SMALL for x in ("--set", s)]
    done = CliRunner().invoke(app, ["run", "claims/colder-teacher", "--out", str(tmp_path / "a"), *sets, "--json"])
    assert done.exit_code == 0, done.output
    found = json.loads(done.stdout)
    again = run_claim("colder-teacher", out=tmp_path / "b", overrides=SMALL).to_json()
    assert {k: found[k] for k in ("verdict", "checks", "charts")} == json.loads(
        json.dumps({k: again[k] for k in ("verdict", "checks", "charts")})
    )
    a, b = (sorted((tmp_path / x).iterdir()) for x in "ab")
    assert [p.name for p in a] == ["claim.json", "colder-teacher.png", "colder-teacher.svg"]
    assert [p.read_bytes() for p in a[1:]] == [p.read_bytes() for p in b[1:]]


@pytest.mark.parametrize(
    ("name", "overrides", "said"),
    [
        ("colder-teachr", [], "colder-teacher"),
        ("colder-teacher", ["world.temprature=0.3"], "temperature"),
        ("colder-teacher", ["seeds=1"], "seeds"),
    ],
)
def test_bad_input_is_one_line(name: str, overrides: list[str], said: str) -> None:
    with pytest.raises(SpecError, match=said) as e:
        run_claim(name, overrides=overrides)
    assert "\n" not in str(e.value)


@pytest.mark.parametrize("name", [n for n in claims() if load_claim(n).world.get("language_model")])
def test_a_model_that_is_not_there_is_missed_before_anything_is_measured(
    name: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    measure, _ = measure_of(load_claim(name))
    monkeypatch.setattr(measure, "measure", lambda *_: pytest.fail("measured"))
    with pytest.raises(ModelError, match="nowhere"):
        run_claim(name, out=tmp_path, overrides=["world.language_model.source=./nowhere"])
    monkeypatch.setattr("hydrometer.models.causal_lm.loading.libraries.find_spec", lambda _: None)
    with pytest.raises(MissingDependencyError, match=r"pip install 'hydrometer\[lm\]'"):
        run_claim(name, out=tmp_path)
    with pytest.raises(pytest.fail.Exception, match="measured"):
        run_claim(name, out=tmp_path, overrides=["world.language_model=null"])


def test_a_verdict_turns_where_something_is_decided_otherwise() -> None:
    spec = importlib.util.spec_from_file_location("claims_script", DOCS.parents[1] / "scripts" / "claims.py")
    assert spec is not None
    assert spec.loader is not None
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    checks = [{"condition": "a", "found": "as claimed"}, {"condition": "b", "found": "against the claim"}]
    kept = script.said({"verdict": "holds only where", "holding": ("a",), "checks": checks})
    assert kept == {"verdict": "holds only where", "holding": ("a",), "failing": ["b"]}
    assert script.turned(kept, kept) == []
    assert script.turned(kept, {**kept, "holding": [], "failing": ["b"]}) == []  # a is undecided
    assert script.turned(kept, {**kept, "failing": ["a", "b"]}) == ["a: holding, now failing"]
    assert script.turned(kept, {**kept, "holding": ["a", "b"]}) == ["b: failing, now holding"]
    assert script.turned(kept, {**kept, "verdict": "holds"}) == ["holds only where, now holds"]
    assert script.turned({}, kept) == ["None, now holds only where"]


def test_a_claim_is_no_specification() -> None:
    with pytest.raises(SpecError, match="hydrometer run measures it"):
        load_spec("claims/colder-teacher")


def test_recipes_lists_the_claims() -> None:
    found = json.loads(CliRunner().invoke(app, ["recipes", "--json"]).stdout)
    assert {f"claims/{name}" for name in claims()} <= set(found)


def test_many_conditions_are_counted(tmp_path: Path) -> None:
    found = replace(run_claim("colder-teacher", out=tmp_path, overrides=SMALL), verdict="holds only where")
    assert replace(found, holding=("a", "b")).sentence == "holds only where: a; b"
    conditions = len({c.check.condition for c in found.checks})
    assert replace(found, holding=tuple("abcd")).sentence == f"holds only where: 4 of {conditions} conditions"
