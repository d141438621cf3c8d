"""From accepted specifications to the stage graph and the cells that it feeds.

    truth --draw--> D --fit--> teacher --select(s), draw--> D'_s --fit--> student_s
                    D --fit--> direct student
    every model, and the controls decoded at s, --judge--> one cell each

The graph is data: nodes in an order in which every input comes before its user. Nothing here draws, fits or judges.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, cast

from hydrometer.core.errors import FolderError, SpecError
from hydrometer.core.rng import Stream
from hydrometer.core.spec import ChainSpec, Resample, Selectivity
from hydrometer.core.watching import doing
from hydrometer.metrics.projection import projection_versions
from hydrometer.models.base import Family, Level
from hydrometer.models.capabilities import Maps
from hydrometer.models.choosing.best_of_n import check_choices
from hydrometer.models.families import RunSpec, family_of
from hydrometer.models.finite_selectivity import canonical
from hydrometer.run.graph.adopted import Adopted
from hydrometer.run.graph.score_nodes import plan_scores
from hydrometer.run.graph.stage_graph import MAX_STAGES, ChainNodes, ChainPlan, Plan
from hydrometer.stages.judge import judged_exactly
from hydrometer.stages.map_point import MOST_SHOWN, map_groups
from hydrometer.stages.nodes import (
    AdoptNode,
    Cell,
    Context,
    EmbedNode,
    FitNode,
    JudgeNode,
    LawRef,
    MapNode,
    PictureNode,
    PrefixSource,
    ReleasedNode,
    Rows,
    ShowNode,
)
from hydrometer.stages.picture import PICTURE_ROWS

__all__ = ["MAX_STAGES", "ChainPlan", "Plan", "plan_run"]

MAX_MAPPED = 10_000_000


def plan_run(
    spec: RunSpec, adopted: Sequence[Adopted] = (), *, family: Callable[[ChainSpec], Family] = family_of
) -> Plan:
    """Plan a whole run, with what it adopted. Raises InputError where a family's `check` finds something wrong."""
    doing("planning the stages")
    plan = Plan()
    for name, chain in spec.chains.items():
        context = Context(name, chain, family(chain))
        check_choices(chain, context.family)
        context.family.check(chain)
        planner = _ChainPlanner(plan, context, spec.seeds)
        if isinstance(context.family, Maps) and context.family.is_map(chain):
            planner.build_map(context.family)
        else:
            planner.build()
        for entry in adopted:
            if entry.chain == name:
                _plan_adopted(planner, entry)
    return plan


