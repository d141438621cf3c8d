"""The report: a run's figures, tables and verdict, for the terminal and as one self-contained page.

Reads records and exhibits only. It computes no metric of its own: what it draws was measured by judge.
"""

from typing import TYPE_CHECKING

from hydrometer._lazy import lazily
from hydrometer.report.words.verdict import verdict

if TYPE_CHECKING:
    from hydrometer.report.live_page import build_live_report
    from hydrometer.report.page import build_report
    from hydrometer.report.tables.advice_table import advice_table
    from hydrometer.report.tables.model_tables import missing_sentence, summary_table
    from hydrometer.report.tables.status_view import status_view
    from hydrometer.report.words.advice_notes import advice_notes
    from hydrometer.report.words.advice_text import advice_sentences
    from hydrometer.report.words.first_sentence import answers
    from hydrometer.report.words.verdict import verdict

__all__ = [
    "advice_notes",
    "advice_sentences",
    "advice_table",
    "answers",
    "build_live_report",
    "build_report",
    "missing_sentence",
    "status_view",
    "summary_table",
    "verdict",
]

__getattr__, __dir__ = lazily(
    __name__,
    {
        "page": "build_report",
        "tables.model_tables": "missing_sentence summary_table",
        "tables.advice_table": "advice_table",
        "words.advice_notes": "advice_notes",
        "words.advice_text": "advice_sentences",
        "words.first_sentence": "answers",
        "words.verdict": "verdict",
        "live_page": "build_live_report",
        "tables.status_view": "status_view",
    },
)
