"""Which stages have to be made, and in which order: first what the first figures need.

Per chain and seed: the truth, the students of the coldest and of the hottest teacher, these teachers, the direct
student and the unselected teacher (what gate and trade-off are told from), the students between, then controls and the
rest. The order changes no figure, for every stream is named by what it is for.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from hydrometer.run.graph.plan import ChainPlan, Plan
from hydrometer.run.graph.spec_merge import strength
from hydrometer.stages.cells import Cell
from hydrometer.stages.nodes import Node
from hydrometer.store.artifacts import ArtifactStore

__all__ = ["in_order", "missing_of"]


def missing_of(nodes: Mapping[str, Node], store: ArtifactStore) -> dict[str, Node]:
    """Return the nodes to make, in their order.

    Artifacts that were finished here and have not arrived in the store are sent first. One that is there and that a
    missing node or the results will read (`Node.in_results`) is checked now: a damaged one is missing, and then its own
    inputs are read, too.

    Parameters
    ----------
    nodes : by key, inputs before their users.
    """
    lacking = {key for _, key in store.absent([(n.stage, k) for k, n in nodes.items()])}
    lacking = {k for k in lacking if not store.restore(nodes[k].stage, k)}
    checked: set[str] = set()
    while True:
        read = {i for k in lacking for i in nodes[k].inputs if i in nodes}
        read |= {k for k, n in nodes.items() if n.in_results}
        read -= lacking | checked
        damaged = {key for _, key in store.damaged([(nodes[k].stage, k) for k in nodes if k in read])}
        checked |= read
        lacking |= damaged
        if not damaged:
            return {k: n for k, n in nodes.items() if k in lacking}


def in_order(plan: Plan, missing: Mapping[str, Node]) -> dict[str, Node]:
    """Return the missing stages by key, every one behind its inputs, as early as the first figure that needs it."""
    out: dict[str, Node] = {}
    for wanted in (*_wanted(plan), *missing):
        waiting = [wanted]
        while waiting:
            key = waiting[-1]
            before = [i for i in missing[key].inputs if i in missing and i not in out] if key in missing else []
            if key in missing and key not in out and before:
                waiting += reversed(before)
                continue
            waiting.pop()
            if key in missing:
                out.setdefault(key, missing[key])
    return out


def _wanted(plan: Plan) -> Iterator[str]:
    for chain in plan.chains.values():
        for cell in sorted(chain.cells, key=_Rank(chain)):  # sorted is stable: the rest stays as it was planned
            yield from (key for key in (cell.judge, cell.show, cell.released) if key is not None)
        if chain.picture is not None:
            yield chain.picture


class _Rank:
    """Sort key of a chain's cells: seed by seed, and within a seed by what a first look needs."""

    def __init__(self, chain: ChainPlan) -> None:
        self.last = max((c.level for c in chain.cells), default=0)
        self.seeds = {s: i for i, s in enumerate(sorted({c.seed for c in chain.cells if c.seed is not None}))}
        hottest_first = sorted(chain.context.spec.selectivity, key=strength)
        self.place = {s: i for i, s in enumerate([*hottest_first[-1:], *hottest_first[:-1]])}  # the coldest before all
        self.taught = {c.teacher_cell: self._setting(c) for c in chain.cells if self._is_student(c) and c.teacher_cell}

    def _is_student(self, cell: Cell) -> bool:
        return cell.level == self.last and cell.training is not None and cell.decoding is None and cell.origin is None

    def _setting(self, cell: Cell) -> int:
        return 0 if cell.selectivity is None else self.place.get(cell.selectivity, len(self.place))

    def __call__(self, cell: Cell) -> tuple[int, int, int]:
        seed = 0 if cell.seed is None else self.seeds[cell.seed]
        is_plain = cell.decoding is None
        if cell.role == "truth" and is_plain:
            return seed, 0, 0
        is_distilled = self._is_student(cell) and cell.training == "distilled"
        if is_distilled or cell.id in self.taught:
            at = self._setting(cell) if is_distilled else self.taught[cell.id]
            return (seed, 1 if is_distilled else 2, at) if at < 2 else (seed, 4, at)
        return seed, 3 if self._is_student(cell) or (cell.role == "teacher" and is_plain) else 5, 0
