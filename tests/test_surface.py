"""The public surface is what docs/public-surface.txt says: a change of it is made on purpose, with that file."""

from __future__ import annotations

import importlib.util
import inspect
import re
import sys
from pathlib import Path
from types import ModuleType

import pytest

import hydrometer as hm

ROOT = Path(__file__).parents[1]
pytest.importorskip("torch")  # hm.CausalLM is public


def load(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, ROOT / "scripts" / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def found() -> str:
    surface = load("surface")
    schema = load("generated").spec_schema()
    return surface.surface(surface.json.loads(schema))


def test_the_surface_is_the_one_that_was_agreed(found: str) -> None:
    agreed = (ROOT / "docs" / "public-surface.txt").read_text("utf-8")
    assert found.splitlines() == agreed.splitlines(), "if this is meant: python scripts/generated.py, and CHANGELOG.md"


def test_it_holds_names_options_keys_and_fields(found: str) -> None:
    lines = found.splitlines()
    for name in hm.__all__:
        assert any(line.startswith(f"hydrometer.{name}") for line in lines), name
    expected = (
        "hydrometer run --set", "hydrometer advise --fresh/--no-fresh", "hydrometer run RECIPE|FILE.yaml (required)",
        'chains.<causal_lm>.truth.source = ""', "chains.<markov>.truth.order (required)", "hydrometer.families",
        "cells[].metrics.*.value (required)", "summary.findings[].code (required)", "n_neg_inf",
    )  # fmt: skip
    assert [e for e in expected if e not in lines] == []
    assert " at 0x" not in found


def test_all_entry_point_groups_are_public(found: str) -> None:
    sources = [p.read_text("utf-8") for p in (ROOT / "src").rglob("*.py")]
    groups = {g for text in sources for g in re.findall(r'(?:group=|^GROUP = )"(hydrometer\.\w+)"', text, re.MULTILINE)}
    listed = found.partition("[entry point groups]\n")[2].partition("\n\n")[0].splitlines()
    assert sorted(groups) == listed
    said = (ROOT / "docs" / "stability.md").read_text("utf-8")
    assert [g for g in groups if f"`{g}`" not in said] == []


def test_a_renamed_argument_shows(found: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def run(recipe: str, *, folder: str | None = None) -> None: ...

    monkeypatch.setattr(hm, "run", run)
    lines = [*sys.modules["surface"].python(hm, "hydrometer")]
    assert f"hydrometer.run{inspect.signature(run)}" in lines
    assert f"hydrometer.run{inspect.signature(run)}" not in found
