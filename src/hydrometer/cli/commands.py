"""The command line: parses, calls, prints.

Exit codes: 0 done, 1 a cell failed, 2 bad input or machine (one line: what, got, fix), 130 interrupted, 143
terminated, 141 nobody reads the output.
"""

from __future__ import annotations

import json
import time
from dataclasses import dataclass
from typing import Annotated, Literal

import typer

from hydrometer._version import __version__
from hydrometer.cli import exchange_commands
from hydrometer.cli.exit import end_with
from hydrometer.cli.init_command import init_command
from hydrometer.cli.judge_command import judge_command
from hydrometer.cli.options import Address, Artifacts, Executor, Json, Out, Overrides, Recipe, filled, recipe_names
from hydrometer.cli.plan_command import plan_command
from hydrometer.cli.result_output import LONGEST, say_drawn, say_results
from hydrometer.core.errors import InputError, one_line

__all__ = ["app", "main"]

_EVERY, _REMOTE = 2.0, 15.0  # seconds; a run in an object store says no more often how far it is

app = typer.Typer(
    help="Measure and steer LLM distillation.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _version(value: bool) -> None:
    if value:
        typer.echo(f"hydrometer {__version__}")
        raise typer.Exit


@app.callback()
def root(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """Measure and steer LLM distillation."""


@app.command("run")
def run_command(
    recipe: Recipe,
    out: Out = None,
    overrides: Overrides = None,
    cache: Annotated[
        str | None,
        typer.Option("--cache", metavar="DIR|URL", help="Where artifacts are kept, to share them between runs."),
    ] = None,
    until: Annotated[
        Literal["draw"] | None,
        typer.Option("--until", help="draw: make the training rows alone, to export them; nothing is judged."),
    ] = None,
    executor: Executor = "local",
    address: Address = None,
    as_json: Json = False,
) -> None:
    """Run an experiment, go on with an interrupted one, or extend one by selectivities or seeds; or measure a claim."""
    from hydrometer.claims.claim_spec import claim_of
    from hydrometer.run.execution.progress import ConsoleMonitor

    if (claim := claim_of(recipe)) is not None:
        if cache is not None or until is not None or executor != "local" or address is not None:
            raise InputError(
                "a claim is measured in this process, without stages", fix="give --out, --set, --json alone"
            )
        from hydrometer.cli.claim_output import claim_command

        claim_command(claim, out=out, overrides=overrides or [], as_json=as_json)
        return
    with ConsoleMonitor() as monitor:
        from hydrometer.report import build_report
        from hydrometer.run.api import run

        result = run(
            recipe,
            out=out,
            overrides=overrides or [],
            cache=cache,
            monitor=monitor,
            until=until,
            executor=executor,
            address=address,
        )
        page = build_report([result.folder]) if until is None else None
    if page is None:
        say_drawn(result, as_json=as_json)
    else:
        say_results(result, page, as_json=as_json)


@app.command("doctor")
def doctor_command(
    recipe: Annotated[
        str | None,
        typer.Argument(
            metavar="RECIPE|FILE.yaml", help="A recipe's name, or a specification.", autocompletion=recipe_names
        ),
    ] = None,
    out: Out = None,
    overrides: Overrides = None,
    cache: Artifacts = None,
    engine_url: Annotated[
        str | None,
        typer.Option("--engine-url", metavar="URL", help="Ask a server which law its log-probabilities are of."),
    ] = None,
    as_json: Json = False,
) -> None:
    """Examine an experiment before paying for it: what would make it fail, or spoil its figures."""
    from hydrometer.run.execution.progress import ConsoleMonitor, console

    if recipe is None and engine_url is None:
        raise InputError("doctor needs a recipe, a specification or --engine-url", fix="see `hydrometer recipes`")
    with ConsoleMonitor():
        from hydrometer.report.tables.findings_table import findings_table
        from hydrometer.run.preflight.doctor import doctor, examine_server

        found = [] if engine_url is None else examine_server(engine_url)
        if recipe is not None:
            found += doctor(recipe, out=out, overrides=overrides or [], cache=cache).findings
    fatal = any(f.is_fatal for f in found)
    rows = [f.to_json() for f in found]
    if as_json:
        typer.echo(json.dumps({"fatal": fatal, "findings": rows}))
    else:
        console().print(findings_table(rows))
    if fatal:
        raise typer.Exit(2)


app.command("plan")(plan_command)
app.command("init")(init_command)


@app.command("recipes")
def recipes_command(as_json: Json = False) -> None:
    """List the recipes and the claims that ship with the package."""
    from hydrometer.claims.claim_spec import claims
    from hydrometer.run.graph.recipes import recipes

    found = recipes() | {f"claims/{name}": says for name, says in claims().items()}
    if as_json:
        typer.echo(json.dumps(found))
        return
    from rich.table import Table

    from hydrometer.run.execution.progress import console

    table = Table(box=None, pad_edge=False)
    table.add_column("recipe", style="bold", no_wrap=True)
    table.add_column("what")
    for name, description in found.items():
        table.add_row(name, description)
    console().print(table)


@app.command("report")
def report_command(
    folders: Annotated[list[str], typer.Argument(metavar="DIR|URL...", help="Folders of runs.")],
    out: Annotated[
        str | None, typer.Option("--out", metavar="DIR|URL", help="Where the page goes. [default: first DIR]")
    ] = None,
    live: Annotated[
        bool, typer.Option("--live", help="Write it again while a run goes on; the page renews itself.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Write report.html and the figures again from what a run recorded; several runs make one page."""
    from hydrometer.run.execution.progress import ConsoleMonitor

    with ConsoleMonitor():
        from hydrometer.report import build_live_report, build_report, missing_sentence
        from hydrometer.store.records import load_results

        page = (build_live_report if live else build_report)(folders, out=out)
        missing = [said for f in folders if (said := missing_sentence(load_results(f)))]
    if as_json:
        typer.echo(json.dumps({"report": str(page), "missing": missing}))
        return
    for said in missing:
        typer.echo(f"partial  {one_line(said, LONGEST)}")
    typer.echo(f"report   {page}")


@app.command("models")
def models_command(
    folder: Annotated[str, typer.Argument(metavar="DIR|URL", help="The folder of a run.")],
    cache: Artifacts = None,
    as_json: Json = False,
) -> None:
    """List a run's models by name, and where they are: for `judge --student`, or any program that opens a model."""
    from hydrometer.run.results.named_models import named_models

    found = named_models(folder, cache=cache)
    if as_json:
        listed = [{"name": m.name, "cell": m.cell, "place": str(m.place)} for m in found]
        typer.echo(json.dumps({"models": listed}))
        return
    width = max((len(m.name) for m in found), default=0)
    for m in found:
        typer.echo(f"{m.name:<{width}}  {one_line(str(m.place), LONGEST)}")


@app.command("watch")
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


app.command("judge")(judge_command)
exchange_commands.add_commands(app)


@dataclass(frozen=True, slots=True)
class AdviseOptions:
    """Which runs or pilot to advise from, and what is wanted of the student."""

    folders: Annotated[list[str] | None, typer.Argument(metavar="DIR|URL...", help="Folders of finished runs.")] = None
    max_recall_loss: Annotated[
        float | None,
        typer.Option(
            "--max-recall-loss",
            metavar="NATS",
            help="Most recall to lose, per token (or --per). [default, if nothing else: 0.1]",
        ),
    ] = None
    min_precision_gain: Annotated[
        float | None,
        typer.Option("--min-precision-gain", metavar="NATS", help="Least precision to gain, per token (or --per)."),
    ] = None
    weight: Annotated[
        float | None, typer.Option("--weight", metavar="W", help="Maximise W precision + (1 - W) recall.")
    ] = None
    score: Annotated[str | None, typer.Option("--score", metavar="METRIC", help="A metric with a floor.")] = None
    min_score: Annotated[float | None, typer.Option("--min-score", metavar="X", help="That floor.")] = None
    margin: Annotated[
        float | None,
        typer.Option(
            "--margin", metavar="NATS", help="Differences that do not matter. [default: 0.02; 0.5 a sequence]"
        ),
    ] = None
    per: Annotated[
        Literal["token", "sequence"],
        typer.Option("--per", metavar="token|sequence", help="What nats are counted per."),
    ] = "token"
    chain: Annotated[str | None, typer.Option("--chain", metavar="NAME", help="Which chain, if several.")] = None
    fresh: Annotated[
        bool, typer.Option("--fresh/--no-fresh", help="Judge the leader and its rival again, on new rows.")
    ] = True
    pilot: Annotated[
        str | None,
        typer.Option("--pilot", metavar="RECIPE|FILE.yaml", help="Run a small version first, advise from it."),
    ] = None
    share: Annotated[
        float | None, typer.Option("--share", metavar="X", help="The pilot's part of the full cost. [default: 0.125]")
    ] = None
    overrides: Annotated[
        list[str] | None, typer.Option("--set", metavar="a.b.c=VALUE", help="Override a key of the pilot's full run.")
    ] = None
    out: Annotated[
        str | None, typer.Option("--out", metavar="DIR|URL", help="The pilot's folder. [default: runs/NAME-pilot]")
    ] = None
    cache: Annotated[
        str | None, typer.Option("--cache", metavar="DIR|URL", help="Where artifacts are, for runs made with one.")
    ] = None
    as_json: Json = False


@app.command("advise")
@filled(AdviseOptions)
def advise_command(o: AdviseOptions) -> None:
    """Say which student to take, distilled or merely decoded, what it gains and costs, and how sure that is."""
    from rich.text import Text

    from hydrometer.run.execution.progress import ConsoleMonitor, console

    given = {"--share": o.share, "--set": o.overrides, "--out": o.out}
    if (o.pilot is None) == (not o.folders):
        raise InputError("advise takes folders of runs, or --pilot with a recipe", fix="give one of the two")
    if o.pilot is None and any(v is not None for v in given.values()):
        raise InputError("only with --pilot", got=next(k for k, v in given.items() if v is not None))
    with ConsoleMonitor() as monitor:
        from hydrometer.report import advice_notes, advice_sentences, advice_table
        from hydrometer.run.advice.advise import advise
        from hydrometer.run.pilot import advise_pilot
        from hydrometer.stages.statistics.decision import Need

        need = Need(o.max_recall_loss, o.min_precision_gain, o.weight, o.score, o.min_score, o.per, o.margin)
        if o.pilot is None:
            found = advise(o.folders or [], need, chain=o.chain, fresh=o.fresh, cache=o.cache, monitor=monitor)
        else:
            found = advise_pilot(
                o.pilot,
                need,
                share=0.125 if o.share is None else o.share,
                out=o.out,
                overrides=o.overrides or [],
                chain=o.chain,
                fresh=o.fresh,
                cache=o.cache,
                monitor=monitor,
            )
    said, notes = advice_sentences(found.data), advice_notes(found.data)
    if o.as_json:
        typer.echo(json.dumps({**found.data, "sentences": said, "notes": notes}))
        return
    told = console()
    for sentence in said:
        told.print(Text(one_line(sentence, LONGEST)))
    told.print(advice_table(found.data))
    for note in notes:
        told.print(Text(one_line(note, LONGEST)))


def main() -> None:
    """Run the command line; errors that the user can fix are one line on standard error."""
    end_with(app)
