"""Sentences on baselines, and on adopted models: each compared with the run's own model that is most like it."""

from __future__ import annotations

from hydrometer.report.typed_results import Brought, Chain
from hydrometer.report.wording import KL, Sentence, Topic, among, difference, distilled_at, per, recall_of

__all__ = ["adopted_sentences"]

MOST = 6
_AGAINST = {
    "vs_native": "the run’s own model of that training and setting",
    "vs_own_direct": "the direct model of the same name",
    "vs_direct": "the run’s direct student",
}


def adopted_sentences(chain: Chain) -> list[Sentence]:
    """Write one sentence for each of the first few baselines and adopted models."""
    said = [_sentence(chain, b, "baseline", f"the baseline {b.name}") for b in chain.baselines[:MOST]]
    said += [_sentence(chain, b, "adopted", f"{b.name}, {_trained(b)}") for b in chain.adopted[:MOST]]
    if len(chain.adopted) > MOST:
        said.append(Sentence("adopted", "note", f"{len(chain.adopted) - MOST} more are in the tables."))
    return said


def _trained(b: Brought) -> str:
    kinds = {"direct": "trained directly", "baseline": "trained on other data"}
    return kinds.get(b.training) or f"distilled at {distilled_at(b)}"


def _sentence(chain: Chain, b: Brought, topic: Topic, who: str) -> Sentence:
    against = next((key for key in _AGAINST if b.diffs.get(key)), None)
    if against is None:
        return Sentence(topic, "open", f"{who}: there is no judged model of the run to compare it with.")
    diffs = b.diffs[against]
    recall = recall_of(diffs)
    named = [("precision", diffs.get("precision")), (KL, diffs.get("kl_student_truth"))]
    if recall is not None:
        named.append((recall.metric.replace("_", " "), recall))
    parts = [f"{name} {difference(d)}" for name, d in named if d is not None]
    words = f"{who}, minus {_AGAINST[against]}, {chain.unit} per {per(chain)}: {among(parts)}."
    return Sentence(topic, "note" if any(d is not None and d.ci95 for _, d in named) else "open", words)
