"""Timings of this machine, from earlier runs or measured, with date and load.

One file for each machine and kind of chain: processor, cores, threads, device. Each timing has its versions, date and
load average, so that a plan can say how far to trust it.
"""

from __future__ import annotations

import datetime
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Mapping
from importlib import metadata
from pathlib import Path
from typing import Literal

from pydantic import Field, ValidationError

from hydrometer._version import __version__
from hydrometer.core.errors import DataError
from hydrometer.core.io.files import cache_home, write_atomic
from hydrometer.core.io.os_errors import refused
from hydrometer.core.io.yaml_io import explain, read_json
from hydrometer.core.spec import ChainSpec, Strict
from hydrometer.models.base import Family
from hydrometer.models.work import Device, HasCostModel, Lengths, Phase
from hydrometer.run.preflight.machine import memory, processor
from hydrometer.store.artifacts import ArtifactStore, content_key

__all__ = ["COARSE", "Figure", "Kept", "ThisMachine", "device_folder", "keep_length", "kept_length"]

COARSE = 3.0
"""Factor, either way, within which coarse seconds are said to lie (docs, Scaling)."""

_REACHED: dict[Phase, float] = {"draw": 0.45, "score": 0.6, "train": 0.5}  # of the rates of single products
_BEFORE = {"float32": 2e11, "bfloat16": 3e11}  # without measurements: only proportions matter
_UNMEASURED = {"start": 5.0, "stage": 1e-3}
_LINK = 5e8
_LAUNCH = 8e-6  # on an accelerator
_CROWDED = 1.25  # load average a core above which timings are called slow; the timed work is part of it
_OLD = 30  # days after which the age of timings is mentioned
_MOST_BYTES = 100_000_000
_MOST_FIGURES, _MOST_RATES = 5000, 50

How = Literal["run", "measured"]


class Figure(Strict):
    """Seconds a unit of a part or stage, and their origin.

    Attributes
    ----------
    how : recorded by a run, or measured for a plan. load : load average then; None if unknown. versions : of libraries.
    """

    seconds: float = Field(ge=0, le=1e9)
    how: How
    date: datetime.date
    load: float | None = None
    versions: str = ""


class Rates(Strict):
    """What `HasCostModel.machine` found for a truth, and when."""

    float32: float = Field(ge=1, le=1e30)
    bfloat16: float = Field(ge=1, le=1e30)
    train: float = Field(gt=0, le=1e30)
    bandwidth: float = Field(ge=1, le=1e30)
    memory: float | None = Field(default=None, gt=0, le=1e30)
    date: datetime.date


class Kept(Strict):
    """The file of a machine's timings."""

    machine: dict[str, str | int]
    rates: dict[str, Rates] = Field(default_factory=dict[str, Rates])
    figures: dict[str, Figure] = Field(default_factory=dict[str, Figure])

    def device(self, name: str = "this", *, rated: str | None = None, held: float | None = None) -> Device:
        """Return the device that a plan is priced for; parts without a timing are priced coarsely, by rates.

        Parameters
        ----------
        rated : key of the truth whose rates to use; None for the last. held : bytes of memory of a CPU.
        """
        r = self.rates.get(next(reversed(self.rates), "") if rated is None else rated)
        flops, bandwidth = (_BEFORE, 2e10) if r is None else ({k: getattr(r, k) for k in _BEFORE}, r.bandwidth)
        when = "nothing measured" if r is None else f"matrix products measured {r.date}"
        own = None if r is None else r.memory
        reached = dict(_REACHED)
        if r is not None:
            reached["train"] = min(1.0, max(1e-6, _REACHED["train"] * r.train))
        measured = _UNMEASURED | {k: f.seconds for k, f in self.figures.items()}
        return Device(
            name=name,
            source=when,
            flops=flops,
            bandwidth=bandwidth,
            utilisation=reached,
            link=_LINK,
            launch=_LAUNCH if own else 0.0,
            memory=own or held,
            measured=measured,
        )


