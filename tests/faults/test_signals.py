"""SIGINT and SIGTERM, once or twice, at any moment from the first import on."""

from __future__ import annotations

import contextlib
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import pytest

from faulty import World, at_call, at_stage, begin, catches, leftovers, recover, run, signal_self

LONG = pytest.mark.faults
CODES = {signal.SIGINT: 130, signal.SIGTERM: 143}
MOMENTS = {
    "plan": at_call("hydrometer.run.api:plan_run", partial(signal_self, signal.SIGINT)),
    "examination": at_call("hydrometer.run.api:diagnose", partial(signal_self, signal.SIGTERM)),
    "books": at_call("hydrometer.run.api:results_of", partial(signal_self, signal.SIGTERM)),
    "report": at_call("hydrometer.report.page:write_atomic", partial(signal_self, signal.SIGINT)),
}


def says_how_to_go_on(err: str, spec: Path, signals: int = 1) -> None:
    assert "Traceback" not in err
    assert f"go on with: hydrometer run {spec}" in err
    assert 1 <= sum(line.startswith("hydrometer: ") for line in err.splitlines()) <= signals


@pytest.mark.parametrize(("where", "times"), [("small", 2), pytest.param("world", 20, marks=LONG)])
def test_a_stopped_run_says_how_to_go_on_and_does(
    request: pytest.FixtureRequest, tmp_path: Path, observe, where: str, times: int
) -> None:
    world: World = request.getfixturevalue(where)
    dice, out = random.Random(f"signals {times}"), tmp_path / "out"
    for k in range(times):
        signum = (signal.SIGINT, signal.SIGTERM)[k % 2]
        for _ in range(8):
            started = begin(world.spec, out)
            while started.process.is_alive() and not started.listens():
                time.sleep(0.001)
            time.sleep(world.seconds * dice.random())
            twice = started.process.is_alive() and dice.random() < 0.3
            for nth in range(1 + twice):
                time.sleep(nth * 0.01 * dice.random())  # two that wait together are one to the kernel
                signal_it(started.process.pid, signum)
            ended = started.end()
            if ended.code != 0:
                break
            shutil.rmtree(out)
        assert ended.code == CODES[signum], ended.err
        says_how_to_go_on(ended.err, world.spec, 1 + twice)
        what = f"{signum.name} at a random moment" + (", twice" if twice else "")
        said = "one line, or one a signal" if twice else "one line"
        if k % 3 == 0:
            lost = len([x for x in leftovers(out) if x.startswith("artifacts/")]) if out.exists() else 0
            assert lost <= twice
            again = recover(world, out)
            assert again == 0
            observe(what, f"{said}; goes on", again=again, lost=lost)
        else:
            observe(what, said)
        shutil.rmtree(out, ignore_errors=True)


def signal_it(pid: int | None, signum: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid or 0, signum)


@pytest.mark.parametrize("when", ["plan", "books", *(pytest.param(w, marks=LONG) for w in ("examination", "report"))])
def test_a_signal_while_planning_or_reporting_is_one_line(small: World, tmp_path: Path, observe, when: str) -> None:
    out = tmp_path / "out"
    ended = run(small.spec, out, setup=[MOMENTS[when]], page=when == "report")
    assert ended.code in CODES.values(), ended.err
    says_how_to_go_on(ended.err, small.spec)
    assert not out.exists() or leftovers(out) == []
    again = recover(small, out)
    assert again == 0
    observe(f"signal during {when}", "one line; goes on", again=again)


@pytest.mark.parametrize(
    ("signum", "share"),
    [(signal.SIGINT, 0.1), *(pytest.param(s, x, marks=LONG) for s in CODES for x in (0.0, 0.1, 0.5, 0.9))],
)
def test_a_signal_during_the_imports_is_one_line(
    small: World, tmp_path: Path, observe, signum: signal.Signals, share: float
) -> None:
    argv = [sys.executable, "-m", "hydrometer.cli", "run", str(small.spec), "--out", str(tmp_path / "out")]
    process = subprocess.Popen(argv, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    while process.poll() is None and not catches(process.pid, signal.SIGTERM):
        time.sleep(0.001)
    time.sleep(share)
    process.send_signal(signum)
    _, err = process.communicate(timeout=120)
    assert process.returncode == CODES[signum], err
    says_how_to_go_on(err, small.spec)
    observe(f"{signum.name} while importing", "one line")


def test_a_library_keeps_its_callers_handlers() -> None:
    code = (
        "import signal; signal.signal(signal.SIGINT, signal.default_int_handler); "  # a background job may ignore it
        "import hydrometer; print(signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT))"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert out.startswith("0 ") or "SIG_DFL" in out
    assert "default_int_handler" in out


def test_an_interruption_in_a_destructor_is_not_lost(small: World, tmp_path: Path, observe) -> None:
    ended = run(small.spec, tmp_path / "out", setup=[at_stage(3, _interrupt_in_a_destructor)])
    assert ended.code == 130, ended.err
    says_how_to_go_on(ended.err, small.spec)
    observe("SIGINT inside a destructor, where Python drops it", "one line")


class _Dying:
    def __del__(self) -> None:
        signal_self(signal.SIGINT)
        time.sleep(0)


def _interrupt_in_a_destructor() -> None:
    _Dying()


@pytest.mark.smoke
def test_a_second_signal_ends_the_run_at_once(small: World, tmp_path: Path, observe) -> None:
    ended = run(small.spec, tmp_path / "out", setup=[at_stage("keep something", _stop_while_stopping)])
    assert ended.code == 143, ended.err  # of the second one
    says_how_to_go_on(ended.err, small.spec)
    lost = len(leftovers(tmp_path / "out"))
    assert lost == 1  # there was no time to take the stage away
    again = recover(small, tmp_path / "out")
    assert again == 0
    observe("SIGTERM while stopping for SIGINT", "one line; goes on", again=again, lost=lost)


def _stop_while_stopping() -> None:
    at_call("hydrometer.store.artifacts:_files_of", partial(signal_self, signal.SIGINT))()
    at_call("shutil:rmtree", partial(signal_self, signal.SIGTERM))()
