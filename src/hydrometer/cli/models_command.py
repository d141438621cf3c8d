"""The command `models`: parses, calls, prints."""

from __future__ import annotations

import json
from typing import Annotated

import typer

from hydrometer.cli.options import Artifacts, Json
from hydrometer.cli.result_output import LONGEST
from hydrometer.core.errors import one_line

__all__ = ["models_command"]


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
