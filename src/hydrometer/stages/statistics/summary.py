"""Summary: what a run says, chain by chain, as data: gate, trade-off, control.

Wording is the report's. Every number here is a group's figure or a contrast of `stages.statistics.contrasts`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hydrometer.core.distillation import Distillation
from hydrometer.core.errors import StoreError
from hydrometer.core.io.yaml_io import artifact_json
from hydrometer.core.statistics.estimate import Contrast
from hydrometer.core.statistics.seeds import unseen
from hydrometer.models.finite_selectivity import canonical
from hydrometer.stages.cells import Cell
from hydrometer.stages.statistics.chain_groups import ChainFacts, ChainGroups, gather, matched
from hydrometer.stages.statistics.contrasts import as_contrast, group_figure
from hydrometer.stages.statistics.generalisation import generalisation
from hydrometer.stages.statistics.groups import Figure, Group, Judged, over_seeds
from hydrometer.stages.statistics.spread import NO_SPREAD, Spread, spread_of

__all__ = ["Comparison", "compare_chain", "load_released"]

Json = dict[str, Any]

# As printed by the notebook, for the direct student and for the one distilled at beta = 100 (docs, The paper).
PRINTED = {
    ("direct", "precision_as_released"): -20.27,
    ("direct", "recall_as_released"): -2.65,
    ("distilled", "precision_as_released"): -0.70,
    ("distilled", "recall_as_released"): -42.45,
}


@dataclass(slots=True)
class Comparison:
    """Contrasts, groups and the summary of one chain."""

    contrasts: list[Contrast] = field(default_factory=list[Contrast])
    groups: dict[str, Json] = field(default_factory=dict[str, Json])
    chain: Json = field(default_factory=dict[str, Any])


def compare_chain(
    facts: ChainFacts,
    cells: list[Cell],
    judged: Callable[[Cell], Judged | None],
    released: Callable[[Cell], Json | None],
) -> Comparison:
    """Compare all groups of one chain."""
    groups, example, failed = gather(cells, judged)
    c = ChainGroups(facts, groups, example)
    out = Comparison()
    for name, cell in example.items():
        out.groups[name] = _group_summary(name, cell, groups.get(name), failed[name])
    for name in (*c.distilled.values(), *c.decoded.values(), *_decoded_neutral(c), c.teacher):
        c.pair(name, c.direct)
    tradeoff = _tradeoff(c)
    adopted = _adopted(c)
    control = _controls(c)
    baselines = _baselines(c)
    out.chain = {
        "family": facts.family,
        "truth": facts.truth,
        "kind": "sequences" if facts.sequences else "points",
        "unit": "nats",
        "seeds": len({x.seed for x in cells if x.seed is not None and x.origin is None}) or 1,
        **({} if facts.reference is None else {"reference": facts.reference}),
        "truth_group": c.truth,
        "teacher_group": c.teacher,
        "direct_group": c.direct,
        "neutral_group": c.neutral,
        "gate": _gate(c),
        "tradeoff": tradeoff,
        "control": control,
        **({"baselines": baselines} if baselines else {}),
        **({"adopted": adopted} if adopted else {}),
        **({"generalisation": gaps} if (gaps := generalisation(c, cells, judged)) else {}),
    }
    out.contrasts = [x for found in c.pairs.values() for x in found.values()]
    quoted = _as_released(c, cells, released, out)
    if quoted:
        out.chain["as_released"] = quoted
    return out


def _decoded_neutral(c: ChainGroups) -> list[str]:
    return [
        n
        for n, x in c.example.items()
        if x.training == "distilled" and x.decoding is not None and canonical(x.selectivity) is None and n in c.groups
    ]


def _group_summary(name: str, cell: Cell, group: Group | None, failed: int) -> Json:
    metrics: Json = {}
    if group is not None:
        for metric, estimate in group.metrics.items():
            f = group_figure(group, metric)
            metrics[metric] = {
                "value": f.value,
                "se": f.se,
                "se_mc": f.se_mc,
                "df": f.df,
                "ci95": f.ci95,
                "unit": estimate.unit,
                "n_neg_inf": f.n_neg_inf,
                **_spread_over(group, metric),
            }
    return {
        "chain": cell.chain,
        "role": cell.role,
        "level": cell.level,
        "training": cell.training,
        **({} if cell.baseline is None else {"baseline": cell.baseline}),
        "selectivity": None if cell.selectivity is None else cell.selectivity.to_json(),
        **({} if cell.distillation is None else cell.distillation.variant),
        "decoding": None if cell.decoding is None else cell.decoding.to_json(),
        **cell.absence,
        **({} if cell.point is None else {"point": dict(cell.point)}),
        **({} if cell.origin is None else {"adopted": cell.origin["adopted"]}),
        "seeds": 0 if group is None else len(group.by_seed),
        "unseen": unseen(len(group.by_seed)) if group is not None and len(group.by_seed) > 1 else None,
        "failed": failed,
        "metrics": metrics,
    }


def _spread_over(group: Group, metric: str) -> Spread:
    if len(group.by_seed) < 2:
        return NO_SPREAD
    found = [j.metrics.get(metric) for j in group.by_seed.values()]
    return spread_of([None if e is None else e.value for e in found])


def _gate(c: ChainGroups) -> Json:
    """Teacher gate: whether the unselected teacher's recall beats the direct student's."""
    found = c.differences(c.teacher, c.direct)
    contrast: Json | None = found.get("recall", found.get("recall_per_byte"))
    if not c.facts.is_whole:  # what is shown by some of the seeds may not be by all
        return {"passed": None, "contrast": contrast, "reason": "not all of the chain is judged yet"}
    if c.teacher is None:
        return {"passed": None, "contrast": None, "reason": "the teacher is the truth itself"}
    if contrast is None or contrast["ci95"] is None:
        return {"passed": None, "contrast": contrast, "reason": "no finite recall to compare"}
    low, high = contrast["ci95"]
    return {"passed": True if low > 0 else False if high < 0 else None, "contrast": contrast}


def _teacher_entropy(c: ChainGroups, d: Distillation) -> float | None:
    values = [j.metrics.get("entropy_teacher") for j in c.groups[c.distilled[d]].by_seed.values()]
    known = [v.value for v in values if v is not None and v.value is not None]
    return float(np.mean(known)) if known else None


def _tradeoff(c: ChainGroups) -> list[Json]:
    """One entry a distillation by falling entropy of the teacher; those without one come last, and none is the coldest.

    Each method has its coldest.
    """
    entropies = {d: _teacher_entropy(c, d) for d, group in c.distilled.items() if group in c.groups}
    order = sorted(entropies, key=lambda d: (entropies[d] is None, -(entropies[d] or 0.0)))
    coldest = {d.method: d for d in order if entropies[d] is not None}  # the last of each
    return [
        {
            "selectivity": d.selectivity.to_json(),
            **d.variant,
            "group": c.distilled[d],
            "coldest": coldest.get(d.method) == d,
            "vs_neutral": c.differences(c.distilled[d], c.neutral_of(d)),
            "vs_direct": c.differences(c.distilled[d], c.direct),
            **_between_methods(c, d),
            **_over_baselines(c, d),
        }
        for d in order
    ]


def _between_methods(c: ChainGroups, d: Distillation) -> Json:
    """Compare a student with those of other methods at its selectivity that come before it, where there are some."""
    same = [e for e in c.distilled if e.selectivity == d.selectivity]
    others = [c.distilled[e] for e in same[: same.index(d)]]
    found = {other: c.differences(c.distilled[d], other) for other in others}
    return {"vs_methods": found} if found else {}


def _over_baselines(c: ChainGroups, d: Distillation) -> Json:
    """Compare a student with the baselines, where there are some."""
    found = {n: c.differences(c.distilled[d], n) for n in c.baselines if n in c.groups}
    return {"vs_baselines": found} if found else {}


def _baselines(c: ChainGroups) -> list[Json]:
    """Compare students that were fitted to texts of their own; decoded, each with itself as it is."""
    for n, x in c.example.items():
        if x.baseline is not None and x.decoding is not None and x.origin is None:
            c.pair(n, c.direct)
            c.pair(n, next((b for b in c.baselines if c.example[b].baseline == x.baseline), None))
    return [
        {
            "group": n,
            "name": c.example[n].baseline,
            "training": c.example[n].training,
            "vs_direct": c.differences(n, c.direct),
            "vs_neutral": c.differences(n, c.neutral),
            **matched(c, n),
        }
        for n in c.baselines
        if n in c.groups
    ]


def _adopted(c: ChainGroups) -> list[Json]:
    """Compare models trained elsewhere: with the run's students, and with others of the same name."""
    plain = {n: x for n, x in c.adopted.items() if x.decoding is None and n in c.groups}
    directs = {_name(x): n for n, x in plain.items() if x.training == "direct"}
    neutrals = [
        (_name(x), x.distillation, n)
        for n, x in plain.items()
        if x.distillation is not None and canonical(x.selectivity) is None
    ]
    out: list[Json] = []
    for n, x in c.adopted.items():
        d = x.distillation
        if x.decoding is not None:
            c.pair(n, c.direct if d is None else c.neutral_of(d))
            c.pair(n, directs.get(_name(x)))
            continue
        entry: Json = {
            "group": n,
            "name": _name(x),
            "training": x.training,
            "selectivity": None if x.selectivity is None else x.selectivity.to_json(),
            **({} if d is None else d.variant),
        }
        against = {
            "vs_direct": c.direct,
            "vs_neutral": c.neutral_of(d),
            "vs_native": c.distilled.get(d) if d is not None else c.direct if x.training == "direct" else None,
            "vs_own_direct": directs.get(_name(x)),
            "vs_own_neutral": next(
                (m for name, e, m in neutrals if name == _name(x) and (d is None or e.method == d.method)), None
            ),
            "same_setting": None if x.selectivity is None else c.decoded.get(x.selectivity),
        }
        entry |= {key: c.differences(n, other) for key, other in against.items()}
        out.append(entry | matched(c, n))
    return out


