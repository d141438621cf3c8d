"""The stage graph as data, and what every stage of a chain is planned with: streams, keys, rows in blocks."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Literal

from hydrometer.core.dashboards import Dashboards
from hydrometer.core.distillation import distillations_of
from hydrometer.core.errors import SpecError
from hydrometer.core.rng import Stream
from hydrometer.core.spec import Resample, Selectivity
from hydrometer.models.capabilities import DrawsUnscored
from hydrometer.models.choosing.best_of_n import choice_identity
from hydrometer.models.drawing import draw_identity
from hydrometer.models.finite_selectivity import canonical
from hydrometer.stages.cells import Cell, Place
from hydrometer.stages.nodes import VERSIONS, Context, DrawNode, JudgeNode, LawRef, MapNode, Node, Rows
from hydrometer.store.artifacts import content_key, content_keys

__all__ = ["MAX_STAGES", "ChainNodes", "ChainPlan", "Plan", "truth_identity"]

MAX_STAGES = 1_000_000
"""Most stages of a run; each is a folder on disk."""


@dataclass(slots=True)
class ChainPlan:
    """One chain of the plan."""

    context: Context
    truth: LawRef
    truth_identity: dict[str, object]
    cells: list[Cell] = field(default_factory=list[Cell])
    maps: list[MapNode] = field(default_factory=list[MapNode])
    picture: str | None = None


@dataclass(slots=True)
class Plan:
    """All nodes, inputs first, and all cells; and where the run that makes them reports."""

    nodes: dict[str, Node] = field(default_factory=dict[str, Node])
    chains: dict[str, ChainPlan] = field(default_factory=dict[str, ChainPlan])
    dashboards: Dashboards = field(default_factory=Dashboards)

    @property
    def cells(self) -> list[Cell]:
        """Cells of all chains, in order."""
        return [c for chain in self.chains.values() for c in chain.cells]

    def judge(self, key: str) -> JudgeNode:
        """Return the judge stage of this key."""
        node = self.nodes[key]
        if not isinstance(node, JudgeNode):
            raise TypeError(f"{key} is no judge stage but {node.stage}")
        return node

    def judge_of(self, cell: Cell) -> JudgeNode | None:
        """Return the stage that judged a cell; None of a map's, which judges all of its cells at once."""
        node = self.nodes[cell.judge]
        return node if isinstance(node, JudgeNode) else None

    def judges_of(self, cells: Iterable[Cell]) -> list[JudgeNode]:
        """Return the stages that judged some cells, maps left out."""
        return [node for c in cells if (node := self.judge_of(c)) is not None]


def truth_identity(context: Context) -> dict[str, object]:
    """Return what a chain's truth is, by content: what its key is a hash of."""
    return {"family": context.family.name, **context.family.truth_identity(context.spec)}


class ChainNodes:
    """What every stage of one chain is planned with: its streams, its keys, its rows."""

    def __init__(self, plan: Plan, context: Context, seeds: tuple[int, ...]) -> None:
        self.plan, self.context, self.seeds = plan, context, seeds
        self.chain, self.family = context.spec, context.family
        self.sizes = self.family.sizes(self.chain)
        self.levels = self.family.levels(self.chain)
        self.numerics = dict(self.family.numerics(self.chain))
        identity = truth_identity(context)
        self.truth = LawRef("truth", content_key(identity), "truth")
        self.truth_judge: dict[int | None, str] = {}
        self.truth_rows: dict[int | None, Rows] = {}
        self.out = plan.chains.setdefault(context.name, ChainPlan(context, self.truth, identity))
        self.distillations = distillations_of(self.chain)
        able = self.family
        self.unscored = able.unscored_roles(self.chain) if isinstance(able, DrawsUnscored) else frozenset[str]()
        self.known_cells: dict[str, tuple[LawRef, Place]] = {}
        self.known_rows: dict[tuple[str, str | None, Stream, int, str], Rows] = {}

    # streams ---------------------------------------------------------------------------------------------------------

    def root(self, what: Resample, seed: int) -> Stream:
        """Root of a stream: the seed's own, or the one shared by all seeds where a seed does not redraw it."""
        return Stream(seed) if what in self.chain.resample else Stream(0, ("shared",))

    def seed_of(self, seed: int, *what: Resample) -> int | None:
        """Return the seed where any of `what` is redrawn with it, else None: one cell serves all seeds."""
        return seed if any(w in self.chain.resample for w in (*what, "evaluate")) else None

    def is_unscored(self, law: LawRef, decoding: Selectivity | None) -> bool:
        """Whether rows of a law so decoded are scored without the decoding alone."""
        return decoding is not None and (decoding.chooses or law.role in self.unscored)

    # nodes -----------------------------------------------------------------------------------------------------------

    def key(self, stage: str, parts: dict[str, object]) -> str:
        """Return the key of a stage made of these parts.

        Arithmetic is in no key by itself: put it among the parts where it is not that of a block there.
        """
        return content_key(self.parts(stage, parts))

    def parts(self, stage: str, own: Mapping[str, object]) -> dict[str, object]:
        """Everything that a stage's key is made of."""
        common = {"stage": stage, "version": VERSIONS[stage], "numerics": self.numerics, "family": self.family.name}
        return {**common, **own}

    def add(self, node: Node) -> str:
        """Enter a node; returns its key."""
        if len(self.plan.nodes) >= MAX_STAGES:
            raise self.too_large(f"more than {MAX_STAGES}")
        self.plan.nodes.setdefault(node.key, node)
        return node.key

    def too_large(self, got: object) -> SpecError:
        """Say that there are too many stages."""
        fix = "lower seeds, data or selectivities, or raise block_rows"
        return SpecError(f"chains.{self.context.name}: the run has too many stages", got=got, fix=fix)

    def rows(
        self, law: LawRef, s: Selectivity | None, stream: Stream, n: int, purpose: Literal["train", "judge"]
    ) -> Rows:
        """Rows as blocks of their own, so that a draw is resumed and extended block by block.

        Whole blocks are those of any larger draw. The last holds no more rows than were asked for.
        """
        s = canonical(s)
        slot = law.key, None if s is None else json.dumps(s.model_dump()), stream, n, purpose
        if slot in self.known_rows:  # what seeds share is asked for by every one of them
            return self.known_rows[slot]
        size = self.family.block_rows(self.chain)
        base: dict[str, object] = {
            "law": law.key,
            "selectivity": None if s is None else s.to_json(),
            **choice_identity(s),
            "stream": [stream.seed, *stream.path],
            "precision": self.family.precision(self.chain, purpose),
            "block": size,
            **draw_identity(self.family, self.chain, law.role, purpose),
            **(self.context.asked_identity() if purpose == "judge" else {}),
        }
        blocks: list[str] = []
        identity = {**base, "n": n}
        if self.family.keeps_draws:
            if n > MAX_STAGES * size:
                raise self.too_large(f"{-(-n // size)} blocks of {size} rows in one draw")
            parts, cut = self.parts("draw", base), n % size
            keys = content_keys(parts, "start", range(0, n - cut, size))
            if cut:  # in a key of its own: the last bits of rows depend on how many are drawn together
                keys.append(content_key({**parts, "start": n - cut, "rows": cut}))
                identity["last"] = keys[-1]
            for start, key in zip(range(0, n, size), keys, strict=True):
                rows = min(size, n - start)
                blocks.append(
                    self.add(DrawNode(key, self.context, law, s, stream, start, rows, purpose, inputs=law.inputs))
                )
        self.known_rows[slot] = Rows(law, s, stream, n, purpose, tuple(blocks), content_key(identity))
        return self.known_rows[slot]
