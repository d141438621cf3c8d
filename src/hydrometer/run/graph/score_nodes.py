"""The stages that score judged rows block by block, for families that store their draws."""

from __future__ import annotations

from typing import Literal

from hydrometer.core.spec import Selectivity
from hydrometer.run.graph.stage_graph import ChainNodes
from hydrometer.stages.nodes import LawRef, Rows, ScoreNode

__all__ = ["plan_scores"]


def plan_scores(
    planner: ChainNodes, law: LawRef, decoding: Selectivity | None, rows: tuple[Rows, Rows], known: str | None
) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Enter the scores of one judged law: keys for the blocks of the truth's rows, and of its own.

    Parameters
    ----------
    decoding : canonical.
    rows : the truth's and the law's own; equal where the law is the truth, which then has no rows of its own.
    known : key of the truth's own judge node, whose scores of these blocks a law may need; None for the truth itself.

    Returns
    -------
    Two empty tuples where draws are made again. A law that chooses among candidates has no scores of the truth's rows.
    """
    truth_rows, law_rows = rows
    chosen = decoding is not None and decoding.chooses
    of_truth = () if known is None else planner.plan.judge(known).truth_scores
    size = planner.family.block_rows(planner.chain)

    def side(name: Literal["truth", "law"], rows: Rows, known: tuple[str, ...]) -> tuple[str, ...]:
        """How many rows there are in all is in no key, so more of them add blocks."""
        keys: list[str] = []
        for i, block in enumerate(rows.blocks):
            n = min(size, rows.n - i * size)
            parts: dict[str, object] = {
                "truth": planner.truth.key,
                "law": law.key,
                "decoding": None if decoding is None else decoding.to_json(),
                "side": name,
                "block": block,
                "rows": n,
            }
            own = known[i] if known else None
            inputs = (*(() if law.kind == "truth" else (law.key,)), block, *(() if own is None else (own,)))
            key, truth = planner.key("score", parts), planner.truth
            node = ScoreNode(key, planner.context, law, decoding, truth, name, block, i * size, n, own, inputs=inputs)
            keys.append(planner.add(node))
        return tuple(keys)

    return () if chosen else side("truth", truth_rows, of_truth), () if law_rows == truth_rows else side(
        "law", law_rows, ()
    )
