"""The books of a map: per point the same comparisons as of a chain, and one record a group."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from hydrometer.core.io.yaml_io import artifact_json
from hydrometer.core.statistics.estimate import Contrast, Estimate
from hydrometer.run.graph.outcome import Outcome
from hydrometer.run.graph.plan import ChainPlan
from hydrometer.stages.cells import Cell
from hydrometer.stages.map_point import load_map
from hydrometer.stages.nodes import MapNode
from hydrometer.stages.statistics.chain_groups import ChainFacts
from hydrometer.stages.statistics.groups import Judged, TruthRows
from hydrometer.stages.statistics.summary import Comparison, compare_chain
from hydrometer.store.artifacts import ArtifactStore

__all__ = ["MapBooks"]

Json = dict[str, Any]


class MapBooks:
    """Reads what a chain's map stages left, and compares."""

    def __init__(self, chain: ChainPlan, store: ArtifactStore, outcome: Outcome) -> None:
        self.chain, self.store, self.outcome = chain, store, outcome
        self.contrasts: list[Contrast] = []
        self.groups: dict[str, Json] = {}
        self.records: list[Json] = []
        self.points: list[Json] = []
        for node in chain.maps:
            self._point(node, [c for c in chain.cells if c.judge == node.key])

    def _point(self, node: MapNode, cells: list[Cell]) -> None:
        reason = self.outcome.failed.get(node.key)
        seconds = 0.0
        found: Mapping[str, list[dict[str, Estimate]]] = {}
        if reason is None:
            found = load_map(self.store.path("map", node.key))
            seconds = float(self.store.meta("map", node.key)["seconds"]) / len(cells)
        by_seed = [replace(c, seed=s) for s in node.seeds for c in cells]
        place = {s: i for i, s in enumerate(node.seeds)}

        def judged(cell: Cell) -> Judged | None:
            if reason is not None or cell.seed is None:
                return None
            return Judged(found[cell.group][place[cell.seed]], _no_rows, _no_truth_rows)

        spec, family = node.point.chain, self.chain.context.family
        truth, last = family.describe_truth(spec), max(c.level for c in cells)
        facts = ChainFacts(self.chain.context.name, family.name, truth, False, spec.controls, last)
        comparison = compare_chain(facts, by_seed, judged, lambda _: None)
        self.contrasts += comparison.contrasts
        self.groups |= comparison.groups
        self.points.append({"point": dict(node.point.values), **comparison.chain})
        for cell in cells:
            metrics = _pooled(found.get(cell.group, []), comparison.groups[cell.group]["metrics"])
            self.records.append(cell.record(None if reason else metrics, reason, seconds, {"map": f"map-{node.key}"}))

    def comparison(self) -> Comparison:
        """Return the whole map as a chain's comparison: no gate and no trade-off of its own, but its points."""
        axes: dict[str, list[float]] = {}
        for node in self.chain.maps:
            for axis, value in node.point.values.items():
                if value not in axes.setdefault(axis, []):
                    axes[axis].append(value)
        family, spec = self.chain.context.family, self.chain.context.spec
        summary: Json = {
            "family": family.name,
            "truth": family.describe_truth(spec),
            "kind": "points",
            "unit": "nats",
            "seeds": len(self.chain.maps[0].seeds),
            **dict.fromkeys(("truth_group", "teacher_group", "direct_group", "neutral_group")),
            "gate": {"passed": None, "contrast": None},
            "tradeoff": [],
            "control": [],
            "map": {"axes": axes, "points": self.points},
        }
        return Comparison(self.contrasts, self.groups, summary)

    def exhibits(self) -> dict[str, Json]:
        """Return what the points left to look at, by cell."""
        out: dict[str, Json] = {}
        for node in self.chain.maps:
            if node.key not in self.outcome.failed:
                shown = artifact_json(self.store.path("map", node.key) / "exhibits.json", dict)
                out |= {cell: exhibit for cell, exhibit in shown.items() if exhibit is not None}
        return out


def _pooled(found: list[dict[str, Estimate]], summary: Json) -> Json:
    """A group's figures as a cell's: means over seeds."""
    out: Json = {}
    for name, figure in summary.items():
        first = found[0][name]
        n = sum(m[name].n for m in found if name in m)
        value, se, se_mc, missed, df = (figure[k] for k in ("value", "se", "se_mc", "n_neg_inf", "df"))
        pooled = Estimate(value, se, se_mc, n, missed, first.method, first.unit, df)
        out[name] = pooled.to_json() | {"ci95": figure["ci95"]}  # that over seeds, which may be skewed
    return out


def _no_rows() -> Any:
    raise LookupError("a map keeps no rows")


def _no_truth_rows() -> TruthRows:
    raise LookupError("a map keeps no rows")
