"""Artifacts in an object store, with the methods of a local `ArtifactStore`.

    <place>/<stage>-<key>/<attempt>/<files>      attempt = <12 hex>-<files>-<bytes>
    <place>/<stage>-<key>/<attempt>/meta.json    put last

An object store has no rename, so a writer's files get a prefix of their own, and `meta.json`, put last, makes them an
artifact. The attempt's name says how many files and bytes belong to it: a listing alone tells a
whole artifact from a half one. Two writers of one key make two whole attempts, of which every reader takes the first by
name. Checksums are verified when files are copied to this machine, and when a copy is first used in a process.

On this machine, below `copies_home`: `copies/` are artifacts as a local store has them, the least recently used removed
first; `unsent/` are those that were made here and have not arrived, sent when a run asks for them.
"""

from __future__ import annotations

import json
import re
import secrets
import threading
import time
from collections.abc import Generator, Iterable, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hydrometer.core.errors import StoreError
from hydrometer.core.io.files import file_digest
from hydrometer.store.artifacts import MAX_META_BYTES, META, ArtifactStore, checked_meta
from hydrometer.store.copies import Copies
from hydrometer.store.storage_uri import Url, asking, at_once, bring, copies_home, filesystem, object_bytes, place_of

__all__ = ["RemoteArtifacts", "open_store"]

Name = tuple[str, str]

_ATTEMPT = re.compile(r"[0-9a-f]{12}-(\d{1,9})-(\d{1,15})")
_SINGLES = 8  # artifacts checked one by one before all are listed
_SURVEY_LASTS = 60.0  # seconds before all are listed again


def open_store(location: str | Path | Url) -> ArtifactStore:
    """Open the artifacts at a place; cheap, and what it returns can be pickled for a worker elsewhere.

    Parameters
    ----------
    location : of the artifacts: a folder, or a URL as `place_of` reads it.

    Raises
    ------
    FolderError : the folder cannot be made, or the URL is wrong.
    MissingDependencyError : the URL's library is not installed.

    Examples
    --------
    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     open_store("file://" + folder + "/artifacts").has("fit", "0" * 32)
    False
    """
    place = place_of(location)
    return RemoteArtifacts(place) if isinstance(place, Url) else ArtifactStore(place)


@dataclass(slots=True)
class _Attempt:
    """One writer's files, as a listing shows them."""

    name: str
    objects: list[str] = field(default_factory=list[str])
    n_bytes: int = 0  # without meta.json's
    committed: bool = False

    @property
    def whole(self) -> bool:
        """Whether `meta.json` is there, and as many files and bytes as the name says."""
        return self.committed and f"{len(self.objects) - 1}-{self.n_bytes}" == self.name.partition("-")[2]


