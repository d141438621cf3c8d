"""Figures by step, written for TensorBoard, trackio and Weights & Biases by their own writers.

What is reported changes no figure, and is part of no key. Nothing leaves this machine unless the environment says so.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal

from hydrometer.core.errors import FolderError, InputError, MissingDependencyError, one_line
from hydrometer.core.watching import Log, logged_by

__all__ = ["Dashboard", "Dashboards", "check_dashboards"]

Dashboard = Literal["tensorboard", "trackio", "wandb"]

_FLUSH = 5  # seconds
_PATIENCE = 60.0  # seconds for what was sent to be stored


def check_dashboards(names: Sequence[Dashboard]) -> None:
    """Refuse those whose package is not installed. Raises MissingDependencyError."""
    for name in names:
        if find_spec(name) is None:
            fix = f"pip install 'hydrometer[{name}]', or leave it out"
            raise MissingDependencyError("report_to names a package that is not installed", got=name, fix=fix)


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
            for write, _ in writers:
                write(step, figures)

        try:
            yield log
        finally:
            for _, close in writers:
                close()

    @contextmanager
    def hearing(self, key: str) -> Generator[None]:
        """Report what the stage of that key logs in the body (`core.watching.log`)."""
        with self.opened(self.fits.get(key, key[:8])) as log, logged_by(log):
            yield


_Writer = tuple[Log, Callable[[], None]]
"""Takes figures; stores what is left."""


def _tensorboard(folder: Path, project: str, part: str, step: int) -> _Writer:
    """Open an event file, as torch's SummaryWriter does, without torch."""
    events, summaries = (import_module(f"tensorboard.compat.proto.{m}_pb2") for m in ("event", "summary"))
    writer = import_module("tensorboard.summary.writer.event_file_writer").EventFileWriter
    file: Any = writer(str(folder / "tensorboard" / part), flush_secs=_FLUSH)
    # What an earlier process logged from this step on is not shown: that work is done again.
    start = events.SessionLog(status=events.SessionLog.START)
    file.add_event(events.Event(wall_time=time.time(), step=step, session_log=start))

    def log(step: int, figures: Mapping[str, float]) -> None:
        values = [summaries.Summary.Value(tag=name, simple_value=value) for name, value in figures.items()]
        file.add_event(events.Event(wall_time=time.time(), step=step, summary=summaries.Summary(value=values)))

    return log, file.close


def _wandb(folder: Path, project: str, part: str, step: int) -> _Writer:
    """Open a run of Weights & Biases, offline unless WANDB_MODE says otherwise."""
    mode = os.environ.get("WANDB_MODE", "offline")
    if mode == "offline":
        os.environ.setdefault("WANDB_ERROR_REPORTING", "false")
    folder.mkdir(parents=True, exist_ok=True)
    wandb = import_module("wandb")
    options = {"project": project, "group": folder.parent.name, "name": part, "dir": str(folder), "mode": mode}
    try:
        run: Any = wandb.init(**options, reinit="create_new", settings=wandb.Settings(silent=True, console="off"))
    except wandb.Error as e:
        fix = "mend that, or unset WANDB_MODE to stay offline"
        raise InputError(f"Weights & Biases cannot be reached: {e}", fix=fix) from None
    return lambda step, figures: run.log(dict(figures), step=step), run.finish


def _trackio(folder: Path, project: str, part: str, step: int) -> _Writer:
    """Open a run of trackio in a process of its own: it takes its folder at import, prints, and asks who is logged in.

    Raises FolderError where it does not store all.
    """
    store = folder / "trackio"
    store.mkdir(parents=True, exist_ok=True)
    environment = {"TRACKIO_DIR": str(store)} | os.environ
    environment["PYTHONPATH"] = os.pathsep.join(p or os.getcwd() for p in sys.path)
    if not environment.keys() & {"TRACKIO_SPACE_ID", "TRACKIO_SERVER_URL"}:
        environment["HF_HUB_OFFLINE"] = "1"
    argv = [sys.executable, "-P", "-m", __name__, project, part, folder.parent.name]
    noted = store / "trackio.log"
    with noted.open("ab") as out:  # a session of its own: Ctrl-C ends it by the end of its input
        process = subprocess.Popen(
            argv, env=environment, stdin=subprocess.PIPE, stdout=out, stderr=out, text=True, start_new_session=True
        )

    def log(step: int, figures: Mapping[str, float]) -> None:
        assert process.stdin is not None
        try:
            process.stdin.write(json.dumps([step, dict(figures)]) + "\n")
            process.stdin.flush()
        except BrokenPipeError:
            close()

    def close() -> None:
        try:
            process.communicate(timeout=_PATIENCE)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        if process.returncode:
            last = "".join(noted.read_text("utf-8", "replace").strip().splitlines()[-1:])
            raise FolderError(f"trackio did not store all: {one_line(last, 300)}", fix=f"see {noted}")

    return log, close


_WRITERS: Mapping[Dashboard, Callable[[Path, str, str, int], _Writer]] = {
    "tensorboard": _tensorboard,
    "trackio": _trackio,
    "wandb": _wandb,
}


def _serve_trackio(project: str, part: str, group: str) -> None:
    """Pass on what arrives at standard input, until it ends."""
    found: Any = import_module("trackio").init(project=project, name=part, group=group, embed=False)
    for line in sys.stdin:
        step, figures = json.loads(line)
        found.log(figures, step=step)
    found.finish()


if __name__ == "__main__":
    _serve_trackio(*sys.argv[1:])
