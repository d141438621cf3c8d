"""Summary: what a run says, chain by chain, as data: gate, trade-off, control.

Wording is the report's. Every number here is a group's figure or a contrast of `stages.statistics.contrasts`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hydrometer.core.errors import StoreError
from hydrometer.core.io.yaml_io import artifact_json
from hydrometer.core.spec import Selectivity
from hydrometer.core.statistics.estimate import Contrast
from hydrometer.core.statistics.seeds import unseen
from hydrometer.models.finite_selectivity import canonical
from hydrometer.stages.nodes import Cell
from hydrometer.stages.statistics.contrasts import (
    Figure,
    Group,
    Judged,
    as_contrast,
    combine,
    contrast,
    group_figure,
    over_seeds,
)
from hydrometer.stages.statistics.spread import NO_SPREAD, Spread, spread_of

__all__ = ["ChainFacts", "Comparison", "compare_chain", "load_released"]

Json = dict[str, Any]

LIKELIHOOD = ("precision", "recall", "recall_on_support", "entropy", "kl_student_truth", "kl_truth_student")
TEXT = ("length", "eos_rate", "repetition", "distinct_1", "distinct_2", "distinct_3")
BROUGHT = ("user_", "lm_eval_")
"""What begins the names of figures that a user brought."""
# As printed by the notebook, for the direct student and for the one distilled at beta = 100 (docs, The paper).
PRINTED = {
    ("direct", "precision_as_released"): -20.27,
    ("direct", "recall_as_released"): -2.65,
    ("distilled", "precision_as_released"): -0.70,
    ("distilled", "recall_as_released"): -42.45,
}


@dataclass(frozen=True, slots=True)
class ChainFacts:
    """What the summary needs to know of a chain besides its cells.

    Attributes
    ----------
    last : level of its students.
    is_whole : whether no more of it is to be judged.
    """

    name: str
    family: str
    truth: str
    sequences: bool
    controls: tuple[Selectivity, ...]
    last: int
    is_whole: bool = True


@dataclass(slots=True)
class Comparison:
    """Contrasts, groups and the summary of one chain."""

    contrasts: list[Contrast] = field(default_factory=list[Contrast])
    groups: dict[str, Json] = field(default_factory=dict[str, Json])
    chain: Json = field(default_factory=dict[str, Any])


def gather(
    cells: list[Cell], judged: Callable[[Cell], Judged | None]
) -> tuple[dict[str, Group], dict[str, Cell], dict[str, int]]:
    """Group cells by what they are without their seed.

    Returns
    -------
    groups of judged cells, one cell that stands for each group, failed cells per group.
    """
    shared = all(c.seed is None for c in cells if c.role == "truth" and c.decoding is None)
    members: dict[str, dict[int | None, Judged]] = {}
    example: dict[str, Cell] = {}
    failed: dict[str, int] = {}
    for cell in cells:
        example.setdefault(cell.group, cell)
        failed.setdefault(cell.group, 0)
        members.setdefault(cell.group, {})
        found = judged(cell)
        if found is None:
            failed[cell.group] += 1
        else:
            members[cell.group][cell.seed] = found
    groups = {name: Group(name, by_seed, shared) for name, by_seed in members.items() if by_seed}
    return groups, example, failed


class _Chain:
    """One chain's groups by what they are."""

    def __init__(self, facts: ChainFacts, groups: dict[str, Group], example: dict[str, Cell]) -> None:
        self.facts, self.groups, self.example = facts, groups, example
        self.metrics = [*LIKELIHOOD]
        if facts.sequences:
            self.metrics += [f"{m}_per_token" for m in LIKELIHOOD] + list(TEXT)
        mine = {n: c for n, c in example.items() if c.level == facts.last and c.training}
        self.adopted = {n: c for n, c in mine.items() if c.origin is not None}
        at_end = {n: c for n, c in mine.items() if c.origin is None}
        plain = {n: c for n, c in at_end.items() if c.decoding is None}
        self.direct = next((n for n, c in plain.items() if c.training == "direct"), None)
        self.distilled: dict[Selectivity, str] = {
            c.selectivity: n for n, c in plain.items() if c.training == "distilled" and c.selectivity is not None
        }
        self.neutral = next((n for s, n in self.distilled.items() if canonical(s) is None), None)
        self.decoded: dict[Selectivity, str] = {
            c.decoding: n for n, c in at_end.items() if c.training == "direct" and c.decoding is not None
        }
        self.truth = next((n for n, c in example.items() if c.role == "truth" and c.decoding is None), None)
        self.teacher = next((n for n, c in example.items() if c.role == "teacher" and c.decoding is None), None)

    def has(self, *names: str | None) -> bool:
        return all(n is not None and n in self.groups for n in names)

    def contrasts(self, a: str, b: str) -> dict[str, Contrast]:
        one, two = self.groups[a], self.groups[b]
        out: dict[str, Contrast] = {}
        first, second = one.metrics, two.metrics
        for metric in [*self.metrics, *(m for m in first if m.startswith(BROUGHT))]:
            if metric in first and metric in second:
                out[metric] = contrast(one, two, metric)
        return out


