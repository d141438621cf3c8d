"""A run in a notebook: its tables, its charts, and how it shows itself."""

from __future__ import annotations

import json
import math
import re
import sys
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
import pytest
import report_synthetic as synthetic
from matplotlib.collections import LineCollection
from matplotlib.figure import Figure

import hydrometer as hm
from hydrometer.report.finished import Results

SETTINGS = ["seeds=3", "chains.markov.data.evaluate=300", "chains.markov.selectivity=[{temperature: 1}, "
            "{temperature: 0.5}, {temperature: 0.8, top_k: 2}]"]  # fmt: skip


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> hm.RunResult:
    return hm.run("markov", out=tmp_path_factory.mktemp("markov") / "run", overrides=SETTINGS)


@pytest.fixture
def demo_run(demo: Path) -> hm.RunResult:
    return hm.load_run(demo.parent)


def figures_of(row: Any, metrics: dict[str, Any]) -> None:
    """A row holds these figures of results.json, to the last bit."""
    assert metrics
    for name, m in metrics.items():
        if m["value"] is None:
            assert m["n_neg_inf"] > 0
            assert row[name] == (math.inf if name.startswith("kl_") else -math.inf), name
        else:
            assert row[name] == m["value"]
        for column, value in zip(("_se", "_lower", "_upper"), (m["se"], *(m["ci95"] or (None, None))), strict=True):
            assert row[name + column] == value or (value is None and math.isnan(row[name + column]))


def settings_of(row: Any, cell: dict[str, Any], before: str = "") -> None:
    """A row holds these settings as numbers: what one leaves out is neutral, and null where there is none."""
    for name, start in (("selectivity", before), ("decoding", before + "decoding_")):
        for key, neutral in (("temperature", 1.0), ("top_k", None)):
            wanted = None if cell[name] is None else cell[name].get(key, neutral)
            found = row[start + key]
            assert math.isnan(found) if wanted is None else found == wanted, (cell["id"], start + key)


def test_groups_and_cells_hold_the_figures_and_settings_of_the_results(run: hm.RunResult) -> None:
    by_group = {c["group"]: c for c in run.results["cells"]}
    groups = run.to_frame().set_index("group")
    assert [*groups.index] == [*run.results["summary"]["groups"]]
    for name, group in run.results["summary"]["groups"].items():
        figures_of(groups.loc[name], group["metrics"])
        settings_of(groups.loc[name], by_group[name])
        assert groups.seeds[name] == group["seeds"] == 3
    cells = run.to_frame("cells").set_index("id")
    assert np.isneginf(cells.recall).any()  # of models that drop tokens
    for cell in run.results["cells"]:
        figures_of(cells.loc[cell["id"]], cell["metrics"])
        settings_of(cells.loc[cell["id"]], cell)
        assert cells.seed[cell["id"]] == cell["seed"]
        facts = ("chain", "role", "training", "loss", "prefix_source")
        assert [cells[f][cell["id"]] for f in facts if cell[f] is not None] == [cell[f] for f in facts if cell[f]]


def test_contrasts_are_differences_of_the_groups_that_they_name(run: hm.RunResult) -> None:
    contrasts, groups = run.to_frame("contrasts"), run.to_frame().set_index("group")
    by_group = {c["group"]: c for c in run.results["cells"]}
    assert len(contrasts) == len(run.results["contrasts"]) > 50
    for (_, row), c in zip(contrasts.iterrows(), run.results["contrasts"], strict=True):
        assert [row.a, row.b, row.metric] == [c["a"], c["b"], c["metric"]]
        for end in ("a", "b"):
            settings_of(row, by_group[row[end]], f"{end}_")
            assert row[f"{end}_role"] == by_group[row[end]]["role"]
        if c["value"] is not None and c["metric"] in ("precision", "recall", "entropy"):
            assert row.value_lower <= row.value <= row.value_upper
            assert row.value == pytest.approx(groups[c["metric"]][c["a"]] - groups[c["metric"]][c["b"]], abs=1e-9)


def test_a_table_needs_no_pandas_and_a_frame_says_so(run: hm.RunResult, monkeypatch: pytest.MonkeyPatch) -> None:
    frame = run.to_frame()
    monkeypatch.setitem(sys.modules, "pandas", None)
    assert run.to_table().column("precision").to_pylist() == frame.precision.tolist()
    with pytest.raises(hm.MissingDependencyError, match=r"^a data frame needs pandas; .*to_table\(\)$"):
        run.to_frame()
    with pytest.raises(hm.InputError, match='"groups", "cells" or "contrasts"; got \'rows\''):
        run.to_table("rows")  # type: ignore[arg-type]


