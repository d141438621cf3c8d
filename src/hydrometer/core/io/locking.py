"""Exclusive locks on folders: file locks of the kernel, which are released when a process ends, however it ends.

A lock file may be removed and made again under the same name, so a lock counts only while the locked file still has
that name; the holder renames a folder before removing it.
"""

from __future__ import annotations

import errno
import fcntl
import json
import os
import shutil
import socket
import time
from collections.abc import Generator
from contextlib import contextmanager, suppress
from pathlib import Path

from hydrometer.core.errors import FolderError
from hydrometer.core.io.os_errors import refused
from hydrometer.core.io.yaml_io import is_object, read_plain

__all__ = ["InUseError", "claim", "discard", "hold"]

_LOCK = ".lock"
_LOOK = 0.2  # seconds between tries
_TRIES = 100  # attempts at a folder that keeps disappearing
_LOCKLESS = (errno.ENOLCK, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL)


class InUseError(FolderError):
    """Another process holds the folder."""


@contextmanager
def hold(folder: Path) -> Generator[None]:
    """Lock a run's folder, so that only one run at a time works on it; the lock file names the holder.

    Raises
    ------
    InUseError : another process holds it; the message says which.
    FolderError : the operating system refuses, or the file system has no locks.
    """
    path = folder / _LOCK
    try:
        handle = _locked(path)
        if handle is None:
            fix = "wait for it, or choose another --out"
            raise InUseError(f"another run is using {folder}", got=_holder(path), fix=fix)
        try:
            os.ftruncate(handle, 0)
            os.pwrite(handle, json.dumps({"pid": os.getpid(), "host": socket.gethostname()}).encode(), 0)
        except BaseException:
            os.close(handle)
            raise
    except OSError as e:
        raise refused(e, path) from None
    try:
        yield
    finally:
        os.close(handle)


@contextmanager
def claim(folder: Path, patience: float) -> Generator[bool]:
    """Hold an exclusive lock on `folder` while the body runs; yields False if another process holds it.

    A missing folder is made. On a file system without locks every process gets the lock.

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
    """Remove a folder, unless a process holds it or that cannot be determined.

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
    """Return the lock's handle, or None if another process holds it."""
    for left in reversed(range(_TRIES)):
        try:
            folder.mkdir(exist_ok=True)
            return _locked(folder / _LOCK, or_lockless=True)
        except FileNotFoundError:  # the previous holder removed it meanwhile
            if not left:
                raise
    return None


def _locked(path: Path, *, or_lockless: bool = False) -> int | None:
    """Open a file and lock it; None if another process holds it. Raises FileNotFoundError if it was removed."""
    handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o666)
    try:
        if _take(handle, or_lockless=or_lockless):
            if os.path.samestat(os.fstat(handle), os.stat(path, follow_symlinks=False)):
                return handle
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(path))
    except BaseException:
        os.close(handle)
        raise
    os.close(handle)
    return None


def _take(handle: int, *, or_lockless: bool) -> bool:
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (BlockingIOError, PermissionError):
        return False
    except OSError as e:
        if not or_lockless or e.errno not in _LOCKLESS:
            raise
    return True


def _holder(path: Path) -> str:
    """Name the holder of the lock as far as the file tells: a run that just began may not have written it yet."""
    try:
        facts: object = json.loads(read_plain(path, 1000))
    except (OSError, ValueError, RecursionError):
        return "another process"
    if not is_object(facts):
        return "another process"
    return f"process {facts.get('pid')} on {facts.get('host')}"
