"""Specifications by name or file: the recipes that ship, and whatever is written as they are."""

from __future__ import annotations

from collections.abc import Sequence
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING

from hydrometer.core.errors import SpecError
from hydrometer.core.io.yaml_io import MAX_YAML_BYTES, apply_overrides, nearest, parse_yaml, where_to_look
from hydrometer.core.watching import doing

if TYPE_CHECKING:
    from hydrometer.models.families import RunSpec

__all__ = ["load_spec", "recipes", "shipped_recipes"]

_SHIPPED = files("hydrometer.recipes")


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


def load_spec(source: str | Path, overrides: Sequence[str] = ()) -> RunSpec:
    """Read a recipe by name, or a YAML file by path, and apply ``a.b.c=VALUE`` overrides.

    Raises
    ------
    SpecError : unknown recipe, unreadable file, or anything wrong inside.
    """
    doing("reading the specification")
    from hydrometer.models.families import parse_run_spec

    if not isinstance(source, str | Path):  # pyright: ignore[reportUnnecessaryIsInstance]
        raise SpecError("a specification is a recipe's name or a YAML file", got=source, fix="see hm.recipes()")
    if isinstance(overrides, str) or not all(isinstance(o, str) for o in overrides):  # pyright: ignore[reportUnnecessaryIsInstance]
        raise SpecError("overrides are a list of PATH=VALUE", got=overrides, fix='for example ["seeds=5"]')
    name = str(source)
    path = Path(source)
    if name in recipes():
        data, origin, base = _SHIPPED.joinpath(f"{name}.yaml").read_bytes(), name, shipped_recipes()
    elif path.suffix in (".yaml", ".yml") or path.exists():
        try:
            with path.open("rb") as f:
                data, origin, base = f.read(MAX_YAML_BYTES + 1), path.name, path.absolute().parent
        except (OSError, ValueError) as e:  # a name with NUL
            what = f"the specification cannot be read: {getattr(e, 'strerror', e)}"
            raise SpecError(what, got=name, fix=where_to_look(path)) from None
    elif name.startswith("claims/"):
        fix = "hydrometer run measures it; its recipe stands in hydrometer/recipes/claims"
        raise SpecError("a claim has no chains to examine, plan or extend", got=name, fix=fix)
    else:
        raise SpecError("unknown recipe", got=name, fix=nearest(name, list(recipes())) + " or give a .yaml file")
    return parse_run_spec(apply_overrides(parse_yaml(data, origin), list(overrides)), origin, base)
