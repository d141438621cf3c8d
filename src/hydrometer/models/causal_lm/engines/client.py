"""Asks a server for JSON, distrusting it: bounded in bytes and time, no redirects, no proxies of the environment."""

from __future__ import annotations

import http.client
import json
import queue
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, cast
from urllib.parse import urlsplit

from hydrometer.core.errors import InputError, one_line

__all__ = ["Refusal", "Server", "server_base"]

MOST_BYTES = 4_000_000
_PIECE = 65536
_SAID = 300  # characters of a server's own message that are passed on
_TOO_DEEP = "JSON nested too deep"
_TRIES = 5
_LONGEST_WAIT = 60.0
# Not 504: a gateway gives up on long answers, and an answer that is asked for until it is short is of another law.
_AGAIN = frozenset({408, 425, 429, 500, 502, 503})


class Refusal(Exception):
    """A request without a usable answer.

    Attributes
    ----------
    what, got, fix : as errors have them.
    again : whether asking again may help.
    after : seconds that the server asks to wait, or None.
    """

    def __init__(self, what: str, got: object, fix: str, *, again: bool = False, after: float | None = None) -> None:
        super().__init__(what)
        self.what, self.got, self.fix, self.again, self.after = what, _shown(got), fix, again, after


def _shown(got: object) -> object:
    """What a message can show: JSON that was just shallow enough to be read may be too deep to be written."""
    try:
        repr(got)
    except RecursionError:
        return _TOO_DEEP
    return got


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    """A redirect would send prompts, and a key, to whom the specification does not name."""

    def redirect_request(self, req: Any, fp: Any, code: Any, msg: Any, headers: Any, newurl: Any) -> None:
        return None


# urllib's own opener would take proxies from the environment.
_OPENER = urllib.request.build_opener(urllib.request.ProxyHandler({}), _NoRedirect())


def server_base(url: str) -> str:
    """Return a server's URL without a trailing ``/v1``. Raises InputError for what is no such URL.

    Examples
    --------
    >>> server_base("http://localhost:8000/v1/")
    'http://localhost:8000'
    """
    try:
        parts = urlsplit(url)
        port_is_good = parts.port is None or 0 < parts.port
    except ValueError:
        parts, port_is_good = urlsplit(""), False
    plain = not (parts.query or parts.fragment) and url.isascii() and url.isprintable() and " " not in url
    if parts.scheme not in ("http", "https") or not parts.hostname or not port_is_good or not plain:
        raise InputError("not the URL of a server", got=url, fix="give for example http://localhost:8000")
    if parts.username is not None or parts.password is not None:
        fix = "leave them out; a key is read from the environment (api_key_env)"
        raise InputError("the URL of a server holds credentials", got=parts.hostname, fix=fix)
    return url.rstrip("/").removesuffix("/v1").rstrip("/")


