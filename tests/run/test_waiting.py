"""What a command says of itself before, between and after its stages, and where it says it."""

from __future__ import annotations

import contextlib
import io
import os
import subprocess
import sys
import threading
import time

import pytest
from rich.console import Console

from hydrometer.core.watching import doing, during
from hydrometer.run.execution import progress
from hydrometer.run.execution.progress import ConsoleMonitor


class Stream(io.StringIO):
    """A stream that can be waited on for what is written to it."""

    def __init__(self) -> None:
        super().__init__()
        self.written = threading.Condition()

    def write(self, text: str) -> int:
        with self.written:
            n = super().write(text)
            self.written.notify_all()
            return n

    def holds(self, text: str) -> bool:
        with self.written:
            return self.written.wait_for(lambda: text in self.getvalue(), 30)


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(progress, "_PATIENCE", 0.0)


@pytest.mark.usefixtures("impatient")
def test_a_pipe_hears_in_lines_of_its_own_what_lasts() -> None:
    stream = Stream()
    with ConsoleMonitor(Console(file=stream)):
        assert stream.holds("] starting\n")
        doing("opening" + 30 * " a long name")
        assert stream.holds("] opening" + 30 * " a long name" + "\n")


def test_what_is_done_in_a_moment_is_not_said() -> None:
    stream = Stream()
    with ConsoleMonitor(Console(file=stream)):
        doing("opening the truth")
    assert stream.getvalue() == ""


@pytest.mark.usefixtures("impatient")
def test_what_silences_a_library_does_not_silence_the_command(monkeypatch: pytest.MonkeyPatch) -> None:
    stream = Stream()
    monkeypatch.setattr(sys, "stderr", stream)
    with ConsoleMonitor(), contextlib.redirect_stderr(io.StringIO()):
        doing("de-quantising")
        assert stream.holds("] de-quantising\n")


@pytest.mark.usefixtures("impatient")
def test_what_comes_again_is_not_said_again() -> None:
    stream = Stream()
    with ConsoleMonitor(Console(file=stream)):
        doing("drawing a few rows")
        assert stream.holds("] drawing a few rows\n")
        for _ in range(3):  # kernel by kernel
            with during("compiling"):
                assert stream.holds("] compiling\n")
                time.sleep(0.3)
            time.sleep(0.3)
    assert (stream.getvalue().count("drawing a few rows"), stream.getvalue().count("compiling")) == (1, 1)


def test_a_terminal_has_a_bar_that_names_it_and_is_gone_at_the_end() -> None:
    stream = Stream()
    with ConsoleMonitor(Console(file=stream, force_terminal=True, width=100)):
        doing("opening the truth [red]")
        assert stream.holds("opening the truth [red]")
        assert "━" in stream.getvalue()
    assert stream.getvalue().endswith("\x1b[2K")


@pytest.mark.usefixtures("impatient")
def test_of_a_stage_it_is_a_detail(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(progress, "_EVERY", 0.0)
    stream = Stream()
    with ConsoleMonitor(Console(file=stream, width=100)) as monitor:
        monitor.begin(2.0, 0.0, 2)
        monitor.stage("draw", 1.0)
        doing("opening the truth")
        assert "draw (opening the truth)" in stream.getvalue()
        monitor.tick(1, 2, "rows")
        with during("compiling"):
            assert "draw (compiling)" in stream.getvalue()
        assert stream.getvalue().rstrip().endswith("draw (opening the truth)")
        monitor.done(1.0, None)
        monitor.stage("fit", 1.0)
        assert "fit (" not in stream.getvalue()
        monitor.done(1.0, None)
        doing("drawing the report")
        assert stream.holds("] drawing the report\n")


def test_nobody_listens_after_the_end() -> None:
    stream = Stream()
    with ConsoleMonitor(Console(file=stream, force_terminal=True)):
        pass
    before = stream.getvalue()
    doing("opening the truth")
    assert stream.getvalue() == before


def test_piped_output_is_as_wide_as_its_lines() -> None:
    environment = {k: v for k, v in os.environ.items() if k != "COLUMNS"}
    argv = [sys.executable, "-m", "hydrometer.cli", "recipes"]
    done = subprocess.run(argv, capture_output=True, text=True, check=True, env=environment)
    plain = subprocess.run([*argv, "--json"], capture_output=True, text=True, check=True).stdout
    assert len(done.stdout.splitlines()) == 1 + plain.count('": "')
    assert max(map(len, done.stdout.splitlines())) > 100
    narrow = subprocess.run(argv, capture_output=True, text=True, check=True, env=environment | {"COLUMNS": "60"})
    assert max(map(len, narrow.stdout.splitlines())) <= 60