def device_folder() -> Path:
    """Return the folder of timings."""
    return cache_home() / "devices"


class ThisMachine:
    """The local machine, for chains of one family, threads and device. Its file is plain JSON that people may edit.

    Parameters
    ----------
    say : called with a line on each step that takes a while.
    """

    def __init__(self, family: Family, chain: ChainSpec, say: Callable[[str], None]) -> None:
        self.family, self.chain, self.say = family, chain, say
        numerics = {k: v for k, v in family.numerics(chain).items() if k != "sources"}
        versions = {k: str(v) for k, v in numerics.items() if _is_version(k, v)}
        self.versions = ", ".join(f"{k} {v}" for k, v in {"hydrometer": __version__, **versions}.items())
        self.cores = os.cpu_count() or 1
        about = {k: v if isinstance(v, int) else str(v) for k, v in numerics.items() if k not in versions}
        about |= {"family": family.name, "processor": processor(), "cores": self.cores}
        self.path = device_folder() / f"{content_key({'version': 2, **about})}.json"
        self._truth = content_key(dict(family.truth_identity(chain)))
        self.kept = self._read() or Kept(machine=about)

    @property
    def figures(self) -> Mapping[str, Figure]:
        """Timings by name of a part."""
        return self.kept.figures

    def device(self) -> Device:
        """Return this machine as a device; rates are measured first if none are kept."""
        if self._truth not in self.kept.rates:
            self._rate()
        return self.kept.device(rated=self._truth, held=memory()[0])

    def was_crowded(self, load: float | None) -> bool:
        """Whether a load average exceeds what the cores can serve."""
        return load is not None and load > _CROWDED * self.cores

    def learn(self, seconds: Mapping[str, float], how: How) -> None:
        """Keep new timings, replacing those of the same name. Raises FolderError."""
        load = _load(0 if how == "measured" else 2)
        self._keep({k: self._figure(v, how, load) for k, v in seconds.items()})

    def measure(self, counted: HasCostModel, mean: float, already: dict[str, float]) -> None:
        """Measure the parts of the chain's stages that `already` lacks, and add them to it.

        Raises
        ------
        FolderError, InputError
        """
        load = _load(0)
        if "start" not in already:
            self.say("measuring this machine")
            self._rate()
            already |= {"start": _start(), "stage": _stage()}
        self.say("measuring this machine at the chain's shapes")
        already |= counted.measure(self.chain, mean, already)
        self._keep({k: self._figure(v, "measured", load) for k, v in already.items()})

    def measure_card(self, counted: HasCostModel, mean: float) -> None:
        """Measure on an accelerator what no run or plan has timed there; seconds, or nothing on the processor.

        What share of its rates a stage reaches depends on the shapes, so coarse seconds are worth little there.

        Raises
        ------
        FolderError
        InputError : models too large to be timed.
        """
        if not self.device().launch:
            return
        known = {name: f.seconds for name, f in self.figures.items()}
        load = _load(0)
        self.say("measuring this card at the chain's shapes")
        found = {k: v for k, v in counted.measure(self.chain, mean, known).items() if k not in known}
        self._keep({k: self._figure(v, "measured", load) for k, v in found.items()})

    def cautions(self, names: Iterable[str]) -> list[str]:
        """Return reasons to doubt timings: age, load, other versions."""
        used = [self.figures[n] for n in names if n in self.figures]
        loads = [f.load for f in used if f.load is not None and self.was_crowded(f.load)]
        others = sorted({f.versions for f in used} - {self.versions})
        out: list[str] = []
        age = (_today() - min((f.date for f in used), default=_today())).days
        if age > _OLD:
            out.append(f"up to {age} days old")
        if loads:
            out.append(f"at a load of up to {max(loads):.1f} on {self.cores} cores, so slower")
        if others:
            out.append(f"by other versions ({others[0]}; now {self.versions})")
        return out

    def doubts(self) -> list[str]:
        """Return reasons to doubt coarse seconds, which assume an idle machine."""
        load = _load(0)
        busy = load is not None and self.was_crowded(load)
        return [f"beside a load of {load:.1f} on {self.cores} cores, as now, a run takes longer"] if busy else []

    def _figure(self, seconds: float, how: How, load: float | None) -> Figure:
        return Figure(seconds=seconds, how=how, date=_today(), load=load, versions=self.versions)

    def _rate(self) -> None:
        if not isinstance(self.family, HasCostModel):
            return
        self.say("measuring matrix products")
        rates = Rates(**self.family.machine(self.chain), date=_today())
        before = {k: v for k, v in self.kept.rates.items() if k != self._truth}
        kept = dict([*before.items(), (self._truth, rates)][-_MOST_RATES:])
        self.kept = self.kept.model_copy(update={"rates": kept})
        self._write()

    def _read(self) -> Kept | None:
        if not self.path.is_file():
            return None
        try:
            return Kept.model_validate(read_json(self.path, _MOST_BYTES))
        except (OSError, ValueError) as e:
            said = explain(e, self.path.name) if isinstance(e, ValidationError) else e
            fix = f"mend or delete {self.path}"
            raise DataError(f"the figures of this machine cannot be read: {said}", fix=fix) from None

    def _keep(self, new: Mapping[str, Figure]) -> None:
        """Keep the newest last; drop the oldest beyond the limit."""
        before = {k: v for k, v in self.kept.figures.items() if k not in new}
        figures = dict([*before.items(), *new.items()][-_MOST_FIGURES:])
        self.kept = self.kept.model_copy(update={"figures": figures})
        self._write()

    def _write(self) -> None:
        _write(self.path, self.kept.model_dump(mode="json"))


