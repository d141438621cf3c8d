"""No modules of the family import each other in a circle, for types alone or inside a function neither."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from graphlib import TopologicalSorter
from pathlib import Path

import hydrometer

ROOT = Path(hydrometer.__file__).parent


def imported(file: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(file.read_text("utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.module:
            yield node.module
            yield from (f"{node.module}.{a.name}" for a in node.names)
        elif isinstance(node, ast.Import):
            yield from (a.name for a in node.names)


def test_there_is_no_circle() -> None:
    files = (ROOT / "models" / "causal_lm").rglob("*.py")
    found = {".".join(("hydrometer", *f.relative_to(ROOT).with_suffix("").parts)): set(imported(f)) for f in files}
    modules = {m: names & found.keys() - {m} for m, names in found.items()}
    assert len(modules) > 50
    for name, below in modules.items():
        if name.endswith(".spec"):  # engines read their settings from a specification, which asks them what these are
            below -= {m for m in below if ".engines." in m}
    TopologicalSorter(modules).prepare()  # CycleError names the circle
