"""From accepted specifications to the stage graph and the cells that it feeds.

    truth --draw--> D --fit--> teacher --select(s), draw--> D'_s --fit--> student_s
                    D --fit--> direct student
                 text --fit--> baselines
    every model, and the controls decoded at s, --judge--> one cell each

The students of one s differ in their objectives, and in whose rows they are trained on (`core.distillation`); below
several levels each is distilled from the model above of the same distillation.

The graph is data: nodes in an order in which every input comes before its user. Nothing here draws, fits or judges.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from hydrometer.core.distillation import Distillation
from hydrometer.core.errors import FolderError, SpecError
from hydrometer.core.spec import ChainSpec, Resample
from hydrometer.core.watching import doing
from hydrometer.metrics.projection import projection_versions
from hydrometer.models.base import Family, Level
from hydrometer.models.capabilities import Baseline, Maps
from hydrometer.models.choosing.best_of_n import check_choices
from hydrometer.models.families import RunSpec, family_of
from hydrometer.models.finite_selectivity import canonical
from hydrometer.run.graph.adopted import Adopted
from hydrometer.run.graph.model_nodes import Model, ModelNodes, TrainingRows
from hydrometer.run.graph.stage_graph import MAX_STAGES, ChainPlan, Plan, truth_identity
from hydrometer.stages.cells import Cell, Place
from hydrometer.stages.map_point import MOST_SHOWN, map_groups
from hydrometer.stages.nodes import (
    AdoptNode,
    Context,
    EmbedNode,
    LawRef,
    MapNode,
    PictureNode,
    ReleasedNode,
    Rows,
)
from hydrometer.stages.picture import PICTURE_ROWS
from hydrometer.store.artifacts import content_key

__all__ = ["MAX_STAGES", "ChainPlan", "Plan", "plan_run", "truth_keys"]

MAX_MAPPED = 10_000_000


def plan_run(
    spec: RunSpec, adopted: Sequence[Adopted] = (), *, family: Callable[[ChainSpec], Family] = family_of
) -> Plan:
    """Plan a whole run, with what it adopted. Raises InputError where a family's `check` finds something wrong."""
    doing("planning the stages")
    plan = Plan()
    for name, chain in spec.chains.items():
        context = _checked(name, chain, family(chain))
        planner = _ChainPlanner(plan, context, spec.seeds)
        planner.check_texts()
        if isinstance(context.family, Maps) and context.family.is_map(chain):
            planner.build_map(context.family)
        else:
            planner.build()
        for entry in adopted:
            if entry.chain == name:
                _plan_adopted(planner, entry)
    _refuse_collisions(plan)
    return plan


def truth_keys(spec: RunSpec) -> dict[str, str]:
    """Return the key of each chain's truth. Raises InputError where a family's `check` finds something wrong."""
    contexts = [_checked(name, chain, family_of(chain)) for name, chain in spec.chains.items()]
    return {c.name: content_key(truth_identity(c)) for c in contexts}


def _checked(name: str, chain: ChainSpec, family: Family) -> Context:
    check_choices(chain, family)
    family.check(chain)
    return Context(name, chain, family)


def _refuse_collisions(plan: Plan) -> None:
    """Refuse two models under one cell id, of which results would hold one alone. Raises SpecError."""
    found = Counter(c.id for c in plan.cells)
    if twice := next((cell_id for cell_id, n in found.items() if n > 1), None):
        fix = "write their settings so that their names differ"
        raise SpecError("two models of the run would have one cell id", got=twice, fix=fix)


@dataclass(frozen=True, slots=True)
class _Above:
    """What the distilled levels of one seed have above them: the truth and its rows, and the first teacher."""

    seed: int
    truth: Model
    rows: TrainingRows
    teacher: Model


