"""Two runs at once: on one folder, and on one cache."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import time
from functools import partial
from pathlib import Path

from faulty import World, artifacts, at_call, at_stage, begin, books, run, same, signal_self


def _stopped(pid: int) -> bool:
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "T"


def test_the_second_run_on_a_folder_is_told_who_holds_it(small: World, tmp_path: Path, observe) -> None:
    out = tmp_path / "out"
    first = begin(small.spec, out, setup=[at_stage(5, partial(signal_self, signal.SIGSTOP))])
    pid = first.process.pid or 0
    deadline = time.monotonic() + 120
    while not _stopped(pid) and time.monotonic() < deadline:
        time.sleep(0.02)
    second = run(small.spec, out)
    os.kill(pid, signal.SIGCONT)
    assert second.code == 2
    assert f"process {pid} on {socket.gethostname()}" in second.line
    assert "Traceback" not in second.err
    ended = first.end()
    assert ended.code == 0, ended.err
    same(out, small.undisturbed)
    observe("two runs on one folder at once", "the second refused in one line, the first undisturbed")


def test_two_runs_that_share_a_cache_are_both_right(small: World, tmp_path: Path, observe) -> None:
    cache, outs = tmp_path / "cache", [tmp_path / "a", tmp_path / "b"]
    # Both wait for each other once they know what is missing, so that they make the same artifacts at the same time.
    runs = [begin(small.spec, out, "--cache", str(cache), setup=[at_stage(0, partial(_meet, tmp_path, out.name))])
            for out in outs]  # fmt: skip
    ended = [r.end() for r in runs]
    assert [e.code for e in ended] == [0, 0], ended
    assert all(e.computed == artifacts(small.undisturbed) for e in ended)  # each made all, beside the other
    expected = books(small.undisturbed)
    for out in outs:
        assert books(out) == expected
    assert not list(cache.glob(".*"))
    observe("two runs on one cache at once", "both right")


def _meet(where: Path, name: str) -> None:
    (where / f"here-{name}").touch()
    deadline = time.monotonic() + 120
    while len(list(where.glob("here-*"))) < 2 and time.monotonic() < deadline:
        time.sleep(0.005)


def test_what_a_killed_run_left_in_a_shared_cache_is_swept(small: World, tmp_path: Path, observe) -> None:
    cache, out = tmp_path / "cache", tmp_path / "out"
    die = at_call("hydrometer.store.artifacts:_files_of", partial(signal_self, signal.SIGKILL))
    assert run(small.spec, out, "--cache", str(cache), setup=[die]).code == -signal.SIGKILL
    assert len(list(cache.glob(".tmp-*"))) == 1
    others = cache / ".tmp-draw-k-1@00000000"  # of another machine, which may be alive
    others.mkdir()
    ended = run(small.spec, out, "--cache", str(cache))
    assert ended.code == 0, ended.err
    assert list(cache.glob(".tmp-*")) == [others]
    assert books(out) == books(small.undisturbed)
    shutil.rmtree(cache)
    observe("SIGKILL of a run on a shared cache", "swept by the next run, records equal", lost=1)
