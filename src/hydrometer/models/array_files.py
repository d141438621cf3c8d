"""Frozen dataclasses of arrays and numbers as files, and back to the last bit; what is read is checked.

A thing of type `Points` is the file ``points.npz``, with one array a field. Rows are such a thing too, whose fields all
have one entry a row.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields, replace
from pathlib import Path
from typing import Any, TypeVar, get_args, get_type_hints

import numpy as np

from hydrometer.core.errors import InputError, StoreError
from hydrometer.core.io.arrays import open_arrays

__all__ = ["load_arrays", "load_rows", "save_arrays", "take_rows"]

T = TypeVar("T")
_NUMBERS = {int: "iu", float: "f"}


def save_arrays(thing: Any, folder: Path) -> None:
    """Write a dataclass whose fields are arrays, floats or ints into an existing folder.

    Raises
    ------
    InputError : a field that holds something else.

    Examples
    --------
    >>> import tempfile
    >>> from hydrometer.models.rows.points import Points
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     save_arrays(Points(np.zeros((2, 1)), np.array([-1.0, -2.0])), Path(folder))
    ...     load_arrays(Points, Path(folder)).log_prob.tolist()
    [-1.0, -2.0]
    """
    arrays: dict[str, Any] = {f.name: np.asarray(getattr(thing, f.name)) for f in fields(thing)}
    for name, array in arrays.items():
        if array.dtype.kind not in "biuf":
            fix = "write save_law and load_law of your own"
            raise InputError(f"{type(thing).__name__}.{name} is no array of numbers", got=array.dtype.name, fix=fix)
    np.savez(_file(type(thing).__name__, folder), **arrays)


def load_arrays(kind: type[T], folder: Path) -> T:
    """Open what `save_arrays` wrote: exactly the fields of the dataclass, each of the type that its annotation names.

    Raises
    ------
    StoreError : another file, or values that the dataclass itself refuses.
    """
    path = _file(kind.__name__, folder)
    with open_arrays(path) as archive:
        found: dict[str, Any] = {name: archive[name] for name in archive.files}
    hints, known = get_type_hints(kind), [f.name for f in fields(kind)]  # pyright: ignore[reportArgumentType]
    try:
        if sorted(found) != sorted(known):
            raise ValueError(f"it holds {sorted(found)}, not {sorted(known)}")
        return kind(**{name: _value(name, hints[name], found[name]) for name in known})
    except (ValueError, TypeError, InputError) as e:
        raise _unreadable(path, e) from None


def load_rows(kind: type[T], folders: Sequence[Path], n: int) -> T:
    """Open the first n rows of blocks, in the order given. Raises StoreError."""
    blocks: list[Any] = []
    for folder in folders:
        block: Any = load_arrays(kind, folder)
        lengths = {f.name: np.shape(getattr(block, f.name))[:1] for f in fields(block)}
        if len(set(lengths.values())) != 1 or () in lengths.values():
            raise _unreadable(_file(kind.__name__, folder), f"fields of other lengths, {lengths}")
        blocks.append(block)
    joined = {f.name: np.concatenate([getattr(b, f.name) for b in blocks])[:n] for f in fields(blocks[0])}
    return replace(blocks[0], **joined)


def take_rows(rows: T, n: int) -> T:
    """Return the first n rows."""
    x: Any = rows
    return replace(x, **{f.name: getattr(x, f.name)[:n] for f in fields(x)})


def _file(kind: str, folder: Path) -> Path:
    return folder / f"{kind.lower()}.npz"


def _unreadable(path: Path, why: object) -> StoreError:
    fix = "delete its folder, then run again"
    return StoreError(f"{path.name} cannot be read: {why}", got=path.parent.name, fix=fix)


def _value(name: str, hint: Any, found: Any) -> Any:
    """Return an array as its annotation says it: a number, or an array of the numpy type named."""
    if hint in _NUMBERS:
        if found.ndim or found.dtype.kind not in _NUMBERS[hint]:
            raise ValueError(f"{name} is no {hint.__name__}")
        return hint(found)
    inner: list[Any] = [a for part in get_args(hint) for a in get_args(part)]
    named: list[Any] = [a for a in inner if isinstance(a, type) and issubclass(a, np.generic)]
    if named and not np.issubdtype(found.dtype, named[0]):
        raise ValueError(f"{name} is of {found.dtype}, not {named[0].__name__}")
    return found
