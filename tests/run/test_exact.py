"""A chain of mixtures that asks for exact figures has no Monte Carlo error, in cells, contrasts and maps."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

import hydrometer as hm
from chains import mixture_spec, write_spec

LIKELIHOOD = ("precision", "recall", "entropy", "kl_student_truth", "kl_truth_student")


def run(folder: Path, seeds: int = 1, **changes: Any) -> dict[str, Any]:
    return hm.run(write_spec(mixture_spec(seeds, **changes), folder), out=folder / "out").results


def test_cells_and_contrasts_of_one_seed_have_no_error(tmp_path: Path) -> None:
    results = run(tmp_path, exact=True)
    for cell in results["cells"]:
        for name in LIKELIHOOD:
            assert cell["metrics"][name]["method"] == "exact"
            assert cell["metrics"][name]["se"] == 0
    assert {c["se"] for c in results["contrasts"] if c["metric"] in LIKELIHOOD} == {0}
    truth = next(c for c in results["cells"] if c["role"] == "truth")
    law = hm.Mixture([0.5, 0.3, 0.2], [[-1, 0], [1, 0], [0, 1.5]], [0.05] * 3, covariance_type="spherical")
    assert truth["metrics"]["entropy"]["value"] == hm.judge_exact(law, law)["entropy"].value


def test_rows_agree_with_it_and_are_judged_apart(tmp_path: Path) -> None:
    """Nothing but judging differs: the fits are the same, and drawn figures lie about the exact ones."""
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    exact, drawn = run(tmp_path / "a", exact=True), run(tmp_path / "b")
    for one, other in zip(exact["cells"], drawn["cells"], strict=True):
        for name in LIKELIHOOD:
            right, e = one["metrics"][name], other["metrics"][name]
            assert e["method"] == "cv"
            assert abs(e["value"] - right["value"]) <= 4.5 * e["se"] + 1e-9, (one["id"], name)


@pytest.mark.campaign
def test_a_map_may_ask_for_it(tmp_path: Path) -> None:
    results = run(tmp_path, 2, exact=True, grid={"student": [1, 2]})
    for group in results["summary"]["groups"].values():
        assert group["metrics"]["recall"]["se_mc"] == 0
    assert json.dumps(results).count('"exact"') > 10


def test_three_dimensions_are_refused_before_anything_is_made(tmp_path: Path) -> None:
    truth = {"means": [[-1, 0, 0], [1, 0, 0]], "covariances": 0.05}
    with pytest.raises(hm.SpecError, match="one or two dimensions"):
        run(tmp_path, exact=True, truth=truth)
    assert not (tmp_path / "out").exists()
