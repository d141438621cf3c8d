"""The stage graph's vocabulary: laws, rows and stages, each named by what it depends on.

A node's key is a hash of everything that can change its result (docs, Schema); two nodes with one key are one piece of
work, which is how data and teachers come to be shared between seeds and selectivities.

A kind of stage is one class, which answers what `Node` asks, and one line of `stages.compute`, which makes it; nothing
else tells kinds apart.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from hydrometer.core.distillation import DENSE, MLE, Distillation, TeacherLaw
from hydrometer.core.rng import Stream
from hydrometer.core.spec import Selectivity
from hydrometer.models.base import Footprint, Level, Precision
from hydrometer.models.capabilities import MapPoint
from hydrometer.models.choosing.best_of_n import needs_truth
from hydrometer.models.drawing import draw_identity
from hydrometer.models.fit_capabilities import Budgets, DrawsInFits, FitsTogether
from hydrometer.stages.stage import Asked, Context, Count, LawRef, Node, Rows, at_setting

__all__ = [
    "VERSIONS",
    "AdoptNode",
    "Context",
    "DrawNode",
    "EmbedNode",
    "FitNode",
    "JudgeNode",
    "LawRef",
    "MapNode",
    "Node",
    "PictureNode",
    "ReleasedNode",
    "Rows",
    "ScoreNode",
    "ShowNode",
]

# Raised whenever a stage's code changes its results.
VERSIONS = {
    "draw": 3,
    "keep_law": 1,
    "fit": 4,
    "score": 3,
    "score_texts": 4,
    "judge": 9,
    "judge_given": 1,  # in the keys of `judge`, beside its own version: what `stages/judge_given.py` alone changes
    "show": 3,
    "released": 1,
    "map": 3,
    "embed": 1,
    "picture": 1,
}

BIAS_ROWS = 64  # scored once more in float32 where a run is judged in bfloat16


@dataclass(frozen=True, slots=True)
class DrawNode(Node):
    """One block of rows ``start .. start + n``."""

    stage, priced = "draw", "draw"
    in_results = False
    draws = True
    law: LawRef
    selectivity: Selectivity | None
    stream: Stream
    start: int
    n: int
    purpose: Literal["train", "judge"]

    def does(self) -> str:
        rows = f"rows {self.start}-{self.start + self.n - 1}"
        return f"draw from the {self.law.role}{at_setting(self.selectivity)}, {rows}"

    def about(self) -> tuple[str, int]:
        return self.law.role, self.n

    def times(self) -> float:
        return 1 if self.selectivity is None else self.selectivity.best_of or 1

    def asked(self) -> Asked:
        s, precision = self.selectivity, self.precision(self.purpose)
        once = ("draw", *self.about(), precision)
        if s is None or not needs_truth(s):
            return Asked((once,), int(self.times()))
        return Asked((once, ("score own", "truth", self.n, precision)), int(self.times()), 2)  # candidates are scored

    def opened(self) -> tuple[tuple[LawRef, Precision], ...]:
        return ((self.law, self.precision(self.purpose)),)

    def engine(self) -> Mapping[str, object]:
        """Return what names the engine that draws; nothing where the law's own sampler does."""
        return draw_identity(self.context.family, self.context.spec, self.law.role, self.purpose)


