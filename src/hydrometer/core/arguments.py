"""Checks of the arguments of public functions: one line in place of a library's own error."""

from __future__ import annotations

import math
import operator
from numbers import Real
from typing import Any, TypeVar, cast

from hydrometer.core.errors import InputError

__all__ = ["number", "of_type", "one_of", "whole"]

T = TypeVar("T")


def whole(value: object, name: str, least: int | None = 0, *, fix: str = "") -> int:
    """Return a whole number as Python's own.

    Parameters
    ----------
    value : of any integer type; a bool is none.
    least : the smallest it may be; None for any.

    Raises
    ------
    InputError : anything else.

    Examples
    --------
    >>> whole(3, "n"), whole(-1, "seed", None)
    (3, -1)
    >>> whole(2.5, "n", 1)
    Traceback (most recent call last):
        ...
    hydrometer.core.errors.InputError: n must be a whole number of at least 1; got 2.5
    """
    try:
        found = operator.index(cast("Any", value))
    except TypeError:
        found = None
    if found is None or isinstance(value, bool) or (least is not None and found < least):
        of = "" if least is None else f" of at least {least}"
        raise InputError(f"{name} must be a whole number{of}", got=value, fix=fix)
    return found


def number(value: object, name: str, least: float = 0.0, most: float = math.inf, *, finite: bool = True) -> None:
    """Refuse anything but a real number from `least` to `most`; NaN always, infinity if `finite`.

    Raises
    ------
    InputError : anything else.

    Examples
    --------
    >>> number(float("nan"), "tol")
    Traceback (most recent call last):
        ...
    hydrometer.core.errors.InputError: tol must be a finite number of at least 0; got nan
    """
    is_real = not isinstance(value, bool) and isinstance(value, Real)
    found = float(cast("Any", value)) if is_real else math.nan
    if not least <= found <= most or (finite and math.isinf(found)):
        kind = "a finite number" if finite else "a number"
        bounds = [f"of at least {least:g}"] * math.isfinite(least) + [f"of at most {most:g}"] * math.isfinite(most)
        raise InputError(f"{name} must be {' '.join([kind, ' and '.join(bounds)]).strip()}", got=value)


def one_of(value: object, kind: type, name: str, fix: str) -> None:
    """Refuse a value of another type. Raises InputError."""
    if not isinstance(value, kind):
        raise InputError(f"{name} is no {kind.__name__}", got=value, fix=fix)


def of_type(kind: type[T], value: object) -> T:
    """Return a value that must be of a type, such as the chain, law or rows that a family is given.

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
