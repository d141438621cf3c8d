"""Arrays from untrusted .npz and .npy files: plain numbers only, and no more of them than the file holds."""

from __future__ import annotations

import math
import zipfile
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from hydrometer.core.errors import StoreError
from hydrometer.core.io.os_errors import refused_errno

__all__ = ["map_array", "open_arrays"]

_PLAIN = frozenset("biufc")  # kinds of array that hold numbers
_HEADERS = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
_MOST = 2**60  # elements as numpy counts them, axes of no length as one


@contextmanager
def open_arrays(path: Path) -> Generator[Any]:
    """Open an .npz file that `numpy.savez` wrote: plain numbers, as large as the file holds them and no larger.

    Raises
    ------
    StoreError : no such file, compressed members (which may unpack to any size), objects, a shape that its bytes do
        not fill; in the body, no array of that name.

    Examples
    --------
    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     np.savez(Path(folder) / "a.npz", a=np.arange(3))
    ...     with open_arrays(Path(folder) / "a.npz") as arrays:
    ...         arrays["a"].tolist()
    [0, 1, 2]
    """
    try:
        with zipfile.ZipFile(path) as archive:
            for member in archive.infolist():
                _check_member(archive, member)
    except (OSError, ValueError, EOFError, zipfile.BadZipFile, NotImplementedError, RuntimeError) as e:
        if refused_errno(e) is not None:  # the machine's fault: deleting the file would not help
            raise
        raise StoreError(f"{path.name} cannot be read: {e}", got=path.parent.name, fix="delete its folder") from None
    try:
        with np.load(path, allow_pickle=False) as arrays:
            yield arrays
    except (KeyError, EOFError, zipfile.BadZipFile) as e:
        raise StoreError(f"{path.name} cannot be read: {e}", got=path.parent.name, fix="delete its folder") from None


def map_array(path: Path) -> NDArray[Any]:
    """Map an .npy file that `numpy.save` wrote, under the terms of `open_arrays`. Raises StoreError."""
    try:
        found = np.lib.format.open_memmap(path, mode="r", max_header_size=10_000)
        if found.dtype.kind not in _PLAIN:
            raise ValueError(f"an array of {found.dtype}")
    except Exception as e:  # Python's parsers raise errors without a common base class
        if refused_errno(e) is not None:
            raise
        raise StoreError(f"{path.name} cannot be read: {e}", got=path.parent.name, fix="delete its folder") from None
    return found


def _check_member(archive: zipfile.ZipFile, member: zipfile.ZipInfo) -> None:
    if member.compress_type != zipfile.ZIP_STORED or member.file_size != member.compress_size:
        raise ValueError("an array is compressed")
    with archive.open(member) as f:
        version = np.lib.format.read_magic(cast("Any", f))
        if version not in _HEADERS:
            raise ValueError(f"an array of format {version}")
        try:
            shape, _, dtype = _HEADERS[version](cast("Any", f), max_header_size=10_000)
        except Exception as e:  # Python's parsers raise errors without a common base class
            raise ValueError(f"an array without a header: {type(e).__name__}") from None
        if dtype.kind not in _PLAIN:
            raise ValueError(f"an array of {dtype}")
        lengths = [int(n) for n in shape]
        if any(n < 0 for n in lengths) or math.prod(max(n, 1) for n in lengths) > _MOST:
            raise ValueError("an array's shape is none")
        if math.prod(lengths) * dtype.itemsize != member.file_size - f.tell():
            raise ValueError("an array's shape is not what it holds")
