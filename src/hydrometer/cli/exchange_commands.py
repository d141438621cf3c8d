"""Commands for what is trained or scored elsewhere: `export`, `adopt`, `scores`. Parses, calls, prints."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Literal

import typer

from hydrometer.cli.options import Json, filled
from hydrometer.core.errors import one_line

__all__ = ["add_commands"]

Folder = Annotated[str, typer.Argument(metavar="DIR|URL", help="The folder of a run.")]
Chain = Annotated[str | None, typer.Option("--chain", metavar="NAME", help="The chain, where there are several.")]
Cache = Annotated[str | None, typer.Option("--cache", metavar="DIR|URL", help="Where artifacts are, if not in DIR.")]
Seed = Annotated[int | None, typer.Option("--seed", help="The run's seed. [default: its first]")]
Setting = Annotated[
    str | None,
    typer.Option(
        "--selectivity",
        metavar="KEY=VALUE,...",
        help="Of the teacher, for example temperature=0.8; loss=NAME where several are trained.",
    ),
]


def add_commands(app: typer.Typer) -> None:
    """Add the commands to the command line."""
    app.command("export")(export_command)
    app.command("adopt")(adopt_command)
    app.command("scores")(scores_command)


@dataclass(frozen=True, slots=True)
class ExportOptions:
    """Which rows to write, how, and where."""

    folder: Folder
    to: Annotated[Path, typer.Option("--to", metavar="FILE", help="FILE.parquet or FILE.jsonl; must not exist.")]
    format: Annotated[
        Literal["messages", "prompt-completion", "text"], typer.Option("--format", help="TRL's dataset type.")
    ] = "prompt-completion"
    chat: Annotated[bool, typer.Option("--chat", help="Prompt and completion as messages.")] = False
    text_only: Annotated[
        bool, typer.Option("--text-only", help="No input_ids and labels: the trainer tokenises the text.")
    ] = False
    stream: Annotated[
        Literal["distill", "train", "evaluate"] | None,
        typer.Option("--stream", help="The teacher's rows, the truth's, or a cell's. [default: distill]"),
    ] = None
    role: Annotated[
        str | None, typer.Option("--role", metavar="ROLE", help="Who drew them: truth, teacher, assistant_1, ...")
    ] = None
    selectivity: Setting = None
    seed: Seed = None
    held_out: Annotated[bool, typer.Option("--held-out", help="The validation rows that go with these.")] = False
    cell: Annotated[str | None, typer.Option("--cell", metavar="ID", help="Evaluation rows of this cell.")] = None
    trainer: Annotated[
        Literal["gkd", "distillation"] | None,
        typer.Option("--trainer", help="Make --to a folder for TRL's trainer: a student's rows, models, arguments."),
    ] = None
    chain: Chain = None
    cache: Cache = None
    as_json: Json = False


@filled(ExportOptions)
def export_command(o: ExportOptions) -> None:
    """Write a run's rows as a dataset for a trainer elsewhere: text, token ids, log-probabilities."""
    from hydrometer.run.execution.progress import ConsoleMonitor

    with ConsoleMonitor():
        from hydrometer.run.exchange.exporting import export

        done = export(
            o.folder,
            to=o.to,
            format=o.format,
            chat=o.chat,
            text_only=o.text_only,
            stream=o.stream,
            role=o.role,
            selectivity=o.selectivity,
            seed=o.seed,
            held_out=o.held_out,
            cell=o.cell,
            trainer=o.trainer,
            chain=o.chain,
            cache=o.cache,
        )
    if o.as_json:
        typer.echo(json.dumps({**asdict(done), "path": str(done.path)}))
        return
    typer.echo(f"rows     {done.rows} to {done.path}; {done.cut} cut at max_new_tokens, without a stop token")
    typer.echo(f"text     {done.advice}")


