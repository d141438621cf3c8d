"""Seconds of a cheap chain's stages, found by running one seed of it in a temporary folder."""

from __future__ import annotations

import statistics
import tempfile
import time
from dataclasses import replace
from pathlib import Path

from hydrometer.core.errors import StageError
from hydrometer.core.spec import ChainSpec
from hydrometer.models.families import RunSpec
from hydrometer.run.execution.execute import execute
from hydrometer.run.graph.outcome import SilentMonitor
from hydrometer.run.graph.plan import Plan, plan_run
from hydrometer.stages.nodes import Node
from hydrometer.store.artifacts import ArtifactStore, content_key

__all__ = ["kind_of", "trial", "trial_name"]

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
