"""Activity messages of models and stores, and figures of a fit by step, for listeners that they do not know.

No figure depends on them, so they travel by context and not as an argument. Without `watched_by` nobody listens;
threads and processes started inside it are not heard.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar

__all__ = ["Log", "clock", "doing", "during", "log", "logged_by", "watched_by"]

Log = Callable[[int, Mapping[str, float]], None]
"""Takes figures of a step, by name."""

_listener: ContextVar[Callable[[str], None] | None] = ContextVar("listener", default=None)
_last: ContextVar[str] = ContextVar("last", default="")
_log: ContextVar[Log | None] = ContextVar("log", default=None)


def clock(seconds: float) -> str:
    """Minutes and seconds."""
    whole = max(int(seconds), 0)
    hours, rest = divmod(whole, 3600)
    return f"{hours}:{rest // 60:02d}:{rest % 60:02d}" if hours else f"{rest // 60}:{rest % 60:02d}"


def doing(what: str) -> None:
    """Report the start of something that may take more than a second.

    Examples
    --------
    >>> with watched_by(print):
    ...     doing("opening the truth")
    ...     with during("compiling"):
    ...         pass
    opening the truth
    compiling
    opening the truth
    >>> doing("nobody listens")
    """
    listener = _listener.get()
    if listener is not None:
        _last.set(what)
        listener(what)


@contextmanager
def during(what: str) -> Generator[None]:
    """Report an activity while the body runs, and the previous one again afterwards."""
    before = _last.get()
    doing(what)
    try:
        yield
    finally:
        doing(before)


@contextmanager
def watched_by(listener: Callable[[str], None]) -> Generator[None]:
    """Report activities to `listener`, too, while the body runs."""
    before = _listener.get()

    def both(what: str) -> None:
        listener(what)
        if before is not None:
            before(what)

    token = _listener.set(both)
    try:
        yield
    finally:
        _listener.reset(token)


def log(step: int, figures: Mapping[str, float]) -> None:
    """Report figures of a step.

    Examples
    --------
    >>> with logged_by(print):
    ...     log(3, {"train/loss": 1.5})
    3 {'train/loss': 1.5}
    >>> log(4, {"train/loss": 1.4})
    """
    listener = _log.get()
    if listener is not None:
        listener(step, figures)


@contextmanager
def logged_by(listener: Log) -> Generator[None]:
    """Report figures of steps to `listener` while the body runs."""
    token = _log.set(listener)
    try:
        yield
    finally:
        _log.reset(token)
