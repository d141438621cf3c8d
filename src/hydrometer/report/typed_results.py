"""Results as typed records, from which every table, figure and sentence is made."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hydrometer.report.values import (
    Json,
    Setting,
)

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
]

Reach = tuple[float, float]
"""How far an interval reaches below and above a value."""


@dataclass(frozen=True, slots=True)
class Figure:
    """One metric of one group: mean over seeds with its total standard error, and its spread over seeds."""

    value: float | None
    se: float | None
    ci95: tuple[float, float] | None
    unit: str
    n_neg_inf: int
    median: float | None = None
    quartiles: tuple[float, float] | None = None
    two_peaks: bool = False
    few_seeds: bool = False


@dataclass(frozen=True, slots=True)
class Diff:
    """The difference a - b of one metric between two groups; value is None where one of them is infinite."""

    a: str
    b: str
    metric: str
    value: float | None
    se: float | None
    df: float | None
    ci95: tuple[float, float] | None
    pairing: str

    @property
    def sign(self) -> int | None:
        """+1 or -1 where the interval excludes zero, 0 where it holds it, None where there is no interval."""
        if self.value is None or self.ci95 is None:
            return None
        return 1 if self.ci95[0] > 0 else -1 if self.ci95[1] < 0 else 0


@dataclass(frozen=True, slots=True)
class Group:
    """The cells that differ by their seed alone."""

    id: str
    chain: str
    role: str
    level: int
    training: str | None
    selectivity: Setting | None
    decoding: Setting | None
    seeds: int
    failed: int
    metrics: dict[str, Figure]
    point: Setting = field(default_factory=dict[str, float])
    absent: str = ""
    model: str = ""
    adopted: str = ""
    unseen: float | None = None
    method: str = ""
    baseline: str = ""

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
    """One judged model of one seed."""

    id: str
    group: str
    chain: str
    seed: int | None
    ok: bool
    reason: str
    values: dict[str, float | None]
    seconds: float
    name: str = ""


@dataclass(frozen=True, slots=True)
class Gate:
    """Whether the teacher's recall beats the direct student's."""

    passed: bool | None
    diff: Diff | None
    reason: str


@dataclass(frozen=True, slots=True)
class Step:
    """One selectivity: the student distilled at it against the neutral and the direct one.

    `method` says how where that is not mle on the teacher's rows; `vs_methods` holds, by group, contrasts with the
    students of other methods at the same selectivity.
    """

    selectivity: Setting
    group: str
    coldest: bool
    vs_neutral: dict[str, Diff]
    vs_direct: dict[str, Diff]
    method: str = ""
    vs_methods: dict[str, dict[str, Diff]] = field(default_factory=dict[str, "dict[str, Diff]"])


@dataclass(frozen=True, slots=True)
class Control:
    """Distilled at a selectivity against the direct student decoded at it."""

    selectivity: Setting
    distilled: str
    decoded: str
    same_setting: dict[str, Diff]
    matched: dict[str, Diff] | None
    matched_entropy: float | None
    matched_reason: str
    method: str = ""


@dataclass(frozen=True, slots=True)
class Brought:
    """An adopted model or a baseline, with its contrasts by reference."""

    group: str
    name: str
    training: str
    selectivity: Setting | None
    diffs: dict[str, dict[str, Diff]]
    method: str = ""


@dataclass(frozen=True, slots=True)
class OnBoth:
    """A figure on prompts kept apart and on prompts of training, and the first minus the second."""

    held_out: float | None
    training_prompts: float | None
    gap: Diff


@dataclass(frozen=True, slots=True)
class Gap:
    """A model's gap of generalisation by metric, and what it is minus the direct student's."""

    group: str
    figures: dict[str, OnBoth]
    vs_direct: dict[str, Diff]


@dataclass(frozen=True, slots=True)
class Chain:
    """One chain's part of the summary.

    A map has `axes` and `points`, which are chains of the same name, each at its own `point`. `judged` says how
    judged models were prompted. `reference` is what precision and KL(q‖p*) are measured under where the truth is
    texts; else empty. `crossed` counts the rows of a teacher of another tokenizer.
    """

    name: str
    family: str
    truth: str
    kind: str
    unit: str
    seeds: int
    truth_group: str | None
    teacher_group: str | None
    direct_group: str | None
    neutral_group: str | None
    gate: Gate
    tradeoff: list[Step]
    control: list[Control]
    as_released: list[Json]
    point: Setting = field(default_factory=dict[str, float])
    axes: dict[str, list[float]] = field(default_factory=dict[str, list[float]])
    points: list[Chain] = field(default_factory=list["Chain"])
    advice: Json = field(default_factory=dict[str, Any])
    judged: Json = field(default_factory=dict[str, Any])
    reference: str = ""
    crossed: list[Json] = field(default_factory=list[dict[str, Any]])
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

    def at_point(self, chain: Chain) -> list[Group]:
        """Return a chain's own groups: of one point where it is a point of a map."""
        return [g for g in self.of_chain(chain.name) if g.point == chain.point]
