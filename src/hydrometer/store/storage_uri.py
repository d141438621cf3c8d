"""Where runs are kept: a local folder, or a prefix in an object store that fsspec reaches.

A place is a `Path` or a `Url`. Credentials are never part of one: they come from the environment or a profile of the
store's library.
"""

from __future__ import annotations

import errno
import hashlib
import logging
import os
import re
import sys
import tempfile
import time
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeVar, cast
from urllib.parse import unquote

from hydrometer.core.errors import FolderError, InputError, MissingDependencyError, UnreachableError
from hydrometer.core.io.files import cache_home

__all__ = [
    "Url",
    "asking",
    "at_once",
    "bring",
    "copies_bound",
    "copies_home",
    "filesystem",
    "object_bytes",
    "place_of",
    "resolved",
]

_T = TypeVar("_T")
_R = TypeVar("_R")

_KNOWN = "give a local folder, s3://bucket/prefix, gs://bucket/prefix or file:///folder"
_BUCKET = re.compile(r"[a-z0-9][a-z0-9._-]{1,220}[a-z0-9]")
_PART = re.compile(r"[\w!.'()=+, -]+")
_FOLDED = re.compile(r"([A-Za-z][A-Za-z0-9+.-]+):/+[^/]")
_SECRETS = re.compile(r"//[^/\s]*@|\?[^\s'\"]*")
# In names of the libraries' errors: NoCredentialsError, GoogleAuthError, UnauthorizedSSOTokenError, ProfileNotFound.
_WHO = re.compile(r"Credential|Auth|Unauthorized|Token|Profile|Login")
_LONGEST = 800  # characters; S3 and GCS allow 1024 bytes, and artifacts' names come after
_AT_ONCE = 16
_ATTEMPTS = 5


@dataclass(frozen=True, slots=True)
class Url:
    """A place in an object store: scheme, bucket, and a prefix without outer slashes, which may be empty.

    Examples
    --------
    >>> home = place_of("s3://bucket/runs/first/")
    >>> str(home / "results.json"), home.name
    ('s3://bucket/runs/first/results.json', 'first')
    """

    scheme: Literal["s3", "gs"]
    bucket: str
    prefix: str

    def __str__(self) -> str:
        return f"{self.scheme}://{self.path}"

    def __truediv__(self, name: str) -> Url:
        return Url(self.scheme, self.bucket, f"{self.prefix}/{name}".lstrip("/"))

    @property
    def path(self) -> str:
        """Bucket and prefix, as fsspec names objects."""
        return f"{self.bucket}/{self.prefix}".rstrip("/")

    @property
    def parent(self) -> Url:
        """The prefix above."""
        return Url(self.scheme, self.bucket, self.prefix.rpartition("/")[0])

    @property
    def name(self) -> str:
        """Last part, as of a path."""
        return self.path.rsplit("/", 1)[-1]


def place_of(value: str | Path | Url) -> Path | Url:
    """Parse a location.

    Parameters
    ----------
    value : a path, ``s3://bucket/prefix``, ``gs://bucket/prefix`` or ``file:///folder``.

    Raises
    ------
    FolderError : another scheme, credentials or a query in the URL, no bucket, or ``..`` or an empty part in the prefix.

    Examples
    --------
    >>> place_of("runs/first"), place_of("file:///data/first")
    (PosixPath('runs/first'), PosixPath('/data/first'))
    >>> place_of("s3://user:secret@bucket/run")
    Traceback (most recent call last):
        ...
    hydrometer.core.errors.FolderError: a place holds no credentials, query or fragment; got 's3://...'; credentials come from the environment or a profile
    """  # noqa: E501  (an example's line cannot be broken)
    if not isinstance(value, str | Path | Url):  # pyright: ignore[reportUnnecessaryIsInstance]
        raise FolderError("a place is a path or a URL", got=value)
    if isinstance(value, Url):
        return value
    text = str(value)
    scheme, found, rest = text.partition("://")
    if not found or not re.fullmatch(r"[A-Za-z][A-Za-z0-9+.-]*", scheme):
        folded = _FOLDED.match(text)
        if folded and (folded[1].lower() in ("s3", "s3a", "gs", "gcs", "file") or isinstance(value, Path)):
            raise FolderError(
                "a URL lost a slash", got=f"{folded[1]}:/...", fix="give it as text, not as a Path, with two slashes"
            )
        return Path(text)
    if "@" in rest or "?" in rest or "#" in rest:
        raise FolderError(
            "a place holds no credentials, query or fragment",
            got=f"{scheme}://...",
            fix="credentials come from the environment or a profile",
        )
    if scheme == "file":
        return _local(rest)
    if scheme not in ("s3", "gs"):
        raise FolderError("runs are not kept in places of this kind", got=f"{scheme}://", fix=_KNOWN)
    return _url(scheme, rest)


