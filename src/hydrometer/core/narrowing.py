"""Type narrowing: guards for parsed YAML and JSON, and a check for what a contract passes as its base type."""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeGuard, TypeVar

from hydrometer.core.errors import InputError

if TYPE_CHECKING:
    from typing_extensions import TypeIs

__all__ = ["as_tuple", "as_tuples", "is_list", "is_record", "of_type"]

T = TypeVar("T")


def is_list(value: object) -> TypeIs[list[object]]:
    """Whether a value is a list."""
    return isinstance(value, list)


def is_record(value: object) -> TypeGuard[dict[str, object]]:
    """Whether a value is a dict; that its keys are strings, as in JSON, is up to where it came from."""
    return isinstance(value, dict)


def as_tuple(value: object) -> object:
    """Return a list as a tuple and anything else as it is: what pydantic validates for a frozen model."""
    return tuple(value) if is_list(value) else value


def as_tuples(value: object) -> object:
    """Return nested lists as nested tuples.

    Examples
    --------
    >>> as_tuples([[1, 2], 3])
    ((1, 2), 3)
    """
    return tuple(as_tuples(v) for v in value) if is_list(value) else value


def of_type(kind: type[T], value: object) -> T:
    """Return a value that must be of a type: a chain, law or rows that a family is given as its own.

    Raises
    ------
    InputError : it is of another type.

    Examples
    --------
    >>> of_type(str, "a")
    'a'
    """
    if not isinstance(value, kind):
        raise InputError(f"not a {kind.__name__}", got=type(value).__name__)
    return value
