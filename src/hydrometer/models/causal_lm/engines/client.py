"""JSON client for untrusted servers: bounded bytes and time, no redirects, no proxies from the environment."""

from __future__ import annotations

import json
import re
import ssl
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from hydrometer.core.errors import InputError, MissingDependencyError, one_line

if TYPE_CHECKING:
    import httpx2

__all__ = ["Refusal", "Server", "server_base"]

MOST_BYTES = 4_000_000
_SAID = 300  # characters shown of a server's message
_TOO_DEEP = "JSON nested too deep"
_TRIES = 5
_LONGEST_WAIT = 60.0
_LONGEST_PAUSE = 10.0  # between questions to a server that may be starting
_LEAST_PAUSE = 0.01  # counted as waited, whatever the server says, so that the patience ends
# Not 504: a gateway gives up on long answers, and retrying until an answer is short changes the law.
_AGAIN = frozenset({408, 425, 429, 500, 502, 503})


class Refusal(Exception):
    """A request without a usable answer.

    Attributes
    ----------
    what, got, fix : as in `HydrometerError`.
    again : whether a retry may help.
    after : seconds to wait, from the server, or None.
    """

    def __init__(self, what: str, got: object, fix: str, *, again: bool = False, after: float | None = None) -> None:
        super().__init__(what)
        self.what, self.got, self.fix, self.again, self.after = what, _shown(got), fix, again, after


def _shown(got: object) -> object:
    """Return a value whose repr works: JSON that can be parsed may be too deep to print."""
    try:
        repr(got)
    except RecursionError:
        return _TOO_DEEP
    return got


