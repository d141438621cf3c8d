"""The command `init`: parses, calls, prints."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

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
) -> None:
    """Begin a specification of the files that you have; guesses are said to be guesses."""
    from hydrometer.run.execution.progress import ConsoleMonitor

    with ConsoleMonitor():
        from hydrometer.models.causal_lm.drafting.drafts import begin, guesses_of

        draft = begin(files or [], purpose, out)
    for guess in guesses_of(draft):
        typer.echo(f"guess    {guess}")
    typer.echo(f"written  {draft.place}")
    if draft.purpose in ("text", "model"):
        typer.echo(f"next     hydrometer doctor {draft.place}")
