"""The report: a run's figures, tables and verdict, for the terminal and as one self-contained page.

Reads records and exhibits only. It computes no metric of its own: what it draws was measured by judge.
"""

from hydrometer.report.advice import advice_notes, advice_sentences, advice_table
from hydrometer.report.answer import answers
from hydrometer.report.page import build_report
from hydrometer.report.tables import summary_table
from hydrometer.report.verdict import verdict

__all__ = ["advice_notes", "advice_sentences", "advice_table", "answers", "build_report", "summary_table", "verdict"]
