"""What a stage has to do, in parts that add up, and how long a device takes for them. Needs no torch.

    where seconds are kept   units x seconds a unit
    elsewhere                max(FLOPs / (peak x utilisation), bytes / bandwidth) + launches x launch + loaded / link

The second line is the roofline model (Williams, Waterman, Patterson 2009, doi 10.1145/1498765.1498785) with the share
of the peak that a kind of work reaches as a stated figure of the device. What whole stages took is shared out among
their parts by `share_out`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal, Protocol, runtime_checkable

import numpy as np
from pydantic import ConfigDict, Field, field_validator
from pydantic_core import PydanticCustomError

from hydrometer.core.errors import one_line
from hydrometer.core.spec import ChainSpec, Strict
from hydrometer.models.base import Family, Precision

__all__ = ["PHASES", "Device", "HasCostModel", "Lengths", "Part", "Phase", "Stage", "Work", "share_out"]

Phase = Literal["draw", "score", "train"]
PHASES: tuple[Phase, ...] = ("draw", "score", "train")
_HUGE, _SLOW = 1e30, 1e9  # rates, and seconds or prices, beyond which sums of a plan would not be numbers
Stage = Literal["draw", "fit", "states", "heads", "score own", "score truth", "score law", "judge", "open"]


@dataclass(frozen=True, slots=True)
class Part:
    """Work of one sort.

    Attributes
    ----------
    name : what of it is measured on a machine: seconds a unit.
    units : how much of it there is.
    phase : whose utilisation it has.
    flops : floating-point operations, a multiply-add counted as two.
    bytes : moved between memory and processor at least.
    dtype : arithmetic.
    launches : operations that a processor with a queue is told of one by one.
    loaded : bytes that come from disk, or go there.
    """

    name: str
    units: float
    phase: Phase
    flops: float = 0.0
    bytes: float = 0.0
    dtype: str = "float32"
    launches: float = 0.0
    loaded: float = 0.0


@dataclass(frozen=True, slots=True)
class Work:
    """What a stage has to do.

    Attributes
    ----------
    tokens : drawn, scored or learned, once a model.
    disk : bytes that its artifact keeps.
    memory : bytes held at once, as far as it is known beforehand.
    parts : see `Part`.
    """

    tokens: float = 0.0
    disk: float = 0.0
    memory: float = 0.0
    parts: tuple[Part, ...] = ()

    @property
    def flops(self) -> float:
        """Floating-point operations of all parts."""
        return sum(p.flops for p in self.parts)

    def seconds(self, device: Device) -> float:
        """Seconds on one device."""
        return sum(device.seconds(p) for p in self.parts)


@dataclass(frozen=True, slots=True)
class Lengths:
    """How long a chain's answers are expected to be.

    Attributes
    ----------
    mean : tokens, the stop token included.
    most : tokens after which an answer is cut.
    source : where the mean comes from, for people.
    """

    mean: float
    most: int
    source: str


class Device(Strict):
    """A kind of processor, and how many of it there are.

    Attributes
    ----------
    name : for people.
    source : where the figures come from, for people.
    flops : peak of matrix products by dtype, FLOP/s of one device.
    bandwidth : of memory, bytes/s of one device.
    utilisation : share of the peak that a kind of work reaches, by phase.
    launch : seconds to start one operation; 0 where nothing is queued.
    link : bytes/s at which weights come from disk.
    memory : bytes of one device; None where it is not looked at.
    usd_per_hour : price of one device, or None. price : where it comes from, for people.
    count : number of devices.
    measured : seconds a unit, by name of a part; what is here is not computed from the figures above.
    """

    model_config: ClassVar[ConfigDict] = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    name: str = Field(min_length=1, max_length=64)
    source: str = "given by the user"
    flops: dict[str, float]
    bandwidth: float = Field(ge=1, le=_HUGE)
    utilisation: dict[Phase, float]
    launch: float = Field(default=0.0, ge=0, le=_SLOW)
    link: float = Field(default=1e9, ge=1, le=_HUGE)
    memory: float | None = Field(default=None, gt=0, le=_HUGE)
    usd_per_hour: float | None = Field(default=None, ge=0, le=_SLOW)
    price: str = "given by the user"
    count: int = Field(default=1, ge=1, le=1_000_000)
    measured: dict[str, float] = Field(default_factory=dict)

    @field_validator("name", "source", "price")
    @classmethod
    def _on_a_line(cls, value: str) -> str:
        return one_line(value)

    @field_validator("flops", "utilisation")
    @classmethod
    def _positive(cls, value: dict[str, float], info: object) -> dict[str, float]:
        what = getattr(info, "field_name", "")
        needed = ("float32", "bfloat16") if what == "flops" else PHASES
        if missing := [k for k in needed if k not in value]:
            raise PydanticCustomError("lacks", "{what} lacks {k}", {"what": what, "k": missing[0]})
        least, top = (1.0, _HUGE) if what == "flops" else (1e-6, 1.0)
        if not all(least <= v <= top for v in value.values()):
            text = "{what} must lie between {least} and {top}"
            raise PydanticCustomError("range", text, {"what": what, "least": least, "top": top})
        return value

    @field_validator("measured")
    @classmethod
    def _times(cls, value: dict[str, float]) -> dict[str, float]:
        if not all(0 <= v <= _SLOW for v in value.values()):
            raise PydanticCustomError("range", "measured seconds must lie between 0 and {most}", {"most": _SLOW})
        return value

    def seconds(self, part: Part) -> float:
        """Seconds that one device takes for a part.

        Examples
        --------
        >>> fast = Device(name="x", flops={"float32": 1e12, "bfloat16": 2e12}, bandwidth=1e11,
        ...               utilisation={"draw": 0.5, "score": 0.5, "train": 0.5})
        >>> fast.seconds(Part("products", 1, "draw", flops=1e12)), fast.seconds(Part("copies", 1, "draw", bytes=3e11))
        (2.0, 3.0)
        """
        known = self.measured.get(part.name)
        if known is not None:
            return known * part.units
        rate = self.flops.get(part.dtype, self.flops["float32"]) * self.utilisation[part.phase]
        queued = part.launches * self.launch + part.loaded / self.link
        return max(part.flops / rate, part.bytes / self.bandwidth) + queued


@runtime_checkable
class HasCostModel(Protocol):
    """A family that can say what its stages have to do: what `plan` needs where drawing is dear."""

    def work(self, chain: ChainSpec, stage: Stage, role: str, rows: int, mean: float, precision: Precision) -> Work:
        """Return what a stage has to do for so many rows of so many tokens on average.

        `score own` is of the truth's rows under the truth itself; `score truth` and `score law` are of the truth's
        rows, and of the judged law's, under both. `states` and `heads` are the teacher's part of a fit that matches
        it: its network along rows, and its output matrix.
        """
        ...

    def unopened(self, chain: ChainSpec) -> Family | None:
        """Return the family to plan with where the chain's models are not at hand but known; else None."""
        ...

    def lengths(self, chain: ChainSpec) -> Lengths:
        """Return how long answers are expected to be: from a few draws of the truth where it is at hand."""
        ...

    def machine(self, chain: ChainSpec) -> Mapping[str, float]:
        """Measure this machine's rates, with the chain's threads, in a second or two.

        Matrix products as the chain's networks have them, `float32` and `bfloat16`, FLOP/s, and `train`, the share of
        these that learning reaches; `bandwidth`, bytes/s; of an accelerator `memory`, bytes.
        """
        ...

    def measure(self, chain: ChainSpec, mean: float, known: Mapping[str, float]) -> Mapping[str, float]:
        """Measure on this machine, in seconds a unit, the parts of the chain's stages that are not known yet."""
        ...


