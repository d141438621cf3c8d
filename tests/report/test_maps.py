from __future__ import annotations

import base64
import copy
import hashlib
import io
import json
import math
import re
from pathlib import Path
from typing import Any

import pytest
import report_synthetic as synthetic
from rich.console import Console

from hydrometer.report import build_report, summary_table, verdict
from hydrometer.report.data.capacity_gap import correlation, gap_points, spearman, teacher_at
from hydrometer.report.data.grid_data import Sheet, Tile, counted, largest, places, sheets, spread
from hydrometer.report.figures import grid_tiles
from hydrometer.report.figures.explore import explorer
from hydrometer.report.read_results import parse
from hydrometer.report.tables.model_tables import group_table, map_table, setting_table

AXES = {"separation": [2.0, 5.0, 8.0], "teacher": [2.0, 4.0], "student": [1.0, 2.0]}


@pytest.fixture
def results() -> dict[str, Any]:
    return synthetic.map_results()


def sheet_of(results: dict[str, Any], title: str) -> Sheet:
    run = parse(results)
    return next(s for s in sheets(run, run.chains["world"]) if s.title == title)


def said(results: dict[str, Any]) -> list[str]:
    return verdict(results)["world"]


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = synthetic.map_results()
    return build_report([synthetic.write(tmp_path_factory.mktemp("map") / "run", run, synthetic.map_exhibits(run))])


def test_tiles_are_the_contrasts_of_their_point_and_setting(results: dict[str, Any]) -> None:
    sheet = sheet_of(results, "precision")
    assert [a.key for a in (sheet.x, sheet.y, sheet.columns, sheet.rows)] == ["setting", "student", "teacher", ""]
    assert sheet.x.labels == ["1", "10", "∞"]
    for c, teacher in enumerate(sheet.columns.values):
        for j, student in enumerate(sheet.y.values):
            wanted = {"teacher": teacher, "student": student}
            points = results["summary"]["chains"]["world"]["map"]["points"]
            point = next(p for p in points if p["point"] == wanted)
            for i, step in enumerate(point["tradeoff"]):
                assert sheet.panels[0][c][j][i].value == step["vs_direct"]["precision"]["value"]
    assert sheet.panels[0][0][0][2].value == pytest.approx(2.4)
    assert sheet.panels[0][0][0][2].state == "decided"
    assert sheet.panels[0][0][0][0] == Tile(0.0, "open")


def test_a_tile_is_decided_by_its_interval_alone(results: dict[str, Any]) -> None:
    point = results["summary"]["chains"]["world"]["map"]["points"][0]
    point["tradeoff"][2]["vs_direct"]["precision"]["ci95"] = [-0.1, 5.0]
    assert sheet_of(results, "precision").panels[0][0][0][2].state == "open"


def test_four_axes_put_the_longer_one_across() -> None:
    sheet = sheet_of(synthetic.map_results(AXES), "recall")
    assert [a.key for a in (sheet.x, sheet.y, sheet.columns, sheet.rows)] == [
        "setting", "student", "separation", "teacher",
    ]  # fmt: skip
    assert (len(sheet.panels), len(sheet.panels[0])) == (2, 3)
    assert counted(sheet.tiles) == {"up": 0, "down": 24, "open": 12, "none": 0}


def test_what_cannot_be_matched_says_why(results: dict[str, Any]) -> None:
    fit = sheet_of(results, "−KL(q‖p*) at equal entropy")
    one, two = fit.panels[0][0]
    assert [t.reason for t in one] == ["nothing is sharpened", "nothing to decode", "nothing to decode"]
    assert [t.reason for t in two] == ["nothing is sharpened", "", "no bracket"]
    assert two[1].value == pytest.approx(-0.3)
    assert two[1].state == "open"
    assert sheet_of(results, "recall at equal entropy").panels[0][0][1][1] == Tile(-0.5, "decided")


def test_infinite_and_missing_figures_are_no_tiles(results: dict[str, Any]) -> None:
    steps = results["summary"]["chains"]["world"]["map"]["points"][0]["tradeoff"]
    steps[1]["vs_direct"]["precision"]["value"] = None
    del steps[2]["vs_direct"]["precision"]
    states = [t.reason for t in sheet_of(results, "precision").panels[0][0][0]]
    assert states == ["", "infinite on one side", "not compared"]


