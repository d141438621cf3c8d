"""What the records say of training rows.

Which engine drew them, and how far its log-probabilities are from ours; how many that crossed to another tokenizer are
not what was drawn; and what was left out of a teacher's law that was kept along them.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any

from hydrometer.core.distillation import DENSE
from hydrometer.core.statistics.estimate import t_interval
from hydrometer.run.graph.plan import Plan
from hydrometer.stages.nodes import DrawNode, FitNode
from hydrometer.store.artifacts import ArtifactStore

__all__ = ["crossed_records", "engine_records", "law_records"]


Blocks = list[tuple[DrawNode, Mapping[str, Any]]]


def engine_records(plan: Plan, chain: str, store: ArtifactStore) -> dict[str, object]:
    """Return ``{"engine": [...]}`` for a chain whose rows an engine drew, pooled over blocks; else nothing.

    One entry for each role and selectivity that was drawn from (docs, Schema).
    """
    groups = _drawn(plan, chain, store, "engine")
    return {"engine": [_pooled(blocks) for blocks in groups]} if groups else {}


def crossed_records(plan: Plan, chain: str, store: ArtifactStore) -> dict[str, object]:
    """Return ``{"crossed": [...]}``, likewise, for rows that crossed to another tokenizer as text."""
    groups = _drawn(plan, chain, store, "crossed")
    return {"crossed": [_counted(blocks) for blocks in groups]} if groups else {}


def law_records(plan: Plan, chain: str, store: ArtifactStore) -> dict[str, object]:
    """Return ``{"teacher_laws": [...]}``, one entry for each fit to what was kept of a teacher's law; else nothing."""
    found = [
        {
            "fit": f"fit-{n.key}",
            "role": n.level.role,
            **n.distillation.to_json(),
            **store.meta("fit", n.key)["info"]["teacher_law"],
        }
        for n in plan.nodes.values()
        if isinstance(n, FitNode) and n.context.name == chain and n.distillation is not None and n.law != DENSE
        if store.has("fit", n.key)
    ]
    return {"teacher_laws": found} if found else {}


def _drawn(plan: Plan, chain: str, store: ArtifactStore, fact: str) -> list[Blocks]:
    """Blocks of draws that were told a fact, by role and selectivity."""
    groups: dict[tuple[str, str], Blocks] = {}
    for node in plan.nodes.values():
        if not isinstance(node, DrawNode) or node.context.name != chain or node.purpose != "train":
            continue
        if store.has("draw", node.key):
            info: Mapping[str, Any] = store.meta("draw", node.key)["info"]
            label = "" if node.selectivity is None else node.selectivity.label
            if fact in info:
                groups.setdefault((node.law.role, label), []).append((node, info))
    return list(groups.values())


def _counted(blocks: Blocks) -> dict[str, object]:
    node = blocks[0][0]
    told: list[Mapping[str, int]] = [info["crossed"] for _, info in blocks]
    return {
        "role": node.law.role,
        "selectivity": None if node.selectivity is None else node.selectivity.to_json(),
        **{name: sum(int(t[name]) for t in told) for name in ("rows", "changed", "respelled", "cut")},
    }


def _pooled(blocks: Blocks) -> dict[str, object]:
    node, infos = blocks[0][0], [info for _, info in blocks]
    told: list[Mapping[str, Any]] = [info["engine"] for info in infos]
    tokens = [int(info.get("crossed", info)["tokens"]) for info in infos]  # those that were drawn
    rows = sum(int(info["rows"]) for info in infos)
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
