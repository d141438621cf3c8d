"""Seconds of stages, for plans: recorded of what ran, or found by running one seed of a cheap chain."""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from hydrometer.core.errors import HydrometerError, StageError
from hydrometer.core.findings import warning
from hydrometer.core.spec import ChainSpec
from hydrometer.models.families import RunSpec
from hydrometer.models.work import HasCostModel, Lengths, Work, share_out
from hydrometer.run.cost.this_machine import ThisMachine, keep_length, kept_length
from hydrometer.run.execution.execute import execute
from hydrometer.run.graph.outcome import Monitor, Outcome, SilentMonitor
from hydrometer.run.graph.plan import ChainPlan, Plan, plan_run
from hydrometer.stages.nodes import DrawNode, Node
from hydrometer.stages.stage import Asked, longest_answer
from hydrometer.store.artifacts import ArtifactStore, content_key

__all__ = ["keep_seconds", "kind_of", "trial", "trial_name"]

_MAP_SEEDS, _MAP_POINTS = 10, 3
_PATIENCE = 5.0  # seconds; a first run longer than that is not repeated


def trial(spec: RunSpec, name: str) -> dict[str, float]:
    """Run one seed of a chain, or some points of its map, twice: the first time compiles. Mean seconds by kind.

    Returns
    -------
    Seconds a unit (`Node.units`), by `trial_name`.

    Raises
    ------
    StageError : a stage failed.
    """
    found: dict[str, list[float]] = {}
    for _ in range(2):
        began, found = time.perf_counter(), {}
        plan = _small(spec, name)
        with tempfile.TemporaryDirectory(prefix="hydrometer-") as folder:
            store = ArtifactStore(Path(folder))
            outcome = execute(plan, store, SilentMonitor())
            if outcome.failed:
                raise StageError(f"{name}: a trial of one seed failed", got=next(iter(outcome.failed.values())))
            for key, node in plan.nodes.items():
                seconds = float(store.meta(node.stage, key)["seconds"])
                found.setdefault(trial_name(spec.chains[name], node), []).append(seconds / node.units())
        if time.perf_counter() - began > _PATIENCE:
            break
    return {k: statistics.fmean(v) for k, v in found.items()}


def _small(spec: RunSpec, name: str) -> Plan:
    chain = {name: spec.chains[name]}
    one = spec.model_copy(update={"seeds": spec.seeds[:1], "chains": chain})
    if getattr(spec.chains[name], "grid", None) is None:
        return plan_run(one)
    whole = plan_run(spec.model_copy(update={"chains": chain}))
    maps = whole.chains[name].maps
    chosen = maps[:: max(1, len(maps) // _MAP_POINTS)][:_MAP_POINTS]
    fewer = [replace(n, seeds=n.seeds[:_MAP_SEEDS]) for n in chosen]
    return Plan({n.key: n for n in fewer}, whole.chains)


def kind_of(node: Node) -> tuple[str, str]:
    """Return the stage, and the role of its model, or an empty string."""
    return node.stage, node.about()[0]


def trial_name(chain: ChainSpec, node: Node) -> str:
    """Return the name under which a machine keeps this stage's seconds a unit; extending a run changes no name."""
    told = repr(chain.model_dump(exclude={"resample", "selectivity", "decoding"}))  # infinity is no JSON number
    return f"trial {content_key(told)[:12]} {' '.join(kind_of(node)).strip()}"


_MOST_READ = 300  # artifacts of a kind


def keep_seconds(plan: Plan, store: ArtifactStore, outcome: Outcome, monitor: Monitor) -> None:
    """Record seconds of the stages that this process computed; a failure to write them is a warning to the monitor."""
    made: dict[str, list[Node]] = {}
    for key in outcome.made:
        node = plan.nodes[key]
        made.setdefault(node.context.name, []).append(node)
    try:
        for name, nodes in made.items():
            chain = plan.chains[name]
            family = chain.context.family
            machine = ThisMachine(family, chain.context.spec, lambda _: None)
            if isinstance(family, HasCostModel):
                seconds = _counted(chain, family, machine, nodes, store)
            else:
                seconds = _by_name(chain, nodes, store)
            if seconds:
                machine.learn(seconds, "run")
    except HydrometerError as e:
        why = "`hydrometer plan` cannot use this run's timings; results are unaffected"
        monitor.found([warning("seconds-not-kept", str(e), why, "make its folder writable, or set HYDROMETER_CACHE")])


def _by_name(chain: ChainPlan, nodes: Sequence[Node], store: ArtifactStore) -> dict[str, float]:
    found: dict[str, list[float]] = {}
    for node in _some(nodes):
        name = trial_name(chain.context.spec, node)
        found.setdefault(name, []).append(_seconds(node, store) / node.units())
    return {name: statistics.fmean(taken) for name, taken in found.items()}


def _counted(
    chain: ChainPlan, counted: HasCostModel, machine: ThisMachine, nodes: Sequence[Node], store: ArtifactStore
) -> dict[str, float]:
    most = longest_answer(chain.context.spec)
    lengths = _lengths(chain, nodes, store, most)
    if lengths is not None:
        keep_length(chain.truth.key, lengths)
    mean = (lengths or kept_length(chain.truth.key) or Lengths(float(most), most, "")).mean
    works, taken = dict[Asked, Work](), dict[Work, list[float]]()
    for node in _some(nodes):
        if node.workers() > 1 or (isinstance(node, DrawNode) and node.engine()):
            continue
        asked = node.asked()
        if asked not in works:
            works[asked] = node.work(counted, mean)
        taken.setdefault(works[asked], []).append(_seconds(node, store))
    stages = [(work, float(len(s)), sum(s)) for work, s in taken.items() if work.parts]
    return share_out(stages, machine.kept.device()) if stages else {}


def _lengths(chain: ChainPlan, nodes: Sequence[Node], store: ArtifactStore, most: int) -> Lengths | None:
    """Return the mean length of the truth's own rows that were drawn."""
    own = [n for n in nodes if isinstance(n, DrawNode) and n.law == chain.truth and n.selectivity is None]
    facts = [store.meta(n.stage, n.key)["info"] for n in _some(own)]
    rows, tokens = (sum(int(f.get(k, 0)) for f in facts) for k in ("rows", "tokens"))
    return Lengths(tokens / rows, most, f"mean of {rows} rows of a run") if rows and tokens else None


def _some(nodes: Sequence[Node]) -> list[Node]:
    """Sample evenly from every kind."""
    kinds: dict[tuple[str, str], list[Node]] = {}
    for node in nodes:
        kinds.setdefault(kind_of(node), []).append(node)
    return [node for alike in kinds.values() for node in alike[:: -(-len(alike) // _MOST_READ)]]


def _seconds(node: Node, store: ArtifactStore) -> float:
    return float(store.meta(node.stage, node.key)["seconds"])
