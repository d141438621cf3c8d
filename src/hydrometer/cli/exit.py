"""Exits of the command line: one line on standard error and an exit code; a traceback only for a defect."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Callable
from typing import NoReturn

from hydrometer._stopping import CODES, Stop, Stopping, go_on, how_to_go_on
from hydrometer.core.errors import HydrometerError, InputError, one_line
from hydrometer.core.io.os_errors import is_out_of_memory, raised_over, refused, refused_errno

__all__ = ["end_with"]

_PIPE = 141  # 128 + SIGPIPE, as shells report a closed pipe


def end_with(app: Callable[..., object]) -> NoReturn:
    """Call the parser and exit the process with the matching code."""
    _open_standard_streams()
    with Stopping():
        try:
            code = app(standalone_mode=False)  # the parser returns the codes of its own exits
            sys.stdout.flush()
        except Stop as e:
            _end(go_on(e.signum), CODES[e.signum])
        except SystemExit as e:
            if not any(isinstance(x, BrokenPipeError) for x in raised_over(e)):
                raise
            _reader_left()
        except BrokenPipeError:
            _reader_left()
        except InputError as e:
            _complain(str(e), 2)
        except HydrometerError as e:
            _complain(str(e), 1)
        except Exception as e:
            if (stop := next((x for x in raised_over(e) if isinstance(x, Stop)), None)) is not None:
                _end(go_on(stop.signum), CODES[stop.signum])  # a library made an error of its own of it
            _complain_of(e)
        sys.exit(code if isinstance(code, int) else 0)


def _reader_left() -> NoReturn:
    _discard(1)
    _complain(f"nobody reads the output any more; {how_to_go_on()}", _PIPE)


def _complain_of(e: Exception) -> NoReturn:
    """Report in one line what the user can fix; anything else is a defect, shown with its traceback."""
    said = getattr(e, "format_message", None)
    if hasattr(e, "exit_code") and callable(said):  # a usage error of the parser
        _complain(str(said()), 2)
    try:  # is it standard output? Its buffer may be lost already; a full device refuses even an empty write
        sys.stdout.flush()
        os.write(1, b"")
    except OSError as broken:
        _discard(1)
        _complain(f"standard output cannot be written: {broken.strerror}; {how_to_go_on()}", 2)
    if is_out_of_memory(e):
        _complain("out of memory; close other programs, or take a machine with more, then run again", 1)
    if isinstance(e, OSError) or refused_errno(e) is not None:
        where = "the folder that this was started in, which is gone"
        with contextlib.suppress(OSError):
            where = os.getcwd()
        _complain(str(refused(e, where)), 2)
    raise e


def _complain(message: str, code: int) -> NoReturn:
    _end(f"hydrometer: {one_line(message)}", code)


def _end(line: str, code: int) -> NoReturn:
    """Print a line and exit, even if the streams are broken."""
    for stream, descriptor in ((sys.stdout, 1), (sys.stderr, 2)):
        try:
            if descriptor == 2:
                print(line, file=stream)
            stream.flush()
        except (OSError, ValueError):
            _discard(descriptor)
    sys.exit(code)


def _discard(descriptor: int) -> None:
    """Redirect a stream to the null device, so that the interpreter's flush at exit does not fail."""
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, descriptor)
    os.close(null)


def _open_standard_streams() -> None:
    """Reopen descriptors that the caller closed; otherwise the first artifact opened would become standard output."""
    for descriptor in range(3):
        try:
            os.fstat(descriptor)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # takes the lowest free number, which is this one
    if sys.stdout is None:  # pyright: ignore[reportUnnecessaryComparison]
        sys.stdout = open(os.devnull, "w")
    if sys.stderr is None:  # pyright: ignore[reportUnnecessaryComparison]
        sys.stderr = open(os.devnull, "w")
