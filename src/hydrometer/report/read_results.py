"""results.json and exhibits, read into typed records; whatever is optional and absent becomes None or empty.

A number in these files is a JSON number, null, or the string "inf" or "-inf". Everything else in them, names and texts
above all, is material from elsewhere and is escaped where it is shown.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from hydrometer.core.errors import FolderError
from hydrometer.core.findings import FIGURE_CODES, SHARED_PROMPTS
from hydrometer.core.io.yaml_io import is_array, is_object, read_plain
from hydrometer.report.typed_results import (
    Brought,
    Cell,
    Chain,
    Control,
    Diff,
    Figure,
    Gap,
    Gate,
    Group,
    OnBoth,
    Run,
    Step,
)
from hydrometer.report.values import (
    Json,
    count,
    finite,
    in_order,
    items,
    mapping,
    number,
    read_interval,
    read_method,
    read_point,
    read_setting,
    text,
    unit,
)
from hydrometer.store.migrate import migrate

__all__ = ["exhibits", "parse", "read_exhibit", "read_run"]

MAX_RESULTS_BYTES = 1_000_000_000
_SEEDS_TRIED = 5
MAX_EXHIBIT_BYTES = 64_000_000


def _diff(value: object) -> Diff | None:
    d = mapping(value)
    if not d:
        return None
    return Diff(
        text(d.get("a")),
        text(d.get("b")),
        text(d.get("metric")),
        finite(d.get("value")),
        finite(d.get("se")),
        number(d.get("df")),
        read_interval(d.get("ci95")),
        text(d.get("pairing")),
    )


def _diffs(value: object) -> dict[str, Diff]:
    return {k: d for k, v in mapping(value).items() if (d := _diff(v)) is not None}


def _figure(value: object) -> Figure:
    m = mapping(value)
    return Figure(
        finite(m.get("value")),
        finite(m.get("se")),
        read_interval(m.get("ci95")),
        unit(m.get("unit")),
        count(m.get("n_neg_inf")),
        finite(m.get("median")),
        read_interval([m.get("q25"), m.get("q75")]),
        m.get("two_peaks") is True,
        m.get("few_seeds") is True,
    )


def _group(name: str, value: object) -> Group:
    g = mapping(value)
    metrics = {k: _figure(v) for k, v in mapping(g.get("metrics")).items()}
    return Group(
        name,
        text(g.get("chain")),
        text(g.get("role")),
        count(g.get("level")),
        text(g.get("training")) or None,
        read_setting(g.get("selectivity")),
        read_setting(g.get("decoding")),
        count(g.get("seeds")),
        count(g.get("failed")),
        metrics,
        read_point(g.get("point")),
        text(g.get("absent")),
        text(g.get("model")),
        text(g.get("adopted")),
        finite(g.get("unseen")),
        read_method(g),
        text(g.get("baseline")),
    )


def _cell(value: object) -> Cell:
    c = mapping(value)
    seed = finite(c.get("seed"))
    values = {k: finite(mapping(m).get("value")) for k, m in mapping(c.get("metrics")).items()}
    return Cell(
        text(c.get("id")),
        text(c.get("group")),
        text(c.get("chain")),
        None if seed is None else int(seed),
        c.get("status") == "ok",
        text(c.get("reason")),
        values,
        number(c.get("seconds")) or 0.0,
        text(c.get("name")),
    )


def _control(value: object) -> Control:
    c = mapping(value)
    matched = mapping(c.get("matched_entropy"))
    return Control(
        read_setting(c.get("selectivity")) or {},
        text(c.get("distilled")),
        text(c.get("decoded")),
        _diffs(c.get("same_setting")),
        _diffs(matched) if matched else None,
        finite(matched.get("entropy")),
        text(c.get("matched_reason")),
        read_method(c),
    )


def _step(value: object) -> Step:
    s = mapping(value)
    return Step(
        read_setting(s.get("selectivity")) or {},
        text(s.get("group")),
        s.get("coldest") is True,
        _diffs(s.get("vs_neutral")),
        _diffs(s.get("vs_direct")),
        read_method(s),
        {k: _diffs(v) for k, v in mapping(s.get("vs_methods")).items()},
    )


def _brought(value: object) -> Brought:
    b = mapping(value)
    keys = [k for k in b if k.startswith("vs_") or k == "same_setting"]
    return Brought(
        text(b.get("group")),
        text(b.get("name")),
        text(b.get("training")),
        read_setting(b.get("selectivity")),
        {k: _diffs(b.get(k)) for k in keys},
        read_method(b),
    )


def _gap(value: object) -> Gap:
    g = mapping(value)
    figures: dict[str, OnBoth] = {}
    for metric, found in mapping(g.get("figures")).items():
        m = mapping(found)
        if (gap := _diff(m.get("gap"))) is not None:
            figures[metric] = OnBoth(finite(m.get("held_out")), finite(m.get("training_prompts")), gap)
    return Gap(text(g.get("group")), figures, _diffs(g.get("vs_direct")))


def _chain(name: str, value: object) -> Chain:
    c = mapping(value)
    gate, grid = mapping(c.get("gate")), mapping(c.get("map"))
    steps = [_step(s) for s in items(c.get("tradeoff"))]
    order = in_order([s.selectivity for s in steps])
    passed = gate.get("passed")
    return Chain(
        name=name,
        family=text(c.get("family")),
        truth=text(c.get("truth")),
        kind=text(c.get("kind"), "sequences"),
        unit=unit(c.get("unit")),
        seeds=count(c.get("seeds")),
        truth_group=text(c.get("truth_group")) or None,
        teacher_group=text(c.get("teacher_group")) or None,
        direct_group=text(c.get("direct_group")) or None,
        neutral_group=text(c.get("neutral_group")) or None,
        gate=Gate(passed if isinstance(passed, bool) else None, _diff(gate.get("contrast")), text(gate.get("reason"))),
        tradeoff=sorted(steps, key=lambda s: order.index(s.selectivity)),
        control=[_control(s) for s in items(c.get("control"))],
        as_released=[mapping(r) for r in items(c.get("as_released"))],
        point=read_point(c.get("point")),
        axes={k: [n for v in items(a) if (n := number(v)) is not None] for k, a in mapping(grid.get("axes")).items()},
        adopted=[_brought(b) for b in items(c.get("adopted"))],
        gaps=[_gap(g) for g in items(c.get("generalisation"))],
        baselines=[_brought(b) for b in items(c.get("baselines"))],
        points=[_chain(name, {**mapping(p), "map": None}) for p in items(grid.get("points"))],
        advice=mapping(c.get("advice")),
        judged=mapping(c.get("judged")),
        reference=text(c.get("reference")),
        crossed=[mapping(r) for r in items(c.get("crossed"))],
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
    contrasts = [_diff(c) for c in items(results.get("contrasts"))]
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


def _load(path: Path, limit: int) -> Json:
    raw = read_plain(path, limit)
    if len(raw) > limit:
        raise ValueError(f"larger than {limit} bytes")
    value: object = json.loads(raw, parse_constant=lambda _: None)
    if not is_object(value):
        raise ValueError("not a JSON object")
    return value


def read_run(folder: Path) -> Run:
    """Read a run folder's results.json. Raises FolderError: where there is none or it is no JSON object."""
    path = folder / "results.json"
    try:
        results = _load(path, MAX_RESULTS_BYTES)
    except FileNotFoundError:
        raise FolderError(
            "no results.json in this folder", got=str(folder), fix="give the folder of a finished run"
        ) from None
    except (OSError, ValueError, RecursionError) as error:
        raise FolderError(f"results.json cannot be read: {error}", got=str(path), fix="run the recipe again") from None
    return parse(results, folder)


def read_exhibit(run: Run, cell_id: str, kind: str) -> Json | None:
    """Read one cell's exhibit of this kind; None if missing or unreadable."""
    if run.folder is None or not cell_id or "\0" in cell_id:
        return None
    try:
        home = (run.folder / "exhibits").resolve()
        path = (home / f"{cell_id}.json").resolve()
        if not path.is_relative_to(home) or not path.is_file():
            return None
        exhibit = _load(path, MAX_EXHIBIT_BYTES)
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
