"""The stages of a judgement, in the run's graph: rows drawn, scored by ids or as texts, and judged."""

from __future__ import annotations

from typing import Literal

from hydrometer.core.rng import Stream
from hydrometer.core.spec import Selectivity
from hydrometer.models.causal_lm.given import GIVEN, GivenModel
from hydrometer.models.finite_selectivity import canonical
from hydrometer.run.graph.score_nodes import plan_side, plan_texts, text_blocks
from hydrometer.run.graph.stage_graph import ChainNodes, Plan
from hydrometer.run.judging.question import Question
from hydrometer.stages.cells import Cell, Place
from hydrometer.stages.given_nodes import JudgeGivenNode, Sides, no_rows
from hydrometer.stages.nodes import VERSIONS, Context, LawRef, Rows
from hydrometer.store.artifacts import content_key

__all__ = ["NAME", "plan_judgement"]

NAME = "judge"

Role = Literal["truth", "reference", "student"]


def plan_judgement(question: Question) -> Plan:
    """Plan the stages and cells of a judgement, the anchor's first."""
    plan = Plan()
    _JudgePlanner(plan, question).build()
    return plan


class _JudgePlanner(ChainNodes):
    def __init__(self, plan: Plan, question: Question) -> None:
        super().__init__(plan, Context(NAME, question.chain, GIVEN), (question.seed,))
        self.question = question
        self.models = {m.role: m for m in question.chain.models}
        self.refs = {
            m.role: LawRef("given", content_key({**m.law, "dtype": question.chain.dtype}), m.role)
            for m in question.chain.models
        }
        self.stream = Stream(question.seed)
        self.truth_scores: tuple[str, ...] = ()
        self.as_texts = question.chain.held_out is None and not all(question.same)
        if question.anchored:
            self.truth = self.refs[question.chain.models[0].role]

    def build(self) -> None:
        q = self.question
        parent = None
        if q.anchor is not None:
            role: Role = "truth" if q.chain.held_out is None else "reference"
            cell_id = "judge.truth" if role == "truth" else f"judge.reference.{q.anchor.label}"
            self.cell(cell_id, role, q.anchor, None, None)
            parent = cell_id if role == "truth" else None
        for student in q.students:
            plain = f"judge.student.{student.label}"
            self.cell(plain, "student", student, None, parent)
            for s in q.decodings:
                if s is not None:
                    self.cell(f"{plain}.decoded-{s.slug}", "student", student, s, plain)

    def cell(
        self, cell_id: str, role: Role, model: GivenModel, decoding: Selectivity | None, parent: str | None
    ) -> None:
        law = self.refs[model.role]
        level = 0 if role == "truth" else 1
        judge = self.add(self.judge(law, canonical(decoding), is_anchor=role != "student"))
        place = Place(level=level, role=role, decoding=decoding, parent=parent)
        self.out.cells.append(Cell.at(place, id=cell_id, group=cell_id, chain=NAME, seed=None, judge=judge))

    def judge(self, law: LawRef, decoding: Selectivity | None, *, is_anchor: bool) -> JudgeGivenNode:
        q = self.question
        held_out = q.chain.held_out is not None
        anchor = self.truth if q.anchored else None
        own = self.drawn(law, decoding, is_truth=is_anchor and not held_out) if anchor is not None else None
        truth = self.drawn(anchor, None, is_truth=True) if anchor is not None and not held_out else None
        by_ids = self.same(law)
        truth_scores: tuple[str, ...] = ()
        law_scores: tuple[str, ...] = ()
        if own is not None and by_ids:
            if truth is not None:
                known = () if is_anchor else self.truth_scores
                truth_scores = plan_side(self, law, decoding, "truth", truth, known)
            if not (is_anchor and truth is not None):
                law_scores = plan_side(self, law, decoding, "law", own)
        texts = self.texts(law, decoding, own, truth, by_ids=by_ids)
        scores = (*truth_scores, *law_scores, *texts.all)
        rows = [r for r in (own, truth) if r is not None]
        key = self.key(
            "judge",
            {
                "figures": VERSIONS["judge_given"],
                "law": law.key,
                "decoding": None if decoding is None else decoding.to_json(),
                "anchor": None if anchor is None else anchor.key,
                "prompts_are": q.prompts_are,
                "rows": [r.key for r in rows],
                "scores": scores,
                "held_out": self.held_out_key(),
            },
        )
        inputs = (*law.inputs, *(b for r in rows for b in r.blocks), *scores)
        node = JudgeGivenNode(
            key,
            self.context,
            law,
            decoding,
            law if anchor is None else anchor,
            truth or no_rows(law),
            own or no_rows(law),
            None,
            truth_scores,
            law_scores,
            held_out=held_out,
            prompts_are=q.prompts_are,
            texts=texts,
            inputs=inputs,
        )
        if is_anchor:
            self.truth_scores = truth_scores
        return node

    def same(self, law: LawRef) -> bool:
        """Whether a model has the anchor's vocabulary."""
        q = self.question
        return q.anchored and q.same[[m.role for m in q.chain.models].index(law.role)]

    def drawn(self, law: LawRef, decoding: Selectivity | None, *, is_truth: bool) -> Rows:
        """Rows of the truth or of a judged law, of a stream of its own: two judgements of one truth share its rows."""
        at = None if decoding is None else decoding.to_json()
        whose = ("truth", law.key) if is_truth else ("judged", content_key([law.key, at]))
        return self.rows(law, decoding, self.stream.child("evaluate", *whose), self.sizes["evaluate"], "judge")

    def texts(
        self, law: LawRef, decoding: Selectivity | None, own: Rows | None, truth: Rows | None, *, by_ids: bool
    ) -> Sides:
        """Plan scores as texts: of held-out texts always, of drawn ones where a vocabulary differs."""
        if self.question.chain.held_out is not None:
            on_text = self.score_texts(law, decoding, None)
            if own is None or by_ids:
                return Sides(truth_rows_own=on_text)
            return Sides(self.score_texts(law, decoding, own), self.score_texts(self.truth, None, own), on_text)
        if not self.as_texts or own is None or truth is None:
            return Sides()
        return Sides(
            self.score_texts(law, decoding, own),
            self.score_texts(self.truth, None, own),
            self.score_texts(law, decoding, truth),
            self.score_texts(self.truth, None, truth),
        )

    def score_texts(self, law: LawRef, decoding: Selectivity | None, rows: Rows | None) -> tuple[str, ...]:
        """Plan one law's scores of texts, block by block; None for the held-out ones."""
        chain = self.question.chain
        if rows is None:
            texts = chain.held_out
            if texts is None:
                raise ValueError("there are no held-out texts")
            blocks = text_blocks(len(texts.answers))
            named = [(start, n, {"texts": content_key(texts.texts(start, n))}) for start, n in blocks]
            return plan_texts(self, law, decoding, named)
        # Prompts of equal ids may be of different text, behind which answers are decoded and encoded.
        behind = [self.models[ref.role].prompts.written for ref in (law, rows.law)]
        size = chain.block_rows
        blocks = [(i * size, min(size, rows.n - i * size), block) for i, block in enumerate(rows.blocks)]
        named = [(start, n, {"block": block, "rows": n, "behind": behind}) for start, n, block in blocks]
        return plan_texts(self, law, decoding, named, rows)

    def held_out_key(self) -> str | None:
        """Return the name of the held-out texts, by content."""
        texts = self.question.chain.held_out
        return None if texts is None else content_key(texts.texts(0, len(texts.answers)))
