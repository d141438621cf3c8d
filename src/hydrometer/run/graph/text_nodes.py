"""The stages of a chain whose truth is texts, and of a teacher that is taken as it is."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import fields
from typing import Literal

from hydrometer.core.errors import SpecError
from hydrometer.core.rng import Stream
from hydrometer.core.spec import Selectivity
from hydrometer.models.capabilities import Baseline, GivenModels, TextTruth, TextTruths
from hydrometer.run.graph.score_nodes import plan_side, plan_texts, text_blocks
from hydrometer.run.graph.stage_graph import ChainNodes, Plan
from hydrometer.stages.given_nodes import JudgeGivenNode, Sides, TextNode, no_rows
from hydrometer.stages.nodes import VERSIONS, Context, JudgeNode, LawRef, Rows
from hydrometer.store.artifacts import content_key

__all__ = ["TextNodes"]


class TextNodes(ChainNodes):
    """Plans what texts are trained and judged on.

    Attributes
    ----------
    texts : what stands in the place of the truth; None where the truth is a law.
    given : the teacher, where it is a model as it is.
    anchor : the law under which precision is measured beside texts.
    baselines : students that are fitted to texts of their own.
    judges_texts : whether drawn rows are scored as texts, as the teacher's tokenizer is not the chain's.
    """

    def __init__(self, plan: Plan, context: Context, seeds: tuple[int, ...]) -> None:
        super().__init__(plan, context, seeds)
        self.texts: TextTruth | None = None
        self.given: LawRef | None = None
        self.baselines: Sequence[Baseline] = ()
        self.judges_texts = isinstance(self.family, GivenModels) and self.family.judges_texts(self.chain)
        if isinstance(self.family, TextTruths):
            self.texts = self.family.text_truth(self.chain)
            self.baselines = self.family.baselines(self.chain)
        if isinstance(self.family, GivenModels) and "teacher" in self.family.given_roles(self.chain):
            identity = {"truth": self.truth.key, "model": dict(self.family.given_identity(self.chain, "teacher"))}
            self.given = LawRef("given", content_key(identity), "teacher")
        self.anchor = self.truth

    def check_texts(self) -> None:
        """Refuse what texts in the place of a truth cannot do. Raises SpecError."""
        chooses = next((s for s in (*self.chain.selectivity, *self.chain.controls) if s.chooses), None)
        if self.texts is not None and chooses is not None:
            what = f"chains.{self.context.name}: texts score nothing, so rows are not chosen by the truth or judged so"
            raise SpecError(what, got=chooses.label, fix="name a model as truth, or leave best_of and accept out")

    @property
    def anchored_by_teacher(self) -> bool:
        """Whether precision beside texts is measured under the teacher."""
        return self.texts is not None and self.texts.by_teacher

    def number(self, depth: int) -> int:
        """Return a level's number; a teacher that is taken as it is has one, too."""
        return depth if self.given is None else depth + 1

    def text_rows(self, which: Literal["train", "validate"]) -> Rows:
        """Plan the texts that models are trained on, or that choose an epoch, as rows."""
        if self.texts is None:
            raise TypeError("the truth is no text")
        n = self.texts.train if which == "train" else self.texts.validate
        key = self.key("draw", {"truth": self.truth.key, "texts": dict(self.texts.identity), "which": which, "n": n})
        self.add(TextNode(key, self.context, which, n))
        return Rows(self.truth, None, Stream(0, ("texts", which)), n, "train", (key,), key)

    def baseline_rows(self, b: Baseline, which: Literal["train", "validate"]) -> Rows:
        """Plan the texts that a baseline is fitted to, or that choose its epoch, as rows."""
        n = b.train if which == "train" else b.validate
        parts: dict[str, object] = {"truth": self.truth.key, "baseline": dict(b.identity), "which": which, "n": n}
        key = self.key("draw", parts)
        self.add(TextNode(key, self.context, which, n, baseline=b.name))
        return Rows(self.truth, None, Stream(0, ("texts", which)), n, "train", (key,), key)

    def judge_on_text(self, law: LawRef, decoding: Selectivity | None, own: Rows) -> str:
        """Plan the judging of a law on the held-out texts, and of its own rows under the anchor."""
        texts = self.texts
        if texts is None:
            raise TypeError("the truth is no text")
        named = {"truth": self.truth.key, "texts": texts.judged}
        blocks = [(start, n, {**named, "start": start}) for start, n in text_blocks(texts.evaluate)]
        on_text = () if self.is_unscored(law, decoding) else plan_texts(self, law, decoding, blocks)
        of_own = () if self.judges_texts else plan_side(self, law, decoding, "law", own, against=self.anchor)
        of_texts: tuple[tuple[str, ...], ...] = ((), ())
        if self.judges_texts:
            of_texts = self.score_drawn(law, decoding, own), self.score_drawn(self.anchor, None, own)
        sides = Sides(*of_texts, truth_rows_own=on_text)
        parts: dict[str, object] = {
            "figures": VERSIONS["judge_given"],
            "law": law.key,
            "decoding": None if decoding is None else decoding.to_json(),
            "anchor": self.anchor.key,
            "prompts_are": texts.are,
            "rows": own.key,
            "scores": [*on_text, *of_own] if not self.judges_texts else [*sides.all],
        }
        node = JudgeGivenNode(
            self.key("judge", parts),
            self.context,
            law,
            decoding,
            self.anchor,
            no_rows(self.truth),
            own,
            None,
            (),
            of_own,
            held_out=True,
            prompts_are=texts.are,
            texts=sides,
            as_texts=self.judges_texts,
            inputs=(*law.inputs, *own.blocks, *sides.all, *of_own),
        )
        return self.add(node)

    def score_drawn(self, law: LawRef, decoding: Selectivity | None, rows: Rows) -> tuple[str, ...]:
        """Plan one law's scores of drawn rows as texts."""
        size = self.family.block_rows(self.chain)
        blocks = [(i * size, min(size, rows.n - i * size), block) for i, block in enumerate(rows.blocks)]
        named = [(start, n, {"truth": self.truth.key, "block": block, "rows": n}) for start, n, block in blocks]
        return plan_texts(self, law, decoding, named, rows)

    def judge_with_texts(self, node: JudgeNode, parts: Mapping[str, object]) -> str:
        """Plan the same judging with scores as texts beside those of ids; of the teacher, in whose place they stand.

        Parameters
        ----------
        parts : of the node's key.
        """
        law, at, own, truth = node.law, node.decoding, node.law_rows, node.truth_rows
        texts = Sides(
            self.score_drawn(law, at, own),
            self.score_drawn(self.truth, None, own),
            self.score_drawn(law, at, truth),
            self.score_drawn(self.truth, None, truth),
        )
        key = self.key("judge", {**parts, "figures": VERSIONS["judge_given"], "texts": texts.all})
        kept = {f.name: getattr(node, f.name) for f in fields(node) if f.name not in ("key", "inputs")}
        inputs = (*node.inputs, *texts.all)
        return self.add(JudgeGivenNode(key, **kept, prompts_are=None, texts=texts, as_texts=True, inputs=inputs))
