"""The command `plan`: what a run will take. Parses, calls, prints."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Any

import typer

from hydrometer.cli.options import Artifacts, Json, Overrides, Recipe

if TYPE_CHECKING:
    from hydrometer.report.terminal import FittedTable

__all__ = ["plan_command", "plan_table"]

_SCALES = ((1e24, "Y"), (1e21, "Z"), (1e18, "E"), (1e15, "P"), (1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k"))


def plan_command(
    recipe: Recipe,
    overrides: Overrides = None,
    device: Annotated[
        str,
        typer.Option("--device", metavar="PROFILE", help="this machine, a100, h100, h200, or a .yaml file of figures."),
    ] = "this",
    mean_tokens: Annotated[
        float | None,
        typer.Option("--mean-tokens", metavar="N", help="Tokens of an answer. [default: as found before, else all]"),
    ] = None,
    measure: Annotated[
        bool,
        typer.Option("--measure", help="Time this machine at the recipe's shapes, in minutes, and keep the figures."),
    ] = False,
    out: Annotated[
        str | None, typer.Option("--out", metavar="DIR|URL", help="The run's folder. [default: runs/NAME]")
    ] = None,
    cache: Artifacts = None,
    as_json: Json = False,
) -> None:
    """Say what a run will take, tokens, FLOPs, bytes and hours, and what of it is there already."""
    from rich.text import Text

    from hydrometer.core.watching import doing
    from hydrometer.run.execution.progress import ConsoleMonitor, console

    with ConsoleMonitor():
        from hydrometer.run.cost.cost_plan import plan

        found = plan(
            recipe,
            overrides=overrides or [],
            device=device,
            out=out,
            cache=cache,
            mean_tokens=mean_tokens,
            measure=measure,
            say=doing,
        )
    body = found.to_json()
    if as_json:
        typer.echo(json.dumps(body))
        return
    told = console()
    told.print(plan_table(body))
    for line in found.notes:
        told.print(Text(line), soft_wrap=True)


def plan_table(body: Mapping[str, Any]) -> FittedTable:
    """Lay a plan out for a terminal. `body`: as ``CostPlan.to_json`` gives it."""
    from hydrometer.report.terminal import FittedTable

    rows: list[list[str]] = []
    chain = None
    for row in body["stages"]:
        if row["chain"] != chain:
            chain = row["chain"]
            rows.append([f"{chain}:"] + [""] * 8)
        rows.append([f"{row['stage']} {row['role']}".rstrip(), *_cells(row, row["hours"]), row["source"]])
    total, device = body["total"], body["device"]
    rows.append([f"{device['count']} x {device['name']}", *_cells(total, total["hours"]), ""])
    captions: list[str] = []
    if total["hours_least"] < total["hours"]:
        captions.append(f"{_hours(total['hours_least'])} to {_hours(total['hours_worst'])}, since some is coarse")
    if total["usd"] is not None:
        captions.append(f"{_hours(total['device_hours'])} of a device, {total['usd']:,.2f} USD")
    head = ["stage", "there", "tokens", "FLOPs", "disk", "memory", "hours", "at most", "from"]
    return FittedTable(head, rows, caption="\n".join(captions))


def _cells(row: Mapping[str, Any], hours: float | None) -> list[str]:
    sizes = [_short(row[k]) for k in ("tokens", "flops", "disk", "memory")]
    return [f"{row['done']}/{row['stages']}", *sizes, _hours(hours), _hours(row["hours_most"])]


def _short(value: float) -> str:
    """Three digits and a decimal prefix."""
    for scale, letter in _SCALES:
        if value >= scale:
            return f"{value / scale:.3g}{letter}"
    return f"{value:.3g}" if value else "-"


def _hours(value: float | None) -> str:
    """Hours, or minutes or seconds where they are few."""
    if value is None:
        return "unknown"
    if value >= 1:
        return f"{value:.3g} h" if value < 1000 else f"{value:,.0f} h"
    return f"{value * 60:.3g} min" if value * 60 >= 1 else f"{value * 3600:.2g} s" if value else "-"
