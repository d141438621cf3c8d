"""Candidates as arms of a joint comparison: seeds, rows, and sampling design."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from hydrometer.core.array_types import Floats
from hydrometer.core.statistics.estimate import Estimate
from hydrometer.core.statistics.estimators import linearised
from hydrometer.run.advice.candidates import Entry, Metrics, Source, need_artifact
from hydrometer.stages.artifact_loader import ArtifactLoader
from hydrometer.stages.cells import Cell
from hydrometer.stages.given_nodes import JudgeGivenNode
from hydrometer.stages.judge_files import load_adjusted, load_law_on_truth
from hydrometer.stages.judge_given import text_rows_of
from hydrometer.stages.nodes import Rows
from hydrometer.stages.statistics.covariance import Arm, Design

__all__ = ["arm_of", "common_seeds", "design_of", "kept_rows"]


def common_seeds(found: Sequence[Entry]) -> list[int | None]:
    """Return the seeds that all candidates have figures for; [None] if no candidate depends on a seed."""
    seeded = [e.figures for e in found if None not in e.figures]
    if not seeded:
        return [None]
    return sorted((s for s in seeded[0] if all(s in f for f in seeded)), key=lambda s: -1 if s is None else s)


def kept_rows(entry: Entry) -> int:
    """Return how many of the truth's rows have stored log-probabilities."""
    cell = entry.cells[next(iter(entry.figures))]
    return load_law_on_truth(need_artifact(entry.source, "judge", cell.judge)).size


def design_of(source: Source, kept: int) -> tuple[Design, Callable[[int | None], Floats | None]]:
    """Return the sampling design, and a function from seed to lengths of the truth's rows, (N,) or None."""
    bench = ArtifactLoader(source.store)
    first = next(c for c in source.chain.cells if c.training is not None)
    shared = all(c.seed is None for c in source.chain.cells if c.role == "truth" and c.decoding is None)
    by_seed: dict[int | None, Rows] = {}
    for c in source.chain.cells:
        if (node := source.plan.judge_of(c)) is not None:
            by_seed.setdefault(None if shared else c.seed, node.truth_rows)
    node = source.plan.judge_of(first)
    assert node is not None  # maps have no candidates
    if isinstance(node, JudgeGivenNode) and node.held_out:
        found = text_rows_of(node, need_artifact(source, "judge", node.key))
        return Design(found.n, True, None if found.strata is None else found.strata[:kept]), lambda _: found.lengths

    def samples(rows: Rows) -> Any:
        for key in rows.blocks:
            need_artifact(source, "draw", key)
        return bench.outline(node.context, rows)

    def lengths(seed: int | None) -> Floats | None:
        found = samples(by_seed[None if shared else seed]).lengths
        return None if found is None else np.asarray(found[:kept], np.float64)

    strata = samples(node.truth_rows).strata
    return Design(node.truth_rows.n, shared, None if strata is None else strata[:kept]), lengths


def arm_of(
    entry: Entry,
    seeds: Sequence[int | None],
    names: Sequence[str],
    lengths: Callable[[int | None], Floats | None],
    judged: Callable[[Cell], tuple[str, Metrics]],
) -> Arm:
    """Return figures by seed, and each truth row's contribution to recall.

    Parameters
    ----------
    names : metrics; the second is recall. Those per token are linearised: their rows' mean is the ratio of sums.
    judged : returns a cell's judge key and its figures.
    """
    values: list[list[float]] = []
    own: list[list[float]] = []
    rows: list[Floats] = []
    for seed in seeds:
        cell = entry.cells[seed] if seed in entry.cells else entry.cells[None]
        key, metrics = judged(cell)
        values.append([_value(metrics[m]) for m in names])
        own.append([(metrics[m].se_mc or 0.0) ** 2 for m in names])
        folder = need_artifact(entry.source, "judge", key)
        adjusted = load_adjusted(folder)  # control-variate adjusted: the figures are means of these
        y, length = (adjusted[0], adjusted[2]) if adjusted else (load_law_on_truth(folder), lengths(seed))
        if length is not None and names[1].endswith("_per_token"):
            y = linearised(y, length)
        rows.append(y)
    # Rows drawn for it, by teacher or itself; unknown for an adopted model, which is never called the cheaper.
    taught, drawn = entry.cost.get("teacher_rows"), entry.cost.get("own_rows") or 0.0
    return Arm(
        entry.id,
        np.array(values),
        np.array(own),
        np.stack(rows),
        None in entry.cells,
        math.inf if taught is None else taught + drawn,
    )


def _value(figure: Estimate) -> float:
    assert figure.value is not None  # candidates have finite figures
    return figure.value
