"""Progress for people: a bar with rate and time left at a terminal, plain lines elsewhere."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from types import TracebackType
from typing import Self

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn

from hydrometer.core.errors import one_line
from hydrometer.core.estimate import Estimate
from hydrometer.core.findings import Finding

__all__ = ["ConsoleMonitor"]

_EVERY = 10.0  # seconds between plain lines


def clock(seconds: float) -> str:
    """Minutes and seconds."""
    whole = max(int(seconds), 0)
    hours, rest = divmod(whole, 3600)
    return f"{hours}:{rest // 60:02d}:{rest % 60:02d}" if hours else f"{rest // 60}:{rest % 60:02d}"


class ConsoleMonitor:
    """Shows a run's progress. Time left comes from the cost of what is left at the rate so far."""

    def __init__(self, console: Console) -> None:
        self.console = console
        self.live = console.is_terminal
        self._bar: Progress | None = None
        self._task: TaskID | None = None
        self._total = self._reused = self._done = self._current = 0.0
        self._began = self._stage_began = self._said = time.monotonic()
        self._label, self._detail, self._count, self._stages = "", "", 0, 0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, e: BaseException | None, tb: TracebackType | None) -> None:
        if self._bar is not None:
            self._bar.stop()

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
        if self._bar is not None:
            self._bar.stop()
            self._bar = None
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
