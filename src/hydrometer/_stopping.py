"""How the command line stops when it is told to: SIGINT and SIGTERM, from the first import to the last byte.

Imported before anything else of the package, and of the standard library alone: the other imports take seconds, in
which an impatient Ctrl-C would else be a traceback. A program that uses the library keeps its own handlers.
"""

from __future__ import annotations

import os
import shlex
import signal
import sys
from pathlib import PurePath
from types import FrameType, TracebackType
from typing import NoReturn, Self

__all__ = ["CODES", "Stop", "Stopping", "go_on", "how_to_go_on"]

CODES = {signal.SIGINT: 130, signal.SIGTERM: 143}
_WORDS = {signal.SIGINT: "interrupted", signal.SIGTERM: "terminated"}
_AGAIN = 0.05  # seconds


class Stop(BaseException):
    """A signal asked this process to stop."""

    def __init__(self, signum: int) -> None:
        super().__init__(signum)
        self.signum = signal.Signals(signum)


def how_to_go_on() -> str:
    """Return the command that goes on, and that it does: with a run; a claim is measured anew."""
    kept = "a claim that is stopped is measured anew, by" if _is_claim() else "nothing finished is lost, go on with"
    return f"{kept}: {shlex.join(['hydrometer', *sys.argv[1:]])}"


def _is_claim() -> bool:
    return sys.argv[1:2] == ["run"] and any(a.startswith("claims/") for a in sys.argv[2:])


def go_on(signum: int) -> str:
    """Return the line that says which signal stopped this process and how to go on."""
    return f"hydrometer: {_WORDS[signal.Signals(signum)]}; {how_to_go_on()}"


def at_once(signum: int, frame: FrameType | None) -> NoReturn:
    """End the process here and now: artifacts are sound wherever that is."""
    try:
        if os.isatty(2):
            os.write(2, b"\x1b[?25h")  # a progress bar hides the cursor
        os.write(2, (go_on(signum) + "\n").encode())
    finally:
        os._exit(CODES[signal.Signals(signum)])


class Stopping:
    """While entered, the first signal raises `Stop` and a second one ends the process at once."""

    def __init__(self) -> None:
        self._asked: int | None = None
        self._before = {s: signal.SIG_DFL for s in CODES} | {signal.SIGALRM: signal.SIG_DFL}
        self._hook = sys.unraisablehook

    def __enter__(self) -> Self:
        self._before = {s: signal.signal(s, self._signal) for s in CODES}
        self._before[signal.SIGALRM] = signal.signal(signal.SIGALRM, self._again)
        self._hook, sys.unraisablehook = sys.unraisablehook, self._unraisable
        return self

    def __exit__(self, kind: type[BaseException] | None, e: BaseException | None, tb: TracebackType | None) -> None:
        sys.unraisablehook = self._hook
        for signum, handler in self._before.items():
            if handler is not None:  # one that was not installed from Python cannot be put back
                signal.signal(signum, handler)

    def _signal(self, signum: int, frame: FrameType | None) -> NoReturn:
        if self._asked is not None:
            at_once(signum, frame)
        self._asked = signum
        raise Stop(signum)

    def _again(self, signum: int, frame: FrameType | None) -> NoReturn:
        raise Stop(signal.SIGINT if self._asked is None else self._asked)

    def _unraisable(self, what: sys.UnraisableHookArgs, /) -> None:
        # A signal that arrives in a destructor or callback is dropped there, and the run would go on: ask again.
        if what.exc_type is Stop:
            signal.setitimer(signal.ITIMER_REAL, _AGAIN)
        else:
            self._hook(what)


def _is_command() -> bool:
    """Whether this process is the command line, from its script or by ``python -m hydrometer.cli``."""
    if "--multiprocessing-fork" in sys.orig_argv:  # a child that the command line spawned: its parent speaks
        return False
    script = PurePath(sys.argv[0]).name if getattr(sys, "argv", None) else ""
    return script in ("hydrometer", "hydrometer.exe") or sys.orig_argv[1:3] == ["-m", "hydrometer.cli"]


if _is_command():
    for _signum in CODES:
        signal.signal(_signum, at_once)