def kept_length(truth: str) -> Lengths | None:
    """Return the recorded mean length of a truth's answers, or None.

    Parameters
    ----------
    truth : key of the truth: model, prompts, stop set, max_new_tokens.
    """
    found = _lengths().get(truth)
    return None if found is None else Lengths(found.mean, found.most, found.source)


def keep_length(truth: str, lengths: Lengths) -> None:
    """Keep the mean length of a truth's answers. Raises FolderError."""
    told = f"{lengths.source}, {_today()}"
    new = {**_lengths(), truth: _Length(mean=lengths.mean, most=lengths.most, source=told)}
    _write(device_folder() / _LENGTHS, {k: v.model_dump() for k, v in list(new.items())[-_MOST_FIGURES:]})


_LENGTHS = "lengths.json"


class _Length(Strict):
    mean: float = Field(gt=0)
    most: int = Field(ge=1)
    source: str


def _lengths() -> dict[str, _Length]:
    path = device_folder() / _LENGTHS
    if not path.is_file():
        return {}
    try:
        raw = read_json(path, _MOST_BYTES)
        return {k: _Length.model_validate(v) for k, v in raw.items()}
    except (OSError, ValueError, AttributeError) as e:
        raise DataError(f"the lengths that were kept cannot be read: {e}", fix=f"mend or delete {path}") from None


def _write(path: Path, body: Mapping[str, object]) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as e:
        raise refused(e, path.parent) from None
    write_atomic(path, json.dumps(body, indent=1) + "\n")


def _is_version(name: str, value: object) -> bool:
    try:
        return metadata.version(name) == value
    except metadata.PackageNotFoundError:
        return False


def _today() -> datetime.date:
    return datetime.datetime.now().astimezone().date()


def _load(span: int) -> float | None:
    """Load average of a minute (0) or a quarter of an hour (2), None where the system keeps none."""
    return round(os.getloadavg()[span], 2) if hasattr(os, "getloadavg") else None


def _start() -> float:
    """Seconds until a process has imported what a language model needs."""
    began = time.perf_counter()
    wanted = "import hydrometer, torch, transformers"
    # -P: do not import from the working directory.
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
