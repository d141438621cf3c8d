"""Results as typed records, from which every table, figure and sentence is made."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, fields
from functools import cache
from pathlib import Path
from statistics import fmean
from typing import Annotated, Any, TypeVar

from pydantic import BeforeValidator, TypeAdapter

from hydrometer.report import values
from hydrometer.report.values import Json, Setting

__all__ = [
    "Brought",
    "Cell",
    "Chain",
    "Control",
    "Diff",
    "Figure",
    "Gap",
    "Gate",
    "Group",
    "OnBoth",
    "Reach",
    "Run",
    "Step",
    "read",
    "read_diff",
    "read_diffs",
]

T = TypeVar("T")
Reach = tuple[float, float]
"""How far an interval reaches below and above a value."""

# How a field is read from JSON, where it may be anything or absent.
Text = Annotated[str, BeforeValidator(values.text)]
Name = Annotated[str | None, BeforeValidator(lambda v: values.text(v) or None)]
Finite = Annotated[float | None, BeforeValidator(values.finite)]
Count = Annotated[int, BeforeValidator(values.count)]
Flag = Annotated[bool, BeforeValidator(lambda v: v is True)]
Unit = Annotated[str, BeforeValidator(values.unit)]
Interval = Annotated[tuple[float, float] | None, BeforeValidator(values.read_interval)]
Point = Annotated[Setting, BeforeValidator(values.read_point)]
MaybeSetting = Annotated[Setting | None, BeforeValidator(values.read_setting)]
SomeSetting = Annotated[Setting, BeforeValidator(lambda v: values.read_setting(v) or {})]
Object = Annotated[Json, BeforeValidator(values.mapping)]
Objects = Annotated[list[Object], BeforeValidator(values.items)]
Method = Annotated[str, BeforeValidator(values.read_method)]


@cache
def _reader(kind: type[T]) -> Callable[[object], T]:
    return TypeAdapter(kind).validate_python


def read(kind: type[T], value: object, **more: object) -> T:
    """Read a record from a JSON object, field by field; `more` are fields that it has under other names."""
    body = {**values.mapping(value), **more}
    return _reader(kind)({f.name: body.get(f.name) for f in fields(kind)})  # pyright: ignore[reportArgumentType]


@dataclass(frozen=True, slots=True)
class Figure:
    """One metric of one group: mean over seeds with its total standard error, and its spread over seeds."""

    value: Finite
    se: Finite
    ci95: Interval
    unit: Unit
    n_neg_inf: Count
    median: Finite = None
    quartiles: Interval = None
    two_peaks: Flag = False
    few_seeds: Flag = False


@dataclass(frozen=True, slots=True)
class Diff:
    """The difference a - b of one metric between two groups; value is None where one of them is infinite."""

    a: Text
    b: Text
    metric: Text
    value: Finite
    se: Finite
    df: Annotated[float | None, BeforeValidator(values.number)]
    ci95: Interval
    pairing: Text

    @property
    def sign(self) -> int | None:
        """+1 or -1 where the interval excludes zero, 0 where it holds it, None where there is no interval."""
        if self.value is None or self.ci95 is None:
            return None
        return 1 if self.ci95[0] > 0 else -1 if self.ci95[1] < 0 else 0


def read_diff(value: object) -> Diff | None:
    """Read a contrast; None where there is none."""
    return read(Diff, value) if values.mapping(value) else None


def read_diffs(value: object) -> dict[str, Diff]:
    """Read contrasts by name, without what is none."""
    return {k: d for k, v in values.mapping(value).items() if (d := read_diff(v)) is not None}


Diffs = Annotated[dict[str, Diff], BeforeValidator(read_diffs)]


@dataclass(frozen=True, slots=True)
class Group:
    """The cells that differ by their seed alone."""

    id: str
    chain: Text
    role: Text
    level: Count
    training: Name
    selectivity: MaybeSetting
    decoding: MaybeSetting
    seeds: Count
    failed: Count
    metrics: dict[str, Figure]
    point: Point = field(default_factory=dict[str, float])
    absent: Text = ""
    model: Text = ""
    adopted: Text = ""
    unseen: Finite = None
    method: Method = ""
    baseline: Text = ""

    def value(self, metric: str) -> float | None:
        """Return the mean of a metric, or None."""
        found = self.metrics.get(metric)
        return found.value if found else None

    def se(self, metric: str) -> float | None:
        """Return the standard error of a metric, or None."""
        found = self.metrics.get(metric)
        return found.se if found else None

    def reach(self, metric: str, sign: float = 1.0) -> Reach | None:
        """Return how far a metric's 95 % interval reaches below and above its value; of minus it with ``sign=-1``."""
        found = self.metrics.get(metric)
        if found is None or found.value is None or found.ci95 is None:
            return None
        below, above = max(found.value - found.ci95[0], 0.0), max(found.ci95[1] - found.value, 0.0)
        return (below, above) if sign > 0 else (above, below)

    def is_infinite(self, metric: str) -> bool:
        """Whether the metric is minus infinity: some draw had probability zero."""
        found = self.metrics.get(metric)
        return found is not None and found.value is None and found.n_neg_inf > 0


