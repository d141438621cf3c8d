"""Atomic writes, digests of files, and this machine's cache folder."""

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
