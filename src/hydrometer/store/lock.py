"""One run at a time on one folder."""

from __future__ import annotations

import fcntl
import json
import os
import socket
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import cast

from hydrometer.core.errors import FolderError
from hydrometer.core.os_errors import refused

__all__ = ["InUseError", "hold"]


class InUseError(FolderError):
    """Another process holds the folder."""


@contextmanager
def hold(folder: Path) -> Generator[None]:
    """Hold the folder's lock; the kernel lets go of it when the process ends, however it ends.

    Raises
    ------
    InUseError : another process holds it; the message says which.
    FolderError : the machine refuses.
    """
    path = folder / ".lock"
    try:
        handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o644)
    except OSError as e:
        raise refused(e, path) from None
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            os.ftruncate(handle, 0)
            os.pwrite(handle, json.dumps({"pid": os.getpid(), "host": socket.gethostname()}).encode(), 0)
        except BlockingIOError:
            raise InUseError(
                f"another run is using {folder}", got=_holder(handle), fix="wait for it, or choose another --out"
            ) from None
        except OSError as e:
            raise refused(e, path) from None
        yield
    finally:
        os.close(handle)


def _holder(handle: int) -> str:
    """Say who holds the lock, as far as the file tells; it is only about to be written where a run just began."""
    try:
        facts: object = json.loads(os.pread(handle, 1000, 0))
    except (OSError, ValueError, RecursionError):
        return "another process"
    if not isinstance(facts, dict):
        return "another process"
    known = cast("dict[str, object]", facts)
    return f"process {known.get('pid')} on {known.get('host')}"