@dataclass(frozen=True, slots=True)
class FitNode(Node):
    """One fit of a level.

    Attributes
    ----------
    distillation : of a distilled model, which has a teacher; None of one that is fitted to the truth's rows alone.
    baseline : name of a model that is fitted to a text.
    start : the direct model that a distilled one goes on from; None of one that starts as its level says.
    usual : the teacher's rows, where the fit ends when it has learned from as many tokens as `mle` learns from these.
    kept : keys of what is kept of the teacher's law along data and held-out rows; none where the fit sees the teacher.
    """

    stage, priced = "fit", "fit"
    in_results = False
    resumes = True
    level: Level
    truth: LawRef
    data: Rows
    validate: Rows | None
    teacher: LawRef | None
    distillation: Distillation | None
    stream: Stream
    baseline: str | None = field(default=None, kw_only=True)
    start: LawRef | None = field(default=None, kw_only=True)
    usual: Rows | None = field(default=None, kw_only=True)
    kept: tuple[tuple[str, ...], tuple[str, ...]] = field(default=((), ()), kw_only=True)

    def does(self) -> str:
        if self.baseline is not None:
            return f"fit the baseline {self.baseline} on its text"
        how = "" if self.distillation is None or self.distillation.objective == MLE else f" by {self.loss}"
        how += "" if self.law == DENSE else f" from {self.law.to_json()}"
        whose = "its own" if self.prefix_source.startswith("student") else f"the {self.data.law.role}'s"
        return f"fit the {self.level.role} on {whose} rows{at_setting(self.data.selectivity)}{how}"

    @property
    def loss(self) -> str:
        """The training objective, as keys and results write it."""
        return (MLE if self.distillation is None else self.distillation.objective).to_json()

    @property
    def prefix_source(self) -> str:
        """Whose rows it is fitted to, as keys and results write it."""
        if self.baseline is not None:
            return "text"
        return "truth" if self.distillation is None else self.distillation.prefixes.to_json()

    @property
    def law(self) -> TeacherLaw:
        """What of the teacher's law the objective sees."""
        return DENSE if self.distillation is None else self.distillation.teacher_law

    @property
    def matched(self) -> Selectivity | None:
        """The teacher's selectivity, where the objective sees its law."""
        d = self.distillation
        return None if d is None or d.objective == MLE else d.selectivity

    def about(self) -> tuple[str, int]:
        return self.level.role, self.data.n

    def alike(self) -> tuple[object, ...]:
        return (*Node.alike(self), self.asked().steps)

    def asked(self) -> Asked:
        """The fit, what the student draws itself, and the teacher's part: given rows' states are made once."""
        counts: list[Count] = [("fit", *self.about(), self.precision())]
        d, teacher, family, chain = self.distillation, self.teacher, self.context.family, self.context.spec
        steps = family.steps(self.level, self.data.n)[1] if isinstance(family, Budgets) else None
        if d is not None and teacher is not None and self.matched is not None and self.law == DENSE:
            share, role = d.prefixes.own, teacher.role
            if share < 1:
                held_out = 0 if self.validate is None else self.validate.n
                counts.append(("states", role, self.data.n + held_out, "float32"))
            if isinstance(family, DrawsInFits):
                given, own = (family.own_rows(chain, self.level, self.data.n, x) for x in (1 - share, share))
                if given:
                    counts.append(("heads", role, given, "float32"))
                if own:
                    counts.append(("draw", self.level.role, own, "float32"))
                    counts.append(("score own", role, own, "float32"))
        return Asked(tuple(counts), steps=steps)

    def workers(self) -> int:
        family = self.context.family
        return family.workers(self.level) if isinstance(family, FitsTogether) else 1


@dataclass(frozen=True, slots=True)
class AdoptNode(Node):
    """A model trained elsewhere, kept where a fit would be. It cannot be made again here."""

    stage, priced = "fit", None
    in_results = False
    name: str

    def does(self) -> str:
        return f"open the adopted {self.name}"

    def cost(self) -> float:
        return 0.0


@dataclass(frozen=True, slots=True)
class ScoreNode(Node):
    """One block of judged rows under the law that drew it and under the other: the truth's rows, or the judged law's.

    Attributes
    ----------
    law, decoding : the judged law.
    side : whose rows they are.
    block, start, n : key of the draw artifact, where it begins in its stream, and how many of its rows are scored.
    known : key of the truth's own scores of this block of its rows, where a cell other than the truth's needs it.
    """

    stage, priced = "score", "judge"
    in_results = False
    law: LawRef
    decoding: Selectivity | None
    truth: LawRef
    side: Literal["truth", "law"]
    block: str
    start: int
    n: int
    known: str | None

    def does(self) -> str:
        whose = "its" if self.side == "law" else "the truth's"
        rows = f"{whose} rows {self.start}-{self.start + self.n - 1}"
        return f"score the {self.law.role}{at_setting(self.decoding, 'decoded at')}, {rows}"

    def about(self) -> tuple[str, int]:
        return self.law.role, self.n

    def times(self) -> float:
        return 0.5  # judging is both sides' rows

    def asked(self) -> Asked:
        kind = "score own" if self.is_truth() else "score truth" if self.side == "truth" else "score law"
        chosen = self.decoding is not None and self.decoding.chooses
        again = ("truth",) if self.is_truth() or chosen else ("truth", self.law.role)
        exact: list[Count] = [("score own", role, self.again(), "float32") for role in again if self.again()]
        return Asked(((kind, *self.about(), self.precision()), *exact))

    def opened(self) -> tuple[tuple[LawRef, Precision], ...]:
        exact: list[tuple[LawRef, Precision]] = [(self.truth, "float32"), (self.law, "float32")]
        return ((self.law, self.precision()), *(exact if self.again() else ()))

    def is_truth(self) -> bool:
        """Whether the truth itself is judged, as it is."""
        return self.law == self.truth and self.decoding is None

    def again(self) -> int:
        """Return how many rows are scored once more, as the laws are and not as bfloat16 rounds them."""
        return max(min(BIAS_ROWS - self.start, self.n), 0) if self.precision() == "bfloat16" else 0


