"""Stages that some chains have: a teacher's law kept along rows, texts as rows, their scores, and figures of both."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any, Literal

from hydrometer.core.arguments import of_type
from hydrometer.core.distillation import TeacherLaw
from hydrometer.core.rng import Stream
from hydrometer.core.spec import Selectivity
from hydrometer.core.statistics.sampling_design import PromptsAre
from hydrometer.models.base import Footprint, Precision
from hydrometer.models.fit_capabilities import KeepsLaws
from hydrometer.models.work import HasCostModel, Work
from hydrometer.stages.nodes import JudgeNode
from hydrometer.stages.stage import Asked, LawRef, Node, Rows, at_setting

__all__ = ["JudgeGivenNode", "KeepLawNode", "ScoreTextsNode", "Sides", "TextNode", "no_rows"]


@dataclass(frozen=True, slots=True)
class KeepLawNode(Node):
    """What fits see of a teacher's next-token law, kept along one block of rows.

    Attributes
    ----------
    teacher, selectivity : whose law.
    asked : what is kept.
    block, start, n : key of the draw artifact, where it begins among the rows of one fit, and how many rows it has.
    stream : of what is drawn.
    """

    stage, priced = "keep_law", "judge"
    in_results = False
    teacher: LawRef
    selectivity: Selectivity | None
    asked_law: TeacherLaw
    block: str
    start: int
    n: int
    stream: Stream

    def does(self) -> str:
        law = f"the {self.teacher.role}'s law{at_setting(self.selectivity)}"
        return f"keep {self.asked_law.to_json()} of {law} along rows {self.start}-{self.start + self.n - 1}"

    def about(self) -> tuple[str, int]:
        return self.teacher.role, self.n

    def alike(self) -> tuple[object, ...]:
        return (*Node.alike(self), self.asked_law, self.start == 0)

    def asked(self) -> Asked:
        return Asked((("score own", *self.about(), "float32"),))

    def opened(self) -> tuple[tuple[LawRef, Precision], ...]:
        return ((self.teacher, "float32"),)

    def footprint(self) -> Footprint:
        return replace(Node.footprint(self), disk_most=int(self._bytes(None)))

    def work(self, counted: HasCostModel, mean: float) -> Work:
        return replace(Node.work(self, counted, mean), disk=self._bytes(mean))

    def _bytes(self, mean: float | None) -> float:
        family = of_type(KeepsLaws, self.context.family)
        return family.kept_bytes(self.context.spec, self.asked_law, self.n, self.start, mean)


@dataclass(frozen=True, slots=True)
class TextNode(Node):
    """Texts in the place of a truth, or of a baseline, as rows to learn from, where a draw would be.

    Attributes
    ----------
    which : those that are trained on, or those that choose an epoch.
    n : how many they are.
    baseline : whose texts; None of the truth.
    """

    stage, priced = "draw", None
    in_results = False
    which: Literal["train", "validate"]
    n: int
    baseline: str | None = field(default=None, kw_only=True)

    def footprint(self) -> Footprint:  # ids of texts of a few hundred tokens
        return Footprint(disk_most=4_000 * self.n)

    def does(self) -> str:
        whose = "the truth" if self.baseline is None else f"baseline {self.baseline}"
        return f"encode {self.n} texts of {whose} to " + ("train on" if self.which == "train" else "validate by")


@dataclass(frozen=True, slots=True)
class ScoreTextsNode(Node):
    """One block of texts under one law, in the law's canonical tokenisation.

    Attributes
    ----------
    writer : the law that drew them; None for held-out texts.
    block : key of the draw artifact that holds them; None for held-out texts.
    start, n : where the block begins, and how many of its texts are scored.
    """

    stage, priced = "score_texts", "judge"
    in_results = False
    law: LawRef
    decoding: Selectivity | None
    writer: LawRef | None
    block: str | None
    start: int
    n: int

    def does(self) -> str:
        whose = "the held-out texts" if self.writer is None else f"the texts of {self.writer.role}"
        at = "" if self.decoding is None else f" decoded at {self.decoding.label}"
        return f"score {whose} {self.start}-{self.start + self.n - 1} under {self.law.role}{at}"

    def about(self) -> tuple[str, int]:
        return self.law.role, self.n


@dataclass(frozen=True, slots=True)
class Sides:
    """Keys of the scores that a judged model's figures are made of, by rows and law; empty where there are none.

    The judged model's own rows, or those of the truth or the held-out text, under the model itself or under the anchor,
    which is the truth or the reference.
    """

    own_rows_own: tuple[str, ...] = ()
    own_rows_anchor: tuple[str, ...] = ()
    truth_rows_own: tuple[str, ...] = ()
    truth_rows_anchor: tuple[str, ...] = ()

    @property
    def all(self) -> tuple[str, ...]:
        """Every key."""
        return (*self.own_rows_own, *self.own_rows_anchor, *self.truth_rows_own, *self.truth_rows_anchor)


@dataclass(frozen=True, slots=True)
class JudgeGivenNode(JudgeNode):
    """A model judged by its texts, too, or on held-out texts.

    Of held-out texts `truth` is the reference, or the judged law itself where there is none, and there are no rows of
    the truth. Where nothing is drawn the law has no rows either.

    Attributes
    ----------
    held_out : whether texts stand in the place of a truth.
    prompts_are : what intervals are for; None as the rows themselves say it.
    texts : keys of the scores as texts.
    as_texts : whether all models are compared on texts: a chain's whose teacher is of another tokenizer.
    """

    stage, priced = "judge", None
    held_out: bool = field(default=False, kw_only=True)
    prompts_are: PromptsAre | None = field(default="fixed", kw_only=True)
    texts: Sides = field(default_factory=Sides, kw_only=True)
    as_texts: bool = field(default=False, kw_only=True)

    def does(self) -> str:
        at = "" if self.decoding is None else f" decoded at {self.decoding.label}"
        return f"judge the {self.law.role}{at}" if self.law.kind != "given" else f"judge {self.law.role}{at}"

    def about(self) -> tuple[str, int]:
        return self.law.role, 1

    def cost(self) -> float:  # figures of scores: no model is opened
        return self.like("judge", *self.about())

    def footprint(self) -> Footprint:
        return Footprint(disk_most=100 * (self.law_rows.n + self.truth_rows.n) + 40_000)

    def asked(self) -> Asked:
        return Asked()

    @property
    def is_anchor(self) -> bool:
        """Whether the truth or the reference itself is judged."""
        return self.law == self.truth and self.decoding is None

    def behind(self) -> tuple[tuple[str, str], ...]:
        return (*JudgeNode.behind(self), *(("score_texts", k) for k in self.texts.all))

    def artifacts(self) -> dict[str, Any]:
        t = self.texts
        texts = {"own": (*t.own_rows_own, *t.own_rows_anchor), "truth": (*t.truth_rows_own, *t.truth_rows_anchor)}
        found = JudgeNode.artifacts(self)
        scores = {side: [*keys, *(f"score_texts-{k}" for k in texts[side])] for side, keys in found["scores"].items()}
        return {**found, "scores": scores}


def no_rows(law: LawRef) -> Rows:
    """Return the rows of a law that is not drawn from."""
    return Rows(law, None, Stream(0), 0, "judge", (), "none")
