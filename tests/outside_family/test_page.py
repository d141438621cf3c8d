"""docs/own-family.md shows the code that runs: each snippet is taken from the package or the example, word for word."""

import re
import textwrap
from pathlib import Path

import pytest
from typer.main import get_command

from hydrometer.cli import app
from hydrometer.core.io.yaml_io import parse_yaml
from hydrometer.models.base import Family
from hydrometer.models.families import parse_run_spec

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
PAGE = (ROOT / "docs" / "own-family.md").read_text()
SOURCES = {
    "python": [*HERE.glob("src/hydrometer_flow/*.py"), ROOT / "src" / "hydrometer" / "testing.py"],
    "toml": [HERE / "pyproject.toml"],
    "yaml": [ROOT / "examples" / "flow-and-mixture.yaml"],
}


def snippets(language: str) -> list[str]:
    """Blocks without a title; those with one are whole files, which `test_smallest_family.py` runs."""
    return re.findall(rf"^```{language}\n(.*?)^```", PAGE, re.DOTALL | re.MULTILINE)


def plain(code: str) -> list[str]:
    """Lines without the indentation that all of them share, and without blank lines."""
    return [line.rstrip() for line in textwrap.dedent(code).splitlines() if line.strip()]


def holds(source: list[str], piece: list[str]) -> bool:
    """Whether the piece stands in the source, in one run of lines, at any depth of indentation."""
    for i in range(len(source) - len(piece) + 1):
        if plain("\n".join(source[i : i + len(piece)])) == piece:
            return True
    return False


@pytest.mark.parametrize("language", SOURCES)
def test_snippets_are_in_the_source(language: str) -> None:
    sources = [[line.rstrip() for line in p.read_text().splitlines() if line.strip()] for p in SOURCES[language]]
    found = snippets(language)
    assert found
    for snippet in found:
        # Three dots on a line of their own leave something out.
        for piece in re.split(r"^ *\.\.\.\n", snippet, flags=re.MULTILINE):
            assert any(holds(source, plain(piece)) for source in sources), piece


def test_a_changed_snippet_would_be_noticed() -> None:
    source = ["class A:", "    def f(self):", "        return 1"]
    assert holds(source, plain("    def f(self):\n        return 1\n"))
    assert not holds(source, plain("    def f(self):\n        return 2\n"))


def test_the_page_names_every_member_of_the_contract() -> None:
    members = {name for name in vars(Family) if not name.startswith("_")}
    assert {m for m in members if f"`{m}`" not in PAGE} == set()


def test_the_example_is_a_valid_specification() -> None:
    text = (ROOT / "examples" / "flow-and-mixture.yaml").read_text()
    assert set(parse_run_spec(parse_yaml(text, "example"), "example").chains) == {"flow", "mixture"}
    assert "run" in get_command(app).commands  # type: ignore[attr-defined]
