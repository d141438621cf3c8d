"""What becomes of an error in a stage: a failed cell, the end of the run, or a defect that is shown as one."""

from __future__ import annotations

from pathlib import Path

from hydrometer.core.errors import FolderError, HydrometerError, StageError, UnreachableError
from hydrometer.core.io.os_errors import is_out_of_memory, refused, refused_errno

__all__ = ["reason_of"]

_LESS = {
    "fit": "lower per_device_train_batch_size (and raise gradient_accumulation_steps as much)",
    "draw": "lower block_rows",
    "score": "lower block_rows",
    "judge": "lower data.evaluate",
}


def reason_of(error: Exception, stage: str, where: Path) -> str:
    """Return why a stage failed, one line; what needs it fails with it and the rest of the run goes on.

    Raised again, or as FolderError, is what would meet every stage alike: a disk without space, no more open files, a
    file system that became read-only. So is what this package does not raise on purpose, which is a defect.

    Parameters
    ----------
    error : what the stage raised.
    stage : its kind: draw, fit, judge, ...
    where : folder of the artifacts.

    Raises
    ------
    FolderError : the machine refuses.
    UnreachableError : a remote store does not answer.

    Examples
    --------
    >>> reason_of(MemoryError(), "draw", Path("runs/a/artifacts"))
    'out of memory; lower block_rows, take a smaller model, or a machine with more memory'
    """
    if isinstance(error, FolderError | UnreachableError):
        raise error
    if refused_errno(error) is not None:
        raise refused(error, where) from error
    if is_out_of_memory(error):
        less = f"{_LESS[stage]}, " if stage in _LESS else ""
        return str(StageError("out of memory", fix=f"{less}take a smaller model, or a machine with more memory"))
    if isinstance(error, HydrometerError):
        return str(error)
    if isinstance(error, OSError):
        raise refused(error, where) from error
    raise error
