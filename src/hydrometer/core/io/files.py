"""Atomic writes, digests of files, this machine's cache folder, and names of unfinished files.

The names tell leftovers of killed processes from work in progress of others: a mark is a process id with the boot and
the PID namespace in which it is valid, so that two containers that share a folder are not mistaken for each other.
"""

from __future__ import annotations

import hashlib
import os
import re
import secrets
from collections.abc import Generator
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path

from platformdirs import user_cache_path

from hydrometer.core.io.os_errors import refused

__all__ = ["cache_home", "file_digest", "is_abandoned", "is_anothers", "mark", "replacing", "write_atomic"]

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


def cache_home() -> Path:
    """Return ``$HYDROMETER_CACHE``, else ``$XDG_CACHE_HOME/hydrometer``, else ``~/.cache/hydrometer``."""
    given = os.environ.get("HYDROMETER_CACHE")
    return Path(given) if given else user_cache_path("hydrometer")


def file_digest(path: Path) -> str:
    """SHA-256 of a file's bytes, in hexadecimal."""
    with path.open("rb") as f:
        return hashlib.file_digest(f, "sha256").hexdigest()


@contextmanager
def replacing(path: Path) -> Generator[Path]:
    """Yield an unused path beside a file, which replaces the file if the body succeeds and is removed otherwise.

    Its name has this process's mark, so that leftovers of killed processes can be swept, and cannot be predicted, so
    that nobody can plant a link there.
    """
    temporary = path.with_name(f".{path.name}.{mark()}.{secrets.token_hex(4)}.tmp")
    try:
        yield temporary
        temporary.replace(path)
    finally:
        with suppress(OSError):
            temporary.unlink()


def write_atomic(path: Path, data: bytes | str) -> None:
    """Write a file so that a reader sees the old one or the new one, never a part.

    Raises
    ------
    FolderError : the operating system refuses.
    """
    try:
        with replacing(path) as temporary, temporary.open("xb") as f:
            f.write(data.encode() if isinstance(data, str) else data)
    except OSError as e:
        raise refused(e, path) from None
