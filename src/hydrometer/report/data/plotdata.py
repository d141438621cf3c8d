"""Data of every figure, as plain records. Independent of matplotlib.

Encodings are by kind of model, the same in every figure: `truth`, `teacher`, `direct`, `decoded` (the direct student
decoded selectively), `decoded_neutral` (the same of the student distilled at the neutral setting), `distilled`.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal

from hydrometer.report.typed_results import Chain, Group, Reach, Run
from hydrometer.report.values import Setting
from hydrometer.report.wording import distilled_at, is_neutral, setting

__all__ = ["FEW_METHODS", "Curves", "Kind", "Panel", "Plane", "Point", "Scale", "curves_data", "kinds_of", "plane_data"]

Kind = Literal["truth", "teacher", "direct", "decoded", "decoded_neutral", "distilled", "baseline", "adopted"]
KINDS: tuple[Kind, ...] = (
    *("truth", "teacher", "direct", "decoded", "decoded_neutral", "distilled", "baseline", "adopted"),
)
CLOUD_PER_GROUP = 60
FEW_METHODS = 3  # besides the first: more are told apart by colour, not by labels
PanelPoint = tuple[float, float, Reach | None]


@dataclass(frozen=True, slots=True)
class Point:
    """One model in a plane; x is None where it is minus infinity."""

    x: float | None
    y: float
    x_reach: Reach | None
    y_reach: Reach | None
    label: str
    group: str


@dataclass(frozen=True, slots=True)
class Plane:
    """Two metrics against each other: paths per kind, ties between models of equal entropy, and a cloud of seeds.

    `methods` are the paths of students that were distilled by other methods than those in `paths`. `under` is the law
    that precision is measured under.
    """

    paths: dict[Kind, list[Point]]
    ties: list[tuple[tuple[float, float], tuple[float, float]]]
    cloud: dict[Kind, list[tuple[float, float]]]
    unit: str
    methods: dict[str, list[Point]] = field(default_factory=dict[str, "list[Point]"])
    under: str = "p*"

    @property
    def lines(self) -> list[tuple[Kind, str, list[Point]]]:
        """All paths, each with its kind and its method."""
        found: list[tuple[Kind, str, list[Point]]] = [(kind, "", self.paths.get(kind, [])) for kind in KINDS]
        found.extend(("distilled", method, points) for method, points in self.methods.items())
        return found


@dataclass(frozen=True, slots=True)
class Scale:
    """A horizontal axis: ticks with their labels, and the axis' own name."""

    name: str
    ticks: list[tuple[float, str]] | None


@dataclass(frozen=True, slots=True)
class Panel:
    """One metric along a scale: per kind the points (x, y, reach), and horizontal levels (y, reach).

    `methods` are series of students that were distilled by other methods than those in `series`.
    """

    title: str
    series: dict[Kind, list[PanelPoint]]
    levels: dict[Kind, tuple[float, Reach | None]]
    methods: dict[str, list[PanelPoint]] = field(default_factory=dict[str, "list[PanelPoint]"])


@dataclass(frozen=True, slots=True)
class Curves:
    """The parts of precision and recall along one scale."""

    scale: Scale
    panels: list[Panel]
    unit: str


def kinds_of(run: Run, chain: Chain) -> dict[Kind, list[Group]]:
    """Sort a chain's students, teachers and truth by kind, each from the widest to the most selective.

    The path of the decoded starts at the direct student itself, that of `decoded_neutral` at the neutral student.
    """
    found: dict[Kind, list[Group]] = {k: [] for k in KINDS}
    neutral = run.groups.get(chain.neutral_group or "")
    for group in run.at_point(chain):
        if group.role == "truth":
            found["truth"].append(group)
        elif group.role == "teacher":
            found["teacher"].append(group)
        elif group.role != "student":
            continue
        elif group.adopted:
            if not group.decoding or is_neutral(group.decoding):
                found["adopted"].append(group)
        elif group.training == "baseline":
            if not group.decoding or is_neutral(group.decoding):
                found["baseline"].append(group)
        elif group.training == "direct":
            found["decoded" if group.decoding and not is_neutral(group.decoding) else "direct"].append(group)
        elif not group.decoding or is_neutral(group.decoding):
            found["distilled"].append(group)
        elif neutral is None or (group.selectivity, group.method) == (neutral.selectivity, neutral.method):
            found["decoded_neutral"].append(group)
    if found["decoded"]:
        found["decoded"] = found["direct"] + found["decoded"]
    if found["decoded_neutral"] and neutral is not None:
        found["decoded_neutral"].insert(0, neutral)
    order = [s.selectivity for s in chain.tradeoff]
    for kind, groups in found.items():
        found[kind] = sorted(groups, key=lambda g, k=kind: _coldness(g, k, order))
    return found


def by_method(run: Run, chain: Chain) -> dict[str, list[Group]]:
    """Sort the distilled students of `kinds_of` by method, the first one as the chain lists them before all others."""
    order = [s.method for s in chain.tradeoff]
    found: dict[str, list[Group]] = {m: [] for m in order}
    for group in kinds_of(run, chain)["distilled"]:
        found.setdefault(group.method, []).append(group)
    return found or {"": []}


