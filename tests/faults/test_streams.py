"""No descriptors left, and standard output that cannot be written."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from functools import partial
from pathlib import Path

import pytest

from chains import complaints
from faulty import World, at_call, at_stage, recover, run, use_up_descriptors

COMMAND = [sys.executable, "-m", "hydrometer.cli"]


@pytest.mark.parametrize("left", [1, *(pytest.param(n, marks=pytest.mark.faults) for n in (0, 2, 3))])
def test_no_descriptors_left_is_one_line(small: World, tmp_path: Path, observe, left: int) -> None:
    out = tmp_path / "out"
    ended = run(small.spec, out, setup=[at_stage(4, partial(use_up_descriptors, left))])
    assert "Traceback" not in ended.err
    if ended.code != 0:
        assert ended.code == 2, ended.err
        assert "Too many open files" in ended.line
    again = recover(small, out)
    assert again == 0
    outcome = "one line, exit 2; goes on" if ended.code else "enough left, records equal"
    observe("descriptors exhausted (RLIMIT_NOFILE)", outcome, again=again)


def test_no_descriptors_left_is_no_reason_to_remove_an_artifact(small: World, tmp_path: Path, observe) -> None:
    out = tmp_path / "out"
    shutil.copytree(small.undisturbed, out)
    before = sorted(p.name for p in (out / "artifacts").iterdir())
    ended = run(
        small.spec, out, setup=[at_call("hydrometer.run.execution.execute:begin", partial(use_up_descriptors, 0))]
    )
    assert ended.code == 2, ended.err
    assert "Too many open files" in ended.line
    assert sorted(p.name for p in (out / "artifacts").iterdir()) == before
    observe("descriptors exhausted while checking artifacts", "one line, exit 2; nothing removed")


def shell(line: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"COMMAND": " ".join(COMMAND)}
    return subprocess.run(["bash", "-c", line], cwd=cwd, env=environment, capture_output=True, text=True, timeout=120)


def test_a_full_standard_output_is_one_line(tmp_path: Path, observe) -> None:
    ended = shell("$COMMAND recipes >/dev/full", tmp_path)
    assert ended.returncode == 2
    assert ended.stderr.startswith("hydrometer: standard output cannot be written: No space left on device")
    assert ended.stderr.count("\n") == 1
    observe("standard output on a full device", "one line, exit 2")


def test_a_reader_that_goes_away_is_no_traceback(small: World, tmp_path: Path, observe) -> None:
    ended = shell(f"$COMMAND run {small.spec} --out out | true; echo ${{PIPESTATUS[0]}}", tmp_path)
    assert ended.stdout == "141\n", ended.stderr
    assert "Traceback" not in ended.stderr
    assert [x[:11] for x in complaints(ended.stderr) if not x.startswith(("warning", "notes"))] == ["hydrometer:"]
    again = recover(small, tmp_path / "out")
    assert again == 0
    observe("reader of standard output gone", "one line, exit 141; goes on", again=again)


@pytest.mark.faults
@pytest.mark.parametrize("closed", [">&-", "2>&-"])
def test_closed_streams_do_not_end_up_in_artifacts(small: World, tmp_path: Path, observe, closed: str) -> None:
    ended = shell(f"$COMMAND run {small.spec} --out out {closed}", tmp_path)
    assert ended.returncode == 0, ended.stderr
    again = recover(small, tmp_path / "out")
    assert again == 0
    observe("standard output or error closed", "records equal", again=again)
