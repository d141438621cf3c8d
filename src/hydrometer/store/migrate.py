"""Migration of results.json from every earlier schema to the present one, on reading.

Readers get what the present release writes, whatever release wrote the file. No figure is invented or changed: what an
older release did not record becomes null or empty.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

from hydrometer._version import __version__
from hydrometer.core.errors import FolderError
from hydrometer.core.io.yaml_io import is_array, is_object

__all__ = ["SCHEMA", "STEPS", "migrate"]

Results = dict[str, Any]

_RELEASE = re.compile(r"([0-9]{1,6}(?:\.[0-9]{1,6}){2})(?:(?:a|b|rc)[0-9]{1,4})?")


def _of_schema_1(results: Results) -> Results:
    """Add the fields that schema 1 gained in its lifetime: findings, degrees of freedom, intervals, seeds' spread.

    Before there were findings nothing was examined; before a figure had degrees of freedom, all intervals of one cell
    had n - 1, which is what null stands for.
    """
    out = {**results}
    summary: object = results.get("summary")
    if is_object(summary):
        whole: Results = {"findings": [], **summary}
        groups: object = whole.get("groups")
        if is_object(groups):
            whole["groups"] = {name: _with_spread(g) for name, g in groups.items()}
        out["summary"] = whole
    cells: object = results.get("cells")
    if is_array(cells):
        out["cells"] = [_with_df(c) for c in cells]
    return out


def _with_spread(group: object) -> object:
    if not is_object(group):
        return group
    out: Results = {"unseen": None, **group}
    metrics: object = out.get("metrics")
    if is_object(metrics):
        none = dict.fromkeys(("median", "q25", "q75", "two_peaks", "few_seeds"))
        out["metrics"] = {k: {**none, **m} if is_object(m) else m for k, m in metrics.items()}
    return out


def _with_df(cell: object) -> object:
    metrics = cell.get("metrics") if is_object(cell) else None
    if not is_object(cell) or not is_object(metrics):
        return cell
    none = dict.fromkeys(("ci95", "df", "plain", "plain_se", "caution"))
    return {**cell, "metrics": {k: {**none, **m} if is_object(m) else m for k, m in metrics.items()}}


# One step per schema, a pure function from what any release wrote of that schema to what the next step takes; the last
# returns what the present release writes.
STEPS: tuple[Callable[[Results], Results], ...] = (_of_schema_1,)
SCHEMA = len(STEPS)


def migrate(results: object, where: str = "results.json") -> Results:
    """Bring the content of a results.json to the present schema.

    Parameters
    ----------
    results : what the file holds; it is not changed.
    where : names it in errors.

    Returns
    -------
    dict : of the present schema; a file of the present release is returned equal.

    Raises
    ------
    FolderError : not results of a run, or of a newer release's schema.

    Examples
    --------
    >>> old = {"schema": 1, "summary": {"groups": {}, "chains": {}}, "cells": []}
    >>> migrate(old)["summary"]["findings"]
    []
    """
    schema = results.get("schema") if is_object(results) else None
    if not is_object(results) or isinstance(schema, bool) or not isinstance(schema, int) or schema < 1:
        raise FolderError("these are no results that a run wrote: they have no schema", got=where, fix="run it again")
    whole = results
    if schema > SCHEMA:
        raise FolderError(
            f"results of schema {min(schema, 10**6)}, which a newer hydrometer wrote; this one reads up to {SCHEMA}",
            got=where,
            fix=f"pip install '{_newer(whole)}'",
        )
    for n, step in enumerate(STEPS[schema - 1 :], start=schema):
        whole = {**step(whole), "schema": min(n + 1, SCHEMA)}
    return whole


def _newer(results: Results) -> str:
    """Requirement whose releases read these results: the one that wrote them if newer, else any newer one."""
    versions: object = results.get("versions")
    wrote = versions.get("hydrometer") if is_object(versions) else None
    if isinstance(wrote, str) and (found := _RELEASE.fullmatch(wrote)) and _numbers(found[1]) > _numbers(__version__):
        return f"hydrometer>={wrote}"
    return f"hydrometer>{__version__}"


def _numbers(release: str) -> tuple[int, ...]:
    return tuple(int(n) for n in re.findall(r"\d+", release)[:3])