def _name(cell: Cell) -> str:
    return "" if cell.origin is None else str(cell.origin["adopted"])


def _controls(c: ChainGroups) -> list[Json]:
    """Compare each student with the direct one decoded at its setting, and at its entropy."""
    out: list[Json] = []
    for s in c.facts.controls:
        for d, distilled in c.distilled.items():
            decoded = c.decoded.get(s)
            if d.selectivity != s or decoded is None or not c.has(distilled, decoded):
                continue
            entry: Json = {
                "selectivity": s.to_json(),
                **d.variant,
                "distilled": distilled,
                "decoded": decoded,
                "same_setting": c.differences(distilled, decoded),
            }
            if s.tilt is not None:  # align, then distil, less distil, then align
                entry["vs_neutral_decoded"] = c.differences(distilled, c.neutral_decoded(d))
            out.append(entry | matched(c, distilled))
    return out


def _as_released(
    c: ChainGroups, cells: list[Cell], released: Callable[[Cell], Json | None], out: Comparison
) -> list[Json]:
    """Spread over seeds of the figures as the notebook computes them; and, per setting, distilled minus direct."""
    found = {cell: r for cell in cells if cell.released is not None and (r := released(cell)) is not None}
    rows: list[Json] = []
    for d, group in c.distilled.items():
        mine = [r for cell, r in found.items() if cell.group == group]
        for metric in ("precision_as_released", "recall_as_released") if mine else ():
            columns = {t: np.array([float(r[t][metric]) for r in mine]) for t in ("direct", "distilled")}
            f = _mean_over_seeds(columns["distilled"] - columns["direct"])
            out.contrasts.append(as_contrast(group, str(c.direct), metric, f))
            rows += [_spread(d, t, metric, x) for t, x in columns.items()]
    return rows


