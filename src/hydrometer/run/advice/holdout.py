"""Judge a few candidates again on held-out rows.

The models stay the same, so training variance is in the new figures too; the selection bias of the rows is not. Draws
and judgements are artifacts: asking again costs nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from hydrometer.core.errors import StageError
from hydrometer.core.statistics.estimate import Estimate
from hydrometer.run.advice.arms import arm_of, design_of
from hydrometer.run.advice.candidate_table import Field
from hydrometer.run.advice.candidates import Source
from hydrometer.run.execution.execute import execute
from hydrometer.run.graph.outcome import Monitor
from hydrometer.run.graph.plan import Plan
from hydrometer.stages.given_nodes import JudgeGivenNode, Sides
from hydrometer.stages.judge_files import load_metrics
from hydrometer.stages.nodes import DrawNode, JudgeNode, Node, Rows, ScoreNode
from hydrometer.stages.statistics.covariance import Arm, Linear
from hydrometer.stages.statistics.decision import Decision, Need, Problem, confirmed
from hydrometer.store.artifacts import content_key
from hydrometer.store.storage_uri import Url

__all__ = ["Again", "judge_again", "rejudged"]

FRESH = "advise"
"""Name of the streams of fresh rows."""

New = dict[tuple[Path | Url, str], tuple[str, dict[str, Estimate]]]


@dataclass(frozen=True, slots=True)
class Again:
    """The leader's figures on fresh rows.

    Attributes
    ----------
    precision, recall : of the leader.
    gain, loss : precision gained and recall lost against the baseline.
    lead : its objective minus the runner-up's; None without one.
    leader : index of the candidate, of those judged again, that leads by estimates on fresh rows.
    confirmed : whether it leads again, provably meets the need and leads the runner-up by more than the margin.
    """

    precision: Linear
    recall: Linear
    gain: Linear
    loss: Linear
    lead: Linear | None
    leader: int
    confirmed: bool


def rejudged(plan: Plan, judged: Sequence[JudgeNode], name: str = FRESH) -> tuple[Plan, dict[str, str]]:
    """Plan the same judgements on new rows, drawn from child streams of this name.

    Returns
    -------
    (plan, keys) : draws and judgements only, since the fits exist; and the new judge key by the old one.
    """
    again = Plan(chains=plan.chains)
    keys: dict[str, str] = {}

    def key_of(old: str) -> str:
        return content_key({"again": old, "stream": name})

    def rows(old: Rows) -> Rows:
        for block in old.blocks:
            node = plan.nodes[block]
            assert isinstance(node, DrawNode)
            add(replace(node, key=key_of(block), stream=node.stream.child(name)))
        blocks = tuple(key_of(b) for b in old.blocks)
        return replace(old, stream=old.stream.child(name), blocks=blocks, key=key_of(old.key))

    def add(node: Node) -> None:
        again.nodes.setdefault(node.key, node)

    def scores(old: Sequence[str]) -> tuple[str, ...]:
        for key in old:
            node = plan.nodes[key]
            assert isinstance(node, ScoreNode)
            block, known = key_of(node.block), None if node.known is None else key_of(node.known)
            inputs = (block,) if known is None else (block, known)  # the fits exist
            add(replace(node, key=key_of(key), block=block, known=known, inputs=inputs))
        return tuple(key_of(key) for key in old)

    def judge(node: JudgeNode) -> str:
        if node.key not in keys:
            known = None
            if node.truth_judge is not None:
                of_truth = plan.nodes[node.truth_judge]
                assert isinstance(of_truth, JudgeNode)
                known = judge(of_truth)
            truth_rows, law_rows = rows(node.truth_rows), rows(node.law_rows)
            of_truth, of_law = scores(node.truth_scores), scores(node.law_scores)
            inputs = (*truth_rows.blocks, *law_rows.blocks, *(() if known is None else (known,)), *of_truth, *of_law)
            keys[node.key] = key = key_of(node.key)
            new: dict[str, Any] = {
                "key": key,
                "truth_rows": truth_rows,
                "law_rows": law_rows,
                "truth_judge": known,
                "inputs": inputs,
                "truth_scores": of_truth,
                "law_scores": of_law,
            }
            if isinstance(node, JudgeGivenNode):  # candidates are compared by ids
                new["texts"] = Sides()
            add(replace(node, **new))
        return keys[node.key]

    for node in judged:
        judge(node)
    return again, keys


def judge_again(field: Field, need: Need, decision: Decision, monitor: Monitor) -> Again:
    """Judge the leader, its closest rival and the baseline on fresh rows. Raises StageError: a stage failed."""
    chosen = list(dict.fromkeys([decision.leader, field.baseline]))
    if decision.runner_up is not None and decision.runner_up not in chosen:
        chosen.append(decision.runner_up)
    new: New = {}
    for source in {id(field.found[g].source): field.found[g].source for g in chosen}.values():
        mine = [field.found[g] for g in chosen if field.found[g].source is source]
        cells = [e.cells[s] if s in e.cells else e.cells[None] for e in mine for s in field.seeds]
        plan, keys = rejudged(source.plan, source.plan.judges_of(cells))
        outcome = execute(plan, source.store, monitor)
        if outcome.failed:
            raise StageError("judging on fresh rows failed: " + next(iter(outcome.failed.values())))
        for c in cells:
            new[source.folder, c.id] = keys[c.judge], load_metrics(source.store.path("judge", keys[c.judge]))
    # A user's score is not measured again: its constraint rests on the run's own rows.
    measured = replace(need, score=None, min_score=None)
    problem = Problem(_arms(field, chosen, new), field.design, measured, chosen.index(field.baseline))
    g = chosen.index(decision.leader)
    h = None if decision.runner_up is None else chosen.index(decision.runner_up)
    joint, leads = problem.joint, chosen[problem.leader()]
    figures = np.zeros((2, joint.mean.size))
    figures[0, g * joint.q], figures[1, g * joint.q + 1] = 1.0, 1.0
    return Again(
        joint.linear(figures[0]),
        joint.linear(figures[1]),
        joint.linear(problem.gain(g)),
        joint.linear(-problem.gain(g, 1)),
        None if h is None else problem.lead(g, h),
        leads,
        leads == decision.leader and confirmed(problem, g, h),
    )


def _arms(field: Field, chosen: list[int], new: New) -> list[Arm]:
    # Rows answer prompts by their number, so the design of fresh rows is that of the first ones.
    _, lengths = design_of(_on_fresh_rows(field.found[chosen[0]].source), field.arms[0].rows.shape[1])
    entries = [field.found[g] for g in chosen]
    return [
        arm_of(e, field.seeds, field.names[:2], lengths, lambda c, e=e: new[e.source.folder, c.id]) for e in entries
    ]


def _on_fresh_rows(source: Source) -> Source:
    """Return the source with every judgement replanned on fresh rows."""
    again, keys = rejudged(source.plan, source.plan.judges_of(source.chain.cells))
    cells = [replace(c, judge=keys[c.judge]) for c in source.chain.cells]
    return replace(source, plan=again, chain=replace(source.chain, cells=cells))
