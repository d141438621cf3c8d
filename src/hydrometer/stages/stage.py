"""What every stage of the graph has, and what a kind of stage answers: all that the rest of the program asks of one."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import ClassVar, Literal

from hydrometer.core.rng import Stream
from hydrometer.core.spec import ChainSpec, Selectivity
from hydrometer.models.base import Family, Footprint, Precision
from hydrometer.models.capabilities import AsksParts
from hydrometer.models.work import HasCostModel, Part, Stage, Work

__all__ = ["SHOWN", "Asked", "Context", "Count", "LawRef", "Node", "Rows", "at_setting", "longest_answer"]

Priced = Literal["draw", "fit", "judge"]
Count = tuple[Stage, str, int, Precision]
SHOWN = 17_000
"""Bytes of an exhibit of texts."""


@dataclass(frozen=True, slots=True)
class Context:
    """The chain a node belongs to.

    Attributes
    ----------
    on_training : whether its models are judged on prompts that they are trained on, beside those kept apart.
    """

    name: str
    spec: ChainSpec
    family: Family
    on_training: bool = False

    def judged_on_training(self) -> Context | None:
        """Return the chain judged on prompts of training, where it asks for that."""
        family = self.family
        spec = family.judged_on_training(self.spec) if isinstance(family, AsksParts) else None
        return None if spec is None else Context(self.name, spec, family, on_training=True)

    def asked_identity(self) -> Mapping[str, object]:
        """Return what rows to judge on answer, where that is not what the truth's key says."""
        return self.family.asked_identity(self.spec) if isinstance(self.family, AsksParts) and self.on_training else {}


@dataclass(frozen=True, slots=True)
class LawRef:
    """An unselected law: a truth or a given model by its identity, a fit by its artifact's key."""

    kind: Literal["truth", "fit", "given"]
    key: str
    role: str

    @property
    def inputs(self) -> tuple[str, ...]:
        """Keys of the artifacts that it is opened from."""
        return (self.key,) if self.kind == "fit" else ()


@dataclass(frozen=True, slots=True)
class Rows:
    """The first `n` rows of a stream of a law at a selectivity (None: unselected).

    Attributes
    ----------
    blocks : keys of the draw artifacts that hold them, in order; empty where draws are cheap and made again.
    key : identity.
    """

    law: LawRef
    selectivity: Selectivity | None
    stream: Stream
    n: int
    purpose: Literal["train", "judge"]
    blocks: tuple[str, ...]
    key: str


@dataclass(frozen=True, slots=True)
class Asked:
    """What a family that counts is asked of a stage.

    Attributes
    ----------
    counts : what is done, by which role's model, of how many rows, in which arithmetic; nothing where it is little.
    times : how often all of it is done.
    held : of so many of the first, memory is held at once.
    steps : of a fit that has others than its level's.
    """

    counts: tuple[Count, ...] = ()
    times: int = 1
    held: int = 1
    steps: int | None = None


@dataclass(frozen=True, slots=True)
class Node(ABC):
    """A stage of the graph.

    Attributes
    ----------
    stage : name of its kind in keys and in the store.
    priced : what its family calls it when asked for cost and footprint; None where it takes little.
    draws : whether an engine that draws stays open for it.
    in_results : whether results are made of what it leaves; what other stages alone read is opened for them only.
    resumes : whether one that was killed leaves something to go on from.
    inputs : keys of the artifacts that it reads.
    """

    stage: ClassVar[str]
    priced: ClassVar[Priced | None]
    draws: ClassVar[bool] = False
    in_results: ClassVar[bool] = True
    resumes: ClassVar[bool] = False
    key: str
    context: Context
    inputs: tuple[str, ...] = field(default=(), kw_only=True)

    @abstractmethod
    def does(self) -> str:
        """Say what it does, for people."""

    @property
    def label(self) -> str:
        """Its name for people."""
        return f"{self.context.name}: {self.does()}" + (", on prompts of training" if self.context.on_training else "")

    def about(self) -> tuple[str, int]:
        """Return the role of the model that it is about, and how many rows; of none where it is about none."""
        return "", 0

    def alike(self) -> tuple[object, ...]:
        """Return what stages of one plan that cost the same have in common."""
        return self.context.name, self.stage, *self.about(), self.times()

    def times(self) -> float:
        """Return how often it does what its family prices."""
        return 1

    def cost(self) -> float:
        """Return its relative cost."""
        if self.priced is None:
            return self.like("judge", "student", 1)
        return self.times() * self.like(self.priced, *self.about())

    def footprint(self) -> Footprint:
        """Return the bytes that it takes; none where they are few."""
        if self.priced is None:
            return Footprint()
        return self.context.family.footprint(self.context.spec, self.priced, *self.about())

    def asked(self) -> Asked:
        """Return what its family counts of it."""
        return Asked()

    def work(self, counted: HasCostModel, mean: float) -> Work:
        """Return its work for answers of `mean` tokens; stages with equal `asked()` have equal work."""
        asked, chain = self.asked(), self.context.spec
        works = [counted.work(chain, stage, role, rows, mean, at) for stage, role, rows, at in asked.counts]
        if not works:
            return Work(disk=SHOWN)
        parts = tuple(_scaled(p, asked.times) for w in works for p in w.parts)
        return replace(works[0], memory=sum(w.memory for w in works[: asked.held]), parts=parts)

    def opened(self) -> tuple[tuple[LawRef, Precision], ...]:
        """Return the models that it may be the first to read from disk, and in which arithmetic."""
        return ()

    def units(self) -> int:
        """Return how many fits of students its seconds are told by; 1 where they are told as they are."""
        return 1

    def workers(self) -> int:
        """Return how many processes make it together."""
        return 1

    def like(self, stage: Priced, role: str, rows: int) -> float:
        """Return the relative cost of a stage like this one, of so many rows of a role's model."""
        return self.context.family.cost(self.context.spec, stage, role, rows)

    def precision(self, purpose: Literal["train", "judge"] = "judge") -> Precision:
        """Return the arithmetic of its chain."""
        return self.context.family.precision(self.context.spec, purpose)


def longest_answer(chain: ChainSpec) -> int:
    """Return the most tokens of an answer; 1 where outcomes are no sequences."""
    return int(getattr(getattr(chain, "truth", None), "max_new_tokens", 1))


def _scaled(part: Part, times: int) -> Part:
    if times == 1:
        return part
    more = {k: getattr(part, k) * times for k in ("units", "flops", "bytes", "launches", "loaded")}
    return replace(part, **more)


def at_setting(s: Selectivity | None, how: str = "at") -> str:
    """Return a selectivity in words, behind what is done at it; nothing of none."""
    return "" if s is None else f" {how} {s.label}"
