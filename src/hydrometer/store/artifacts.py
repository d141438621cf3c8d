"""Artifacts: folders named by a hash of their inputs.

An artifact's key is a hash of its stage, the stage's version, the keys of its inputs, its parameters and the numerics
class; equal keys mean equal content. It is written into a temporary folder beside its place, its
`meta.json` last, and renamed when whole, so a name that exists is a finished artifact. Its files' checksums are
verified when it is first opened in a process, and `meta.json` has one of its own: a truncated or flipped file makes the
artifact absent, and it is computed again; one that cannot be read at the moment is left alone. So no fsync is needed,
and thousands of small artifacts are cheap.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
import time
from collections.abc import Generator, Iterable, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from stat import S_ISREG
from typing import Any

from hydrometer.core.errors import StoreError
from hydrometer.core.io.files import file_digest, is_abandoned, is_anothers, mark
from hydrometer.core.io.locking import discard
from hydrometer.core.io.os_errors import refused
from hydrometer.core.io.yaml_io import is_object, read_json
from hydrometer.store.path_safety import inner_file, remove

__all__ = [
    "MAX_META_BYTES",
    "META",
    "ArtifactStore",
    "canonical_json",
    "checked_meta",
    "content_key",
    "content_keys",
    "is_whole",
]

META = "meta.json"
MAX_META_BYTES = 64_000_000
_KEY_LENGTH = 32
_SMALL = 1 << 16  # bytes of a file that is read at once; hashlib takes a buffer four times that for any
_FEW = 100  # artifacts checked one by one, since a shared cache may hold a million others
_HOLE = "\x00"


def canonical_json(value: object) -> str:
    """JSON with sorted keys and no spaces; equal values give equal bytes."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=True, allow_nan=False)


def content_key(value: object) -> str:
    """Return the first 128 bits of the SHA-256 of canonical JSON, in hexadecimal."""
    return hashlib.sha256(canonical_json(value).encode()).hexdigest()[:_KEY_LENGTH]


def content_keys(value: Mapping[str, object], name: str, numbers: Iterable[int]) -> list[str]:
    """Return `content_key` of a mapping for each of several whole numbers under `name`; the rest is serialised once.

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


class ArtifactStore:
    """All artifacts below one folder. `root`: the folder, made if missing."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self._verified: set[str] = set()
        try:
            root.mkdir(parents=True, exist_ok=True)
        except OSError as e:
            raise refused(e, root) from None

    @property
    def location(self) -> str:
        """Its location, as `open_store` takes it in another process or on another machine."""
        return str(self.root.absolute())

    def __getstate__(self) -> dict[str, object]:
        """Another process may have another working directory, and verifies for itself."""
        return {**self.__dict__, "root": self.root.absolute(), "_verified": set[str]()}

    def partial(self, stage: str, key: str) -> Path:
        """Return the folder where unfinished work on an artifact may keep its state; it need not exist."""
        return self.root / f".partial-{stage}-{key}"

    def discard_partial(self, stage: str, key: str) -> None:
        """Remove the partial work on an artifact that is complete now, unless another run still uses it."""
        discard(self.partial(stage, key), self.root / f".tmp-partial-{key}-{mark()}")

    def path(self, stage: str, key: str) -> Path:
        """Return where an artifact is or would be."""
        return self.root / f"{stage}-{key}"

    def meta(self, stage: str, key: str) -> dict[str, Any]:
        """Return the artifact's `meta.json`. Raises StoreError: absent or unreadable."""
        try:
            meta: dict[str, Any] = read_json(self.path(stage, key) / META, MAX_META_BYTES)
            float(meta["seconds"])
            if not isinstance(meta["info"], dict):
                raise ValueError("its info is no object")
        except (OSError, ValueError, KeyError, TypeError) as e:
            raise StoreError(f"artifact {stage}-{key} has no readable {META}: {e}") from None
        return meta

    def has(self, stage: str, key: str) -> bool:
        """Whether the artifact exists and is intact. A damaged one is removed, so that it is made again.

        Raises
        ------
        FolderError : it cannot be read for a reason outside itself, or cannot be removed.
        """
        name = f"{stage}-{key}"
        if name in self._verified:
            return True
        folder = self.path(stage, key)
        if not folder.is_dir() and not folder.is_symlink():
            return False
        try:
            whole = is_whole(folder, stage, key)
        except OSError as e:  # no descriptor, no permission, a hung disk: not the artifact's fault
            raise refused(e, folder) from None
        if whole:
            self._verified.add(name)
        else:
            self._take_away(folder)
        return whole

    def absent(self, names: Sequence[tuple[str, str]]) -> list[tuple[str, str]]:
        """Return the missing (stage, key) pairs; as `has`, for many at once: the folder is listed once."""
        there: set[str] | None = None
        if len(names) > _FEW:
            with suppress(OSError):  # then `has` says what is wrong
                there = {*os.listdir(self.root), *self._verified}
        return [n for n in names if (there is not None and f"{n[0]}-{n[1]}" not in there) or not self.has(*n)]

    def damaged(self, names: Sequence[tuple[str, str]]) -> list[tuple[str, str]]:
        """Return those that exist but are damaged; none here, since `has` removes them."""
        return [n for n in names if not self.has(*n)]

    def restore(self, stage: str, key: str) -> bool:
        """Send what was finished but not sent; nothing in a local folder."""
        return False

    def _take_away(self, folder: Path) -> None:
        """Remove a damaged artifact atomically, so that no other run sees half of it."""
        away = self.root / f".tmp-{folder.name}-{mark()}"
        try:
            folder.replace(away)
            remove(away)
        except FileNotFoundError:  # another run was faster
            return
        except OSError as e:
            raise refused(e, folder) from None

    @contextmanager
    def write(self, stage: str, key: str, facts: Mapping[str, object]) -> Generator[tuple[Path, dict[str, object]]]:
        """Make an artifact: yields a temporary folder to fill and a dict for facts about it.

        Nothing remains if the body raises. `facts` (the keys of its inputs) goes into `meta.json`.

        Raises
        ------
        FolderError : an OSError, in the body or here.
        """
        name = f"{stage}-{key}"
        temporary = self.root / f".tmp-{name}-{mark()}"
        began = time.perf_counter()
        info: dict[str, object] = {}
        try:
            _make_empty(temporary)
            yield temporary, info
            meta = {
                "stage": stage,
                "key": key,
                **facts,
                "info": info,
                "files": _files_of(str(temporary)),
                "seconds": round(time.perf_counter() - began, 4),
            }
            _write(f"{temporary}/{META}", _signed(meta))
            _put(str(temporary), f"{self.root}/{name}")
        except BaseException as e:
            shutil.rmtree(temporary, ignore_errors=True)
            if isinstance(e, OSError):
                raise refused(e, self.root) from e
            raise
        self._verified.add(name)

    def sweep(self, *, shared: bool = False) -> None:
        """Remove what killed runs left half-written: while holding the folder's lock, or of a shared cache.

        In a shared cache, only leftovers of ended processes of this machine. Under the lock, everything but the work of
        living processes of this machine: a run elsewhere may use this folder as its cache.
        """
        for leftover in self.root.glob(".tmp-*"):
            gone = is_abandoned(leftover.name) if shared else not is_anothers(leftover.name)
            if gone:
                with suppress(OSError):
                    remove(leftover)
        for leftover in self.root.glob(".partial-*"):  # killed between the artifact's last step and its own removal
            name = leftover.name.removeprefix(".partial-")
            if (self.root / name).is_dir():
                discard(leftover, self.root / f".tmp-{name}-{mark()}")


