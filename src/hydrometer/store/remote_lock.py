"""A lock on a place of an object store: an object that its holder renews by heartbeats.

The object is made by a write that fails where it exists, and renewed once a minute by a write that fails where another
changed it. One that was not renewed for five minutes, by the store's own clock, is taken over; so is, at once, one
whose holder ran on this machine and is gone. A process that finds its lock taken over writes no more records.
"""

from __future__ import annotations

import json
import os
import secrets
import socket
import threading
from collections.abc import Generator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from hydrometer.core.errors import FolderError, HydrometerError, UnreachableError
from hydrometer.core.io.yaml_io import is_object
from hydrometer.store.storage_uri import Url, asking, filesystem, object_bytes

__all__ = ["Lease", "hold_remote"]

BEAT = 60.0  # seconds between renewals
DEAD = 300.0  # seconds without one, by the store's clock, after which the holder is gone
MAX_LOCK_BYTES = 100_000
_NO_TAG = '"00000000000000000000000000000000"'  # no object has this tag

_held: set[str] = set()  # tokens of this process's locks


class Lease:
    """A held lock. `url`: of the run's place; the object is `.lock` below it."""

    def __init__(self, url: Url) -> None:
        self.url, self._object = url, _LockObject(url)
        self._token, self._beats, self._tag = secrets.token_hex(8), 0, ""
        self._began = datetime.now(UTC).isoformat(timespec="seconds")
        self._ended, self._lost = threading.Event(), False
        self._renewing = threading.Lock()
        self._thread = threading.Thread(target=self._beat, name="hydrometer-lock", daemon=True)

    def take(self) -> None:
        """Take the lock.

        Raises
        ------
        FolderError : it is held, or the store has no conditional writes.
        """
        tag = self._object.create(self._body())
        if tag is None:
            tag = self._take_over()
        elif (again := self._object.create(self._body()) or self._object.replace(self._body(), _NO_TAG)) is not None:
            self._object.remove(again)
            raise FolderError(
                "the store ignores conditions on writes, so that two runs could not be kept apart",
                got=str(self.url),
                fix="keep the run's folder here and its artifacts there: --out FOLDER --cache URL",
            )
        self._tag = tag
        _held.add(self._token)
        self._thread.start()

    def check(self) -> None:
        """Renew the lock; raise FolderError where another run has taken it over.

        Heartbeats alone would notice too late: a machine that slept resumes before the next one is due.
        """
        self._renew()
        if self._lost:
            raise FolderError(
                f"another run has taken over {self.url}, since this one was silent for {DEAD / 60:g} minutes",
                fix="nothing finished is lost; wait for it, then run again",
            )

    def release(self) -> None:
        """Release the lock if it is still ours."""
        self._ended.set()
        _held.discard(self._token)
        self._thread.join(timeout=2 * BEAT)
        if not self._lost:
            self._object.remove(self._tag)

    def _body(self) -> bytes:
        self._beats += 1
        me = {"host": socket.gethostname(), "pid": os.getpid(), "began": self._began, "process": _process(os.getpid())}
        return json.dumps({**me, "token": self._token, "beat": self._beats}).encode()

    def _take_over(self) -> str:
        found = self._object.read()
        if found is None:  # just released
            tag = self._object.create(self._body())
        else:
            holder, tag, changed = found
            if holder.get("token") == self._token:  # ours: the response was lost, and the request retried
                return tag
            silent = (self._object.now(self._token) - changed).total_seconds()
            if silent < DEAD and not _is_gone(holder):
                shown = {k: holder.get(k) for k in ("host", "pid", "began")}
                raise FolderError(
                    f"another run is using {self.url}",
                    got={**shown, "silent_s": round(silent)},
                    fix=f"wait, or choose another --out; a killed run lets go after {DEAD / 60:g} minutes",
                )
            tag = self._object.replace(self._body(), tag)
        if tag is None:
            raise FolderError(f"another run has just begun on {self.url}", fix="wait for it, or choose another --out")
        return tag

    def _beat(self) -> None:
        while not self._lost and not self._ended.wait(BEAT):
            # If the store does not answer, the next heartbeat tries again; the run itself will report it.
            with suppress(HydrometerError):
                self._renew()

    def _renew(self) -> None:
        """Renew the lock, or find that it was taken over."""
        with self._renewing:
            if self._lost:
                return
            tag = self._object.replace(self._body(), self._tag)
            if tag is None:  # taken over, or ours if a response was lost
                found = self._object.read()
                if found is None or found[0].get("token") != self._token:
                    self._lost = True
                    return
                tag = found[1]
            self._tag = tag


