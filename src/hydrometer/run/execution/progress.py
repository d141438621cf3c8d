"""Progress for people: a bar with rate and time left at a terminal, plain lines elsewhere."""

from __future__ import annotations

import os
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from types import TracebackType
from typing import Self

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn

from hydrometer.core.errors import one_line
from hydrometer.core.findings import Finding
from hydrometer.core.statistics.estimate import FEW_ROWS, Estimate
from hydrometer.core.watching import clock, watched_by

__all__ = ["ConsoleMonitor", "Pace", "Waiting", "console"]

_PATIENCE = 1.0  # seconds: what is done by then is not worth a line
_AGAIN = 10.0


class Waiting:
    """Shows one thing at a time, until `stop`; `say` starts it again."""

    def __init__(self, console: Console) -> None:
        self.console = console
        self._began = time.monotonic()
        self._what, self._due = "", 0.0
        self._told = set[str]()
        self._bar: Progress | None = None
        self._thread: threading.Thread | None = None
        self._ended = threading.Event()

    def say(self, what: str) -> None:
        """Show what is being done from now on."""
        self._what = one_line(what)
        if self._what not in self._told:  # however often it changes: a line comes when a second is over
            self._due = min(self._due, time.monotonic() + _PATIENCE)
        if self.console.is_terminal:
            if self._bar is None:
                self._bar = Progress(
                    TextColumn("{task.description}"),
                    BarColumn(),
                    TimeElapsedColumn(),
                    console=self.console,
                    transient=True,
                )
                self._bar.add_task(escape(self._what), total=None)
                self._bar.start()
            self._bar.update(self._bar.task_ids[0], description=escape(self._what))
        elif self._thread is None:
            self._due = time.monotonic() + _PATIENCE
            self._ended.clear()
            self._thread = threading.Thread(target=self._tell, daemon=True, name="waiting")
            self._thread.start()

    def stop(self) -> None:
        """Show nothing any more."""
        if self._bar is not None:
            self._bar.stop()
            self._bar = None
        if self._thread is not None:
            self._ended.set()
            self._thread.join()
            self._thread = None

    def _tell(self) -> None:
        """Print a line for what takes more than a moment, and again while it lasts."""
        while not self._ended.wait(0.1):
            now = time.monotonic()
            if now >= self._due:
                self._due = now + _AGAIN
                self._told.add(self._what)
                line = f"[{clock(now - self._began)}] {self._what}"
                self.console.print(line, markup=False, highlight=False, soft_wrap=True)


_EVERY = 10.0  # seconds between plain lines
_WIDE = 10_000
_FEW = "†"


def console(*, stderr: bool = False) -> Console:
    """Return a console whose lines are as long as they are where no terminal, and no COLUMNS, says how wide it is."""
    stream = sys.stderr if stderr else sys.stdout  # bound now: what silences a library must not silence us
    found = Console(file=stream)
    return found if found.is_terminal or os.environ.get("COLUMNS") else Console(file=stream, width=_WIDE)


class Pace:
    """How far a run is, by the cost of its stages, and how fast it goes; hears what a `Monitor` hears.

    Attributes
    ----------
    stages, count, failed : stages to be made; of these ended; of these failed.
    """

    def __init__(self) -> None:
        self.begin(0.0, 0.0, 0)

    def begin(self, total: float, reused: float, stages: int) -> None:
        """Begin a work, anew where one follows another."""
        self.cost, self.stages, self.count, self.failed = max(total - reused, 1e-9), stages, 0, 0
        self.ended = self._current = self._within = 0.0
        self.began = self._stage_began = time.monotonic()
        self.label, self._detail = "", ""

    def stage(self, label: str, cost: float) -> None:
        """Begin a stage."""
        self.label, self._current, self._within, self._detail = label, cost, 0.0, ""
        self._stage_began = time.monotonic()

    def doing(self, what: str) -> bool:
        """Hear what is being done; return whether it is of a stage."""
        in_stage = self.count < self.stages
        self._detail = f" ({what})" if in_stage else what
        return in_stage

    def tick(self, done: float, total: float, what: str) -> None:
        """Move within the stage."""
        seconds = time.monotonic() - self._stage_began
        rate = f", {done / seconds:.3g}/s" if seconds > 1 else ""
        self._detail = f" ({done:.0f}/{total:.0f} {what}{rate})"
        self._within = self._current * min(done / total, 1.0) if total else 0.0

    def done(self, cost: float, failed: str | None) -> None:
        """End the stage."""
        self.ended += cost
        self.count += 1
        self.failed += failed is not None
        self._current, self._within, self._detail = 0.0, 0.0, ""

    @property
    def within(self) -> float:
        """Cost of what is done, of stages under way too."""
        return self.ended + self._within

    @property
    def share(self) -> float:
        """Done of all cost, from 0 to 1."""
        return min(self.within / self.cost, 1.0)

    @property
    def words(self) -> str:
        """The stage, and what of it is being done."""
        return (self.label if self.count < self.stages or not self._detail else "") + self._detail

    @property
    def left(self) -> float | None:
        """Seconds to go at the rate so far; None while there is too little to tell."""
        spent, share = time.monotonic() - self.began, self.share
        return spent * (1 - share) / share if share > 0.02 and spent > 2 else None


