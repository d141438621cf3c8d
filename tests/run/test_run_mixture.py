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
from hydrometer.core.errors import FolderError, SpecError

SCHEMA = json.loads((Path(__file__).parents[2] / "docs" / "results.schema.json").read_text())


def run(spec: dict[str, Any], tmp_path: Path, out: str = "out") -> hm.RunResult:
    return hm.run(write_spec(spec, tmp_path), out=tmp_path / out)


def ids(result: hm.RunResult) -> set[str]:
    return {c["id"] for c in result.results["cells"]}


def test_a_run_has_every_cell_and_keeps_the_schema(tmp_path: Path) -> None:
    result = run(mixture_spec(student={"n_components": 2}), tmp_path)
    Draft202012Validator(SCHEMA).validate(json.loads((tmp_path / "out" / "results.json").read_text()))
    per_seed = {
        "m.truth", "m.teacher", "m.teacher.decoded-weightpower20.0", "m.student.direct",
        "m.student.distilled-weightpower1.0", "m.student.distilled-weightpower20.0",
        "m.student.direct.decoded-weightpower20.0", "m.student.distilled-weightpower1.0.decoded-weightpower20.0",
    }  # fmt: skip
    assert ids(result) == {f"{g}.seed{s}" for g in per_seed for s in (0, 1)}
    assert {p.stem for p in (tmp_path / "out" / "records").glob("*.json")} == ids(result)
    rows = (tmp_path / "out" / "results.csv").read_text().splitlines()
    assert len(rows) == 1 + sum(len(c["metrics"]) for c in result.results["cells"])
    assert not result.failed_cells
    named = {c["id"]: c["name"] for c in result.results["cells"] if "name" in c}
    assert named["m.student.distilled-weightpower20.0.seed1"] == "distilled-weightpower20.0-seed1"
    assert len(set(named.values())) == len(named) == 8  # fits, as they are
    assert not (tmp_path / "out" / "models").exists()  # language models alone are opened by a folder's name


def test_an_interval_stands_beside_every_standard_error(tmp_path: Path) -> None:
    result = hm.run("paper-mixture", out=tmp_path, overrides=["seeds=3", "chains.mixture.data.evaluate=100"])

    def look(value: object) -> int:
        if isinstance(value, list):
            return sum(look(v) for v in value)
        if not isinstance(value, dict):
            return 0
        if "se" not in value:
            return sum(look(v) for v in value.values())
        ends, middle = value["ci95"], value.get("value", value.get("mean"))
        assert (ends is None) == (value["se"] is None or middle is None)
        assert ends is None or ends[0] <= middle <= ends[1]
        return 1 + sum(look(v) for v in value.values())

    parts = [result.results[k] for k in ("cells", "contrasts", "summary")]
    assert min(look(part) for part in parts) > 100
    assert look(result.results["summary"]["chains"]["mixture"]["as_released"]) > 10
    for r in csv.DictReader((tmp_path / "results.csv").read_text().splitlines()):
        assert (r["ci95_low"] == "") == (r["se"] == "" or r["value"] == "")
        assert (r["mean_ci95_low"] == "") == (r["mean_se"] == "" or r["mean"] == "")


def test_a_mean_over_seeds_comes_with_median_quartiles_and_marks(tmp_path: Path) -> None:
    results = run(mixture_spec(seeds=9), tmp_path).results
    rows = list(csv.DictReader((tmp_path / "out" / "results.csv").read_text().splitlines()))
    cells = {(c["group"], c["seed"]): c["metrics"] for c in results["cells"]}
    for name, group in results["summary"]["groups"].items():
        assert group["unseen"] == pytest.approx(1 - 0.05 ** (1 / 9))
        for metric, found in group["metrics"].items():
            x = np.array([cells[name, s][metric]["value"] for s in range(9)])
            assert (found["q25"], found["median"], found["q75"]) == pytest.approx(np.quantile(x, [0.25, 0.5, 0.75]))
            assert found["two_peaks"] in ((None,) if metric == "modes_covered" else (True, False, None))
            assert found["few_seeds"] is True
            written = [r for r in rows if (r["group"], r["metric"]) == (name, metric)]
            assert len(written) == 9
            for r in written:
                assert float(r["median"]) == pytest.approx(found["median"])
                assert float(r["mean"]) == pytest.approx(found["value"])
                assert (r["few_seeds"], r["seeds"]) == (str(found["few_seeds"]), "9")


