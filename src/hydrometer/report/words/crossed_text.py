"""Words on a teacher of another tokenizer: what became of its rows, and by what it is compared."""

from __future__ import annotations

from hydrometer.report.typed_results import Chain
from hydrometer.report.values import count, read_setting
from hydrometer.report.wording import Sentence, among, setting

__all__ = ["crossed_sentences"]


def crossed_sentences(chain: Chain) -> list[Sentence]:
    """Say how many of the teacher's rows did not come back, and where it is compared by bytes; else nothing."""
    if not chain.crossed:
        return []
    rows, changed, respelled, cut = (sum(count(c.get(k)) for c in chain.crossed) for k in _COUNTS)
    worst = [c for c in chain.crossed if count(c.get("changed"))]
    where = f", at {among([setting(read_setting(c.get('selectivity'))) for c in worst])}" if worst else ""
    words = (
        f"The teacher has another tokenizer: its {rows} rows to train on crossed as text. {changed} did not come back "
        f"({changed / max(rows, 1):.1%}{where}) and are trained on as the text that the students’ tokenizer gives; "
        f"{respelled} were not spelled as the teacher’s own tokenizer spells their text, which crossed all the same; "
        f"{cut} were cut and teach no end."
    )
    said = [Sentence("texts", "note", words)]
    if not chain.reference:
        words = (
            "The teacher’s precision and recall are those of texts, per byte, in each model’s canonical tokenisation; "
            "the planes, whose nats are of the students’ tokens, do not show it."
        )
        said.append(Sentence("texts", "note", words))
    else:
        words = "All draws are scored as texts, in the canonical tokenisation of the model that scores them."
        said.append(Sentence("texts", "note", words))
    return said


_COUNTS = ("rows", "changed", "respelled", "cut")
