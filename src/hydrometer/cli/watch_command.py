"""The command `watch`: parses, calls, prints."""

from __future__ import annotations

import time
from typing import Annotated

import typer

__all__ = ["watch_command"]

_EVERY, _REMOTE = 2.0, 15.0  # seconds; a run in an object store says no more often how far it is


def watch_command(
    folder: Annotated[str, typer.Argument(metavar="DIR|URL", help="The folder of a run.")],
    once: Annotated[bool, typer.Option("--once", help="Show it once, as where the output is no terminal.")] = False,
) -> None:
    """Show a run from elsewhere: how far it is, and its models so far, until it ends."""
    from rich.console import RenderableType
    from rich.live import Live

    from hydrometer.report import status_view
    from hydrometer.run.execution.progress import console
    from hydrometer.store.records import load_results, results_so_far
    from hydrometer.store.run_status import RunStatus, read_status
    from hydrometer.store.storage_uri import Url, place_of

    def seen() -> tuple[RunStatus | None, RenderableType]:
        status = read_status(folder)
        results = load_results(folder) if status is None else results_so_far(folder)
        return status, status_view(status, results, time.time())

    every = _REMOTE if isinstance(place_of(folder), Url) else _EVERY
    told = console()
    status, view = seen()
    if once or not told.is_terminal:
        told.print(view)
    else:
        with Live(view, console=told, auto_refresh=False) as live:
            while status is not None and status.goes_on(time.time()):
                time.sleep(every)
                status, view = seen()
                live.update(view, refresh=True)
            live.vertical_overflow = "visible"
    if status is not None and (status.failed or status.state == "stopped" or status.is_silent(time.time())):
        raise typer.Exit(1)
