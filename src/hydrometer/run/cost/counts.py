"""Work of a stage of the graph, by its family's cost model."""

from __future__ import annotations

from dataclasses import replace

from hydrometer.models.work import HasCostModel, Part, Work
from hydrometer.stages.nodes import Node

__all__ = ["SHOWN", "work_of"]

SHOWN = 17_000
"""Bytes of an exhibit of texts."""


def work_of(node: Node, counted: HasCostModel, mean: float) -> Work:
    """Return a stage's work for answers of `mean` tokens; stages with equal `asked()` have equal work."""
    asked, chain = node.asked(), node.context.spec
    works = [counted.work(chain, stage, role, rows, mean, at) for stage, role, rows, at in asked.counts]
    if not works:
        return Work(disk=SHOWN)
    parts = tuple(_scaled(p, asked.times) for w in works for p in w.parts)
    return replace(works[0], memory=sum(w.memory for w in works[: asked.held]), parts=parts)


def _scaled(part: Part, times: int) -> Part:
    if times == 1:
        return part
    more = {k: getattr(part, k) * times for k in ("units", "flops", "bytes", "launches", "loaded")}
    return replace(part, **more)
