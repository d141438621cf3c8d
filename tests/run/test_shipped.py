"""What ships: the wheel's data, schemas beside the recipes, what a shell completes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from jsonschema import Draft202012Validator

import hydrometer as hm
from hydrometer.core.io.yaml_io import parse_yaml
from hydrometer.run.graph.recipes import shipped_recipes

ROOT = Path(__file__).parents[2]


def test_the_wheel_holds_every_file_of_the_package(tmp_path: Path) -> None:
    build = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(tmp_path)]
    subprocess.run(build, cwd=ROOT, check=True, capture_output=True)
    (wheel,) = tmp_path.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        held = {name: archive.read(name) for name in archive.namelist() if name.startswith("hydrometer/")}
    here = [p for p in (ROOT / "src" / "hydrometer").rglob("*") if p.is_file() and p.parent.name != "__pycache__"]
    assert held == {p.relative_to(ROOT / "src").as_posix(): p.read_bytes() for p in here}
    assert {"hydrometer/recipes/user-instructions.jsonl", "hydrometer/report/templates/report.html.j2"} <= held.keys()


@pytest.mark.parametrize("name", list(hm.recipes()))
def test_a_recipe_names_the_schema_that_it_satisfies(name: str) -> None:
    recipe = shipped_recipes() / f"{name}.yaml"
    first, _, _ = recipe.read_text("utf-8").partition("\n")
    assert first.startswith("# yaml-language-server: $schema=")
    schema = json.loads((recipe.parent / first.partition("$schema=")[2]).read_text("utf-8"))
    body = parse_yaml(recipe.read_bytes(), name)
    validator = Draft202012Validator(schema)
    validator.validate(body)
    assert list(validator.iter_errors({**body, "seed": 3}))


@pytest.mark.parametrize(
    ("typed", "completed"),
    [
        ("run pa", ["paper-mixture", "paper-smollm2"]),
        ("jud", ["judge"]),
        ("judge --student x --prompts-a", ["--prompts-are"]),
    ],
)
def test_a_shell_completes_commands_options_and_recipes(typed: str, completed: list[str]) -> None:
    words = ["hydrometer", *typed.split()]
    asked = {"COMP_WORDS": " ".join(words), "COMP_CWORD": str(len(words) - 1), "_HYDROMETER_COMPLETE": "complete_bash"}
    command = [sys.executable, "-c", "import sys; sys.argv[0] = 'hydrometer'; from hydrometer.cli import main; main()"]
    done = subprocess.run(command, env=os.environ | asked, capture_output=True, text=True, check=True)
    assert done.stdout.split() == completed
