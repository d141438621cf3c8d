"""Who works in a folder that several processes may want: the kernel knows, and lets go when a process ends, however."""

from __future__ import annotations

import fcntl
import os
import time
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path

__all__ = ["claim", "is_claimed"]

_LOCK = ".lock"
_LOOK = 0.2  # seconds between tries


@contextmanager
def claim(folder: Path, patience: float) -> Generator[bool]:
    """Have a folder to this process while the body runs, made where it is missing; yields False where another has it.

    Parameters
    ----------
    folder : the folder.
    patience : seconds to wait for another to end: one that was killed on another machine holds a network file
        system's lock until its lease is over.

    Examples
    --------
    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as here, claim(Path(here), 0) as mine, claim(Path(here), 0) as again:
    ...     print(mine, again)
    True False
    """
    folder.mkdir(parents=True, exist_ok=True)
    handle = os.open(folder / _LOCK, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o644)
    try:
        deadline = time.monotonic() + patience
        while not (mine := _take(handle)) and time.monotonic() < deadline:
            time.sleep(min(_LOOK, patience))
        yield mine
    finally:
        os.close(handle)


def is_claimed(folder: Path) -> bool:
    """Whether a process has the folder."""
    try:
        handle = os.open(folder / _LOCK, os.O_RDWR | os.O_NOFOLLOW)
    except OSError:
        return False
    try:
        return not _take(handle)
    finally:
        os.close(handle)


def _take(handle: int) -> bool:
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:  # a file system without locks: nobody can be told from nobody
        return True
    return True
