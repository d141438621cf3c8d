"""Progress for people: a bar with rate and time left at a terminal, plain lines elsewhere."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from types import TracebackType
from typing import Self

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn

from hydrometer.core.errors import one_line
from hydrometer.core.findings import Finding
from hydrometer.core.statistics.estimate import Estimate
from hydrometer.core.watching import watched_by
from hydrometer.run.execution.waiting import Waiting, clock

__all__ = ["ConsoleMonitor", "console"]

_EVERY = 10.0  # seconds between plain lines
_WIDE = 10_000


def console(*, stderr: bool = False) -> Console:
    """Return a console whose lines are as long as they are where no terminal, and no COLUMNS, says how wide it is."""
    stream = sys.stderr if stderr else sys.stdout  # bound now: what silences a library must not silence us
    found = Console(file=stream)
    return found if found.is_terminal or os.environ.get("COLUMNS") else Console(file=stream, width=_WIDE)


class ConsoleMonitor:
    """Shows a command's progress, on standard error unless another console is given.

    While it is entered it shows what is being done (`core.watching`), from `begin` on a run's stages. Time left comes
    from the cost of what is left at the rate so far.
    """

    def __init__(self, told: Console | None = None) -> None:
        self.console = console(stderr=True) if told is None else told
        self.live = self.console.is_terminal
        self._waiting, self._watch = Waiting(self.console), ExitStack()
        self._bar: Progress | None = None
        self._task: TaskID | None = None
        self._total = self._reused = self._done = self._current = self._within = 0.0
        self._began = self._stage_began = self._said = time.monotonic()
        self._label, self._detail, self._count, self._stages = "", "", 0, 0

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
        if self._count < self._stages:
            self._detail = f" ({what})"
            self._show(self._within)
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
        self._total, self._reused, self._stages = total, reused, stages
        self._done, self._current, self._count = 0.0, 0.0, 0
        self._began = self._said = time.monotonic()
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
            self._task = self._bar.add_task("", total=max(total - reused, 1e-9), left="")
            self._bar.start()

    def stage(self, label: str, cost: float) -> None:
        """Name the stage."""
        self._label, self._current, self._detail = label, cost, ""
        self._stage_began = time.monotonic()
        self._show(0.0)

    def tick(self, done: float, total: float, what: str) -> None:
        """Move within the stage."""
        seconds = time.monotonic() - self._stage_began
        rate = f", {done / seconds:.3g}/s" if seconds > 1 else ""
        self._detail = f" ({done:.0f}/{total:.0f} {what}{rate})"
        self._show(self._current * min(done / total, 1.0) if total else 0.0)

    def done(self, cost: float, failed: str | None) -> None:
        """End the stage."""
        self._done += cost
        self._count += 1
        self._current, self._detail = 0.0, ""
        if failed is not None:
            self.console.print(f"[red]failed[/red] {escape(self._label)}: {escape(failed)}")
        self._show(0.0, last=self._count == self._stages)

    def judged(self, name: str, figures: Mapping[str, Estimate]) -> None:
        """Print a model's first figures, a line above the bar."""
        shown = [f"{metric} {figures[metric]}" for metric in ("precision", "recall") if metric in figures]
        self.console.print(f"judged   {name}: {', '.join(shown)}", markup=False, highlight=False, soft_wrap=True)

    def _left(self, done: float) -> str:
        spent = time.monotonic() - self._began
        share = done / max(self._total - self._reused, 1e-9)
        return f"{clock(spent * (1 - share) / share)} left" if share > 0.02 and spent > 2 else ""

    def _show(self, within: float, *, last: bool = False) -> None:
        self._within = within
        done = self._done + within
        if self._bar is not None and self._task is not None:
            self._bar.update(
                self._task, completed=done, description=escape(self._label + self._detail), left=self._left(done)
            )
            return
        now = time.monotonic()
        if last or now - self._said >= _EVERY:
            self._said = now
            share = done / max(self._total - self._reused, 1e-9)
            line = f"[{clock(now - self._began)}] {share:4.0%} {self._left(done)}  {self._label}{self._detail}"
            self.console.print(escape(line), highlight=False, soft_wrap=True)
