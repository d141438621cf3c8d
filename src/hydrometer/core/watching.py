"""What is being done now, said to whoever watches: models and stores do not know who that is.

No figure depends on it, so it is no argument of what computes: it is said into the context, where nobody listens unless
`watched_by` is entered. A thread or process that is started there is not listened to.
"""

from __future__ import annotations

from collections.abc import Callable, Generator
from contextlib import contextmanager
from contextvars import ContextVar

__all__ = ["doing", "during", "watched_by"]

_listener: ContextVar[Callable[[str], None] | None] = ContextVar("listener", default=None)
_last: ContextVar[str] = ContextVar("last", default="")


def doing(what: str) -> None:
    """Say what begins now and may take more than a second.

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
    """Say what is done while this is entered; then again what was being done before."""
    before = _last.get()
    doing(what)
    try:
        yield
    finally:
        doing(before)


@contextmanager
def watched_by(listener: Callable[[str], None]) -> Generator[None]:
    """Let `listener` hear what is done while this is entered."""
    token = _listener.set(listener)
    try:
        yield
    finally:
        _listener.reset(token)
