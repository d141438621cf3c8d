"""The command `init`: parses, calls, prints."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from hydrometer.core.errors import InputError, one_line

__all__ = ["init_command"]


def init_command(
    files: Annotated[
        list[str] | None,
        typer.Argument(metavar="[FILE|MODEL...]", help="A table of prompts or answers, a larger and a smaller model."),
    ] = None,
    purpose: Annotated[
        Literal["text", "model", "judge", "callback"] | None,
        typer.Option(
            "--for",
            metavar="text|model|judge|callback",
            help="A run whose truth is texts or a model, judging, a trainer's callback. [default: text, if answered]",
        ),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option("--out", metavar="FILE", help="What is written. [default: spec.yaml, judge.sh or callback.py]"),
    ] = None,
    name: Annotated[
        str | None,
        typer.Option("--name", metavar="NAME", help="The run's name, in a specification. [default: of its file]"),
    ] = None,
) -> None:
    """Begin a specification of the files that you have; guesses are said to be guesses."""
    from hydrometer.run.execution.progress import ConsoleMonitor

    with ConsoleMonitor():
        from hydrometer.models.causal_lm.drafting.drafts import begin, guesses_of

        draft = begin(files or [], purpose, out, name)
        price = _price(draft.place) if draft.purpose in ("text", "model") else None
    for guess in guesses_of(draft):
        typer.echo(f"guess    {guess}")
    typer.echo(f"written  {draft.place}")
    if price is not None:
        typer.echo(f"price    {price}")
        typer.echo(f"next     hydrometer doctor {draft.place}")


def _price(place: Path) -> str:
    """Return what a run will take here, roughly; or why that is not known."""
    from hydrometer.cli.plan_command import price_words
    from hydrometer.run.cost.cost_plan import plan

    try:
        total = plan(place).total
    except InputError as e:
        return f"not known: {one_line(str(e))}"
    return f"{price_words(total)} on this machine; `hydrometer plan {place}` says of what"
