"""Run the stage graph here, one stage after the other, going on where an earlier run stopped."""

from __future__ import annotations

import gc
from functools import cache
from pathlib import Path

from hydrometer.core.errors import StoreError
from hydrometer.models.base import Family, Tick
from hydrometer.models.capabilities import Threaded
from hydrometer.models.drawing import release
from hydrometer.run.execution.failures import reason_of
from hydrometer.run.execution.ranks import fit_together, workers_of
from hydrometer.run.graph.missing import missing_of
from hydrometer.run.graph.order import in_order
from hydrometer.run.graph.outcome import Ended, Monitor, Outcome, nobody
from hydrometer.run.graph.plan import Plan
from hydrometer.stages.artifact_loader import Bench
from hydrometer.stages.draw import draw
from hydrometer.stages.fit import fit
from hydrometer.stages.judge import judge, released, show
from hydrometer.stages.map_point import map_point
from hydrometer.stages.nodes import (
    AdoptNode,
    DrawNode,
    EmbedNode,
    FitNode,
    JudgeNode,
    MapNode,
    Node,
    PictureNode,
    ReleasedNode,
    ScoreNode,
    ShowNode,
)
from hydrometer.stages.picture import embed, picture
from hydrometer.stages.score import score
from hydrometer.store.artifacts import ArtifactStore

__all__ = ["begin", "execute", "label_of", "make", "workers_of"]


def execute(plan: Plan, store: ArtifactStore, monitor: Monitor, ended: Ended = nobody) -> Outcome:
    """Compute every stage whose artifact is missing, inputs first and what the first figures need before the rest.

    A stage that fails, meets input that only it could find wrong, or runs out of memory takes with it those that need
    it; others go on. A folder that cannot be written ends the run, and so do a store that does not answer and a defect.
    """
    outcome, missing, costs = begin(plan, store, monitor)
    bench = Bench(store)
    for key, node in missing.items():
        monitor.stage(label_of(node), costs[key])
        reason = next((outcome.failed[i] for i in node.inputs if i in outcome.failed), None)
        if reason is None:
            try:
                if workers_of(node) > 1:
                    fit_together(node, plan, store)
                else:
                    make(node, plan, bench, monitor.tick)
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


def make(node: Node, plan: Plan, bench: Bench, tick: Tick) -> None:
    """Make one stage's artifact in this process."""
    family, store = node.context.family, bench.store
    threaded = _threaded(family)
    if threaded is not None:  # a law that is open already was perhaps opened for a chain of other threads
        threaded.prepare(node.context.spec)
    with store.write(node.stage, node.key, {"inputs": list(node.inputs)}) as (folder, info):
        info.update(compute(node, plan, bench, folder, tick))
    if isinstance(node, FitNode):
        store.discard_partial(node.stage, node.key)


@cache
def _threaded(family: Family) -> Threaded | None:
    """Whether a family has the capability, asked once: an empty stage takes less time than the question."""
    return family if isinstance(family, Threaded) else None


def compute(node: Node, plan: Plan, bench: Bench, folder: Path, tick: Tick) -> dict[str, object]:
    """Compute one stage into `folder`."""
    if not isinstance(node, DrawNode):
        release(node.context.family)  # an engine that draws holds an accelerator's memory
    match node:
        case DrawNode():
            return draw(node, bench, folder)
        case FitNode():
            return fit(node, plan.chains[node.context.name].truth, bench, folder, tick)
        case AdoptNode():
            raise StoreError("the weights of an adopted model are gone", got=node.name, fix="adopt it again")
        case ScoreNode():
            return score(node, bench, folder)
        case JudgeNode():
            return judge(node, bench, folder)
        case ShowNode():
            return show(node, bench, folder)
        case ReleasedNode():
            return released(node, bench, folder)
        case MapNode():
            return map_point(node, folder, tick)
        case EmbedNode():
            return embed(node, bench, folder)
        case PictureNode():
            return picture(node, bench, folder)


def costs_of(plan: Plan) -> dict[str, float]:
    """Return what every stage costs; those that are alike are reckoned once."""
    known: dict[tuple[object, ...], float] = {}
    costs: dict[str, float] = {}
    for key, node in plan.nodes.items():
        law, level = getattr(node, "law", None), getattr(node, "level", None)
        rows = getattr(node, "law_rows", None) or getattr(node, "data", None)
        alike = (
            node.stage, node.context.name, getattr(law, "role", None), getattr(level, "role", None),
            getattr(rows, "n", None), getattr(node, "n", None), getattr(node, "selectivity", None),
            len(getattr(node, "seeds", ())), isinstance(node, AdoptNode), bool(getattr(node, "truth_scores", ())),
        )  # fmt: skip
        if alike not in known:
            known[alike] = cost_of(node)
        costs[key] = known[alike]
    return costs


def cost_of(node: Node) -> float:
    """Return the relative cost of a stage."""
    family, chain = node.context.family, node.context.spec
    match node:
        case DrawNode():
            candidates = 1 if node.selectivity is None else node.selectivity.best_of or 1
            return candidates * family.cost(chain, "draw", node.law.role, node.n)
        case FitNode():
            return family.cost(chain, "fit", node.level.role, node.data.n)
        case ScoreNode():  # judging is both sides' rows
            return family.cost(chain, "judge", node.law.role, node.n) / 2
        case JudgeNode() if not (node.truth_scores or node.law_scores):
            return family.cost(chain, "judge", node.law.role, node.law_rows.n)
        case AdoptNode():
            return 0.0
        case JudgeNode() | ShowNode() | ReleasedNode() | PictureNode():
            return family.cost(chain, "judge", "student", 1)
        case EmbedNode():  # one pass of the truth, as a draw is
            return family.cost(chain, "draw", node.truth.role, node.n)
        case MapNode():
            once = family.cost(chain, "fit", "student", 1) + family.cost(chain, "judge", "student", 1)
            return len(node.seeds) * (1 + len(chain.selectivity)) * once


def label_of(node: Node) -> str:
    """Name a stage for people."""
    chain = node.context.name
    match node:
        case DrawNode():
            at = "" if node.selectivity is None else f" at {node.selectivity.label}"
            return f"{chain}: draw from the {node.law.role}{at}, rows {node.start}-{node.start + node.n - 1}"
        case FitNode():
            at = "" if node.data.selectivity is None else f" at {node.data.selectivity.label}"
            return f"{chain}: fit the {node.level.role} on the {node.data.law.role}'s rows{at}"
        case AdoptNode():
            return f"{chain}: open the adopted {node.name}"
        case ScoreNode():
            at = "" if node.decoding is None else f" decoded at {node.decoding.label}"
            whose = "its" if node.side == "law" else "the truth's"
            return f"{chain}: score the {node.law.role}{at}, {whose} rows {node.start}-{node.start + node.n - 1}"
        case JudgeNode():
            at = "" if node.decoding is None else f" decoded at {node.decoding.label}"
            return f"{chain}: judge the {node.law.role}{at}"
        case ShowNode():
            return f"{chain}: keep something to look at"
        case ReleasedNode():
            return f"{chain}: figures as released"
        case EmbedNode():
            at = "" if node.rows.selectivity is None else f" at {node.rows.selectivity.label}"
            return f"{chain}: embed the {node.rows.law.role}'s rows{at}"
        case PictureNode():
            return f"{chain}: picture by {node.method}"
        case MapNode():
            at = ", ".join(f"{axis} {value:g}" for axis, value in node.point.values.items())
            return f"{chain}: map at {at}"
