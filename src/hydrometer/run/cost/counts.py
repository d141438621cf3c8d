"""What every stage of a plan has to do, by its family's counts: the one place where stages of the graph meet `work`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from hydrometer.models.base import Precision
from hydrometer.models.work import HasCostModel, Part, Work
from hydrometer.models.work import Stage as Kind
from hydrometer.stages.nodes import Node

__all__ = ["SHOWN", "Counts"]

SHOWN = 17_000
"""Bytes of an exhibit of texts."""


_FEW = Work(disk=SHOWN)


class Counts:
    """Counts stages; what is alike is counted once, and is one object."""

    def __init__(self) -> None:
        self._works: dict[tuple[object, ...], Work] = {}
        self._joined: dict[tuple[int, ...], Work] = {}

    def of(self, node: Node, counted: HasCostModel, mean: float) -> Work:
        """Return what a stage has to do where answers have `mean` tokens."""
        asked = node.asked()
        works = [self._count(node, counted, mean, *count) for count in asked.counts]
        if len(works) == asked.times == 1:
            return works[0]
        return self._join(works, asked.times, memory=sum(w.memory for w in works[: asked.held])) if works else _FEW

    def _join(self, works: Sequence[Work], times: int, *, memory: float) -> Work:
        """Return the first of some works with the parts of all, so many times; the same object for the same ones."""
        slot = (times, *map(id, works))
        if slot not in self._joined:
            parts = tuple(_scaled(p, times) for w in works for p in w.parts)
            self._joined[slot] = replace(works[0], memory=memory, parts=parts)
        return self._joined[slot]

    def _count(
        self, node: Node, counted: HasCostModel, mean: float, stage: Kind, role: str, rows: int, precision: Precision
    ) -> Work:
        slot = (node.context.name, stage, role, rows, mean, precision)
        if slot not in self._works:
            self._works[slot] = counted.work(node.context.spec, stage, role, rows, mean, precision)
        return self._works[slot]


def _scaled(part: Part, times: int) -> Part:
    if times == 1:
        return part
    more = {k: getattr(part, k) * times for k in ("units", "flops", "bytes", "launches", "loaded")}
    return replace(part, **more)
