"""What every stage of a plan has to do, by its family's counts: the one place where stages of the graph meet `work`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from hydrometer.models.base import Precision
from hydrometer.models.best_of_n import needs_truth
from hydrometer.models.work import Counted, Part, Work
from hydrometer.models.work import Stage as Kind
from hydrometer.stages.nodes import DrawNode, EmbedNode, FitNode, JudgeNode, Node, ScoreNode
from hydrometer.stages.score import BIAS_ROWS

__all__ = ["SHOWN", "Counts"]

SHOWN = 17_000
"""Bytes of an exhibit of texts."""


_FEW = Work(disk=SHOWN)


class Counts:
    """Counts stages; what is alike is counted once, and is one object."""

    def __init__(self) -> None:
        self._works: dict[tuple[object, ...], Work] = {}
        self._joined: dict[tuple[int, ...], Work] = {}

    def of(self, node: Node, counted: Counted, mean: float) -> Work:
        """Return what a stage has to do where answers have `mean` tokens."""
        chain, family = node.context.spec, node.context.family
        judged = family.precision(chain, "judge")
        match node:
            case DrawNode():
                precision, s = family.precision(chain, node.purpose), node.selectivity
                once = self._count(node, counted, "draw", node.law.role, node.n, mean, precision)
                if s is None or not s.chooses:
                    return once
                each = [once]
                if needs_truth(s):  # every candidate is scored under it
                    each.append(self._count(node, counted, "score own", "truth", node.n, mean, precision))
                return self._join(each, s.best_of or 1, memory=sum(w.memory for w in each))
            case FitNode():
                return self._count(node, counted, "fit", node.level.role, node.data.n, mean, judged)
            case ScoreNode():
                is_truth = node.law == node.truth and node.decoding is None
                kind: Kind = "score own" if is_truth else "score truth" if node.side == "truth" else "score law"
                work = self._count(node, counted, kind, node.law.role, node.n, mean, judged)
                again = min(BIAS_ROWS - node.start, node.n) if judged == "bfloat16" else 0
                if again <= 0:
                    return work
                chosen = node.decoding is not None and node.decoding.chooses
                roles = ("truth",) if is_truth or chosen else ("truth", node.law.role)
                exact = [self._count(node, counted, "score own", r, again, mean, "float32") for r in roles]
                return self._join([work, *exact], 1, memory=work.memory)
            case JudgeNode() if node.truth_scores or node.law_scores:
                return self._count(node, counted, "judge", node.law.role, node.law_rows.n, mean, judged)
            case JudgeNode():  # rows that are not stored: the truth scores them
                return self._count(node, counted, "score own", "truth", node.law_rows.n, mean, judged)
            case EmbedNode():  # one pass of the truth
                return self._count(node, counted, "score own", "truth", node.n, mean, judged)
            case _:
                return _FEW

    def _join(self, works: Sequence[Work], times: int, *, memory: float) -> Work:
        """Return the first of some works with the parts of all, so many times; the same object for the same ones."""
        slot = (times, *map(id, works))
        if slot not in self._joined:
            parts = tuple(_scaled(p, times) for w in works for p in w.parts)
            self._joined[slot] = replace(works[0], memory=memory, parts=parts)
        return self._joined[slot]

    def _count(
        self, node: Node, counted: Counted, stage: Kind, role: str, rows: int, mean: float,
        precision: Precision = "float32",
    ) -> Work:  # fmt: skip
        slot = (node.context.name, stage, role, rows, mean, precision)
        if slot not in self._works:
            self._works[slot] = counted.work(node.context.spec, stage, role, rows, mean, precision)
        return self._works[slot]


def _scaled(part: Part, times: int) -> Part:
    if times == 1:
        return part
    more = {k: getattr(part, k) * times for k in ("units", "flops", "bytes", "launches", "loaded")}
    return replace(part, **more)
