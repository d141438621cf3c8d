"""The stages of models that are judged as they are: scores of texts, and figures of ids and texts together."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Literal

from hydrometer.core.spec import Selectivity
from hydrometer.core.statistics.sampling_design import PromptsAre
from hydrometer.models.base import Footprint
from hydrometer.stages.stage import LawRef, Node, Rows

__all__ = ["JudgeGivenNode", "ScoreTextsNode", "Sides", "TextNode"]


@dataclass(frozen=True, slots=True)
class TextNode(Node):
    """Texts in the place of a truth as rows to learn from, where a draw would be.

    Attributes
    ----------
    which : those that are trained on, or those that choose an epoch.
    n : how many they are.
    """

    stage, priced = "draw", None
    which: Literal["train", "validate"]
    n: int

    def does(self) -> str:
        return f"encode {self.n} texts of the truth to " + ("train on" if self.which == "train" else "validate by")


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
class JudgeGivenNode(Node):
    """A model judged as it is: against a truth that was drawn from, or on held-out text and against a reference.

    Attributes
    ----------
    law, decoding : the judged model.
    anchor : the truth, or the reference; None where there is neither.
    held_out : whether texts stand in the place of a truth.
    own_rows, truth_rows : drawn rows of the model and of the truth, or None.
    truth_scores, law_scores : keys of the scores by token ids, as `JudgeNode` has them; of a model judged against a
        reference `law_scores` alone. Empty where vocabularies differ.
    texts : the scores as texts.
    prompts_are : what intervals are for.
    """

    stage, priced = "judge", None
    law: LawRef
    decoding: Selectivity | None
    anchor: LawRef | None
    held_out: bool
    own_rows: Rows | None
    truth_rows: Rows | None
    truth_scores: tuple[str, ...]
    law_scores: tuple[str, ...]
    prompts_are: PromptsAre
    texts: Sides = field(default_factory=Sides)

    def does(self) -> str:
        return f"judge {self.law.role}" + ("" if self.decoding is None else f" decoded at {self.decoding.label}")

    def about(self) -> tuple[str, int]:
        return self.law.role, 1

    def cost(self) -> float:  # figures of scores: no model is opened
        return self.like("judge", *self.about())

    def footprint(self) -> Footprint:
        rows = sum(r.n for r in (self.own_rows, self.truth_rows) if r is not None)
        return Footprint(disk_most=100 * rows + 40_000)

    @property
    def is_anchor(self) -> bool:
        """Whether the truth or the reference itself is judged."""
        return self.law == self.anchor and self.decoding is None

    @property
    def artifacts(self) -> dict[str, object]:
        """Names of the artifacts behind the cell; as results.json holds them."""

        def named(stage: Literal["draw", "score", "score_texts"], keys: Iterable[str]) -> list[str]:
            return [f"{stage}-{k}" for k in keys]

        own, truth = (() if r is None else r.blocks for r in (self.own_rows, self.truth_rows))
        t = self.texts
        texts = {"own": (*t.own_rows_own, *t.own_rows_anchor), "truth": (*t.truth_rows_own, *t.truth_rows_anchor)}
        return {
            "judge": f"judge-{self.key}",
            "fit": None,
            "draws": {"own": named("draw", own), "truth": named("draw", truth)},
            "scores": {
                side: named("score", ids) + named("score_texts", texts[side])
                for side, ids in (("own", self.law_scores), ("truth", self.truth_scores))
            },
        }