@dataclass(frozen=True, slots=True)
class AdoptOptions:
    """Which model to adopt, and how it was trained."""

    folder: Folder
    model: Annotated[str, typer.Option("--model", metavar="PATH", help="A folder of safetensors with its tokenizer.")]
    name: Annotated[
        str, typer.Option("--name", metavar="NAME", help="Of the way it was trained; its seeds form a group.")
    ]
    selectivity: Setting = None
    training: Annotated[
        Literal["direct", "distilled", "baseline"] | None,
        typer.Option("--training", help="direct: on the truth's rows; baseline: on other data. [default: distilled]"),
    ] = None
    base: Annotated[
        str | None, typer.Option("--base", metavar="M", help="The model under an adapter, where it names a path.")
    ] = None
    seed: Seed = None
    chain: Chain = None
    cache: Cache = None
    as_json: Json = False


@filled(AdoptOptions)
def adopt_command(o: AdoptOptions) -> None:
    """Take a model trained elsewhere into a run and judge it as the run's own students are."""
    from rich.text import Text

    from hydrometer.run.execution.progress import ConsoleMonitor, console

    with ConsoleMonitor() as monitor:
        from hydrometer.report import build_report, summary_table
        from hydrometer.run.exchange.adopting import adopt

        done = adopt(
            o.folder,
            model=o.model,
            name=o.name,
            selectivity=o.selectivity,
            training=o.training,
            base=o.base,
            seed=o.seed,
            chain=o.chain,
            cache=o.cache,
            monitor=monitor,
        )
        page = build_report([done.run.folder])
    failed = [c for c in done.run.failed_cells if c in done.cells]
    if o.as_json:
        body = {"folder": str(done.run.folder), "report": str(page), "cells": list(done.cells), "known": done.known}
        typer.echo(json.dumps({**body, "failed_cells": failed}))
    else:
        told = console()
        told.print(summary_table(done.run.results))
        said = "adopted before" if done.known else "adopted"
        told.print(Text(f"{said}  {', '.join(done.cells)}\nreport   {page}"), soft_wrap=True)
    if failed:
        raise typer.Exit(1)


def scores_command(
    folder: Folder,
    file: Annotated[
        Path,
        typer.Option("--file", metavar="FILE", help="Scores by row (.parquet, .jsonl, .csv), or lm-eval's .json."),
    ],
    cell: Annotated[
        str | None, typer.Option("--cell", metavar="ID", help="Whose they are, where the file does not say.")
    ] = None,
    column: Annotated[
        list[str] | None, typer.Option("--column", metavar="NAME", help="A column of scores. Repeatable.")
    ] = None,
    truth: Annotated[
        str | None,
        typer.Option(
            "--truth", metavar="NAME", help="A model's name: column logprob is log p of each row, or answer, under it."
        ),
    ] = None,
    cache: Cache = None,
    as_json: Json = False,
) -> None:
    """Add your own scores of a cell's evaluation rows, or a benchmark's results, to a run's figures."""
    from rich.text import Text

    from hydrometer.core.statistics.estimate import figures_in_words
    from hydrometer.report.terminal import FittedTable
    from hydrometer.run.execution.progress import ConsoleMonitor, console

    with ConsoleMonitor():
        from hydrometer.report import build_report, missing_sentence
        from hydrometer.run.exchange.scoring import add_scores

        done = add_scores(folder, file=file, cell=cell, columns=column, truth=truth, cache=cache)
        page = build_report([done.run.folder])
    if as_json:
        listed = {c: {m: e.to_json() for m, e in found.items()} for c, found in done.added.items()}
        body = {"folder": str(done.run.folder), "report": str(page), "added": listed, "waiting": done.waiting}
        typer.echo(json.dumps(body))
        return
    added = [(owner, metric, e) for owner, found in done.added.items() for metric, e in found.items()]
    said, words = figures_in_words([e for _, _, e in added])
    rows = [[owner, metric, w] for (owner, metric, _), w in zip(added, words, strict=True)]
    told = console()
    told.print(FittedTable(["cell", "metric", "figure"], rows, said))
    if missing := missing_sentence(done.run.results):
        told.print(Text(f"partial  {one_line(missing)}"), soft_wrap=True)
    if done.waiting:
        told.print(Text("waiting  a run is going on here: it takes these in with its own next figures"))
    told.print(Text(f"report   {page}"), soft_wrap=True)