def knob(group: Group, kind: Kind) -> Setting | None:
    """Return the setting that varies along a model's path."""
    if kind in ("distilled", "adopted"):
        return group.selectivity
    return group.decoding or (group.selectivity if kind == "teacher" else None)


def _coldness(group: Group, kind: Kind, order: list[Setting]) -> tuple[int, float]:
    value = knob(group, kind)
    if value is None or is_neutral(value):
        return 0, 0.0
    if value in order:
        return 1, float(order.index(value))
    entropy = group.value("entropy")
    return 2, -entropy if entropy is not None else 0.0


def _label(group: Group, kind: Kind) -> str:
    value = knob(group, kind)
    if kind == "adopted":
        return f"{group.adopted} {setting(group.selectivity, short=True) if group.selectivity else group.training}"
    if kind == "baseline":
        return group.baseline
    if kind == "truth":
        return "truth"
    if value is None:
        return {"teacher": "teacher", "direct": "direct"}.get(kind, "")
    return distilled_at(group, short=True) if kind == "distilled" else setting(value, short=True)


def plane_data(run: Run, chain: Chain, *, x: str = "recall", y: str = "precision") -> Plane:
    """Compute a plane of two metrics.

    Parameters
    ----------
    run, chain : what to draw.
    x, y : metric names; a model whose x is minus infinity keeps its y, one without y is left out.
    """
    kinds = kinds_of(run, chain)

    first, *others = by_method(run, chain).items()

    def path(kind: Kind, groups: list[Group], *, named: bool = True) -> list[Point]:
        points: list[Point] = []
        for g in groups:
            up, across = g.value(y), g.value(x)
            if up is None or (across is None and not g.is_infinite(x)):
                continue
            points.append(Point(across, up, g.reach(x), g.reach(y), _label(g, kind) if named else "", g.id))
        return points

    paths: dict[Kind, list[Point]] = {}
    for kind in KINDS:
        if points := path(kind, first[1] if kind == "distilled" else kinds[kind]):
            paths[kind] = points
    named = len(others) <= FEW_METHODS  # else their key says which they are
    methods = {m: points for m, groups in others if (points := path("distilled", groups, named=named))}
    under = f"{chain.reference}" if chain.reference else "p*"
    return Plane(paths, _ties(run, chain, x, y), _cloud(run, kinds, x, y), chain.unit, methods, under)


def _ties(run: Run, chain: Chain, x: str, y: str) -> list[tuple[tuple[float, float], tuple[float, float]]]:
    """Pair each distilled student with the decoded direct student of the same entropy."""
    ties: list[tuple[tuple[float, float], tuple[float, float]]] = []
    for control in chain.control:
        group = run.groups.get(control.distilled)
        dx, dy = (control.matched or {}).get(x), (control.matched or {}).get(y)
        if group is None or dx is None or dy is None or dx.value is None or dy.value is None:
            continue
        here = (group.value(x), group.value(y))
        if here[0] is not None and here[1] is not None:
            ties.append(((here[0], here[1]), (here[0] - dx.value, here[1] - dy.value)))
    return ties


def _cloud(run: Run, kinds: dict[Kind, list[Group]], x: str, y: str) -> dict[Kind, list[tuple[float, float]]]:
    by_group: dict[str, list[tuple[float, float]]] = {}
    for cell in run.cells:
        across, up = cell.values.get(x), cell.values.get(y)
        if cell.ok and across is not None and up is not None:
            by_group.setdefault(cell.group, []).append((across, up))
    cloud: dict[Kind, list[tuple[float, float]]] = {}
    for kind in ("direct", "distilled", "baseline", "adopted"):
        for group in kinds[kind]:
            seen = by_group.get(group.id, [])
            if len(seen) > 1:
                stride = max(1, math.ceil(len(seen) / CLOUD_PER_GROUP))
                cloud.setdefault(kind, []).extend(seen[::stride])
    return cloud


def _settings(run: Run, chain: Chain) -> list[Setting]:
    """Collect every setting of a chain that some model was made or decoded with, widest first."""
    found: list[Setting] = []
    neutral = run.groups.get(chain.neutral_group or "")
    if neutral is not None and neutral.selectivity:
        found.append(neutral.selectivity)
    kinds = kinds_of(run, chain)
    steps = [s.selectivity for s in chain.tradeoff]
    decoded = [g.decoding for k in ("decoded", "decoded_neutral") for g in kinds[k] if g.decoding]
    for value in [*steps, *decoded]:
        if value and value not in found:
            found.append(value)
    return found


