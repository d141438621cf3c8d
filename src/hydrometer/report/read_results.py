"""results.json and exhibits, read into typed records; whatever is optional and absent becomes None or empty.

A number in these files is a JSON number, null, or the string "inf" or "-inf". Everything else in them, names and texts
above all, is material from elsewhere and is escaped where it is shown.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

from hydrometer.core.errors import FolderError
from hydrometer.core.findings import FIGURE_CODES
from hydrometer.core.io.yaml_io import read_plain
from hydrometer.report.values import (
    Json,
    Setting,
    count,
    finite,
    in_order,
    items,
    mapping,
    number,
    read_interval,
    read_point,
    read_setting,
    text,
    unit,
)
from hydrometer.store.migrate import migrate

__all__ = [
    "Brought",
    "Cell",
    "Chain",
    "Control",
    "Diff",
    "Figure",
    "Gate",
    "Group",
    "Run",
    "Step",
    "parse",
    "read_run",
]

MAX_RESULTS_BYTES = 1_000_000_000
MAX_EXHIBIT_BYTES = 64_000_000


Reach = tuple[float, float]
"""How far an interval reaches below and above a value."""


@dataclass(frozen=True, slots=True)
class Figure:
    """One metric of one group: mean over seeds with its total standard error, and what lies between the seeds."""

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


@dataclass(frozen=True, slots=True)
class Gate:
    """Whether the teacher's recall beats the direct student's."""

    passed: bool | None
    diff: Diff | None
    reason: str


@dataclass(frozen=True, slots=True)
class Step:
    """One selectivity: the student distilled at it against the neutral and the direct one."""

    selectivity: Setting
    group: str
    coldest: bool
    vs_neutral: dict[str, Diff]
    vs_direct: dict[str, Diff]


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


@dataclass(frozen=True, slots=True)
class Brought:
    """A model trained elsewhere, with its contrasts by what it is compared with."""

    group: str
    name: str
    training: str
    selectivity: Setting | None
    diffs: dict[str, dict[str, Diff]]


@dataclass(frozen=True, slots=True)
class Chain:
    """One chain's part of the summary.

    A map has `axes` and `points`, which are chains of the same name, each at its own `point`. `judged` is of models
    that exist: how they were asked.
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
    adopted: list[Brought] = field(default_factory=list["Brought"])


