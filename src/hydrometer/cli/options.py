"""Options that several commands have, and how a command takes many: as one dataclass that the parser fills."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from inspect import Signature, signature
from typing import Annotated, Literal, TypeVar, get_type_hints

import typer

__all__ = ["Address", "Artifacts", "Executor", "Json", "Out", "Overrides", "Recipe", "filled", "recipe_names"]

T = TypeVar("T")


def recipe_names(incomplete: str) -> list[str]:
    """Return the recipes whose names begin so, for a shell that completes; it completes files itself."""
    from hydrometer.run.graph.recipes import recipes

    return [name for name in recipes() if name.startswith(incomplete)]


Recipe = Annotated[
    str,
    typer.Argument(
        metavar="RECIPE|FILE.yaml", help="A recipe's name, or a specification.", autocompletion=recipe_names
    ),
]
Out = Annotated[
    str | None,
    typer.Option("--out", metavar="DIR|URL", help="The run's folder, or s3://bucket/prefix. [default: runs/NAME]"),
]
Overrides = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="a.b.c=VALUE", help="Override a key; VALUE is YAML. Repeatable."),
]
Artifacts = Annotated[str | None, typer.Option("--cache", metavar="DIR|URL", help="Where artifacts are kept.")]
Executor = Annotated[
    Literal["local", "ray"],
    typer.Option("--executor", help="Who makes the stages: this process, or the workers of a Ray cluster."),
]
Address = Annotated[
    str | None,
    typer.Option("--address", metavar="HOST:PORT|auto", help="A running Ray cluster. [default: start one here]"),
]
Json = Annotated[bool, typer.Option("--json", help="Print JSON to standard output and nothing else there.")]


def filled(options: type[T]) -> Callable[[Callable[[T], None]], Callable[..., None]]:
    """Let the parser fill a dataclass for a command: each field, annotated as typer wants it, is an option."""
    hints = get_type_hints(options, include_extras=True)
    fields = [p.replace(annotation=hints[p.name]) for p in signature(options).parameters.values()]

    def decorate(command: Callable[[T], None]) -> Callable[..., None]:
        @wraps(command)
        def call(**given: object) -> None:
            command(options(**given))

        vars(call).update(__signature__=Signature(fields))  # what the parser reads
        return call

    return decorate