_ROUNDS = 500


def share_out(stages: Sequence[tuple[Work, float, float]], device: Device) -> dict[str, float]:
    """Return seconds a unit of every part, such that stages take together what they took.

    Starting from the device's own figures, each part's is multiplied by how much longer than reckoned the stages took
    that it is in, weighted by its units there, until that changes nothing: the Richardson-Lucy iteration (Richardson
    1972, doi 10.1364/JOSA.62.000055), which keeps figures positive and the sum of all seconds right in every round.
    Where stages cannot tell parts apart these keep the proportions that they began with.

    Parameters
    ----------
    stages : what one of them has to do, how many of them there were, seconds of all together.

    Examples
    --------
    >>> machine = Device(name="x", flops={"float32": 1e9, "bfloat16": 1e9}, bandwidth=1e9,
    ...                  utilisation={"draw": 1, "score": 1, "train": 1})
    >>> one, two = Part("a", 1, "draw", flops=1e9), Part("b", 2, "draw", flops=1e9)
    >>> found = share_out([(Work(parts=(one,)), 3, 6.0), (Work(parts=(one, two)), 1, 8.0)], machine)
    >>> round(found["a"], 3), round(found["b"], 3)
    (2.0, 3.0)
    """
    kept = [(w, n, taken) for w, n, taken in stages if n > 0 and taken > 0 and any(p.units > 0 for p in w.parts)]
    names = sorted({p.name for w, _, _ in kept for p in w.parts if p.units > 0})
    units, begun = np.zeros((len(kept), len(names))), np.zeros(len(names))
    for i, (work, n, _) in enumerate(kept):
        for part in work.parts:
            if part.units > 0:
                units[i, names.index(part.name)] += n * part.units
                begun[names.index(part.name)] += n * device.seconds(part)
    taken = np.array([t for _, _, t in kept])
    totals = units.sum(0)
    seconds = np.maximum(begun, 1e-12) / totals
    for _ in range(_ROUNDS):
        seconds *= units.T @ (taken / (units @ seconds)) / totals
    return {name: float(s) for name, s in zip(names, seconds, strict=True)}
