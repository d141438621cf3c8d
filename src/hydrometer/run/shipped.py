"""The recipes that ship with the package."""

from __future__ import annotations

from importlib import import_module
from importlib.resources import files
from importlib.resources.abc import Traversable
from pathlib import Path

from hydrometer.core.documents import parse_yaml

__all__ = ["recipes", "shipped_recipe", "shipped_recipes"]

# Imported here, so that the package's name is bound before the function `hydrometer.recipes` takes it over.
_SHIPPED = files(import_module("hydrometer.recipes"))


def recipes() -> dict[str, str]:
    """Return the shipped recipes: name to description."""
    out: dict[str, str] = {}
    for entry in sorted(_SHIPPED.iterdir(), key=lambda e: e.name):
        if entry.name.endswith(".yaml"):
            body = parse_yaml(entry.read_bytes(), entry.name)
            out[entry.name.removesuffix(".yaml")] = " ".join(str(body.get("description", "")).split())
    return out


def shipped_recipes() -> Path:
    """Return the folder that file names inside shipped recipes refer to."""
    return Path(str(_SHIPPED))


def shipped_recipe(name: str) -> Traversable:
    """Return the file of a recipe."""
    return _SHIPPED.joinpath(f"{name}.yaml")
