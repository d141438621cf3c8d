"""Tilted teachers, tilted students, and a tilted truth that both are judged against."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

import hydrometer as hm
from chains import mixture_spec, write_spec
from hydrometer.models.families import RunSpec
from hydrometer.report.words.verdict import verdict
from hydrometer.run.graph.plan import plan_run
from hydrometer.stages.artifact_loader import ArtifactLoader
from hydrometer.store.artifacts import ArtifactStore

FIRST = {"tilt": {"reward": {"starts_with": 2}, "strength": 0.4}}
NEAR = {"tilt": {"reward": {"quadratic": {"center": [1], "width": 0.7}}, "strength": 1}}
LIKELIHOOD = ("precision", "recall", "entropy", "kl_student_truth", "kl_truth_student")


def markov_spec(**changes: Any) -> dict[str, Any]:
    chain = {
        "family": "markov", "truth": {"order": 2, "vocabulary": 4, "max_new_tokens": 5, "end": 0.2},
        "teacher": {"order": 1, "smoothing": 0.05}, "student": {"order": 1, "smoothing": 0.05},
        "data": {"train": 400, "distill": 400, "evaluate": 2000}, "selectivity": [{"temperature": 1}, FIRST],
    }  # fmt: skip
    return {"name": "aligned", "seeds": 1, "chains": {"m": chain | changes}}


def planned(spec: dict[str, Any], folder: Path) -> Any:
    """Return the plan of a specification."""
    return plan_run(hm.load_spec(write_spec(spec, folder)))


def judged(spec: dict[str, Any], folder: Path) -> dict[str, tuple[hm.Law, hm.Law, dict[str, Any], Any]]:
    """Run it; return each cell's judged law and truth as it is, its metrics, and its record."""
    path = write_spec(spec, folder)
    cells = {c["id"]: c for c in hm.run(path, out=folder / "out").results["cells"]}
    loaded: RunSpec = hm.load_spec(path)
    bench = ArtifactLoader(ArtifactStore(folder / "out" / "artifacts"))
    out: dict[str, tuple[hm.Law, hm.Law, dict[str, Any], Any]] = {}
    for cell in plan_run(loaded).cells:
        node: Any = plan_run(loaded).nodes[cell.judge]
        truth = bench.law(node.context, node.truth, "float64")
        law = bench.law(node.context, node.law, "float64", node.decoding)
        out[cell.id] = law, truth, cells[cell.id]["metrics"], cells[cell.id]
    return out


def test_models_are_judged_against_the_target_and_fitted_to_the_truth(tmp_path: Path) -> None:
    target = hm.Selectivity.model_validate(FIRST)
    found = judged(markov_spec(target=FIRST), tmp_path)
    roles = [c["role"] for _, _, _, c in found.values()]
    assert roles.count("student") == 5  # direct, distilled at either, both decoded
    for name, (law, truth, metrics, cell) in found.items():
        against: Any = truth.select(target)
        exact = hm.judge_exact(against, against if cell["role"] == "truth" else law)  # type: ignore[arg-type]
        for figure in LIKELIHOOD:
            gap = abs(metrics[figure]["value"] - exact[figure].value)
            assert gap < 4.5 * metrics[figure]["se"] + 1e-9, (name, figure)


def test_aligning_at_either_level_nears_the_target(tmp_path: Path) -> None:
    """In this world the teacher is tilted, or the student of the teacher as it is: both beat tilting nothing."""
    found = judged(markov_spec(target=FIRST), tmp_path)
    kl = {
        (c["selectivity"] is not None and "tilt" in c["selectivity"], c["decoding"] is not None): m["kl_truth_student"]
        for _, _, m, c in found.values()
        if c["training"] == "distilled"
    }
    assert set(kl) == {(False, False), (True, False), (False, True)}
    for aligned in ((True, False), (False, True)):
        assert kl[aligned]["value"] < kl[False, False]["value"] - 5 * kl[False, False]["se"]


