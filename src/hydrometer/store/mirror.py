"""A local mirror of a run's records in an object store: fetched to be worked on, and sent back where they changed.

Records are small and many readers expect files, so they are kept in a local folder that lasts as long as its owner.
`results.json`, which marks a run as finished, is sent last. For artifacts see `remote`.
"""

from __future__ import annotations

import re
import shutil
import tempfile
import weakref
from pathlib import Path
from typing import Any

from hydrometer.core.errors import FolderError
from hydrometer.core.io.files import file_digest
from hydrometer.store.storage_uri import Url, asking, at_once, bring, filesystem, object_bytes

__all__ = ["Mirror", "read_object", "send_folder"]

PARTS = ("specs", "prompts", "truths", "adopted", "scores", "records", "exhibits")
_LAST = ("advice.json", "results.csv", "results.json")  # sent after all parts, in this order
_NAME = re.compile(r"[^/\\\x00-\x1f]{1,255}")


class Mirror:
    """A local folder with the records of a run at a URL.

    Parameters
    ----------
    url : of the run.

    Raises
    ------
    FolderError : something else is there, or the store cannot be used.
    """

    def __init__(self, url: Url) -> None:
        self.url = url
        self._fs = filesystem(url)
        home = Path(tempfile.mkdtemp(prefix="hydrometer-books-"))
        weakref.finalize(self, shutil.rmtree, home, ignore_errors=True)
        self.root = home / url.name  # named as the run is: pages and messages show it
        self.root.mkdir()
        self._sent: dict[str, str] = {}  # digests by name of what is equal here and there
        self._tags: dict[str, str] = {}
        self.pull()

    def pull(self) -> None:
        """Fetch the records as they are now; what has not changed there is not fetched again."""
        names = self._names()
        if names.keys() - {"artifacts"} and "specs" not in names:  # a run that was killed early has only artifacts
            fix = "choose an empty or new --out"
            raise FolderError("the place is not empty and holds no run", got=str(self.url), fix=fix)
        there = {n: names[n] for n in _LAST if n in names}
        for part in PARTS:
            if part in names:
                (self.root / part).mkdir(exist_ok=True)
                there |= self._files(part)
        for name in self._tags.keys() - there.keys():
            (self.root / name).unlink(missing_ok=True)
        wanted = [n for n, tag in there.items() if self._tags.get(n) != tag or not (self.root / n).is_file()]
        with asking(self.url):
            at_once(lambda n: bring(self._fs, f"{self.url.path}/{n}", self.root / n), wanted)
        self._sent = {n: d for n, d in self._sent.items() if n in there}
        self._sent |= {n: file_digest(self.root / n) for n in wanted}
        self._tags = there

    def push(self) -> None:
        """Send what changed since it was fetched or last sent."""
        here = [f"{p}/{f.name}" for p in PARTS for f in sorted((self.root / p).glob("[!.]*")) if f.is_file()]
        changed = self._changed(here)
        with asking(self.url):
            for first in (True, False):  # a place with records but no specification would be refused as something else
                at_once(self._put, [n for n in changed if n.startswith("specs/") is first])
            for name in self._changed([n for n in _LAST if (self.root / n).is_file()]):
                self._put(name)

    def send(self, name: str) -> None:
        """Send one file that is fetched by none."""
        with asking(self.url):
            self._fs.put_file(str(self.root / name), f"{self.url.path}/{name}")

    def _changed(self, names: list[str]) -> list[str]:
        return [n for n in names if self._sent.get(n) != file_digest(self.root / n)]

    def _put(self, name: str) -> None:
        digest = file_digest(self.root / name)
        self._fs.put_file(str(self.root / name), f"{self.url.path}/{name}")
        self._sent[name] = digest

    def _names(self) -> dict[str, str]:
        """First path parts below the URL, the lock excepted, with tags of their content."""
        with asking(self.url):
            try:
                found: list[dict[str, Any]] = self._fs.ls(self.url.path, detail=True)
            except FileNotFoundError as e:
                if e.__cause__ is not None:  # the bucket itself
                    raise
                return {}
        names = {str(o["name"]).removeprefix(self.url.path).strip("/"): _tag(o) for o in found}
        return {n: tag for n, tag in names.items() if n and not n.startswith(".lock")}

    def _files(self, part: str) -> dict[str, str]:
        with asking(self.url):
            found: dict[str, dict[str, Any]] = self._fs.find(f"{self.url.path}/{part}", detail=True)
        names = {p.removeprefix(f"{self.url.path}/{part}/"): _tag(o) for p, o in found.items()}
        return {f"{part}/{n}": tag for n, tag in names.items() if _NAME.fullmatch(n) and n not in (".", "..")}


def _tag(facts: dict[str, Any]) -> str:
    return " ".join(str(facts.get(k)) for k in ("ETag", "etag", "generation", "size", "LastModified", "mtime"))


def read_object(url: Url, limit: int) -> bytes:
    """Return an object's bytes. Raises FileNotFoundError where absent, ValueError above the limit, else as `asking`."""
    absent = False
    with asking(url):
        try:
            return object_bytes(filesystem(url), url.path, limit)
        except FileNotFoundError:
            absent = True
    assert absent
    raise FileNotFoundError(str(url))


def send_folder(folder: Path, url: Url) -> None:
    """Send every file of a folder to the same names below a URL."""
    fs = filesystem(url)
    files = [p for p in sorted(folder.rglob("*")) if p.is_file()]
    with asking(url):
        at_once(lambda p: fs.put_file(str(p), f"{url.path}/{p.relative_to(folder).as_posix()}"), files)
