"""Safe YAML and JSON, overrides, and one-line messages about what is wrong in them."""

from __future__ import annotations

import difflib
import json
import os
from collections.abc import Mapping
from itertools import combinations, islice
from pathlib import Path
from typing import Any, TypeGuard, cast

import yaml
from pydantic import ValidationError

from hydrometer.core.errors import SpecError, StoreError, brief, one_line
from hydrometer.core.io.os_errors import refused_errno

__all__ = [
    "MAX_YAML_BYTES",
    "apply_overrides",
    "artifact_json",
    "explain",
    "is_array",
    "is_object",
    "nearest",
    "parse_yaml",
    "read_json",
    "read_plain",
    "user_path",
    "where_to_look",
]

MAX_YAML_BYTES = 1_000_000
MAX_YAML_ALIASES = 16
MAX_YAML_NODES = 200_000
MAX_YAML_DEPTH = 64
MAX_INTEGER_BITS = 256
MAX_WORD = 200
MAX_PLACE = 12
MAX_GOT = 80
MAX_NAMES = 1000
MAX_ARTIFACT_JSON_BYTES = 1_000_000_000


def nearest(word: str, known: list[str]) -> str:
    """Return ``did you mean 'x'?`` for the nearest known word, or the list of known words."""
    close = difflib.get_close_matches(word[:MAX_WORD], known, n=1, cutoff=0.5)
    return f"did you mean {close[0]!r}?" if close else "known: " + ", ".join(known)


def read_plain(path: Path, limit: int) -> bytes:
    """Return a file's first bytes, at most `limit` + 1, so that the caller can tell a larger file.

    Raises
    ------
    OSError : it cannot be read, or is a pipe or a device, which may never answer or never end.
    """
    if path.exists() and not path.is_file():
        raise OSError("it is no plain file")
    with path.open("rb") as f:
        # Bounded by the file's size, since read(n) allocates n bytes first.
        return f.read(min(limit, os.fstat(f.fileno()).st_size) + 1)


def user_path(text: str) -> Path:
    """Return a path with ``~`` and ``~NAME`` expanded; names of unknown users stay as they are.

    Examples
    --------
    >>> str(user_path("~no-user-of-this-machine/model"))
    '~no-user-of-this-machine/model'
    """
    try:
        return Path(text).expanduser()
    except RuntimeError:
        return Path(text)


def where_to_look(path: Path) -> str:
    """Say in which folder a missing file or folder was looked for, and the nearest name there.

    Examples
    --------
    >>> where_to_look(Path("/nowhere/rows.jsonl"))
    'looked in /nowhere, which does not exist'
    """
    folder = path.absolute().parent
    try:
        with os.scandir(folder) as entries:
            names = [e.name for e in islice(entries, MAX_NAMES)]
    except (OSError, ValueError):  # a name with NUL
        return f"looked in {folder}" + ("" if os.path.isdir(folder) else ", which does not exist")
    close = difflib.get_close_matches(path.name[:MAX_WORD], names, n=1, cutoff=0.6)
    return f"looked in {folder}" + (f": did you mean {close[0]!r}?" if close and close[0] != path.name else "")


def read_json(path: Path, limit: int, *, unique: bool = False) -> Any:
    """Read a JSON file from an untrusted source.

    Parameters
    ----------
    limit : bytes read at most.
    unique : refuse duplicate keys, which readers resolve differently.

    Raises
    ------
    OSError : it cannot be read.
    ValueError : too large, nested too deeply, a key twice, or no JSON.

    Examples
    --------
    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     _ = (file := Path(folder) / "deep.json").write_text("[" * 100_000)
    ...     read_json(file, 1_000_000)
    Traceback (most recent call last):
        ...
    ValueError: nested too deeply
    """
    raw = read_plain(path, limit)
    if len(raw) > limit:
        raise ValueError(f"larger than {limit} bytes")
    try:
        return json.loads(raw, object_pairs_hook=_distinct if unique else None)
    except RecursionError:
        raise ValueError("nested too deeply") from None


def is_object(value: object) -> TypeGuard[dict[str, Any]]:
    """Whether a value that was read is a JSON object."""
    return isinstance(value, dict)


def is_array(value: object) -> TypeGuard[list[Any]]:
    """Whether a value that was read is a JSON array."""
    return isinstance(value, list)


