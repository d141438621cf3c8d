"""Names for what is not finished yet, so that what a killed process left can be told from another's work in progress.

A mark is the process id and the place that gives it its meaning, one boot of one kernel and one namespace of process
ids, so that two containers on one shared folder are not taken for each other.
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
    """Whether a name bears the mark of a process of this place that has ended. False where that cannot be known."""
    pid = _owner(name)
    return pid is not None and not _lives(pid)


def is_anothers(name: str) -> bool:
    """Whether a name bears the mark of another process of this place, which lives. False where that cannot be known."""
    pid = _owner(name)
    return pid is not None and pid != os.getpid() and _lives(pid)


def _owner(name: str) -> int | None:
    """Return the process whose mark a name bears; None where there is none, or it is another place's."""
    found = _MARK.search(name)
    return None if found is None or found[2] != _place() else int(found[1])


def _lives(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except OSError:  # it lives, and is another user's
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