def server_base(url: str) -> str:
    """Return a server's URL without a trailing ``/v1``. Raises InputError for an invalid URL.

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
        shown = re.sub(r"//[^/@]*@", "//***@", re.split(r"[?#]", url)[0])  # neither credentials nor a key
        raise InputError("not the URL of a server", got=shown, fix="give for example http://localhost:8000")
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
    key : sent as bearer token; a server's answers go through `masked` before they are shown or stored.
    patience : seconds for which a server that is away, busy or failing is asked again; five times at least.
    """

    base: str
    timeout: float
    key: str | None = field(default=None, repr=False)
    patience: float = 0.0

    def ask(self, path: str, body: Mapping[str, object] | None = None, *, most_bytes: int = MOST_BYTES) -> Any:
        """Send one request and return the JSON of its answer. Raises Refusal."""
        try:
            import httpx2
            from anyio.from_thread import start_blocking_portal
        except ImportError:
            raise MissingDependencyError("a server is asked by httpx2", fix="pip install 'hydrometer[lm]'") from None
        url, data = self.base + path, None if body is None else json.dumps(body).encode()
        try:
            with start_blocking_portal() as portal:  # its own event loop: the caller may be inside one
                return self._json(portal.call(self._fetch, url, data, most_bytes), url)
        except TimeoutError:
            # A retry would select short rows.
            what = f"the server cannot be asked: no whole answer within {self.timeout:g} s"
            raise Refusal(what, url, "raise timeout, or lower concurrency") from None
        except (httpx2.HTTPError, httpx2.InvalidURL, OSError, ValueError) as e:
            why = one_line(str(e) or type(e).__name__, _SAID)
            raise Refusal(f"the server cannot be asked: {why}", url, "check the URL", again=True) from None

    def ask_patiently(
        self,
        path: str,
        body: Mapping[str, object] | None = None,
        most_bytes: int = MOST_BYTES,
        *,
        sleep: Callable[[float], None] = time.sleep,
    ) -> Any:
        """Ask again with growing waits while the server is busy, failing or away. Raises Refusal.

        Up to five times, and on until `patience` has been waited. A timeout is not retried: that would select short
        answers.
        """
        waited, attempt = 0.0, 0
        while True:
            try:
                return self.ask(path, body, most_bytes=most_bytes)
            except Refusal as e:
                attempt += 1
                if not e.again or (attempt >= _TRIES and waited >= self.patience):
                    raise
                pause = min(_LONGEST_WAIT, 0.5 * 2 ** min(attempt - 1, 10) if e.after is None else e.after)
                if attempt >= _TRIES and e.after is None:
                    pause = min(pause, _LONGEST_PAUSE, self.patience - waited)
                sleep(pause)
                waited += max(pause, _LEAST_PAUSE)

    def masked(self, value: Any) -> Any:
        """Return a text or JSON with the key masked."""
        if not self.key:
            return value
        try:
            return _without(value, self.key)
        except RecursionError:
            return _TOO_DEEP

    async def _fetch(self, url: str, data: bytes | None, most: int) -> bytes:
        """Send one request and read the answer uncompressed, as the size of decompressed data is not bounded."""
        import httpx2
        from anyio import fail_after

        headers = {"Content-Type": "application/json", "Accept": "application/json", "Accept-Encoding": "identity"}
        if self.key is not None:
            headers["Authorization"] = f"Bearer {self.key}"
        # A redirect or a proxy would send prompts and key to a host that the specification does not name.
        client = httpx2.AsyncClient(
            verify=ssl.create_default_context() if url.startswith("https:") else False,
            trust_env=False,
            follow_redirects=False,
            timeout=httpx2.Timeout(None, connect=self.timeout / 2),
        )
        # The limit is for the whole answer: a server that trickles bytes would keep a socket alive forever.
        with fail_after(self.timeout):
            method = "GET" if data is None else "POST"
            async with client, client.stream(method, url, content=data, headers=headers) as a:
                if not a.is_success:
                    raise self._refused(a.status_code, a.headers, await _start(a, _SAID), url)
                raw = await _start(a, most)
        if len(raw) > most:
            raise Refusal(f"the server's answer is longer than {most} bytes", len(raw), "check what is served there")
        return raw

    @staticmethod
    def _json(raw: bytes, url: str) -> Any:
        try:
            return json.loads(raw)
        except (ValueError, RecursionError) as e:
            why = one_line(str(e), _SAID)
            raise Refusal(f"the server cannot be asked: its answer is no JSON: {why}", url, "check the URL") from None

    def _refused(self, code: int, headers: Mapping[str, str], start: bytes, url: str) -> Refusal:
        if 300 <= code < 400:
            where = one_line(str(headers.get("Location")), _SAID)
            return Refusal("the server redirects, which is not followed", where, "give the URL of the server itself")
        said = start[:_SAID].decode(errors="replace")
        if self.key:
            said = _without(said, self.key)
            # Text cut inside the key ends with a prefix of it.
            cut = next((n for n in range(min(len(self.key), len(said)), 0, -1) if said.endswith(self.key[:n])), 0)
            said = said[: len(said) - cut]
        return Refusal(
            f"the server answers {code} to {url}",
            said,
            "check the URL and the model",
            again=code in _AGAIN,
            after=_seconds(headers.get("Retry-After")),
        )


async def _start(answer: httpx2.Response, most: int) -> bytes:
    """Read an answer until it ends, or is longer than `most`."""
    raw = bytearray()
    async for piece in answer.aiter_raw():
        raw += piece
        if len(raw) > most:
            break
    return bytes(raw)


def _seconds(text: str | None) -> float | None:
    """Seconds of a Retry-After header; None for a date."""
    return float(text) if text is not None and text.isascii() and text.isdigit() and len(text) < 6 else None


def _without(value: Any, key: str) -> Any:
    """Return a text or JSON with *** in place of the key."""
    if isinstance(value, str):
        return value.replace(key, "***")
    if isinstance(value, list):
        return [_without(v, key) for v in value]
    if isinstance(value, dict):
        return {_without(k, key): _without(v, key) for k, v in value.items()}
    return value
