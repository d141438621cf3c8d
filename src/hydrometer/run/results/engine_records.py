"""What the records say of rows that an engine drew: which one, and how far its log-probabilities are from ours."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any

from hydrometer.core.statistics.estimate import t_interval
from hydrometer.run.graph.plan import Plan
from hydrometer.stages.nodes import DrawNode
from hydrometer.store.artifacts import ArtifactStore

__all__ = ["engine_records"]


def engine_records(plan: Plan, chain: str, store: ArtifactStore) -> dict[str, object]:
    """Return ``{"engine": [...]}`` for a chain whose rows an engine drew, pooled over blocks; else nothing.

    One entry for each role and selectivity that was drawn from (docs, Schema).
    """
    groups: dict[tuple[str, str], list[tuple[DrawNode, Mapping[str, Any]]]] = {}
    for node in plan.nodes.values():
        if not isinstance(node, DrawNode) or node.context.name != chain:
            continue
        if node.engine() and store.has("draw", node.key):
            info: Mapping[str, Any] = store.meta("draw", node.key)["info"]
            label = "" if node.selectivity is None else node.selectivity.label
            groups.setdefault((node.law.role, label), []).append((node, info))
    return {"engine": [_pooled(blocks) for blocks in groups.values()]} if groups else {}


def _pooled(blocks: list[tuple[DrawNode, Mapping[str, Any]]]) -> dict[str, object]:
    node, infos = blocks[0][0], [info for _, info in blocks]
    told: list[Mapping[str, Any]] = [info["engine"] for info in infos]
    tokens, rows = [int(info["tokens"]) for info in infos], sum(int(info["rows"]) for info in infos)
    return {
        "name": told[0]["name"],
        "versions": sorted({str(t.get("version")) for t in told}),
        "role": node.law.role,
        "selectivity": None if node.selectivity is None else node.selectivity.to_json(),
        "rows": rows,
        "tokens": sum(tokens),
        "gap": _mean([t["gap"] for t in told], tokens, rows) | {"max": max(float(t["gap"]["max"]) for t in told)},
        "surprise": _mean([t["surprise"] for t in told], tokens, rows),
        "edge_tokens": sum(int(t["edge_tokens"]) for t in told),
    }


def _mean(parts: Iterable[Mapping[str, Any]], tokens: list[int], rows: int) -> dict[str, object]:
    """Mean over tokens of independent blocks; no error where a block of one row has none."""
    found, whole = list(parts), sum(tokens)
    value = sum(float(p["value"]) * t for p, t in zip(found, tokens, strict=True)) / whole
    errors = [None if p["se"] is None else float(p["se"]) * t for p, t in zip(found, tokens, strict=True)]
    known = [e for e in errors if e is not None]
    se = math.hypot(*known) / whole if len(known) == len(errors) else None
    ci95 = None if se is None else t_interval(value, se, max(rows - len(found), 1))
    return {"value": value, "se": se, "ci95": ci95}
