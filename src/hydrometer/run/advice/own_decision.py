"""The decision that a run records in results.json: that of `advise` for the default need, among the run's own students.

It uses no fresh rows, which cost draws, and no costs in seconds, which differ from run to run.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from hydrometer.core.errors import InputError
from hydrometer.run.advice.advise import Json, as_setting, completed, decided, decision_of
from hydrometer.run.advice.candidate_table import field_of, unit_of
from hydrometer.run.advice.candidates import Source
from hydrometer.run.graph.plan import ChainPlan, Plan
from hydrometer.store.artifacts import ArtifactStore
from hydrometer.store.records import RunFolder

__all__ = ["answer"]


def answer(
    folder: RunFolder,
    name: str,
    plan: Plan,
    chain: ChainPlan,
    store: ArtifactStore,
    records: Mapping[str, Mapping[str, Any]],
    missing: Sequence[str],
) -> Json | None:
    """Decide for one chain of a run that has just been judged.

    Parameters
    ----------
    records : cells of results.json, by id. missing : ids of the chain's cells that are not judged yet.

    Returns
    -------
    dict : as advice.json (docs, Advice), without costs and expected figures; `why` says why there is no candidate.
        None for maps, and where nothing was distilled.
    """
    own = [c for c in chain.cells if c.origin is None]
    if chain.maps or not any(c.training == "distilled" for c in own):
        return None
    source = Source(folder, name, plan, replace(chain, cells=own), store, records, "", tuple(missing))
    need, _ = completed(None)
    try:
        field = field_of([source], need, priced=False)
    except InputError as e:
        return {"status": "undecided", "why": e.what + (f"; {e.fix}" if e.fix else "")}
    decision = decision_of([source], field, need)
    candidates = zip(field.found, decision.candidates, strict=True)
    return {
        **decided(field, decision),
        "per": unit_of(source, need),
        "objective": need.objective,
        "need": {"max_recall_loss": need.max_recall_loss, "margin": need.indifference},
        "candidates": [{**as_setting(e.cell), "feasible": c.feasible} for e, c in candidates],
    }
