"""Results files of lm-evaluation-harness, and what counts as a number in a user's files."""

from __future__ import annotations

import json
import math
import re
from typing import Any, TypeGuard

from hydrometer.core.errors import DataError
from hydrometer.core.io.yaml_io import is_object
from hydrometer.core.statistics.estimate import Estimate
from hydrometer.run.results.user_scores import CellScores

__all__ = ["is_finite", "is_number", "read_lm_eval"]

_STDERR = "_stderr"


def is_finite(value: float) -> bool:
    """Whether a number is finite, as a float."""
    try:
        return math.isfinite(value)
    except OverflowError:  # an integer beyond the largest float
        return False


def is_number(value: object) -> TypeGuard[int | float]:
    """Whether it is a finite number, and no true or false."""
    return isinstance(value, int | float) and not isinstance(value, bool) and is_finite(value)


def read_lm_eval(raw: bytes, name: str, source: str) -> CellScores:
    """Read ``results``: task -> {"metric,filter": value, "metric_stderr,filter": its error}."""
    try:
        body: object = json.loads(raw.decode("utf-8"))
    except (ValueError, RecursionError) as e:
        raise DataError(f"the file is not JSON: {e}", got=name, fix="give results_*.json") from None
    tasks, counts = (body.get("results"), body.get("n-samples")) if is_object(body) else (None, None)
    if not is_object(tasks) or not tasks:
        raise DataError("the file holds no results of lm-evaluation-harness", got=name, fix="give results_*.json")
    made = CellScores()
    for task, figures in tasks.items():
        if not is_object(figures):
            raise DataError("a task's results are no object", got=task, fix="give results_*.json as it was written")
        n = _count(counts.get(task) if is_object(counts) else None)
        for metric, estimate in _task(task, figures, n):
            if metric in made.metrics:
                raise DataError("two results have one name here", got=metric, fix="rename the task in the file")
            made.metrics[metric], made.rows[metric], made.source[metric] = estimate, None, source
    if not made.metrics:
        raise DataError("the file holds no figure", got=name, fix="give results_*.json as it was written")
    return made


def _task(task: str, figures: dict[str, Any], n: int) -> list[tuple[str, Estimate]]:
    out: list[tuple[str, Estimate]] = []
    for key, value in figures.items():
        metric, _, picked = str(key).partition(",")
        if not picked or metric.endswith(_STDERR):
            continue
        name = "_".join(["lm_eval", task, metric, *([] if picked == "none" else [picked])])
        if not is_number(value):
            raise DataError(f"{task}: {key} is not a finite number", got=value, fix="evaluate the task again")
        error = figures.get(f"{metric}{_STDERR},{picked}")
        se = float(error) if is_number(error) and error >= 0 else None
        out.append((re.sub(r"[^A-Za-z0-9_]+", "_", name)[:120], Estimate(float(value), se, se, n, 0, "mc", "lm-eval")))
    return out


def _count(value: object) -> int:
    found = value.get("effective") if is_object(value) else None
    return found if isinstance(found, int) and 0 < found < 2**53 else 0
