"""Devices other than this machine: named accelerators by data sheet, and users' files."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from pydantic import ValidationError

from hydrometer.core.errors import SpecError
from hydrometer.core.io.yaml_io import MAX_YAML_BYTES, explain, is_object, nearest, parse_yaml
from hydrometer.models.work import Device
from hydrometer.run.cost.this_machine import Kept

__all__ = ["PROFILES", "load_device"]

_ASSUMED = (
    "peaks of the vendor's data sheet (dense; float32 without TF32) times assumed utilisations, 8 microseconds to "
    "launch an operation; not measured by this project"
)
_PRICE = "assumed: of the order of on-demand list prices at the end of 2026, which differ fourfold; set usd_per_hour"
_SHARES = {"draw": 0.3, "score": 0.3, "train": 0.35}


def _accelerator(name: str, bfloat16: float, float32: float, bandwidth: float, memory: float, usd: float) -> Device:
    peaks = {"bfloat16": bfloat16, "float32": float32}
    return Device.model_validate(
        {
            "name": name,
            "source": _ASSUMED,
            "flops": peaks,
            "bandwidth": bandwidth,
            "utilisation": _SHARES,
            "launch": 8e-6,
            "link": 2e9,
            "memory": memory,
            "usd_per_hour": usd,
            "price": _PRICE,
        }
    )


PROFILES: Mapping[str, Device] = {
    "a100": _accelerator("a100", 312e12, 19.5e12, 2.04e12, 80e9, 2.8),
    "h100": _accelerator("h100", 989e12, 67e12, 3.35e12, 80e9, 4.0),
    "h200": _accelerator("h200", 989e12, 67e12, 4.8e12, 141e9, 4.5),
}
"""By name: A100 and H100 SXM of 80 GB, H200 SXM of 141 GB."""


def load_device(name: str) -> Device | None:
    """Return a named device, or one from a file; None for `this`.

    A file holds the fields of `models.work.Device`; with `like: h100` those that it leaves out are that profile's. It
    may also be the file that is kept of another machine.

    Raises
    ------
    SpecError : unknown name, unreadable file, or anything wrong inside.

    Examples
    --------
    >>> load_device("h100").memory
    80000000000.0
    """
    if name == "this":
        return None
    if name in PROFILES:
        return PROFILES[name]
    path = Path(name)
    if path.suffix not in (".yaml", ".yml", ".json"):
        known = ["this", *PROFILES]
        raise SpecError("unknown device", got=name, fix=nearest(name, known) + " or give a .yaml file")
    try:
        with path.expanduser().open("rb") as f:
            fields = parse_yaml(f.read(MAX_YAML_BYTES + 1), path.name)
    except (OSError, ValueError, RuntimeError) as e:  # a name with NUL, the home of nobody
        raise SpecError(f"the device's file cannot be read: {getattr(e, 'strerror', e)}", got=name) from None
    return _merged(fields, path)


def _merged(fields: dict[str, object], path: Path) -> Device:
    if "figures" in fields:
        return _other_machine(fields, path)
    like = fields.pop("like", None)
    if like is not None:
        if not isinstance(like, str) or like not in PROFILES:
            raise SpecError(f"{path.name}: like: unknown device", got=like, fix=nearest(str(like), list(PROFILES)))
        base: dict[str, object] = PROFILES[like].model_dump(mode="json")
        if "usd_per_hour" in fields:
            base.pop("price")
        changed = {k: _inside(base.get(k), v) for k, v in fields.items()}
        fields = {**base, "name": path.stem, "source": f"{like}, changed by {path.name}", **changed}
    try:
        return Device.model_validate(fields)
    except ValidationError as e:
        raise explain(e, path.name) from None


def _other_machine(fields: dict[str, object], path: Path) -> Device:
    try:
        kept = Kept.model_validate(fields)
    except ValidationError as e:
        raise explain(e, path.name) from None
    if not kept.rates:
        raise SpecError(
            f"{path.name}: nothing was measured on that machine", fix="there, `hydrometer plan RECIPE --measure`"
        )
    return kept.device(path.stem[:64])


def _inside(old: object, new: object) -> object:
    """Merge mappings; anything else is replaced."""
    return {**old, **new} if is_object(old) and is_object(new) else new
