"""The gap of generalisation: a model's figures on prompts kept apart, minus those on prompts that it was trained on.

The two sets of prompts are independent, and so are the rows that answer them: of one seed's model the variances add.
All else is as in every comparison over seeds (`contrasts.apart`). Of a model that was trained on neither set the gap
says how the two sets differ, which its error covers where prompts are a sample.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict
from typing import Any

from hydrometer.core.statistics.estimate import Contrast
from hydrometer.stages.cells import Cell
from hydrometer.stages.statistics.chain_groups import ChainGroups, gather
from hydrometer.stages.statistics.contrasts import apart, as_contrast, group_figure
from hydrometer.stages.statistics.groups import Group, Judged

__all__ = ["generalisation"]

Json = dict[str, Any]

FIGURES = (
    "precision",
    "recall",
    "entropy",
    "kl_student_truth",
    "kl_truth_student",
    "precision_reference",
    "kl_student_reference",
)


def generalisation(c: ChainGroups, cells: list[Cell], judged: Callable[[Cell], Judged | None]) -> list[Json]:
    """Return one entry for each group that is judged on prompts of training, too, the truth left out.

    Returns
    -------
    entries as results.json holds them (docs, Schema); none where nothing is judged so.
    """
    again = [twin for cell in cells if (twin := cell.on_training) is not None]
    groups, _, failed = gather(again, judged)
    out: list[Json] = []
    for name in dict.fromkeys(cell.group for cell in again if cell.role != "truth"):
        held_out, training = c.groups.get(name), groups.get(name)
        if held_out is None or training is None:
            continue
        entry: Json = {"group": name, "failed": failed[name], "figures": {}, "vs_direct": {}}
        for metric in (m for base in FIGURES for m in (base, f"{base}_per_token")):
            if metric in held_out.metrics and metric in training.metrics:
                entry["figures"][metric] = _figure(held_out, training, metric)
        if c.direct in c.groups and c.direct in groups and c.example[name].level == c.facts.last and name != c.direct:
            mine, theirs = (held_out, training), (c.groups[c.direct], groups[c.direct])
            entry["vs_direct"] = {m: asdict(_against(mine, theirs, m)) for m in entry["figures"]}
        out.append(entry)
    return out


def _figure(held_out: Group, training: Group, metric: str) -> Json:
    gap = apart([(1.0, held_out)], [(1.0, training)], metric)
    return {
        "held_out": group_figure(held_out, metric).value,
        "training_prompts": group_figure(training, metric).value,
        "gap": asdict(as_contrast(held_out.id, f"{held_out.id} on training prompts", metric, gap)),
    }


def _against(mine: tuple[Group, Group], other: tuple[Group, Group], metric: str) -> Contrast:
    """Return one model's gap minus another's; on each set of prompts they are compared row by row."""
    on_held_out, on_training = ([(1.0, a), (-1.0, b)] for a, b in zip(mine, other, strict=True))
    gap = apart(on_held_out, on_training, metric)
    return as_contrast(f"gap of {mine[0].id}", f"gap of {other[0].id}", metric, gap)
