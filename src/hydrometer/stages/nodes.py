"""The stage graph's vocabulary: laws, rows and stages, each named by what it depends on.

A node's key is a hash of everything that can change its result (docs, Schema); two nodes with one key are one piece of
work, which is how data and teachers come to be shared between seeds and selectivities.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from hydrometer.core.rng import Stream
from hydrometer.core.spec import ChainSpec, Selectivity
from hydrometer.models.base import Family, Level
from hydrometer.models.capabilities import MapPoint

__all__ = [
    "VERSIONS",
    "AdoptNode",
    "Cell",
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
    "draw": 3, "fit": 4, "score": 3, "judge": 9, "show": 3, "released": 1, "map": 3, "embed": 1, "picture": 1,
}  # fmt: skip

PrefixSource = Literal["truth", "teacher", "student"]


@dataclass(frozen=True, slots=True)
class Context:
    """The chain a node belongs to."""

    name: str
    spec: ChainSpec
    family: Family


@dataclass(frozen=True, slots=True)
class LawRef:
    """An unselected law: a truth by its identity, or a fit by its artifact's key."""

    kind: Literal["truth", "fit"]
    key: str
    role: str


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
class DrawNode:
    """One block of rows ``start .. start + n``."""

    key: str
    context: Context
    law: LawRef
    selectivity: Selectivity | None
    stream: Stream
    start: int
    n: int
    purpose: Literal["train", "judge"]
    inputs: tuple[str, ...]
    stage: Literal["draw"] = "draw"


@dataclass(frozen=True, slots=True)
class FitNode:
    """One fit of a level."""

    key: str
    context: Context
    level: Level
    data: Rows
    validate: Rows | None
    teacher: LawRef | None
    prefix_source: PrefixSource
    loss: str
    stream: Stream
    inputs: tuple[str, ...]
    stage: Literal["fit"] = "fit"


@dataclass(frozen=True, slots=True)
class AdoptNode:
    """A model trained elsewhere, kept where a fit would be. It cannot be made again here."""

    key: str
    context: Context
    name: str
    inputs: tuple[str, ...] = ()
    stage: Literal["fit"] = "fit"


@dataclass(frozen=True, slots=True)
class ScoreNode:
    """One block of judged rows under the law that drew it and under the other: the truth's rows, or the judged law's.

    Attributes
    ----------
    law, decoding : the judged law.
    side : whose rows they are.
    block, start, n : key of the draw artifact, where it begins in its stream, and how many of its rows are scored.
    known : key of the truth's own scores of this block of its rows, where a cell other than the truth's needs it.
    """

    key: str
    context: Context
    law: LawRef
    decoding: Selectivity | None
    truth: LawRef
    side: Literal["truth", "law"]
    block: str
    start: int
    n: int
    known: str | None
    inputs: tuple[str, ...]
    stage: Literal["score"] = "score"


@dataclass(frozen=True, slots=True)
class JudgeNode:
    """One law judged against the truth.

    Attributes
    ----------
    truth_judge : key of the truth's own judge artifact, which holds log p* of the truth's rows, or None.
    truth_scores, law_scores : keys of the score artifacts of both sides' blocks, in order; empty where the stage scores
        by itself, which families do that do not store draws. The truth's own cell has no `law_scores`, a law that
        chooses among candidates no `truth_scores`.
    """

    key: str
    context: Context
    law: LawRef
    decoding: Selectivity | None
    truth: LawRef
    truth_rows: Rows
    law_rows: Rows
    truth_judge: str | None
    truth_scores: tuple[str, ...]
    law_scores: tuple[str, ...]
    inputs: tuple[str, ...]
    stage: Literal["judge"] = "judge"


@dataclass(frozen=True, slots=True)
class ShowNode:
    """Something for people to look at, left by a judged cell of the first seed."""

    key: str
    context: Context
    judged: JudgeNode
    inputs: tuple[str, ...]
    stage: Literal["show"] = "show"


@dataclass(frozen=True, slots=True)
class ReleasedNode:
    """The paper's notebook's own figures for one selectivity: precision under the sharpened teacher, recall on D."""

    key: str
    context: Context
    teacher: LawRef
    selectivity: Selectivity
    train: Rows
    students: tuple[tuple[str, Rows], ...]  # ("direct" | "distilled", rows of that student)
    inputs: tuple[str, ...]
    stage: Literal["released"] = "released"


@dataclass(frozen=True, slots=True)
class MapNode:
    """One point of a map, all seeds at once.

    Attributes
    ----------
    shown : whether it leaves pictures.
    """

    key: str
    context: Context
    point: MapPoint
    seeds: tuple[int, ...]
    shown: bool
    inputs: tuple[str, ...] = ()
    stage: Literal["map"] = "map"


@dataclass(frozen=True, slots=True)
class EmbedNode:
    """The first `n` rows that a law was judged on, in the truth's embedding space."""

    key: str
    context: Context
    truth: LawRef
    rows: Rows
    n: int
    inputs: tuple[str, ...]
    stage: Literal["embed"] = "embed"


@dataclass(frozen=True, slots=True)
class PictureNode:
    """A chain's picture of embedded rows.

    Attributes
    ----------
    models : cell id and key of the embedded rows; the truth first.
    """

    key: str
    context: Context
    method: Literal["pca", "umap"]
    models: tuple[tuple[str, str], ...]
    inputs: tuple[str, ...]
    stage: Literal["picture"] = "picture"


ABSENT = (
    "rows chosen among candidates have no log-probability that can be computed: precision, texts and cost are known, "
    "entropy, recall and both KLs are not"
)
Node = (
    DrawNode | FitNode | AdoptNode | ScoreNode | JudgeNode | ShowNode | ReleasedNode | MapNode | EmbedNode | PictureNode
)


@dataclass(frozen=True, slots=True)
class Cell:
    """One judged model of a run, before it has figures. Fields as in results.json (docs, Schema)."""

    id: str
    group: str
    chain: str
    level: int
    role: str
    training: Literal["direct", "distilled"] | None
    parent: str | None
    selectivity: Selectivity | None
    decoding: Selectivity | None
    prefix_source: PrefixSource | None
    loss: str | None
    seed: int | None
    judge: str
    teacher_cell: str | None
    show: str | None = None
    released: str | None = None
    point: Mapping[str, float] | None = None
    origin: Mapping[str, object] | None = None

    @property
    def absence(self) -> dict[str, str]:
        """Why figures that other cells have are absent, where they are; as results.json holds it."""
        return {"absent": ABSENT} if self.decoding is not None and self.decoding.chooses else {}

    def record(self, metrics: Mapping[str, object] | None, reason: str | None, seconds: float) -> dict[str, object]:
        """Return the cell as results.json holds it; without figures it failed, for a reason."""
        where: dict[str, object] = {} if self.point is None else {"point": dict(self.point)}
        where |= {} if self.origin is None else {"origin": dict(self.origin)}
        return {
            "id": self.id, "group": self.group, "chain": self.chain, "level": self.level, "role": self.role,
            "training": self.training, "parent": self.parent,
            "selectivity": None if self.selectivity is None else self.selectivity.to_json(),
            "decoding": None if self.decoding is None else self.decoding.to_json(),
            "prefix_source": self.prefix_source, "loss": self.loss, "seed": self.seed, **where,
            "status": "failed" if metrics is None else "ok", "reason": reason, "metrics": metrics or {}, **self.absence,
            "seconds": round(seconds, 3),
        }  # fmt: skip
