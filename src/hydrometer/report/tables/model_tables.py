"""Tables: the terminal's with rich, and the page's as rows of plain strings."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from rich.console import Group as Renderables
from rich.console import RenderableType
from rich.text import Text

from hydrometer.core.errors import one_line
from hydrometer.core.statistics.seeds import SURE
from hydrometer.report.data.grid_data import COMPARISONS, Tile, axis_of, counted, places
from hydrometer.report.read_results import parse
from hydrometer.report.tables.headings import EXTRA, FITS, MAIN, TERMINAL
from hydrometer.report.tables.judged_table import judged_table
from hydrometer.report.terminal import FittedTable
from hydrometer.report.typed_results import Chain, Diff, Figure, Group, Run
from hydrometer.report.values import number, read_setting, text
from hydrometer.report.wording import (
    entry,
    error,
    figure,
    missing_words,
    model,
    num,
    per,
    prompts_words,
    setting,
    signed,
)
from hydrometer.report.words.verdict import Sentence, sentences

__all__ = [
    "TableData",
    "contrast_table",
    "gap_table",
    "group_table",
    "map_table",
    "missing_sentence",
    "ordered_groups",
    "released_table",
    "setting_table",
    "short_tables",
    "spread_table",
    "summary_parts",
    "summary_table",
    "under",
]

MAX_ROWS = 400
_ROLE_ORDER = {"truth": 0, "teacher": 1, "student": 9}


@dataclass(frozen=True, slots=True)
class TableData:
    """A table of strings: its headings, its rows, and how many rows were left out."""

    head: list[str]
    rows: list[list[str]]
    left_out: int = 0


def _order(group: Group, chain: Chain) -> tuple[int, int, int]:
    steps = [s.selectivity for s in chain.tradeoff]

    def place(value: dict[str, float] | None) -> int:
        return 0 if value is None else steps.index(value) + 1 if value in steps else len(steps) + 1

    role = _ROLE_ORDER.get(group.role, 5)
    if group.adopted:
        return role, 400 + place(group.selectivity), place(group.decoding)
    if group.training == "distilled" and group.decoding:
        return role, 300 + place(group.selectivity), place(group.decoding)
    if group.training == "distilled":
        return role, 200 + place(group.selectivity), 0
    if group.baseline:
        return role, 150, place(group.decoding)
    return role, 100, place(group.decoding or group.selectivity)


def ordered_groups(run: Run, chain: Chain) -> list[Group]:
    """Return a chain's groups in reading order: truth, teachers, direct, direct decoded, distilled.

    Those of a map come point by point.
    """
    return [
        group
        for point in chain.points or [chain]
        for group in sorted(run.at_point(point), key=lambda g: (_order(g, point), g.id))
    ]


def under(heading: str, reference: str) -> str:
    """Return a heading of what is measured under a reference, where the truth is texts."""
    under = heading.replace("precision", f"precision under the {reference}", 1)
    return under.replace("KL(q‖p*)", f"KL(q‖{reference})")


def _as_of_truth(heading: str) -> str:
    """Return what `under` made a heading of."""
    for reference in ("teacher", "reference"):
        heading = heading.replace(f" under the {reference}", "").replace(f"KL(q‖{reference})", "KL(q‖p*)")
    return heading


def _has(groups: list[Group], metric: str) -> bool:
    return any(metric in g.metrics for g in groups)


def group_table(run: Run, chain: Chain, *, extra: bool = False) -> TableData:
    """Build the table of a chain's models: one row per group, figures with their error and below it their interval."""
    groups = ordered_groups(run, chain)
    columns = {k: v for k, v in (EXTRA if extra else MAIN).items() if _has(groups, k)}
    if extra:
        columns |= {m: m for g in groups for m in g.metrics if m.startswith(("user_", "lm_eval_"))}
    if chain.reference:
        columns = {k: under(v, chain.reference) for k, v in columns.items()}
    rows: list[list[str]] = []
    fits = {} if extra else run.fits()
    for group in groups[:MAX_ROWS]:
        seeds = str(group.seeds) + (f" ({group.failed} failed)" if group.failed else "")
        spent = (fits.get(group.id, {}).get(k) for k in FITS) if fits else ()
        took = ["" if x is None else f"{x:,.0f}" if x >= 10 or x == round(x) else f"{x:.2g}" for x in spent]
        rows.append([model(group), *(_with_interval(group, m) for m in columns), seeds, *took])
    head = ["model", *columns.values(), "seeds", *(FITS.values() if fits else ())]
    return TableData(head, rows, max(len(groups) - MAX_ROWS, 0))


