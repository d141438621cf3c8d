"""Known engines, and parsing one from a specification. Imports without torch."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from importlib.metadata import entry_points
from typing import Any

from pydantic import ValidationError
from pydantic_core import PydanticCustomError

from hydrometer.core.io.yaml_io import nearest
from hydrometer.models.causal_lm.engines.engine import Engine, EngineSettings
from hydrometer.models.causal_lm.engines.openai import OPENAI
from hydrometer.models.causal_lm.engines.vllm import VLLM

__all__ = ["ENGINE_SCHEMA", "engine_named", "read_engine"]

BUILT_IN: dict[str, Engine] = {e.name: e for e in (VLLM, OPENAI)}
NATIVE = "native"
ENGINE_SCHEMA: dict[str, Any] = {
    "anyOf": [
        {"enum": [NATIVE, *BUILT_IN]},
        {
            "type": "object",
            "minProperties": 1,
            "maxProperties": 1,
            "properties": {n: e.settings.model_json_schema() for n, e in BUILT_IN.items()},
        },
        {"type": "null"},
    ],
    "default": None,
    "description": "what draws training rows: native, or one engine by name with its settings",
}


@cache
def _installed() -> dict[str, Any]:
    """Entry points by name; loaded only if a specification names one."""
    return {p.name: p for p in entry_points(group="hydrometer.engines") if p.name not in (*BUILT_IN, NATIVE)}


@cache
def engine_named(name: str) -> Engine:
    """Return an engine by name.

    Raises
    ------
    PydanticCustomError : an unknown engine, or an installed one that cannot be used.
    """
    if name in BUILT_IN:
        return BUILT_IN[name]
    known = [NATIVE, *BUILT_IN, *_installed()]
    if name not in _installed():
        hint = nearest(name, known)
        raise PydanticCustomError("engine", "no engine {name}; {hint}", {"name": repr(name), "hint": hint})
    try:
        engine: Any = _installed()[name].load()
    except Exception as e:  # a broken package must be named, whatever it raises
        why = f"{type(e).__name__}: {e}"
    else:
        missing = [m for m in ("name", "settings", "check", "identity", "open") if not hasattr(engine, m)]
        kind: object = None if missing else engine.settings
        if isinstance(kind, type) and issubclass(kind, EngineSettings) and engine.name == name:
            return engine
        why = "it lacks " + ", ".join(missing) if missing else "its name or its settings are not an engine's"
    raise PydanticCustomError(
        "engine", "the installed engine {name} cannot be used: {why}", {"name": repr(name), "why": why}
    )


def read_engine(value: object) -> object:
    """Parse one engine's name and settings, None for native drawing."""
    if value is None or value == NATIVE:
        return None
    if isinstance(value, str):
        value = {value: {}}
    if not isinstance(value, Mapping) or len(value) != 1:
        raise PydanticCustomError(
            "engine", "an engine is native, or one name with its settings: {vllm: {...}} or {openai: {...}}"
        )
    ((name, body),) = value.items()
    if name == NATIVE and not body:
        return None
    settings = engine_named(str(name)).settings
    if isinstance(body, settings):
        return {str(name): body}
    try:
        return {str(name): settings.model_validate(body or {})}
    except ValidationError as e:
        errors = e.errors(include_url=False)
        first, kind = errors[0], "secret" if any(x["type"] == "secret" for x in errors) else "engine"
        where = ".".join((str(name), *(str(p) for p in first["loc"])))
        message = "this key is missing" if first["type"] == "missing" else first["msg"]
        raise PydanticCustomError(kind, "{where}: {message}", {"where": where, "message": message}) from None
