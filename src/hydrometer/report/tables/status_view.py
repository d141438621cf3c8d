"""What `watch` shows of a run: how far it is, and its models so far."""

from __future__ import annotations

import time
from typing import Any

from rich.console import Group as Renderables
from rich.console import RenderableType
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from hydrometer.core.errors import one_line
from hydrometer.core.watching import clock
from hydrometer.report.read_results import parse
from hydrometer.report.tables.model_tables import missing_sentence, short_tables
from hydrometer.store.run_status import RunStatus

__all__ = ["status_view"]


def status_view(status: RunStatus | None, results: dict[str, Any], now: float) -> RenderableType:
    """Build what a terminal shows of a run.

    Parameters
    ----------
    status : what the run says of itself; None of one of an earlier release, which says nothing.
    results : the object that results.json holds; empty where there is none yet.
    now : seconds since 1970.
    """
    parts: list[RenderableType] = [] if status is None else _head(status, now)
    if results:
        parts += short_tables(parse(results))
        if missing := missing_sentence(results):
            parts.append(Text(one_line(missing, 300), style="dim"))
    return Renderables(*parts)


def _head(s: RunStatus, now: float) -> list[RenderableType]:
    bar = Table.grid(padding=(0, 1), expand=True)
    bar.add_column(ratio=1)
    bar.add_column(no_wrap=True)
    bar.add_row(ProgressBar(total=1.0, completed=s.share), f"{s.share:4.0%}")
    spent, at = clock(s.written - s.began), time.strftime("%H:%M:%S", time.localtime(s.written))
    if s.is_silent(now):
        said = f"nothing has moved since {at}, {clock(now - s.written)} ago: the run has died; run it again to go on"
    elif s.state == "running":
        said = f"running for {spent}" + ("" if s.left is None else f", {clock(s.left)} left")
    else:
        said = f"done in {spent}" if s.state == "done" else f"stopped at {at} after {spent}; run it again to go on"
    to_come = s.stages - s.done
    failed = f" ({s.failed} failed)" if s.failed else ""
    lines = [bar, Text(said, style="red" if s.is_silent(now) or s.state == "stopped" else "bold")]
    lines.append(Text(f"stages   {s.done} done{failed}, {to_come} to come", style="yellow" if s.failed else ""))
    if s.state == "running" and s.doing:
        lines.append(Text(f"doing    {one_line(s.doing, 300)}"))
    return [*lines, Text()]
