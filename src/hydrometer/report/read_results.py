"""results.json and exhibits, read into typed records; whatever is optional and absent becomes None or empty.

A number in these files is a JSON number, null, or the string "inf" or "-inf". Everything else in them, names and texts
above all, is material from elsewhere and is escaped where it is shown.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from hydrometer.core.findings import FIGURE_CODES, SHARED_PROMPTS
from hydrometer.core.io.yaml_io import is_array, is_object, read_plain
from hydrometer.report.typed_results import (
    Brought,
    Cell,
    Chain,
    Control,
    Figure,
    Gap,
    Gate,
    Group,
    OnBoth,
    Run,
    Step,
    read,
    read_diff,
    read_diffs,
)
from hydrometer.report.values import Json, finite, in_order, items, mapping, number, text
from hydrometer.store.migrate import migrate
from hydrometer.store.records import load_results

__all__ = ["exhibits", "parse", "read_exhibit", "read_run"]

_SEEDS_TRIED = 5
MAX_EXHIBIT_BYTES = 64_000_000


def _group(name: str, value: object) -> Group:
    metrics = {k: _figure(v) for k, v in mapping(mapping(value).get("metrics")).items()}
    return read(Group, value, id=name, metrics=metrics, method=value)


def _figure(value: object) -> Figure:
    m = mapping(value)
    return read(Figure, m, quartiles=[m.get("q25"), m.get("q75")])


def _cell(value: object) -> Cell:
    c = mapping(value)
    seed = finite(c.get("seed"))
    figures = {k: finite(mapping(m).get("value")) for k, m in mapping(c.get("metrics")).items()}
    few = frozenset(k for k, m in mapping(c.get("metrics")).items() if mapping(m).get("caution"))
    seconds = number(c.get("seconds")) or 0.0
    whole = None if seed is None else int(seed)
    took = {k: n for k, v in mapping(c.get("fit")).items() if (n := finite(v)) is not None}
    return read(Cell, c, seed=whole, ok=c.get("status") == "ok", values=figures, seconds=seconds, fit=took, few=few)


def _control(value: object) -> Control:
    c = mapping(value)
    matched = mapping(c.get("matched_entropy"))
    diffs = read_diffs(matched) if matched else None
    return read(Control, c, matched=diffs, matched_entropy=matched.get("entropy"), method=c)


def _brought(value: object) -> Brought:
    b = mapping(value)
    diffs = {k: read_diffs(v) for k, v in b.items() if k.startswith("vs_") or k == "same_setting"}
    return read(Brought, b, diffs=diffs, method=b)


def _gap(value: object) -> Gap:
    g = mapping(value)
    figures: dict[str, OnBoth] = {}
    for metric, found in mapping(g.get("figures")).items():
        if (gap := read_diff(mapping(found).get("gap"))) is not None:
            figures[metric] = read(OnBoth, found, gap=gap)
    return read(Gap, g, figures=figures)


def _chain(name: str, value: object) -> Chain:
    c = mapping(value)
    gate, grid = mapping(c.get("gate")), mapping(c.get("map"))
    steps = [read(Step, s, method=s) for s in items(c.get("tradeoff"))]
    order = in_order([s.selectivity for s in steps])
    return read(
        Chain,
        c,
        name=name,
        gate=read(Gate, gate, diff=read_diff(gate.get("contrast"))),
        tradeoff=sorted(steps, key=lambda s: order.index(s.selectivity)),
        control=[_control(s) for s in items(c.get("control"))],
        axes={k: [n for v in items(a) if (n := number(v)) is not None] for k, a in mapping(grid.get("axes")).items()},
        adopted=[_brought(b) for b in items(c.get("adopted"))],
        gaps=[_gap(g) for g in items(c.get("generalisation"))],
        baselines=[_brought(b) for b in items(c.get("baselines"))],
        points=[_chain(name, {**mapping(p), "map": None}) for p in items(grid.get("points"))],
    )


_STANDS_FOR = {
    f"{a}{suffix}": f"{b}{suffix}"
    for a, b in (("precision_reference", "precision"), ("kl_student_reference", "kl_student_truth"))
    for suffix in ("", "_per_token")
}


def _by_reference(value: Any) -> Any:
    """Put figures under a reference in the place of those under a truth, which a chain of texts does not have."""
    if is_array(value):
        return [_by_reference(v) for v in value]
    if is_object(value):
        return {_STANDS_FOR.get(k, k): _by_reference(v) for k, v in value.items()}
    return _STANDS_FOR.get(value, value) if isinstance(value, str) else value


def _references_as_truths(results: Json) -> Json:
    """Return results in which the chains of texts have their reference's figures where others have the truth's."""
    summary = mapping(results.get("summary"))
    chains = mapping(summary.get("chains"))
    named = {k for k, v in chains.items() if text(mapping(v).get("reference"))}
    if not named:
        return results
    groups = {
        k: _by_reference(v) if text(mapping(v).get("chain")) in named else v
        for k, v in mapping(summary.get("groups")).items()
    }

    def of_texts(contrast: object) -> bool:
        return text(mapping(groups.get(text(mapping(contrast).get("a")))).get("chain")) in named

    return {
        **results,
        "cells": [
            _by_reference(c) if text(mapping(c).get("chain")) in named else c for c in items(results.get("cells"))
        ],
        "contrasts": [_by_reference(c) if of_texts(c) else c for c in items(results.get("contrasts"))],
        "summary": {
            **summary,
            "groups": groups,
            "chains": {k: _by_reference(v) if k in named else v for k, v in chains.items()},
        },
    }


def parse(results: Json, folder: Path | None = None) -> Run:
    """Read a results object of any release so far.

    Parameters
    ----------
    results : the object that results.json holds.
    folder : the run folder, for the exhibits.

    Raises
    ------
    FolderError : where the schema is a newer release's.
    """
    results = _references_as_truths(migrate(results, str(folder / "results.json") if folder else "results"))
    summary = mapping(results.get("summary"))
    contrasts = [read_diff(c) for c in items(results.get("contrasts"))]
    return Run(
        name=text(results.get("name")) or (folder.name if folder else "run"),
        specs=[mapping(s) for s in items(results.get("specs"))],
        spec_hashes=[text(h) for h in items(results.get("spec_hashes"))],
        versions=mapping(results.get("versions")),
        cells=[_cell(c) for c in items(results.get("cells"))],
        contrasts=[c for c in contrasts if c is not None],
        groups={k: _group(k, v) for k, v in mapping(summary.get("groups")).items()},
        chains={k: _chain(k, v) for k, v in mapping(summary.get("chains")).items()},
        folder=folder,
        doubts=[
            (
                text(f.get("chain")),
                "; ".join(filter(None, (f"{text(f.get('what'))}: {text(f.get('why'))}", text(f.get("fix"))))),
            )
            for f in map(mapping, items(summary.get("findings")))
            if f.get("code") in FIGURE_CODES or (f.get("code") == SHARED_PROMPTS and f.get("severity") == "warning")
        ],
        missing={k: [text(i) for i in items(v)] for k, v in mapping(results.get("partial")).items()},
    )


def read_run(folder: Path) -> Run:
    """Read a run folder's results.json. Raises FolderError: where there is none or it is no run's."""
    return parse(load_results(folder), folder)


def read_exhibit(run: Run, cell_id: str, kind: str) -> Json | None:
    """Read one cell's exhibit of this kind; None if missing or unreadable."""
    if run.folder is None or not cell_id or "\0" in cell_id:
        return None
    try:
        home = (run.folder / "exhibits").resolve()
        path = (home / f"{cell_id}.json").resolve()
        if not path.is_relative_to(home) or not path.is_file():
            return None
        raw = read_plain(path, MAX_EXHIBIT_BYTES)
        exhibit = mapping(json.loads(raw, parse_constant=lambda _: None) if len(raw) <= MAX_EXHIBIT_BYTES else None)
    except (OSError, ValueError, RuntimeError):  # RuntimeError: links that lead in a circle, JSON nested too deeply
        return None
    return exhibit if exhibit.get("kind") == kind and exhibit.get("version") == 1 else None


def exhibits(run: Run, group: Group | None, *kinds: str) -> Iterator[Json]:
    """Iterate over a group's exhibits of these kinds, from its first few seeds."""
    cells = [] if group is None else [c for c in run.cells if c.group == group.id and c.ok]
    for cell in sorted(cells, key=lambda c: (c.seed is not None, c.seed))[:_SEEDS_TRIED]:
        for kind in kinds:
            if (found := read_exhibit(run, cell.id, kind)) is not None:
                yield found