class _LockObject:
    """The lock's object, and the few conditional requests on it."""

    def __init__(self, url: Url) -> None:
        self.url, self._path, self._fs = url, (url / ".lock").path, filesystem(url)

    def create(self, body: bytes) -> str | None:
        """Create it; None if it exists."""
        with asking(self.url):
            try:
                self._fs.pipe_file(self._path, body, mode="create")
            except FileExistsError:
                return None
            except OSError as e:
                if _code(e) in ("ConditionalRequestConflict", "PreconditionFailed"):
                    return None
                raise
        found = self._info()
        return None if found is None else _tag(found)

    def replace(self, body: bytes, tag: str) -> str | None:
        """Overwrite it if unchanged; None if another process changed it.

        Only s3fs has a conditional request for this; elsewhere the tag is compared first.
        """
        with asking(self.url):
            if self.url.scheme == "s3":
                try:
                    done = self._fs.call_s3(
                        "put_object", Bucket=self.url.bucket, Key=(self.url / ".lock").prefix, Body=body, IfMatch=tag
                    )
                except OSError as e:
                    if isinstance(e, FileNotFoundError) or _code(e) in (
                        "ConditionalRequestConflict",
                        "PreconditionFailed",
                    ):
                        return None
                    raise
                return str(done["ETag"])
            found = self._info()
            if found is None or _tag(found) != tag:
                return None
            self._fs.pipe_file(self._path, body)
        found = self._info()
        return None if found is None else _tag(found)

    def read(self) -> tuple[dict[str, Any], str, datetime] | None:
        """Return its holder, its tag, and when it was last written; None if it is gone."""
        with asking(self.url):
            found = self._info()
            try:
                raw = object_bytes(self._fs, self._path, MAX_LOCK_BYTES)
            except FileNotFoundError:
                return None
            except ValueError:  # not a lock of ours
                raw = b""
        if found is None:
            return None
        try:
            holder: object = json.loads(raw)
        except (ValueError, RecursionError):
            holder = None
        return holder if is_object(holder) else {}, _tag(found), _changed(found)

    def now(self, token: str) -> datetime:
        """Return the store's clock, from an object written for it."""
        path = f"{self._path}-clock-{token}"
        with asking(self.url):
            self._fs.pipe_file(path, b"")
            try:
                return _changed(self._fs.info(path))
            finally:
                self._fs.rm_file(path)

    def remove(self, tag: str) -> None:
        with asking(self.url), suppress(FileNotFoundError):
            found = self._info()
            if found is not None and _tag(found) == tag:
                self._fs.rm_file(self._path)

    def _info(self) -> dict[str, Any] | None:
        with asking(self.url):
            try:
                return self._fs.info(self._path)
            except FileNotFoundError:
                return None


@contextmanager
def hold_remote(url: Url) -> Generator[Lease]:
    """Hold the lock of a run's place. Raises FolderError: another process holds it; the message says which."""
    lease = Lease(url)
    lease.take()
    try:
        yield lease
    finally:
        # Results are stored, or their error is being raised; an unreleased lock expires by itself.
        with suppress(UnreachableError):
            lease.release()


def _code(error: OSError) -> str:
    response: dict[str, dict[str, Any]] = getattr(error.__cause__, "response", None) or {}
    return str(response.get("Error", {}).get("Code", ""))


def _tag(info: dict[str, Any]) -> str:
    return str(info.get("ETag") or info.get("generation") or info.get("etag"))


def _changed(info: dict[str, Any]) -> datetime:
    value: object = info.get("LastModified") or info.get("mtime") or info.get("updated")
    return value if isinstance(value, datetime) else datetime.fromisoformat(str(value))


def _process(pid: int) -> str | None:
    """Name a process of this machine so that no later one has the name: boot, namespace, pid, start; None if gone."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        # The command's name, in parentheses, may hold anything; the start is the 20th field after it.
        start = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[19]
        return f"{boot} {os.readlink('/proc/self/ns/pid')} {pid} {start}"
    except (OSError, IndexError):
        return None


def _is_gone(holder: dict[str, Any]) -> bool:
    """Whether the holder ran in this boot and PID namespace and has ended, or is an earlier call of this process."""
    name, pid, mine = holder.get("process"), holder.get("pid"), _process(os.getpid())
    if not isinstance(name, str) or not isinstance(pid, int) or mine is None:
        return False
    if name == mine:
        return holder.get("token") not in _held
    return name.split()[:2] == mine.split()[:2] and _process(pid) != name
