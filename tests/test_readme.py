"""What the README and the docs show is run or read by the code."""

import re
from pathlib import Path

import numpy as np
import pytest
import yaml
from typer.main import get_command

import hydrometer as hm
from hydrometer.claims import claims
from hydrometer.cli import app
from hydrometer.models.families import parse_run_spec

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]


def blocks(page: Path, language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", page.read_text(), re.DOTALL)


def test_the_readmes_python_runs(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MPLBACKEND", "agg")
    known: dict[str, object] = {}
    for code in blocks(ROOT / "README.md", "python"):
        exec(compile(code, "README.md", "exec"), known)
    assert "kl_truth_student" in capsys.readouterr().out
    groups = hm.load_results("runs/sweep")["summary"]["groups"].values()
    at = {g["selectivity"]["weight_power"]: g["metrics"]["precision"] for g in groups if g["training"] == "distilled"}
    found = known["distilled"]
    assert [found.weight_power.tolist(), found.precision.tolist()] == [[*at], [m["value"] for m in at.values()]]  # type: ignore[attr-defined]
    bars = known["right"].collections[0].get_segments()  # type: ignore[attr-defined]
    ends = np.array([m["ci95"] for m in at.values()])
    assert np.allclose([bar[:, 1] for bar in bars], ends)
    assert Path("sweep.png").stat().st_size > 10_000


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.name)
def test_whole_specifications_in_the_pages_are_valid(page: Path) -> None:
    for text in blocks(page, "yaml"):
        body = yaml.safe_load(text)
        if isinstance(body, dict) and {"name", "chains"} <= set(body):
            assert parse_run_spec(body, page.name).chains


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.name)
def test_commands_in_the_pages_exist(page: Path) -> None:
    commands: dict[str, set[str]] = {
        name: {option for parameter in command.params for option in parameter.opts}
        for name, command in get_command(app).commands.items()  # type: ignore[attr-defined]
    }
    for block in [block for language in ("bash", "console", "sh") for block in blocks(page, language)]:
        for line in block.splitlines():
            words = line.removeprefix("$ ").split("#")[0].split()
            if words[:1] != ["hydrometer"] or words[1].startswith("-"):
                continue
            assert words[1] in commands, line
            assert {w for w in words if w.startswith("--")} <= commands[words[1]] | {"--help"}, line
            if words[1] == "run" and not words[2].endswith((".yaml", "FILE")):
                assert words[2] in {*hm.recipes(), *(f"claims/{name}" for name in claims())}, line


def test_make_targets_in_the_readme_exist() -> None:
    targets = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    assert set(re.findall(r"\bmake ([a-z]+)\b", (ROOT / "README.md").read_text())) <= targets


def test_links_between_pages_lead_somewhere() -> None:
    for page in PAGES:
        for target in re.findall(r"\]\(([^)#\s]+)(?:#[^)]*)?\)", page.read_text()):
            if "://" not in target:
                assert (page.parent / target).exists(), f"{page.name}: {target}"


def test_every_page_is_in_the_navigation() -> None:
    docs = ROOT / "docs"
    nav = (ROOT / "mkdocs.yml").read_text()
    assert [p.name for p in docs.rglob("*.md") if not re.search(rf" {p.relative_to(docs)}$", nav, re.MULTILINE)] == []


def test_every_public_name_is_documented_and_importable() -> None:
    for name in hm.__all__:
        assert getattr(hm, name) is not None
        if name != "__version__":
            assert getattr(hm, name).__doc__, name
