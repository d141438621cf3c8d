"""Sentences on judged models."""

from __future__ import annotations

from hydrometer.report.typed_results import Chain, Diff, Run
from hydrometer.report.values import items, number, text
from hydrometer.report.wording import KL, Sentence, difference, model

__all__ = ["JUDGED_COLUMNS", "judged_sentences"]

# Columns in order; a column is shown if any model has it.
JUDGED_COLUMNS = {
    "precision": ("precision", "nats"),
    "precision_reference": ("precision under the reference", "nats"),
    "recall": ("recall", "nats"),
    "entropy": ("H(q)", "nats"),
    "kl_student_truth": (KL, "nats"),
    "kl_student_reference": ("KL(q‖reference)", "nats"),
    "precision_per_byte": ("precision", "nats/byte"),
    "precision_reference_per_byte": ("precision under the reference", "nats/byte"),
    "recall_per_byte": ("recall", "nats/byte"),
    "entropy_per_byte": ("H(q)", "nats/byte"),
}


def judged_sentences(run: Run, chain: Chain) -> list[Sentence]:
    """Say how the models were prompted, what the intervals cover, and which differences are decided."""
    how = chain.judged
    prompts, answers = number(how.get("prompts")), number(how.get("answers"))
    out: list[Sentence] = []
    if number(how.get("held_out_rows")) is not None:
        words = f"Recall is over {how['held_out_rows']} held-out texts, each in the model’s own canonical tokenisation"
        reference = text(how.get("reference"))
        more = f"; precision is under the reference {reference}, which is not the truth" if reference else ""
        out.append(Sentence("trade-off", "note", words + more + "."))
    if prompts is not None and prompts > 1:
        each = f", {answers / prompts:.0f} answers each" if answers is not None else ""
        of = (
            "Intervals are for the population that they are a sample of (clustered by prompt)"
            if how.get("prompts_are") == "sample"
            else "Intervals are for these prompts and no others"
        )
        out.append(Sentence("caveat", "note", f"{prompts:.0f} prompts{each}. {of}."))
    pairs: dict[tuple[str, str], list[Diff]] = {}
    for c in run.contrasts:
        known = c.a in run.groups and c.b in run.groups and run.groups[c.a].chain == chain.name
        if known and c.metric in JUDGED_COLUMNS and c.value is not None:
            pairs.setdefault((c.a, c.b), []).append(c)
    out += [_difference(run, *pair, found) for pair, found in pairs.items()]
    return out + [Sentence("caveat", "note", text(note) + ".") for note in items(how.get("notes"))]


def _difference(run: Run, a: str, b: str, found: list[Diff]) -> Sentence:
    """Say how a model differs from the truth, or from the first student."""
    parts = [f"{name} {difference(c, unit)}" for c in found for name, unit in [JUDGED_COLUMNS[c.metric]]]
    words = f"{model(run.groups[a])} minus {model(run.groups[b])}: {'; '.join(parts)}."
    return Sentence("trade-off", "note" if any(c.sign for c in found) else "open", words)
