"""The picture's part of the page, from exhibits made up here."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import report_synthetic as synthetic
from markupsafe import Markup
from matplotlib.figure import Figure

from hydrometer.report import build_report
from hydrometer.report.figures.grid_views import FigureView
from hydrometer.report.figures.picture_figure import Picture, picture_data, picture_figure, picture_view
from hydrometer.report.figures.style import inline_svg, render
from hydrometer.report.read_results import read_run

N = 40
HOSTILE = "<script>alert(1)</script><img src=x> \u202eabc \x07 {{ 7*7 }} \ud800"


def exhibit(run: dict[str, Any], words: str = "Winter is white.", **changes: Any) -> dict[str, Any]:
    rng = np.random.default_rng(0)
    models = []
    for cell in run["cells"]:
        if cell["seed"] in (None, 0):
            x, y = rng.normal(size=(2, N)).round(3).tolist()
            figures = {"spread_ratio": {"value": 0.7123, "se": 0.0412}, "mixing": {"value": 0.391, "se": 0.031}}
            own = {} if cell["role"] == "truth" else figures
            models.append({"cell": cell["id"], "x": x, "y": y, "words": [words] * N, **own})
    body = {
        "kind": "picture", "version": 1, "status": "ok", "method": "umap", "rows": N, "dimensions": 576,
        "prompts": 4, "within_prompts": True, "explained": None, "models": models,
    }  # fmt: skip
    return body | changes


def folder_of(path: Path, run: dict[str, Any], body: dict[str, Any]) -> Path:
    return synthetic.write(path, run, {"smollm2.picture": body})


def data(path: Path, run: dict[str, Any], body: dict[str, Any]) -> Picture | str | None:
    read = read_run(folder_of(path, run, body))
    return picture_data(read, read.chains["smollm2"])


def views(path: Path, run: dict[str, Any], body: dict[str, Any]) -> list[FigureView]:
    """The figure alone, without the rest of a page."""
    read = read_run(folder_of(path, run, body))

    def panel(figure: Figure, label: str) -> Markup:
        return Markup(inline_svg(figure, "p-1", label))

    return picture_view(read, read.chains["smollm2"], "smollm2", lambda name, figure: None, panel)


def test_columns_pair_the_distilled_with_the_decoded(tmp_path: Path) -> None:
    run = synthetic.results(seeds=1, mixture=False)
    found = data(tmp_path, run, exhibit(run))
    assert isinstance(found, Picture)
    assert [[c.title if c else None for c in column] for column in found.columns] == [
        ["truth p*", "teacher"],
        ["distilled at τ=1", "direct student"],
        ["distilled at τ=0.8", "direct, decoded at τ=0.8"],
        ["distilled at τ=0.6", "direct, decoded at τ=0.6"],
    ]
    assert found.columns[3][0] is not None
    assert found.columns[3][0].spread == (0.7123, 0.0412)
    assert found.truth.spread is None
    for cloud in (c for column in found.columns for c in column if c):
        low, high = found.limits.T
        assert (cloud.xy > low).all()
        assert (cloud.xy < high).all()
    assert render(picture_figure(found), "svg") == render(picture_figure(found), "svg")


def test_without_a_neutral_setting_the_direct_student_has_a_column(tmp_path: Path) -> None:
    run = synthetic.results(seeds=1, mixture=False)
    gone = [k for k in run["summary"]["groups"] if "/distilled1" in k]
    for k in gone:
        del run["summary"]["groups"][k]
    run["cells"] = [c for c in run["cells"] if c["group"] not in gone]
    run["summary"]["chains"]["smollm2"]["neutral_group"] = None
    found = data(tmp_path, run, exhibit(run))
    assert isinstance(found, Picture)
    assert [c.title if c else None for c in found.columns[1]] == [None, "direct student"]
    picture_figure(found)


def test_every_point_tells_its_words_and_hostile_ones_are_inert(tmp_path: Path) -> None:
    run = synthetic.results(seeds=1, mixture=False)
    page = build_report([folder_of(tmp_path, run, exhibit(run, HOSTILE))]).read_text()
    titles = re.findall(r"<use [^>]*><title>(.*?)</title></use>", page, re.DOTALL)
    assert len(titles) == 8 * N
    assert set(titles) == {titles[0]}
    assert "&lt;script&gt;" in titles[0]
    assert "<script" not in page
    assert "<img" not in page
    assert "\u202e" not in page
    assert "spread 0.712 ± 0.041" in page
    assert "UMAP keeps who is next to whom" in page
    assert "prompt from their mean" in page


def test_principal_components_say_what_they_hold(tmp_path: Path) -> None:
    run = synthetic.results(seeds=1, mixture=False)
    body = exhibit(run, method="pca", explained=[0.214, 0.108], within_prompts=False)
    (view,) = views(tmp_path, run, body)
    assert "which hold 21 % and 11 % of the variance" in view.caption
    assert "UMAP" not in view.caption
    assert "answers from their mean" in view.caption
    assert len(view.panels) == 4


@pytest.mark.parametrize(
    "change",
    [
        {"models": []},
        {"models": "no"},
        {"models": [{"cell": "nobody", "x": [1], "y": [1]}]},
        {"version": 2},
    ],
)
def test_what_cannot_be_drawn_is_left_out(tmp_path: Path, change: dict[str, Any]) -> None:
    run = synthetic.results(seeds=1, mixture=False)
    assert data(tmp_path, run, exhibit(run, **change)) is None
    assert views(tmp_path, run, exhibit(run, **change)) == []


def test_points_without_coordinates_are_dropped_with_their_words(tmp_path: Path) -> None:
    run = synthetic.results(seeds=1, mixture=False)
    body = exhibit(run)
    for model in body["models"]:
        model["x"][3], model["y"][5], model["x"][7] = "inf", None, 1e300
        model["words"] = [str(i) for i in range(N - 2)]
    found = data(tmp_path, run, body)
    assert isinstance(found, Picture)
    kept = [i for i in range(N) if i not in (3, 5, 7)]
    assert found.truth.words == [str(i) if i < N - 2 else "" for i in kept]
    assert len(found.truth.xy) == N - 3
