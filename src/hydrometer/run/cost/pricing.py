"""What each stage of a plan takes: counts, and seconds from the best figures that there are for them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from hydrometer.core.spec import ChainSpec
from hydrometer.models.base import Family, Precision
from hydrometer.models.capabilities import FitsTogether
from hydrometer.models.families import RunSpec
from hydrometer.models.work import Device, HasCostModel, Lengths, Part, Work
from hydrometer.run.cost.calibration import kind_of, trial, trial_name
from hydrometer.run.cost.counts import SHOWN, Counts
from hydrometer.run.cost.this_machine import COARSE, ThisMachine, keep_length, kept_length
from hydrometer.run.graph.plan import Plan
from hydrometer.run.preflight.machine import size
from hydrometer.stages.nodes import DrawNode, Node

__all__ = ["Pricing", "StageCost"]

_META = 1200  # bytes of a stage's meta.json, and 40 an input
_PROBED = 32  # rows of the doctor's probe, in each arithmetic
_TELLS = 0.1  # share of a stage's seconds from which it is called coarse
_KEPT = ("run", "measured")

Source = Literal["run", "measured", "coarse", "device", ""]
_FROM = {
    "run": "are those that earlier runs took here",
    "measured": "were measured here",
    "coarse": f"are coarse, within a factor of {COARSE:g} or so; --measure times them, and a run keeps what it took",
}


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
    source : where most of the seconds come from: "run", recorded by earlier runs on this machine; "measured" on it;
        "coarse", from counts; "device", figures of another one; "" where there are none.
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
    source: Source = ""


_Slot = tuple[str, str]


@dataclass(frozen=True, slots=True)
class _Price:
    """Seconds of a stage, expected and at most, and of the expected ones how many come from where."""

    seconds: float | None
    most: float | None
    by: tuple[tuple[Source, float], ...] = ()


class Pricing:
    """Adds up a plan, chain by chain."""

    def __init__(
        self,
        spec: RunSpec,
        plan: Plan,
        left: list[Node],
        given: Device | None,
        mean: float | None,
        measure: bool,
        say: Callable[[str], None],
    ) -> None:
        self.spec, self.plan, self.left, self.given, self.mean, self.say = spec, plan, left, given, mean, say
        self.measure = measure
        self.lengths: dict[str, Lengths] = {}
        self.notes: list[str] = []
        self.used: list[Device] = []
        self._counts = Counts()
        self._measured: dict[Path, dict[str, float]] = {}
        self._figures: set[str] = set()
        self._nodes: dict[str, list[Node]] = {}
        for node in plan.nodes.values():
            self._nodes.setdefault(node.context.name, []).append(node)

    def device(self) -> Device:
        """What the plan is priced for."""
        return self.given or self.used[0]

    def note(self, line: str) -> None:
        """Say something once."""
        if line not in self.notes:
            self.notes.append(line)

    def chain(self, name: str) -> Iterator[StageCost]:
        """Rows of one chain."""
        context = self.plan.chains[name].context
        left = [n for n in self.left if n.context.name == name]
        self._figures = set()
        if self.given is not None and isinstance(context.family, HasCostModel):
            machine = None
        else:
            machine = ThisMachine(context.family, context.spec, self.say)
        if isinstance(context.family, HasCostModel):
            rows = list(self._counted(name, context.family, context.family, context.spec, left, machine))
        else:
            rows = list(self._tried(name, context.family, context.spec, left, machine))
        self._note_sources(name, rows, machine)
        device = self.device()
        if device.usd_per_hour is not None:
            self.note(f"price of one {device.name}: {device.usd_per_hour:g} USD an hour, {device.price}")
        self._note_memory(name, rows)
        yield from rows

    # -- dear chains: counted -----------------------------------------------------------------------------------------

    def _counted(
        self,
        name: str,
        family: Family,
        counted: HasCostModel,
        chain: ChainSpec,
        left: list[Node],
        machine: ThisMachine | None,
    ) -> Iterator[StageCost]:
        lengths = self._lengths(name, counted, chain)
        if machine is not None and self.measure and left:
            machine.measure(counted, lengths.mean, self._measured.setdefault(machine.path, {}))
        device = machine.device() if machine is not None else self.given
        assert device is not None
        self.used.append(device)
        self.note(f"device {device.name}: {device.source}")
        self._note_unpriced(name, family, chain, left)

        def priced(work: Work, most: Work | None = None) -> _Price:
            return self._price(work, work if most is None else most, device, machine)

        every = device.measured.get("stage", 0.0)
        known: dict[tuple[int, int], tuple[Work, Work, _Price]] = {}

        def of(node: Node) -> tuple[Work, _Price]:
            work, most = (self._counts.of(node, counted, n) for n in (lengths.mean, float(lengths.most)))
            if (id(work), id(most)) not in known:
                price = priced(work, most)
                price = replace(price, seconds=(price.seconds or 0) + every, most=(price.most or 0) + every)
                known[id(work), id(most)] = work, most, price
            found = known[id(work), id(most)]
            return found[0], found[2]

        if left:
            start = Work(parts=(Part("start", 1, "score"),))
            yield _row(name, "start", "", Work(), priced(start))
            examined = self._examined(family, counted, chain, lengths)
            yield _row(name, "examine", "truth", examined, priced(examined))
            for role, opened in self._opened(name, counted, family, chain, left).items():
                yield _row(name, "open", role, Work(), priced(opened))
        yield from self._summed(name, left, of)

    def _price(self, work: Work, most: Work, device: Device, machine: ThisMachine | None) -> _Price:
        by: dict[Source, float] = {}
        for part in work.parts:
            figure = None if machine is None else machine.figures.get(part.name)
            source: Source = "device" if machine is None else "coarse" if figure is None else figure.how
            by[source] = by.get(source, 0.0) + device.seconds(part)
            if figure is not None:
                self._figures.add(part.name)
        seconds = sum(by.values())  # at its longest a stage may be of parts that nobody timed, priced too low
        return _Price(seconds, max(seconds, most.seconds(device)), tuple(by.items()))

    def _note_sources(self, name: str, rows: Sequence[StageCost], machine: ThisMachine | None) -> None:
        """Say where the chain's seconds come from, and what speaks against them."""
        for source, told in _FROM.items():
            stages = list(dict.fromkeys(r.stage for r in rows if r.source == source))
            if not stages or machine is None:
                continue
            kept = [n for n in self._figures if machine.figures[n].how == source]
            dates = sorted({machine.figures[n].date for n in kept})
            when = f" ({' to '.join(dict.fromkeys((str(dates[0]), str(dates[-1]))))})" if dates else ""
            against = machine.cautions(kept) if source in _KEPT else machine.doubts()
            self.note(f"{name}: seconds of {', '.join(stages)} {'; '.join([told + when, *against])}")

    def _note_memory(self, name: str, rows: Sequence[StageCost]) -> None:
        """Say where a stage holds more than the device has."""
        device = self.device()
        most = max(rows, key=lambda r: r.memory, default=None)
        if most is None or device.memory is None or most.memory <= device.memory:
            return
        what = f"{name}: {most.stage} {most.role} holds at least {size(int(most.memory))} at once, more than the "
        what += f"{size(int(device.memory))} of {'this machine' if device.name == 'this' else f'one {device.name}'}"
        self.notes.insert(0, f"{what}: take a smaller model or batch, fewer block_rows, or a larger device")

    def _note_unpriced(self, name: str, family: Family, chain: ChainSpec, left: list[Node]) -> None:
        """Say what a run of this chain does that no count knows."""
        if isinstance(family, FitsTogether) and any(family.workers(x) > 1 for x in family.levels(chain)):
            self.note(f"{name}: fits of several workers are priced as fits by one; what they exchange is not counted")
        draws = {(n.law.role, n.purpose, n.selectivity): n for n in left if isinstance(n, DrawNode)}.values()
        if any(n.engine() for n in draws):
            self.note(f"{name}: rows that an engine draws are priced as this package's own sampler would draw them")
        if any(n.selectivity is not None and n.selectivity.accept is not None for n in draws):
            self.note(f"{name}: candidates that accept rejects are not counted")

    def _lengths(self, name: str, counted: HasCostModel, chain: ChainSpec) -> Lengths:
        most = int(getattr(getattr(chain, "truth", None), "max_new_tokens", 1))
        truth = self.plan.chains[name].truth.key
        if self.mean is not None:
            found = Lengths(min(self.mean, float(most)), most, "given")
        elif self.measure:
            self.say("asking the truth for a few answers")
            found = counted.lengths(chain)
            keep_length(truth, found)
        else:
            found = kept_length(truth) or Lengths(float(most), most, "max_new_tokens: the truth was not asked")
        self.lengths[name] = found
        self.note(f"{name}: answers of {found.mean:.3g} tokens expected, {found.most} at most ({found.source})")
        return found

    def _examined(self, family: Family, counted: HasCostModel, chain: ChainSpec, lengths: Lengths) -> Work:
        """The doctor's probe: a few rows in each arithmetic, scored."""
        purposes: tuple[Literal["train", "judge"], ...] = ("train", "judge")
        judged = family.precision(chain, "judge")
        precisions: dict[Precision, None] = dict.fromkeys(family.precision(chain, purpose) for purpose in purposes)
        works = [counted.work(chain, "draw", "truth", _PROBED, lengths.mean, p) for p in precisions]
        works.append(counted.work(chain, "score own", "truth", _PROBED, lengths.mean, judged))
        return Work(0.0, 0.0, max(w.memory for w in works), tuple(p for w in works for p in w.parts))

    def _opened(
        self, name: str, counted: HasCostModel, family: Family, chain: ChainSpec, left: list[Node]
    ) -> dict[str, Work]:
        """Models read from disk: once in each arithmetic that draws or scores, as they are kept while in use."""
        key = self.plan.chains[name].truth.key
        pairs: dict[tuple[str, str, Precision], None] = dict.fromkeys(
            [("truth", key, family.precision(chain, "train")), ("truth", key, family.precision(chain, "judge"))]
        )
        for node in left:
            pairs |= dict.fromkeys((law.role, law.key, precision) for law, precision in node.opened())
        works: dict[str, Work] = {}
        for role, _, _ in pairs:
            once = counted.work(chain, "open", role, 0, 1.0, "float32")
            works[role] = replace(once, parts=(*works.get(role, Work()).parts, *once.parts))
        return works

    # -- cheap chains: tried ------------------------------------------------------------------------------------------

    def _tried(
        self, name: str, family: Family, chain: ChainSpec, left: list[Node], machine: ThisMachine | None
    ) -> Iterator[StageCost]:
        assert machine is not None
        names = {kind_of(n): trial_name(chain, n) for n in left}
        if self.measure and left and not family.keeps_draws:
            self.say(f"{name}: running one seed of it")
            machine.learn(trial(self.spec, name), "measured")
        self.used.append(machine.device())
        unknown = family.keeps_draws and not set(names.values()) <= machine.figures.keys()
        if unknown:
            self.note(f"{name}: {family.name} does not say what its stages take; their hours are missing")
        elif self.given is not None:
            self.note(f"{name}: its seconds are those of this machine, on the processor")

        def of(node: Node) -> tuple[Work, _Price]:
            figure = machine.figures.get(names[kind_of(node)])
            work = Work() if family.keeps_draws else Work(disk=SHOWN)
            if figure is not None:
                self._figures.add(names[kind_of(node)])
                seconds, source = figure.seconds * node.units(), figure.how
            elif unknown:
                return work, _Price(None, None)
            else:
                seconds, source = node.cost(), "coarse"
            return work, _Price(seconds, seconds, ((source, seconds),))

        yield from self._summed(name, left, of)

    # -- sums ---------------------------------------------------------------------------------------------------------

    def _summed(self, name: str, left: list[Node], of: Callable[[Node], tuple[Work, _Price]]) -> Iterator[StageCost]:
        stages = Counter(kind_of(node) for node in self._nodes.get(name, []))
        empty = _row(name, "", "", Work(), _Price(0.0, 0.0))
        sums = {slot: replace(empty, stage=slot[0], role=slot[1], stages=n, done=n) for slot, n in stages.items()}
        # By identity: works of many thousand stages are few, and dear to compare.
        groups: dict[tuple[_Slot, int, int], tuple[Work, _Price, list[int]]] = {}
        for node in left:
            slot, (work, price) = kind_of(node), of(node)
            counted = groups.setdefault((slot, id(work), id(price)), (work, price, [0, 0]))[2]
            counted[0] += 1
            counted[1] += len(node.inputs)
        by: dict[_Slot, dict[Source, float]] = {}
        for (slot, _, _), (work, price, (n, inputs)) in groups.items():
            s = sums[slot]
            for source, seconds in price.by:
                shares = by.setdefault(slot, {})
                shares[source] = shares.get(source, 0.0) + n * seconds
            sums[slot] = replace(
                s,
                done=s.done - n,
                tokens=s.tokens + n * work.tokens,
                flops=s.flops + n * work.flops,
                disk=s.disk + n * (work.disk + _META) + 40 * inputs,
                memory=max(s.memory, work.memory),
                hours=_plus(s.hours, price.seconds, n),
                hours_most=_plus(s.hours_most, price.most, n),
                source=_source(by.get(slot, {})),
            )
        yield from sums.values()


def _row(chain: str, stage: str, role: str, work: Work, price: _Price) -> StageCost:
    """Return a row for what is no stage of the graph."""
    hours, most = _plus(0.0, price.seconds, 1), _plus(0.0, price.most, 1)
    source = _source(dict(price.by))
    return StageCost(chain, stage, role, 0, 0, 0.0, work.flops, 0.0, work.memory, hours, most, source)


def _source(by: Mapping[Source, float]) -> Source:
    """Return where most seconds come from; "coarse" where enough of them are."""
    total = sum(by.values())
    if not total:
        return ""
    return "coarse" if by.get("coarse", 0.0) > _TELLS * total else max(by, key=lambda k: by[k])


def _plus(hours: float | None, seconds: float | None, times: int) -> float | None:
    return None if hours is None or seconds is None else hours + times * seconds / 3600