def _with_interval(group: Group, metric: str) -> str:
    """Format a figure, and below it its 95 % interval, a share's within 0 and 1, and doubts over seeds."""
    words, found = entry(group, metric), group.metrics.get(metric)
    if found is None or found.ci95 is None or not found.se:
        return words
    few = ", few seeds" if found.few_seeds and group.seeds >= SURE else ""
    peaks = ", two peaks" if found.two_peaks else ""
    is_share = found.unit == "probability" or metric.startswith(("repetition", "distinct_"))
    ends = [min(max(end, 0.0), 1.0) for end in found.ci95] if is_share else found.ci95
    return f"{words}\n{'…'.join(num(end, found.se) for end in ends)}{few}{peaks}"


def spread(found: Figure | None) -> str:
    """Write median and quartiles over seeds, and whether the values have two peaks.

    Examples
    --------
    >>> spread(Figure(-8.7, 0.2, None, "nats", 0, -4.1, (-13.2, -3.3), two_peaks=True))
    '−4.10, −13.20 to −3.30, two peaks'
    """
    if found is None or found.median is None or found.quartiles is None:
        return "–"
    ends = " to ".join(num(q, found.se) for q in found.quartiles)
    return f"{num(found.median, found.se)}, {ends}" + (", two peaks" if found.two_peaks else "")


def spread_table(run: Run, chain: Chain) -> TableData:
    """Build the table of spread over seeds: median, quartiles and two peaks of every mean."""
    groups = ordered_groups(run, chain)
    known = {k for g in groups for k, f in g.metrics.items() if f.median is not None}
    named = {k: v for k, v in (MAIN | EXTRA).items() if k in known}
    rows = [[model(g), *(spread(g.metrics.get(m)) for m in named)] for g in groups[:MAX_ROWS]]
    return TableData(["model", *named.values()], rows if named else [], max(len(groups) - MAX_ROWS, 0))


def _counts(tiles: list[Tile]) -> str:
    found = counted(tiles)
    return f"+{found['up']}  −{found['down']}  ?{found['open']}" if len(tiles) > found["none"] else "–"


def setting_table(chain: Chain) -> TableData:
    """Build the table of a map by setting: at how many points a figure rises, falls, is undecided."""
    rows: list[list[str]] = []
    found = places(chain)
    for at in axis_of(chain, "setting").values:
        here = [p for p in found if setting(p.step.selectivity) == at]
        rows.append([str(at), *(_counts([compare(p) for p in here]) for _, compare in COMPARISONS)])
    return TableData(["distilled at", *(title for title, _ in COMPARISONS)], rows)


def map_table(chain: Chain) -> TableData:
    """Build the table under a map's pictures: every point and setting, each comparison with its interval's reading."""
    axes = [axis_of(chain, key) for key in chain.axes]
    rows: list[list[str]] = []
    found = places(chain)
    for place in found[:MAX_ROWS]:
        cells = [f"{place.point.point.get(a.key, math.nan):g}" for a in axes]
        for _, compare in COMPARISONS:
            t = compare(place)
            mark = "" if t.state == "decided" else " ?"
            cells.append(t.reason if t.value is None else signed(t.value) + mark)
        rows.append([setting(place.step.selectivity, short=True), *cells])
    head = ["setting", *(a.name for a in axes), *(title for title, _ in COMPARISONS)]
    return TableData(head, rows, max(len(found) - MAX_ROWS, 0))


def _name(run: Run, group_id: str) -> str:
    group = run.groups.get(group_id)
    return model(group) if group else group_id


def _decided(diff: Diff) -> str:
    return {1: "a above b", -1: "a below b", 0: "undecided", None: "no interval"}[diff.sign]


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


def contrast_table(run: Run, chain: Chain) -> TableData:
    """Build the table of contrasts between a chain's groups, every metric."""
    mine = [c for c in run.contrasts if c.a in run.groups and run.groups[c.a].chain == chain.name]
    rows: list[list[str]] = []
    for c in mine[:MAX_ROWS]:
        interval = f"{num(c.ci95[0], c.se)} to {num(c.ci95[1], c.se)}" if c.ci95 else "–"
        value = "infinite" if c.value is None else signed(c.value, c.se)
        rows.append(
            [_name(run, c.a), _name(run, c.b), c.metric, value, error(c.se), interval, num(c.df, 1), _decided(c)]
        )
    head = ["a", "b", "metric", "a − b", "s.e.", "95 % interval", "df", "reading"]
    return TableData(head, rows, max(len(mine) - MAX_ROWS, 0))


def _two(value: float | None) -> str:
    return "–" if value is None else f"{value:.2f}".replace("-", "−")