@dataclass(frozen=True, slots=True)
class Run:
    """One run: what its results.json holds.

    `doubts` are chains and what was found of their figures, `missing` the ids of cells that are not judged yet, by
    chain.
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


def _diff(value: object) -> Diff | None:
    d = mapping(value)
    if not d:
        return None
    return Diff(
        text(d.get("a")), text(d.get("b")), text(d.get("metric")), finite(d.get("value")), finite(d.get("se")),
        number(d.get("df")), read_interval(d.get("ci95")), text(d.get("pairing")),
    )  # fmt: skip


def _diffs(value: object) -> dict[str, Diff]:
    return {k: d for k, v in mapping(value).items() if (d := _diff(v)) is not None}


def _figure(value: object) -> Figure:
    m = mapping(value)
    return Figure(
        finite(m.get("value")), finite(m.get("se")), read_interval(m.get("ci95")), unit(m.get("unit")),
        count(m.get("n_neg_inf")), finite(m.get("median")), read_interval([m.get("q25"), m.get("q75")]),
        m.get("two_peaks") is True, m.get("few_seeds") is True,
    )  # fmt: skip


def _group(name: str, value: object) -> Group:
    g = mapping(value)
    metrics = {k: _figure(v) for k, v in mapping(g.get("metrics")).items()}
    return Group(
        name, text(g.get("chain")), text(g.get("role")), count(g.get("level")), text(g.get("training")) or None,
        read_setting(g.get("selectivity")), read_setting(g.get("decoding")),
        count(g.get("seeds")), count(g.get("failed")), metrics, read_point(g.get("point")),
        text(g.get("absent")),
        text(g.get("model")),
        text(g.get("adopted")), finite(g.get("unseen")),
    )  # fmt: skip


def _cell(value: object) -> Cell:
    c = mapping(value)
    seed = finite(c.get("seed"))
    values = {k: finite(mapping(m).get("value")) for k, m in mapping(c.get("metrics")).items()}
    return Cell(
        text(c.get("id")), text(c.get("group")), text(c.get("chain")), None if seed is None else int(seed),
        c.get("status") == "ok", text(c.get("reason")), values, number(c.get("seconds")) or 0.0,
    )  # fmt: skip


def _control(value: object) -> Control:
    c = mapping(value)
    matched = mapping(c.get("matched_entropy"))
    return Control(
        read_setting(c.get("selectivity")) or {}, text(c.get("distilled")), text(c.get("decoded")),
        _diffs(c.get("same_setting")), _diffs(matched) if matched else None, finite(matched.get("entropy")),
        text(c.get("matched_reason")),
    )  # fmt: skip


def _step(value: object) -> Step:
    s = mapping(value)
    return Step(
        read_setting(s.get("selectivity")) or {}, text(s.get("group")), s.get("coldest") is True,
        _diffs(s.get("vs_neutral")), _diffs(s.get("vs_direct")),
    )  # fmt: skip


def _brought(value: object) -> Brought:
    b = mapping(value)
    keys = [k for k in b if k.startswith("vs_") or k == "same_setting"]
    return Brought(
        text(b.get("group")), text(b.get("name")), text(b.get("training")), read_setting(b.get("selectivity")),
        {k: _diffs(b.get(k)) for k in keys},
    )  # fmt: skip


def _chain(name: str, value: object) -> Chain:
    c = mapping(value)
    gate, grid = mapping(c.get("gate")), mapping(c.get("map"))
    steps = [_step(s) for s in items(c.get("tradeoff"))]
    order = in_order([s.selectivity for s in steps])
    passed = gate.get("passed")
    return Chain(
        name=name,
        family=text(c.get("family")),
        truth=text(c.get("truth")),
        kind=text(c.get("kind"), "sequences"),
        unit=unit(c.get("unit")),
        seeds=count(c.get("seeds")),
        truth_group=text(c.get("truth_group")) or None,
        teacher_group=text(c.get("teacher_group")) or None,
        direct_group=text(c.get("direct_group")) or None,
        neutral_group=text(c.get("neutral_group")) or None,
        gate=Gate(passed if isinstance(passed, bool) else None, _diff(gate.get("contrast")), text(gate.get("reason"))),
        tradeoff=sorted(steps, key=lambda s: order.index(s.selectivity)),
        control=[_control(s) for s in items(c.get("control"))],
        as_released=[mapping(r) for r in items(c.get("as_released"))],
        point=read_point(c.get("point")),
        axes={k: [n for v in items(a) if (n := number(v)) is not None] for k, a in mapping(grid.get("axes")).items()},
        adopted=[_brought(b) for b in items(c.get("adopted"))],
        points=[_chain(name, {**mapping(p), "map": None}) for p in items(grid.get("points"))],
        advice=mapping(c.get("advice")),
        judged=mapping(c.get("judged")),
    )


def parse(results: Json, folder: Path | None = None) -> Run:
    """Read a results object, of whatever release.

    Parameters
    ----------
    results : the object that results.json holds.
    folder : the run folder, for the exhibits.

    Raises
    ------
    FolderError : where the schema is a newer release's.
    """
    results = migrate(results, str(folder / "results.json") if folder else "results")
    summary = mapping(results.get("summary"))
    contrasts = [_diff(c) for c in items(results.get("contrasts"))]
    return Run(
        name=text(results.get("name")) or (folder.name if folder else "run"),
        specs=[mapping(s) for s in items(results.get("specs"))],
        spec_hashes=[text(h) for h in items(results.get("spec_hashes"))],
        versions=mapping(results.get("versions")),
        cells=[_cell(c) for c in items(results.get("cells"))],
        contrasts=[c for c in contrasts if c is not None],
        groups={k: _group(k, v) for k, v in mapping(summary.get("groups")).items()},
        chains={k: _chain(k, v) for k, v in mapping(summary.get("chains")).items()},
        folder=folder,
        doubts=[
            (text(f.get("chain")), f"{text(f.get('what'))}: {text(f.get('why'))}")
            for f in map(mapping, items(summary.get("findings")))
            if f.get("code") in FIGURE_CODES
        ],
        missing={k: [text(i) for i in items(v)] for k, v in mapping(results.get("partial")).items()},
    )


def _load(path: Path, limit: int) -> Json:
    raw = read_plain(path, limit)
    if len(raw) > limit:
        raise ValueError(f"larger than {limit} bytes")
    value: object = json.loads(raw, parse_constant=lambda _: None)
    if not isinstance(value, dict):
        raise ValueError("not a JSON object")
    return cast(Json, value)


def read_run(folder: Path) -> Run:
    """Read a run folder's results.json.

    Raises
    ------
    FolderError : where there is none or it is no JSON object.
    """
    path = folder / "results.json"
    try:
        results = _load(path, MAX_RESULTS_BYTES)
    except FileNotFoundError:
        raise FolderError(
            "no results.json in this folder", got=str(folder), fix="give the folder of a finished run"
        ) from None
    except (OSError, ValueError, RecursionError) as error:
        raise FolderError(f"results.json cannot be read: {error}", got=str(path), fix="run the recipe again") from None
    return parse(results, folder)


def read_exhibit(run: Run, cell_id: str, kind: str) -> Json | None:
    """Read one cell's exhibit of this kind, or None where there is none that can be read."""
    if run.folder is None or not cell_id or "\0" in cell_id:
        return None
    try:
        home = (run.folder / "exhibits").resolve()
        path = (home / f"{cell_id}.json").resolve()
        if not path.is_relative_to(home) or not path.is_file():
            return None
        exhibit = _load(path, MAX_EXHIBIT_BYTES)
    except (OSError, ValueError, RuntimeError):  # RuntimeError: links that lead in a circle, JSON nested too deeply
        return None
    return exhibit if exhibit.get("kind") == kind and exhibit.get("version") == 1 else None
