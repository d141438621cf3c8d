"""Artifacts: folders named by what went into them.

An artifact's key is a hash of its stage, the stage's version, the keys of its inputs, its parameters and the numerics
class; whoever has the same key has the same content. It is written into a temporary folder beside its place, its
`meta.json` last, and renamed when whole, so a name that exists is a finished artifact. Its files' checksums are
verified when it is first opened in a process: a truncated or flipped file makes the artifact absent, and it is computed
again. No fsync is needed for that, which keeps thousands of small artifacts cheap.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import time
from collections.abc import Generator, Iterable, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

from hydrometer.core.errors import FolderError, StoreError

__all__ = ["META", "ArtifactStore", "canonical_json", "content_key", "content_keys", "file_digest", "write_atomic"]

META = "meta.json"
_KEY_LENGTH = 32
_HOLE = "\x00"


def canonical_json(value: object) -> str:
    """JSON with sorted keys and no spaces; equal values give equal bytes."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=True, allow_nan=False)


def content_key(value: object) -> str:
    """Return the first 128 bits of the SHA-256 of canonical JSON, in hexadecimal."""
    return hashlib.sha256(canonical_json(value).encode()).hexdigest()[:_KEY_LENGTH]


def content_keys(value: Mapping[str, object], name: str, numbers: Iterable[int]) -> list[str]:
    """Return `content_key` of a mapping with each of some whole numbers under `name`; the rest is written once.

    Examples
    --------
    >>> content_keys({"a": 1}, "start", [0, 7]) == [content_key({"a": 1, "start": n}) for n in (0, 7)]
    True
    """
    written = canonical_json({**value, name: _HOLE}).split(canonical_json(_HOLE))
    if len(written) != 2:  # the mark stands somewhere else too
        return [content_key({**value, name: n}) for n in numbers]
    head, tail = hashlib.sha256(written[0].encode()), written[1]
    keys: list[str] = []
    for n in numbers:
        whole = head.copy()
        whole.update(f"{n}{tail}".encode())
        keys.append(whole.hexdigest()[:_KEY_LENGTH])
    return keys


def file_digest(path: Path) -> str:
    """SHA-256 of a file's bytes, in hexadecimal."""
    with path.open("rb") as f:
        return hashlib.file_digest(f, "sha256").hexdigest()


def write_atomic(path: Path, data: bytes | str) -> None:
    """Write a file whole or not at all: a temporary sibling, then a rename."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    raw = data.encode() if isinstance(data, str) else data
    try:
        temporary.write_bytes(raw)
        temporary.replace(path)
    except OSError as e:
        temporary.unlink(missing_ok=True)
        raise FolderError(f"cannot write {path.name}: {e.strerror}", got=str(path.parent)) from None


class ArtifactStore:
    """All artifacts below one folder.

    Parameters
    ----------
    root : the folder, made if missing.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        self._verified: set[str] = set()
        try:
            root.mkdir(parents=True, exist_ok=True)
        except OSError as e:
            raise FolderError(f"cannot make the folder {root}: {e.strerror}", fix="choose another --out") from None

    @property
    def location(self) -> str:
        """Where it is, as `open_store` takes it in another process or on another machine."""
        return str(self.root.absolute())

    def path(self, stage: str, key: str) -> Path:
        """Return where an artifact is or would be."""
        return self.root / f"{stage}-{key}"

    def meta(self, stage: str, key: str) -> dict[str, Any]:
        """Return the artifact's `meta.json`.

        Raises
        ------
        StoreError : absent or unreadable.
        """
        try:
            meta: object = json.loads((self.path(stage, key) / META).read_bytes())
        except (OSError, ValueError) as e:
            raise StoreError(f"artifact {stage}-{key} has no readable {META}: {e}") from None
        if not isinstance(meta, dict):
            raise StoreError(f"artifact {stage}-{key} has no readable {META}")
        return cast("dict[str, Any]", meta)

    def has(self, stage: str, key: str) -> bool:
        """Whether the artifact is there and whole. A damaged one is removed, so that it is made again."""
        name = f"{stage}-{key}"
        if name in self._verified:
            return True
        folder = self.path(stage, key)
        if not folder.is_dir():
            return False
        try:
            meta = self.meta(stage, key)
            whole = meta.get("stage") == stage and meta.get("key") == key
            for file, facts in cast("dict[str, dict[str, Any]]", meta["files"]).items():
                path = folder / file
                whole = whole and path.stat().st_size == facts["bytes"] and file_digest(path) == facts["sha256"]
        except (StoreError, OSError, KeyError, TypeError, AttributeError):
            whole = False
        if whole:
            self._verified.add(name)
        else:
            shutil.rmtree(folder)
        return whole

    def absent(self, names: Sequence[tuple[str, str]]) -> list[tuple[str, str]]:
        """Return those (stage, key) that are not there; as `has`, for many at once."""
        return [n for n in names if not self.has(*n)]

    def damaged(self, names: Sequence[tuple[str, str]]) -> list[tuple[str, str]]:
        """Return those that are there and cannot be read as they were written; here `has` has seen to that."""
        return [n for n in names if not self.has(*n)]

    def restore(self, stage: str, key: str) -> bool:
        """Put back what was finished and did not arrive; in a local folder nothing is on its way."""
        return False

    @contextmanager
    def write(self, stage: str, key: str, facts: Mapping[str, object]) -> Generator[tuple[Path, dict[str, object]]]:
        """Make an artifact: yields a temporary folder to fill and a dict for facts learnt on the way.

        Nothing remains if the body raises. `facts` (the keys of its inputs) goes into `meta.json`.
        """
        final = self.path(stage, key)
        temporary = self.root / f".tmp-{stage}-{key}-{os.getpid()}"
        shutil.rmtree(temporary, ignore_errors=True)
        began = time.perf_counter()
        info: dict[str, object] = {}
        try:
            temporary.mkdir()
            yield temporary, info
            files = {
                str(p.relative_to(temporary)): {"bytes": p.stat().st_size, "sha256": file_digest(p)}
                for p in sorted(temporary.rglob("*"))
                if p.is_file()
            }
            meta = {
                "stage": stage,
                "key": key,
                **facts,
                "info": info,
                "files": files,
                "seconds": round(time.perf_counter() - began, 4),
            }
            (temporary / META).write_text(json.dumps(meta, indent=1, sort_keys=True))
            if final.exists():  # another run that shares this cache was faster; equal keys mean equal content
                shutil.rmtree(temporary)
            else:
                temporary.replace(final)
        except BaseException:
            shutil.rmtree(temporary, ignore_errors=True)
            raise
        self._verified.add(f"{stage}-{key}")

    def sweep(self) -> None:
        """Remove what killed runs left half-written. Only while holding the folder's lock."""
        for leftover in self.root.glob(".tmp-*"):
            shutil.rmtree(leftover, ignore_errors=True)
