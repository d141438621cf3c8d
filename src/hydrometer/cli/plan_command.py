"""The command `plan`: what a run will take. Parses, calls, prints."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Any

import typer

from hydrometer.cli.options import Artifacts, Json, Overrides, Recipe

if TYPE_CHECKING:
    from hydrometer.report.terminal import FittedTable

__all__ = ["plan_command", "plan_table", "price_words"]

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
    chain, total, device = None, body["total"], body["device"]
    times = [(_time(r["hours"]), _time(r["hours_most"])) for r in (*body["stages"], total)]
    most = any(expected != longest for expected, longest in times)
    for row in body["stages"]:
        if row["chain"] != chain:
            chain = row["chain"]
            rows.append([f"{chain}:"] + [""] * (7 + most))
        rows.append([f"{row['stage']} {row['role']}".rstrip(), *_cells(row, most), row["source"]])
    rows.append([f"{device['count']} x {device['name']}", *_cells(total, most), ""])
    captions: list[str] = []
    if total["hours_least"] < total["hours"]:
        captions.append(_span(total))
    if total["usd"] is not None:
        captions.append(f"{_time(total['device_hours'])} of a device, {total['usd']:,.2f} USD")
    head = ["stage", "there", "tokens", "FLOPs", "disk", "memory", "time", *(["at most"] if most else []), "from"]
    return FittedTable(head, rows, caption="\n".join(captions))


def price_words(total: Mapping[str, Any]) -> str:
    """Say in a few words how long a run takes. `total`: as ``CostPlan.total``."""
    return _time(total["hours"]) + (f" ({_span(total)})" if total["hours_least"] < total["hours"] else "")


def _span(total: Mapping[str, Any]) -> str:
    return f"{_time(total['hours_least'])} to {_time(total['hours_worst'])}, since some prices are coarse"


def _cells(row: Mapping[str, Any], most: bool) -> list[str]:
    sizes = [_short(row[k]) for k in ("tokens", "flops", "disk", "memory")]
    times = [_time(row[k]) for k in ("hours", *(["hours_most"] if most else []))]
    return [f"{row['done']}/{row['stages']}", *sizes, *times]


def _short(value: float) -> str:
    """Three digits and a decimal prefix."""
    for scale, letter in _SCALES:
        if value >= scale:
            return f"{value / scale:.3g}{letter}"
    return f"{value:.3g}" if value else "-"


def _time(value: float | None) -> str:
    """Write hours with their unit, or as minutes or seconds where they are few."""
    if value is None:
        return "unknown"
    if value >= 1:
        return f"{value:.3g} h" if value < 1000 else f"{value:,.0f} h"
    return f"{value * 60:.3g} min" if value * 60 >= 1 else f"{value * 3600:.2g} s" if value else "-"