class RemoteArtifacts(ArtifactStore):
    """All artifacts below one prefix of an object store.

    `has` is true of what a listing shows whole. `path` brings an artifact to this machine and returns the copy.

    Parameters
    ----------
    url : the prefix.
    """

    def __init__(self, url: Url) -> None:
        home = copies_home(url)
        super().__init__(home / "copies")
        self.url = url
        self._fs = filesystem(url)
        self._copies = Copies(home / "copies")
        self._unsent = ArtifactStore(home / "unsent")
        self._index: dict[str, str] = {}
        self._refused: set[str] = set()  # damaged attempts
        self._metas: dict[str, dict[str, Any]] = {}
        self._wanted: set[Name] = set()  # whose meta.json files are read together
        self._asked, self._surveyed = 0, -_SURVEY_LASTS
        self._guard = threading.Lock()

    def __reduce__(self) -> tuple[object, ...]:
        return (RemoteArtifacts, (self.url,))

    @property
    def location(self) -> str:
        """The URL."""
        return str(self.url)

    # what is there ---------------------------------------------------------------------------------------------------

    def has(self, stage: str, key: str) -> bool:
        """Whether the artifact exists, complete by names and sizes."""
        return self._seek(f"{stage}-{key}")

    def absent(self, names: Sequence[Name]) -> list[Name]:
        """Return the missing ones: few are looked up one by one, many by one listing of all."""
        self._wanted = set(names)
        if len(names) > _SINGLES:
            self._survey()
        else:
            at_once(self._list, [f"{s}-{k}" for s, k in names])
        return [(s, k) for s, k in names if f"{s}-{k}" not in self._index]

    def damaged(self, names: Sequence[Name]) -> list[Name]:
        """Copy these to this machine, smallest first, up to half of the cache's bound; return the damaged ones."""
        sizes = {n: _bytes(self._index.get(f"{n[0]}-{n[1]}", "")) for n in names if not self._copies.has(*n)}
        room, wanted = self._copies.bound // 2, list[Name]()
        for name in sorted(sizes, key=lambda n: sizes[n]):
            room -= sizes[name]
            if room < 0:
                break
            wanted.append(name)
        whole = at_once(lambda n: self._fetch(*n), wanted)
        self._copies.trim()
        return [n for n, good in zip(wanted, whole, strict=True) if not good]

    def path(self, stage: str, key: str) -> Path:
        """Return the copy on this machine, made if need be.

        Raises
        ------
        StoreError : absent, or damaged in the store; it is no artifact any more then, and made again by the next run.
        """
        if not self._copies.has(stage, key):
            if not self._fetch(stage, key):
                raise StoreError(f"artifact {stage}-{key} is not whole in {self.url}", fix="run it again to make it")
            self._copies.trim()
        return self._copies.path(stage, key)

    def meta(self, stage: str, key: str) -> dict[str, Any]:
        """Return the artifact's `meta.json`, without its files.

        Raises
        ------
        StoreError : absent, or damaged in the store; it is no artifact any more then, and made again by the next run.
        """
        name = f"{stage}-{key}"
        if name not in self._metas:
            if self._copies.has(stage, key):
                self._metas[name] = self._copies.meta(stage, key)
            elif not self._seek(name):
                raise StoreError(f"artifact {name} is not in {self.url}", fix="run it again to make it")
            else:
                at_once(lambda n: self._learn(*n), {(stage, key)} | self._wanted)
                self._wanted = set()
        if name not in self._metas:
            raise StoreError(f"artifact {name} is not whole in {self.url}", fix="run it again to make it")
        return self._metas[name]

    def _learn(self, stage: str, key: str) -> None:
        name = f"{stage}-{key}"
        if name not in self._index or name in self._metas:
            return
        try:
            self._metas[name] = self._read_meta(stage, key, self._index[name])
        except StoreError:  # read once more with its files; if still damaged, it is discarded
            if self._fetch(stage, key):
                self._metas[name] = self._copies.meta(stage, key)

    def _read_meta(self, stage: str, key: str, attempt: str) -> dict[str, Any]:
        """Fetch an attempt's `meta.json` and verify its checksum. Raises StoreError."""
        path = f"{self.url.path}/{stage}-{key}/{attempt}/{META}"
        try:
            with asking(self.url):
                try:
                    raw = object_bytes(self._fs, path, MAX_META_BYTES)
                except FileNotFoundError:
                    raise StoreError(f"artifact {stage}-{key} has no {META}") from None
            meta: dict[str, Any] = json.loads(raw)
            checked_meta(meta, stage, key)
        except (ValueError, RecursionError) as e:
            raise StoreError(f"artifact {stage}-{key} has no readable {META}: {e}") from None
        return meta

    # the index -------------------------------------------------------------------------------------------------------

    def _seek(self, name: str) -> bool:
        """Whether an artifact is known, or found by a look-up now. Stores read their own writes: a miss is final."""
        if name not in self._index:
            if self._asked >= _SINGLES and time.monotonic() - self._surveyed > _SURVEY_LASTS:
                self._survey()
            else:
                self._asked += 1
                self._list(name)
        return name in self._index

    def _survey(self) -> dict[str, list[_Attempt]]:
        found = self._listing("")
        with self._guard:
            self._index = {n: a for n, tries in found.items() if (a := self._first(n, tries)) is not None}
            self._asked, self._surveyed = 0, time.monotonic()
        return found

    def _list(self, name: str) -> None:
        found = self._listing(f"{name}/").get(name, [])
        with self._guard:
            self._index.pop(name, None)
            if (attempt := self._first(name, found)) is not None:
                self._index[name] = attempt

    def _first(self, name: str, tries: Iterable[_Attempt]) -> str | None:
        return min((t.name for t in tries if t.whole and f"{name}/{t.name}" not in self._refused), default=None)

    def _listing(self, prefix: str) -> dict[str, list[_Attempt]]:
        with asking(self.url):
            try:
                found: dict[str, dict[str, Any]] = self._fs.find(self.url.path, prefix=prefix, detail=True)
            except FileNotFoundError as e:
                if e.__cause__ is not None:  # the bucket itself, not an empty prefix
                    raise
                found = {}
        return _attempts(found, self.url.path)

    # copies ----------------------------------------------------------------------------------------------------------

    def _fetch(self, stage: str, key: str) -> bool:
        """Copy an artifact here and verify it; one that fails twice is discarded."""
        name = f"{stage}-{key}"
        if not self._seek(name):
            return False
        for last in (False, True):
            attempt = self._index[name]
            try:
                self._copy(stage, key, attempt)
                return True
            except StoreError:
                self._list(name)  # the attempt may have been swept for another
                if name not in self._index:
                    return False
                if last and self._index[name] == attempt:
                    self._refuse(name, attempt)
        return False

    def _copy(self, stage: str, key: str, attempt: str) -> None:
        source = f"{self.url.path}/{stage}-{key}/{attempt}"
        meta = self._read_meta(stage, key, attempt)
        files = _checked_files(meta, f"{stage}-{key}", attempt)
        with self._copies.filling(stage, key) as folder:
            for file in files:
                (folder / file).parent.mkdir(parents=True, exist_ok=True)
                with asking(self.url):
                    try:
                        bring(self._fs, f"{source}/{file}", folder / file)
                    except FileNotFoundError:
                        raise StoreError(f"artifact {stage}-{key} lacks {file}") from None
            for file, (size, digest) in files.items():
                if (folder / file).stat().st_size != size or file_digest(folder / file) != digest:
                    raise StoreError(f"{file} of artifact {stage}-{key} is not what was put there")
            (folder / META).write_text(json.dumps(meta, indent=1, sort_keys=True))

    def _refuse(self, name: str, attempt: str) -> None:
        """Remove an attempt's `meta.json`, which made it an artifact."""
        with self._guard:
            self._refused.add(f"{name}/{attempt}")
            self._index.pop(name, None)
        with asking(self.url), suppress(FileNotFoundError):
            self._fs.rm_file(f"{self.url.path}/{name}/{attempt}/{META}")

    # writing ---------------------------------------------------------------------------------------------------------

    @contextmanager
    def write(self, stage: str, key: str, facts: Mapping[str, object]) -> Generator[tuple[Path, dict[str, object]]]:
        """Make an artifact: yields a temporary folder to fill and a dict for facts learnt on the way, then sends it.

        Nothing remains if the body raises. What cannot be sent stays on this machine, and `restore` sends it later.

        Raises
        ------
        UnreachableError, FolderError : it could not be sent.
        """
        with self._unsent.write(stage, key, facts) as made:
            yield made
        self._send(stage, key)

    def restore(self, stage: str, key: str) -> bool:
        """Send an artifact that was finished here but not sent; False if there is none."""
        if not self._unsent.path(stage, key).is_dir() or not self._unsent.has(stage, key):
            return False
        self._send(stage, key)
        return True

    def _send(self, stage: str, key: str) -> None:
        name, folder = f"{stage}-{key}", self._unsent.path(stage, key)
        meta = self._unsent.meta(stage, key)
        files: dict[str, dict[str, Any]] = meta["files"]
        n_bytes = sum(int(f["bytes"]) for f in files.values())
        attempt = f"{secrets.token_hex(6)}-{len(files)}-{n_bytes}"
        target = f"{self.url.path}/{name}/{attempt}"
        with asking(self.url):
            try:
                at_once(lambda f: self._fs.put_file(str(folder / f), f"{target}/{f}"), files)
                self._fs.put_file(str(folder / META), f"{target}/{META}")
            except FileNotFoundError:
                if folder.is_dir() or not self._seek(name):
                    raise
                return  # another process of this machine sent it meanwhile
        with self._guard:
            self._index[name] = attempt
        self._metas[name] = meta
        self._copies.take(stage, key, folder)
        self._copies.trim()

    def sweep(self, *, shared: bool = False) -> None:
        """Remove half-sent attempts of killed writers, and second attempts at one key. Only while holding the lock.

        In a shared cache, only what they left on this machine: whether a remote writer still lives is unknown.
        """
        self._unsent.sweep(shared=True)  # no lock is of this machine's folders
        self._copies.sweep()
        if shared:
            return
        found = self._survey()
        spare = [o for n, tries in found.items() for t in tries if t.name != self._index.get(n) for o in t.objects]
        with asking(self.url):
            # What makes an artifact of the others goes first.
            at_once(self._remove, [o for o in spare if o.endswith(f"/{META}")])
            at_once(self._remove, [o for o in spare if not o.endswith(f"/{META}")])
        self._keep_arrived()

    def _keep_arrived(self) -> None:
        """Make copies of what is unsent and there all the same: sent in a last moment, or by others."""
        for folder in list(self._unsent.root.iterdir()):
            stage, _, key = folder.name.rpartition("-")
            if folder.name in self._index and self._unsent.has(stage, key):
                self._copies.take(stage, key, folder)
        self._copies.trim()

    def _remove(self, path: str) -> None:
        with suppress(FileNotFoundError):
            self._fs.rm_file(path)


