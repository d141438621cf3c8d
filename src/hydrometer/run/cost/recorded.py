"""Record what a run's stages took, for later plans: seconds by part for counted stages, by kind for others."""

from __future__ import annotations

import statistics
from collections.abc import Sequence

from hydrometer.core.errors import HydrometerError
from hydrometer.core.findings import warning
from hydrometer.models.work import HasCostModel, Lengths, Work, share_out
from hydrometer.run.cost.calibration import kind_of, trial_name
from hydrometer.run.cost.this_machine import ThisMachine, keep_length, kept_length
from hydrometer.run.graph.outcome import Monitor, Outcome
from hydrometer.run.graph.plan import ChainPlan, Plan
from hydrometer.stages.nodes import DrawNode, Node
from hydrometer.stages.stage import Asked
from hydrometer.store.artifacts import ArtifactStore

__all__ = ["keep_seconds"]

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
    most = int(getattr(getattr(chain.context.spec, "truth", None), "max_new_tokens", 1))
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