@dataclass(frozen=True, slots=True)
class Server:
    """An OpenAI-compatible server.

    Parameters
    ----------
    base : URL without ``/v1``.
    timeout : seconds for a whole answer.
    key : sent as bearer token; what a server says goes through `masked` before it is shown or kept.
    """

    base: str
    timeout: float
    key: str | None = field(default=None, repr=False)

    def ask(self, path: str, body: Mapping[str, object] | None = None, *, most_bytes: int = MOST_BYTES) -> Any:
        """Send one request and return the JSON of its answer. Raises Refusal."""
        headers = {"Content-Type": "application/json", "Accept": "application/json"}
        if self.key is not None:
            headers["Authorization"] = f"Bearer {self.key}"
        data = None if body is None else json.dumps(body).encode()
        url = self.base + path
        request = urllib.request.Request(url, data, headers)
        try:
            return self._json(_within(self.timeout, lambda: self._fetch(request, url, most_bytes)), url)
        except (OSError, http.client.HTTPException, ValueError) as e:
            # Asked again, rows would be those that are short enough. What fails before it is asked is an URLError.
            late = isinstance(e, TimeoutError)
            why = one_line(str(getattr(e, "reason", e)) or type(e).__name__, _SAID)
            fix = "raise timeout, or lower concurrency" if late else "check the URL"
            raise Refusal(f"the server cannot be asked: {why}", url, fix, again=not late) from None

    def ask_patiently(
        self,
        path: str,
        body: Mapping[str, object] | None = None,
        most_bytes: int = MOST_BYTES,
        *,
        sleep: Callable[[float], None] = time.sleep,
    ) -> Any:
        """Ask up to five times while the server is busy, failing or away, waiting longer each time. Raises Refusal.

        An answer that does not come in time is not asked for again: those that come would be the short ones.
        """
        for attempt in range(_TRIES):
            try:
                return self.ask(path, body, most_bytes=most_bytes)
            except Refusal as e:
                if not e.again or attempt + 1 == _TRIES:
                    raise
                sleep(min(_LONGEST_WAIT, 0.5 * 2**attempt if e.after is None else e.after))
        raise AssertionError("unreachable")

    def masked(self, value: Any) -> Any:
        """Return what may be shown or kept of an answer: the same text or JSON without the key."""
        if not self.key:
            return value
        try:
            return _without(value, self.key)
        except RecursionError:
            return _TOO_DEEP

    def _fetch(self, request: urllib.request.Request, url: str, most: int) -> bytes:
        ends = time.monotonic() + self.timeout
        try:
            with _OPENER.open(request, timeout=self.timeout) as answer:
                return self._read(answer, ends, most)
        except urllib.error.HTTPError as e:
            with e:
                raise self._refused(e, url) from None

    @staticmethod
    def _read(answer: Any, ends: float, most: int) -> bytes:
        """Read to the end, in pieces, so that whoever waits no longer leaves no thread that reads for ever."""
        parts: list[bytes] = []
        size = 0
        while piece := answer.read1(_PIECE):
            size += len(piece)
            if size > most:
                raise Refusal(f"the server's answer is longer than {most} bytes", size, "check what is served there")
            if time.monotonic() > ends:
                raise TimeoutError("no whole answer in time")
            parts.append(piece)
        if answer.length:  # what Content-Length promised and did not come
            raise http.client.IncompleteRead(b"", answer.length)
        return b"".join(parts)

    @staticmethod
    def _json(raw: bytes, url: str) -> Any:
        try:
            return json.loads(raw)
        except (ValueError, RecursionError) as e:
            why = one_line(str(e), _SAID)
            raise Refusal(f"the server cannot be asked: its answer is no JSON: {why}", url, "check the URL") from None

    def _refused(self, e: urllib.error.HTTPError, url: str) -> Refusal:
        if 300 <= e.code < 400:
            where = one_line(str(e.headers.get("Location")), _SAID)
            return Refusal("the server redirects, which is not followed", where, "give the URL of the server itself")
        try:
            said = e.read(_SAID).decode(errors="replace")
        except (OSError, http.client.HTTPException):
            said = ""
        if self.key:
            said = _without(said, self.key)
            # Cut within the key, the text ends with a beginning of it.
            cut = next((n for n in range(min(len(self.key), len(said)), 0, -1) if said.endswith(self.key[:n])), 0)
            said = said[: len(said) - cut]
        again = e.code in _AGAIN
        return Refusal(
            f"the server answers {e.code} to {url}", said, "check the URL and the model",
            again=again, after=_seconds(e.headers.get("Retry-After")),
        )  # fmt: skip


def _within(seconds: float, work: Callable[[], bytes]) -> bytes:
    """Wait for work so long and no longer: a server that sends a byte now and then keeps a socket alive for ever."""
    done: queue.SimpleQueue[bytes | Exception] = queue.SimpleQueue()

    def run() -> None:
        try:
            done.put(work())
        except Exception as e:  # raised again by the caller
            done.put(e)

    threading.Thread(target=run, daemon=True).start()
    try:
        found = done.get(timeout=seconds)
    except queue.Empty:
        raise TimeoutError(f"no whole answer within {seconds:g} s") from None
    if isinstance(found, Exception):
        raise found
    return found


def _seconds(text: str | None) -> float | None:
    """Seconds of a Retry-After header; dates are not understood."""
    return float(text) if text is not None and text.isascii() and text.isdigit() and len(text) < 6 else None


def _without(value: Any, key: str) -> Any:
    """A text, or JSON, with a mark in place of a key."""
    if isinstance(value, str):
        return value.replace(key, "***")
    if isinstance(value, list):
        return [_without(v, key) for v in cast("list[Any]", value)]
    if isinstance(value, dict):
        return {_without(k, key): _without(v, key) for k, v in cast("dict[str, Any]", value).items()}
    return value
