"""The frontier figure, from made-up exhibits; and collapse in words."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import report_synthetic as synthetic

from hydrometer.report.figures.frontier_figure import caption, frontier_data, frontier_figure, frontier_panels
from hydrometer.report.figures.style import render
from hydrometer.report.read_results import read_run
from hydrometer.report.typed_results import Run
from hydrometer.report.words.verdict import verdict

Json = dict[str, Any]


def prd(overlap: float, se: float = 0.01) -> Json:
    """The frontier of a student that shares this much with the truth: beta falls as alpha rises."""
    slopes = np.tan(np.pi / 2 * np.arange(1, 10) / 10)
    alpha = np.minimum(overlap * slopes, overlap)
    return {"prd": {"slope": slopes.tolist(), "alpha": alpha.tolist(), "beta": (alpha / slopes).tolist(),
                    "alpha_se": [se] * 9, "beta_se": [se] * 9}}  # fmt: skip


def with_curves(folder: Path, *, sequences: bool, damage: str = "") -> Run:
    chain = "smollm2" if sequences else "mixture"
    run = synthetic.results(seeds=2, mixture=not sequences, mixture_seeds=2)
    for group in run["summary"]["groups"].values():
        group["metrics"]["typicality_50"] = synthetic.metric(0.6, 0.02, unit="probability")
        group["metrics"]["typicality_90"] = synthetic.metric(0.95, 0.01, unit="probability")
        if sequences:
            for m, value in ((1, 0.1), (2, 0.2), (16, 0.7)):
                group["metrics"][f"total_variation_first_{m}"] = synthetic.metric(value, 0.01, unit="probability")
    exhibits: dict[str, Json] = {}
    for i, cell in enumerate(c for c in run["cells"] if c["chain"] == chain and c["seed"] == 0):
        overlap = 0.9 - 0.02 * i
        first = {"1": prd(0.99), "2": prd(overlap), "16": prd(0.1)} if sequences else {}
        kind: Json = {"kind": "texts", "version": 1, "rows": []} if sequences else {"kind": "curves", "version": 1}
        whole: Json = prd(0.01 if sequences else overlap)
        if damage == "lengths":
            whole["prd"]["alpha"] = [0.5]
        elif damage == "numbers":
            whole["prd"]["alpha"][0] = "nonsense"
        elif damage == "shape":
            whole = {"prd": "no"}
        exhibits[cell["id"]] = {**kind, "curves": {"n": 100, "whole": whole, "first": first}}
    return read_run(synthetic.write(folder, run, exhibits))


def test_points_have_frontiers_of_whole_rows_with_bands(tmp_path: Path) -> None:
    run = with_curves(tmp_path / "run", sequences=False)
    data = frontier_data(run, run.chains["mixture"])
    assert data is not None
    assert data.tokens is None
    assert [x.label for x in data.lines] == ["direct", "β=1", "β=3", "β=10", "β=30", "β=100", "β=∞"]
    assert data.lines[0].alpha_half == pytest.approx(np.full(9, 1.96 * 0.01))
    assert data.overlap == []
    at_50 = {t.kind: t.points for t in data.typicality[50]}
    assert len(at_50["distilled"]) == 6
    assert at_50["distilled"][0][1:] == (0.6, *2 * (pytest.approx(1.96 * 0.02),))
    assert "first seed" in caption(data).lower()
    assert "tokens" not in caption(data)


def test_sequences_have_frontiers_of_prefixes_and_overlap_by_length(tmp_path: Path) -> None:
    run = with_curves(tmp_path / "run", sequences=True)
    data = frontier_data(run, run.chains["smollm2"])
    assert data is not None
    assert data.tokens == 2  # the longest prefix of at most four tokens
    assert data.lines[0].alpha.max() > 0.5
    assert [p[0] for p in data.overlap[0].points] == [1, 2, 16]
    assert [p[1] for p in data.overlap[0].points] == pytest.approx([0.9, 0.8, 0.3])
    assert "first 2 tokens" in caption(data)
    assert len(frontier_panels(data)) == 4
    figure = frontier_figure(data)
    assert render(figure, "svg") == render(frontier_figure(data), "svg")


@pytest.mark.parametrize("damage", ["lengths", "numbers", "shape"])
def test_damaged_curves_are_left_out(damage: str, tmp_path: Path) -> None:
    run = with_curves(tmp_path / "run", sequences=False, damage=damage)
    data = frontier_data(run, run.chains["mixture"])
    assert data is not None
    assert data.lines == []
    assert len(frontier_panels(data)) == 2  # typicality alone


def test_a_run_without_any_has_no_figure() -> None:
    from hydrometer.report.read_results import parse

    run = parse(synthetic.results(seeds=1, mixture=False))
    assert frontier_data(run, run.chains["smollm2"]) is None


def test_collapsed_students_are_named_with_their_share_of_seeds() -> None:
    results = synthetic.results(seeds=4)
    groups = results["summary"]["groups"]
    for group in groups.values():
        group["metrics"]["collapsed"] = synthetic.metric(0.0, 0.0, unit="flag")
    assert not [s for said in verdict(results).values() for s in said if "ollapsed" in s]
    groups["smollm2/distilled0.6"]["metrics"]["collapsed"] = synthetic.metric(0.25, 0.1, unit="flag")
    groups["smollm2/teacher"]["metrics"]["collapsed"] = synthetic.metric(1.0, 0.0, unit="flag")
    groups["mixture/distilled-100"]["metrics"]["collapsed"] = synthetic.metric(1.0, 0.0, unit="flag")
    said = verdict(results)
    (lm,) = [s for s in said["smollm2"] if "ollapsed" in s]
    (mixture,) = [s for s in said["mixture"] if "ollapsed" in s]
    assert "distilled at temperature 0.6 (25% of its seeds)" in lm
    assert "half of the truth’s entropy" in lm
    assert "distilled at β = 100." in mixture
    assert "twentieth of the volume" in mixture
