"""Checks that reading or repairing a folder touches nothing outside it.

Run folders are passed around. A link in one of them, or a name that climbs out of it, must not lead a reader to another
file, nor a program that removes what is damaged to another folder.
"""

from __future__ import annotations

import errno
import os
import shutil
from pathlib import Path, PurePosixPath

from hydrometer.core.errors import FolderError, StoreError
from hydrometer.core.io.os_errors import refused

__all__ = ["inner_file", "refuse_links", "refuse_unwritable", "remove"]


def remove(path: Path) -> None:
    """Remove a folder and what it holds; of a link, only the link."""
    if path.is_symlink() or not path.is_dir():
        path.unlink(missing_ok=True)
    else:
        shutil.rmtree(path)  # follows no link inside


def inner_file(folder: Path, name: str) -> Path:
    """Return a file inside a folder by an untrusted relative name.

    Raises
    ------
    StoreError : the name leads out of the folder, or to a link.
    """
    parts = PurePosixPath(name).parts
    path = folder.joinpath(*parts)
    whole = [folder.joinpath(*parts[: i + 1]) for i in range(len(parts))]
    if "\0" in name or not parts or PurePosixPath(name).is_absolute() or ".." in parts:
        raise StoreError("a file of an artifact has a name that leads out of it", got=name)
    if any(p.is_symlink() for p in (folder, *whole)):
        raise StoreError("a file of an artifact is a link", got=name)
    return path


def refuse_links(root: Path, names: tuple[str, ...]) -> None:
    """Refuse a run folder whose parts are links: writes would go elsewhere.

    Raises
    ------
    FolderError : the first part that is one.
    """
    for name in names:
        if (root / name).is_symlink():
            fix = "remove the link; artifacts elsewhere are named with --cache"
            raise FolderError(f"{name} in the run's folder is a link", got=str(root), fix=fix)


def refuse_unwritable(folder: Path) -> None:
    """Refuse a folder that cannot be written, or made if missing; nothing is made.

    Raises
    ------
    FolderError : no permission, a read-only file system, or a file in its place or above it.
    """
    try:
        at = next(p for p in (folder.absolute(), *folder.absolute().parents) if p.exists())
        if not at.is_dir():
            raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), str(at))
        if os.statvfs(at).f_flag & os.ST_RDONLY:
            raise OSError(errno.EROFS, os.strerror(errno.EROFS), str(at))
        if not os.access(at, os.W_OK | os.X_OK):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(at))
    except OSError as e:
        raise refused(e, folder) from None
