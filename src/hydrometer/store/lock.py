"""One run at a time on one folder."""

from __future__ import annotations

import fcntl
import json
import os
import socket
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path

from hydrometer.core.errors import FolderError

__all__ = ["hold"]


@contextmanager
def hold(folder: Path) -> Generator[None]:
    """Hold the folder's lock; the kernel lets go of it when the process ends, however it ends.

    Raises
    ------
    FolderError : another process holds it; the message says which.
    """
    path = folder / ".lock"
    try:
        handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o644)
    except OSError as e:
        raise FolderError(f"cannot open the lock in {folder}: {e.strerror}", fix="choose another --out") from None
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = os.pread(handle, 200, 0).decode(errors="replace") or "another process"
            raise FolderError(
                f"another run is using {folder}", got=holder, fix="wait for it, or choose another --out"
            ) from None
        os.ftruncate(handle, 0)
        os.pwrite(handle, json.dumps({"pid": os.getpid(), "host": socket.gethostname()}).encode(), 0)
        yield
    finally:
        os.close(handle)
