"""The public surface, one name per line: what docs/stability.md promises to keep, so that changes show."""

from __future__ import annotations

import inspect
import json
import re
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import typer
from pydantic import BaseModel

import hydrometer
import hydrometer.family
import hydrometer.integrations
import hydrometer.testing
from hydrometer.cli import app
from hydrometer.store.migrate import SCHEMA
from hydrometer.store.records import RunFolder

ROOT = Path(__file__).resolve().parents[1]
# Groups that a third party may announce something in.
ENTRY_POINTS = ("hydrometer.contract_cases", "hydrometer.engines", "hydrometer.families", "hydrometer.metrics")


def surface(spec_schema: dict[str, Any]) -> str:
    """Return all of it, in a fixed order."""
    parts = {
        "python": [
            line
            for module in (hydrometer, hydrometer.family, hydrometer.testing, hydrometer.integrations)
            for line in python(module, module.__name__)
        ],
        "entry point groups": list(ENTRY_POINTS),
        "command line": list(commands()),
        "specification": sorted(set(keys(spec_schema, spec_schema, "", ()))),
        f"results.json, schema {SCHEMA}": sorted(set(keys(results_schema(), results_schema(), "", ()))),
        "results.csv": csv_columns(),
    }
    head = "The public surface, generated from the code; `make check` compares. What it promises: stability.md.\n"
    text = head + "".join(f"\n[{title}]\n" + "".join(f"{line}\n" for line in lines) for title, lines in parts.items())
    return re.sub(r"<function (\w+) at 0x[0-9a-f]+>", r"\1", text)  # a default that is a function


def python(module: Any, name: str) -> Iterator[str]:
    """Yield a module's public names with their signatures; of classes also what they hold."""
    for public in sorted(module.__all__):
        thing = getattr(module, public)
        if inspect.isclass(thing):
            yield from members(thing, f"{name}.{public}")
        else:
            yield f"{name}.{public}{inspect.signature(thing) if inspect.isfunction(thing) else ''}"


def members(cls: type, name: str) -> Iterator[str]:
    """Yield a class and its public members, but for those inherited from other packages."""
    if issubclass(cls, BaseModel):  # its signature shows validators
        yield f"{name}({', '.join(cls.model_fields)})"
    elif issubclass(cls, BaseException | dict):
        yield f"{name}({cls.__bases__[0].__name__})"
    else:
        yield f"{name}{'' if getattr(cls, '_is_protocol', False) else inspect.signature(cls)}"
    seen: set[str] = set()
    for base in (b for b in cls.__mro__ if b.__module__.startswith("hydrometer")):
        for member, value in sorted(vars(base).items()):
            if member.startswith("_") or member in seen or issubclass(cls, BaseException):
                continue
            seen.add(member)
            if isinstance(value, staticmethod | classmethod):
                value = value.__func__
            if inspect.isfunction(value):
                yield f"{name}.{member}{inspect.signature(value)}"
            elif isinstance(value, property):
                yield f"{name}.{member}"
    for member in sorted(inspect.get_annotations(cls) if getattr(cls, "_is_protocol", False) else ()):
        yield f"{name}.{member}"


def commands() -> Iterator[str]:
    """Yield every command with its arguments and options; those that must be given are marked."""
    root: Any = typer.main.get_command(app)
    for command, found in [("", root), *sorted(root.commands.items())]:
        own = f"hydrometer {command}".rstrip()
        yield own
        for p in found.params:
            names = p.metavar or p.name if p.param_type_name == "argument" else "/".join([*p.opts, *p.secondary_opts])
            yield f"{own} {names}{' (required)' if p.required else ''}"


def keys(whole: dict[str, Any], part: Any, path: str, above: tuple[str, ...]) -> Iterator[str]:
    """Yield the paths of all keys that a JSON schema knows, with what they are by default."""
    if not isinstance(part, dict):
        return
    if "$ref" in part:
        name = part["$ref"].removeprefix("#/$defs/")
        if name not in above:
            # The union of chains: each family's keys under its own name.
            here = f"{path[:-1]}<{name}>" if path == "chains.*" and name[0].islower() else path
            yield from keys(whole, whole["$defs"][name], here, (*above, name))
    for choice in [*part.get("anyOf", []), *part.get("oneOf", [])]:
        yield from keys(whole, choice, path, above)
    required = part.get("required", [])
    for key, value in part.get("properties", {}).items():
        here = f"{path}.{key}".lstrip(".")
        default = f" = {json.dumps(value['default'])}" if isinstance(value, dict) and "default" in value else ""
        family = value.get("const") if key == "family" and isinstance(value, dict) else None
        yield f"{here}{f' = {json.dumps(family)}' if family else default}{' (required)' if key in required else ''}"
        yield from keys(whole, value, here, above)
    for inner, mark in (("items", "[]"), ("additionalProperties", ".*")):
        yield from keys(whole, part.get(inner), f"{path}{mark}", above)
    names = part.get("propertyNames", {})
    yield from (f"{path}.{key}" for key in names.get("enum", []))


def results_schema() -> dict[str, Any]:
    """Return the schema of results.json."""
    return json.loads((ROOT / "docs" / "results.schema.json").read_text("utf-8"))


def csv_columns() -> list[str]:
    """Return the columns of results.csv."""
    with tempfile.TemporaryDirectory() as folder:
        RunFolder(Path(folder)).write_results({"cells": [], "summary": {"groups": {}}})
        return (Path(folder) / "results.csv").read_text("utf-8").splitlines()[0].split(",")