def released_table(run: Run, chain: Chain) -> TableData:
    """Build the table of the paper's figures as its notebook computes them, beside the corrected ones.

    As released, precision is scored under the sharpened teacher and recall on the training points.
    """
    rows: list[list[str]] = []
    for r in chain.as_released:
        name = text(r.get("metric")).removesuffix("_as_released")
        training, at = text(r.get("training")), read_setting(r.get("selectivity"))
        low, high, printed = number(r.get("q025")), number(r.get("q975")), number(r.get("printed"))
        inside, spread = "", "–"
        if low is not None and high is not None:
            spread = f"{_two(low)} to {_two(high)}"
            inside = "" if printed is None else "inside" if low <= printed <= high else "outside"
        undecoded = (g for g in run.of_chain(chain.name) if g.role == "student" and not g.decoding)
        same = (g for g in undecoded if g.training == training and (training == "direct" or g.selectivity == at))
        fair = next(same, None)
        corrected = figure(fair.metrics.get(name)) if fair else "–"
        median, mean = _two(number(r.get("median"))), _two(number(r.get("mean")))
        shown = setting(at, short=True) if at else ""
        rows.append([training, shown, name, _two(printed), median, spread, mean, inside, corrected])
    head = ["student", "setting", "figure", "printed", "median", "95 % of seeds", "mean", "printed lies", "corrected"]
    return TableData(head, rows)


def _verdict_text(found: list[Sentence]) -> Text:
    styles = {"yes": "green", "no": "red", "open": "yellow", "note": "dim"}
    words = Text()
    for s in found:
        words.append(f"{s.topic:>9}  ", style="bold" if s.topic != "caveat" else "dim")
        words.append(one_line(s.text) + "\n", style=styles[s.tone] if s.topic != "caveat" else "dim")
    return words


def missing_sentence(results: dict[str, Any]) -> str:
    """Say which cells of a run are not judged yet; an empty string where all are.

    Parameters
    ----------
    results : the object that results.json holds.

    Examples
    --------
    >>> missing_sentence({"schema": 1, "cells": [{"id": "m.truth", "chain": "m"}], "partial": {"m": ["m.teacher"]}})
    'So far 1 of 2 cells are judged; missing: m.teacher.'
    """
    return missing_words(parse(results))


def short_tables(run: Run) -> list[RenderableType]:
    """Build the tables of a run that goes on: a line a model, precision and recall."""
    parts: list[RenderableType] = []
    for chain in run.chains.values():
        if chain.judged:
            parts.append(judged_table(run, chain))
            continue
        data = setting_table(chain) if chain.points else group_table(run, chain)
        names = ("precision", "recall", "seeds")
        shown = [i for i, name in enumerate(data.head) if i == 0 or _as_of_truth(name) in names or chain.points]
        rows = [[one_line(row[i].partition("\n")[0], 200) for i in shown] for row in data.rows]
        title = one_line(chain.name, 80) + (
            "" if chain.points else f": {chain.unit} per {per(chain)}, ± standard error"
        )
        parts.append(FittedTable([data.head[i] for i in shown], rows, title))
    return parts


def summary_table(results: dict[str, Any]) -> RenderableType:
    """Build the terminal's summary: per chain the table of models and the verdict.

    Parameters
    ----------
    results : the object that results.json holds.

    Returns
    -------
    A rich renderable; names and reasons are printed as text, never read as markup.

    Raises
    ------
    FolderError : where the schema is a newer release's.
    """
    return Renderables(*summary_parts(parse(results)))


def summary_parts(run: Run, *, whole: bool = False) -> list[FittedTable | Text]:
    """Return the summary's tables and texts; `whole` with all main figures, also those too many for a terminal."""
    parts: list[FittedTable | Text] = []
    for chain in run.chains.values():
        if chain.judged:
            parts += [judged_table(run, chain), _verdict_text(sentences(run, chain))]
            continue
        data = setting_table(chain) if chain.points else group_table(run, chain)
        seeds = f"{chain.seeds} seed" + ("s" if chain.seeds > 1 else "")
        what = f"points where it rises (+), falls (−), is undecided (?) of {len(chain.points)}"
        if not chain.points:
            what = f"{chain.unit} per {per(chain)}, ± standard error, below it the 95 % interval"
        prompts = f"; prompts: {words}" if (words := prompts_words(chain)) else ""
        title = f"{one_line(chain.name, 80)}: {what}, {seeds}{prompts}"
        # What a terminal of 80 columns holds; the page has the rest.
        every = whole or chain.points
        shown = [i for i, name in enumerate(data.head) if i == 0 or _as_of_truth(name) in TERMINAL or every]
        rows = [
            ["\n".join(one_line(x, 200) for x in row[i].replace(", ", "\n" if i else ", ").split("\n")) for i in shown]
            for row in data.rows
        ]
        more = f"and {data.left_out} more" if data.left_out else ""
        parts += [FittedTable([data.head[i] for i in shown], rows, title, more), _verdict_text(sentences(run, chain))]
    if (missing := missing_words(run)) and run.missing.keys() - run.chains.keys():  # those that have figures say it
        parts.insert(0, Text(one_line(missing) + "\n", style="yellow"))
    return parts or [Text("no chains in these results")]
