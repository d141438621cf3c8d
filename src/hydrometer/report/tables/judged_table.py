"""The terminal's table of judged models."""

from __future__ import annotations

from hydrometer.core.errors import one_line
from hydrometer.report.terminal import FittedTable
from hydrometer.report.typed_results import Chain, Group, Run
from hydrometer.report.wording import model, num, with_error
from hydrometer.report.words.judged_text import JUDGED_COLUMNS

__all__ = ["judged_table"]


def judged_table(run: Run, chain: Chain) -> FittedTable:
    """Build the terminal's table: one model a row, figures with their standard error, below it the interval."""
    groups = run.of_chain(chain.name)
    columns = [m for m in JUDGED_COLUMNS if any(m in g.metrics for g in groups)]
    what = "nats per answer, or per byte of text where it says so, ± standard error, below it the 95 % interval"
    title = f"{one_line(chain.name, 80)}: {what}"
    heads = [name if unit == "nats" else f"{name}\n/ byte" for name, unit in (JUDGED_COLUMNS[m] for m in columns)]
    rows = [[one_line(model(g), 200), *(_cell(g, m) for m in columns)] for g in groups]
    return FittedTable(["model", *heads], rows, title)


def _cell(group: Group, metric: str) -> str:
    found = group.metrics.get(metric)
    if found is None:
        return ""
    if found.value is None:
        sign = "+" if metric.startswith("kl") else "−"
        return f"{sign}∞" if found.n_neg_inf else "–"
    words = with_error(found.value, found.se)
    return words if not found.ci95 or not found.se else f"{words}\n{'…'.join(num(e, found.se) for e in found.ci95)}"
