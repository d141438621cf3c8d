"""The stages that score judged rows block by block, for families that store their draws."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Literal

from hydrometer.core.spec import Selectivity
from hydrometer.run.graph.stage_graph import ChainNodes
from hydrometer.stages.given_nodes import ScoreTextsNode
from hydrometer.stages.nodes import LawRef, Rows, ScoreNode

__all__ = ["plan_scores", "plan_side", "plan_texts", "text_blocks"]

_TEXTS = 128  # of a block


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
    Two empty tuples where draws are made again. A law that chooses among candidates, and a selected one
    that is served, has no scores of the truth's rows.
    """
    truth_rows, law_rows = rows
    of_truth = () if known is None else planner.plan.judge(known).truth_scores
    first = (
        () if planner.is_unscored(law, decoding) else plan_side(planner, law, decoding, "truth", truth_rows, of_truth)
    )
    return first, () if law_rows == truth_rows else plan_side(planner, law, decoding, "law", law_rows)


def plan_side(
    planner: ChainNodes,
    law: LawRef,
    decoding: Selectivity | None,
    side: Literal["truth", "law"],
    rows: Rows,
    known: tuple[str, ...] = (),
    *,
    against: LawRef | None = None,
) -> tuple[str, ...]:
    """Enter the scores of one side's rows; how many there are in all is in no key, so more of them add blocks.

    Parameters
    ----------
    known : keys of the truth's own scores of these blocks, where a law needs them.
    against : the law beside the judged one; None for the truth.
    """
    truth = planner.truth if against is None else against
    size = planner.family.block_rows(planner.chain)
    keys: list[str] = []
    for i, block in enumerate(rows.blocks):
        n = min(size, rows.n - i * size)
        parts: dict[str, object] = {
            "truth": truth.key,
            "law": law.key,
            "decoding": None if decoding is None else decoding.to_json(),
            "side": side,
            "block": block,
            "rows": n,
        }
        own = known[i] if known else None
        inputs = (*law.inputs, block, *(() if own is None else (own,)))
        key = planner.key("score", parts)
        node = ScoreNode(key, planner.context, law, decoding, truth, side, block, i * size, n, own, inputs=inputs)
        keys.append(planner.add(node))
    return tuple(keys)


def text_blocks(texts: int) -> Iterator[tuple[int, int]]:
    """Yield the start and the length of every block of held-out texts."""
    for start in range(0, texts, _TEXTS):
        yield start, min(_TEXTS, texts - start)


def plan_texts(
    planner: ChainNodes,
    law: LawRef,
    decoding: Selectivity | None,
    texts: Iterable[tuple[int, int, Mapping[str, object]]],
    drawn: Rows | None = None,
) -> tuple[str, ...]:
    """Enter one law's scores of texts, block by block.

    Parameters
    ----------
    texts : of every block its start, its length, and what it is.
    drawn : the rows whose texts they are; None for held-out texts.
    """
    at = None if decoding is None else decoding.to_json()
    keys: list[str] = []
    for i, (start, n, named) in enumerate(texts):
        key = planner.key("score_texts", {"law": law.key, "decoding": at, **named})
        writer, block = (None, None) if drawn is None else (drawn.law, drawn.blocks[i])
        inputs = (*law.inputs, *(() if block is None else (block,)))
        keys.append(
            planner.add(ScoreTextsNode(key, planner.context, law, decoding, writer, block, start, n, inputs=inputs))
        )
    return tuple(keys)
