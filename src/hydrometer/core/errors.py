"""Error classes. Every message is one line: what is wrong, the value received, how to fix it.

The library raises these; the command line prints them and turns them into exit codes. `InputError` is for the caller to
fix (exit code 2); `StageError` fails one cell of a run while the rest continues (exit code 1).
"""

from __future__ import annotations

import reprlib
from itertools import islice
from typing import Any

__all__ = [
    "DataError",
    "FitError",
    "FolderError",
    "HydrometerError",
    "InputError",
    "LawMismatchError",
    "MissingDependencyError",
    "ModelError",
    "PeerLostError",
    "SpecError",
    "StageError",
    "StoreError",
    "UnreachableError",
]

_LONGEST_GOT = 200
_LONGEST_DIGITS = 40


class _Brief(reprlib.Repr):
    """The repr of a small value; of a huge one, only the beginning, at constant cost."""

    def __init__(self) -> None:
        super().__init__()
        self.maxlevel = 8
        self.maxlist = self.maxtuple = self.maxset = self.maxfrozenset = self.maxdict = self.maxdeque = 60
        self.left = 400  # parts shown in all, for values nested widely

    def repr1(self, x: Any, level: int) -> str:
        self.left -= 1
        return super().repr1(x, level) if self.left >= 0 else "..."

    def repr_str(self, x: str, level: int) -> str:
        return repr(x[: _LONGEST_GOT + 1])

    def repr_bytes(self, x: bytes, level: int) -> str:
        return repr(x[: _LONGEST_GOT + 1])

    def repr_int(self, x: int, level: int) -> str:
        if abs(x) < 10**_LONGEST_DIGITS:
            return repr(x)
        return f"{'-' if x < 0 else ''}<integer of {x.bit_length()} bits>"  # digits would cost their square

    def repr_dict(self, x: dict[Any, Any], level: int) -> str:
        if level <= 0:
            return "{...}" if x else "{}"
        shown = [f"{self.repr1(k, level - 1)}: {self.repr1(x[k], level - 1)}" for k in islice(x, self.maxdict)]
        return "{" + ", ".join(shown + (["..."] if len(x) > self.maxdict else [])) + "}"

    def repr_instance(self, x: Any, level: int) -> str:
        try:
            return repr(x)
        except Exception:  # a foreign __repr__ may raise anything; the message must still appear
            return f"<{type(x).__name__}>"


def brief(value: object) -> str:
    r"""Return a value's repr on one line, at most 200 characters of it; huge or hostile values cost no more.

    Examples
    --------
    >>> brief({"a": 1}), brief("\x1b[31mred"), brief(16**5000)
    ("{'a': 1}", "'\\x1b[31mred'", '<integer of 20001 bits>')
    """
    return one_line(_Brief().repr(value), _LONGEST_GOT)


def one_line(text: str, limit: int = 1000) -> str:
    """Fold white space and control characters so that a message stays one harmless line.

    Non-printable characters, such as terminal escapes and bidirectional controls, are shown by their code points.
    """
    folded = " ".join(text[: 16 * limit].split())
    safe = "".join(c if c.isprintable() else f"\\u{ord(c):04x}" for c in folded)
    return safe if len(safe) <= limit else safe[: limit - 3] + "..."


class HydrometerError(Exception):
    """Base of all errors this package raises on purpose.

    Parameters
    ----------
    what : what is wrong.
    got : the offending value, shown as its repr, shortened.
    fix : what to do about it.

    Attributes
    ----------
    said : the message without the fix, for callers that print the fix elsewhere.
    """

    def __init__(self, what: str, *, got: object = ..., fix: str = "") -> None:
        self.said = one_line(what if got is ... else f"{what}; got {brief(got)}")
        super().__init__(one_line(f"{self.said}; {fix}" if fix else self.said))
        self.what, self.fix = what, fix


class InputError(HydrometerError):
    """The caller's input is wrong. Exit code 2."""


class SpecError(InputError):
    """A recipe, a specification or one of its values is wrong."""


class DataError(InputError):
    """Data that cannot be used: NaN, the wrong shape, too few points, a broken prompts file."""


class ModelError(InputError):
    """A model source that cannot be opened: no such folder, no safe weights, no tokenizer."""


class LawMismatchError(InputError):
    """Two models that are to be judged together do not define laws over the same outcomes."""


class FolderError(InputError):
    """A run folder that cannot be used: another experiment, a file in its place, held by another run."""


class MissingDependencyError(InputError):
    """An optional dependency is not installed."""


class StageError(HydrometerError):
    """One stage of a run failed; its cells are recorded as failed with this message."""


class FitError(StageError):
    """A model could not be fitted to the data it was given."""


class PeerLostError(FitError):
    """A process of a distributed fit lost another one, which alone knows why the fit failed."""


class StoreError(HydrometerError):
    """An artifact or record on disk is missing, damaged, or not what its key promises."""


class UnreachableError(HydrometerError):
    """A remote store does not answer. The run ends, since nothing more could be stored; finished artifacts stay."""