class _ChainPlanner(ChainNodes):
    """Builds one chain's nodes and cells."""

    def fit(
        self, level: Level, data: Rows, validate: Rows | None, teacher: LawRef | None, source: PrefixSource, loss: str,
        stream: Stream,
    ) -> LawRef:  # fmt: skip
        key = self.key(
            "fit",
            {
                "truth": self.truth.key,
                "role": level.role,
                "level": level.spec.model_dump(mode="json", context="key"),
                "data": data.key,
                "validate": None if validate is None else validate.key,
                "teacher": None if teacher is None else teacher.key,
                "prefix_source": source,
                "loss": loss,
                "stream": [stream.seed, *stream.path],
            },
        )
        inputs = _law_inputs(data.law) + data.blocks + (() if validate is None else validate.blocks)
        inputs += () if teacher is None else _law_inputs(teacher)
        self.add(
            FitNode(
                key, self.context, level, self.truth, data, validate, teacher, source, loss, stream, inputs=inputs
            )
        )  # fmt: skip
        return LawRef("fit", key, level.role)

    def judge(self, law: LawRef, decoding: Selectivity | None, seed: int, group: str, cell_seed: int | None) -> str:
        truth_rows = self.truth_rows[self.seed_of(seed)]
        is_truth = law.kind == "truth" and canonical(decoding) is None
        root = Stream(0, ("shared",)) if cell_seed is None else Stream(cell_seed)
        # A cell's own rows come from a stream of its own, so that cells are independent given their models.
        stream = root.child("evaluate", "law", group)
        n = self.sizes["evaluate"]
        law_rows = truth_rows if is_truth else self.rows(law, decoding, stream, n, "judge")
        known = None if is_truth or not self.family.keeps_draws else self.truth_judge[self.seed_of(seed)]
        of_truth, of_law = plan_scores(self, law, canonical(decoding), truth_rows, law_rows, known)
        key = self.key(
            "judge",
            {"truth": self.truth.key, "law": law.key, "truth_rows": truth_rows.key, "rows": law_rows.key,
             "decoding": _json(canonical(decoding)), "scores": [*of_truth, *of_law],
             **({"exact": True} if judged_exactly(self.chain) else {})},
        )  # fmt: skip
        inputs = _law_inputs(law) + truth_rows.blocks + law_rows.blocks + (() if known is None else (known,))
        return self.add(
            JudgeNode(
                key, self.context, law, canonical(decoding), self.truth, truth_rows, law_rows, known, of_truth, of_law,
                inputs=(*inputs, *of_truth, *of_law),
            )
        )  # fmt: skip

    def show(self, judge_key: str) -> str:
        """Plan the exhibit of a judged cell."""
        judged = cast("JudgeNode", self.plan.nodes[judge_key])
        return self.add(ShowNode(self.key("show", {"judge": judge_key}), self.context, judged, inputs=(judge_key,)))

    # cells -----------------------------------------------------------------------------------------------------------

    def cell(
        self, law: LawRef, level: int, role: str, seed: int, *, redrawn: tuple[Resample, ...],
        training: Literal["direct", "distilled"] | None = None, selectivity: Selectivity | None = None,
        decoding: Selectivity | None = None, parent: str | None = None, source: PrefixSource | None = None,
        loss: str | None = None, teacher_cell: str | None = None, released: str | None = None,
        origin: Mapping[str, object] | None = None,
    ) -> str:  # fmt: skip
        """Judge a law and enter its cell; returns the cell's id. One with an origin is of its seed alone."""
        parts = [self.context.name, role]
        if training:
            parts.append(training + ("" if selectivity is None else "-" + selectivity.slug))
        if loss not in (None, "mle"):
            parts.append(str(loss))
        if origin is not None:
            parts.append(f"adopted-{origin['adopted']}")
        if decoding is not None:
            parts.append("decoded-" + decoding.slug)
        group = ".".join(parts)
        cell_seed = self.seed_of(seed, *redrawn) if origin is None else seed
        cell_id = group if cell_seed is None else f"{group}.seed{cell_seed}"
        if cell_id not in self.known_cells:
            self.known_cells.add(cell_id)
            key = self.judge(law, decoding, seed, group, cell_seed)
            if law.kind == "truth" and decoding is None:
                self.truth_judge[cell_seed] = key
            first = cell_seed in (None, self.seeds[0])
            if origin is not None:
                first = all(c.group != group for c in self.out.cells)
            show = self.show(key) if first else None
            self.out.cells.append(
                Cell(
                    cell_id, group, self.context.name, level, role, training, parent, selectivity, decoding, source,
                    loss, cell_seed, key, teacher_cell, show, released, origin=origin,
                )
            )  # fmt: skip
        return cell_id

    def build(self) -> None:
        for i, seed in enumerate(self.seeds):
            before = len(self.plan.nodes)
            self.build_seed(seed)
            # What seeds share is planned with the first, so that the second shows what each of the others adds.
            rest = (len(self.plan.nodes) - before) * (len(self.seeds) - 2) if i == 1 else 0
            if len(self.plan.nodes) + rest > MAX_STAGES:
                raise self.too_large(f"{len(self.plan.nodes) + rest} of at most {MAX_STAGES}")
        self.picture()

    def build_map(self, family: Maps) -> None:
        """One node a point, all seeds in it; one cell a group and point."""
        seeds = family.map_seeds(self.chain, self.seeds)
        if len(seeds) < 2:
            raise SpecError("a map's errors are those between seeds", got="one seed", fix="set grid.seeds to 2 or more")
        points = family.points(self.chain)
        if len(points) * len(seeds) > MAX_MAPPED:
            got = f"{len(points)} points of {len(seeds)} seeds"
            raise SpecError("the map is too large", got=got, fix="lower grid.seeds, or give fewer values")
        shown = len(points) <= MOST_SHOWN
        for point in points:
            body = point.chain.model_dump(mode="json", exclude={"selectivity", "decoding"})
            body["selectivity"] = [s.to_json() for s in point.chain.selectivity]
            body["decoding"] = [s.to_json() for s in self.chain.controls]
            groups = map_groups(self.context, point)
            key = self.key("map", {"chain": body, "seeds": list(seeds), "name": groups[0].id, "shown": shown})
            self.add(node := MapNode(key, self.context, point, seeds, shown))
            self.out.maps.append(node)
            for g in groups:
                self.out.cells.append(
                    Cell(
                        g.id, g.id, self.context.name, g.level, g.role, g.training, g.parent, g.selectivity,
                        g.decoding, None if g.training is None else "truth" if g.training == "direct" else "teacher",
                        "mle" if g.training else None, None, key, g.teacher, point=point.values,
                    )
                )  # fmt: skip

    def build_seed(self, seed: int) -> None:
        """One seed's share of the chain; what seeds share is met again under the same keys."""
        data, evaluate = self.root("data", seed), self.root("evaluate", seed)
        n = self.sizes
        shared = self.seed_of(seed)
        self.truth_rows[shared] = self.rows(
            self.truth, None, evaluate.child("evaluate", "truth"), n["evaluate"], "judge"
        )
        truth_cell = self.cell(self.truth, 0, "truth", seed, redrawn=())
        train = self.rows(self.truth, None, data.child("train", "truth"), n["train"], "train")
        validate = self.validation(self.truth, None, data)
        levels = list(self.levels)
        parent, parent_cell = self.truth, truth_cell
        drawn: tuple[Resample, ...] = ("data",)
        if levels[0].role == "teacher":
            teacher = levels.pop(0)
            stream = self.root("teacher", seed).child("fit", teacher.role)
            parent = self.fit(teacher, train, validate, None, "truth", "mle", stream)
            drawn = ("data", "teacher")
            parent_cell = self.cell(parent, 1, teacher.role, seed, redrawn=drawn, parent=truth_cell, source="truth")
        parents: dict[Selectivity, tuple[LawRef, str]] = {}
        first = len(self.levels) - len(levels) + 1
        for depth, level in enumerate(levels, start=first):
            parents = self.build_level(
                seed, depth, level, train, validate, parents, (parent, parent_cell), drawn, truth_cell,
                is_last=level is levels[-1],
            )  # fmt: skip

    def build_level(
        self, seed: int, depth: int, level: Level, train: Rows, validate: Rows | None,
        above: dict[Selectivity, tuple[LawRef, str]], top: tuple[LawRef, str], drawn: tuple[Resample, ...],
        truth_cell: str, *, is_last: bool,
    ) -> dict[Selectivity, tuple[LawRef, str]]:  # fmt: skip
        """Fit and judge one distilled level: the direct model, one at each selectivity, and the decoding controls."""
        fit_stream = self.root("student", seed).child("fit", level.role)
        at_student: tuple[Resample, ...] = ("data", "student")
        at_distilled: tuple[Resample, ...] = (*drawn, "distill", "student")
        direct = self.fit(level, train, validate, None, "truth", "mle", fit_stream)
        direct_cell = self.cell(
            direct, depth, level.role, seed, redrawn=at_student, training="direct", source="truth", loss="mle",
            parent=truth_cell,
        )  # fmt: skip
        out: dict[Selectivity, tuple[LawRef, str]] = {}
        controls: list[tuple[LawRef, str, tuple[Resample, ...], Selectivity | None]] = []
        controls.append((direct, direct_cell, at_student, None))
        distill = self.root("distill", seed)
        for s in self.chain.selectivity:
            law, cell = above.get(s, top)
            s_decoding = None if canonical(s) is None else s
            made_with = () if law.kind == "truth" else drawn if not above else at_distilled
            teacher_cell = cell
            if s_decoding is not None:
                depth_above = 0 if law.kind == "truth" else depth - 1
                training = "distilled" if above else None
                teacher_cell = self.cell(
                    law, depth_above, law.role, seed, redrawn=made_with, parent=cell, decoding=s_decoding,
                    training=training, selectivity=s if above else None,
                )  # fmt: skip
            for loss in self.chain.loss:
                data = self.rows(law, s, distill.child("distill", law.role), self.sizes["distill"], "train")
                held_out = self.validation(law, s, distill)
                student = self.fit(level, data, held_out, law, "teacher", loss, fit_stream)
                released = self.released(seed, s, law, train, direct, student) if is_last else None
                out[s] = student, self.cell(
                    student, depth, level.role, seed, redrawn=at_distilled, training="distilled", selectivity=s,
                    parent=cell, source="teacher", loss=loss, teacher_cell=teacher_cell, released=released,
                )  # fmt: skip
                if canonical(s) is None:
                    controls.append((*out[s], at_distilled, s))
        for law, cell, redrawn, s in controls:
            for decoding in self.chain.controls:
                if canonical(decoding) is not None:
                    self.cell(
                        law, depth, level.role, seed, redrawn=redrawn, selectivity=s, decoding=decoding, parent=cell,
                        training="direct" if s is None else "distilled", loss="mle",
                        source="truth" if s is None else "teacher",
                    )  # fmt: skip
        return out

    def picture(self) -> None:
        """Plan the chain's picture, where it asks for one: the first seed's truth, teacher, students and controls."""
        method: Literal["pca", "umap"] | None = getattr(self.chain, "picture", None)
        if method is None:
            return
        versions = projection_versions(method)  # says in one line what is not installed
        n = min(PICTURE_ROWS, self.sizes["evaluate"])
        models: list[tuple[str, str]] = []
        for cell in self.out.cells:
            if cell.seed in (None, self.seeds[0]) and _is_pictured(cell):
                rows = cast("JudgeNode", self.plan.nodes[cell.judge]).law_rows
                key = self.key("embed", {"truth": self.truth.key, "rows": rows.key, "n": n})
                inputs = (*_law_inputs(rows.law), *rows.blocks)
                models.append((cell.id, self.add(EmbedNode(key, self.context, self.truth, rows, n, inputs=inputs))))
        key = self.key("picture", {"method": method, "versions": versions, "models": [[c, k] for c, k in models]})
        inputs = tuple(k for _, k in models)
        self.out.picture = self.add(PictureNode(key, self.context, method, tuple(models), inputs=inputs))

    def validation(self, law: LawRef, s: Selectivity | None, root: Stream) -> Rows | None:
        """Held-out rows of a fit's own law."""
        n = self.sizes.get("validate", 0)
        return self.rows(law, s, root.child("validate", law.role), n, "train") if n else None

    def released(
        self, seed: int, s: Selectivity, teacher: LawRef, train: Rows, direct: LawRef, student: LawRef
    ) -> str | None:
        """Plan the notebook's own figures, where the chain asks for them."""
        if not getattr(self.chain, "as_released", False):
            return None
        n = self.sizes["evaluate"]
        stream = self.root("evaluate", seed).child("evaluate", "released")
        students = tuple(
            (training, self.rows(law, None, stream.child(training), n, "judge"))
            for training, law in (("direct", direct), ("distilled", student))
        )
        key = self.key(
            "released",
            {"teacher": teacher.key, "selectivity": s.to_json(), "train": train.key,
             "students": [rows.key for _, rows in students]},
        )  # fmt: skip
        inputs = (*_law_inputs(teacher), *_law_inputs(direct), *_law_inputs(student), *train.blocks)
        inputs += tuple(b for _, rows in students for b in rows.blocks)
        return self.add(ReleasedNode(key, self.context, teacher, s, train, students, inputs=inputs))


