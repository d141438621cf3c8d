"""A cache on this machine of artifacts that are kept elsewhere: whole or absent, verified, and bounded in size."""

from __future__ import annotations

import os
import secrets
import shutil
import time
from collections.abc import Generator
from contextlib import contextmanager, suppress
from pathlib import Path

from hydrometer.core.errors import FolderError
from hydrometer.store.artifacts import ArtifactStore
from hydrometer.store.storage_uri import copies_bound

__all__ = ["Copies"]

_IN_USE = 3600.0  # seconds since its last use; a reader may still have it open
_FORGOTTEN = 86400.0  # seconds after which a half-made copy is abandoned
_LEFT = 0.8  # of the bound, when room is made


class Copies(ArtifactStore):
    """A folder of copies, used by several processes at once. `root`: the folder."""

    def __init__(self, root: Path) -> None:
        super().__init__(root)
        self.bound = copies_bound()
        self._size: int | None = None  # bytes; None until they are counted

    def has(self, stage: str, key: str) -> bool:
        """Whether a complete copy exists; it counts as used."""
        found = super().has(stage, key)
        if found:
            try:
                os.utime(self.path(stage, key))
            except FileNotFoundError:  # another process made room
                self._verified.discard(f"{stage}-{key}")
                return False
        return found

    @contextmanager
    def filling(self, stage: str, key: str) -> Generator[Path]:
        """Yield a temporary folder that becomes the copy, unless the body raises."""
        folder = self.root / f".tmp-{stage}-{key}-{os.getpid()}-{secrets.token_hex(4)}"
        folder.mkdir()
        try:
            yield folder
            self.take(stage, key, folder)
        finally:
            shutil.rmtree(folder, ignore_errors=True)

    def take(self, stage: str, key: str, folder: Path) -> None:
        """Move a complete, verified folder to its place. An existing complete copy stays."""
        if not self.has(stage, key):  # removes a damaged one
            with suppress(OSError):  # another process was faster; what it put there is checked when it is asked for
                folder.replace(self.path(stage, key))
                self._verified.add(f"{stage}-{key}")
        shutil.rmtree(folder, ignore_errors=True)
        if self._size is not None:
            self._size += _bytes_in(self.path(stage, key))

    def trim(self) -> None:
        """Remove the least recently used copies if the total exceeds the bound."""
        if self._size is not None and self._size <= self.bound:
            return
        found: list[tuple[float, int, Path]] = []
        for folder in self.root.iterdir():
            with suppress(FileNotFoundError):
                if not folder.name.startswith("."):
                    found.append((folder.stat().st_mtime, _bytes_in(folder), folder))
        self._size = sum(n for _, n, _ in found)
        if self._size <= self.bound:
            return
        recent = time.time() - _IN_USE
        for used, n_bytes, folder in sorted(found):
            if self._size <= _LEFT * self.bound or used > recent:
                break
            self._verified.discard(folder.name)
            with suppress(FolderError):  # at once, so that no other process reads half of it
                self._take_away(folder)
            self._size -= n_bytes

    def sweep(self, *, shared: bool = True) -> None:
        """Remove half-made copies of killed processes."""
        for leftover in self.root.glob(".tmp-*"):
            with suppress(FileNotFoundError):
                if time.time() - leftover.stat().st_mtime > _FORGOTTEN:
                    shutil.rmtree(leftover, ignore_errors=True)


def _bytes_in(folder: Path) -> int:
    total = 0
    for path in folder.rglob("*"):
        with suppress(FileNotFoundError):
            total += path.stat().st_size
    return total