def compare_chain(
    facts: ChainFacts,
    cells: list[Cell],
    judged: Callable[[Cell], Judged | None],
    released: Callable[[Cell], Json | None],
) -> Comparison:
    """Compare all groups of one chain."""
    groups, example, failed = gather(cells, judged)
    c = _Chain(facts, groups, example)
    out = Comparison()
    for name, cell in example.items():
        out.groups[name] = _group_summary(name, cell, groups.get(name), failed[name])
    pairs: dict[tuple[str, str], dict[str, Contrast]] = {}

    def pair(a: str | None, b: str | None) -> dict[str, Contrast]:
        if a is None or b is None or a == b or not c.has(a, b):
            return {}
        if example[a].point is None and example[a].judge == example[b].judge:  # the same weights under two names
            return {}
        if (a, b) not in pairs:
            pairs[a, b] = c.contrasts(a, b)
        return pairs[a, b]

    for name in (*c.distilled.values(), *c.decoded.values(), *_decoded_neutral(c), c.teacher):
        pair(name, c.direct)
    tradeoff = _tradeoff(c, pair)
    adopted = _adopted(c, pair)
    control = [entry for s in facts.controls if (entry := _control(c, s, pair)) is not None]
    out.chain = {
        "family": facts.family,
        "truth": facts.truth,
        "kind": "sequences" if facts.sequences else "points",
        "unit": "nats",
        "seeds": len({x.seed for x in cells if x.seed is not None and x.origin is None}) or 1,
        "truth_group": c.truth,
        "teacher_group": c.teacher,
        "direct_group": c.direct,
        "neutral_group": c.neutral,
        "gate": _gate(c, pair),
        "tradeoff": tradeoff,
        "control": control,
        **({"adopted": adopted} if adopted else {}),
    }
    out.contrasts = [x for found in pairs.values() for x in found.values()]
    quoted = _as_released(c, cells, released, out)
    if quoted:
        out.chain["as_released"] = quoted
    return out


