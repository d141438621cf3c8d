"""The figures of `sample-metrics`, against loops over points, laws known for every density, and quadrature."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats
from scipy.integrate import quad

from hydrometer.claims.measures.sample_metrics import World, measure, neighbour_figures
from hydrometer.core.errors import SpecError

SMALL = World(dimensions=(1, 3), points=(10, 20), neighbours=(2, 4), per_cluster=5, shift=1.5)


def by_loops(real: np.ndarray, generated: np.ndarray, k: int) -> dict[str, float]:
    def reach(own: np.ndarray, i: int) -> float:
        return sorted(math.dist(own[i], y) for j, y in enumerate(own) if j != i)[k - 1]

    hits = [[math.dist(x, y) <= reach(real, i) for y in generated] for i, x in enumerate(real)]
    back = [[math.dist(x, y) <= reach(generated, j) for j, y in enumerate(generated)] for x in real]
    return {
        "precision": sum(map(any, zip(*hits, strict=True))) / len(generated),
        "recall": sum(map(any, back)) / len(real),
        "density": sum(map(sum, hits)) / k / len(generated),
        "coverage": sum(map(any, hits)) / len(real),
    }


@pytest.mark.parametrize("d", [1, 3])
def test_figures_are_those_of_loops(d: int) -> None:
    rng = np.random.default_rng(d)
    real, generated = rng.standard_normal((14, d)), rng.standard_normal((11, d)) + 0.7
    for k, found in neighbour_figures(real, generated, (1, 3)).items():
        assert found == pytest.approx(by_loops(real, generated, k), abs=1e-12)


def test_density_and_coverage_of_equal_laws_have_known_means() -> None:
    n, m, k, draws = 9, 6, 2, 4000
    rng = np.random.default_rng(5)
    found = [neighbour_figures(*np.split(rng.standard_normal((n + m, 2)), [n]), (k,))[k] for _ in range(draws)]
    coverage = 1 - math.prod((n - i) / (n + m - i) for i in range(1, k + 1))
    for figure, mean in (("density", 1.0), ("coverage", coverage)):
        values = [x[figure] for x in found]
        assert abs(np.mean(values) - mean) < 4.5 * np.std(values) / math.sqrt(draws)
        assert np.std(values) / math.sqrt(draws) < 0.01


def test_checks_are_differences_from_one_and_from_the_frontier() -> None:
    checks = measure(SMALL, range(4)).checks
    assert len(checks) == 2 * 9
    alpha, _ = quad(lambda x: min(stats.norm.pdf(x), stats.norm.pdf(x, SMALL.shift)), -12, 12, points=[SMALL.shift / 2])
    for supports, frontier in (checks[3:5], checks[12:14]):
        assert supports.condition == frontier.condition
        assert frontier.estimate.value - supports.estimate.value == pytest.approx(1 - alpha, abs=1e-7)  # type: ignore[operator]
        assert frontier.estimate.se == pytest.approx(supports.estimate.se, rel=1e-9)
    mean = sum(
        x.y[0] for x in measure(SMALL, range(4)).charts[2].lines if x.label == "laws 1.5 apart: 20 points, 4 clusters"
    )
    assert checks[7].estimate.value == pytest.approx(mean, abs=1e-12)
    again = measure(SMALL, range(4)).checks
    assert [c.estimate for c in again] == [c.estimate for c in checks]


@pytest.mark.parametrize(
    "change", [{"points": (20,)}, {"neighbours": (3,)}, {"neighbours": (0, 3)}, {"points": (4, 9)}]
)
def test_worlds_that_make_no_sense_are_refused(change: dict[str, tuple[int, ...]]) -> None:
    with pytest.raises(SpecError, match="two numbers of points"):
        measure(SMALL.model_copy(update=change), range(2))


@pytest.mark.parametrize("per_cluster", [6, 15])
def test_clusters_are_two_numbers_of_two_or_more(per_cluster: int) -> None:
    with pytest.raises(SpecError, match="numbers of clusters"):
        measure(SMALL.model_copy(update={"per_cluster": per_cluster}), range(2))
