"""The verb `plan`: tokens, operations, bytes and hours of a run, before it is paid for, and of what it still lacks.

A stage's cost is the sum of its parts (`models.work`), a plan's the sum of its stages': nothing here knows in which
order, or how many at a time, they will run. Wall-clock hours are device hours over the number of devices.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Literal

from hydrometer.core.errors import InputError
from hydrometer.core.spec import ChainSpec
from hydrometer.models.base import Family, FitsTogether, Precision
from hydrometer.models.chosen import needs_truth
from hydrometer.models.drawing import draw_identity
from hydrometer.models.families import RunSpec, family_of
from hydrometer.models.work import Counted, Device, Lengths, Part, Work
from hydrometer.models.work import Stage as Kind
from hydrometer.run.adopted import Adopted, read_adopted
from hydrometer.run.api import joined
from hydrometer.run.devices import ThisMachine, load_device
from hydrometer.run.inputs import check_inputs
from hydrometer.run.machine import missing_stages
from hydrometer.run.plan import Plan, plan_run
from hydrometer.run.recipes import load_spec
from hydrometer.run.trial import kind_of, trial, trial_name, units_of
from hydrometer.stages.nodes import DrawNode, EmbedNode, FitNode, JudgeNode, Node, ScoreNode
from hydrometer.stages.score import BIAS_ROWS
from hydrometer.store.places import place_of
from hydrometer.store.records import RunFolder

__all__ = ["CostPlan", "StageCost", "plan"]

_ORDER = ("start", "examine", "open", "draw", "fit", "score", "judge", "show", "released", "map", "embed", "picture")
_SHOWN = 17_000  # bytes of an exhibit of texts
_META = 1200  # bytes of a stage's meta.json, and 40 an input
_PROBED = 32  # rows of the doctor's probe, in each arithmetic


@dataclass(frozen=True, slots=True)
class StageCost:
    """What the stages of one kind and model come to.

    Attributes
    ----------
    chain, stage, role : whose stages; besides those of the graph, `start` imports libraries, `examine` is the doctor's
        probe, `open` reads models from disk.
    stages, done : how many of the graph's there are, and how many of them are there already.
    tokens, flops : of those that are left; drawn, learned or scored once.
    disk : bytes that those will keep. memory : bytes that one of them holds at once.
    hours, hours_most : on one device, at the expected length of answers, and with every answer cut at max_new_tokens;
        None where nobody knows.
    """

    chain: str
    stage: str
    role: str
    stages: int
    done: int
    tokens: float
    flops: float
    disk: float
    memory: float
    hours: float | None
    hours_most: float | None


@dataclass(frozen=True, slots=True)
class CostPlan:
    """What `plan` returns.

    Attributes
    ----------
    name : of the experiment.
    device : what it is priced for; of several chains on this machine, the first chain's.
    stages : one entry a chain, kind and model.
    lengths : expected lengths of answers, by chain.
    notes : what the figures assume, one line each.
    """

    name: str
    device: Device
    stages: tuple[StageCost, ...]
    lengths: Mapping[str, Lengths] = field(default_factory=dict[str, Lengths])
    notes: tuple[str, ...] = ()

    @property
    def total(self) -> dict[str, float | int | None]:
        """Sums over all stages; memory is the largest. `usd` is None where the device has no price."""
        sums: dict[str, float | int | None] = {
            k: sum(getattr(s, k) for s in self.stages) for k in ("stages", "done", "tokens", "flops", "disk")
        }
        sums["memory"] = max((s.memory for s in self.stages), default=0.0)
        hours = sum(s.hours or 0.0 for s in self.stages)
        most = sum(s.hours_most or 0.0 for s in self.stages)
        count, price = self.device.count, self.device.usd_per_hour
        sums |= {"device_hours": hours, "hours": hours / count, "hours_most": most / count}
        return sums | {"usd": None if price is None else hours * price}

    def to_json(self) -> dict[str, object]:
        """Return the plan as ``hydrometer plan --json`` prints it (docs, Scaling)."""
        return {
            "name": self.name,
            "device": self.device.model_dump(mode="json", exclude={"measured"}),
            "lengths": {k: asdict(v) for k, v in self.lengths.items()},
            "stages": [asdict(s) for s in self.stages],
            "total": self.total,
            "notes": list(self.notes),
        }


def plan(
    source: str | Path | RunSpec,
    *,
    overrides: Sequence[str] = (),
    device: str | Device = "this",
    out: str | Path | None = None,
    cache: str | Path | None = None,
    mean_tokens: float | None = None,
    say: Callable[[str], None] | None = None,
) -> CostPlan:
    """Say what a run will take: tokens, operations, bytes and hours. Nothing of it is made.

    Parameters
    ----------
    source : a recipe's name, a YAML file, or a specification.
    overrides : ``a.b.c=VALUE``, as ``--set``.
    device : "this" measures this machine at the chain's shapes, once, and keeps the figures; "a100", "h100" or "h200"
        take data sheets and assumed utilisations; a file or a `Device` brings its own.
    out, cache : as for `run`; what is there already counts as done.
    mean_tokens : expected tokens of an answer; None asks the truth for a few answers where it is at hand, and takes
        max_new_tokens where it is not.
    say : told what takes a while.

    Raises
    ------
    InputError : anything wrong with what was given. A truth that is not at hand is enough where the specification
        describes it (`truth.architecture`).

    Examples
    --------
    >>> import hydrometer as hm
    >>> found = hm.plan("markov", overrides=["seeds=2"])
    >>> found.total["done"], found.total["hours"] < 1
    (0, True)
    """
    spec = source if isinstance(source, RunSpec) else load_spec(source, overrides)
    if mean_tokens is not None and not 0 < mean_tokens < float("inf"):
        raise InputError("mean_tokens must be a number above 0", got=mean_tokens)
    given = load_device(device) if isinstance(device, str) else device
    families = {name: _family(chain) for name, chain in spec.chains.items()}
    check_inputs(c for n, c in spec.chains.items() if families[n] is family_of(c))
    folder = RunFolder(out if out is not None else Path("runs") / spec.name)
    adopted: list[Adopted] = []
    if all(families[n] is family_of(c) for n, c in spec.chains.items()) and folder.root.is_dir():
        spec, adopted = joined(folder, spec), read_adopted(folder)
    by_chain = {id(chain): families[name] for name, chain in spec.chains.items()}
    nodes = plan_run(spec, adopted, family=lambda chain: by_chain[id(chain)])
    left = missing_stages(nodes, place_of(cache) if cache is not None else folder.artifacts)
    pricing = _Pricing(spec, nodes, left, given, mean_tokens, say or (lambda _: None))
    rows = [row for name in spec.chains for row in pricing.chain(name)]
    rows.sort(key=lambda r: (list(spec.chains).index(r.chain), _ORDER.index(r.stage) if r.stage in _ORDER else 99))
    return CostPlan(spec.name, pricing.device(), tuple(rows), pricing.lengths, tuple(pricing.notes))


def _family(chain: ChainSpec) -> Family:
    family = family_of(chain)
    return (family.unopened(chain) or family) if isinstance(family, Counted) else family


_Slot = tuple[str, str]


class _Pricing:
    """Adds up a plan, chain by chain."""

    def __init__(
        self, spec: RunSpec, plan: Plan, left: list[Node], given: Device | None, mean: float | None,
        say: Callable[[str], None],
    ) -> None:  # fmt: skip
        self.spec, self.plan, self.left, self.given, self.mean, self.say = spec, plan, left, given, mean, say
        self.lengths: dict[str, Lengths] = {}
        self.notes: list[str] = []
        self.used: list[Device] = []
        self._works: dict[tuple[object, ...], Work] = {}
        self._nodes: dict[str, list[Node]] = {}
        for node in plan.nodes.values():
            self._nodes.setdefault(node.context.name, []).append(node)

    def device(self) -> Device:
        """What the plan is priced for."""
        return self.given or self.used[0]

    def note(self, line: str) -> None:
        if line not in self.notes:
            self.notes.append(line)

    def chain(self, name: str) -> Iterator[StageCost]:
        """Rows of one chain."""
        context = self.plan.chains[name].context
        left = [n for n in self.left if n.context.name == name]
        if isinstance(context.family, Counted):
            yield from self._counted(name, context.family, context.family, context.spec, left)
        elif not context.family.keeps_draws:
            yield from self._tried(name, context.family, context.spec, left)
        else:
            self.note(f"{name}: {context.family.name} does not say what its stages take; their hours are missing")
            if self.given is None:
                self.used.append(ThisMachine(context.family, context.spec, self.say).device)
            yield from self._summed(name, left, lambda n: (Work(), None, None))

    # -- dear chains: counted -----------------------------------------------------------------------------------------

    def _counted(
        self, name: str, family: Family, counted: Counted, chain: ChainSpec, left: list[Node]
    ) -> Iterator[StageCost]:  # fmt: skip
        lengths = self._lengths(name, counted, chain)
        device = self.given
        if device is None:
            machine = ThisMachine(family, chain, self.say)
            if left:
                machine.measure(counted, chain, lengths.mean)
            device = machine.device
        self.used.append(device)
        self.note(f"device {device.name}: {device.source}")
        self._note_unpriced(name, family, chain, left)
        every = device.measured.get("stage", 0.0)

        def priced(work: Work, most: Work) -> tuple[Work, float, float]:
            return work, work.seconds(device) + every, most.seconds(device) + every

        def of(node: Node) -> tuple[Work, float | None, float | None]:
            return priced(self._work(node, counted, lengths.mean), self._work(node, counted, float(lengths.most)))

        if left:
            yield StageCost(name, "start", "", 0, 0, 0, 0, 0, 0, *[device.measured.get("start", 0.0) / 3600] * 2)
            yield self._examined(name, family, counted, chain, lengths, device)
            yield from self._opened(name, counted, family, chain, left, device)
        yield from self._summed(name, left, of)

    def _note_unpriced(self, name: str, family: Family, chain: ChainSpec, left: list[Node]) -> None:
        """Say what a run of this chain does that no count knows."""
        if isinstance(family, FitsTogether) and any(family.workers(x) > 1 for x in family.levels(chain)):
            self.note(f"{name}: fits of several workers are priced as fits by one; what they exchange is not counted")
        draws = {(n.law.role, n.purpose, n.selectivity): n for n in left if isinstance(n, DrawNode)}.values()
        if any(draw_identity(family, chain, n.law.role, n.purpose) for n in draws):
            self.note(f"{name}: rows that an engine draws are priced as this package's own sampler would draw them")
        if any(n.selectivity is not None and n.selectivity.accept is not None for n in draws):
            self.note(f"{name}: candidates that accept rejects are not counted")

    def _lengths(self, name: str, counted: Counted, chain: ChainSpec) -> Lengths:
        most = int(getattr(getattr(chain, "truth", None), "max_new_tokens", 1))
        if self.mean is not None:
            found = Lengths(min(self.mean, float(most)), most, "given")
        elif self.given is None or counted.unopened(chain) is not None:
            found = counted.lengths(chain)
        else:
            found = Lengths(float(most), most, "max_new_tokens: not asked of the truth for another device")
        self.lengths[name] = found
        self.note(f"{name}: answers of {found.mean:.3g} tokens expected, {found.most} at most ({found.source})")
        return found

    def _work(self, node: Node, counted: Counted, mean: float) -> Work:
        chain, family = node.context.spec, node.context.family
        judged = family.precision(chain, "judge")
        match node:
            case DrawNode():
                precision, s = family.precision(chain, node.purpose), node.selectivity
                once = self._count(node, counted, "draw", node.law.role, node.n, mean, precision)
                if s is None or not s.chooses:
                    return once
                each = [once]
                if needs_truth(s):  # every candidate is scored under it
                    each.append(self._count(node, counted, "score own", "truth", node.n, mean, precision))
                parts = tuple(_scaled(p, s.best_of or 1) for w in each for p in w.parts)
                return replace(once, memory=sum(w.memory for w in each), parts=parts)
            case FitNode():
                return self._count(node, counted, "fit", node.level.role, node.data.n, mean, judged)
            case ScoreNode():
                is_truth = node.law == node.truth and node.decoding is None
                kind: Kind = "score own" if is_truth else "score truth" if node.side == "truth" else "score law"
                work = self._count(node, counted, kind, node.law.role, node.n, mean, judged)
                again = min(BIAS_ROWS - node.start, node.n) if judged == "bfloat16" else 0
                if again <= 0:
                    return work
                chosen = node.decoding is not None and node.decoding.chooses
                roles = ("truth",) if is_truth or chosen else ("truth", node.law.role)
                exact = [self._count(node, counted, "score own", r, again, mean, "float32") for r in roles]
                return replace(work, parts=work.parts + tuple(p for w in exact for p in w.parts))
            case JudgeNode() if node.truth_scores or node.law_scores:
                return self._count(node, counted, "judge", node.law.role, node.law_rows.n, mean, judged)
            case JudgeNode():  # rows that are not stored: the truth scores them
                return self._count(node, counted, "score own", "truth", node.law_rows.n, mean, judged)
            case EmbedNode():  # one pass of the truth
                return self._count(node, counted, "score own", "truth", node.n, mean, judged)
            case _:
                return Work(disk=_SHOWN)

    def _count(
        self, node: Node, counted: Counted, stage: Kind, role: str, rows: int, mean: float,
        precision: Precision = "float32",
    ) -> Work:  # fmt: skip
        """What is alike is counted once."""
        slot = (node.context.name, stage, role, rows, mean, precision)
        if slot not in self._works:
            self._works[slot] = counted.work(node.context.spec, stage, role, rows, mean, precision)
        return self._works[slot]

    def _examined(
        self, name: str, family: Family, counted: Counted, chain: ChainSpec, lengths: Lengths, device: Device
    ) -> StageCost:  # fmt: skip
        """The doctor's probe: a few rows in each arithmetic, scored."""
        purposes: tuple[Literal["train", "judge"], ...] = ("train", "judge")
        judged = family.precision(chain, "judge")
        precisions: dict[Precision, None] = dict.fromkeys(family.precision(chain, purpose) for purpose in purposes)
        works = [counted.work(chain, "draw", "truth", _PROBED, lengths.mean, p) for p in precisions]
        works.append(counted.work(chain, "score own", "truth", _PROBED, lengths.mean, judged))
        hours = sum(w.seconds(device) for w in works) / 3600
        flops = sum(w.flops for w in works)
        return StageCost(name, "examine", "truth", 0, 0, 0, flops, 0, max(w.memory for w in works), hours, hours)

    def _opened(
        self, name: str, counted: Counted, family: Family, chain: ChainSpec, left: list[Node], device: Device
    ) -> Iterator[StageCost]:  # fmt: skip
        """Models read from disk: once in each arithmetic that draws or scores, as they are kept while in use."""
        key = self.plan.chains[name].truth.key
        pairs: dict[tuple[str, str, Precision], None] = dict.fromkeys([
            ("truth", key, family.precision(chain, "train")), ("truth", key, family.precision(chain, "judge")),
        ])  # fmt: skip
        for node in left:
            if isinstance(node, DrawNode):
                pairs[node.law.role, node.law.key, family.precision(chain, node.purpose)] = None
            elif isinstance(node, ScoreNode):
                judged = family.precision(chain, "judge")
                pairs[node.law.role, node.law.key, judged] = None
                if judged == "bfloat16" and node.start < BIAS_ROWS:
                    pairs |= {("truth", key, "float32"): None, (node.law.role, node.law.key, "float32"): None}
        count: dict[str, int] = {}
        for role, _, _ in pairs:
            count[role] = count.get(role, 0) + 1
        for role, n in count.items():
            hours = n * counted.work(chain, "open", role, 0, 1.0, "float32").seconds(device) / 3600
            yield StageCost(name, "open", role, 0, 0, 0, 0, 0, 0, hours, hours)

    # -- cheap chains: tried ------------------------------------------------------------------------------------------

    def _tried(self, name: str, family: Family, chain: ChainSpec, left: list[Node]) -> Iterator[StageCost]:
        machine = ThisMachine(family, chain, self.say)
        self.used.append(machine.device)
        if any(trial_name(self.spec, name, n) not in machine.device.measured for n in _kinds(left)):
            self.say(f"{name}: running one seed of it")
            machine.learn(trial(self.spec, name))
        self.note(f"{name}: seconds of one seed run here, on the processor")
        seconds = machine.device.measured
        names = {kind_of(n): trial_name(self.spec, name, n) for n in _kinds(left)}

        def of(node: Node) -> tuple[Work, float | None, float | None]:
            found = seconds.get(names[kind_of(node)])
            taken = None if found is None else found * units_of(node)
            return Work(disk=_SHOWN), taken, taken

        yield from self._summed(name, left, of)

    # -- sums ---------------------------------------------------------------------------------------------------------

    def _summed(
        self, name: str, left: list[Node], of: Callable[[Node], tuple[Work, float | None, float | None]]
    ) -> Iterator[StageCost]:  # fmt: skip
        sums: dict[_Slot, StageCost] = {}
        for node in self._nodes.get(name, []):
            slot = kind_of(node)
            empty = StageCost(name, *slot, 0, 0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0)
            sums[slot] = replace(s := sums.get(slot, empty), stages=s.stages + 1, done=s.done + 1)
        groups: dict[tuple[_Slot, Work, float | None, float | None], list[int]] = {}
        for node in left:
            group = groups.setdefault((kind_of(node), *of(node)), [0, 0])
            group[0] += 1
            group[1] += len(node.inputs)
        for (slot, work, hours, most), (n, inputs) in groups.items():
            s = sums[slot]
            sums[slot] = replace(
                s, done=s.done - n, tokens=s.tokens + n * work.tokens, flops=s.flops + n * work.flops,
                disk=s.disk + n * (work.disk + _META) + 40 * inputs, memory=max(s.memory, work.memory),
                hours=_plus(s.hours, hours, n), hours_most=_plus(s.hours_most, most, n),
            )  # fmt: skip
        yield from sums.values()


def _plus(hours: float | None, seconds: float | None, times: int) -> float | None:
    return None if hours is None or seconds is None else hours + times * seconds / 3600


def _kinds(nodes: Sequence[Node]) -> list[Node]:
    """One node of each kind."""
    return list({kind_of(n): n for n in nodes}.values())


def _scaled(part: Part, times: int) -> Part:
    if times == 1:
        return part
    more = {k: getattr(part, k) * times for k in ("units", "flops", "bytes", "launches", "loaded")}
    return replace(part, **more)