def setting_scale(run: Run, chain: Chain) -> tuple[Scale, Callable[[Setting | None], float | None]]:
    """Return the scale of settings, more selective to the right, and the place of a setting on it.

    Temperatures are linear, weight powers logarithmic with infinity one step past the last; composites are in order.
    """
    settings = _settings(run, chain)
    keys = {k for s in settings for k in s}
    values = [next(iter(s.values())) for s in settings]
    if keys == {"temperature"}:
        places = [-v for v in values]
        name = "temperature τ  (more selective →)"
    elif keys == {"weight_power"} and min(values, default=1.0) > 0:
        finite = [math.log10(v) for v in values if math.isfinite(v)]
        places = [math.log10(v) if math.isfinite(v) else max(finite, default=0.0) + 0.6 for v in values]
        name = "weight power β  (more selective →)"
    else:
        places = [float(i) for i in range(len(settings))]
        name = "setting  (more selective →)"
    single = len(keys) == 1
    ticks = [
        (p, ("∞" if math.isinf(v) else f"{v:g}") if single else setting(s, short=True).replace(" ", "\n"))
        for p, v, s in zip(places, values, settings, strict=True)
    ]

    def place(value: Setting | None) -> float | None:
        if value is None:
            value = next((s for s in settings if is_neutral(s)), None)
        return places[settings.index(value)] if value is not None and value in settings else None

    return Scale(name, sorted(ticks)), place


def teacher_entropies(run: Run, chain: Chain) -> list[tuple[Setting, float]]:
    """Return the entropy that the teacher reached at each setting, from its students' cells or from its own."""
    kinds = kinds_of(run, chain)
    found: list[tuple[Setting, float]] = []
    for group in kinds["distilled"]:
        value = group.value("entropy_teacher")
        if group.selectivity and value is not None:
            found.append((group.selectivity, value))
    known = [s for s, _ in found]
    for group in kinds["teacher"]:
        value, at = group.value("entropy"), knob(group, "teacher")
        neutral = run.groups.get(chain.neutral_group or "")
        at = at or (neutral.selectivity if neutral else None)
        if at and at not in known and value is not None:
            found.append((at, value))
    return found


def entropy_scale(run: Run, chain: Chain) -> tuple[Scale, Callable[[Setting | None], float | None]]:
    """Return the scale of achieved teacher entropy: what makes temperature and weight power comparable."""
    entropies = teacher_entropies(run, chain)

    def place(value: Setting | None) -> float | None:
        if value is None:
            return next((-h for s, h in entropies if is_neutral(s)), None)
        return next((-h for s, h in entropies if s == value), None)

    return Scale(f"teacher entropy achieved, {chain.unit}  (more selective →)", None), place


PARTS: list[tuple[str, str, float]] = [
    ("precision", "precision = −H(q) − KL(q‖p*)", 1.0),
    ("entropy", "−H(q): the colder part", -1.0),
    ("kl_student_truth", "−KL(q‖p*): the fit part", -1.0),
    ("recall", "recall = −H(p*) − KL(p*‖q)", 1.0),
]


def curves_data(run: Run, chain: Chain, *, against: Literal["setting", "entropy"]) -> Curves | None:
    """Compute precision, its two parts, and recall along the settings or along the teacher's entropy.

    A decoded model stands where the teacher at the same setting stands. Returns None where no model can be placed.
    """
    scale, place = setting_scale(run, chain) if against == "setting" else entropy_scale(run, chain)
    kinds = kinds_of(run, chain)
    first, *others = by_method(run, chain).items()
    kinds["distilled"] = first[1]
    panels: list[Panel] = []
    for metric, title, sign in PARTS:

        def along(kind: Kind, groups: list[Group], metric: str = metric, sign: float = sign) -> list[PanelPoint]:
            points = [
                (p, sign * v, g.reach(metric, sign))
                for g in groups
                if (kind != "adopted" or g.selectivity)
                and (p := place(knob(g, kind) if g is not _start(run, chain, kind) else None)) is not None
                and (v := g.value(metric)) is not None
            ]
            return sorted(points, key=lambda t: t[0])

        moving: tuple[Kind, ...] = ("decoded", "decoded_neutral", "distilled", "adopted")
        series: dict[Kind, list[PanelPoint]] = {k: points for k in moving if (points := along(k, kinds[k]))}
        methods = {m: points for m, groups in others if (points := along("distilled", groups))}
        levels: dict[Kind, tuple[float, Reach | None]] = {}
        for kind in ("truth", "teacher", "direct"):
            first = next((g for g in kinds[kind] if knob(g, kind) is None), None)
            value = _level(first, metric, kind)
            if value is not None:
                levels[kind] = (sign * value[0], value[1])
        title = title.replace("KL(q‖p*)", f"KL(q‖{chain.reference})") if chain.reference else title
        panels.append(Panel(title, series, levels, methods))
    if not any(p.series for p in panels):
        return None
    return Curves(scale, panels, chain.unit)


def _start(run: Run, chain: Chain, kind: Kind) -> Group | None:
    """Return the undecoded model that a decoded path starts at."""
    start = {"decoded": chain.direct_group, "decoded_neutral": chain.neutral_group}.get(kind)
    return run.groups.get(start or "")


def _level(group: Group | None, metric: str, kind: Kind) -> tuple[float, Reach | None] | None:
    if group is None:
        return None
    value = group.value(metric)
    if value is not None:
        return value, group.reach(metric)
    if kind == "truth":  # precision = recall = -H, and no divergence from itself
        entropy = group.value("entropy")
        if metric in ("kl_student_truth", "kl_truth_student"):
            return 0.0, None
        return (-entropy, group.reach("entropy")) if entropy is not None else None
    return None
