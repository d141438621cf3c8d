"""What must hold of every fit and every density, on data that hypothesis makes up."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy.special import logsumexp
from scipy.stats import multivariate_normal

import hydrometer as hm
from hydrometer.core.errors import DataError, FitError
from hydrometer.models.mixture.law import CovarianceType, Mixture

Floats = NDArray[np.float64]
kinds = st.sampled_from(("full", "tied", "diag", "spherical"))
seeds = st.integers(0, 2**32 - 1)
# Numbers of all sizes whose squares stay in range, with many ties.
numbers = st.one_of(
    st.integers(-3, 3).map(float),
    st.floats(-10, 10, allow_subnormal=False),
    st.sampled_from((0.1, 1e6, -1e12, 1e100, 1e150, 1e-150, -1e-100)),
)


@st.composite
def data_sets(draw: st.DrawFn, most: int = 24) -> Floats:
    d, n = draw(st.integers(1, 4)), draw(st.integers(1, most))
    flat = draw(st.lists(numbers, min_size=n * d, max_size=n * d))
    x = np.array(flat).reshape(n, d)
    if draw(st.booleans()):
        x = x[draw(st.lists(st.integers(0, n - 1), min_size=1, max_size=most))]
    return x


def smooth(seed: int, n: int, d: int) -> Floats:
    """Ordinary data: a few overlapping clusters with correlated coordinates."""
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(n, d)) @ rng.normal(size=(d, d)) + 2 * rng.normal(size=(3, d))[rng.integers(3, size=n)]
    return np.round(x, 1) if seed % 3 == 0 else x


def alone(fit: hm.models.mixture.em.MixtureFit) -> Mixture:
    assert isinstance(fit.model, Mixture)
    return fit.model


def some_law(seed: int, k: int, d: int, kind: CovarianceType) -> tuple[Mixture, Floats]:
    """A mixture, one component of which may have weight zero, and its covariances as (K, d, d)."""
    rng = np.random.default_rng(seed)
    w = rng.dirichlet(np.ones(k))
    if k > 1 and seed % 2:
        w[rng.integers(k)] = 0
        w /= w.sum()
    a = rng.normal(size=(k, d, d + 1)) * 10.0 ** rng.uniform(-2, 2, (k, 1, 1))
    full = a @ a.swapaxes(1, 2)
    variances = np.diagonal(full, axis1=1, axis2=2)
    eye = np.eye(d)
    given_as, whole = {
        "full": (full, full),
        "tied": (full[0], np.repeat(full[:1], k, axis=0)),
        "diag": (variances, variances[:, :, None] * eye),
        "spherical": (variances[:, 0], variances[:, :1, None] * eye),
    }[kind]
    return Mixture(w, 5 * rng.normal(size=(k, d)), given_as, covariance_type=kind), whole


@given(seeds, st.integers(1, 5), st.integers(1, 9), kinds, st.sampled_from((0.0, 2.0, 6.0, 12.0)))
def test_log_prob_is_the_naive_sum(seed: int, k: int, d: int, kind: CovarianceType, far: float) -> None:
    law, covariances = some_law(seed, k, d, kind)
    x = 10.0**far * np.random.default_rng([seed, 1]).normal(size=(int(seed % 20) + 1, d))
    terms = [
        math.log(w) + np.atleast_1d(multivariate_normal(m, c, allow_singular=False).logpdf(x))
        for w, m, c in zip(law.weights, law.means, covariances, strict=True)
        if w > 0
    ]
    found = law.log_prob(x)
    np.testing.assert_allclose(found, logsumexp(terms, axis=0), rtol=1e-7, atol=1e-7)
    assert (found[:3] == law.log_prob(x[:3])).all()


@given(seeds, st.integers(1, 4), st.integers(1, 5), kinds)
def test_log_prob_has_limits_but_no_nan(seed: int, k: int, d: int, kind: CovarianceType) -> None:
    law, _ = some_law(seed, k, d, kind)
    x = np.array([[1e140], [1e200], [-1e300], [0.0]]) * np.ones((1, d))
    found = law.log_prob(x)
    assert np.isfinite(found[[0, 3]]).all()
    assert found[1] == found[2] == -np.inf


@given(data_sets(), st.integers(1, 5), kinds, st.sampled_from((0.0, 1e-6, 1.0)), seeds)
def test_every_fit_is_a_finite_model_or_one_clear_error(
    x: Floats, k: int, kind: CovarianceType, reg: float, seed: int
) -> None:
    settings: dict[str, Any] = {"covariance_type": kind, "reg_covar": reg, "seed": seed, "max_iter": 50}
    if k > len(x):
        with pytest.raises(DataError, match="cannot be fitted"):
            hm.fit_mixture(x, k, **settings)
        return
    try:
        fit = hm.fit_mixture(x, k, **settings)
    except FitError:
        # Only where variances of 1e-300 have no place in float64.
        if reg > 0 or np.abs(x - x.mean(axis=0)).max() > 1e-130:
            raise
        return
    model = alone(fit)
    assert np.isfinite(model.means).all()
    assert np.isfinite(model.covariances).all()
    assert abs(model.weights.sum() - 1) < 1e-12
    assert np.isfinite(fit.info.log_likelihood).all()
    assert np.isfinite(model.log_prob(x)).all()
    assert 1 <= fit.info.n_iter[0] <= 50
    # Means lie among the points.
    reach = np.abs(x).max(axis=0) * 1e-12 + (np.abs(x - x.mean(axis=0)).max()) * 1e-12
    used = model.weights > 0
    assert (model.means[used] >= x.min(axis=0) - reach).all()
    assert (model.means[used] <= x.max(axis=0) + reach).all()


@given(data_sets(), kinds, seeds, st.sampled_from((1e-6, 1e-2, 10.0)))
def test_covariances_hold_at_least_what_was_added(x: Floats, kind: CovarianceType, seed: int, reg: float) -> None:
    model = alone(hm.fit_mixture(x, min(2, len(x)), covariance_type=kind, reg_covar=reg, seed=seed))
    d = x.shape[1]
    whole = model.covariances.reshape(-1, d, d) if kind in ("full", "tied") else model.covariances.reshape(-1, 1, 1)
    variances = np.diagonal(whole, axis1=1, axis2=2)
    assert (variances >= reg * (1 - 1e-9)).all()


@given(seeds, st.integers(6, 60), st.integers(1, 4), st.integers(1, 4), kinds, st.sampled_from((0.0, 1e-6, 0.1, 1.0)))
def test_the_likelihood_never_falls(seed: int, n: int, d: int, k: int, kind: CovarianceType, reg: float) -> None:
    x = smooth(seed, n, d)
    if seed % 4 == 0:
        x[: n // 2] = x[0]  # floors
    settings: dict[str, Any] = {"covariance_type": kind, "reg_covar": reg, "seed": seed, "tol": 0.0}
    last = -math.inf
    for most in (1, 2, 3, 4, 6, 10, 25, 80):
        fit = hm.fit_mixture(x, k, max_iter=most, **settings)
        now = float(fit.info.log_likelihood[0])
        assert now >= last - 1e-9 * (1 + abs(last))
        assert fit.info.n_iter[0] <= most
        scored = alone(fit).log_prob(x).mean()
        assert abs(now - scored) <= (1e-7 if fit.info.floored[0] == 0 else 1e-2) * (1 + abs(now))
        last = now


@given(seeds, st.integers(6, 40), st.integers(1, 4), st.integers(1, 3), kinds)
def test_weights_count_and_their_scale_does_not(seed: int, n: int, d: int, k: int, kind: CovarianceType) -> None:
    x, rng = smooth(seed, n, d), np.random.default_rng([seed, 2])
    count = rng.integers(0, 4, n)
    count[:k] = 1
    means = x[:k] + 0.01 * rng.normal(size=(k, d))
    settings: dict[str, Any] = {"covariance_type": kind, "means_init": means, "reg_covar": 0.1, "max_iter": 4}
    fit = hm.fit_mixture(x, k, sample_weight=count, **settings)
    again = [
        hm.fit_mixture(np.repeat(x, count, axis=0), k, **settings),
        hm.fit_mixture(np.where(count[:, None] > 0, x, -1e200), k, sample_weight=count * 0.1, **settings),
        hm.fit_mixture(x[count > 0], k, sample_weight=count[count > 0] * 1e250, **settings),
    ]
    # An empty component is offered 1/n of the mass, n points of positive weight: repeated ones count apart.
    assume(
        min(alone(f).weights.min() for f in (fit, *again)) > 0 and not any(f.info.reseeded[0] for f in (fit, *again))
    )
    for other in again:
        np.testing.assert_allclose(alone(other).weights, alone(fit).weights, rtol=1e-7, atol=1e-9)
        np.testing.assert_allclose(alone(other).means, alone(fit).means, rtol=1e-7, atol=1e-7)
        np.testing.assert_allclose(other.info.log_likelihood, fit.info.log_likelihood, rtol=1e-7, atol=1e-7)


@given(seeds, st.integers(2, 5), st.integers(3, 30), st.integers(1, 4), st.integers(1, 3), kinds, st.integers(1, 3))
def test_a_batch_is_its_data_sets(seed: int, b: int, n: int, d: int, k: int, kind: CovarianceType, n_init: int) -> None:
    x = np.stack([smooth(seed + i, n, d) for i in range(b)])
    streams = [hm.Stream(seed).child(str(i)) for i in range(b)]
    settings: dict[str, Any] = {"covariance_type": kind, "n_init": n_init, "max_iter": 20}
    batch = hm.fit_mixture(x, k, seed=streams, **settings)
    assert not isinstance(batch.model, Mixture)
    for i in range(b):
        one = hm.fit_mixture(x[i], k, seed=streams[i], **settings)
        for field in ("log_weights", "means", "covariances"):
            assert (getattr(batch.model[i], field) == getattr(one.model, field)).all()
        for field in one.info.__slots__:
            assert getattr(batch.info, field)[i] == getattr(one.info, field)[0]


@given(seeds, st.integers(4, 40), st.integers(1, 4), st.integers(1, 3), kinds, st.integers(-450, 450))
def test_powers_of_two_scale_the_fit(seed: int, n: int, d: int, k: int, kind: CovarianceType, power: int) -> None:
    x, s = smooth(seed, n, d), 2.0**power
    plain = hm.fit_mixture(x, k, covariance_type=kind, reg_covar=0.0, seed=seed)
    try:
        scaled = hm.fit_mixture(x * s, k, covariance_type=kind, reg_covar=0.0, seed=seed)
    except FitError:
        smallest = min(np.diagonal(np.atleast_2d(c)).min() for c in alone(plain).covariances)
        assert smallest * s * s < 1e-300
        return
    assert (alone(scaled).weights == alone(plain).weights).all()
    assert (alone(scaled).means == alone(plain).means * s).all()
    assert (alone(scaled).covariances == alone(plain).covariances * s * s).all()
    assert scaled.info.n_iter == plain.info.n_iter
    np.testing.assert_allclose(scaled.info.log_likelihood, plain.info.log_likelihood - d * math.log(s), rtol=1e-10)
