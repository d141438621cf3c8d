"""Cost of each stage of a plan: counts, and seconds from the best timings available."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from hydrometer.core.errors import FitError, InputError
from hydrometer.core.spec import ChainSpec
from hydrometer.models.base import Family, Precision
from hydrometer.models.capabilities import DrawsUnscored
from hydrometer.models.families import RunSpec
from hydrometer.models.fit_capabilities import FitsTogether
from hydrometer.models.work import Device, HasCostModel, Lengths, Part, Work
from hydrometer.run.cost.recorded import kind_of, trial, trial_name
from hydrometer.run.cost.this_machine import COARSE, ThisMachine, keep_length, kept_length
from hydrometer.run.graph.plan import Plan
from hydrometer.run.preflight.machine import size
from hydrometer.stages.nodes import DrawNode, Node
from hydrometer.stages.stage import SHOWN, longest_answer

__all__ = ["Pricing", "StageCost"]

_META = 1200  # bytes of a stage's meta.json, and 40 an input
_PROBED = 32  # rows of the doctor's probe, in each arithmetic
_TELLS = 0.1  # share of coarse seconds above which a stage is called coarse
_KEPT = ("run", "measured")

Source = Literal["run", "measured", "coarse", "device", ""]
_FROM = {
    "run": "are those that earlier runs took here",
    "measured": "were measured here",
    "coarse": f"are coarse, within a factor of {COARSE:g} or so; --measure times them, and a run keeps what it took",
}


@dataclass(frozen=True, slots=True)
class StageCost:
    """Total cost of the stages of one kind and role.

    Attributes
    ----------
    chain, stage, role : which stages; beyond the graph's, `start` imports libraries, `examine` is the doctor's probe,
        `open` reads models from disk.
    stages, done : number in the graph, and of those already made.
    tokens, flops : of the remaining stages; drawn, learned or scored once.
    disk : bytes that the remaining stages will keep. memory : peak bytes of one of them.
    hours, hours_most : on one device, at the expected length of answers, and with every answer cut at max_new_tokens;
        None if unknown.
    source : of most of the seconds: "run", recorded by earlier runs on this machine; "measured" on it; "coarse", from
        counts; "device", another device's data; "" if there are none.
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


@dataclass(frozen=True, slots=True)
class _Price:
    """Seconds of a stage, expected and at most, and the expected ones by source."""

    seconds: float | None
    most: float | None
    by: tuple[tuple[Source, float], ...] = ()


@dataclass(frozen=True, slots=True)
class _Chain:
    """One chain with its remaining stages; `machine` is None if priced for another device."""

    name: str
    family: Family
    spec: ChainSpec
    left: list[Node]
    machine: ThisMachine | None

    def precision(self, purpose: Literal["train", "judge"]) -> Precision:
        return self.family.precision(self.spec, purpose)


