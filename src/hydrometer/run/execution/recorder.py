"""A run's progress.json, kept up to date while the run goes on."""

from __future__ import annotations

import threading
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack, suppress
from types import TracebackType
from typing import Literal, Self

from hydrometer.core.errors import HydrometerError, one_line
from hydrometer.core.findings import Finding
from hydrometer.core.statistics.estimate import Estimate
from hydrometer.core.watching import watched_by
from hydrometer.run.execution.progress import Pace
from hydrometer.run.graph.outcome import Monitor
from hydrometer.store.records import RunFolder
from hydrometer.store.run_status import RunStatus
from hydrometer.store.storage_uri import Url

__all__ = ["Recorder"]

_EVERY = 1.0  # seconds between two writings
_REMOTE = 15.0  # seconds, of an object store, where each is two requests
_BEAT = 15.0  # seconds after which nothing new is written too: it tells a long stage from a run that has died


class Recorder:
    """A monitor that tells the run's folder what it hears, and another monitor.

    A thread of its own writes, so that no stage waits; what cannot be written is left out, for the run itself will
    report that.
    """

    def __init__(self, folder: RunFolder, monitor: Monitor) -> None:
        self.folder, self.monitor = folder, monitor
        self._pace, self._began = Pace(), time.time()
        self._every = _REMOTE if isinstance(folder.place, Url) else _EVERY
        self._held, self._ended = ExitStack(), threading.Event()
        self._thread = threading.Thread(target=self._write, name="hydrometer-progress", daemon=True)

    def __enter__(self) -> Self:
        self._held.enter_context(watched_by(self._doing))
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, e: BaseException | None, tb: TracebackType | None) -> None:
        self._held.close()
        self._ended.set()
        self._thread.join()
        self._tell(self._status("done" if kind is None else "stopped"))

    def _write(self) -> None:
        said, due = "", 0.0
        while True:
            status = self._status("running")
            heard = status.model_dump_json(exclude={"written", "left"})
            if heard != said or time.monotonic() >= due:
                said, due = heard, time.monotonic() + _BEAT
                self._tell(status)
            if self._ended.wait(self._every):
                return

    def _tell(self, status: RunStatus) -> None:
        with suppress(HydrometerError):
            self.folder.tell(status)

    def _status(self, state: Literal["running", "done", "stopped"]) -> RunStatus:
        p = self._pace
        return RunStatus(
            state=state,
            stages=p.stages,
            done=p.count,
            failed=p.failed,
            share=1.0 if state == "done" else p.share,
            left=p.left if state == "running" else None,
            doing=one_line(p.words, 300),
            began=self._began,
            written=time.time(),
        )

    def _doing(self, what: str) -> None:
        self._pace.doing(what)

    def found(self, findings: Sequence[Finding]) -> None:
        """Pass on what the examination found."""
        self.monitor.found(findings)

    def begin(self, total: float, reused: float, stages: int) -> None:
        """Hear of the stages to be made."""
        self._pace.begin(total, reused, stages)
        self.monitor.begin(total, reused, stages)

    def stage(self, label: str, cost: float) -> None:
        """Hear that a stage begins."""
        self._pace.stage(label, cost)
        self.monitor.stage(label, cost)

    def tick(self, done: float, total: float, what: str) -> None:
        """Hear how far it is."""
        self._pace.tick(done, total, what)
        self.monitor.tick(done, total, what)

    def done(self, cost: float, failed: str | None) -> None:
        """Hear that it ended."""
        self._pace.done(cost, failed)
        self.monitor.done(cost, failed)

    def judged(self, name: str, figures: Mapping[str, Estimate]) -> None:
        """Pass on a model's first figures."""
        self.monitor.judged(name, figures)
