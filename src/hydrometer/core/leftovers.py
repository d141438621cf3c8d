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

__all__ = ["is_abandoned", "mark"]

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
    found = _MARK.search(name)
    if found is None or found[2] != _place():
        return False
    try:
        os.kill(int(found[1]), 0)
    except ProcessLookupError:
        return True
    except OSError:  # it lives, and is another user's
        return False
    return False


@cache
def _place() -> str:
    parts = [os.uname().nodename]
    try:
        parts.append(Path("/proc/sys/kernel/random/boot_id").read_text().strip())
        parts.append(str(Path("/proc/self/ns/pid").stat().st_ino))
    except OSError:  # not Linux: the host's name alone
        pass
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:8]