def test_points_of_a_map_and_failed_cells_have_columns() -> None:
    results = synthetic.map_results({"student": [1.0, 2.0], "teacher": [4.0]}, seeds=2)
    table = Results(Path("map"), results).to_table()
    assert set(table.column("point_student").to_pylist()) == {1.0, 2.0}
    assert math.inf in table.column("weight_power").to_pylist()
    results = synthetic.results(seeds=1, mixture=False)
    results["cells"][-1] |= {"status": "failed", "reason": "out of memory", "metrics": {}}
    row = Results(Path("run"), results).to_table("cells").to_pylist()[-1]
    assert [row["status"], row["reason"], row["precision"]] == ["failed", "out of memory", None]
    assert Results(Path("run"), results).failed_cells == [results["cells"][-1]["id"]]


def test_an_opened_run_is_the_run(run: hm.RunResult) -> None:
    again = hm.load_run(run.folder)
    assert (again.folder, again.results) == (run.folder, run.results)
    assert not again.outcome.computed
    with pytest.raises(hm.FolderError, match=r"no results\.json"):
        hm.load_run(Path(str(run.folder)) / "artifacts")


def test_the_plane_on_given_axes_has_the_frames_intervals_as_bars(run: hm.RunResult) -> None:
    figure = Figure()
    other, ax = figure.subplots(1, 2)
    before = dict(mpl.rcParams)
    assert run.plot_plane(ax=ax) is ax
    assert dict(mpl.rcParams) == before
    assert not other.has_data()
    bars = [s for c in ax.collections if isinstance(c, LineCollection) for s in c.get_segments()]
    frame = run.to_frame()
    students = frame[(frame.training == "distilled") & frame.decoding_temperature.isna()]
    assert len(students) == 3
    for _, s in students.iterrows():
        for wanted in ([[s.recall_lower, s.precision], [s.recall_upper, s.precision]],
                       [[s.recall, s.precision_lower], [s.recall, s.precision_upper]]):  # fmt: skip
            assert any(np.allclose(bar, wanted) for bar in bars), s.group


@pytest.mark.parametrize("chain", ["smollm2", "mixture"])
def test_every_chart_is_drawn_on_given_axes(demo_run: hm.RunResult, chain: str) -> None:
    names = demo_run.charts(chain)
    parts = {
        f"{m} by {a}" for m in ("precision", "entropy", "kl_student_truth", "recall") for a in ("setting", "entropy")
    }
    assert {"plane", "entropy plane", *parts} <= set(names)
    assert ("density: truth p*" in names) == (chain == "mixture")
    for name in names:
        ax = Figure().subplots()
        assert demo_run.plot(name, ax, chain=chain).has_data(), name


def test_maps_are_drawn_panel_by_panel() -> None:
    results = synthetic.map_results({"student": [1.0, 2.0], "teacher": [2.0, 4.0], "separation": [3.0, 5.0]})
    run = Results(Path("map"), results)
    maps = [name for name in run.charts() if name.startswith("map: recall at K")]
    assert len(maps) == 4
    ax = run.plot(maps[0], Figure().subplots())
    assert ax.get_title(loc="left") == maps[0].removeprefix("map: ")
    assert [t.get_text() for t in ax.get_yticklabels()] == ["1", "2"]


def test_an_unknown_chart_or_chain_is_refused_with_what_there_is(demo_run: hm.RunResult) -> None:
    with pytest.raises(hm.InputError, match=r"no such chart.*did you mean 'plane'\?"):
        demo_run.plot("plan", chain="mixture")
    with pytest.raises(hm.InputError, match=r"no such chain.*did you mean 'mixture'\?"):
        demo_run.charts("mixtur")
    with pytest.raises(hm.InputError, match=r"name the chain to draw; got \['mixture', 'smollm2'\]"):
        demo_run.plot_plane()