def _local(rest: str) -> Path:
    host, slash, path = rest.partition("/")
    path = unquote(path)
    if host not in ("", "localhost") or not slash or not path or "\0" in path:
        raise FolderError("a file URL names a folder of this machine", got=f"file://{rest}", fix="file:///folder")
    return Path("/" + path)


def _url(scheme: Literal["s3", "gs"], rest: str) -> Url:
    bucket, _, prefix = rest.partition("/")
    shown = f"{scheme}://{rest}"
    if not _BUCKET.fullmatch(bucket) or ".." in bucket:
        raise FolderError("no bucket of that name can be", got=shown, fix=f"{scheme}://bucket/prefix")
    prefix = prefix.removesuffix("/")
    for part in prefix.split("/") if prefix else ():
        if part in (".", "..") or not _PART.fullmatch(part):
            raise FolderError(
                "each part of a prefix is letters, digits, spaces and any of _ - . , ! ' ( ) = +",
                got=shown,
                fix="no empty part, no `.` or `..`",
            )
    if len(shown.encode()) > _LONGEST:
        raise FolderError("the URL is too long", got=f"{len(shown.encode())} bytes", fix=f"at most {_LONGEST}")
    return Url(scheme, bucket, prefix)


def filesystem(url: Url) -> Any:
    """Open the store's file system. No request is sent yet, and fsspec caches no listings.

    Raises
    ------
    MissingDependencyError : s3fs or gcsfs is not installed.
    """
    import fsspec

    package, extra = ("s3fs", "s3") if url.scheme == "s3" else ("gcsfs", "gcs")
    options: dict[str, Any] = {"use_listings_cache": False}
    if url.scheme == "s3":
        config: dict[str, Any] = {"connect_timeout": 10, "read_timeout": 60, "max_pool_connections": 2 * _AT_ONCE}
        if "AWS_MAX_ATTEMPTS" not in os.environ:
            config["retries"] = {"mode": "standard", "total_max_attempts": _ATTEMPTS}
        options["config_kwargs"] = config
    try:
        with asking(url):
            found = cast("Any", fsspec).filesystem("s3" if url.scheme == "s3" else "gcs", **options)
    except ImportError as e:
        raise MissingDependencyError(
            f"{url.scheme}:// needs {package}", got=e.name or str(e), fix=f"pip install 'hydrometer[{extra}]'"
        ) from None
    logging.getLogger("asyncio").addFilter(_is_news)
    if url.scheme == "s3":
        found.retries = 1  # botocore retries already; not both
    return found


def _is_news(record: logging.LogRecord) -> bool:
    """Whether to show a message of asyncio's: aiohttp reports lost connections that are handled here."""
    aiohttp = sys.modules.get("aiohttp")
    error = record.exc_info[1] if record.exc_info else None
    return aiohttp is None or not isinstance(error, aiohttp.ClientError)


def bring(fs: Any, path: str, file: Path) -> None:
    """Copy an object here. A broken download is retried, since botocore does not retry after the headers."""
    for attempt in range(1, _ATTEMPTS + 1):
        try:
            fs.get_file(path, str(file))
            return
        except getattr(sys.modules.get("aiohttp"), "ClientPayloadError", ()):
            if attempt == _ATTEMPTS:
                raise
            time.sleep(0.1 * 2**attempt)


