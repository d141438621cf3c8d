"""Activity messages of models and stores, for a listener that they do not know.

No figure depends on them, so they travel by context and not as an argument. Without `watched_by` nobody listens;
threads and processes started inside it are not heard.
"""

from __future__ import annotations

from collections.abc import Callable, Generator
from contextlib import contextmanager
from contextvars import ContextVar

__all__ = ["doing", "during", "watched_by"]

_listener: ContextVar[Callable[[str], None] | None] = ContextVar("listener", default=None)
_last: ContextVar[str] = ContextVar("last", default="")


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
    """Report activities to `listener` while the body runs."""
    token = _listener.set(listener)
    try:
        yield
    finally:
        _listener.reset(token)