def artifact_json(path: Path, *kinds: type) -> Any:
    """Read a JSON file of an artifact, whose checksum does not prove that a stage wrote it.

    Parameters
    ----------
    kinds : of what the file holds: dict, list, ...

    Raises
    ------
    StoreError : it cannot be read, or holds something else. OSError : the operating system refuses.
    """
    try:
        value: object = read_json(path, MAX_ARTIFACT_JSON_BYTES)
        if not isinstance(value, kinds):
            raise ValueError(f"it holds no {kinds[0].__name__}")
    except (OSError, ValueError) as e:
        if refused_errno(e) is not None:  # deleting the folder would not help
            raise
        fix = "delete its folder, then run again"
        raise StoreError(f"{path.name} cannot be read: {e}", got=path.parent.name, fix=fix) from None
    return value


def _distinct(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        seen: set[str] = set()
        twice = next(k for k, _ in pairs if k in seen or seen.add(k))
        raise ValueError(f"the key {brief(twice)} is there twice")
    return found


class _BoundedLoader(yaml.SafeLoader):
    """Safe YAML: no Python tags, few aliases, no duplicate keys, bounded size, depth and numbers."""

    aliases = nodes = 0
    most = MAX_YAML_NODES

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        self.nodes += 1
        if self.check_event(yaml.AliasEvent):  # pyright: ignore[reportUnknownMemberType]
            self.aliases += 1
        if self.nodes > self.most:
            raise ValueError(f"it holds more than {self.most} values")
        if self.aliases > MAX_YAML_ALIASES:
            got = f"more than {MAX_YAML_ALIASES}"
            raise SpecError("YAML uses too many aliases", got=got, fix="write the values out")
        return super().compose_node(parent, index)

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: set[str] = set()
        for key_node, _ in node.value:
            line = key_node.start_mark.line + 1
            if not isinstance(key_node, yaml.ScalarNode):
                raise yaml.YAMLError(f"a key that is no single value, line {line}")
            key = str(key_node.value)
            if key in seen:
                raise SpecError(f"YAML holds the key {brief(key)} twice, line {line}", fix="keep one of them")
            seen.add(key)
        return super().construct_mapping(node, deep)

    def construct_yaml_int(self, node: yaml.ScalarNode) -> int:
        # Digits in bases that are powers of two, and in base 60, escape Python's own limit on text to integers.
        if len(str(node.value)) > MAX_INTEGER_BITS + 2:
            raise ValueError(f"a number of {len(str(node.value))} digits")
        value: int = super().construct_yaml_int(node)
        if value.bit_length() > MAX_INTEGER_BITS:
            raise ValueError(f"a number of {value.bit_length()} bits")
        return value


_BoundedLoader.add_constructor("tag:yaml.org,2002:int", _BoundedLoader.construct_yaml_int)


def _spread(value: object, open_: set[int], known: dict[int, int]) -> int:
    """Count values with aliases expanded. Raises ValueError for a recursive alias, RecursionError beyond the depth."""
    if not isinstance(value, dict | list | tuple | set):
        return 1
    at = id(cast("object", value))
    if at in open_:
        raise ValueError("an anchor holds an alias to itself")
    if len(open_) >= MAX_YAML_DEPTH:
        raise RecursionError
    if at not in known:
        keyed = cast("dict[object, object]", value) if isinstance(value, dict) else None
        inner = cast("list[object]", value) if keyed is None else [*keyed, *keyed.values()]
        known[at] = 1 + sum(_spread(v, open_ | {at}, known) for v in inner)
    return known[at]


def parse_yaml(text: bytes | str, origin: str, limit: int = MAX_YAML_BYTES) -> dict[str, object]:
    """Parse one YAML mapping, safely.

    Parameters
    ----------
    text : the document.
    origin : where it came from, for messages.
    limit : most bytes.

    Raises
    ------
    SpecError : too large, too deep, not text, not YAML, Python tags, too many aliases, or not a mapping.
    """
    fix = "see `hydrometer recipes` for working examples"
    if len(text) > limit:
        raise SpecError(f"{origin} is too large for a specification", got=f"{len(text)} bytes", fix=fix)
    try:
        source = text.decode("utf-8") if isinstance(text, bytes) else text
    except UnicodeDecodeError:
        raise SpecError(f"{origin} is not text in UTF-8", got=text[:16], fix=fix) from None
    loader: _BoundedLoader | None = None
    try:
        loader = _BoundedLoader(source)
        loader.most = min(limit // 20, MAX_YAML_NODES)  # a value takes some 30 microseconds to read
        value: object = loader.get_single_data()
        if _spread(value, set(), {}) > MAX_YAML_NODES:
            raise ValueError(f"aliases make more than {MAX_YAML_NODES} values of it")
    except yaml.MarkedYAMLError as e:
        raise _misplaced(e, origin, source, fix) from None
    except yaml.YAMLError as e:
        raise SpecError(f"{origin} is not plain YAML: {one_line(str(e), 300)}", fix=fix) from None
    except RecursionError:
        why = f"it is nested more than {MAX_YAML_DEPTH} levels deep"
        raise SpecError(f"{origin} cannot be read as YAML: {why}", fix=fix) from None
    except (ValueError, TypeError, OverflowError, AttributeError, KeyError) as e:
        # PyYAML raises what Python does on scalars that look like dates, numbers or binary data and are not.
        raise SpecError(f"{origin} cannot be read as YAML: {one_line(str(e), 300)}", fix=fix) from None
    finally:
        if loader is not None:
            loader.dispose()  # pyright: ignore[reportUnknownMemberType]
    if not is_object(value) or not value:
        got = "nothing" if value is None else type(value).__name__
        raise SpecError(f"{origin} must be a YAML mapping of keys to values", got=got, fix=fix)
    return value


def _misplaced(error: yaml.MarkedYAMLError, origin: str, source: str, fix: str) -> SpecError:
    """Name the line that the parser stopped at, and what is wrong there."""
    mark = error.problem_mark or error.context_mark
    problem = one_line(error.problem or error.context or "", 200)
    lines = source.splitlines()
    if mark is None or not mark.line < len(lines):
        return SpecError(f"{origin} is not plain YAML: {problem}", fix=fix)
    line = lines[mark.line]
    if "\t" in line[: len(line) - len(line.lstrip())]:
        problem, fix = "a tab in the indentation", "indent with blanks"
    elif "expected <block end>" in problem:
        problem, fix = (
            "it does not fit the block above it",
            "indent it as the lines beside it; quote texts that hold : or #",
        )
    return SpecError(f"{origin} is not plain YAML: line {mark.line + 1}: {problem}", got=line.strip(), fix=fix)


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
        parts, shown = path.split("."), one_line(path, 100)
        if len(parts) > MAX_YAML_DEPTH:
            raise SpecError("--set takes PATH=VALUE", got=item, fix="for example --set seeds=5")
        value = parse_yaml(f"value: {raw}", f"--set {shown}")["value"]
        here: object = data
        for i, part in enumerate(parts):
            last = i == len(parts) - 1
            if is_array(here):
                if not (part.isascii() and part.isdecimal() and len(part) < 10) or int(part) >= len(here):
                    raise SpecError(
                        f"--set {shown}: no item {brief(part)}", got=f"{len(here)} items", fix="count from 0"
                    )
                key: Any = int(part)
            elif isinstance(here, dict):
                key = part
                if not last:
                    here.setdefault(part, {})  # pyright: ignore[reportUnknownMemberType]
            else:
                where = one_line(".".join(parts[:i]), 100)
                raise SpecError(f"--set {shown}: {where} holds a single value", got=here, fix=f"set {where} itself")
            container = cast("Any", here)
            if last:
                container[key] = value
            here = cast("object", container[key])
    return data


def explain(error: ValidationError, origin: str, body: object = None) -> SpecError:
    """Turn pydantic's first error into one line: where, what, got.

    Parameters
    ----------
    body : what was validated; tells its keys from the names of union members that pydantic puts between them.
    """
    first = error.errors(include_url=False)[0]
    given = cast("object", first["input"])
    is_missing = first["type"] == "missing"
    keys = first["loc"] if body is None else _keys(first["loc"], body, given, missing=is_missing)
    where = one_line(".".join(p[:MAX_WORD] if isinstance(p, str) else brief(p) for p in keys), MAX_WORD)
    message = "this key is missing" if is_missing else first["msg"].replace("a valid tuple", "a list")
    text = f"{origin}: {where}: {message}" if where else f"{origin}: {message}"
    # A whole mapping, or a value that the message already quotes, would only repeat it.
    is_whole = isinstance(first["input"], Mapping) and len(brief(given)) > MAX_GOT
    # and a value of type "secret" may be one that was put in a wrong place.
    if first["type"] in ("missing", "unknown_key", "secret") or is_whole or f" {brief(given)};" in message:
        return SpecError(text)
    return SpecError(text, got=given)


def _keys(loc: tuple[int | str, ...], body: object, given: object, *, missing: bool) -> tuple[int | str, ...]:
    """Drop names of union members and types from a location: keep the longest part that leads to the value."""
    tail = loc[-1:] if missing else ()
    path = loc[: len(loc) - len(tail)]
    for dropped in range(len(path) + 1) if len(path) <= MAX_PLACE else ():
        for kept in combinations(path, len(path) - dropped):
            if _leads(kept, body, given):
                return (*kept, *tail)
    return loc


def _leads(path: tuple[int | str, ...], body: object, given: object) -> bool:
    for part in path:
        try:
            body = cast("Any", body)[part] if isinstance(body, dict | list) else ...
        except (KeyError, IndexError, TypeError):
            return False
    return body is given or (type(body) is type(given) and body == given)
