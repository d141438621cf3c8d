"""One process has a folder, whoever else wants it, and whatever is removed meanwhile."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from hydrometer.core.errors import FolderError
from hydrometer.core.io import locking
from hydrometer.core.io.locking import InUseError, claim, discard, hold


def test_a_claim_ends_with_its_process_and_is_waited_for(tmp_path: Path) -> None:
    held = "import sys, time; from pathlib import Path; from hydrometer.core.io.locking import claim\n"
    held += "with claim(Path(sys.argv[1]), 0): print('held', flush=True); time.sleep(600)"
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(p for p in sys.path if p)}
    folder = tmp_path / "folder"
    holder = subprocess.Popen([sys.executable, "-c", held, folder], stdout=subprocess.PIPE, env=environment)
    try:
        assert holder.stdout is not None
        assert holder.stdout.readline() == b"held\n"
        with claim(folder, 0) as mine:
            assert not mine
        discard(folder, tmp_path / "away")
        assert folder.is_dir()
        threading.Timer(0.5, holder.kill).start()
        with claim(folder, 60) as mine:
            assert mine
    finally:
        holder.kill()
        holder.communicate()
    discard(folder, tmp_path / "away")
    assert not list(tmp_path.iterdir())


def test_who_waited_has_the_folder_that_is_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The one before ends and removes what it had: its lock, too, which the next may have opened already."""
    folder, waiting, had, done = tmp_path / "folder", threading.Event(), list[bool](), threading.Event()
    real = locking._take

    def seen(handle: int, **how: bool) -> bool:
        waiting.set()
        return real(handle, **how)

    def wait() -> None:
        with claim(folder, 60) as mine, claim(folder, 0) as again:
            had.extend([mine, again, folder.is_dir()])
            done.wait(60)

    with claim(folder, 0):
        monkeypatch.setattr(locking, "_take", seen)
        next_one = threading.Thread(target=wait)
        next_one.start()
        assert waiting.wait(60)
        folder.rename(tmp_path / "away")  # as `discard` does that has it
    while not had:
        time.sleep(0.01)
    assert had == [True, False, True]
    discard(folder, tmp_path / "elsewhere")
    assert folder.is_dir()
    done.set()
    next_one.join()
    discard(folder, tmp_path / "elsewhere")
    assert not folder.exists()


def test_a_lock_of_a_removed_file_does_not_count(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder, real = tmp_path / "folder", locking._take

    def removed_meanwhile(handle: int, **how: bool) -> bool:
        monkeypatch.setattr(locking, "_take", real)
        folder.rename(tmp_path / "away")
        return real(handle, **how)

    monkeypatch.setattr(locking, "_take", removed_meanwhile)
    with claim(folder, 0) as mine:
        assert mine
        assert folder.is_dir()
        with claim(folder, 0) as again:
            assert not again


def test_what_cannot_be_known_is_not_removed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "folder"
    folder.mkdir()

    def broken(handle: int, how: int) -> None:
        raise OSError(errors.pop(), "no answer")

    monkeypatch.setattr(locking.fcntl, "flock", broken)
    errors = [errno.EACCES, errno.EIO, errno.ESTALE]
    for _ in range(3):
        discard(folder, tmp_path / "away")
        assert folder.is_dir()
    errors = [errno.EIO]
    with pytest.raises(OSError, match="no answer"), claim(folder, 0):
        pass
    errors = [errno.EACCES]
    with claim(folder, 0) as mine:
        assert not mine
    errors = [errno.ENOLCK]
    with claim(folder, 0) as mine:
        assert mine
    errors = [errno.ENOLCK]
    with pytest.raises(FolderError, match="refuses"), hold(folder):  # a run's own folder is nobody's without a lock
        pass
    errors = [errno.EACCES]
    with pytest.raises(InUseError, match="another process"), hold(folder):
        pass


def test_a_run_whose_folder_was_removed_as_it_took_it_does_not_have_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, real = tmp_path / "folder", locking._take
    folder.mkdir()

    def removed_meanwhile(handle: int, **how: bool) -> bool:
        folder.rename(tmp_path / "away")
        return real(handle, **how)

    monkeypatch.setattr(locking, "_take", removed_meanwhile)
    with pytest.raises(FolderError, match="refuses"), hold(folder):
        pass


def test_a_folder_that_cannot_be_made_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError), claim(tmp_path / "no" / "folder", 0):
        pass
    discard(tmp_path / "no" / "folder", tmp_path / "away")


def test_of_a_link_only_the_link_is_removed(tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "folder").symlink_to("elsewhere")
    discard(tmp_path / "folder", tmp_path / "away")
    assert [p.name for p in tmp_path.iterdir()] == ["elsewhere"]
    assert not list((tmp_path / "elsewhere").iterdir())