def test_one_seed_has_no_spread(tmp_path: Path) -> None:
    for group in run(mixture_spec(seeds=1), tmp_path).results["summary"]["groups"].values():
        assert group["unseen"] is None
        for found in group["metrics"].values():
            assert {found[k] for k in ("median", "q25", "q75", "two_peaks", "few_seeds")} == {None}


def test_results_are_equal_in_another_folder(tmp_path: Path) -> None:
    one, two = (run(mixture_spec(), tmp_path, o) for o in ("a", "b"))
    assert without_timings(one.results) == without_timings(two.results)


def test_a_second_run_computes_nothing(tmp_path: Path) -> None:
    first = run(mixture_spec(), tmp_path)
    again = run(mixture_spec(), tmp_path)
    assert sum(first.outcome.computed.values()) > 0
    assert sum(again.outcome.computed.values()) == 0
    assert without_timings(first.results) == without_timings(again.results)


def test_one_more_selectivity_recomputes_only_its_own_stages(tmp_path: Path) -> None:
    run(mixture_spec(), tmp_path)
    more = mixture_spec(selectivity=[{"weight_power": 1}, {"weight_power": 5}, {"weight_power": 20}])
    result = run(more, tmp_path)
    # per seed: one fit; judged: teacher at 5, distilled at 5; exhibits: seed 0
    assert dict(result.outcome.computed) == {"fit": 2, "judge": 4, "show": 2}
    fresh = run(more, tmp_path, "fresh")
    assert {c["id"]: c["metrics"] for c in result.results["cells"]} == {
        c["id"]: c["metrics"] for c in fresh.results["cells"]
    }


def test_more_seeds_extend_a_run_and_fewer_keep_what_is_there(tmp_path: Path) -> None:
    run(mixture_spec(seeds=2), tmp_path)
    more = run(mixture_spec(seeds=3), tmp_path)
    assert {c["seed"] for c in more.results["cells"]} == {0, 1, 2}
    assert more.outcome.computed["fit"] == 4
    back = run(mixture_spec(seeds=1), tmp_path)
    assert sum(back.outcome.computed.values()) == 0
    assert {c["seed"] for c in back.results["cells"]} == {0, 1, 2}


@pytest.mark.parametrize(
    "change", [{"student": {"n_components": 2}}, {"data": {"train": 61}}, {"teacher": "truth"}, {"resample": ["data"]}]
)
def test_another_experiment_in_the_folder_is_refused_and_nothing_is_lost(
    tmp_path: Path, change: dict[str, Any]
) -> None:
    before = run(mixture_spec(), tmp_path).results
    with pytest.raises((FolderError, SpecError), match="another experiment"):
        run(mixture_spec(**change), tmp_path)
    assert hm.load_results(tmp_path / "out") == before


def test_another_truth_or_name_is_refused(tmp_path: Path) -> None:
    run(mixture_spec(), tmp_path)
    other = mixture_spec()
    other["chains"]["m"]["truth"]["covariances"] = 0.06
    with pytest.raises(FolderError, match="another experiment"):
        run(other, tmp_path)
    with pytest.raises(FolderError, match="another experiment"):
        run(mixture_spec() | {"name": "other"}, tmp_path)


def test_a_damaged_artifact_is_made_again(tmp_path: Path) -> None:
    before = run(mixture_spec(), tmp_path)
    victim = sorted((tmp_path / "out" / "artifacts").glob("fit-*"))[0]
    (victim / "mixture.json").write_text("{}")
    again = run(mixture_spec(), tmp_path)
    assert dict(again.outcome.computed) == {"fit": 1}
    assert without_timings(before.results) == without_timings(again.results)