def _plan_adopted(planner: _ChainPlanner, entry: Adopted) -> None:
    """Enter an adopted model's cells: as it is, and decoded where a native student of its kind is."""
    last = max(c.level for c in planner.out.cells)
    native = [
        c for c in planner.out.cells
        if c.level == last and c.training == entry.training and c.decoding is None and c.origin is None
        and canonical(c.selectivity) == canonical(entry.selectivity)
    ]  # fmt: skip
    if not native:
        raise FolderError(
            "an adopted model has no place in the run", got=entry.name, fix="remove its entry from adopted/"
        )
    twin = next((c for c in native if c.seed == entry.seed), native[0])
    planner.add(AdoptNode(entry.law, planner.context, entry.name))
    law = LawRef("fit", entry.law, twin.role)
    known = {c.id: c for c in planner.out.cells}

    def shared(cell: str | None) -> str | None:
        """The twin's parent or teacher, unless it is another seed's."""
        seed = known[cell].seed if cell in known else None
        return cell if seed in (None, entry.seed) else None

    made: dict[str, Any] = {
        "training": entry.training, "selectivity": twin.selectivity, "source": twin.prefix_source,
        "origin": entry.origin,
    }  # fmt: skip
    plain = planner.cell(
        law, last, twin.role, entry.seed, redrawn=(), parent=shared(twin.parent),
        teacher_cell=shared(twin.teacher_cell), **made,
    )  # fmt: skip
    if canonical(entry.selectivity) is None:
        for decoding in planner.chain.controls:
            if canonical(decoding) is not None:
                planner.cell(law, last, twin.role, entry.seed, redrawn=(), parent=plain, decoding=decoding, **made)


def _is_pictured(cell: Cell) -> bool:
    """Truth and teacher as they are, students as they are, and the direct student decoded."""
    if cell.role == "student":
        return cell.decoding is None or cell.training == "direct"
    return cell.role in ("truth", "teacher") and cell.decoding is None


def _law_inputs(law: LawRef) -> tuple[str, ...]:
    return law.inputs


def _json(s: Selectivity | None) -> object:
    return None if s is None else s.to_json()
