"""The table of gaps of generalisation: models on prompts kept apart, on prompts of training, and the difference."""

from __future__ import annotations

from hydrometer.report.tables.model_tables import MAIN, MAX_ROWS, TableData, ordered_groups, under
from hydrometer.report.typed_results import Chain, Diff, Run
from hydrometer.report.wording import error, model, num, signed

__all__ = ["gap_table"]


def gap_table(run: Run, chain: Chain) -> TableData:
    """Build the table: one row a model and figure, nats; without rows where nothing is judged so."""
    known = {g.group: g for g in chain.gaps}
    rows: list[list[str]] = []
    for group in (g for g in ordered_groups(run, chain) if g.id in known):
        gap = known[group.id]
        for metric, parts in gap.figures.items():
            base = metric.removesuffix("_per_token")
            heading = MAIN.get(base, base) + (" / token" if metric != base else "")
            name = under(heading, chain.reference) if chain.reference else heading
            two = (num(x, parts.gap.se) for x in (parts.held_out, parts.training_prompts))
            rows.append([model(group), name, *two, *_difference(parts.gap), _signed(gap.vs_direct.get(metric))])
    head = ["model", "figure", "kept apart", "of training", "gap", "s.e.", "95 % interval", "minus the direct’s gap"]
    return TableData(head, rows[:MAX_ROWS], max(len(rows) - MAX_ROWS, 0))


def _difference(d: Diff) -> tuple[str, str, str]:
    interval = "–" if d.ci95 is None else " to ".join(num(end, d.se) for end in d.ci95)
    return "–" if d.value is None else signed(d.value, d.se), error(d.se), interval


def _signed(d: Diff | None) -> str:
    if d is None or d.value is None:
        return ""
    return signed(d.value, d.se) + ("" if d.ci95 is None else f" ({' to '.join(num(end, d.se) for end in d.ci95)})")
