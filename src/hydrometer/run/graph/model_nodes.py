"""The stages of one model: its fit, what judges it, and its cell."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import NamedTuple

from hydrometer.core.distillation import DENSE, Distillation
from hydrometer.core.rng import Stream
from hydrometer.core.spec import Resample, Selectivity
from hydrometer.models.base import Level
from hydrometer.models.finite_selectivity import canonical
from hydrometer.run.graph.budgets import at_budget
from hydrometer.run.graph.score_nodes import plan_scores
from hydrometer.run.graph.stage_graph import Plan
from hydrometer.run.graph.text_nodes import TextNodes
from hydrometer.stages.cells import Cell, Place
from hydrometer.stages.given_nodes import KeepLawNode
from hydrometer.stages.judge import judged_exactly
from hydrometer.stages.nodes import Context, FitNode, JudgeNode, LawRef, Rows, ShowNode

__all__ = ["Model", "ModelNodes", "TrainingRows"]


class TrainingRows(NamedTuple):
    """The rows of one fit, and the held-out rows of the same law, where the chain has some."""

    data: Rows
    validate: Rows | None


@dataclass(frozen=True, slots=True)
class Model:
    """A planned model: its law, where it stands, its cell, and what of a seed it is redrawn with.

    Texts in the place of a truth have no cell.
    """

    law: LawRef
    place: Place
    cell: str | None
    redrawn: tuple[Resample, ...]


class ModelNodes(TextNodes):
    """Plans models: how one is fitted, judged, and entered as a cell.

    Attributes
    ----------
    beside : plans the same models judged on prompts of training; None where the chain does not ask for that.
    """

    def __init__(self, plan: Plan, context: Context, seeds: tuple[int, ...]) -> None:
        super().__init__(plan, context, seeds)
        again = context.judged_on_training()
        self.paid: dict[tuple[object, ...], int] = {}
        self.beside: ModelNodes | None = None if again is None else ModelNodes(plan, again, seeds)

    def evaluate(self, root: Stream, *names: str) -> Stream:
        """Return the stream of rows to judge on; rows that answer prompts of training have their own."""
        return root.child("evaluate", *(("training-prompts",) if self.context.on_training else ()), *names)

    def judge_on(self, seed: int) -> None:
        """Plan the truth's rows that models are judged on, those of the chain's target where it has one."""
        stream, n = self.evaluate(self.root("evaluate", seed), "truth"), self.sizes["evaluate"]
        target: Selectivity | None = getattr(self.chain, "target", None)
        self.truth_rows[self.seed_of(seed)] = self.rows(self.truth, target, stream, n, "judge")
        if self.beside is not None:
            self.beside.judge_on(seed)

    def fit(
        self,
        level: Level,
        rows: TrainingRows,
        stream: Stream,
        teacher: LawRef | None = None,
        distillation: Distillation | None = None,
        baseline: str | None = None,
        start: LawRef | None = None,
        usual: Callable[[], Rows] | None = None,
    ) -> LawRef:
        """Plan a fit: of a distilled model with its teacher and its start, of a direct one, or of a named baseline.

        `usual` plans a distilled model's teacher's rows, on which `mle` sets the budget.
        """
        kept: tuple[tuple[str, ...], tuple[str, ...]] = (), ()
        if teacher is not None and distillation is not None and distillation.teacher_law != DENSE:
            kept = self.keep(teacher, distillation, rows.data), self.keep(teacher, distillation, rows.validate)
        node = FitNode(
            "",
            self.context,
            level,
            self.truth,
            rows.data,
            rows.validate,
            teacher,
            distillation,
            stream,
            baseline=baseline,
            start=start,
            kept=kept,
            inputs=(
                *rows.data.law.inputs,
                *rows.data.blocks,
                *(() if rows.validate is None else rows.validate.blocks),
                *(() if teacher is None else teacher.inputs),
                *(() if start is None else start.inputs),
                *kept[0],
                *kept[1],
            ),
        )
        node = node if usual is None else at_budget(node, self.sizes["distill"], usual, self.paid)
        key = self.key(
            "fit",
            {
                "truth": self.truth.key,
                "role": level.role,
                "level": node.level.spec.model_dump(mode="json", context="key"),
                "data": rows.data.key,
                "validate": None if rows.validate is None else rows.validate.key,
                "teacher": None if teacher is None else teacher.key,
                "prefix_source": node.prefix_source,
                "loss": node.loss,
                **({} if node.matched is None else {"selectivity": node.matched.to_json()}),
                **({} if start is None else {"start": start.key}),
                **({} if node.usual is None else {"tokens_of": node.usual.key}),
                **({} if node.law == DENSE else {"teacher_law": node.law.to_json(), "kept": kept}),
                "stream": [stream.seed, *stream.path],
            },
        )
        self.add(replace(node, key=key))
        return LawRef("fit", key, level.role)

    def keep(self, teacher: LawRef, d: Distillation, rows: Rows | None) -> tuple[str, ...]:
        """Plan what is kept of a teacher's law along rows, block by block: once for all objectives that see it."""
        if rows is None:
            return ()
        size = self.family.block_rows(self.chain) if len(rows.blocks) > 1 else rows.n
        s, asked, keys = canonical(d.selectivity), d.teacher_law.stored, list[str]()
        for i, block in enumerate(rows.blocks):
            start, n = i * size, min(size, rows.n - i * size)
            parts: dict[str, object] = {
                "truth": self.truth.key,
                "teacher": teacher.key,
                "selectivity": None if s is None else s.to_json(),
                "law": asked.to_json(),
                "block": block,
                "start": start,
                "rows": n,
            }
            key, stream, inputs = self.key("keep_law", parts), rows.stream.child("kept"), (*teacher.inputs, block)
            node = KeepLawNode(key, self.context, teacher, s, asked, block, start, n, stream, inputs=inputs)
            keys.append(self.add(node))
        return tuple(keys)

    def judge(self, law: LawRef, decoding: Selectivity | None, seed: int, group: str, cell_seed: int | None) -> str:
        """Plan the judging of a law, decoded or not; returns the stage's key."""
        decoding = canonical(decoding)
        if self.texts is not None:
            root = Stream(0, ("shared",)) if cell_seed is None else Stream(cell_seed)
            own = self.rows(law, decoding, self.evaluate(root, "law", group), self.sizes["evaluate"], "judge")
            return self.judge_on_text(law, decoding, own)
        truth_rows = self.truth_rows[self.seed_of(seed)]
        is_truth = law.kind == "truth" and decoding is None
        root = Stream(0, ("shared",)) if cell_seed is None else Stream(cell_seed)
        # A cell's own rows come from a stream of its own, so that cells are independent given their models.
        stream = self.evaluate(root, "law", group)
        law_rows = truth_rows if is_truth else self.rows(law, decoding, stream, self.sizes["evaluate"], "judge")
        known = None if is_truth or not self.family.keeps_draws else self.truth_judge[self.seed_of(seed)]
        of_truth, of_law = (), ()
        if law.kind != "given" or not self.judges_texts:
            of_truth, of_law = plan_scores(self, law, decoding, (truth_rows, law_rows), known)
        parts: dict[str, object] = {
            "truth": self.truth.key,
            "law": law.key,
            "truth_rows": truth_rows.key,
            "rows": law_rows.key,
            "decoding": None if decoding is None else decoding.to_json(),
            "scores": [*of_truth, *of_law],
        }
        if judged_exactly(self.chain):
            parts["exact"] = True
        node = JudgeNode(
            self.key("judge", parts),
            self.context,
            law,
            decoding,
            self.truth,
            truth_rows,
            law_rows,
            known,
            of_truth,
            of_law,
            inputs=(
                *law.inputs,
                *truth_rows.blocks,
                *law_rows.blocks,
                *(() if known is None else (known,)),
                *of_truth,
                *of_law,
            ),
        )
        key = self.judge_with_texts(node, parts) if self.judges_texts else self.add(node)
        if is_truth:
            self.truth_judge[cell_seed] = key
        return key

    def judge_beside(self, law: LawRef, seed: int, group: str, cell_seed: int | None) -> str | None:
        """Plan the judging of a law, not decoded, on prompts of training, where the chain asks for that."""
        if self.beside is None:
            return None
        self.beside.anchor = self.anchor
        return self.beside.judge(law, None, seed, group, cell_seed)

    def show(self, judge_key: str) -> str:
        """Plan the exhibit of a judged cell."""
        judged = self.plan.judge(judge_key)
        return self.add(ShowNode(self.key("show", {"judge": judge_key}), self.context, judged, inputs=(judge_key,)))

    # cells -----------------------------------------------------------------------------------------------------------

    def cell(
        self, law: LawRef, place: Place, seed: int, redrawn: tuple[Resample, ...], released: str | None = None
    ) -> Model:
        """Judge a law and enter its cell. One with an origin is of its seed alone."""
        group = f"{self.context.name}.{place.name}"
        cell_seed = self.seed_of(seed, *redrawn) if place.origin is None else seed
        cell_id = group if cell_seed is None else f"{group}.seed{cell_seed}"
        model = Model(law, place, cell_id, redrawn)
        if self.known_cells.get(cell_id) == (law, place):  # seeds and students share it
            return model
        self.known_cells[cell_id] = law, place
        key = self.judge(law, place.decoding, seed, group, cell_seed)
        is_first = cell_seed in (None, self.seeds[0])
        if place.origin is not None:
            is_first = all(c.group != group for c in self.out.cells)
        self.out.cells.append(
            Cell.at(
                place,
                id=cell_id,
                group=group,
                chain=self.context.name,
                seed=cell_seed,
                judge=key,
                judge_training=self.judge_beside(law, seed, group, cell_seed) if self.has_gap(place) else None,
                show=self.show(key) if is_first and self.texts is None and not self.judges_texts else None,
                released=released,
                unscored=self.is_unscored(law, place.decoding),
            )
        )
        return model

    def has_gap(self, place: Place) -> bool:
        """Whether a model is judged on prompts of training, too: not if decoded, nor if it learned from others."""
        return place.decoding is None and place.training != "baseline"

    def decoded(self, model: Model, decoding: Selectivity, seed: int) -> Model:
        """Enter the cell of a planned model, decoded selectively."""
        place = replace(model.place, decoding=decoding, parent=model.cell, teacher_cell=None)
        return self.cell(model.law, place, seed, model.redrawn)

    def validation(self, law: LawRef, s: Selectivity | None, root: Stream) -> Rows | None:
        """Held-out rows of a fit's own law."""
        n = self.sizes.get("validate", 0)
        return self.rows(law, s, root.child("validate", law.role), n, "train") if n else None