class ConsoleMonitor:
    """Shows a command's progress, on standard error unless another console is given.

    While it is entered it shows what is being done (`core.watching`), from `begin` on a run's stages. Time left comes
    from the cost of what is left at the rate so far.
    """

    def __init__(self, told: Console | None = None) -> None:
        self.console = console(stderr=True) if told is None else told
        self.live = self.console.is_terminal
        self._cautioned = False
        self._waiting, self._watch = Waiting(self.console), ExitStack()
        self._bar: Progress | None = None
        self._task: TaskID | None = None
        self._pace, self._said = Pace(), time.monotonic()

    def __enter__(self) -> Self:
        self._watch.enter_context(watched_by(self._doing))
        self._doing("starting")
        return self

    def __exit__(self, kind: type[BaseException] | None, e: BaseException | None, tb: TracebackType | None) -> None:
        self._watch.close()
        self._waiting.stop()
        self._end_bar()

    def _end_bar(self) -> None:
        if self._bar is not None:
            self._bar.stop()
            self._bar = None

    def _doing(self, what: str) -> None:
        """Show what is being done: of the stage, where there is one."""
        if self._pace.doing(what):
            self._show()
        else:
            self._end_bar()
            self._waiting.say(what)

    def found(self, findings: Sequence[Finding]) -> None:
        """Print warnings, a line each; notes are counted."""
        for f in findings:
            if f.severity == "warning":
                where = f"{f.chain}: " if f.chain else ""
                line = f"warning {f.code}: {where}{f.what}: {f.why}; {f.fix}"
                self.console.print(one_line(line), markup=False, highlight=False, soft_wrap=True)
        if notes := sum(f.severity == "note" for f in findings):
            self.console.print(f"notes: {notes}, listed by `hydrometer doctor`", markup=False, highlight=False)

    def begin(self, total: float, reused: float, stages: int) -> None:
        """Start the bar, anew where one work follows another."""
        self._waiting.stop()
        self._end_bar()
        self._pace.begin(total, reused, stages)
        self._said = time.monotonic()
        if reused:
            self.console.print(f"going on: {stages} stages left, the rest is there already")
        if self.live and stages:
            self._bar = Progress(
                TextColumn("{task.description}"),
                BarColumn(bar_width=None),
                TextColumn("{task.percentage:>3.0f}%"),
                TimeElapsedColumn(),
                TextColumn("{task.fields[left]}"),
                console=self.console,
                expand=True,
            )
            self._task = self._bar.add_task("", total=self._pace.cost, left="")
            self._bar.start()

    def stage(self, label: str, cost: float) -> None:
        """Name the stage."""
        self._pace.stage(label, cost)
        self._show()

    def tick(self, done: float, total: float, what: str) -> None:
        """Move within the stage."""
        self._pace.tick(done, total, what)
        self._show()

    def done(self, cost: float, failed: str | None) -> None:
        """End the stage."""
        self._pace.done(cost, failed)
        if failed is not None:
            self.console.print(f"[red]failed[/red] {escape(self._pace.label)}: {escape(failed)}")
        self._show(last=self._pace.count == self._pace.stages)

    def judged(self, name: str, figures: Mapping[str, Estimate]) -> None:
        """Print a model's first figures, a line above the bar; what the mark of a caution means is said once."""
        kinds = {"precision": "precision", "precision_reference": "precision under the reference", "recall": "recall"}
        found = {said: figures[metric] for metric, said in kinds.items() if metric in figures}
        shown = [f"{said} {replace(e, caution=None)}{_FEW if e.caution else ''}" for said, e in found.items()]
        self.console.print(f"judged   {name}: {', '.join(shown)}", markup=False, highlight=False, soft_wrap=True)
        if not self._cautioned and any(e.caution for e in found.values()):
            self._cautioned = True
            self.console.print(f"judged   {_FEW}: {FEW_ROWS}", markup=False, highlight=False, soft_wrap=True)

    def _show(self, *, last: bool = False) -> None:
        pace = self._pace
        left = "" if pace.left is None else f"{clock(pace.left)} left"
        if self._bar is not None and self._task is not None:
            self._bar.update(self._task, completed=pace.within, description=escape(pace.words), left=left)
            return
        now = time.monotonic()
        if last or now - self._said >= _EVERY:
            self._said = now
            line = f"[{clock(now - pace.began)}] {pace.share:4.0%} {left}  {pace.words}"
            self.console.print(escape(line), highlight=False, soft_wrap=True)
