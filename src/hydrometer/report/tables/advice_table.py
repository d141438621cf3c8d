"""The terminal's table of advice, from the content of advice.json."""

from __future__ import annotations

from hydrometer.core.errors import one_line
from hydrometer.report.terminal import FittedTable
from hydrometer.report.values import Json, items, mapping, number, read_setting, text
from hydrometer.report.wording import num, setting, with_error
from hydrometer.report.words.advice_text import (
    candidate_of,
    distilled_at,
    nats_per,
    precision_of,
    seconds_words,
    student_named,
)

__all__ = ["advice_table"]


def advice_table(data: Json) -> FittedTable:
    """Build the terminal's table: one candidate a line."""
    scored = bool(mapping(data.get("need")).get("score"))
    gained = f"{precision_of(data)} gained"
    heads = ["setting", gained, "recall lost", *(["score"] if scored else []), "need", "P(best)", "draws", "time"]
    rows: list[list[str]] = []
    for c in (mapping(x) for x in items(data.get("candidates"))):
        cost = mapping(c.get("cost"))
        spent = sum(number(cost.get(k)) or 0.0 for k in ("draw_seconds", "fit_seconds"))
        cells = [_brief(data, c), _short(c.get("precision_gain")), _short(c.get("recall_loss"))]
        cells += [_short(c.get("score"))] if scored else []
        mark = " *" if c.get("id") == data.get("take") else ""
        cells += [text(c.get("feasible")), f"{number(c.get('p_best')) or 0.0:.2f}{mark}"]
        own = number(cost.get("own_rows"))
        draws = f"{number(cost.get('teacher_rows')) or 0.0:,.0f}" + (f" + {own:,.0f} own" if own else "")
        cells += [draws, seconds_words(spent)] if cost else ["–", "–"]
        rows.append(["\n".join(one_line(x, 200) for x in cell.split("\n")) for cell in cells])
    base = student_named(data, candidate_of(data, "baseline"))
    caption = (
        f"{gained.capitalize()} and recall lost (below zero: gained), {nats_per(data)}, against {base}, ± standard "
        "error, below it the 95 % interval, on the run’s own rows. The need is met or violated where that is shown, "
        "open where it is not. Draws of the teacher, and the student’s "
        "own in its fit, and seconds of drawing and fitting, a seed."
    )
    return FittedTable(heads, rows, caption=one_line(caption))


def _brief(data: Json, c: Json) -> str:
    parts = [p for k in ("adopted", "training", "baseline") if (p := text(c.get(k)))]
    if c.get("training") == "distilled":
        parts.append(distilled_at(c, short=True))
    if decoded := read_setting(c.get("decoding")):
        parts.append("decoded " + setting(decoded, short=True))
    if len(items(data.get("runs"))) > 1:
        parts.append(f"({text(c.get('run'))})")
    return " ".join(parts)


def _short(value: object) -> str:
    f = mapping(value)
    x, se = number(f.get("value")), number(f.get("se"))
    ends = [num(number(e), se) for e in items(f.get("ci95"))] if se else []
    return "\n".join([with_error(x, se), *(["…".join(ends)] if ends else [])])
