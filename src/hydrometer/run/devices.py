"""Devices that a plan is priced for: this machine, measured; named accelerators, by data sheet; a user's file."""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import cast

import numpy as np
from pydantic import ValidationError

from hydrometer.core.documents import MAX_YAML_BYTES, explain, nearest, parse_yaml, read_json
from hydrometer.core.errors import DataError, FolderError, SpecError
from hydrometer.core.spec import ChainSpec
from hydrometer.models.base import Family
from hydrometer.models.work import Counted, Device
from hydrometer.store.artifacts import ArtifactStore, content_key, write_atomic

__all__ = ["PROFILES", "ThisMachine", "device_folder", "load_device"]

_ASSUMED = (
    "peaks of the vendor's data sheet (dense; float32 without TF32) times assumed utilisations, 8 microseconds to "
    "launch an operation; not measured by this project"
)
_MOST_BYTES = 100_000_000  # of kept measurements
_SHARES = {"draw": 0.3, "score": 0.3, "train": 0.35}


def _accelerator(name: str, bfloat16: float, float32: float, bandwidth: float, memory: float) -> Device:
    peaks = {"bfloat16": bfloat16, "float32": float32}
    return Device.model_validate(
        {"name": name, "source": _ASSUMED, "flops": peaks, "bandwidth": bandwidth, "utilisation": _SHARES,
         "launch": 8e-6, "link": 2e9, "memory": memory}
    )  # fmt: skip


PROFILES: Mapping[str, Device] = {
    "a100": _accelerator("a100", 312e12, 19.5e12, 2.04e12, 80e9),
    "h100": _accelerator("h100", 989e12, 67e12, 3.35e12, 80e9),
    "h200": _accelerator("h200", 989e12, 67e12, 4.8e12, 141e9),
}
"""By name: A100 and H100 SXM of 80 GB, H200 SXM of 141 GB."""


def load_device(name: str) -> Device | None:
    """Return a named device, or one from a file; None for `this`, which has to be measured.

    A file holds the fields of `models.work.Device`; with `like: h100` those that it leaves out are that profile's.

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
    like = fields.pop("like", None)
    if like is not None:
        if not isinstance(like, str) or like not in PROFILES:
            raise SpecError(f"{path.name}: like: unknown device", got=like, fix=nearest(str(like), list(PROFILES)))
        base: dict[str, object] = PROFILES[like].model_dump(mode="json")
        changed = {k: _inside(base.get(k), v) for k, v in fields.items()}
        fields = {**base, "name": path.stem, "source": f"{like}, changed by {path.name}", **changed}
    try:
        return Device.model_validate(fields)
    except ValidationError as e:
        raise explain(e, path.name) from None


def _inside(old: object, new: object) -> object:
    """A mapping changes the entries that it names."""
    if isinstance(old, dict) and isinstance(new, dict):
        return {**cast("dict[str, object]", old), **cast("dict[str, object]", new)}
    return new


def device_folder() -> Path:
    """Where measurements are kept: ``$HYDROMETER_CACHE/devices``, else ``~/.cache/hydrometer/devices``."""
    return Path(os.environ.get("HYDROMETER_CACHE") or Path.home() / ".cache" / "hydrometer") / "devices"


class ThisMachine:
    """Measurements of this machine for one numerics class, kept in a file that people can read and change.

    Parameters
    ----------
    family, chain : whose numerics class it is: versions, threads, processor.
    say : told what is being measured.
    """

    def __init__(self, family: Family, chain: ChainSpec, say: Callable[[str], None]) -> None:
        self.say = say
        numerics = {k: v for k, v in family.numerics(chain).items() if k != "sources"}
        self.path = device_folder() / f"{content_key({'version': 1, 'family': family.name, **numerics})}.json"
        self.device = self._read() or self._anew(family)

    def _read(self) -> Device | None:
        if not self.path.is_file():
            return None
        try:
            return Device.model_validate(read_json(self.path, _MOST_BYTES))
        except (OSError, ValueError) as e:
            said = explain(e, self.path.name) if isinstance(e, ValidationError) else e
            fix = f"mend or delete {self.path}"
            raise DataError(f"the measurements of this machine cannot be read: {said}", fix=fix) from None

    def _anew(self, family: Family) -> Device:
        self.say("measuring this machine")
        rates = family.machine() if isinstance(family, Counted) else _rates()
        return Device(
            name="this",
            source=f"measured {time.strftime('%Y-%m-%d %H:%M')} at load {_load()}; delete {self.path} to measure again",
            flops={k: rates[k] for k in ("float32", "bfloat16")},
            bandwidth=rates["bandwidth"],
            utilisation={"draw": 1.0, "score": 1.0, "train": 1.0},
            measured={"stage": _stage()},
        )

    def learn(self, measured: Mapping[str, float]) -> None:
        """Keep what was measured, beside what is known."""
        new = {k: v for k, v in measured.items() if k not in self.device.measured}
        if new or not self.path.is_file():
            self.device = self.device.model_copy(update={"measured": {**self.device.measured, **new}})
            try:
                self.path.parent.mkdir(parents=True, exist_ok=True)
            except OSError as e:
                raise FolderError(f"cannot make the folder {self.path.parent}: {e.strerror}") from None
            write_atomic(self.path, json.dumps(self.device.model_dump(mode="json"), indent=1, sort_keys=True) + "\n")

    def measure(self, counted: Counted, chain: ChainSpec, mean: float) -> None:
        """Measure what the chain's stages need and the file lacks."""
        if "start" not in self.device.measured:
            self.learn({"start": _start()})
        self.say("measuring this machine at the chain's shapes")
        self.learn(counted.measure(chain, mean, self.device.measured))


def _load() -> str:
    return f"{os.getloadavg()[0]:.1f}" if hasattr(os, "getloadavg") else "unknown"


def _rates() -> dict[str, float]:
    """Products of 1024^3, FLOP/s, which numpy has in float32 alone, and memory copies, bytes/s; medians."""
    a, x, y = np.ones((1024, 1024), np.float32), np.zeros(1 << 25, np.float32), np.zeros(1 << 25, np.float32)
    product, copy = (statistics.median(_times(w)) for w in (lambda: a @ a, lambda: np.copyto(y, x)))
    rate = 2.0 * 1024**3 / product
    return {"float32": rate, "bfloat16": rate, "bandwidth": 2.0 * x.nbytes / copy}


def _times(work: Callable[[], object]) -> list[float]:
    out: list[float] = []
    for _ in range(8):
        began = time.perf_counter()
        work()
        out.append(time.perf_counter() - began)
    return out[1:]


def _start() -> float:
    """Seconds until a process has imported what a language model needs."""
    began = time.perf_counter()
    wanted = "import hydrometer, torch, transformers"
    # -P: no module of the folder that one stands in.
    subprocess.run([sys.executable, "-P", "-c", wanted], check=True, capture_output=True)
    return time.perf_counter() - began


def _stage() -> float:
    """Seconds to write a small artifact, verify it and rename it."""
    times: list[float] = []
    with tempfile.TemporaryDirectory(prefix="hydrometer-") as folder:
        store = ArtifactStore(Path(folder))
        for i in range(9):
            began = time.perf_counter()
            with store.write("draw", f"{i:032x}", {"inputs": []}) as (place, _):
                (place / "rows.parquet").write_bytes(bytes(1 << 18))
            times.append(time.perf_counter() - began)
    return statistics.median(times)
