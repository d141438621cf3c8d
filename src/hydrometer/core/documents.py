"""Documents that people write: safe YAML, overrides, and one line about what is wrong with them."""

from __future__ import annotations

import difflib
from typing import Any, cast

import yaml
from pydantic import ValidationError

from hydrometer.core.errors import SpecError

__all__ = ["apply_overrides", "explain", "nearest", "parse_yaml"]

MAX_YAML_BYTES = 1_000_000
MAX_YAML_ALIASES = 16


def nearest(word: str, known: list[str]) -> str:
    """Return ``did you mean 'x'?`` for the nearest known word, or the list of known words."""
    close = difflib.get_close_matches(word, known, n=1, cutoff=0.5)
    return f"did you mean {close[0]!r}?" if close else "known: " + ", ".join(known)


class _BoundedLoader(yaml.SafeLoader):
    """Safe YAML: no Python tags, few aliases, no duplicate keys."""

    aliases = 0

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        if self.check_event(yaml.AliasEvent):  # pyright: ignore[reportUnknownMemberType]
            self.aliases += 1
            if self.aliases > MAX_YAML_ALIASES:
                raise SpecError(
                    "YAML uses too many aliases", got=f"more than {MAX_YAML_ALIASES}", fix="write the values out"
                )
        return super().compose_node(parent, index)

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: set[str] = set()
        for key_node, _ in node.value:
            key = str(key_node.value)
            if key in seen:
                raise SpecError(
                    f"YAML holds the key {key!r} twice, line {key_node.start_mark.line + 1}", fix="keep one of them"
                )
            seen.add(key)
        return super().construct_mapping(node, deep)


def parse_yaml(text: bytes | str, origin: str) -> dict[str, object]:
    """Parse one YAML mapping, safely.

    Parameters
    ----------
    text : the document.
    origin : where it came from, for messages.

    Raises
    ------
    SpecError : too large, not text, not YAML, Python tags, too many aliases, or not a mapping.
    """
    fix = "see `hydrometer recipes` for working examples"
    if len(text) > MAX_YAML_BYTES:
        raise SpecError(f"{origin} is too large for a specification", got=f"{len(text)} bytes", fix=fix)
    try:
        source = text.decode("utf-8") if isinstance(text, bytes) else text
    except UnicodeDecodeError:
        raise SpecError(f"{origin} is not text in UTF-8", got=text[:16], fix=fix) from None
    loader: _BoundedLoader | None = None
    try:
        loader = _BoundedLoader(source)
        value: object = loader.get_single_data()
    except yaml.YAMLError as e:
        raise SpecError(f"{origin} is not plain YAML: {e}", fix=fix) from None
    except (RecursionError, ValueError, TypeError) as e:
        raise SpecError(f"{origin} cannot be read as YAML: {e}", fix=fix) from None
    finally:
        if loader is not None:
            loader.dispose()  # pyright: ignore[reportUnknownMemberType]
    if not isinstance(value, dict) or not value:
        got = "nothing" if value is None else str(type(cast("object", value)).__name__)
        raise SpecError(f"{origin} must be a YAML mapping of keys to values", got=got, fix=fix)
    return cast("dict[str, object]", value)


def apply_overrides(data: dict[str, object], overrides: list[str]) -> dict[str, object]:
    """Apply ``a.b.c=VALUE`` overrides, VALUE in YAML; list items by number.

    Examples
    --------
    >>> apply_overrides({"chains": {"m": {"data": {"train": 10}}}}, ["chains.m.data.train=20"])
    {'chains': {'m': {'data': {'train': 20}}}}
    """
    for item in overrides:
        path, equals, raw = item.partition("=")
        if not equals or not all(path.split(".")):
            raise SpecError("--set takes PATH=VALUE", got=item, fix="for example --set seeds=5")
        value = parse_yaml(f"value: {raw}", f"--set {path}")["value"]
        parts = path.split(".")
        here: object = data
        for i, part in enumerate(parts):
            last = i == len(parts) - 1
            if isinstance(here, list):
                items = cast("list[Any]", here)
                if not part.isdigit() or int(part) >= len(items):
                    raise SpecError(f"--set {path}: no item {part!r}", got=f"{len(items)} items", fix="count from 0")
                key: Any = int(part)
            elif isinstance(here, dict):
                key = part
                if not last:
                    here.setdefault(part, {})  # pyright: ignore[reportUnknownMemberType]
            else:
                where = ".".join(parts[:i])
                raise SpecError(f"--set {path}: {where} holds a single value", got=here, fix=f"set {where} itself")
            container = cast("Any", here)
            if last:
                container[key] = value
            here = cast("object", container[key])
    return data


def explain(error: ValidationError, origin: str) -> SpecError:
    """Turn pydantic's first complaint into one line: where, what, got."""
    first = error.errors(include_url=False)[0]
    where = ".".join(str(p) for p in first["loc"])
    message = first["msg"]
    if first["type"] == "missing":
        message = "this key is missing"
    where_text = f"{origin}: {where}: " if where else f"{origin}: "
    if first["type"] in ("missing", "unknown_key"):
        return SpecError(where_text + message)
    return SpecError(where_text + message, got=first["input"])