def test_pictures_follow_the_tiles(results: dict[str, Any]) -> None:
    sheet = sheet_of(results, "precision")
    scale = (spread([sheet]), largest([sheet]))
    figure = grid_tiles.column_figure(sheet, 0, scale)
    words = [t.get_text() for t in figure.axes[0].texts]
    assert words == ["0", "+1.2", "+2.4", "0", "+0.80", "+1.6"]
    faces = [p.get_alpha() for p in figure.axes[0].patches if p.get_alpha() not in (None, 0.85)]
    assert len(faces) == 4
    assert faces[1] == max(faces) == 1.0


@pytest.mark.parametrize(
    ("value", "words"), [(0.004, "0"), (-0.25, "−0.25"), (1.0, "+1.0"), (-12.34, "−12"), (9.97, "+10"), (195.2, "+195")]
)
def test_tile_numbers(value: float, words: str) -> None:
    assert grid_tiles.shown(value) == words


def test_verdict_counts_points_and_settings(results: dict[str, Any]) -> None:
    gate, trade, control, capacity, *caveats = said(results)
    assert gate.startswith("The teacher gate holds at 4 of 4 points and fails at 0, decided at 95 %; undecided at 0.")
    assert "raises precision at 8 of 8 points and settings and lowers it at 0" in trade
    assert "lowers recall at 8 of 8" in trade
    assert "Of the 8 gains in precision, 8 come with a decided loss of recall" in trade
    assert "The most is 2.40 nats per point" in trade
    assert "K′ = 2, K″ = 1, β = ∞" in trade
    assert "decoding the direct student at 2, decided at 95 %; undecided at 0. On KL(q‖p*)" in control
    assert "At 2 no two decoded settings bracket" in control
    assert "At 4 the direct student was not decoded" in control
    assert "is borne out in ranks" in capacity
    assert any("one in twenty" in c for c in caveats)


def test_without_a_gate_there_is_no_gate_sentence(results: dict[str, Any]) -> None:
    for point in results["summary"]["chains"]["world"]["map"]["points"]:
        point["gate"] = {"passed": None, "contrast": None}
    assert not any("gate" in s for s in said(results))


def test_spearman_by_hand() -> None:
    assert spearman([1, 2, 3, 4], [10, 30, 20, 40]) == pytest.approx(0.8)
    assert spearman([3, 2, 1], [1, 5, 9]) == -1.0
    assert spearman([1, 1, 2], [1, 2, 3]) == pytest.approx(math.sqrt(0.75))
    assert spearman([5, 5, 5], [1, 2, 3]) is None


def gains(results: dict[str, Any], per_point: list[list[float]]) -> dict[str, Any]:
    for point, values in zip(results["summary"]["chains"]["world"]["map"]["points"], per_point, strict=True):
        for step, value in zip(point["tradeoff"], values, strict=True):
            step["vs_direct"]["precision"] |= {"value": value, "ci95": [value - 0.1, value + 0.1]}
    return results


@pytest.mark.parametrize(
    ("per_point", "words"),
    [
        ([[0.0, 1.0, 2.0]] * 4, "is borne out in ranks"),
        ([[2.0, 1.0, 0.0]] * 4, "is contradicted"),
        ([[0.0, 1.0, 2.0]] * 2 + [[2.0, 1.0, 0.0]] * 2, "is undecided: across settings"),
        ([[1.0, 1.0, 1.0]] * 4, "cannot be tested here"),
    ],
)
def test_capacity_sentence_follows_the_data(results: dict[str, Any], per_point: list[list[float]], words: str) -> None:
    assert words in next(s for s in said(gains(results, per_point)) if "easier" in s)


def test_capacity_without_variation_is_said(results: dict[str, Any]) -> None:
    for group in results["summary"]["groups"].values():
        if "capacity_gap" in group["metrics"]:
            group["metrics"]["capacity_gap"]["value"] = 3.0
    assert "cannot be tested here: the capacity gap does not vary with the setting" in said(results)[3]


def test_correlation_is_averaged_over_points_within_each(results: dict[str, Any]) -> None:
    run = parse(gains(results, [[0.0, 1.0, 2.0]] * 3 + [[2.0, 0.0, 1.0]]))
    found = correlation(gap_points(run, run.chains["world"]))
    # -1, -1, -1 and +1/2: mean -5/8, standard error 3/8, Student's t of three degrees of freedom
    assert (found.value, found.n, found.negative, found.positive) == (-0.625, 4, 3, 1)
    assert found.ci95 is not None
    assert found.ci95[0] == -1.0
    assert found.ci95[1] == pytest.approx(-0.625 + 3.18244630528371 * 0.375)


