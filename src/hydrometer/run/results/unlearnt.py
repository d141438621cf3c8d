"""Whether a chain's trained models have learnt anything, from the rows that they were judged on."""

from __future__ import annotations

from hydrometer.core.array_types import Floats
from hydrometer.core.findings import Finding
from hydrometer.metrics.learnt import hardly_learnt
from hydrometer.models.finite_selectivity import canonical
from hydrometer.models.rows.sequences import Sequences
from hydrometer.run.graph.outcome import Outcome
from hydrometer.run.graph.plan import ChainPlan, Plan
from hydrometer.stages.artifact_loader import ArtifactLoader
from hydrometer.stages.given_nodes import JudgeGivenNode
from hydrometer.stages.judge_files import load_law_on_truth
from hydrometer.stages.nodes import JudgeNode
from hydrometer.store.artifacts import ArtifactStore

__all__ = ["unlearnt"]

_ROWS = 2048  # of the truth that are read: enough for a mean a token


def unlearnt(chain: ChainPlan, plan: Plan, store: ArtifactStore, outcome: Outcome) -> list[Finding]:
    """Examine the models that were trained here, as they are and on unselected rows, where the truth's rows are stored.

    Seeds that are judged on rows of their own have a finding each.
    """
    models: dict[str, dict[str, Floats]] = {}
    nodes: dict[str, JudgeNode] = {}
    for cell in chain.cells:
        node = plan.judge_of(cell)
        if node is None or isinstance(node, JudgeGivenNode) or node.law.kind != "fit" or not node.truth_rows.blocks:
            continue
        plain = cell.decoding is None and (cell.selectivity is None or canonical(cell.selectivity) is None)
        if plain and node.key not in outcome.failed:
            nodes.setdefault(node.truth_rows.key, node)
            models.setdefault(node.truth_rows.key, {})[cell.called()] = load_law_on_truth(store.path("judge", node.key))
    found: list[Finding] = []
    for key, node in nodes.items():
        rows = ArtifactLoader(store).head(node.context, node.truth_rows, _ROWS)
        if isinstance(rows, Sequences):
            found += hardly_learnt(chain.context.name, rows, {k: x[: len(rows)] for k, x in models[key].items()})
    return found