def _attempts(listed: Mapping[str, Mapping[str, Any]], home: str) -> dict[str, list[_Attempt]]:
    """Sort a listing by artifact and attempt; what is neither is not ours."""
    found: dict[str, dict[str, _Attempt]] = {}
    for path, facts in listed.items():
        parts = path.removeprefix(home + "/").split("/")
        if len(parts) < 3 or not _ATTEMPT.fullmatch(parts[1]):
            continue
        attempt = found.setdefault(parts[0], {}).setdefault(parts[1], _Attempt(parts[1]))
        attempt.objects.append(path)
        if parts[2:] == [META]:
            attempt.committed = True
        else:
            attempt.n_bytes += int(facts["size"])
    return {name: list(tries.values()) for name, tries in found.items()}


def _bytes(attempt: str) -> int:
    found = _ATTEMPT.fullmatch(attempt)
    return int(found[2]) if found else 0


def _checked_files(meta: Mapping[str, Any], name: str, attempt: str) -> dict[str, tuple[int, str]]:
    """Return size and digest by file. Raises StoreError for names that would leave the folder: it may not be ours."""
    out: dict[str, tuple[int, str]] = {}
    try:
        for file, facts in meta["files"].items():
            parts = str(file).split("/")
            if any(p in ("", ".", "..") or "\\" in p or not p.isprintable() for p in parts) or parts == [META]:
                raise StoreError(f"artifact {name} names a file that it cannot have", got=file)
            out[str(file)] = int(facts["bytes"]), str(facts["sha256"])
    except (KeyError, TypeError, ValueError, AttributeError, OverflowError) as e:
        raise StoreError(f"artifact {name} has no readable {META}: {e}") from None
    if f"{len(out)}-{sum(n for n, _ in out.values())}" != attempt.partition("-")[2]:
        raise StoreError(f"artifact {name} lists other files than were put there")
    return out