def test_an_ordinary_chain_tells_its_gap_without_an_interval() -> None:
    results = synthetic.results(seeds=1, mixture_seeds=2)
    words = next(s for s in verdict(results)["mixture"] if "easier" in s)
    assert "its interval is over points, of which there is one, whatever the number of seeds" in words
    assert "−0.94 (one point)" in words  # precision dips once between beta 1 and 3: 1 - 6 * 2 / (6 * 35)
    assert not any("easier" in s for s in verdict(results)["smollm2"])
    run = parse(results)
    assert "capacity gap" in group_table(run, run.chains["mixture"], extra=True).head
    assert "capacity gap" not in group_table(run, run.chains["smollm2"], extra=True).head


def test_frames_cover_every_combination_once(page: Path) -> None:
    run = parse(json.loads((page.parent / "results.json").read_text()), page.parent)
    found = explorer(run, run.chains["world"])
    assert found is not None
    assert [s.label for s in found.sliders] == [
        "Teacher’s weight power β", "Student’s components K″", "Teacher’s components K′",
    ]  # fmt: skip
    assert found.sliders[0].said == ["weight power 1", "weight power 10", "weight power infinity"]
    assert len(found.frames) == len(places(run.chains["world"])) == 12
    assert len({tuple(w) for w in found.words}) == 12
    assert found.words[1][1] == "student at β=1, K′ = 4, K″ = 1"  # the last slider is the fastest
    assert len({len(f) for f in found.frames}) == 1
    data = json.loads(found.data())
    assert [[data["strings"][i] for i in f] for f in data["frames"]] == found.frames


def test_contours_enclose_their_mass(page: Path) -> None:
    run = parse(json.loads((page.parent / "results.json").read_text()), page.parent)
    found = explorer(run, run.chains["world"])
    assert found is not None
    path = found.frames[0][2]  # the teacher's 50 %: a disc around the origin of radius 0.7 sqrt(2 log 2)
    numbers = [int(n) for n in re.findall(r"[-+]?\d+", path)]
    x, y = 0, 0
    spots = [(x := x + dx, y := y + dy) for dx, dy in zip(numbers[::2], numbers[1::2], strict=True)]
    radii = [math.hypot(a - 300, b - 300) * 4 / 600 for a, b in spots]
    assert min(radii) > 0.7 * math.sqrt(2 * math.log(2)) - 0.06
    assert max(radii) < 0.7 * math.sqrt(2 * math.log(2)) + 0.06


def test_one_axis_and_ordinary_chains_have_one_slider_less(tmp_path: Path) -> None:
    alone = synthetic.map_results({"student": [1.0, 2.0]})
    folder = synthetic.write(tmp_path / "alone", alone, synthetic.map_exhibits(alone))
    run = parse(alone, folder)
    assert [len(s.shown) for s in explorer(run, run.chains["world"]).sliders] == [3, 2]  # type: ignore[union-attr]
    demo = synthetic.results(seeds=1, mixture_seeds=1)
    folder = synthetic.write(tmp_path / "demo", demo, synthetic.mixture_exhibits(demo))
    run = parse(demo, folder)
    found = explorer(run, run.chains["mixture"])
    assert found is not None
    assert [s.shown for s in found.sliders] == [["1", "3", "10", "30", "100", "∞"]]
    assert explorer(run, run.chains["smollm2"]) is None


def test_without_exhibits_there_is_no_script(tmp_path: Path) -> None:
    text = build_report([synthetic.write(tmp_path / "run", synthetic.map_results(), {})]).read_text()
    assert "<script" not in text
    assert "script-src" not in text
    assert "The teacher gate holds at 4 of 4 points" in text


