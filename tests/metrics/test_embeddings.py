"""Spread, nearest neighbours and projections, against closed forms and against their own spread over replications."""

from __future__ import annotations

import math
from importlib import metadata
from typing import Any

import numpy as np
import pytest

from hydrometer.core.errors import MissingDependencyError
from hydrometer.metrics import projection
from hydrometer.metrics.embeddings import mixing, spread, spread_ratio
from hydrometer.metrics.projection import project, projection_versions

PROMPTS = 4
STRATA = np.arange(64) % PROMPTS


def rows(rng: np.random.Generator, scale: float = 1.0, shift: float = 0.0, n: int = 64, d: int = 3) -> np.ndarray:
    """Gaussian answers about a far centre of their prompt."""
    centres = 100.0 * (np.arange(n) % PROMPTS)[:, None]
    return (centres + shift + scale * rng.normal(size=(n, d))).astype(np.float32)


def test_spread_is_the_trace_within_prompts_with_its_error() -> None:
    rng = np.random.default_rng(0)
    found = [spread(rows(rng, 1.5), STRATA) for _ in range(400)]
    values = np.array([e.value for e in found])
    assert values.mean() == pytest.approx(3 * 1.5**2, abs=5 * values.std() / 20)
    assert np.mean([e.se for e in found]) == pytest.approx(values.std(), rel=0.12)
    # between prompts lies far more, and only without strata is it counted
    assert spread(rows(rng)).value > 1e3


def test_a_prompt_with_one_row_makes_one_stratum_of_all() -> None:
    x = rows(np.random.default_rng(1))
    strata = np.r_[9, STRATA[1:]]
    assert spread(x, strata) == spread(x)
    assert spread(x[:1]).value is None


def test_ratio_covers_and_is_undefined_where_it_must_be() -> None:
    rng = np.random.default_rng(2)
    hit = 0
    for _ in range(600):
        r = spread_ratio(rows(rng, 0.7), rows(rng), STRATA)
        assert r.ci95 is not None
        hit += r.ci95[0] < 0.49 < r.ci95[1]
    assert abs(hit / 600 - 0.95) < 5 * math.sqrt(0.95 * 0.05 / 600)
    same = np.ones((64, 3), np.float32)
    assert spread_ratio(rows(rng), same, STRATA).value is None
    collapsed = spread_ratio(same, rows(rng), STRATA)
    assert (collapsed.value, collapsed.se, collapsed.ci95) == (0.0, None, None)


@pytest.mark.parametrize("scale", [1.0, 0.2, 2.0])
def test_mixing_against_the_orthant_formula(scale: float) -> None:
    # Two rows a prompt and one dimension: y looks whether x or y' is nearer. y - x and y - y' are jointly normal, so
    # P(|y - x| < |y - y'|) is an orthant probability of their sum and difference.
    s = scale**-2
    exact = math.acos((s - 1) / math.sqrt((1 + s) * (5 + s))) / math.pi
    rng = np.random.default_rng(3)
    n = 64
    strata = np.arange(n) // 2
    centres = 1e4 * strata[:, None]
    found = []
    for _ in range(400):
        truth, model = (centres + a * rng.normal(size=(n, 1)) for a in (1.0, scale))
        found.append(mixing(model, truth, strata))
    values = np.array([e.value for e in found])
    assert values.mean() == pytest.approx(exact, abs=5 * values.std() / 20)
    assert np.sqrt(np.mean([e.se**2 for e in found])) == pytest.approx(values.std(), rel=0.15)
    assert np.sign(exact - 0.5) == np.sign(scale - 1)


def test_mixing_in_many_dimensions() -> None:
    rng = np.random.default_rng(4)
    equal = [mixing(rows(rng, d=20), rows(rng, d=20), STRATA) for _ in range(200)]
    values = np.array([e.value for e in equal])
    assert values.mean() == pytest.approx(0.5, abs=5 * values.std() / math.sqrt(200))
    assert {e.n for e in equal} == {4}
    assert mixing(rows(rng, shift=50.0), rows(rng), STRATA).value == 0.0
    one = np.zeros((64, 3), np.float32)
    assert mixing(one, one, STRATA).value == 0.5  # ties
    assert mixing(rows(rng)[:8], rows(rng)[:8]).se is None


def test_principal_components_of_a_known_ellipsoid() -> None:
    rng = np.random.default_rng(5)
    axes = np.linalg.qr(rng.normal(size=(5, 5)))[0]
    flat = rng.normal(size=(300, 5)) * np.array([9.0, 4.0, 0.01, 0.01, 0.01])
    found = project((flat @ axes + 7).astype(np.float32), "pca")
    inside = flat - flat.mean(0)
    for i in range(2):
        assert abs(np.corrcoef(found.xy[:, i], inside[:, i])[0, 1]) > 0.99
    assert found.explained is not None
    assert found.explained == pytest.approx(np.linalg.eigvalsh(np.cov(inside.T))[:-3:-1] / np.trace(np.cov(inside.T)))
    # a direction of its own, whatever sign the factorisation gave
    turned = project((-(flat @ axes)).astype(np.float32), "pca")
    assert np.allclose(np.abs(turned.xy), np.abs(found.xy), atol=1e-3)
    assert project(np.ones((5, 3), np.float32), "pca").explained == (0.0, 0.0)
    with pytest.raises(ValueError, match="at least 3"):
        project(np.ones((2, 3), np.float32), "pca")


@pytest.mark.campaign
def test_umap_gives_equal_coordinates_twice_and_keeps_neighbours() -> None:
    pytest.importorskip("umap")
    import numba

    rng = np.random.default_rng(6)
    label = np.arange(60) % 3
    x = (20 * np.eye(3)[label] @ rng.normal(size=(3, 12)) + rng.normal(size=(60, 12))).astype(np.float32)
    threads = numba.get_num_threads()
    one, two = (project(x, "umap", seed=4).xy for _ in range(2))
    assert (one == two).all()
    assert not (project(x, "umap", seed=5).xy == one).all()
    assert numba.get_num_threads() == threads
    apart = np.square(one[:, None] - one[None]).sum(-1) + np.diag(np.full(60, np.inf))
    assert (label[apart.argmin(1)] == label).all()


def test_a_missing_extra_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    def version(name: str) -> Any:
        if name == "umap-learn":
            raise metadata.PackageNotFoundError(name)
        return "1"

    monkeypatch.setattr(projection.metadata, "version", version)
    with pytest.raises(MissingDependencyError, match=r"umap-learn; pip install 'hydrometer\[umap\]'"):
        projection_versions("umap")
    assert projection_versions("pca") == {"numpy": "1"}