class Page(HTMLParser):
    """Tags, styles, and the text of table rows."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: set[str] = set()
        self.attributes: set[str] = set()
        self.styles: set[str] = set()
        self.rows: list[list[str]] = []
        self.words = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self.attributes |= {name for name, _ in attrs}
        self.styles |= {value or "" for _, value in attrs}
        if tag == "tr":
            self.rows.append([])
        if tag in ("td", "th"):
            self.rows[-1].append("")
        if tag == "br":
            self.rows[-1][-1] += "\n"

    def handle_data(self, data: str) -> None:
        self.words += data
        if self.rows and self.rows[-1]:
            self.rows[-1][-1] += data


def number(words: str) -> float:
    return float(words.replace("−", "-"))


def test_the_table_shows_the_frames_figures_with_their_intervals(run: hm.RunResult) -> None:
    page = Page(run._repr_html_())
    head, *rows = page.rows
    assert head == ["model", "precision", "recall", "H(q)", "KL(q‖p*)", "KL(p*‖q)", "seeds"]
    frame = run.to_frame()
    assert len(rows) == len(frame)
    for row in rows:
        value, ends = row[1].split("\n")[:2]
        mean, se = (number(x) for x in value.split(" ± "))
        low, high = (number(x) for x in ends.split("…"))
        step = 0.5 * 10.0 ** -len(value.split(" ± ")[0].partition(".")[2]) * 1.001
        near = (frame.precision - mean).abs() <= step
        near &= ((frame.precision_se - se).abs() <= step) & ((frame.precision_lower - low).abs() <= step)
        near &= (frame.precision_upper - high).abs() <= step
        assert near.any(), row
        assert low < mean < high
    assert "gate" in page.words
    assert Page(hm.load_run(run.folder)._repr_html_()).rows == page.rows


SCRIPT = "<script>alert(1)</script>"


def safe(page: Page) -> None:
    """Nothing but plain markup that takes its colours from around it."""
    assert page.tags <= {"div", "table", "thead", "tbody", "tr", "th", "td", "br", "span"}
    assert page.attributes <= {"style"}
    for style in page.styles:
        assert not re.search(r"#|url|rgb|color:(?!inherit)|background:(?!none)", style)


def test_names_and_texts_from_elsewhere_are_escaped() -> None:
    text = json.dumps(synthetic.results(seeds=1, mixture=False)).replace("smollm2", SCRIPT)
    page = Page(Results(Path(f"runs/{SCRIPT}"), json.loads(text))._repr_html_())
    safe(page)
    assert SCRIPT in page.words
    advice = hm.Advice("undecided", None, None, SCRIPT, None, {"runs": [{"name": SCRIPT}], "per": SCRIPT})
    page = Page(advice._repr_html_())
    safe(page)
    assert SCRIPT in page.words
    page = Page(hm.Figures({SCRIPT: hm.Estimate(1.0, 0.5, 0.5, 10, unit=SCRIPT)})._repr_html_())
    safe(page)
    assert page.words.count(SCRIPT) == 2


def test_results_show_themselves_in_a_line(run: hm.RunResult, tmp_path: Path) -> None:
    assert len(json.dumps(run.results)) > 500_000
    assert repr(run) == f"<RunResult name=markov chains=markov cells=36 failed=0 folder={run.folder}>"
    drawn = hm.run("markov", out=tmp_path / "drawn", overrides=SETTINGS, until="draw")
    assert len(repr(drawn)) < 300
    assert "no chains" in drawn._repr_html_()
    advice = hm.advise(run.folder, fresh=False)
    assert len(repr(advice)) < 400
    page = Page(advice._repr_html_())
    assert len(page.rows) == 1 + len(advice.data["candidates"])
    safe(page)
    many = {**run.results, "cells": [c for c in run.results["cells"] for _ in range(1000)]}
    assert len(repr(Results(Path("x" * 4000), many))) <= 300


def test_a_judged_table_has_intervals() -> None:
    results = synthetic.results(seeds=1, mixture=False)
    results["summary"]["chains"]["smollm2"]["judged"] = {"prompts": 4}
    head, _, *rows = Page(Results(Path("judge"), results)._repr_html_()).rows
    assert head[1] == "precision"
    direct = results["summary"]["groups"]["smollm2/direct"]["metrics"]["precision"]
    shown = next(r[1] for r in rows if r[1].startswith("−174.7 ± 4.2"))
    assert [number(x) for x in shown.split("\n")[1].split("…")] == [round(x, 1) for x in direct["ci95"]]
