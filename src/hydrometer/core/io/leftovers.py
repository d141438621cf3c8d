"""Names of unfinished files, which tell leftovers of killed processes from work in progress of others.

A mark is a process id with the boot and the PID namespace in which it is valid, so that two containers that share a
folder are not mistaken for each other.
"""

from __future__ import annotations

import hashlib
import os
import re
from functools import cache
from pathlib import Path

__all__ = ["is_abandoned", "is_anothers", "mark"]

_MARK = re.compile(r"(?:^|[.-])(\d{1,10})@([0-9a-f]{8})(?=$|[.-])")


def mark() -> str:
    """Return this process's mark, for names of temporary files and folders.

    Examples
    --------
    >>> is_abandoned(f".tmp-draw-{mark()}")
    False
    """
    return f"{os.getpid()}@{_place()}"


def is_abandoned(name: str) -> bool:
    """Whether a name has the mark of a process of this PID namespace that has ended; False if that is unknown."""
    pid = _owner(name)
    return pid is not None and not _lives(pid)


def is_anothers(name: str) -> bool:
    """Whether a name has the mark of another living process of this PID namespace; False if that is unknown."""
    pid = _owner(name)
    return pid is not None and pid != os.getpid() and _lives(pid)


def _owner(name: str) -> int | None:
    """Return the process whose mark a name has; None without a mark, or if it is of another PID namespace."""
    found = _MARK.search(name)
    return None if found is None or found[2] != _place() else int(found[1])


def _lives(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except OSError:  # alive, and owned by another user
        return True
    return True


@cache
def _place() -> str:
    parts = [os.uname().nodename]
    try:
        parts.append(Path("/proc/sys/kernel/random/boot_id").read_text().strip())
        parts.append(str(Path("/proc/self/ns/pid").stat().st_ino))
    except OSError:  # not Linux: the host's name alone
        pass
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:8]
