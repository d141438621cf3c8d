"""Output and exit of commands that ran something."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from hydrometer.core.errors import one_line

if TYPE_CHECKING:
    from hydrometer.run.api import RunResult
    from hydrometer.store.storage_uri import Url

__all__ = ["LONGEST", "say_drawn", "say_results"]

LONGEST = 4000
"""Most characters of a sentence, which may quote what a run recorded."""


def say_results(result: RunResult, page: Path | Url, *, as_json: bool) -> None:
    """Print figures, files and advice. Raises typer.Exit if a cell failed."""
    from rich.text import Text

    from hydrometer.report import answers, summary_table
    from hydrometer.run.execution.progress import console
    from hydrometer.run.results.named_models import FOLDER

    failed, outcome = result.failed_cells, result.outcome
    told = console(stderr=as_json)
    if as_json:
        body = {
            "folder": str(result.folder),
            "report": str(page),
            "computed": dict(outcome.computed),
            "reused": dict(outcome.reused),
            "failed_cells": failed,
            "summary": result.results["summary"],
        }
        typer.echo(json.dumps(body))
    else:
        told.print(summary_table(result.results))
        told.print(Text(f"results  {result.folder / 'results.json'}\nreport   {page}"), soft_wrap=True)
        if isinstance(models := result.folder / FOLDER, Path) and models.is_dir():
            told.print(Text(f"models   {models}"), soft_wrap=True)
        found = answers(result.results, result.folder)
        for name, words in found.items():
            told.print(Text(one_line(f"{name}: {words}" if len(found) > 1 else words, LONGEST)))
    if failed:
        told.print(Text(f"{len(failed)} of {len(result.results['cells'])} cells failed; run again to retry them"))
        raise typer.Exit(1)


def say_drawn(result: RunResult, *, as_json: bool) -> None:
    """Print what `--until draw` drew. Raises typer.Exit if a stage failed."""
    failed = list(dict.fromkeys(result.outcome.failed.values()))
    if as_json:
        counts = {"computed": dict(result.outcome.computed), "reused": dict(result.outcome.reused)}
        typer.echo(json.dumps({"folder": str(result.folder), **counts, "failed": failed}))
    else:
        blocks = result.outcome.computed["draw"] + result.outcome.reused["draw"]
        typer.echo(f"drawn    {blocks} blocks of training rows in {result.folder}")
        typer.echo(f"next     hydrometer export {result.folder} --to FILE.parquet")
        for reason in failed:
            typer.echo(f"failed   {reason}")
    if failed:
        raise typer.Exit(1)
