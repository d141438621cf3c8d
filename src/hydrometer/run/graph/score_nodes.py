"""The stages that score judged rows block by block, for families that store their draws."""

from __future__ import annotations

from typing import Literal, cast

from hydrometer.core.spec import Selectivity
from hydrometer.run.graph.stage_graph import ChainNodes
from hydrometer.stages.nodes import JudgeNode, LawRef, Rows, ScoreNode

__all__ = ["plan_scores", "plan_side"]


def plan_scores(
    planner: ChainNodes, law: LawRef, decoding: Selectivity | None, truth_rows: Rows, law_rows: Rows,
    known: str | None,
) -> tuple[tuple[str, ...], tuple[str, ...]]:  # fmt: skip
    """Enter the scores of one judged law: keys for the blocks of the truth's rows, and of its own.

    Parameters
    ----------
    decoding : canonical.
    truth_rows, law_rows : equal where the law is the truth, which then has no rows of its own.
    known : key of the truth's own judge node, whose scores of these blocks a law may need; None for the truth itself.

    Returns
    -------
    Two empty tuples where draws are made again. A law that chooses among candidates has no scores of the truth's rows.
    """
    chosen = decoding is not None and decoding.chooses
    of_truth = () if chosen else plan_side(planner, law, decoding, "truth", truth_rows, known)
    return of_truth, () if law_rows == truth_rows else plan_side(planner, law, decoding, "law", law_rows, None)


def plan_side(
    planner: ChainNodes, law: LawRef, decoding: Selectivity | None, side: Literal["truth", "law"], rows: Rows,
    known: str | None,
) -> tuple[str, ...]:  # fmt: skip
    """Enter the scores of one side's rows; how many there are in all is in no key, so more of them add blocks."""
    context, truth = planner.context, planner.truth
    size = planner.family.block_rows(planner.chain)
    of_truth = () if known is None else cast("JudgeNode", planner.plan.nodes[known]).truth_scores
    keys: list[str] = []
    for i, block in enumerate(rows.blocks):
        n = min(size, rows.n - i * size)
        parts: dict[str, object] = {
            "truth": truth.key, "law": law.key, "decoding": None if decoding is None else decoding.to_json(),
            "side": side, "block": block, "rows": n,
        }  # fmt: skip
        own = of_truth[i] if of_truth else None
        inputs = (*law.inputs, block, *(() if own is None else (own,)))
        key = planner.key("score", parts)
        node = ScoreNode(key, context, law, decoding, truth, side, block, i * size, n, own, inputs=inputs)
        keys.append(planner.add(node))
    return tuple(keys)
