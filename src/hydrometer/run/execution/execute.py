"""Run the stage graph here, one stage after the other, going on where an earlier run stopped."""

from __future__ import annotations

import gc
from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path

from hydrometer.core.dashboards import Dashboards
from hydrometer.core.errors import FolderError, HydrometerError, StageError, UnreachableError
from hydrometer.core.io.os_errors import is_out_of_memory, refused, refused_errno
from hydrometer.models.base import Family, Tick
from hydrometer.models.capabilities import Threaded
from hydrometer.models.drawing import release
from hydrometer.run.execution.ranks import fit_together
from hydrometer.run.graph.outcome import Ended, Monitor, Outcome, nobody
from hydrometer.run.graph.plan import ChainPlan, Plan
from hydrometer.run.graph.spec_merge import strength
from hydrometer.stages.artifact_loader import ArtifactLoader
from hydrometer.stages.cells import Cell
from hydrometer.stages.compute import compute
from hydrometer.stages.nodes import Node
from hydrometer.store.artifacts import ArtifactStore

__all__ = ["begin", "execute", "in_order", "make", "missing_of", "reason_of"]


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
    """Return the missing stages by key, every one behind its inputs, as early as the first figure that needs it.

    Per chain and seed: the truth, the students of the coldest and of the hottest teacher, these teachers, the direct
    student and the unselected teacher (what gate and trade-off are told from), the students between, then controls and
    the rest. The order changes no figure, for every stream is named by what it is for.
    """
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


_LESS = {
    "fit": "lower per_device_train_batch_size (and raise gradient_accumulation_steps as much)",
    "draw": "lower block_rows",
    "score": "lower block_rows",
    "judge": "lower data.evaluate",
}


def reason_of(error: Exception, stage: str, where: Path) -> str:
    """Return why a stage failed, one line; what needs it fails with it and the rest of the run goes on.

    Raised again, or as FolderError, is what would meet every stage alike: a disk without space, no more open files, a
    file system that became read-only. So is what this package does not raise on purpose, which is a defect.

    Parameters
    ----------
    error : what the stage raised.
    stage : its kind: draw, fit, judge, ...
    where : folder of the artifacts.

    Raises
    ------
    FolderError : the machine refuses.
    UnreachableError : a remote store does not answer.

    Examples
    --------
    >>> reason_of(MemoryError(), "draw", Path("runs/a/artifacts"))
    'out of memory; lower block_rows, take a smaller model, or a machine with more memory'
    """
    if isinstance(error, FolderError | UnreachableError):
        raise error
    if refused_errno(error) is not None:
        raise refused(error, where) from error
    if is_out_of_memory(error):
        less = f"{_LESS[stage]}, " if stage in _LESS else ""
        return str(StageError("out of memory", fix=f"{less}take a smaller model, or a machine with more memory"))
    if isinstance(error, HydrometerError):
        return str(error)
    if isinstance(error, OSError):
        raise refused(error, where) from error
    raise error


def execute(plan: Plan, store: ArtifactStore, monitor: Monitor, ended: Ended = nobody) -> Outcome:
    """Compute every stage whose artifact is missing, inputs first and what the first figures need before the rest.

    A stage that fails, meets input that only it could find wrong, or runs out of memory takes with it those that need
    it; others go on. A folder that cannot be written ends the run, and so do a store that does not answer and a defect.
    """
    outcome, missing, costs = begin(plan, store, monitor)
    bench = ArtifactLoader(store)
    for key, node in missing.items():
        monitor.stage(node.label, costs[key])
        reason = next((outcome.failed[i] for i in node.inputs if i in outcome.failed), None)
        if reason is None:
            try:
                if node.workers() > 1:
                    fit_together(node, plan, store)
                else:
                    make(node, bench, monitor.tick, plan.dashboards)
                outcome.made.append(key)
            except Exception as e:
                reason = reason_of(e, node.stage, store.root)
            if reason is not None:
                gc.collect()  # what a failed stage left in cycles, a half-made model say, is not to starve the next one
        outcome.end(node, reason)
        monitor.done(costs[key], reason)
        ended(node, outcome)
    for chain in plan.chains.values():
        release(chain.context.family)
    return outcome


def begin(plan: Plan, store: ArtifactStore, monitor: Monitor) -> tuple[Outcome, dict[str, Node], dict[str, float]]:
    """Look at what is there: the outcome so far, the missing stages as they are to be made, and every stage's cost."""
    missing = in_order(plan, missing_of(plan.nodes, store))
    outcome = Outcome(left=set(missing))
    outcome.reused.update(node.stage for key, node in plan.nodes.items() if key not in missing)
    costs = costs_of(plan)
    monitor.begin(sum(costs.values()), sum(c for k, c in costs.items() if k not in missing), len(missing))
    return outcome, missing, costs


def make(node: Node, bench: ArtifactLoader, tick: Tick, dashboards: Dashboards) -> None:
    """Make one stage's artifact in this process."""
    family, store = node.context.family, bench.store
    threaded = _threaded(family)
    if threaded is not None:  # a law that is open already was perhaps opened for a chain of other threads
        threaded.prepare(node.context.spec)
    if not node.draws:
        release(family)  # an engine that draws holds an accelerator's memory
    with store.write(node.stage, node.key, {"inputs": list(node.inputs)}) as (folder, info):
        with dashboards.hearing(node.key):
            info.update(compute(node, bench, folder, tick))
    if node.resumes:
        store.discard_partial(node.stage, node.key)


@cache
def _threaded(family: Family) -> Threaded | None:
    """Whether a family has the capability, asked once: an empty stage takes less time than the question."""
    return family if isinstance(family, Threaded) else None


def costs_of(plan: Plan) -> dict[str, float]:
    """Return what every stage costs; those that are alike are reckoned once."""
    known: dict[tuple[object, ...], float] = {}
    costs: dict[str, float] = {}
    for key, node in plan.nodes.items():
        alike = node.alike()
        if alike not in known:
            known[alike] = node.cost()
        costs[key] = known[alike]
    return costs
