"""Maps: what a grid computes is what its chains run alone would, and their books are in order."""

import csv
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from jsonschema import Draft202012Validator

import hydrometer as hm
from chains import mixture_spec, without_timings, write_spec
from hydrometer.core.errors import FitError, SpecError
from hydrometer.core.statistics.estimate import Estimate
from hydrometer.metrics.exact import expected_log_prob
from hydrometer.models.mixture import em
from hydrometer.models.mixture.family import MIXTURE
from hydrometer.models.mixture.spec import MixtureChain, MixtureWorld
from hydrometer.stages.map_point import load_map, map_point
from hydrometer.stages.nodes import Context, MapNode

SCHEMA = json.loads((Path(__file__).parents[2] / "docs" / "results.schema.json").read_text())
WORLD = {"n_components": 3, "n_features": 2, "separation": 4}


def run(spec: dict[str, Any], tmp_path: Path, out: str = "out") -> hm.RunResult:
    return hm.run(write_spec(spec, tmp_path), out=tmp_path / out)


def map_spec(**fields: Any) -> dict[str, Any]:
    return mixture_spec(**{"grid": {"student": [1, 2]}, **fields})


def test_a_map_is_its_chains_run_alone(tmp_path: Path) -> None:
    """Recall is the mean of log q over the same rows of the truth: equal only if data, teachers and students are."""
    summary = run(map_spec(seeds=3), tmp_path).results["summary"]
    for k in (1, 2):
        alone = mixture_spec(seeds=3, student={"n_components": k, "covariance_type": "diag"})
        groups = run(alone, tmp_path, f"alone{k}").results["summary"]["groups"]
        found = {g.removeprefix(f"m.student{k}."): v for g, v in summary["groups"].items() if f".student{k}." in g}
        assert found
        for name, group in found.items():
            mine, theirs = group["metrics"], groups[f"m.{name}"]["metrics"]
            assert mine["recall"]["value"] == pytest.approx(theirs["recall"]["value"], abs=1e-12)
            assert mine["recall"]["se"] == pytest.approx(theirs["recall"]["se"], rel=1e-9)
            assert mine["modes_covered"] == theirs["modes_covered"]
            gap = abs(mine["precision"]["value"] - theirs["precision"]["value"])
            assert gap <= 5 * math.hypot(mine["precision"]["se_mc"], theirs["precision"]["se_mc"])


def test_a_map_keeps_the_schema_and_is_not_computed_twice(tmp_path: Path) -> None:
    first = run(map_spec(), tmp_path)
    Draft202012Validator(SCHEMA).validate(json.loads((tmp_path / "out" / "results.json").read_text()))
    cells = {c["id"]: c for c in first.results["cells"]}
    assert all(c["seed"] is None and c["point"]["student"] in (1, 2) for c in cells.values())
    assert not any(".student1." in i and "direct.decoded" in i for i in cells)  # one component cannot be sharpened
    assert any(".student2." in i and "direct.decoded" in i for i in cells)
    assert {p.stem for p in (tmp_path / "out" / "records").glob("*.json")} == set(cells)
    assert {p.stem for p in (tmp_path / "out" / "exhibits").glob("*.json")} == set(cells)
    chain = first.results["summary"]["chains"]["m"]
    assert chain["map"]["axes"] == {"student": [1, 2]}
    assert [p["point"] for p in chain["map"]["points"]] == [{"student": 1}, {"student": 2}]
    assert all(len(p["tradeoff"]) == 2 for p in chain["map"]["points"])
    again = run(map_spec(), tmp_path)
    assert sum(again.outcome.computed.values()) == 0
    assert without_timings(first.results) == without_timings(again.results)


def test_a_maps_cell_pools_seeds_with_their_freedom_and_says_where_it_stands(tmp_path: Path) -> None:
    results = run(map_spec(seeds=6), tmp_path).results
    groups = results["summary"]["groups"]
    for cell in results["cells"]:
        assert cell["metrics"]["recall"]["df"] == pytest.approx(5)
        assert groups[cell["group"]]["metrics"]["recall"]["df"] == pytest.approx(5)
    rows = list(csv.DictReader((tmp_path / "out" / "results.csv").read_text().splitlines()))
    assert {json.loads(r["point"])["student"] for r in rows} == {1, 2}
    for r in rows:
        found = groups[r["group"]]["metrics"][r["metric"]]
        assert r["median"] == ("" if found["median"] is None else str(found["median"]))
        assert float(r["value"]) == float(r["mean"])


def test_a_map_may_have_seeds_of_its_own(tmp_path: Path) -> None:
    result = run(map_spec(seeds=1, grid={"student": [1], "seeds": 3}), tmp_path)
    assert result.results["summary"]["chains"]["m"]["seeds"] == 3
    assert {g["seeds"] for g in result.results["summary"]["groups"].values()} == {3}


def test_capacity_gap_is_the_teachers_modes_less_the_students_components(tmp_path: Path) -> None:
    cells = {c["id"]: c["metrics"] for c in run(map_spec(), tmp_path).results["cells"]}
    for k in (1, 2):
        prefix = f"m.student{k}"
        teacher = cells[f"{prefix}.teacher.decoded-weightpower20.0"]["modes_covered"]["value"]
        gap = cells[f"{prefix}.student.distilled-weightpower20.0"]["capacity_gap"]["value"]
        assert gap == pytest.approx(teacher - k)