def _mean_over_seeds(x: NDArray[np.float64]) -> Figure:
    if x.size < 2:
        return Figure(float(x.mean()), None, None)
    return over_seeds(x, 0.0, x.size - 1)


def _spread(d: Distillation, training: str, metric: str, x: NDArray[np.float64]) -> Json:
    low, middle, high = np.quantile(x, [0.025, 0.5, 0.975])
    mean = _mean_over_seeds(x)
    return {
        "selectivity": d.selectivity.to_json(),
        **d.variant,
        "training": training,
        "metric": metric,
        "seeds": x.size,
        "mean": mean.value,
        "se": mean.se,
        "ci95": mean.ci95,
        "median": float(middle),
        "q025": float(low),
        "q975": float(high),
        "printed": PRINTED.get((training, metric)) if d.selectivity.weight_power == 100 else None,
    }


def load_released(folder: Path) -> Json:
    """Read what `stages.judge.released` wrote. Raises StoreError where it holds something else."""
    found: Json = artifact_json(folder / "released.json", dict)
    names = ("precision_as_released", "recall_as_released")
    try:
        return {t: {name: float(found[t][name]) for name in names} for t in ("direct", "distilled")}
    except (KeyError, TypeError, ValueError) as e:
        fix = "delete its folder, then run again"
        raise StoreError(f"released.json cannot be read: {e}", got=folder.name, fix=fix) from None