class Pricing:
    """Prices a plan, chain by chain.

    Parameters
    ----------
    left : stages that are not made yet.
    given : the device to price for; None for this machine.
    mean : expected tokens of an answer, where the caller knows. measure : time this machine now.
    say : told what takes a while.
    """

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
        self._measured: dict[Path, dict[str, float]] = {}
        self._figures: set[str] = set()

    def device(self) -> Device:
        """Return the device that the plan is priced for."""
        return self.given or self.used[0]

    def note(self, line: str) -> None:
        """Add a note, once."""
        if line not in self.notes:
            self.notes.append(line)

    def chain(self, name: str) -> list[StageCost]:
        """Rows of one chain."""
        family, spec = self.plan.chains[name].context.family, self.plan.chains[name].context.spec
        elsewhere = self.given is not None and isinstance(family, HasCostModel)
        machine = None if elsewhere else ThisMachine(family, spec, self.say)
        chain = _Chain(name, family, spec, [n for n in self.left if n.context.name == name], machine)
        self._figures = set()
        rows = list(self._counted(chain, family) if isinstance(family, HasCostModel) else self._tried(chain))
        self._note_sources(name, rows, machine)
        device = self.device()
        if device.usd_per_hour is not None:
            self.note(f"price of one {device.name}: {device.usd_per_hour:g} USD an hour, {device.price}")
        self._note_memory(name, rows)
        return rows

    # -- expensive chains: counted ------------------------------------------------------------------------------------

    def _counted(self, chain: _Chain, counted: HasCostModel) -> Iterator[StageCost]:
        name, machine, lengths = chain.name, chain.machine, self._lengths(chain, counted)
        if machine is not None and self.measure and chain.left:
            machine.measure(counted, lengths.mean, self._measured.setdefault(machine.path, {}))
        elif machine is not None and chain.left:
            try:
                machine.measure_card(counted, lengths.mean)
            except (InputError, FitError) as e:  # too large to be timed, or the card is full
                self.note(f"{name}: not measured on this card: {e}")
        device = machine.device() if machine is not None else self.given
        assert device is not None
        self.used.append(device)
        self.note(f"device {device.name}: {device.source}")
        self._note_unpriced(chain)
        every = device.measured.get("stage", 0.0)

        def of(node: Node) -> tuple[Work, _Price]:
            work, most = (node.work(counted, n) for n in (lengths.mean, float(lengths.most)))
            price = self._price(work, most, device, machine)
            return work, replace(price, seconds=(price.seconds or 0) + every, most=(price.most or 0) + every)

        if chain.left:
            start, examined = Work(parts=(Part("start", 1, "score"),)), self._examined(chain, counted, lengths)
            yield _row(name, "start", "", Work(), self._price(start, start, device, machine))
            yield _row(name, "examine", "truth", examined, self._price(examined, examined, device, machine))
            for role, opened in self._opened(chain, counted).items():
                yield _row(name, "open", role, Work(), self._price(opened, opened, device, machine))
        yield from self._summed(chain, of)

    def _price(self, work: Work, most: Work, device: Device, machine: ThisMachine | None) -> _Price:
        by: dict[Source, float] = {}
        for part in work.parts:
            figure = None if machine is None else machine.figures.get(part.name)
            source: Source = "device" if machine is None else "coarse" if figure is None else figure.how
            by[source] = by.get(source, 0.0) + device.seconds(part)
            if figure is not None:
                self._figures.add(part.name)
        seconds = sum(by.values())  # the longest answers may use parts without a timing, priced too low
        return _Price(seconds, max(seconds, most.seconds(device)), tuple(by.items()))

    def _note_sources(self, name: str, rows: Sequence[StageCost], machine: ThisMachine | None) -> None:
        """Note where the chain's seconds come from, and reasons to doubt them."""
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
        """Note a stage that needs more memory than the device has."""
        device = self.device()
        most = max(rows, key=lambda r: r.memory, default=None)
        if most is None or device.memory is None or most.memory <= device.memory:
            return
        holds = "may hold" if most.stage == "fit" else "holds at least"  # a fit's batches may be narrower
        what = f"{name}: {most.stage} {most.role} {holds} {size(int(most.memory))} at once, more than the "
        what += f"{size(int(device.memory))} of {'this machine' if device.name == 'this' else f'one {device.name}'}"
        self.notes.insert(0, f"{what}: take a smaller model or batch, fewer block_rows, or a larger device")

    def _note_unpriced(self, chain: _Chain) -> None:
        """Note work of this chain that the counts leave out."""
        name, family = chain.name, chain.family
        if isinstance(family, FitsTogether) and any(family.workers(x) > 1 for x in family.levels(chain.spec)):
            self.note(f"{name}: fits of several workers are priced as fits by one; what they exchange is not counted")
        draws = {(n.law.role, n.purpose, n.selectivity): n for n in chain.left if isinstance(n, DrawNode)}.values()
        if any(n.engine() for n in draws):
            self.note(f"{name}: rows that an engine draws are priced as this package's own sampler would draw them")
        if any(n.selectivity is not None and n.selectivity.accept is not None for n in draws):
            self.note(f"{name}: candidates that accept rejects are not counted")

    def _lengths(self, chain: _Chain, counted: HasCostModel) -> Lengths:
        most = longest_answer(chain.spec)
        truth = self.plan.chains[chain.name].truth.key
        if self.mean is not None:
            found = Lengths(min(self.mean, float(most)), most, "given")
        elif self.measure:
            self.say("asking the truth for a few answers")
            found = counted.lengths(chain.spec)
            keep_length(truth, found)
        else:
            found = kept_length(truth) or Lengths(
                float(most), most, "max_new_tokens: no run and no --measure here has found how long they are"
            )
        self.lengths[chain.name] = found
        family = self.plan.chains[chain.name].context.family
        if isinstance(family, DrawsUnscored) and (served := family.unscored_roles(chain.spec)):
            self.note(f"{chain.name}: the time of what is served ({', '.join(sorted(served))}) is not counted")
        self.note(f"{chain.name}: answers of {found.mean:.3g} tokens expected, {found.most} at most ({found.source})")
        return found

    def _examined(self, chain: _Chain, counted: HasCostModel, lengths: Lengths) -> Work:
        """The doctor's probe: a few rows in each arithmetic, scored."""
        judged = chain.precision("judge")
        precisions: dict[Precision, None] = dict.fromkeys((chain.precision("train"), judged))
        works = [counted.work(chain.spec, "draw", "truth", _PROBED, lengths.mean, p) for p in precisions]
        works.append(counted.work(chain.spec, "score own", "truth", _PROBED, lengths.mean, judged))
        return Work(0.0, 0.0, max(w.memory for w in works), tuple(p for w in works for p in w.parts))

    def _opened(self, chain: _Chain, counted: HasCostModel) -> dict[str, Work]:
        """Models read from disk: once in each arithmetic that draws or scores, as they are kept while in use."""
        key = self.plan.chains[chain.name].truth.key
        pairs = [("truth", key, chain.precision(purpose)) for purpose in ("train", "judge")]
        pairs += [(law.role, law.key, precision) for node in chain.left for law, precision in node.opened()]
        works: dict[str, Work] = {}
        for role, times in Counter(role for role, _, _ in dict.fromkeys(pairs)).items():
            once = counted.work(chain.spec, "open", role, 0, 1.0, "float32")
            works[role] = replace(once, parts=once.parts * times)
        return works

    # -- cheap chains: tried ------------------------------------------------------------------------------------------

    def _tried(self, chain: _Chain) -> Iterator[StageCost]:
        name, family, machine = chain.name, chain.family, chain.machine
        assert machine is not None
        names = {kind_of(n): trial_name(chain.spec, n) for n in chain.left}
        if self.measure and chain.left and not family.keeps_draws:
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

        yield from self._summed(chain, of)

    # -- sums ---------------------------------------------------------------------------------------------------------

    def _summed(self, chain: _Chain, of: Callable[[Node], tuple[Work, _Price]]) -> Iterator[StageCost]:
        stages = Counter(kind_of(n) for n in self.plan.nodes.values() if n.context.name == chain.name)
        empty = _row(chain.name, "", "", Work(), _Price(0.0, 0.0))
        sums = {slot: replace(empty, stage=slot[0], role=slot[1], stages=n, done=n) for slot, n in stages.items()}
        alike: dict[tuple[object, ...], list[Node]] = {}  # thousands of stages, few distinct ones
        for node in chain.left:
            alike.setdefault((kind_of(node), node.alike(), node.asked(), node.units()), []).append(node)
        by: dict[tuple[str, str], dict[Source, float]] = {}
        for nodes in alike.values():
            slot, n, (work, price) = kind_of(nodes[0]), len(nodes), of(nodes[0])
            shares, s = by.setdefault(slot, {}), sums[slot]
            for source, seconds in price.by:
                shares[source] = shares.get(source, 0.0) + n * seconds
            sums[slot] = replace(
                s,
                done=s.done - n,
                tokens=s.tokens + n * work.tokens,
                flops=s.flops + n * work.flops,
                disk=s.disk + n * (work.disk + _META) + 40 * sum(len(node.inputs) for node in nodes),
                memory=max(s.memory, work.memory),
                hours=_plus(s.hours, price.seconds, n),
                hours_most=_plus(s.hours_most, price.most, n),
                source=_source(shares),
            )
        yield from sums.values()


def _row(chain: str, stage: str, role: str, work: Work, price: _Price) -> StageCost:
    hours, most = _plus(0.0, price.seconds, 1), _plus(0.0, price.most, 1)
    source = _source(dict(price.by))
    return StageCost(chain, stage, role, 0, 0, 0.0, work.flops, 0.0, work.memory, hours, most, source)


def _source(by: Mapping[Source, float]) -> Source:
    """Return the source of most seconds; "coarse" if its share exceeds `_TELLS`."""
    total = sum(by.values())
    if not total:
        return ""
    return "coarse" if by.get("coarse", 0.0) > _TELLS * total else max(by, key=lambda k: by[k])


def _plus(hours: float | None, seconds: float | None, times: int) -> float | None:
    return None if hours is None or seconds is None else hours + times * seconds / 3600
