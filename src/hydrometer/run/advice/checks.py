"""What measured claims advise to check of the leader (docs, Claims), from figures of the run; `report` words it.

`cooling`: at equal entropy the direct student, decoded, is not shown to be behind. `heating`: a temperature above 1 is
to buy recall, and no gain is shown. `length`: nats are counted by row, and rows differ in length. A check that gives no
reason for caution is not there.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from hydrometer.run.advice.arms import arm_of, design_of, kept_rows
from hydrometer.run.advice.candidate_table import Field, unit_of
from hydrometer.run.advice.candidates import Entry
from hydrometer.run.advice.holdout import Again
from hydrometer.stages.statistics.covariance import Joint, Linear
from hydrometer.stages.statistics.decision import PRECISION, SCORE, Decision, Need

__all__ = ["checks_of", "figure_json"]

Json = dict[str, Any]


def figure_json(x: Linear | None) -> Json | None:
    """Return a figure as advice.json holds it."""
    return None if x is None else {"value": x.value, "se": x.se, "df": x.df, "ci95": list(x.ci95)}


def checks_of(field: Field, need: Need, decision: Decision, again: Again | None) -> Json:
    """Return the checks that give reason for caution, by name (docs, Advice).

    Parameters
    ----------
    again : the leader's figures on fresh rows, which come before the run's own.
    """
    leader, base = field.found[decision.leader], field.found[field.baseline]
    loss = decision.candidates[decision.leader].loss if again is None else again.loss
    found = {
        "cooling": _cooling(leader),
        "heating": _heating(leader, need, loss),
        "length": None if leader is base else _length(field, need, leader, base),
    }
    return {name: check for name, check in found.items() if check is not None}


def _cooling(leader: Entry) -> Json | None:
    """Return the contrasts with the direct student decoded to the same entropy, where neither shows it behind."""
    c, matched = leader.cell, leader.source.controls.get(leader.cell.group, {})
    if leader.is_adopted or leader.is_neutral or c.decoding is not None:
        return None
    precision = matched.get("precision", matched.get("precision_reference"))
    recall = matched.get("recall")
    if precision is None or recall is None or any(not x.get("ci95") or x["ci95"][0] > 0 for x in (precision, recall)):
        return None
    per = "point" if unit_of(leader.source, Need()) == "point" else "sequence"
    kept = ("value", "se", "df", "ci95")
    return {
        "precision": {k: precision.get(k) for k in kept},
        "recall": {k: recall.get(k) for k in kept},
        "unit": f"nats per {per}",
    }


def _heating(leader: Entry, need: Need, loss: Linear) -> Json | None:
    """Return the leader's loss of recall, where it is heated for recall, which is not shown to rise."""
    c = leader.cell
    heated = any(s is not None and (s.temperature or 1.0) > 1 for s in (c.selectivity, c.decoding))
    if not heated or need.objective == "precision" or loss.ci95[1] < 0:
        return None
    return {"recall_loss": figure_json(loss)}


def _length(field: Field, need: Need, leader: Entry, base: Entry) -> Json | None:
    """Return what rows differ by in length, where that is shown, and the gain in precision per token."""
    names = (f"{field.names[0]}_per_token", "recall_per_token", "length")
    figures = [m for e in (leader, base) for m in e.figures.values()]
    if unit_of(leader.source, need) != "sequence" or any(m.get(n) is None for m in figures for n in names):
        return None
    design, lengths = design_of(base.source, kept_rows(base))
    entries = (leader, base)
    arms = [arm_of(e, field.seeds, names, lengths, lambda c, e=e: (c.judge, e.figures[c.seed])) for e in entries]
    joint = Joint(arms, design)

    def minus(figure: int) -> Linear:
        c = np.zeros(joint.mean.size)
        c[figure], c[joint.q + figure] = 1.0, -1.0
        return joint.linear(c)

    length = minus(SCORE)
    if length.ci95[0] <= 0 <= length.ci95[1]:
        return None
    return {"length": figure_json(length), "precision_gain_per_token": figure_json(minus(PRECISION))}
