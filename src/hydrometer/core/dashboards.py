"""Figures by step, written for TensorBoard, trackio and Weights & Biases by their own writers.

What is reported changes no figure, and is part of no key. Nothing leaves this machine unless the environment says so.
"""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, Protocol

from hydrometer.core.errors import FolderError, InputError, MissingDependencyError, one_line
from hydrometer.core.watching import Log, logged_by

__all__ = ["Dashboard", "Dashboards", "check_dashboards"]

Dashboard = Literal["tensorboard", "trackio", "wandb"]

_FLUSH = 5  # seconds
_PATIENCE = 60.0  # seconds for what was sent to be stored


def check_dashboards(names: Sequence[Dashboard]) -> None:
    """Refuse those whose package is not installed. Raises MissingDependencyError."""
    for name in names:
        if importlib.util.find_spec(name) is None:
            fix = f"pip install 'hydrometer[{name}]', or leave it out"
            raise MissingDependencyError("report_to names a package that is not installed", got=name, fix=fix)


class _Writer(Protocol):
    def log(self, step: int, figures: Mapping[str, float]) -> None: ...

    def close(self) -> None: ...


@dataclass(frozen=True, slots=True)
class Dashboards:
    """Where a run reports.

    Attributes
    ----------
    names : of the libraries; none for no report.
    folder : of what they write, which is made when there are figures.
    project : name of the run among others.
    fits : what a fit is called, by its key.
    """

    names: tuple[Dashboard, ...] = ()
    folder: Path = Path()
    project: str = ""
    fits: Mapping[str, str] = field(default_factory=dict[str, str])

    @contextmanager
    def opened(self, part: str) -> Generator[Log]:
        """Yield what takes the figures of one part of the run. Nothing is opened before the first."""
        writers: list[_Writer] = []

        def log(step: int, figures: Mapping[str, float]) -> None:
            if not writers:
                writers.extend(_WRITERS[name](self.folder, self.project, part, step) for name in self.names)
            for writer in writers:
                writer.log(step, figures)

        try:
            yield log
        finally:
            for writer in writers:
                writer.close()

    @contextmanager
    def hearing(self, key: str) -> Generator[None]:
        """Report what the stage of that key logs in the body (`core.watching.log`)."""
        with self.opened(self.fits.get(key, key[:8])) as log, logged_by(log):
            yield


class _TensorBoard:
    """Event files, as those of torch's SummaryWriter, without torch."""

    def __init__(self, folder: Path, project: str, part: str, step: int) -> None:
        from tensorboard.compat.proto import event_pb2, summary_pb2
        from tensorboard.summary.writer.event_file_writer import EventFileWriter

        self._event: Any = event_pb2.Event
        self._summary: Any = summary_pb2.Summary
        self._file: Any = EventFileWriter(str(folder / "tensorboard" / part), flush_secs=_FLUSH)
        # What an earlier process logged from this step on is not shown: that work is done again.
        start = event_pb2.SessionLog(status=event_pb2.SessionLog.START)
        self._file.add_event(event_pb2.Event(wall_time=time.time(), step=step, session_log=start))

    def log(self, step: int, figures: Mapping[str, float]) -> None:
        values = [self._summary.Value(tag=name, simple_value=value) for name, value in figures.items()]
        self._file.add_event(self._event(wall_time=time.time(), step=step, summary=self._summary(value=values)))

    def close(self) -> None:
        self._file.close()


class _WandB:
    """A run of Weights & Biases, offline unless WANDB_MODE says otherwise."""

    def __init__(self, folder: Path, project: str, part: str, step: int) -> None:
        mode: Any = os.environ.get("WANDB_MODE", "offline")
        if mode == "offline":
            os.environ.setdefault("WANDB_ERROR_REPORTING", "false")
        folder.mkdir(parents=True, exist_ok=True)
        import wandb

        try:
            self._run: Any = wandb.init(
                project=project,
                group=folder.parent.name,
                name=part,
                dir=str(folder),
                mode=mode,
                reinit="create_new",
                settings=wandb.Settings(silent=True, console="off"),
            )
        except wandb.Error as e:
            fix = "mend that, or unset WANDB_MODE to stay offline"
            raise InputError(f"Weights & Biases cannot be reached: {e}", fix=fix) from None

    def log(self, step: int, figures: Mapping[str, float]) -> None:
        self._run.log(dict(figures), step=step)

    def close(self) -> None:
        self._run.finish()


class _Trackio:
    """A run of trackio, in a process of its own: it reads its settings at import, prints, and asks who is logged in."""

    def __init__(self, folder: Path, project: str, part: str, step: int) -> None:
        store = folder / "trackio"
        store.mkdir(parents=True, exist_ok=True)
        environment = {"TRACKIO_DIR": str(store.absolute())} | os.environ
        environment["PYTHONPATH"] = os.pathsep.join(p or os.getcwd() for p in sys.path)
        if not environment.keys() & {"TRACKIO_SPACE_ID", "TRACKIO_SERVER_URL"}:
            environment["HF_HUB_OFFLINE"] = "1"
        argv = [sys.executable, "-P", "-m", __name__, project, part, folder.parent.name]
        self._log = store / "trackio.log"
        with self._log.open("ab") as out:
            self._process = subprocess.Popen(  # in a session of its own, so that Ctrl-C ends it by its input's end
                argv, env=environment, stdin=subprocess.PIPE, stdout=out, stderr=out, text=True, start_new_session=True
            )

    def log(self, step: int, figures: Mapping[str, float]) -> None:
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(json.dumps([step, dict(figures)]) + "\n")
            self._process.stdin.flush()
        except BrokenPipeError:
            self.close()

    def close(self) -> None:
        """Wait until all is stored. Raises FolderError where it is not."""
        try:
            self._process.communicate(timeout=_PATIENCE)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        if self._process.returncode:
            last = "".join(self._log.read_text("utf-8", "replace").strip().splitlines()[-1:])
            raise FolderError(f"trackio did not store all: {one_line(last, 300)}", fix=f"see {self._log}")


_WRITERS: Mapping[Dashboard, Callable[[Path, str, str, int], _Writer]] = {
    "tensorboard": _TensorBoard,
    "trackio": _Trackio,
    "wandb": _WandB,
}


def _serve_trackio(project: str, part: str, group: str) -> None:
    """Pass on what arrives at standard input, until it ends."""
    import trackio

    found: Any = trackio.init(project=project, name=part, group=group, embed=False)
    for line in sys.stdin:
        step, figures = json.loads(line)
        found.log(figures, step=step)
    found.finish()


if __name__ == "__main__":
    _serve_trackio(*sys.argv[1:])
