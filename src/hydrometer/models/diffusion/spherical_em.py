"""Maximum likelihood of a round mixture: expectation-maximisation from starts by k-means++."""

from __future__ import annotations

import numpy as np

from hydrometer.core.array_types import Floats
from hydrometer.core.errors import FitError
from hydrometer.core.rng import Stream
from hydrometer.models.diffusion.spherical import Spherical

__all__ = ["fit_spherical"]

_STARTS = 16
_MAX_ITER = 500
_TOL = 1e-6  # nats a point
_LEAST = 1e-6  # a component's variance, over the rows'


def fit_spherical(x: Floats, n_components: int, stream: Stream) -> tuple[Spherical, dict[str, float]]:
    """Return the best of sixteen fits of points (N, 2), and its mean log-likelihood, nats a point.

    Raises
    ------
    FitError : fewer distinct points than components.

    Examples
    --------
    >>> x = Spherical(np.full(2, 0.5), np.array([[-3.0, 0.0], [3.0, 0.0]]), np.ones(2)).sample(4000, seed=1).x
    >>> fit, facts = fit_spherical(x, 2, Stream(0))
    >>> sorted(fit.means[:, 0].round(1).tolist())
    [-3.0, 3.0]
    """
    if len(np.unique(x, axis=0)) <= n_components:
        got = f"{len(np.unique(x, axis=0))} points, {n_components} components"
        raise FitError("a mixture needs more distinct points than components", got=got, fix="raise data")
    found = [_em(x, _spread(x, u)) for u in stream.uniforms(0, _STARTS, n_components)]
    best, value = max(found, key=lambda f: f[1])
    return best, {"log_likelihood_train": value}


def _spread(x: Floats, uniforms: Floats) -> Floats:
    """Centres (K, 2) by k-means++ (Arthur and Vassilvitskii 2007): each in proportion to its squared distance."""
    centres: list[Floats] = [x[int(uniforms[0] * len(x))]]
    nearest = np.full(len(x), np.inf)
    for u in uniforms[1:].tolist():
        nearest = np.minimum(nearest, np.square(x - centres[-1]).sum(axis=1))
        cumulative = np.cumsum(nearest)
        centres.append(x[int((cumulative < u * cumulative[-1]).sum())])
    return np.stack(centres)


def _em(x: Floats, centres: Floats) -> tuple[Spherical, float]:
    distances = np.square(x - centres[:, None]).sum(axis=2)
    mixture = _maximised(x, (distances == distances.min(axis=0)).astype(np.float64))
    before = -np.inf
    for _ in range(_MAX_ITER):
        density = mixture.log_density(x)
        if (value := float(density.mean())) - before < _TOL:
            break
        before = value
        mixture = _maximised(x, np.exp(mixture.component_log_density(x) - density))
    return mixture, float(mixture.log_density(x).mean())


def _maximised(x: Floats, shares: Floats) -> Spherical:
    """Return the likeliest mixture of points (N, 2) whose shares in components are given, (K, N)."""
    counts = shares.sum(axis=1) + 1e-10
    means = np.stack([(shares * x[:, d]).sum(axis=1) for d in range(2)], axis=1) / counts[:, None]
    squares = np.square(x - means[:, None]).sum(axis=2)
    variances = 0.5 * (shares * squares).sum(axis=1) / counts
    return Spherical(counts / counts.sum(), means, variances + _LEAST * float(x.var(axis=0).mean()))