class _ChainPlanner(ModelNodes):
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
        if other := next((d.label for d in self.distillations if d.variant), None):
            raise SpecError("a map's students are fitted by maximum likelihood to the teacher's rows", got=other)
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
            self.out.cells += [
                Cell.at(g, id=g.id, group=g.id, chain=self.context.name, seed=None, judge=key) for g in groups
            ]

    def build_seed(self, seed: int) -> None:
        """One seed's share of the chain; what seeds share is met again under the same keys."""
        truth, rows = self.truth_of(seed) if self.texts is None else self.texts_in_its_place()
        top, first = truth, 1
        if self.levels[0].role == "teacher":
            level, first = self.levels[0], 2
            law = self.fit(level, rows, self.root("teacher", seed).child("fit", level.role))
            self.anchor = law if self.anchored_by_teacher else self.truth
            place = Place(level=1, role=level.role, parent=truth.cell)
            top = self.cell(law, place, seed, ("data", "teacher"))
        elif self.given is not None:
            self.anchor = self.given if self.anchored_by_teacher else self.truth
            top = self.cell(self.given, Place(level=1, role="teacher", parent=truth.cell), seed, ())
        if self.texts is not None and not self.anchored_by_teacher:
            self.cell(self.truth, Place(level=1, role="reference"), seed, ())
        above = _Above(seed, truth, rows, top)
        teachers: dict[Distillation, Model] = {}
        for depth in range(first, len(self.levels) + 1):
            teachers = self.build_level(above, depth, teachers)

    def texts_in_its_place(self) -> tuple[Model, TrainingRows]:
        """Plan the texts that models are trained on; nothing of them is judged."""
        place = Model(self.truth, Place(level=0, role="truth"), None, ())
        return place, TrainingRows(self.text_rows("train"), self.text_rows("validate"))

    def truth_of(self, seed: int) -> tuple[Model, TrainingRows]:
        data = self.root("data", seed)
        self.judge_on(seed)
        truth = self.cell(self.truth, Place(level=0, role="truth"), seed, ())
        train = self.rows(self.truth, None, data.child("train", "truth"), self.sizes["train"], "train")
        return truth, TrainingRows(train, self.validation(self.truth, None, data))

    def build_level(
        self, above: _Above, depth: int, teachers: Mapping[Distillation, Model]
    ) -> dict[Distillation, Model]:
        """Plan one distilled level: the direct model, one of each distillation, and the decoding controls.

        Parameters
        ----------
        teachers : models of the level above; empty below the first teacher, which then teaches all.
        """
        level, seed = self.levels[depth - 1], above.seed
        stream = self.root("student", seed).child("fit", level.role)
        law = self.fit(level, above.rows, stream)
        place = Place(level=self.number(depth), role=level.role, training="direct", parent=above.truth.cell)
        direct = self.cell(law, place, seed, ("data", "student"))
        out: dict[Distillation, Model] = {}
        for d in self.distillations:
            out[d] = self.distilled(above, depth, d, teachers.get(d, above.teacher), direct)
        baselines = [self.baseline(b, above, depth) for b in self.baselines] if depth == len(self.levels) else []
        for model in (direct, *baselines, *(m for d, m in out.items() if canonical(d.selectivity) is None)):
            for decoding in self.chain.controls:
                if canonical(decoding) is not None:
                    self.decoded(model, decoding, seed)
        return out

    def baseline(self, b: Baseline, above: _Above, depth: int) -> Model:
        level = Level(self.levels[depth - 1].role, b.level)
        stream = self.root("student", above.seed).child("fit", level.role)
        rows = TrainingRows(self.baseline_rows(b, "train"), self.baseline_rows(b, "validate"))
        law = self.fit(level, rows, stream, baseline=b.name)
        place = Place(level=self.number(depth), role=level.role, training="baseline", baseline=b.name)
        return self.cell(law, place, above.seed, ("student",))

    def distilled(self, above: _Above, depth: int, d: Distillation, teacher: Model, direct: Model) -> Model:
        level, seed, s = self.levels[depth - 1], above.seed, d.selectivity
        selected = teacher if canonical(s) is None else self.decoded(teacher, s, seed)
        root = self.root("distill", seed)
        rows, drawn = above.rows, root.child("distill", teacher.law.role)

        def usual() -> Rows:
            return self.rows(teacher.law, s, drawn, self.sizes["distill"], "train")

        if d.prefixes.name == "teacher":  # of rows that a student draws itself, the truth's give prompts alone
            rows = TrainingRows(usual(), self.validation(teacher.law, s, root))
        stream = self.root("student", seed).child("fit", level.role)
        start = direct.law if getattr(self.chain, "warm_start", False) else None
        law = self.fit(level, rows, stream, teacher.law, d, start=start, usual=usual)
        place = Place(
            level=self.number(depth),
            role=level.role,
            training="distilled",
            distillation=d,
            parent=teacher.cell,
            teacher_cell=selected.cell,
        )
        is_last = depth == len(self.levels)
        students = {"direct": direct.law, "distilled": law}
        released = self.released(seed, d, teacher.law, above.rows.data, students) if is_last else None
        redrawn: tuple[Resample, ...] = (*(above.teacher.redrawn or ("data",)), "distill", "student")
        return self.cell(law, place, seed, redrawn, released)

    def picture(self) -> None:
        """Plan the chain's picture, where it asks for one: the first seed's truth, teacher, students and controls."""
        method: Literal["pca", "umap"] | None = getattr(self.chain, "picture", None)
        if method is None:
            return
        versions = projection_versions(method)  # says in one line what is not installed
        n = min(PICTURE_ROWS, self.sizes["evaluate"])
        models: list[tuple[str, str]] = []
        for cell in self.out.cells:
            if cell.role == "teacher" and self.judges_texts:
                continue  # its ids mean nothing to the truth
            if cell.seed in (None, self.seeds[0]) and _is_pictured(cell):
                rows = self.plan.judge(cell.judge).law_rows
                key = self.key("embed", {"truth": self.truth.key, "rows": rows.key, "n": n})
                inputs = (*rows.law.inputs, *rows.blocks)
                models.append((cell.id, self.add(EmbedNode(key, self.context, self.truth, rows, n, inputs=inputs))))
        key = self.key("picture", {"method": method, "versions": versions, "models": [[c, k] for c, k in models]})
        inputs = tuple(k for _, k in models)
        self.out.picture = self.add(PictureNode(key, self.context, method, tuple(models), inputs=inputs))

    def released(
        self, seed: int, d: Distillation, teacher: LawRef, train: Rows, students: Mapping[str, LawRef]
    ) -> str | None:
        """Plan the notebook's own figures, where the chain asks for them."""
        if not getattr(self.chain, "as_released", False):
            return None
        n = self.sizes["evaluate"]
        stream = self.root("evaluate", seed).child("evaluate", "released")
        rows = {k: self.rows(law, None, stream.child(k), n, "judge") for k, law in students.items()}
        key = self.key(
            "released",
            {
                "teacher": teacher.key,
                "selectivity": d.selectivity.to_json(),
                "train": train.key,
                "students": [r.key for r in rows.values()],
            },
        )
        inputs = (
            *teacher.inputs,
            *(key for law in students.values() for key in law.inputs),
            *train.blocks,
            *(block for r in rows.values() for block in r.blocks),
        )
        return self.add(
            ReleasedNode(key, self.context, teacher, d.selectivity, train, tuple(rows.items()), inputs=inputs)
        )