def checked_meta(meta: object, stage: str, key: str) -> dict[str, Any]:
    """Return what a `meta.json` holds, without its checksum.

    Raises
    ------
    ValueError : it is another artifact's, or was changed. RecursionError : nested too deeply.
    """
    if not is_object(meta):
        raise ValueError("it is no object")
    body: dict[str, Any] = {**meta}
    if (body.get("stage"), body.get("key")) != (stage, key):
        raise ValueError("it is of another artifact")
    if body.pop("checksum", None) not in (None, _checksum(body)):  # None: made before there was one
        raise ValueError("its checksum is another")
    return body


def is_whole(folder: Path, stage: str, key: str) -> bool:
    """Whether a folder holds the artifact of its name, intact, by all its files. Nothing is changed.

    Raises
    ------
    OSError : it cannot be read for a reason outside itself.
    """
    try:
        about = inner_file(folder, META)
        if not about.is_file():
            return False
        body = checked_meta(read_json(about, MAX_META_BYTES), stage, key)
        for file, facts in body["files"].items():
            path = inner_file(folder, file)
            found = path.stat()
            if not S_ISREG(found.st_mode) or found.st_size != facts["bytes"]:  # reading a pipe would block for ever
                return False
            if file_digest(path) != facts["sha256"]:
                return False
    except (FileNotFoundError, NotADirectoryError, IsADirectoryError):
        return False
    except (StoreError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return False
    return True


# A block of a cheap law takes less time than pathlib takes for its folder: these four are in terms of os.


def _make_empty(folder: Path) -> None:
    try:
        os.mkdir(folder)
    except FileExistsError:  # of this very process, whose last attempt could not clean up
        shutil.rmtree(folder)
        os.mkdir(folder)


def _files_of(folder: str, below: str = "") -> dict[str, dict[str, object]]:
    """Size and checksum of each file in a folder, by its relative name."""
    out: dict[str, dict[str, object]] = {}
    with os.scandir(folder) as entries:
        for entry in entries:
            if entry.is_dir():
                out |= _files_of(entry.path, f"{below}{entry.name}/")
            elif entry.is_file():
                size, digest = _read(entry.path)
                out[below + entry.name] = {"bytes": size, "sha256": digest}
    return out


# A small file is opened by the system's own calls: a file object costs more than to read it.
def _read(path: str) -> tuple[int, str]:
    handle = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        size = os.fstat(handle).st_size
        if size <= _SMALL and len(read := os.read(handle, _SMALL)) == size:
            return size, hashlib.sha256(read).hexdigest()
    finally:
        os.close(handle)
    return size, file_digest(Path(path))


def _write(path: str, data: bytes) -> None:
    handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o666)
    try:
        left = memoryview(data)
        while left:
            left = left[os.write(handle, left) :]
    finally:
        os.close(handle)


# On one line, for the encoder that indents is Python's own and slow.
_sorted_json = json.JSONEncoder(sort_keys=True).encode


def _signed(meta: Mapping[str, object]) -> bytes:
    """JSON with a checksum of its other fields, as `_checksum` serialises them on reading."""
    body = _sorted_json(json.loads(_sorted_json(meta)))
    return f'{{"checksum": "{_digest_of(body)}", {body[1:]}'.encode()


def _checksum(read: Mapping[str, object]) -> str:
    """Checksum of the fields of a `meta.json`, its own left out."""
    return _digest_of(_sorted_json(read))


def _digest_of(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def _put(temporary: str, final: str) -> None:
    try:
        os.rename(temporary, final)
    except OSError as e:
        if e.errno not in (errno.ENOTEMPTY, errno.EEXIST):
            raise
        shutil.rmtree(temporary)  # another run with this cache was faster; equal keys mean equal content