def _decoded_neutral(c: _Chain) -> list[str]:
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
                "value": f.value, "se": f.se, "se_mc": f.se_mc, "df": f.df, "ci95": f.ci95, "unit": estimate.unit,
                "n_neg_inf": f.n_neg_inf, **_spread_over(group, metric),
            }  # fmt: skip
    return {
        "chain": cell.chain,
        "role": cell.role,
        "level": cell.level,
        "training": cell.training,
        "selectivity": None if cell.selectivity is None else cell.selectivity.to_json(),
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


Pair = Callable[[str | None, str | None], dict[str, Contrast]]


def _gate(c: _Chain, pair: Pair) -> Json:
    """Teacher gate: whether the unselected teacher's recall beats the direct student's."""
    if not c.facts.is_whole:  # what is shown by some of the seeds may not be by all
        contrast = pair(c.teacher, c.direct).get("recall")
        return {"passed": None, "contrast": _plain(contrast), "reason": "not all of the chain is judged yet"}
    if c.teacher is None:
        return {"passed": None, "contrast": None, "reason": "the teacher is the truth itself"}
    found = pair(c.teacher, c.direct).get("recall")
    if found is None or found.ci95 is None:
        return {"passed": None, "contrast": _plain(found), "reason": "no finite recall to compare"}
    low, high = found.ci95
    return {"passed": True if low > 0 else False if high < 0 else None, "contrast": _plain(found)}


def _teacher_entropy(c: _Chain, s: Selectivity) -> float | None:
    values = [j.metrics.get("entropy_teacher") for j in c.groups[c.distilled[s]].by_seed.values()]
    known = [v.value for v in values if v is not None and v.value is not None]
    return float(np.mean(known)) if known else None


def _tradeoff(c: _Chain, pair: Pair) -> list[Json]:
    """One entry a setting by falling entropy of the teacher; those without one come last, and none is the coldest."""
    entropies = {s: _teacher_entropy(c, s) for s, group in c.distilled.items() if group in c.groups}
    order = sorted(entropies, key=lambda s: (entropies[s] is None, -(entropies[s] or 0.0)))
    coldest = next((s for s in reversed(order) if entropies[s] is not None), None)
    return [
        {
            "selectivity": s.to_json(),
            "group": c.distilled[s],
            "coldest": s is coldest,
            "vs_neutral": {m: _plain(x) for m, x in pair(c.distilled[s], c.neutral).items()},
            "vs_direct": {m: _plain(x) for m, x in pair(c.distilled[s], c.direct).items()},
        }
        for s in order
    ]


def _adopted(c: _Chain, pair: Pair) -> list[Json]:
    """Compare models trained elsewhere: with the run's students, and with others of the same name."""
    plain = {n: x for n, x in c.adopted.items() if x.decoding is None and n in c.groups}
    of_name = {(_name(x), x.training, canonical(x.selectivity)): n for n, x in plain.items()}
    out: list[Json] = []
    for n, x in c.adopted.items():
        if x.decoding is not None:
            pair(n, c.direct if x.training == "direct" else c.neutral)
            pair(n, of_name.get((_name(x), "direct", None)))
            continue
        native = c.direct if x.training == "direct" else _at(c, x.selectivity)
        entry: Json = {
            "group": n,
            "name": _name(x),
            "training": x.training,
            "selectivity": None if x.selectivity is None else x.selectivity.to_json(),
        }
        against = {
            "vs_direct": c.direct,
            "vs_neutral": c.neutral,
            "vs_native": native,
            "vs_own_direct": of_name.get((_name(x), "direct", None)),
            "vs_own_neutral": of_name.get((_name(x), "distilled", None)),
            "same_setting": None if x.selectivity is None else c.decoded.get(x.selectivity),
        }
        entry |= {key: {m: _plain(d) for m, d in pair(n, other).items()} for key, other in against.items()}
        matched, reason = _matched(c, n) if n in c.groups and c.direct is not None else (None, "no direct student")
        out.append(entry | {"matched_entropy": matched} | ({} if matched is not None else {"matched_reason": reason}))
    return out


def _name(cell: Cell) -> str:
    return "" if cell.origin is None else str(cell.origin["adopted"])


def _at(c: _Chain, s: Selectivity | None) -> str | None:
    return next((n for t, n in c.distilled.items() if canonical(t) == canonical(s)), None)


def _control(c: _Chain, s: Selectivity, pair: Pair) -> Json | None:
    distilled, decoded = c.distilled.get(s), c.decoded.get(s)
    if distilled is None or decoded is None or not c.has(distilled, decoded):
        return None
    matched, reason = _matched(c, distilled)
    entry: Json = {
        "selectivity": s.to_json(),
        "distilled": distilled,
        "decoded": decoded,
        "same_setting": {m: _plain(x) for m, x in pair(distilled, decoded).items()},
        "matched_entropy": matched,
    }
    return entry if matched is not None else {**entry, "matched_reason": reason}


def _matched(c: _Chain, distilled: str) -> tuple[Json | None, str]:
    """Compare with the direct student decoded to the same entropy, linearly between the settings decoded."""
    path = [n for n in (c.direct, *c.decoded.values()) if n is not None and n in c.groups]
    entropies = {n: group_figure(c.groups[n], "entropy").value for n in path}
    known = sorted((h, n) for n, h in entropies.items() if h is not None)
    target = group_figure(c.groups[distilled], "entropy").value
    if len(known) < 2 and any(x.chooses for x in c.decoded):
        return None, "what chooses among candidates has no entropy to match, and fewer than two other settings do"
    if target is None or len(known) < 2:
        return None, "fewer than two decoded settings with a finite entropy"
    brackets = [(low, high) for low, high in pairwise(known) if low[0] <= target <= high[0]]
    if not brackets or brackets[0][0][0] == brackets[0][1][0]:
        return None, "no two decoded settings bracket its entropy, and nothing is extrapolated"
    (h0, n0), (h1, n1) = brackets[0]
    w = (target - h0) / (h1 - h0)
    terms = [(1.0, c.groups[distilled]), (-(1 - w), c.groups[n0]), (-w, c.groups[n1])]
    label = f"{c.direct} decoded to equal entropy"
    out: Json = {"entropy": target}
    for metric in ("precision", "recall", "recall_on_support", "kl_student_truth", "kl_truth_student"):
        ends = [group_figure(c.groups[n], metric).value for n in (n0, n1)]
        if ends[0] is None or ends[1] is None:
            figure = Figure(None, None, None)
        else:
            figure = combine(terms, metric, slope=(ends[0] - ends[1]) / (h1 - h0))
        out[metric] = _plain(as_contrast(distilled, label, metric, figure))
    return out, ""


def _as_released(c: _Chain, cells: list[Cell], released: Callable[[Cell], Json | None], out: Comparison) -> list[Json]:
    """Spread over seeds of the figures as the notebook computes them; and, per setting, distilled minus direct."""
    found = {cell: r for cell in cells if cell.released is not None and (r := released(cell)) is not None}
    rows: list[Json] = []
    for s, group in c.distilled.items():
        mine = [r for cell, r in found.items() if cell.group == group]
        for metric in ("precision_as_released", "recall_as_released") if mine else ():
            columns = {t: np.array([float(r[t][metric]) for r in mine]) for t in ("direct", "distilled")}
            f = _mean_over_seeds(columns["distilled"] - columns["direct"])
            out.contrasts.append(as_contrast(group, str(c.direct), metric, f))
            rows += [_spread(s, t, metric, x) for t, x in columns.items()]
    return rows


def _mean_over_seeds(x: NDArray[np.float64]) -> Figure:
    if x.size < 2:
        return Figure(float(x.mean()), None, None)
    return over_seeds(x, 0.0, x.size - 1)


def _spread(s: Selectivity, training: str, metric: str, x: NDArray[np.float64]) -> Json:
    low, middle, high = np.quantile(x, [0.025, 0.5, 0.975])
    printed = PRINTED.get((training, metric)) if s.weight_power == 100 else None
    mean = _mean_over_seeds(x)
    return {
        "selectivity": s.to_json(), "training": training, "metric": metric, "seeds": x.size, "mean": mean.value,
        "se": mean.se, "ci95": mean.ci95, "median": float(middle), "q025": float(low), "q975": float(high),
        "printed": printed,
    }  # fmt: skip


def _plain(c: Contrast | None) -> Json | None:
    return None if c is None else asdict(c)


def load_released(folder: Path) -> Json:
    """Read what `stages.judge.released` wrote. Raises StoreError where it holds something else."""
    found: Json = artifact_json(folder / "released.json", dict)
    names = ("precision_as_released", "recall_as_released")
    try:
        return {t: {name: float(found[t][name]) for name in names} for t in ("direct", "distilled")}
    except (KeyError, TypeError, ValueError) as e:
        fix = "delete its folder, then run again"
        raise StoreError(f"released.json cannot be read: {e}", got=folder.name, fix=fix) from None