@dataclass(frozen=True, slots=True)
class JudgeNode(Node):
    """One law judged against the truth.

    Attributes
    ----------
    truth_judge : key of the truth's own judge artifact, which holds log p* of the truth's rows, or None.
    truth_scores, law_scores : keys of the score artifacts of both sides' blocks, in order; empty where the stage scores
        by itself, which families do that do not store draws. The truth's own cell has no `law_scores`, a law that
        chooses among candidates no `truth_scores`.
    """

    stage, priced = "judge", "judge"
    law: LawRef
    decoding: Selectivity | None
    truth: LawRef
    truth_rows: Rows
    law_rows: Rows
    truth_judge: str | None
    truth_scores: tuple[str, ...]
    law_scores: tuple[str, ...]

    @property
    def scores(self) -> tuple[str, ...]:
        """Keys of the score artifacts of both sides."""
        return (*self.truth_scores, *self.law_scores)

    def does(self) -> str:
        return f"judge the {self.law.role}{at_setting(self.decoding, 'decoded at')}"

    def about(self) -> tuple[str, int]:
        return self.law.role, self.law_rows.n

    def cost(self) -> float:
        return self.like("judge", "student", 1) if self.scores else self.like("judge", *self.about())

    def footprint(self) -> Footprint:  # of scores five columns at most; no model is opened
        return Footprint(disk_most=40 * self.truth_rows.n) if self.scores else Node.footprint(self)

    def asked(self) -> Asked:  # rows that are not stored the truth scores
        kind, role = ("judge", self.law.role) if self.scores else ("score own", "truth")
        return Asked(((kind, role, self.law_rows.n, self.precision()),))

    def behind(self) -> tuple[tuple[str, str], ...]:
        """Stages and keys of what the figures are made of, the truth's rows left out."""
        return (
            ("judge", self.key),
            *(("draw", k) for k in self.law_rows.blocks),
            *(("score", k) for k in self.scores),
            *(("fit", k) for k in self.law.inputs),
        )

    def artifacts(self) -> dict[str, Any]:
        """Names of the artifacts behind the cell; as results.json holds them."""
        sides = {"own": self.law_rows.blocks, "truth": self.truth_rows.blocks}
        scores = {"own": self.law_scores, "truth": self.truth_scores}
        return {
            "judge": f"judge-{self.key}",
            "fit": f"fit-{self.law.key}" if self.law.kind == "fit" else None,
            "draws": {side: [f"draw-{k}" for k in keys] for side, keys in sides.items()},
            "scores": {side: [f"score-{k}" for k in keys] for side, keys in scores.items()},
        }


@dataclass(frozen=True, slots=True)
class ShowNode(Node):
    """Something for people to look at, left by a judged cell of the first seed."""

    stage, priced = "show", None
    judged: JudgeNode

    def does(self) -> str:
        return "keep something to look at"


@dataclass(frozen=True, slots=True)
class ReleasedNode(Node):
    """The paper's notebook's own figures for one selectivity: precision under the sharpened teacher, recall on D."""

    stage, priced = "released", None
    teacher: LawRef
    selectivity: Selectivity
    train: Rows
    students: tuple[tuple[str, Rows], ...]  # ("direct" | "distilled", rows of that student)

    def does(self) -> str:
        return "figures as released"


@dataclass(frozen=True, slots=True)
class MapNode(Node):
    """One point of a map, all seeds at once. `shown`: whether it leaves pictures."""

    stage, priced = "map", None
    point: MapPoint
    seeds: tuple[int, ...]
    shown: bool

    def does(self) -> str:
        return "map at " + ", ".join(f"{axis} {value:g}" for axis, value in self.point.values.items())

    def units(self) -> int:
        return len(self.seeds) * (1 + len(self.context.spec.selectivity))

    def cost(self) -> float:
        return self.units() * (self.like("fit", "student", 1) + self.like("judge", "student", 1))


@dataclass(frozen=True, slots=True)
class EmbedNode(Node):
    """The first `n` rows that a law was judged on, in the truth's embedding space."""

    stage, priced = "embed", None
    in_results = False
    truth: LawRef
    rows: Rows
    n: int

    def does(self) -> str:
        return f"embed the {self.rows.law.role}'s rows{at_setting(self.rows.selectivity)}"

    def about(self) -> tuple[str, int]:
        return self.truth.role, self.n

    def cost(self) -> float:
        return self.like("draw", self.truth.role, self.n)  # one pass of the truth, as a draw is

    def asked(self) -> Asked:
        return Asked((("score own", "truth", self.n, self.precision()),))


@dataclass(frozen=True, slots=True)
class PictureNode(Node):
    """A chain's picture of embedded rows. `models`: cell id and key of the embedded rows; the truth first."""

    stage, priced = "picture", None
    method: Literal["pca", "umap"]
    models: tuple[tuple[str, str], ...]

    def does(self) -> str:
        return f"picture by {self.method}"