def test_a_tilt_is_compared_at_its_own_setting(tmp_path: Path) -> None:
    """Aligned first less aligned last is the difference of the two cells; no entropy is matched along a tilt."""
    spec = markov_spec(target=FIRST, selectivity=[{"temperature": 1}, {"temperature": 0.7}, FIRST])
    result = hm.run(write_spec(spec, tmp_path), out=tmp_path / "out")
    results = result.results
    tilt, cold = sorted(results["summary"]["chains"]["m"]["control"], key=lambda c: "temperature" in c["selectivity"])
    kl = {c["id"]: c["metrics"]["kl_truth_student"]["value"] for c in results["cells"]}
    first = next(v for k, v in kl.items() if ".distilled-tilt" in k)
    last = next(v for k, v in kl.items() if ".distilled-temperature1" in k and ".decoded-tilt" in k)
    assert tilt["vs_neutral_decoded"]["kl_truth_student"]["value"] == pytest.approx(first - last, abs=1e-9)
    assert tilt["matched_entropy"] is None
    assert "compared at its own setting" in tilt["matched_reason"]
    assert "vs_neutral_decoded" not in cold
    matched = cold["matched_entropy"]
    assert matched is None or "tilt" not in str(matched)
    said = [text for text in verdict(results)["m"] if "The control" in text]
    assert len(said) == 1
    assert "The control, at the same tilt (starts with 2, b=0.4)" in said[0]
    assert "Minus the distilled student, tilted: recall" in said[0]


def test_a_target_changes_what_is_judged_and_nothing_that_is_fitted(tmp_path: Path) -> None:
    plain, aimed = planned(markov_spec(), tmp_path), planned(markov_spec(target=FIRST), tmp_path)
    neutral = planned(markov_spec(target={"temperature": 1}), tmp_path)

    def keys(plan: Any, stage: str) -> set[str]:
        return {k for k, n in plan.nodes.items() if n.stage == stage}

    assert keys(plain, "fit") == keys(aimed, "fit") == keys(neutral, "fit")
    assert not keys(plain, "judge") & keys(aimed, "judge")
    assert keys(plain, "judge") == keys(neutral, "judge")


def test_a_specification_without_a_target_is_written_as_before(tmp_path: Path) -> None:
    for spec in (markov_spec(), mixture_spec()):
        chain = next(iter(hm.load_spec(write_spec(spec, tmp_path)).chains.values()))
        assert "target" not in chain.model_dump(mode="json")
        assert "target" not in chain.model_dump()
    chain = hm.load_spec(write_spec(markov_spec(target=FIRST), tmp_path)).chains["m"]
    assert chain.model_dump(mode="json", exclude_none=True)["target"] == FIRST | {
        "tilt": {"reward": {"starts_with": 2}, "strength": 0.4}
    }


def test_a_mixture_has_a_target_without_error(tmp_path: Path) -> None:
    target = hm.Selectivity.model_validate(NEAR)
    line = {"means": [[-1], [1], [0.3]], "covariances": 0.05, "weights": [0.5, 0.3, 0.2]}
    spec = mixture_spec(1, exact=True, truth=line, target=NEAR, selectivity=[{"weight_power": 1}, NEAR])
    found = judged(spec, tmp_path)
    assert sum(c["decoding"] is not None and c["role"] == "student" for _, _, _, c in found.values()) == 2
    for name, (law, truth, metrics, cell) in found.items():
        against: Any = truth.select(target)
        exact = hm.judge_exact(against, against if cell["role"] == "truth" else law)  # type: ignore[arg-type]
        for figure in LIKELIHOOD:
            assert metrics[figure]["value"] == pytest.approx(exact[figure].value, abs=1e-9), (name, figure)


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"target": {"best_of": 2, "rank_by": "length"}}, "best_of and accept have not"),
        ({"target": FIRST, "teacher": "truth"}, "needs a teacher of its own"),
        ({"target": []}, "valid dictionary"),
        ({"target": {}}, "needs one of"),
        ({"target": {"weight_power": 2}}, "not by weight_power 2"),
    ],
)
def test_wrong_targets_are_refused(changes: dict[str, Any], says: str, tmp_path: Path) -> None:
    with pytest.raises(hm.SpecError, match=says) as caught:
        planned(markov_spec(**changes), tmp_path)
    assert "\n" not in str(caught.value)


def test_a_map_has_no_target(tmp_path: Path) -> None:
    with pytest.raises(hm.SpecError, match="nor target"):
        planned(mixture_spec(2, target=NEAR, grid={"student": [1, 2]}), tmp_path)


def test_another_target_is_another_experiment(tmp_path: Path) -> None:
    path = write_spec(markov_spec(target=FIRST), tmp_path)
    hm.run(path, out=tmp_path / "out")
    with pytest.raises(hm.SpecError, match=r"chains\.m\.target"):
        hm.run(write_spec(markov_spec(), tmp_path, "other.yaml"), out=tmp_path / "out")
