"""Typed reads of untrusted JSON: each value as the expected type, or as nothing."""

from __future__ import annotations

import math
import re
from typing import Any

from pydantic import ValidationError

from hydrometer.core.io.yaml_io import is_array, is_object
from hydrometer.core.tilt import Tilt

__all__ = [
    "Json",
    "Setting",
    "count",
    "finite",
    "in_order",
    "items",
    "mapping",
    "number",
    "read_interval",
    "read_method",
    "read_point",
    "read_setting",
    "read_tilt",
    "text",
    "unit",
    "word",
]

Json = dict[str, Any]
Setting = dict[str, float]


def number(value: object) -> float | None:
    """Return a JSON number as float, "inf" as infinity, anything else (NaN included) as None."""
    if value in ("inf", "-inf"):
        return math.inf if value == "inf" else -math.inf
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    try:
        found = float(value)
    except OverflowError:  # an integer beyond the largest float
        return None
    return None if math.isnan(found) else found


def mapping(value: object) -> Json:
    """Return a JSON object, or an empty one."""
    return value if is_object(value) else {}


def items(value: object) -> list[Any]:
    """Return a JSON array, or an empty one."""
    return value if is_array(value) else []


def text(value: object, default: str = "") -> str:
    """Return a string, or the default."""
    return value if isinstance(value, str) else default


def word(value: object) -> str:
    """Return a name that is safe in a label; untrusted names may hold markup and braces."""
    return "".join(c for c in text(value)[:64] if c.isascii() and (c.isalnum() or c in "_-"))


def unit(value: object) -> str:
    """Return a unit that is safe in labels, which matplotlib parses as formulas."""
    found = text(value, "nats")
    return found if re.fullmatch(r"[A-Za-z][A-Za-z /-]{0,31}", found) else "nats"


def count(value: object) -> int:
    """Return a whole number, or 0."""
    n = number(value)
    return int(n) if n is not None and math.isfinite(n) else 0


def read_setting(value: object) -> Setting | None:
    """Return a selectivity's numbers by name, or None.

    A tilt and a choice among candidates also have names in them; they go into the key, with ``{}`` where the number is
    read.

    Examples
    --------
    >>> read_setting({"best_of": 4, "rank_by": "length", "accept": {"by": "stopped", "min": 1}})
    {'best of {} by length': 4.0, 'accept stopped ≥ {}': 1.0}
    >>> read_setting({"tilt": {"reward": "-length", "strength": 2}})
    {'tilt (-length, b={})': 2.0}
    """
    given = mapping(value)
    found = {word(k): n for k, v in given.items() if (n := number(v)) is not None and k != "best_of"}
    if (tilt := read_tilt(given.get("tilt"))) is not None:
        found[f"tilt ({tilt.by}, b={{}})"] = tilt.strength
    best, accept = number(given.get("best_of")), mapping(given.get("accept"))
    if best is not None and best != 1:
        found[f"best of {{}} by {word(given.get('rank_by'))}"] = best
    for end, sign in (("min", "≥"), ("max", "≤")):
        if (bound := number(accept.get(end))) is not None:
            found[f"accept {word(accept.get('by'))} {sign} {{}}"] = bound
    return found or None


def read_tilt(value: object) -> Tilt | None:
    """Return a tilt, or None."""
    try:
        return Tilt.model_validate(value)
    except ValidationError:
        return None


def read_method(value: object) -> str:
    """Return in words how a student was distilled besides its setting; nothing of mle on the teacher's rows.

    Examples
    --------
    >>> read_method({"loss": "jsd(weight=0.5)", "prefix_source": "truth"}), read_method({})
    ('by jsd(weight=0.5) on rows of the truth', '')
    """
    given = mapping(value)
    names = ("loss", "teacher_law", "prefix_source")
    loss, law, rows = (re.sub(r"[^A-Za-z0-9_.,=() -]", "", text(given.get(k))[:64]) for k in names)
    parts = [
        f"by {loss}" if loss not in ("", "mle") else "",
        f"from {law}" if law not in ("", "dense") else "",
        f"on rows of the {rows}" if rows not in ("", "teacher") else "",
    ]
    return " ".join(p for p in parts if p)


def in_order(settings: list[Setting]) -> list[Setting]:
    """Order settings of a single parameter from the widest to the most selective; keep the order of others.

    Records are ordered by achieved entropy, where noise may swap settings of equal effect.
    """
    for name, sign in (("weight_power", 1), ("temperature", -1)):
        if all(set(s) == {name} for s in settings):
            return sorted(settings, key=lambda s, n=name, w=sign: w * s[n])
    return settings


def read_point(value: object) -> Setting:
    """Return a point of a map: its value on each axis."""
    return {k: n for k, v in mapping(value).items() if (n := number(v)) is not None}


def finite(value: object) -> float | None:
    """Return a finite number, or None."""
    n = number(value)
    return n if n is not None and math.isfinite(n) else None


def read_interval(value: object) -> tuple[float, float] | None:
    """Return both ends of an interval, or None if either is missing."""
    ends = [finite(v) for v in items(value)]
    return (ends[0], ends[1]) if len(ends) == 2 and ends[0] is not None and ends[1] is not None else None