def test_the_policy_allows_this_script_and_no_other(page: Path) -> None:
    text = page.read_text()
    scripts = re.findall(r"<script>(.*?)</script>", text, re.DOTALL)
    assert len(scripts) == 1
    digest = base64.b64encode(hashlib.sha256(scripts[0].encode()).digest()).decode()
    policy = re.search(r'Content-Security-Policy" content="([^"]*)"', text)
    assert policy is not None
    assert policy.group(1).startswith("default-src 'none'; ")
    assert f"script-src 'sha256-{digest}'; " in policy.group(1)
    assert "unsafe-inline" not in policy.group(1).replace("style-src 'unsafe-inline'", "")
    assert text.count("<script") == 2
    assert text.count('<script type="application/json">') == 1
    assert page.stat().st_size < 1_500_000


def test_figures_of_a_map_are_saved_and_linked(page: Path) -> None:
    text = page.read_text()
    for stem in ("world-map-1", "world-map-2", "world-map-3", "world-map-4", "world-gap"):
        for kind in ("svg", "png", "pdf"):
            assert (page.parent / "figures" / f"{stem}.{kind}").stat().st_size > 1000
            assert f'href="figures/{stem}.{kind}"' in text
    for words in (
        "mass of 0.95",
        "1/(2K)",
        "Means over 5 seeds",
        "Where precision is gained",
        "All points and settings",
    ):
        assert words in text


def test_a_point_that_failed_leaves_gaps(results: dict[str, Any], tmp_path: Path) -> None:
    points = results["summary"]["chains"]["world"]["map"]["points"]
    points[3] |= {"tradeoff": [], "control": [], "gate": {"passed": None, "contrast": None}}
    gone = {"teacher": 4.0, "student": 2.0}
    exhibits = synthetic.map_exhibits(results)
    for cell in results["cells"]:
        if cell["point"] == gone:
            del exhibits[cell["id"]]
            cell |= {"status": "failed", "reason": "no room", "metrics": {}}
    assert [t.reason for t in sheet_of(results, "precision").panels[0][1][1]] == ["no such cell"] * 3
    assert said(results)[0].startswith("The teacher gate holds at 3 of 4 points")
    assert "1 could not be compared" in said(results)[0]
    run = parse(results, synthetic.write(tmp_path / "run", results, exhibits))
    found = explorer(run, run.chains["world"])
    assert found is not None
    assert [i for i, w in enumerate(found.words) if w[2] == "Nothing was judged here."] == [3, 7, 11]
    assert not any(any(found.frames[i]) for i in (3, 7, 11))
    assert len({len(f) for f in found.frames}) == 1


def test_where_the_teacher_is_the_truth_the_truth_is_sharpened(results: dict[str, Any], tmp_path: Path) -> None:
    groups = results["summary"]["groups"]
    for gid in [g for g, v in groups.items() if v["role"] == "truth"]:
        del groups[gid]
    for group in groups.values():
        if group["role"] == "teacher":
            group["role"] = "truth"
    for point in results["summary"]["chains"]["world"]["map"]["points"]:
        point["gate"], point["teacher_group"] = {"passed": None, "contrast": None}, None
    run = parse(results)
    found = teacher_at(run, run.chains["world"].points[0], {"weight_power": math.inf})
    assert found is not None
    assert (found.role, found.decoding) == ("truth", {"weight_power": math.inf})


def test_tables_of_a_map(results: dict[str, Any]) -> None:
    run = parse(results)
    chain = run.chains["world"]
    by_setting = setting_table(chain)
    assert by_setting.rows[0] == ["β = 1", "+0  −0  ?4", "+0  −0  ?4", "–", "–"]
    assert by_setting.rows[1] == ["β = 10", "+4  −0  ?0", "+0  −4  ?0", "+0  −2  ?0", "+0  −0  ?2"]
    every = map_table(chain)
    assert every.head[:3] == ["setting", "K′", "K″"]
    assert every.rows[2] == ["β=∞", "2", "1", "+2.400", "−4.000", "nothing to decode", "nothing to decode"]
    models = group_table(run, chain)
    assert models.rows[0][0] == "K′ = 2, K″ = 1: truth"
    assert len({row[0] for row in models.rows}) == len(run.groups)
    console = Console(width=100, record=True, file=io.StringIO())
    console.print(summary_table(results))
    text = console.export_text()
    assert "points where it rises (+), falls (−), is undecided (?) of 4, 5 seeds" in text
    assert "+4 −0 ?0" in " ".join(text.split())


def test_a_terminal_of_80_columns_says_which_setting_a_row_is_of(results: dict[str, Any]) -> None:
    console = Console(width=80, record=True, file=io.StringIO())
    console.print(summary_table(results))
    lines = console.export_text().splitlines()
    assert any(line.strip().startswith("distilled at") for line in lines)
    assert any(line.strip().startswith("β = 10") and "+4 −0 ?0" in line for line in lines)