def test_a_failed_point_is_failed_cells_and_the_others_go_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    good = em.fit_mixture

    def sometimes(x: Any, k: int, **settings: Any) -> Any:
        if k == 1:
            raise FitError("no usable model")
        return good(x, k, **settings)

    monkeypatch.setattr(em, "fit_mixture", sometimes)
    result = run(map_spec(), tmp_path)
    failed = {c["id"] for c in result.results["cells"] if c["status"] == "failed"}
    assert failed == {c["id"] for c in result.results["cells"] if c["point"]["student"] == 1}
    monkeypatch.setattr(em, "fit_mixture", good)
    mended = run(map_spec(), tmp_path)
    assert not mended.failed_cells
    assert mended.outcome.computed["map"] == 1


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"seeds": 1}, "2 or more"),
        ({"grid": {}}, "needs values"),
        ({"grid": {"student": [1, 1]}}, "distinct"),
        ({"grid": {"student": [0]}}, "above 0"),
        ({"grid": {"separation": [2.0]}}, "drawn truth"),
        ({"grid": {"students": [2]}}, "did you mean 'student'"),
        ({"grid": {"student": [500]}}, "more than the"),
        ({"assistants": [{"n_components": 2}]}, "assistants"),
        ({"teacher": "truth", "grid": {"teacher": [2]}}, "fitted teacher"),
        ({"resample": ["distill", "student"]}, "resample"),
    ],
)
def test_maps_that_make_no_sense_are_refused(fields: dict[str, Any], says: str, tmp_path: Path) -> None:
    with pytest.raises(SpecError, match=says):
        run(map_spec(**fields), tmp_path)


def test_a_drawn_world_is_as_asked_for() -> None:
    world = MixtureWorld(n_components=7, n_features=3, separation=2.5, weight_ratio=16).law()
    gaps = np.linalg.norm(world.means[:, None] - world.means[None], axis=2)[~np.eye(7, dtype=bool)]
    assert gaps.min() == pytest.approx(2.5)
    assert world.weights.max() / world.weights.min() == pytest.approx(16)
    assert (MixtureWorld(n_components=7, n_features=3, seed=1).law().means != world.means).any()


def test_separation_reaches_the_truth(tmp_path: Path) -> None:
    spec = map_spec(truth=WORLD, grid={"separation": [1.0, 8.0]})
    groups = run(spec, tmp_path).results["summary"]["groups"]
    near, far = (groups[f"m.separation{s}.truth"]["metrics"]["entropy"]["value"] for s in (1, 8))
    assert far > near  # components that overlap less


@pytest.fixture(scope="module")
def paper(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[dict[str, Estimate]]]:
    """The paper's mixture over 200 seeds."""
    spec = hm.load_spec("paper-mixture")
    body = spec.model_dump(mode="json", exclude_none=True)["chains"]["mixture"]
    body |= {
        "selectivity": [{"weight_power": 1}, {"weight_power": 100}],
        "grid": {"student": [1]},
        "as_released": False,
    }
    chain = MixtureChain.model_validate(body)
    folder = tmp_path_factory.mktemp("paper")
    node = MapNode("k", Context("m", chain, MIXTURE), chain.points()[0], tuple(range(200)), False)
    map_point(node, folder, lambda *_: None)
    return dict(load_map(folder))


def difference(paper: dict[str, list[dict[str, Estimate]]], a: str, metric: str) -> tuple[float, float]:
    """Distilled less direct: mean over seeds and standard error."""
    distilled, direct = paper[f"m.student1.student.{a}"], paper["m.student1.student.direct"]
    gaps = np.array(
        [(x[metric].value or 0.0) - (y[metric].value or 0.0) for x, y in zip(distilled, direct, strict=True)]
    )
    return float(gaps.mean()), float(gaps.std(ddof=1) / math.sqrt(gaps.size))


@pytest.mark.campaign
def test_the_papers_claim_at_beta_100(paper: dict[str, list[dict[str, Estimate]]]) -> None:
    up, up_se = difference(paper, "distilled-weightpower100.0", "precision")
    down, down_se = difference(paper, "distilled-weightpower100.0", "recall")
    assert up > 5 * up_se > 0
    assert down < -5 * down_se < 0


@pytest.mark.campaign
def test_at_beta_1_distilling_one_component_changes_nothing(paper: dict[str, list[dict[str, Estimate]]]) -> None:
    assert abs(difference(paper, "distilled-weightpower1.0", "recall")[0]) <= 0.01


def test_the_population_student_at_beta_1_is_the_direct_student() -> None:
    """EM keeps mean and variances of the data: the teacher's moments are those of the direct student's Gaussian."""
    truth = hm.load_spec("paper-mixture").chains["mixture"].truth.law()  # type: ignore[attr-defined]
    for seed in range(20):
        x = truth.sample(100, seed=seed).x
        teacher = hm.fit_mixture(x, 4, covariance_type="diag", reg_covar=0.0, seed=seed).model
        direct = hm.fit_mixture(x, 1, covariance_type="diag", reg_covar=0.0).model
        mean, covariance = teacher.moments()
        population = hm.Mixture([1.0], [mean], [np.diag(covariance)], covariance_type="diag")
        assert abs(expected_log_prob(truth, population)[0] - expected_log_prob(truth, direct)[0]) <= 1e-10
