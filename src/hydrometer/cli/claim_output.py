"""`hydrometer run claims/NAME`: measure a claim, print its checks and its verdict."""

from __future__ import annotations

import json
from collections.abc import Sequence

import typer

__all__ = ["claim_command"]


def claim_command(name: str, *, out: str | None, overrides: Sequence[str], as_json: bool) -> None:
    """Measure a claim of the gallery."""
    from hydrometer.run.execution.progress import ConsoleMonitor, console

    with ConsoleMonitor():
        from hydrometer.claims.run_claim import run_claim

        result = run_claim(name, out=out, overrides=overrides)
    if as_json:
        typer.echo(json.dumps(result.to_json()))
        return
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, pad_edge=False)
    for head in ("where", "figure", "measured", "claimed", "found"):
        table.add_column(head)
    for c in result.checks:
        claimed = f"{c.check.says} {c.check.bound:g}"
        table.add_row(*map(Text, (c.check.condition, c.check.figure, c.measured, claimed, c.found)))
    told = console()
    told.print(Text(result.spec.says))
    told.print(table)
    told.print(Text("Intervals hold for all rows together, at 95 %."))
    for line in (*result.notes, result.sentence, f"figures and picture in {result.folder}"):
        told.print(Text(line))