def test_a_shared_cache_serves_another_run(tmp_path: Path) -> None:
    spec = write_spec(mixture_spec(), tmp_path)
    one = hm.run(spec, out=tmp_path / "a", cache=tmp_path / "cache")
    two = hm.run(spec, out=tmp_path / "b", cache=tmp_path / "cache")
    assert sum(two.outcome.computed.values()) == 0
    assert without_timings(one.results) == without_timings(two.results)


def test_identities_hold_in_every_cell(tmp_path: Path) -> None:
    for cell in run(mixture_spec(), tmp_path).results["cells"]:
        m = {k: v["value"] for k, v in cell["metrics"].items()}
        assert m["precision"] == pytest.approx(-m["entropy"] - m["kl_student_truth"], abs=1e-9)
        assert m["recall"] == pytest.approx(-m["entropy_truth"] - m["kl_truth_student"], abs=1e-9)
        if cell["role"] == "truth":
            assert m["precision"] == m["recall"] == -m["entropy"]
            assert m["kl_student_truth"] == 0


def test_contrasts_split_the_precision_gain(tmp_path: Path) -> None:
    results = run(mixture_spec(seeds=4), tmp_path).results
    table = {(c["a"], c["b"], c["metric"]): c for c in results["contrasts"]}
    pairs = {(a, b) for a, b, _ in table}
    assert ("m.student.distilled-weightpower20.0", "m.student.direct") in pairs
    assert ("m.student.distilled-weightpower20.0", "m.student.distilled-weightpower1.0") in pairs
    assert ("m.teacher", "m.student.direct") in pairs
    for a, b in pairs:
        gain, dh, dkl = (table[a, b, k]["value"] for k in ("precision", "entropy", "kl_student_truth"))
        assert gain == pytest.approx(-dh - dkl, abs=1e-9)
        recall, kl = table[a, b, "recall"], table[a, b, "kl_truth_student"]
        # Each cell's H(p*) is adjusted by its own surrogates: equal up to a small part of the error, not to rounding.
        assert recall["value"] == pytest.approx(-kl["value"], abs=1e-3 * recall["se"])
        assert table[a, b, "recall"]["pairing"] == "row"
        assert table[a, b, "precision"]["df"] == pytest.approx(3)


def test_contrast_over_seeds_is_the_paired_t(tmp_path: Path) -> None:
    results = run(mixture_spec(seeds=6), tmp_path).results
    cells = {c["id"]: c["metrics"] for c in results["cells"]}
    a, b = "m.student.distilled-weightpower20.0", "m.student.direct"
    diff = np.array(
        [cells[f"{a}.seed{s}"]["recall"]["value"] - cells[f"{b}.seed{s}"]["recall"]["value"] for s in range(6)]
    )
    found = next(c for c in results["contrasts"] if (c["a"], c["b"], c["metric"]) == (a, b, "recall"))
    assert found["value"] == pytest.approx(diff.mean())
    assert found["se"] == pytest.approx(diff.std(ddof=1) / math.sqrt(6))
    from scipy import stats

    half = stats.t.ppf(0.975, 5) * found["se"]
    low, high = found["ci95"]
    # One seed of six lies far below: Student's interval, reaching farther to that side.
    assert stats.skew(diff) < -1
    assert high == pytest.approx(diff.mean() + half)
    assert diff.mean() - 2.01 * half < low < diff.mean() - 1.2 * half


def test_one_seed_pairs_by_row(tmp_path: Path) -> None:
    """The paired error of a recall difference is that of the row differences, not of two independent means."""
    results = run(mixture_spec(seeds=1), tmp_path).results
    cells = {c["group"]: c["metrics"] for c in results["cells"]}
    a, b = "m.student.distilled-weightpower1.0", "m.student.direct"
    found = next(c for c in results["contrasts"] if (c["a"], c["b"], c["metric"]) == (a, b, "recall"))
    independent = math.hypot(cells[a]["recall"]["se"], cells[b]["recall"]["se"])
    assert 0 < found["se"] < independent / 2


