"""Fit: rows in, a law out."""

from __future__ import annotations

from pathlib import Path

from hydrometer.models.base import FitRequest, Tick
from hydrometer.models.capabilities import Budgets, StartsAlone
from hydrometer.stages.artifact_loader import ArtifactLoader
from hydrometer.stages.nodes import FitNode, LawRef

__all__ = ["fit"]


def fit(node: FitNode, bench: ArtifactLoader, folder: Path, tick: Tick) -> dict[str, object]:
    """Fit one level and write the law into `folder`.

    A fit is atomic: killed, it starts again, or goes on from what its family left in the store's partial folder.

    Raises
    ------
    FitError : no usable model.
    """
    family, chain = node.context.family, node.context.spec
    precision = family.precision(chain, "judge")
    # An objective sees the teacher's law itself, which is the float32 one; else the teacher gives a start at most.
    above, teacher = precision if node.matched is None else "float32", _teacher(node)
    fitted = family.fit(
        FitRequest(
            # Not in `folder`: a network file system gives the file a name there, and it would count as the law's.
            data=bench.training_rows(node.context, node.data, bench.store.root),
            validate=None if node.validate is None else bench.rows(node.context, node.validate),
            truth=bench.law(node.context, node.truth, precision, purpose="train"),
            teacher=None if teacher is None else bench.law(node.context, teacher, above, purpose="train"),
            level=node.level.spec,
            prefix_source=node.prefix_source,
            loss=node.loss,
            selectivity=node.matched,
            start=None if node.start is None else bench.law(node.context, node.start, precision, purpose="train"),
            tokens=_tokens(node, bench),
            stream=node.stream,
            tick=tick,
            partial=bench.store.partial(node.stage, node.key),
        )
    )
    family.save_law(fitted.model, folder)
    return dict(fitted.info)


def _tokens(node: FitNode, bench: ArtifactLoader) -> int | None:
    """Return how many tokens `mle` learns from on the teacher's rows, where that ends the fit."""
    family = node.context.family
    if node.usual is None or not isinstance(family, Budgets):
        return None
    lengths = bench.outline(node.context, node.usual).lengths
    assert lengths is not None  # rows of sequences
    epoch, steps = family.steps(node.level, node.usual.n)
    return int(lengths.sum()) * steps // epoch


def _teacher(node: FitNode) -> LawRef | None:
    """Return the model above, if the fit sees it or starts from it."""
    family = node.context.family
    if node.matched is None and isinstance(family, StartsAlone) and not family.starts_above(node.level):
        return None
    return node.teacher
