"""The paper's mixture against an independent rerun with scikit-learn's own sampler (200 seeds, tests/reference)."""

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import hydrometer as hm

pytestmark = pytest.mark.campaign

REFERENCE: dict[str, Any] = json.loads((Path(__file__).parents[1] / "reference" / "paper_mixture.json").read_text())
SEEDS = 40


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    settings = "[{weight_power: 1}, {weight_power: 10}, {weight_power: 100}]"
    overrides = [f"seeds={SEEDS}", "chains.mixture.data.evaluate=4000", f"chains.mixture.selectivity={settings}"]
    return hm.run("paper-mixture", out=tmp_path_factory.mktemp("paper") / "run", overrides=overrides).results


@pytest.mark.parametrize("beta", ["1", "10", "100"])
@pytest.mark.parametrize("metric", ["precision", "recall"])
def test_corrected_means_agree(results: dict[str, Any], beta: str, metric: str) -> None:
    groups = results["summary"]["groups"]
    for training, group in (
        ("distilled", f"mixture.student.distilled-weightpower{beta}.0"),
        ("direct", "mixture.student.direct"),
    ):
        ours, theirs = groups[group]["metrics"][metric], REFERENCE["results"][beta][training][metric]
        assert abs(ours["value"] - theirs["mean"]) < 4 * math.hypot(ours["se"], theirs["se"])


def test_as_released_means_agree_and_the_printed_figures_lie_in_their_spread(results: dict[str, Any]) -> None:
    rows = results["summary"]["chains"]["mixture"]["as_released"]
    for row in rows:
        theirs = REFERENCE["results"][f"{row['selectivity']['weight_power']:g}"][row["training"]][row["metric"]]
        assert abs(row["mean"] - theirs["mean"]) < 4 * math.hypot(row["se"], theirs["se"])
    printed = [r["printed"] for r in rows if r["printed"] is not None]
    assert sorted(printed) == [-42.45, -20.27, -2.65, -0.7]


def test_the_trade_off_and_its_null(results: dict[str, Any]) -> None:
    table = {(c["a"], c["b"], c["metric"]): c for c in results["contrasts"]}
    at = "mixture.student.distilled-weightpower{}.0"
    direct = "mixture.student.direct"
    up, down = (table[at.format(100), direct, m] for m in ("precision", "recall"))
    assert up["value"] > 5 * up["se"]
    assert down["value"] < -5 * down["se"]
    # beta = 1, one component: the teacher's law has the mixture's moments, so nothing but sampling noise may differ
    null = table[at.format(1), direct, "recall"]
    assert abs(null["value"]) < 5 * null["se"] + 0.01


def test_population_identity_at_beta_one() -> None:
    """A one-component student of an EM teacher at beta = 1 has, in the limit, the training set's own moments."""
    x = hm.Mixture([0.5, 0.5], [[-1.0, 0.0], [1.0, 0.5]], [0.1, 0.2], covariance_type="spherical").sample(200, seed=1).x
    teacher = hm.fit_mixture(x, 3, covariance_type="diag", reg_covar=0.0, tol=1e-12, max_iter=5000, seed=2).model
    assert isinstance(teacher, hm.Mixture)
    mean = teacher.weights @ teacher.means
    second = teacher.weights @ (teacher.covariances + teacher.means**2)
    assert mean == pytest.approx(x.mean(0), abs=1e-10)
    assert second - mean**2 == pytest.approx(np.var(x, axis=0), abs=1e-10)