def _plan_adopted(planner: _ChainPlanner, entry: Adopted) -> None:
    """Enter an adopted model's cells: as it is, and decoded where a native student of its kind is."""
    last = max(c.level for c in planner.out.cells)
    native = [
        c
        for c in planner.out.cells
        if c.level == last
        and c.training == ("distilled" if entry.training == "distilled" else "direct")  # where a baseline stands
        and c.decoding is None
        and c.origin is None
        and entry.was_distilled(c.distillation)
    ]
    if not native:
        raise FolderError(
            "an adopted model has no place in the run", got=entry.name, fix="remove its entry from adopted/"
        )
    twin = next((c for c in native if c.seed == entry.seed), native[0])
    planner.add(AdoptNode(entry.law, planner.context, entry.name))
    known = {c.id: c for c in planner.out.cells}

    def shared(cell: str | None) -> str | None:
        """The twin's parent or teacher, unless it is another seed's."""
        seed = known[cell].seed if cell in known else None
        return cell if seed in (None, entry.seed) else None

    place = Place(
        level=last,
        role=twin.role,
        training=entry.training,
        distillation=twin.distillation,
        parent=None if entry.training == "baseline" else shared(twin.parent),
        teacher_cell=shared(twin.teacher_cell),
        origin=entry.origin,
    )
    model = planner.cell(LawRef("fit", entry.law, twin.role), place, entry.seed, ())
    if canonical(entry.selectivity) is None:
        for decoding in planner.chain.controls:
            if canonical(decoding) is not None:
                planner.decoded(model, decoding, entry.seed)


def _is_pictured(cell: Cell) -> bool:
    """Truth and teacher as they are, students as they are, and the direct student decoded."""
    if cell.role == "student":
        return cell.decoding is None or cell.training in ("direct", "baseline")
    return cell.role in ("truth", "teacher") and cell.decoding is None
