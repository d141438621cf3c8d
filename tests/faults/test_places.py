"""The clock, and the places that a run works in."""

from __future__ import annotations

import os
import shutil
from functools import partial
from pathlib import Path

import pytest

from faulty import World, at_stage, become_nobody, recover, remove, run, same, set_clock_back


def test_nothing_depends_on_the_clock(small: World, tmp_path: Path, observe) -> None:
    out = tmp_path / "out"
    back = at_stage(3, partial(set_clock_back, 10 * 365 * 86400.0))
    assert run(small.spec, out, setup=[back]).code == 0
    same(out, small.undisturbed)  # asserts seconds >= 0
    for k, path in enumerate(sorted(out.rglob("*"))):
        os.utime(path, (0, 0) if k % 2 else (4e9, 4e9))
    again = recover(small, out)
    assert again == 0
    observe("clock set back ten years while running; files of 1970 and 2096", "records equal", again=again)


def test_a_folder_without_permission_is_one_line(small: World, tmp_path: Path, observe) -> None:
    where, spec = Path("/tmp") / f"closed-{os.getpid()}", tmp_path / "spec.yaml"
    shutil.copy(small.spec, spec)
    where.mkdir(mode=0o755)
    try:
        for path in (tmp_path, *tmp_path.parents):
            if path.is_dir() and path.stat().st_uid == os.geteuid() and not path.stat().st_mode & 1:
                pytest.skip("the tests' folder is closed to others") if os.geteuid() else path.chmod(0o755)
        if os.geteuid():
            where.chmod(0o555)
        ended = run(spec, where / "out", setup=[become_nobody])
        assert ended.code == 2, ended.err
        assert "Permission denied" in ended.line
        assert str(where) in ended.line
        assert "Traceback" not in ended.err
        assert list(where.iterdir()) == []
    finally:
        shutil.rmtree(where)
    observe("folder without permission to write", "one line, exit 2, nothing made")


def test_a_folder_removed_while_running_is_one_line(small: World, tmp_path: Path, observe) -> None:
    out = tmp_path / "out"
    ended = run(small.spec, out, setup=[at_stage(6, partial(remove, out))])
    assert ended.code == 2, ended.err
    assert "No such file or directory" in ended.line
    assert "Traceback" not in ended.err
    assert recover(small, out) == 0
    observe("folder removed while running", "one line, exit 2; a new run makes it again")


@pytest.mark.parametrize("page", [False, pytest.param(True, marks=pytest.mark.faults)])
def test_odd_names_of_folders_work(small: World, tmp_path: Path, observe, page: bool) -> None:
    out = tmp_path / "with spaces and 'quotes'" / "жидкость-液体-🥃"
    for _ in range(8):
        out = out / ("long" * 10)
    ended = run(small.spec, out, page=page)
    assert ended.code == 0, ended.err
    assert (out / "report.html").is_file() == page
    same(out, small.undisturbed)
    observe("path with spaces, quotes, other scripts, 400 characters", "records equal")


def test_a_name_that_is_too_long_is_one_line(small: World, tmp_path: Path, observe) -> None:
    ended = run(small.spec, tmp_path / ("n" * 300))
    assert ended.code == 2
    assert "File name too long" in ended.line
    assert "Traceback" not in ended.err
    observe("name of 300 characters", "one line, exit 2")