def object_bytes(fs: Any, path: str, limit: int) -> bytes:
    """Return an object's bytes, by one request; `cat_file` of s3fs makes two.

    Raises
    ------
    ValueError : more than `limit` bytes; they went to disk, not into memory.
    """
    with tempfile.TemporaryDirectory(prefix="hydrometer-") as folder:
        file = Path(folder, "object")
        bring(fs, path, file)
        n_bytes = file.stat().st_size
        if n_bytes > limit:
            raise ValueError(f"larger than {limit} bytes")
        return file.read_bytes()


def _troubles() -> tuple[type[BaseException], ...]:
    """Error classes of the stores' libraries that are loaded."""
    named = (
        ("botocore.exceptions", "BotoCoreError"),
        ("botocore.exceptions", "ClientError"),
        ("aiohttp", "ClientError"),
        ("google.auth.exceptions", "GoogleAuthError"),
        ("gcsfs.retry", "HttpError"),
        ("gcsfs.retry", "ChecksumError"),
        ("fsspec.exceptions", "FSTimeoutError"),
    )
    return (OSError, *(getattr(sys.modules[m], name) for m, name in named if m in sys.modules))


def _is_refused(error: BaseException) -> bool:
    """Whether the store refused authentication or access; gcsfs reports it by status codes and words."""
    if isinstance(error, PermissionError) or _WHO.search(type(error).__name__):
        return True
    code: object = getattr(error, "code", None)
    return str(code) == "401" or (isinstance(error, OSError) and str(error).startswith("Forbidden: "))


@contextmanager
def asking(url: Url) -> Generator[None]:
    """Turn errors of a store's library into one line that names the place and holds no secret.

    Raises
    ------
    FolderError : no credentials, no permission, no such bucket.
    UnreachableError : anything else; retries are over by then.
    """
    try:
        yield
    except _troubles() as e:
        kind, said = type(e).__name__, _SECRETS.sub("", str(e))
        if _is_refused(e):
            raise FolderError(
                f"{url} cannot be used: {said or kind}", fix="check the credentials in the environment or the profile"
            ) from None
        if isinstance(e, FileNotFoundError):
            raise FolderError(f"{url} is not there: {said}", fix="make the bucket first, or choose another") from None
        if isinstance(e, OSError) and e.errno in (errno.ENOSPC, errno.EDQUOT, errno.EROFS):
            raise FolderError(f"no copy can be kept on this machine: {said}", fix="set HYDROMETER_CACHE") from None
        raise UnreachableError(
            f"{url} does not answer: {kind}: {said}", fix="what is finished stays; go on when it is back"
        ) from None


def at_once(do: Callable[[_T], _R], items: Iterable[_T]) -> list[_R]:
    """Call a function on each item, a few at a time; results in order. The first failure is raised."""
    work = list(items)
    if len(work) < 2:
        return [do(w) for w in work]
    with ThreadPoolExecutor(min(_AT_ONCE, len(work)), "hydrometer-remote") as pool:
        try:
            return list(pool.map(do, work))
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise


def resolved(place: Path | Url) -> Path | Url:
    """Return a place in canonical form: a path absolute and without links."""
    return place.resolve() if isinstance(place, Path) else place


def copies_home(url: Url) -> Path:
    """Return this machine's folder for copies of a place's artifacts."""
    return cache_home().absolute() / "remote" / hashlib.sha256(str(url).encode()).hexdigest()[:24]


def copies_bound() -> int:
    """Return the bound of a place's copies on this machine, in bytes: ``HYDROMETER_CACHE_BYTES``, else 20 GB.

    Raises
    ------
    InputError : not a number of bytes.
    """
    text = os.environ.get("HYDROMETER_CACHE_BYTES", "20000000000")
    if not text.isascii() or not text.isdigit():
        raise InputError("HYDROMETER_CACHE_BYTES is a number of bytes", got=text, fix="for example 20000000000")
    return int(text)
