"""The named tree of errors. Every message is one line: what is wrong, what was got, how to fix it.

The library raises these; the command line prints them and turns them into exit codes. `InputError` is the person's to
mend (exit 2), `StageError` makes one cell of a run fail (exit 1) while the rest goes on.
"""

from __future__ import annotations

__all__ = [
    "DataError",
    "FitError",
    "FolderError",
    "HydrometerError",
    "InputError",
    "LawMismatchError",
    "MissingDependencyError",
    "ModelError",
    "SpecError",
    "StageError",
    "StoreError",
    "UnreachableError",
]

_LONGEST_GOT = 200


def one_line(text: str, limit: int = 1000) -> str:
    """Fold white space and control characters so that a message stays one harmless line."""
    folded = " ".join(text.split())
    safe = "".join(c if c.isprintable() else f"\\u{ord(c):04x}" for c in folded)
    return safe if len(safe) <= limit else safe[: limit - 3] + "..."


class HydrometerError(Exception):
    """Base of all errors this package raises on purpose.

    Parameters
    ----------
    what : what is wrong.
    got : the offending value, shown as its repr, shortened.
    fix : what to do about it.
    """

    def __init__(self, what: str, *, got: object = ..., fix: str = "") -> None:
        parts = [what]
        if got is not ...:
            parts.append(f"got {one_line(repr(got), _LONGEST_GOT)}")
        if fix:
            parts.append(fix)
        super().__init__(one_line("; ".join(parts)))
        self.what, self.fix = what, fix


class InputError(HydrometerError):
    """What the caller gave is wrong. Exit code 2."""


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


class StoreError(HydrometerError):
    """An artifact or record on disk is missing, damaged, or not what its key promises."""


class UnreachableError(HydrometerError):
    """A remote store does not answer. The run ends, for nothing more could be kept; what is finished stays."""
