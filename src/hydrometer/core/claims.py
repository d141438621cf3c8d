"""Who works in a folder that several processes may want: the kernel knows, and lets go when a process ends, however.

A lock is on a file, and a file may be removed and made again under its name: what was taken counts only while it is
still the file of that name, and a folder is renamed before it is removed, by who has it.
"""

from __future__ import annotations

import errno
import fcntl
import os
import shutil
import time
from collections.abc import Generator
from contextlib import contextmanager, suppress
from pathlib import Path

__all__ = ["claim", "discard"]

_LOCK = ".lock"
_LOOK = 0.2  # seconds between tries
_TRIES = 100  # at a folder that is always gone again
_LOCKLESS = (errno.ENOLCK, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL)


@contextmanager
def claim(folder: Path, patience: float) -> Generator[bool]:
    """Have a folder to this process while the body runs, made where it is missing; yields False where another has it.

    On a file system without locks nobody can be told from nobody, and everybody has it.

    Parameters
    ----------
    folder : the folder; its parent exists.
    patience : seconds to wait for another to end.

    Raises
    ------
    OSError : the folder cannot be written.

    Examples
    --------
    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as here, claim(Path(here), 0) as mine, claim(Path(here), 0) as again:
    ...     print(mine, again)
    True False
    """
    deadline = time.monotonic() + patience
    while (handle := _taken(folder)) is None and time.monotonic() < deadline:
        time.sleep(_LOOK)
    try:
        yield handle is not None
    finally:
        if handle is not None:
            os.close(handle)


def discard(folder: Path, away: Path) -> None:
    """Remove a folder, unless a process has it, or it cannot be known whether one does.

    Parameters
    ----------
    folder : the folder, which need not exist.
    away : a free name beside it, under which it is removed.
    """
    with suppress(OSError):
        if folder.is_symlink():
            folder.unlink()
        elif folder.is_dir():
            with claim(folder, 0) as mine:
                if mine:
                    folder.rename(away)
        shutil.rmtree(away, ignore_errors=True)


def _taken(folder: Path) -> int | None:
    """Return the lock's handle, or None where another process has it."""
    left = _TRIES
    while True:
        left -= 1
        try:
            folder.mkdir(exist_ok=True)
            handle = os.open(folder / _LOCK, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o666)
        except FileNotFoundError:  # who had it has removed it since
            if not left:
                raise
            continue
        try:
            if not _take(handle):
                os.close(handle)
                return None
            if _is_file_of(handle, folder / _LOCK):
                return handle
        except BaseException:
            os.close(handle)
            raise
        os.close(handle)


def _take(handle: int) -> bool:
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (BlockingIOError, PermissionError):
        return False
    except OSError as e:
        if e.errno not in _LOCKLESS:
            raise
    return True


def _is_file_of(handle: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(handle), os.stat(path, follow_symlinks=False))
    except FileNotFoundError:
        return False
