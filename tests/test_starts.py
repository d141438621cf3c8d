"""What a start imports: the package, its help, a command that opens no model. Modules are counted, not time."""

from __future__ import annotations

import ast
import json
import pickle
import subprocess
import sys
from importlib import import_module
from pathlib import Path

import pytest

import hydrometer as hm

DEAR = {
    "contourpy", "fsspec", "gguf", "jinja2", "matplotlib", "numba", "numpy", "pandas", "pyarrow", "ray", "scipy",
    "sklearn", "torch", "transformers",
}  # fmt: skip
VERBS = ("hydrometer.run.api", "hydrometer.recipes", "hydrometer.report.page", "hydrometer.stages.judge")


def python(code: str, *argv: str) -> str:
    """What a fresh interpreter prints."""
    return subprocess.run([sys.executable, "-c", code, *argv], capture_output=True, text=True, check=True).stdout


def imported(code: str, *argv: str) -> set[str]:
    """Modules that a fresh interpreter imports for it, beside those that it imports for itself."""
    said = (
        "import sys; before = set(sys.modules)\n"
        f"try:\n    {code}\n"
        "finally:\n    import json; print('\\n' + json.dumps(sorted(set(sys.modules) - before)))"
    )
    return set(json.loads(python(said, *argv).splitlines()[-1]))


def roots(modules: set[str]) -> set[str]:
    return {m.partition(".")[0] for m in modules}


def test_the_package_alone_imports_the_standard_library_alone() -> None:
    found = imported("import hydrometer")
    assert roots(found) - {"hydrometer"} <= sys.stdlib_module_names
    assert len(found) < 100, sorted(found)


@pytest.mark.parametrize("command", [(), ("run",), ("plan",), ("judge",), ("scores",), ("advise",)])
def test_help_imports_the_parser_alone(command: tuple[str, ...]) -> None:
    found = imported("from hydrometer.cli import main; main()", *command, "--help")
    assert not roots(found) & (DEAR | {"rich", "yaml"})
    assert {m for m in found if m.startswith("hydrometer.")} == {
        "hydrometer._lazy", "hydrometer._stopping", "hydrometer._version", "hydrometer.cli", "hydrometer.cli.commands",
        "hydrometer.cli.exchange_commands", "hydrometer.cli.exit", "hydrometer.cli.init_command",
        "hydrometer.cli.judge_command", "hydrometer.cli.options",
        "hydrometer.cli.plan_command", "hydrometer.cli.result_output",
        "hydrometer.core", "hydrometer.core.errors",
        "hydrometer.core.io", "hydrometer.core.io.os_errors", "hydrometer.recipes", "hydrometer.run",
    }  # fmt: skip
    assert len(found) < (300 if command else 200)  # the parser takes pydantic for the options of a command


def test_a_list_of_recipes_imports_no_array() -> None:
    assert not roots(imported("from hydrometer.cli import main; main()", "recipes", "--json")) & DEAR


def test_specifications_are_read_without_what_computes() -> None:
    """Of the libraries that compute, numpy alone: for every verb of the command line."""
    modules = (
        "api", "preflight.doctor", "cost.cost_plan", "judging.judging", "exchange.exporting", "exchange.adopting",
        "exchange.scoring", "advice.advise",
    )  # fmt: skip
    found = roots(imported("import " + ", ".join(f"hydrometer.run.{m}" for m in modules)))
    assert not found & {"matplotlib", "numba", "scipy", "sklearn", "torch", "transformers"}


def test_every_public_name_is_where_it_is_said_to_be() -> None:
    pytest.importorskip("torch")  # hm.CausalLM is public
    assert set(hm.__all__) <= set(dir(hm))
    everything: dict[str, object] = {}
    exec("from hydrometer import *", everything)
    assert set(hm.__all__) <= set(everything)
    for name in hm.__all__:
        thing = getattr(hm, name)
        if name != "__version__":
            assert pickle.loads(pickle.dumps(thing)) is thing


def test_type_checkers_see_the_names_that_programs_get() -> None:
    pytest.importorskip("torch")
    for package in ("hydrometer", "hydrometer.report"):
        module = import_module(package)
        assert module.__file__ is not None
        tree = ast.parse(Path(module.__file__).read_text("utf-8"))
        told = [
            (a.asname or a.name, getattr(import_module(node.module or ""), a.name))
            for node in ast.walk(tree)
            if isinstance(node, ast.ImportFrom)
            for a in node.names
            if (a.asname or a.name) in module.__all__ and a.name != "__version__"
        ]
        assert {n for n, _ in told} == set(module.__all__) - {"__version__"}
        assert [n for n, thing in told if getattr(module, n) is not thing] == []


@pytest.mark.parametrize("first", VERBS)
def test_a_verb_is_no_subpackage_of_its_name(first: str) -> None:
    code = (
        f"import {first}, hydrometer as hm, hydrometer.report as report;"
        "print(*(getattr(hm, n).__qualname__ for n in ('run', 'recipes', 'judge', 'plan', 'doctor')),"
        " report.verdict.__qualname__)"
    )
    assert python(code).split() == ["run", "recipes", "judge_laws", "plan", "doctor", "verdict"]


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="no attribute 'draw'"):
        hm.draw  # type: ignore[attr-defined]  # noqa: B018
    assert hm.report.advice_sentences.__module__ == "hydrometer.report.words.advice_text"


def test_a_language_model_without_torch_is_refused_in_one_line() -> None:
    code = (
        "import sys; sys.modules['torch'] = sys.modules['transformers'] = None\nimport hydrometer as hm\n"
        "try:\n    hm.CausalLM\nexcept hm.MissingDependencyError as e:\n    print(e)"
    )
    assert "hydrometer[lm]" in python(code)