def test_infinite_power_is_uniform_over_the_heaviest_and_written_as_inf(tmp_path: Path) -> None:
    result = run(mixture_spec(seeds=1, selectivity=[{"weight_power": 1}, {"weight_power": math.inf}]), tmp_path)
    cell = next(c for c in result.results["cells"] if c["id"] == "m.student.distilled-weightpowerinf.seed0")
    assert cell["selectivity"] == {"weight_power": "inf"}
    assert '"inf"' in (tmp_path / "out" / "results.json").read_text()


def test_two_levels_and_four_levels_are_the_same_code(tmp_path: Path) -> None:
    two = run(mixture_spec(seeds=1, teacher="truth"), tmp_path, "two")
    assert two.results["summary"]["chains"]["m"]["gate"]["passed"] is None
    assert {c["role"] for c in two.results["cells"]} == {"truth", "student"}
    selected = next(c for c in two.results["cells"] if c["id"] == "m.truth.decoded-weightpower20.0.seed0")
    assert selected["level"] == 0
    four = run(mixture_spec(seeds=1, assistants=[{"n_components": 2}]), tmp_path, "four")
    levels = {c["role"]: c["level"] for c in four.results["cells"]}
    assert levels == {"truth": 0, "teacher": 1, "assistant_1": 2, "student": 3}
    student = next(c for c in four.results["cells"] if c["id"] == "m.student.distilled-weightpower20.0.seed0")
    assert student["parent"] == "m.assistant_1.distilled-weightpower20.0.seed0"


def test_as_released_figures_are_contrasts_with_the_direct_student(tmp_path: Path) -> None:
    results = run(mixture_spec(seeds=3, as_released=True), tmp_path).results
    rows = {
        (r["selectivity"]["weight_power"], r["training"], r["metric"]): r["mean"]
        for r in results["summary"]["chains"]["m"]["as_released"]
    }
    metrics = [f"{m}_as_released" for m in ("precision", "recall")]
    assert set(rows) == {(b, t, m) for b in (1, 20) for t in ("direct", "distilled") for m in metrics}
    for beta in (1, 20):
        for metric in metrics:
            group = f"m.student.distilled-weightpower{beta}.0"
            found = [c for c in results["contrasts"] if c["metric"] == metric and c["a"] == group]
            assert [c["b"] for c in found] == ["m.student.direct"]
            assert found[0]["value"] == pytest.approx(rows[beta, "distilled", metric] - rows[beta, "direct", metric])
            assert found[0]["df"] == 2


def test_a_failed_fit_is_a_failed_cell_and_the_rest_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from hydrometer.core.errors import FitError
    from hydrometer.models.mixture import em

    good = em.fit_mixture
    calls = {"n": 0}

    def sometimes(*args: Any, **kwargs: Any) -> Any:
        calls["n"] += 1
        if calls["n"] == 3:
            raise FitError("no usable model", got="a test")
        return good(*args, **kwargs)

    monkeypatch.setattr(em, "fit_mixture", sometimes)
    result = run(mixture_spec(seeds=1), tmp_path)
    failed = {c["id"]: c for c in result.results["cells"] if c["status"] == "failed"}
    assert set(failed) == set(result.failed_cells)
    assert failed
    assert all(c["metrics"] == {} and "no usable model" in c["reason"] for c in failed.values())
    monkeypatch.setattr(em, "fit_mixture", good)
    mended = run(mixture_spec(seeds=1), tmp_path)
    assert not mended.failed_cells
    assert mended.outcome.computed["fit"] == 1


def test_assistants_below_a_true_teacher(tmp_path: Path) -> None:
    result = run(mixture_spec(seeds=1, teacher="truth", assistants=[{"n_components": 2}]), tmp_path)
    levels = {c["role"]: c["level"] for c in result.results["cells"]}
    assert levels == {"truth": 0, "assistant_1": 1, "student": 2}
    assistant = next(c for c in result.results["cells"] if c["id"] == "m.assistant_1.distilled-weightpower20.0.seed0")
    assert assistant["parent"] == "m.truth.seed0"


def test_public_names_survive_their_packages() -> None:
    """`recipes` and `run` are packages too; using them must not replace the functions."""
    assert hm.recipes()
    assert hm.load_spec("paper-mixture").name == "paper-mixture"
    assert callable(hm.recipes)
    assert callable(hm.run)
