"""Map: one point of a grid of chains, all seeds and settings at once, in one artifact.

What `draw`, `fit` and `judge` do cell by cell, under the same streams, so that fits are those of the chain run alone;
but fits of all seeds and settings are one batch, and only figures are kept.

Shapes: G groups (cells without their seed), F figures, S seeds.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from hydrometer.core.arguments import of_type
from hydrometer.core.distillation import distillations_of
from hydrometer.core.errors import StoreError
from hydrometer.core.io.arrays import open_arrays
from hydrometer.core.io.yaml_io import artifact_json
from hydrometer.core.rng import Stream
from hydrometer.core.spec import Selectivity
from hydrometer.core.statistics.estimate import Estimate
from hydrometer.models.base import Law, Samples, Tick
from hydrometer.models.capabilities import MapPoint, Maps
from hydrometer.models.finite_selectivity import canonical
from hydrometer.stages.cells import Place
from hydrometer.stages.judge import exact_figures, figures, from_teacher, judged_exactly, scores_of
from hydrometer.stages.nodes import Context, MapNode

__all__ = ["MapGroup", "load_map", "map_groups", "map_point"]

MOST_SHOWN = 16  # points of a map that leave pictures
_FIELDS = ("value", "se", "se_mc", "n", "n_neg_inf")


@dataclass(frozen=True, slots=True, kw_only=True)
class MapGroup(Place):
    """One kind of model at a point: a cell without its seed."""

    prefix: str

    @property
    def id(self) -> str:
        """The group's id."""
        return f"{self.prefix}.{self.name}"

    def decoded(self, s: Selectivity) -> MapGroup:
        """Return the same model decoded selectively."""
        return replace(self, decoding=s, parent=self.id, teacher_cell=None)


def map_groups(context: Context, point: MapPoint) -> list[MapGroup]:
    """Name all groups of a point, parents first."""
    prefix, c = f"{context.name}.{point.slug}", point.chain
    truth = MapGroup(prefix=prefix, level=0, role="truth", point=point.values)
    out = [truth]
    top = truth
    if len(context.family.levels(c)) > 1:
        top = replace(truth, level=1, role="teacher", parent=truth.id)
        out.append(top)
    student = replace(truth, level=top.level + 1, role="student")
    sharpened = {s: top if canonical(s) is None else top.decoded(s) for s in c.selectivity}
    out += [group for group in sharpened.values() if group is not top]
    direct = replace(student, training="direct", parent=truth.id)
    out.append(direct)
    out += [
        replace(
            student,
            training="distilled",
            distillation=d,
            parent=top.id,
            teacher_cell=sharpened[d.selectivity].id,
        )
        for d in distillations_of(c)
    ]
    if c.undecoded is None:
        out += [direct.decoded(s) for s in c.controls if canonical(s) is not None]
    return out


def map_point(node: MapNode, folder: Path, tick: Tick) -> dict[str, object]:
    """Draw, fit and judge a point for all seeds, and write its figures into `folder`."""
    c, seeds, family = node.point.chain, node.seeds, node.context.family
    fit_all, sizes = of_type(Maps, family).fit_all, family.sizes(c)
    groups = map_groups(node.context, node.point)
    *teacher, student = (level.spec for level in family.levels(c))
    truth = family.truth(c, family.precision(c, "judge"))
    roots = [Stream(s) for s in seeds]
    train = [truth.sample(sizes["train"], seed=r.child("train", "truth")) for r in roots]
    top: Sequence[Law] = [truth] * len(seeds)
    if teacher:
        top = fit_all(train, teacher[0], [r.child("fit", "teacher") for r in roots])
    top_role = "teacher" if teacher else "truth"
    at_student = [r.child("fit", "student") for r in roots]
    direct = fit_all(train, student, at_student)
    drawn: list[Samples] = [
        law.select(s).sample(sizes["distill"], seed=r.child("distill", top_role))
        for s in c.selectivity
        for law, r in zip(top, roots, strict=True)
    ]
    students = fit_all(drawn, student, at_student * len(c.selectivity))
    tick(1, 3, "fitted")

    def law_of(group: MapGroup, i: int) -> Law:
        if group.training == "distilled" and group.selectivity is not None:
            return students[c.selectivity.index(group.selectivity) * len(seeds) + i]
        law = direct[i] if group.training == "direct" else top[i] if group.role == top_role else truth
        return law if group.decoding is None else law.select(group.decoding)

    found: list[list[dict[str, Estimate]]] = []
    for i, root in enumerate(roots):
        found.append(_judge(node, truth, [(g, law_of(g, i)) for g in groups], root))
        tick(1 + 2 * (i + 1) / len(seeds), 3, f"seed {seeds[i]}")
    _save(folder, [g.id for g in groups], found)
    shown: dict[str, object] = {}
    if node.shown and getattr(truth, "n_features", None) == 2:
        root = roots[0]
        for g in groups:
            law = law_of(g, 0)
            rows = law.sample(sizes["evaluate"], seed=root.child("evaluate", "law", g.id))
            shown[g.id] = family.exhibit(c, truth, law, rows, truth.log_prob(rows))
    (folder / "exhibits.json").write_text(json.dumps(shown))
    return {"fits": len(seeds) * (1 + len(c.selectivity) + len(teacher))}


