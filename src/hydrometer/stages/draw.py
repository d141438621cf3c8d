"""Draw: a law's block of rows, artifact out."""

from __future__ import annotations

from pathlib import Path

from hydrometer.core.errors import StageError
from hydrometer.models.capabilities import TextTruths
from hydrometer.models.drawing import draw_block
from hydrometer.models.rows.sequences import Sequences
from hydrometer.stages.artifact_loader import ArtifactLoader
from hydrometer.stages.given_nodes import TextNode
from hydrometer.stages.nodes import DrawNode

__all__ = ["draw", "encode_texts"]


def draw(node: DrawNode, bench: ArtifactLoader, folder: Path) -> dict[str, object]:
    """Draw one block and write it into `folder`.

    Raises
    ------
    StageError : a row without a finite log-probability under its own law, which would be a wrong draw; an engine that
        fails, or draws from another law.
    """
    family, chain = node.context.family, node.context.spec
    precision = family.precision(chain, node.purpose)
    law = bench.law(node.context, node.law, precision, node.selectivity, purpose=node.purpose)
    samples, facts = draw_block(
        family, chain, law, node.law.role, node.purpose, node.n, stream=node.stream, start=node.start
    )
    lowest = float(samples.log_prob.min())
    if not lowest > float("-inf"):
        raise StageError("a drawn row has no probability under its own law", got=lowest)
    family.save_samples(samples, folder)
    info: dict[str, object] = {"rows": len(samples), **facts}
    if samples.lengths is not None:
        info["tokens"] = int(samples.lengths.sum())
    if isinstance(samples, Sequences) and samples.draws is not None:
        info["candidates"] = int(samples.draws.sum())
    return info


def encode_texts(node: TextNode, folder: Path) -> dict[str, object]:
    """Write texts of the truth or a baseline as rows to learn from into `folder`. Raises DataError."""
    family, chain = node.context.family, node.context.spec
    if not isinstance(family, TextTruths):
        raise TypeError(f"{family.name} has no texts in the place of a truth")
    rows = family.training_texts(chain, node.which, node.baseline)
    family.save_samples(rows, folder)
    return {"rows": len(rows), "tokens": 0 if rows.lengths is None else int(rows.lengths.sum())}
