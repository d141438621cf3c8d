"""Errors of the operating system: no space, permission, descriptors or memory. Libraries report them in many ways."""

from __future__ import annotations

import errno
import os
import re
from collections.abc import Generator

from hydrometer.core.errors import FolderError

__all__ = ["is_out_of_memory", "is_panic", "raised_over", "refused", "refused_errno"]

_MACHINE = frozenset(
    {errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EFBIG, errno.EMFILE, errno.ENFILE, errno.EIO, errno.ESTALE}
)
# safetensors says "Os { code: 28, ... }", others of Rust "(os error 28)".
_RUST = re.compile(r"\bos error (\d+)|\bOs \{ code: (\d+)")
_MEMORY = re.compile(
    r"can't allocate memory|cannot allocate memory|out of memory|bad_alloc|can't start new thread", re.IGNORECASE
)
_FIX = {
    errno.ENOSPC: "make space, then run again: it goes on where it stopped",
    errno.EDQUOT: "make space in your quota, then run again: it goes on where it stopped",
    errno.EFBIG: "raise the limit on the size of files (ulimit -f), then run again",
    errno.EMFILE: "raise the limit on open files (ulimit -n), then run again",
    errno.ENFILE: "close other programs' files, then run again",
    errno.EROFS: "make the file system writable, or choose another --out",
    errno.EACCES: "mend the permissions, or choose another --out",
    errno.EPERM: "mend the permissions, or choose another --out",
    errno.ENOENT: "was the folder removed meanwhile? run again",
    errno.ENAMETOOLONG: "choose a shorter --out, or shorter names of chains",
}


def refused_errno(error: BaseException) -> int | None:
    """Return the errno of the operating system's error in an error's chain of causes, else None.

    Examples
    --------
    >>> refused_errno(ValueError("Error while serializing: I/O error: No space left on device (os error 28)"))
    28
    """
    for e in raised_over(error):
        number = e.errno if isinstance(e, OSError) else None
        if number is None and (found := _RUST.search(str(e))):
            number = int(found[1] or found[2])
        if number in _MACHINE:
            return number
    return None


def is_out_of_memory(error: BaseException) -> bool:
    """Whether memory ran out, by an error's chain of causes; torch raises a RuntimeError for it."""
    for e in raised_over(error):
        if isinstance(e, MemoryError) or (isinstance(e, OSError) and e.errno == errno.ENOMEM):
            return True
        if isinstance(e, RuntimeError) and _MEMORY.search(str(e)):
            return True
    return False


def refused(error: BaseException, where: object) -> FolderError:
    """Describe an operating system's error in one line: which file or folder, why, and what to do.

    Parameters
    ----------
    error : an OSError, or a library's error in its place.
    where : the folder that was worked in, named if the error names no file.
    """
    number = error.errno if isinstance(error, OSError) and error.errno else refused_errno(error)
    why = str(error) if number is None else os.strerror(number)
    path = getattr(error, "filename", None)
    return FolderError(
        f"the machine refuses: {why}",
        got=os.fsdecode(path) if isinstance(path, str | bytes) else str(where),
        fix=_FIX.get(number or 0, "mend that, then run again: it goes on where it stopped"),
    )


def is_panic(error: BaseException) -> bool:
    """Whether a library written in Rust panicked; what it raises is not an Exception."""
    return type(error).__name__ == "PanicException"


def raised_over(error: BaseException) -> Generator[BaseException]:
    """Yield an error and its causes and contexts, each once."""
    seen: set[int] = set()
    todo: list[BaseException | None] = [error]
    while todo:
        e = todo.pop()
        if e is not None and id(e) not in seen:
            seen.add(id(e))
            yield e
            todo += [e.__context__, e.__cause__]