HOSTILE = "</script><script>document.title='owned'</script>\u2028<!--\u202e{{7*7}}"


@pytest.fixture(scope="module")
def hostile_map(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A map whose chain, axes and versions are hostile."""
    run = synthetic.map_results({HOSTILE: [1.0, 2.0], "student": [1.0, 2.0]}, name="c")
    exhibits = synthetic.map_exhibits(run)
    run = copy.deepcopy(run)
    for i, cell in enumerate(run["cells"]):
        exhibits[f"cell{i}"] = exhibits.pop(cell["id"])
        cell["id"] = f"cell{i}"
    run["summary"]["chains"]["c"]["truth"] = HOSTILE
    return build_report([synthetic.write(tmp_path_factory.mktemp("hostile-map") / "run", run, exhibits)])


def test_hostile_axes_are_inert(hostile_map: Path) -> None:
    text = hostile_map.read_text()
    assert text.count("<script") == text.count("</script>") == 2
    assert "\u2028" not in text
    assert "\u202e" not in text
    data = re.search(r'<script type="application/json">(.*?)</script>', text, re.DOTALL)
    assert data is not None
    assert json.loads(data.group(1))["sizes"] == [3, 2, 2]
    assert not set("<>&\u2028\u2029") & set(data.group(1))


@pytest.mark.browser
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_sliders_move_the_pictures(browser: Any, page: Path, scheme: str) -> None:
    tab = browser.new_page(viewport={"width": 390, "height": 844}, color_scheme=scheme)
    problems: list[str] = []
    tab.on("pageerror", lambda e: problems.append(str(e)))
    tab.on("console", lambda m: problems.append(m.text))
    tab.goto(page.as_uri())
    assert tab.evaluate("document.documentElement.scrollWidth") <= 390
    beta = tab.get_by_label("Teacher’s weight power β")
    student = tab.get_by_label("Student’s components K″")
    assert beta.get_attribute("aria-valuetext") == "weight power 1"

    def look() -> tuple[list[str], bytes]:
        paths = tab.eval_on_selector_all("path[data-path]", "all => all.map(p => p.getAttribute('d'))")
        return paths, tab.locator(".explorer .pictures").screenshot()

    first = look()
    beta.focus()
    tab.keyboard.press("ArrowRight")
    second = look()
    assert beta.get_attribute("aria-valuetext") == "weight power 10"
    assert tab.locator(".explorer output").first.inner_text() == "10"
    assert second[1] != first[1]
    changed = [i for i, (a, b) in enumerate(zip(first[0], second[0], strict=True)) if a != b]
    assert len(changed) > 8  # both pictures and the chosen mark
    student.focus()
    tab.keyboard.press("End")
    third = look()
    assert third[0] != second[0]
    assert third[1] != second[1]
    assert "K″ = 2" in tab.locator("[data-word='1']").inner_text()
    tab.keyboard.press("Home")
    beta.focus()
    tab.keyboard.press("Home")
    assert look()[0] == first[0]
    assert problems == []
    tab.close()


@pytest.mark.browser
def test_without_script_the_first_frame_stands(browser: Any, page: Path) -> None:
    context = browser.new_context(java_script_enabled=False)
    tab = context.new_page()
    tab.goto(page.as_uri())
    assert not tab.locator(".explorer .controls").is_visible()
    assert len(tab.locator("path[data-path='2']").get_attribute("d")) > 50
    assert "teacher at β=1" in tab.locator(".explorer").inner_text()
    context.close()


@pytest.mark.browser
def test_a_hostile_map_runs_no_other_script(browser: Any, hostile_map: Path) -> None:
    tab = browser.new_page()
    tab.goto(hostile_map.as_uri())
    sliders = tab.locator(".explorer input")
    sliders.last.focus()
    tab.keyboard.press("ArrowRight")
    assert "hydrometer" in tab.title()
    assert "owned" not in tab.title()
    assert sliders.count() == 3
    tab.evaluate("() => { const s = document.createElement('script'); s.textContent = 'window.added = 1'; "
                 "document.body.append(s); }")  # fmt: skip
    assert tab.evaluate("window.added") is None
    tab.close()
