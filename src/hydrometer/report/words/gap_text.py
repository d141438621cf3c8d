"""The sentence on generalisation: what models are worse at on prompts that they were not trained on."""

from __future__ import annotations

from hydrometer.report.typed_results import Chain, Run
from hydrometer.report.wording import KL_OF_TRUTH, Sentence, among, difference, model, per

__all__ = ["gap_sentences"]

MOST = 6


def gap_sentences(run: Run, chain: Chain) -> list[Sentence]:
    """Say every student's gap in KL(p*‖q), or in recall beside texts, and whose differs from the direct student's."""
    students = [g for g in chain.gaps if g.group in run.groups and run.groups[g.group].role == "student"]
    metric = "kl_truth_student" if any("kl_truth_student" in g.figures for g in students) else "recall"
    found = [(g, g.figures[metric].gap) for g in students if metric in g.figures]
    if not found:
        return []
    name = KL_OF_TRUTH if metric == "kl_truth_student" else "recall"
    each = among([f"{model(run.groups[g.group])} {difference(d)}" for g, d in found[:MOST]])
    more = "" if len(found) <= MOST else f"; {len(found) - MOST} more are in the tables"
    text = (
        f"{name} on prompts that no model was trained on, minus that on prompts of training, {chain.unit} per "
        f"{per(chain)}: {each}{more}."
    )
    compared = [(model(run.groups[g.group]), d) for g, _ in found if (d := g.vs_direct.get(metric)) is not None]
    towards_none = -1 if metric == "kl_truth_student" else 1
    for sign, words in ((towards_none, "less"), (-towards_none, "more")):
        if who := [w for w, d in compared if d.sign == sign]:
            text += f" What is learnt of the training prompts alone is {words} than the direct student’s: {among(who)}."
    if who := [w for w, d in compared if d.sign in (0, None)]:
        text += f" Undecided against the direct student’s gap: {among(who)}."
    return [Sentence("gap", "note" if all(d.sign for _, d in found) else "open", text)]