@dataclass(frozen=True, slots=True)
class Cell:
    """One judged model of one seed. `fit` is what its fit took: steps, tokens, tokens_drawn, seconds.

    `few` names the figures that few rows decide.
    """

    id: Text
    group: Text
    chain: Text
    seed: int | None
    ok: bool
    reason: Text
    values: dict[str, float | None]
    seconds: float
    name: Text = ""
    fit: dict[str, float] = field(default_factory=dict[str, float])
    few: frozenset[str] = frozenset()


@dataclass(frozen=True, slots=True)
class Gate:
    """Whether the teacher's recall beats the direct student's."""

    passed: Annotated[bool | None, BeforeValidator(lambda v: v if isinstance(v, bool) else None)]
    diff: Diff | None
    reason: Text


@dataclass(frozen=True, slots=True)
class Step:
    """One selectivity: the student distilled at it against the neutral and the direct one.

    `method` says how where that is not mle on the teacher's rows; `vs_methods` holds, by group, contrasts with the
    students of other methods at the same selectivity.
    """

    selectivity: SomeSetting
    group: Text
    coldest: Flag
    vs_neutral: Diffs
    vs_direct: Diffs
    method: Method = ""
    vs_methods: Annotated[dict[str, Diffs], BeforeValidator(values.mapping)] = field(default_factory=dict[str, "Diffs"])


@dataclass(frozen=True, slots=True)
class Control:
    """Distilled at a selectivity against the direct student decoded at it; of a tilt also against the neutral one."""

    selectivity: SomeSetting
    distilled: Text
    decoded: Text
    same_setting: Diffs
    matched: dict[str, Diff] | None
    matched_entropy: Finite
    matched_reason: Text
    method: Method = ""
    vs_neutral_decoded: Diffs = field(default_factory=dict[str, "Diff"])


@dataclass(frozen=True, slots=True)
class Brought:
    """An adopted model or a baseline, with its contrasts by reference."""

    group: Text
    name: Text
    training: Text
    selectivity: MaybeSetting
    diffs: dict[str, dict[str, Diff]]
    method: Method = ""


@dataclass(frozen=True, slots=True)
class OnBoth:
    """A figure on prompts kept apart and on prompts of training, and the first minus the second."""

    held_out: Finite
    training_prompts: Finite
    gap: Diff


@dataclass(frozen=True, slots=True)
class Gap:
    """A model's gap of generalisation by metric, and what it is minus the direct student's."""

    group: Text
    figures: dict[str, OnBoth]
    vs_direct: Diffs


@dataclass(frozen=True, slots=True)
class Chain:
    """One chain's part of the summary.

    A map has `axes` and `points`, which are chains of the same name, each at its own `point`. `judged` says how
    judged models were prompted. `reference` is what precision and KL(q‖p*) are measured under where the truth is
    texts; else empty. `crossed` counts the rows of a teacher of another tokenizer, `prompts` prompts and their rows.
    """

    name: str
    family: Text
    truth: Text
    kind: Annotated[str, BeforeValidator(lambda v: values.text(v, "sequences"))]
    unit: Unit
    seeds: Count
    truth_group: Name
    teacher_group: Name
    direct_group: Name
    neutral_group: Name
    gate: Gate
    tradeoff: list[Step]
    control: list[Control]
    as_released: Objects
    point: Point = field(default_factory=dict[str, float])
    axes: dict[str, list[float]] = field(default_factory=dict[str, list[float]])
    points: list[Chain] = field(default_factory=list["Chain"])
    advice: Object = field(default_factory=dict[str, Any])
    judged: Object = field(default_factory=dict[str, Any])
    reference: Text = ""
    crossed: Objects = field(default_factory=list[dict[str, Any]])
    prompts: Object = field(default_factory=dict[str, Any])
    adopted: list[Brought] = field(default_factory=list["Brought"])
    gaps: list[Gap] = field(default_factory=list["Gap"])
    baselines: list[Brought] = field(default_factory=list["Brought"])


@dataclass(frozen=True, slots=True)
class Run:
    """One run, from its results.json.

    `doubts` are pairs of chain and finding on its figures, `missing` the ids of cells not judged yet, by chain.
    """

    name: str
    specs: list[Json]
    versions: Json
    cells: list[Cell]
    contrasts: list[Diff]
    groups: dict[str, Group]
    chains: dict[str, Chain]
    folder: Path | None = field(default=None)
    spec_hashes: list[str] = field(default_factory=list[str])
    doubts: list[tuple[str, str]] = field(default_factory=list[tuple[str, str]])
    missing: dict[str, list[str]] = field(default_factory=dict[str, list[str]])

    def of_chain(self, chain: str) -> list[Group]:
        """Return a chain's groups in the order of the file, those of all points of a map."""
        return [g for g in self.groups.values() if g.chain == chain]

    def fits(self) -> dict[str, dict[str, float]]:
        """Return by group what a fit took, means over the seeds whose fit says it."""
        cells: dict[str, list[Cell]] = {}
        for cell in self.cells:
            if cell.fit:
                cells.setdefault(cell.group, []).append(cell)
        known = {g: [k for k in found[0].fit if all(k in c.fit for c in found)] for g, found in cells.items()}
        return {g: {k: fmean(c.fit[k] for c in cells[g]) for k in keys} for g, keys in known.items()}

    def at_point(self, chain: Chain) -> list[Group]:
        """Return a chain's own groups: of one point where it is a point of a map."""
        return [g for g in self.of_chain(chain.name) if g.point == chain.point]
