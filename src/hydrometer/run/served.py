"""Which law a serving engine's log-probabilities are of: asked over HTTP, at two temperatures.

    raw        log softmax(z)_t                whatever the temperature: the law without its selectivity
    processed  log softmax(z / tau)_t          the law that the token was drawn from

vLLM calls the choice `logprobs_mode`; its default is raw. Of the log-probabilities that the server returns, the
difference of two tokens' does not depend on the normaliser: at temperature tau it is that of temperature 1 for a raw
server, and 1/tau times that for one that processes.
"""

from __future__ import annotations

import http.client
import json
import math
import queue
import threading
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping
from typing import Any, cast
from urllib.parse import urlsplit

from hydrometer.core.errors import InputError, one_line
from hydrometer.core.findings import Finding, fatal, note, warning

__all__ = ["examine_server"]

_TOP = 5
_COLD = 0.5
_PROMPT = "The"
_MOST_BYTES = 4_000_000
_SAME = 0.02  # nats by which a server's repeated answer may differ: bfloat16 networks in other batches
_TELLS = 0.2  # nats that two tokens must differ by for the ratio to tell


def examine_server(url: str, *, model: str | None = None, timeout: float = 60.0) -> list[Finding]:
    """Ask an OpenAI-compatible server for next-token log-probabilities at temperatures 1 and 0.5, and compare.

    Parameters
    ----------
    url : of the server, with or without ``/v1``.
    model : its name for the model; None takes the first that it lists.
    timeout : seconds to wait for each answer.

    Returns
    -------
    One finding that says of which law the log-probabilities are.

    Raises
    ------
    InputError : no such server, or one that gives no log-probabilities.
    """
    try:
        parts = urlsplit(url)
    except ValueError:
        parts = urlsplit("")
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise InputError("not the URL of a server", got=url, fix="give for example http://localhost:8000")
    base = url.rstrip("/").removesuffix("/v1")
    name = model or _first_model(base, timeout)
    warm, cold = (_top(base, name, t, timeout) for t in (1.0, _COLD))
    return [_verdict(warm, cold, _version(base, timeout))]


def _verdict(warm: Mapping[str, float], cold: Mapping[str, float], engine: str) -> Finding:
    """Compare what the server gives at temperature 1 and at a lower one."""
    if sum(math.exp(min(v, 0.0)) for v in warm.values()) > 1.01 or max(warm.values()) > _SAME:
        return fatal(
            "served-logits",
            f"{engine} returns logits where log-probabilities are asked for",
            "they are not normalised, so no entropy or divergence can be made of them",
            "serve with --logprobs-mode processed_logprobs, or raw_logprobs",
        )
    both = sorted(set(warm) & set(cold), key=lambda t: warm[t])
    spread = warm[both[-1]] - warm[both[0]] if len(both) >= 2 else 0.0
    if spread < _TELLS:
        return warning(
            "served-undecided",
            f"{engine} returns too few different log-probabilities to tell at which temperature they are",
            "what its recorded log-probabilities are of is not known",
            "score the rows again here before using them",
        )
    ratio = (cold[both[-1]] - cold[both[0]]) / spread
    if abs(ratio - 1) * spread <= max(_SAME, 0.05 * spread):
        return warning(
            "served-raw",
            f"{engine} returns log-probabilities of the law without its selectivity (raw)",
            "at another temperature than 1, or with top_p, top_k or min_p, the mean of these is a cross-entropy, not "
            "the entropy of what was drawn, and truncation does not show",
            "serve with --logprobs-mode processed_logprobs where rows are drawn selectively, or score them again here",
        )
    if abs(ratio - 1 / _COLD) * spread <= max(_SAME, 0.05 * spread / _COLD):
        return note(
            "served-processed",
            f"{engine} returns log-probabilities of the law that it draws from (processed)",
            "these are what a row's recorded log-probability means here; those without the selectivity are not at hand",
            "nothing",
        )
    return warning(
        "served-undecided",
        f"{engine}'s log-probabilities change with temperature by a factor of {ratio:.2f}, where 1 or {1 / _COLD:g} "
        "is expected",
        "what its recorded log-probabilities are of is not known: it may apply penalties or a truncation of its own",
        "switch off the server's default sampling parameters, or score the rows again here",
    )


def _top(base: str, model: str, temperature: float, timeout: float) -> dict[str, float]:
    """Log-probabilities of the likeliest next tokens, by token."""
    body = {
        "model": model, "prompt": _PROMPT, "max_tokens": 1, "temperature": temperature, "top_p": 1.0,
        "logprobs": _TOP, "seed": 0,
    }  # fmt: skip
    answer = _ask(f"{base}/v1/completions", timeout, body)
    try:
        top = answer["choices"][0]["logprobs"]["top_logprobs"][0]
        found = {str(k): float(v) for k, v in cast("dict[str, Any]", top).items()}
    except (KeyError, IndexError, TypeError, ValueError, AttributeError):
        found = {}
    finite = {k: v for k, v in found.items() if math.isfinite(v)}
    if not finite:
        fix = "serve it with log-probabilities, at least 5"
        raise InputError("the server returns no log-probabilities", got=answer, fix=fix)
    return finite


def _first_model(base: str, timeout: float) -> str:
    answer = _ask(f"{base}/v1/models", timeout)
    try:
        return str(answer["data"][0]["id"])
    except (KeyError, IndexError, TypeError):
        raise InputError("the server lists no model", got=answer, fix="check that it has finished loading") from None


def _version(base: str, timeout: float) -> str:
    """The engine's name; vLLM tells its version, others need not."""
    try:
        answer: Any = _ask(f"{base}/version", timeout)
        return f"vLLM {one_line(str(answer['version']), 40)}"
    except (InputError, KeyError, TypeError):
        return "the server"


def _ask(url: str, timeout: float, body: Mapping[str, object] | None = None) -> Any:
    """Send a request; what comes back must be JSON of modest size."""
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(url, data, {"Content-Type": "application/json"})
    fix = "check the URL and the model"
    try:
        code, raw = _within(timeout, lambda: _fetch(request, timeout))
        if code != 200:
            said = raw[:500].decode(errors="replace")
            raise InputError(f"the server answers {code} to {url}", got=said, fix=fix)
        if len(raw) > _MOST_BYTES:
            raise InputError(f"the server answers more than {_MOST_BYTES} bytes", got=url, fix=fix)
        return json.loads(raw)
    except (OSError, ValueError, RecursionError, http.client.HTTPException) as e:
        reason = one_line(str(getattr(e, "reason", e)), 200)
        raise InputError(f"the server cannot be asked: {reason}", got=url, fix="check the URL") from None


class _Here(urllib.request.HTTPRedirectHandler):
    """Follows no redirection: what is asked, prompts among it, goes to the server that was named."""

    def redirect_request(self, req: Any, fp: Any, code: int, msg: str, headers: Any, newurl: str) -> None:
        """Leave the answer as it is."""


def _fetch(request: urllib.request.Request, timeout: float) -> tuple[int, bytes]:
    """Return status and body, one byte more than is read at most where there is more."""
    try:
        with urllib.request.build_opener(_Here).open(request, timeout=timeout) as answer:
            return int(answer.status), answer.read(_MOST_BYTES + 1)
    except urllib.error.HTTPError as e:
        with e:
            return e.code, e.read(500)


def _within(seconds: float, work: Callable[[], tuple[int, bytes]]) -> tuple[int, bytes]:
    """Wait for work so long and no longer: a server that sends a byte now and then keeps a socket alive for ever."""
    done: queue.SimpleQueue[tuple[int, bytes] | Exception] = queue.SimpleQueue()

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
