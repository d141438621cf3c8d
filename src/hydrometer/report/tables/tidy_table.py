"""Results as a tidy table: one row a group, cell or contrast, one column a setting or figure.

Columns are named as in results.json; a figure `x` has its standard error in `x_se` and the ends of its 95 % interval in
`x_lower` and `x_upper`. Settings are numbers: those of the selectivity that a model was distilled at under their own
names, those that it is decoded at after ``decoding_``. What a setting leaves out is neutral (temperature 1), and null
where nothing was distilled or decoded.
"""

from __future__ import annotations

import math
from typing import Any, Literal

import pyarrow

from hydrometer.core.errors import InputError
from hydrometer.report.values import Json, finite, items, mapping, number, read_interval, read_tilt, text
from hydrometer.report.wording import NEUTRAL

__all__ = ["Rows", "tidy_table"]

Rows = Literal["groups", "cells", "contrasts"]
pa: Any = pyarrow  # without type information

_NAMES = ("chain", "role", "training", "loss", "prefix_source", "baseline", "model", "teacher_law")
_SETTINGS = {"selectivity": "", "decoding": "decoding_"}
_WHOLE = ("level", "seed", "seeds", "failed")
_TEXT = {*_NAMES, "adopted", "id", "group", "name", "status", "reason", "a", "b", "metric", "pairing"}


def tidy_table(results: Json, rows: Rows = "groups") -> Any:
    """Return a pyarrow table of a run's groups, cells or contrasts.

    Parameters
    ----------
    results : the object that results.json holds.
    rows : "groups" (models, over seeds), "cells" (models, by seed) or "contrasts" (a less b, one metric a row).

    Returns
    -------
    pyarrow.Table; figures in the units of results.json (nats), infinite ones as infinity, with null for what is absent.
    """
    if rows not in ("groups", "cells", "contrasts"):
        raise InputError('rows is "groups", "cells" or "contrasts"', got=rows)
    cells = [mapping(c) for c in items(results.get("cells"))]
    known = sorted({k for c in cells for name in _SETTINGS for k in _flat(c.get(name))})
    of_group = {text(c.get("group")): c for c in reversed(cells)}

    def facts(cell: Json, before: str = "") -> Json:
        return {before + k: v for k, v in _facts(cell, known).items()}

    made: list[tuple[Json, Json]] = []  # what a row is about, and its figures
    if rows == "cells":
        for c in cells:
            about = {"id": c.get("id"), "group": c.get("group"), **facts(c), "seed": c.get("seed")}
            about |= {"status": c.get("status"), "reason": c.get("reason")}
            made.append((about, _figures(mapping(c.get("metrics")))))
    elif rows == "groups":
        for name, group in mapping(mapping(results.get("summary")).get("groups")).items():
            g = mapping(group)
            about = {"group": name, **facts(of_group.get(name, g)), "seeds": g.get("seeds"), "failed": g.get("failed")}
            made.append((about, _figures(mapping(g.get("metrics")))))
    else:
        for c in map(mapping, items(results.get("contrasts"))):
            about = {k: c.get(k) for k in ("a", "b", "metric", "pairing")}
            for end in ("a", "b"):
                about |= facts(of_group.get(text(c.get(end)), {}), f"{end}_")
            made.append((about, _figures({"value": c}) | {"df": number(c.get("df"))}))
    columns = dict.fromkeys([n for about, _ in made for n in about] + [n for _, figures in made for n in figures])
    found = [about | figures for about, figures in made]
    return pa.table({n: pa.array([row.get(n) for row in found], _type(n, found)) for n in columns})


def _type(name: str, found: list[Json]) -> Any:
    stem = name.removeprefix("a_").removeprefix("b_")
    if stem in _TEXT or any(isinstance(row.get(name), str) for row in found):
        return pa.string()
    return pa.int64() if stem in _WHOLE else pa.float64()


def _facts(cell: Json, known: list[str]) -> Json:
    """Return what a model is: all that its cell says but for seed and figures; settings that others have as neutral."""
    out: Json = {n: text(cell.get(n)) or None for n in _NAMES if n in cell or n in _NAMES[:5]}
    out["level"] = cell.get("level")
    if origin := mapping(cell.get("origin")):
        out["adopted"] = text(origin.get("adopted"))
    for name, before in _SETTINGS.items():
        value = _flat(cell.get(name))
        out |= {before + k: value.get(k, NEUTRAL.get(k) if value else None) for k in known}
    return out | {f"point_{k}": number(v) for k, v in mapping(cell.get("point")).items()}


def _flat(setting: object) -> Json:
    """Return a setting's numbers, and the names of scores in it, by name."""
    value: Json = {}
    for k, v in mapping(setting).items():
        value |= {f"accept_{x}": y for x, y in mapping(v).items()} if k == "accept" else {} if k == "tilt" else {k: v}
    if (tilt := read_tilt(mapping(setting).get("tilt"))) is not None:
        value |= {"tilt_by": tilt.by, "tilt_strength": tilt.strength}
    return {k: v if isinstance(v, str) and number(v) is None else number(v) for k, v in value.items()}


def _figures(metrics: Json) -> Json:
    out: Json = {}
    for name, found in metrics.items():
        m = mapping(found)
        value = finite(m.get("value"))
        if value is None and number(m.get("n_neg_inf")):  # docs, Schema: which way a figure is infinite
            value = math.inf if name.startswith(("kl_", "entropy")) else -math.inf
        low, high = read_interval(m.get("ci95")) or (None, None)
        out |= {name: value, f"{name}_se": finite(m.get("se")), f"{name}_lower": low, f"{name}_upper": high}
        if m.get("caution"):
            out[f"{name}_caution"] = text(m.get("caution"))
    return out
