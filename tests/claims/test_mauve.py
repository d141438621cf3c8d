"""MAUVE by the words of its paper and scikit-learn's area, of laws by adaptive quadrature, of points by its k-means."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats
from scipy.cluster import vq
from scipy.integrate import quad
from sklearn.cluster import KMeans
from sklearn.metrics import auc

from hydrometer.claims.mauve import WEIGHTS, cluster_shares, mauve, mauve_of_shift


def _area(divergences: list[tuple[float, float]]) -> float:
    """Area under exp(-5 KL), by scikit-learn, of KL(q || r) and KL(p || r)."""
    x, y = np.exp(-5 * np.array([(0.0, np.inf), *divergences, (np.inf, 0.0)])).T
    return (auc(*np.array(sorted(zip(x, y, strict=True))).T) + auc(*np.array(sorted(zip(y, x, strict=True))).T)) / 2


def _kl(p: np.ndarray, q: np.ndarray) -> float:
    return sum(float(a) * float(np.log(a / b)) for a, b in zip(p, q, strict=True) if a > 0)


@pytest.mark.parametrize("seed", range(3))
def test_area_is_that_of_the_papers_words(seed: int) -> None:
    rng = np.random.default_rng(seed)
    p, q = rng.dirichlet(np.ones(6), size=2)
    p[0] = 0.0  # a cluster without points of one set
    p /= p.sum()
    mixed = [w * p + (1 - w) * q for w in WEIGHTS]
    assert mauve(p, q) == pytest.approx(_area([(_kl(q, r), _kl(p, r)) for r in mixed]), rel=1e-9)


def test_area_of_laws_is_that_of_quadrature() -> None:
    shift = 1.5

    def kl(mean: float, w: float) -> float:
        def integrand(x: float) -> float:
            own, p, q = (stats.norm.pdf(x, m) for m in (mean, 0.0, shift))
            return float(own * np.log(own / (w * p + (1 - w) * q)))

        return quad(integrand, -9, 11, limit=200, epsabs=1e-12)[0]

    expected = _area([(kl(shift, w), kl(0.0, w)) for w in WEIGHTS])
    assert mauve_of_shift(shift) == pytest.approx(expected, rel=1e-7)


def test_area_of_laws_has_no_dimension() -> None:
    shift, step = 2.0, 0.1
    axis = np.arange(-8, 10, step)
    x = np.stack(np.meshgrid(axis, axis, indexing="ij"), axis=-1).reshape(-1, 2)
    p, q = (stats.multivariate_normal(np.full(2, m)).pdf(x) * step**2 for m in (0.0, shift / np.sqrt(2)))
    assert mauve(p, q) == pytest.approx(mauve_of_shift(shift), rel=1e-9)


@pytest.mark.filterwarnings("ignore:One of the clusters is empty")
def test_k_means_stops_where_further_steps_change_nothing() -> None:
    rng = np.random.default_rng(3)
    for n, d, clusters in ((60, 2, 6), (400, 1, 40), (200, 8, 20)):
        real, generated = rng.standard_normal((2, n, d))
        both = np.concatenate([real, generated])
        label = vq.kmeans2(both, clusters, iter=50, minit="points", seed=7)[1]
        for part, share in zip(np.split(label, 2), cluster_shares(real, generated, clusters, 7), strict=True):
            np.testing.assert_array_equal(share, np.bincount(part, minlength=clusters) / n)


@pytest.mark.parametrize("d", [1, 8])
def test_points_give_what_another_k_means_gives(d: int) -> None:
    ours, theirs, finer = [], [], []
    for seed in range(20):
        x = np.random.default_rng(seed).standard_normal((2, 300, d))
        x[1] += 1.0 / np.sqrt(d)
        ours.append(mauve(*cluster_shares(x[0], x[1], 15, seed)))
        finer.append(mauve(*cluster_shares(x[0], x[1], 60, seed)))
        label = KMeans(15, n_init=1, random_state=seed).fit(x.reshape(-1, d)).labels_
        theirs.append(mauve(*(np.bincount(part, minlength=15) / 300 for part in np.split(label, 2))))
    gap, other = np.array(ours) - np.array(theirs), np.array(finer) - np.array(theirs)
    se = gap.std(ddof=1) / np.sqrt(len(gap))
    assert abs(gap.mean()) < 4 * se
    assert abs(other.mean()) > 6 * se  # another number of clusters would be told apart


def test_an_empty_cluster_is_no_failure() -> None:
    p, q = cluster_shares(np.zeros((4, 1)), np.ones((4, 1)), 3, 0)
    assert [p.sum(), q.sum(), p @ q] == [1.0, 1.0, 0.0]
