"""Checks of arrays: plain real numbers, as float64; covariances of the right shape, symmetric up to rounding."""

from __future__ import annotations

from typing import Any, Literal, cast

import numpy as np

from hydrometer.core.array_types import Floats
from hydrometer.core.errors import DataError, InputError

__all__ = ["RELATIVE_ASYMMETRY", "CovarianceType", "covariance_shape", "real_array", "symmetric"]

CovarianceType = Literal["full", "tied", "diag", "spherical"]

RELATIVE_ASYMMETRY = 1e-5
"""Largest difference between a matrix and its transpose, over its largest entry, that is taken for rounding.

Products in float32 differ by about 1e-7 of the largest entry, inverses of ill-conditioned ones by more.
"""
_WRONG = {
    "c": ("complex numbers", "give their real parts, or both parts as two columns"),
    "O": ("objects", "convert it with astype(float); rows with missing values are to be dropped"),
    "U": ("text", "convert it to numbers"),
    "S": ("text", "convert it to numbers"),
    "T": ("text", "convert it to numbers"),
    "M": ("dates", "convert it to numbers"),
    "m": ("time spans", "convert it to numbers"),
    "V": ("records", "give its columns as one array of numbers"),
}


def real_array(value: object, name: str, error: type[InputError] = DataError) -> Floats:
    """Return an array of plain real numbers as float64: booleans, integers and floats of any width.

    Anything that numpy reads as an array of them is taken, also lists, tensors and data frames. NaN and infinities
    pass; the caller decides about them.

    Raises
    ------
    error : masked values, complex numbers, text, dates, objects, sparse matrices, lists of unequal lengths, and what
        numpy cannot read.

    Examples
    --------
    >>> real_array([[1, 2], [3, 4]], "points").dtype
    dtype('float64')
    """
    if _masked(value):
        fix = "drop the rows with masked values, or fill them"
        raise error(f"{name} must not hold masked values", fix=fix)
    if hasattr(value, "toarray") and hasattr(value, "nnz"):
        raise error(f"{name} must not be sparse", got=type(value).__name__, fix="convert it with toarray()")
    try:
        found = np.asarray(cast("Any", value))
    except Exception as e:  # a foreign conversion may raise anything; a ragged list is a ValueError
        raise error(f"{name} must be an array of numbers: {e}", got=type(value).__name__) from None
    if found.dtype.kind not in "biuf":
        what, fix = _WRONG.get(found.dtype.kind, (f"values of type {found.dtype}", "convert it to float64"))
        raise error(f"{name} must be plain real numbers, not {what}", got=found.dtype.name, fix=fix)
    with np.errstate(over="ignore"):  # an extended float beyond float64 becomes infinite, and is refused as that
        return found.astype(np.float64, copy=False)


def covariance_shape(kind: CovarianceType, k: int, d: int) -> tuple[int, ...]:
    """Return the shape of the covariances of k components in d dimensions."""
    match kind:
        case "full":
            return (k, d, d)
        case "tied":
            return (d, d)
        case "diag":
            return (k, d)
        case "spherical":
            return (k,)


def _masked(value: object) -> bool:
    """Whether a value is or holds a masked array; a list of them would lose its masks silently."""
    if isinstance(value, np.ma.MaskedArray):
        return bool(np.ma.getmaskarray(cast("Any", value)).any())
    if isinstance(value, list | tuple):
        return any(_masked(v) for v in cast("list[object]", value))
    return False


def symmetric(matrices: Floats, name: str) -> Floats:
    """Return matrices (..., d, d) as their symmetric parts ``(S + S') / 2``.

    Raises
    ------
    InputError : one that differs from its transpose by more than `RELATIVE_ASYMMETRY` of its largest entry.
    """
    apart = np.abs(matrices - matrices.swapaxes(-1, -2)).max(axis=(-1, -2), initial=0.0)
    if not apart.any():
        return matrices
    largest = np.abs(matrices).max(axis=(-1, -2), initial=0.0)
    if (apart > RELATIVE_ASYMMETRY * largest).any():
        worst = float((apart / np.maximum(largest, np.finfo(np.float64).tiny)).max())
        raise InputError(
            f"{name} must be symmetric",
            got=f"a difference of {worst:.1e} of the largest entry from the transpose",
            fix="give the symmetric part, (S + S.T) / 2, if that is meant",
        )
    return matrices / 2 + matrices.swapaxes(-1, -2) / 2