def _judge(node: MapNode, truth: Law, laws: list[tuple[MapGroup, Law]], root: Stream) -> list[dict[str, Estimate]]:
    """Judge all groups at one seed."""
    c = node.point.chain
    n = node.context.family.sizes(c)["evaluate"]
    truth_rows = truth.sample(n, seed=root.child("evaluate", "truth"))
    out: list[dict[str, Estimate]] = []
    at: dict[str, dict[str, Estimate]] = {}
    for group, law in laws:
        if judged_exactly(c):
            metrics = exact_figures(truth, law)
        else:
            rows = truth_rows if law is truth else law.sample(n, seed=root.child("evaluate", "law", group.id))
            s = scores_of(truth, law, truth_rows, rows, truth_on_truth=truth_rows.log_prob, law_on_law=rows.log_prob)
            metrics = figures(s, truth, law)
        if group.teacher_cell is not None:
            metrics |= from_teacher(at[group.teacher_cell], metrics)
        at[group.id] = metrics
        out.append(metrics)
    return out


def _save(folder: Path, ids: list[str], found: list[list[dict[str, Estimate]]]) -> None:
    """Write the figures as arrays (G, F, S), NaN where there is none."""
    names = sorted({name for seed in found for metrics in seed for name in metrics})
    first = {name: next(m[name] for m in found[0] if name in m) for name in names}
    by_group = [[[seed[g].get(name) for seed in found] for name in names] for g in range(len(ids))]
    arrays = {f: np.array([[[_number(e, f) for e in row] for row in rows] for rows in by_group]) for f in _FIELDS}
    np.savez(folder / "figures.npz", **arrays)  # pyright: ignore[reportArgumentType]
    about = {"groups": ids, "figures": [[n, first[n].method, first[n].unit] for n in names]}
    (folder / "figures.json").write_text(json.dumps(about))


def _number(e: Estimate | None, field: str) -> float:
    value = None if e is None else getattr(e, field)
    return np.nan if value is None else float(value)


def load_map(folder: Path) -> Mapping[str, list[dict[str, Estimate]]]:
    """Read what `map_point` wrote: for each group its figures by seed, in the order of the node's seeds.

    Raises
    ------
    StoreError : it holds something else.
    """
    about: dict[str, Any] = artifact_json(folder / "figures.json", dict)
    with open_arrays(folder / "figures.npz") as archive:
        value, se, se_mc, n, missed = (archive[f] for f in _FIELDS)
    out: dict[str, list[dict[str, Estimate]]] = {}

    def maybe(x: float) -> float | None:
        return None if np.isnan(x) else float(x)

    def estimate(at: tuple[int, int, int], method: Any, unit: object) -> Estimate:
        numbers = (maybe(value[at]), maybe(se[at]), maybe(se_mc[at]))
        return Estimate(*numbers, int(n[at]), int(missed[at]), method, str(unit))

    try:
        for g, group in enumerate(about["groups"]):
            out[str(group)] = [
                {
                    str(name): estimate((g, f, s), method, unit)
                    for f, (name, method, unit) in enumerate(about["figures"])
                    if not np.isnan(n[g, f, s])
                }
                for s in range(value.shape[2])
            ]
    except (KeyError, TypeError, ValueError, IndexError, OverflowError) as e:
        fix = "delete its folder, then run again"
        raise StoreError(f"figures cannot be read: {e}", got=folder.name, fix=fix) from None
    return out
