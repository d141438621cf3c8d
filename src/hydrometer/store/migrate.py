"""results.json of every schema there was, brought to the present one on reading.

Readers get what the present release writes, whatever release wrote the file, and need not know what came when. Figures
are never made up or changed here: what an older release did not record becomes null or empty.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any, cast

from hydrometer._version import __version__
from hydrometer.core.errors import FolderError

__all__ = ["SCHEMA", "STEPS", "migrate"]

Results = dict[str, Any]

_RELEASE = re.compile(r"([0-9]{1,6}(?:\.[0-9]{1,6}){2})(?:(?:a|b|rc)[0-9]{1,4})?")


def _of_schema_1(results: Results) -> Results:
    """Add what schema 1 gained while it stood: findings, degrees of freedom and intervals of cells, the seeds' spread.

    Before there were findings nothing was examined; before a figure had degrees of freedom, all intervals of one cell
    had n - 1, which is what null stands for.
    """
    out = {**results}
    summary: object = results.get("summary")
    if isinstance(summary, dict):
        whole: Results = {"findings": [], **cast("Results", summary)}
        groups: object = whole.get("groups")
        if isinstance(groups, dict):
            found = cast("dict[str, object]", groups)
            whole["groups"] = {name: _with_spread(g) for name, g in found.items()}
        out["summary"] = whole
    cells: object = results.get("cells")
    if isinstance(cells, list):
        out["cells"] = [_with_df(c) for c in cast("list[object]", cells)]
    return out


def _with_spread(group: object) -> object:
    if not isinstance(group, dict):
        return group
    out: Results = {"unseen": None, **cast("Results", group)}
    metrics: object = out.get("metrics")
    if isinstance(metrics, dict):
        none = dict.fromkeys(("median", "q25", "q75", "two_peaks", "few_seeds"))
        figures = cast("dict[str, object]", metrics).items()
        out["metrics"] = {k: {**none, **cast("Results", m)} if isinstance(m, dict) else m for k, m in figures}
    return out


def _with_df(cell: object) -> object:
    metrics: object = cast("Results", cell).get("metrics") if isinstance(cell, dict) else None
    if not isinstance(metrics, dict):
        return cast("object", cell)
    none = dict.fromkeys(("ci95", "df", "plain", "plain_se", "caution"))
    figures = {
        k: {**none, **cast("Results", m)} if isinstance(m, dict) else m
        for k, m in cast("dict[str, object]", metrics).items()
    }
    return {**cast("Results", cell), "metrics": figures}


# One step a schema, none of which changes its argument. It takes what any release wrote of that schema and returns what
# the next schema's step takes; the last returns what the present release writes.
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
    FolderError : no results of a run, or of a schema that a newer release brought.

    Examples
    --------
    >>> old = {"schema": 1, "summary": {"groups": {}, "chains": {}}, "cells": []}
    >>> migrate(old)["summary"]["findings"]
    []
    """
    schema: object = cast("Mapping[str, object]", results).get("schema") if isinstance(results, dict) else None
    if isinstance(schema, bool) or not isinstance(schema, int) or schema < 1:
        raise FolderError("these are no results that a run wrote: they have no schema", got=where, fix="run it again")
    whole = cast("Results", results)
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
    """Requirement that reads these results: the release that wrote them where that is newer, else any newer one."""
    versions: object = results.get("versions")
    wrote: object = cast("Results", versions).get("hydrometer") if isinstance(versions, dict) else None
    if isinstance(wrote, str) and (found := _RELEASE.fullmatch(wrote)) and _numbers(found[1]) > _numbers(__version__):
        return f"hydrometer>={wrote}"
    return f"hydrometer>{__version__}"


def _numbers(release: str) -> tuple[int, ...]:
    return tuple(int(n) for n in re.findall(r"\d+", release)[:3])
