"""Files: written whole or not at all, named by their content, and where this machine keeps what can be made again."""

from __future__ import annotations

import hashlib
import os
import secrets
from collections.abc import Generator
from contextlib import contextmanager, suppress
from pathlib import Path

from platformdirs import user_cache_path

from hydrometer.core.io.leftovers import mark
from hydrometer.core.io.os_errors import refused

__all__ = ["cache_home", "file_digest", "replacing", "write_atomic"]


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
    """Yield a free name beside a file, which takes the file's place when the body is through, and else is removed.

    It bears this process's mark, by which what a killed one left is swept, and nobody can lay a link at it beforehand.
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
    FolderError : the machine refuses.
    """
    try:
        with replacing(path) as temporary, temporary.open("xb") as f:
            f.write(data.encode() if isinstance(data, str) else data)
    except OSError as e:
        raise refused(e, path) from None
