"""What is being done while there is no stage to show: a moving bar at a terminal, plain lines elsewhere."""

from __future__ import annotations

import threading
import time

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

from hydrometer.core.errors import one_line
from hydrometer.core.watching import clock

__all__ = ["Waiting"]

_PATIENCE = 1.0  # seconds: what is done by then is not worth a line
_AGAIN = 10.0


class Waiting:
    """Shows one thing at a time, until `stop`; `say` starts it again."""

    def __init__(self, console: Console) -> None:
        self.console = console
        self._began = time.monotonic()
        self._what, self._told, self._due = "", "", 0.0
        self._bar: Progress | None = None
        self._thread: threading.Thread | None = None
        self._ended = threading.Event()

    def say(self, what: str) -> None:
        """Show what is being done from now on."""
        self._what = one_line(what)
        if self._what != self._told:  # however often it changes: a line comes when a second is over
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
            self._told, self._due = "", time.monotonic() + _PATIENCE
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
                self._due, self._told = now + _AGAIN, self._what
                line = f"[{clock(now - self._began)}] {self._told}"
                self.console.print(line, markup=False, highlight=False, soft_wrap=True)
