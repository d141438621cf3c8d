"""Maximum likelihood for mixtures by expectation maximisation.

The iterations are scikit-learn's `GaussianMixture` (k-means start, its meaning of convergence); this module gives them
one face, one data set or a batch, refuses what cannot be fitted in one line, and reports how the fit went.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from threadpoolctl import ThreadpoolController

from hydrometer.core.errors import DataError, FitError, InputError
from hydrometer.core.rng import Stream, as_stream
from hydrometer.models.mixture.law import CovarianceType, Mixture

__all__ = ["MixtureFitInfo", "fit_mixture"]


@dataclass(frozen=True, slots=True)
class MixtureFitInfo:
    """How EM went.

    Attributes
    ----------
    log_likelihood : (B,) mean per point, nats.
    n_iter : (B,) iterations of the best start.
    converged : (B,) whether the gain fell below `tol` within `max_iter`.
    """

    log_likelihood: NDArray[np.float64]
    n_iter: NDArray[np.int64]
    converged: NDArray[np.bool_]


@dataclass(frozen=True, slots=True)
class MixtureFit:
    """What `fit_mixture` returns: one model, or a list of B models, and `info`."""

    model: Mixture | list[Mixture]
    info: MixtureFitInfo


def checked(x: ArrayLike, n_components: int) -> NDArray[np.float64]:
    """Return the points as (B, n, d) float64.

    Raises
    ------
    DataError : the wrong shape, NaN or infinity, more components than points.
    """
    points = np.asarray(x, np.float64)
    if points.ndim == 2:
        points = points[None]
    if points.ndim != 3 or 0 in points.shape:
        raise DataError("points must have shape (n, d), or (B, n, d) for a batch", got=np.shape(x))
    bad = ~np.isfinite(points)
    if bad.any():
        first = tuple(int(i) for i in np.argwhere(bad)[0][-2:])
        raise DataError(
            "points must be finite", got=f"{int(bad.sum())} NaN or infinite values, first at {first}", fix="drop them"
        )
    if n_components < 1 or n_components > points.shape[1]:
        raise DataError(
            f"{n_components} components cannot be fitted to {points.shape[1]} points",
            fix="need 1 <= n_components <= points",
        )
    return points


@cache
def _threads() -> Any:
    """Find the thread pools once; looking for them costs as much as a small fit."""
    return ThreadpoolController()


def fit_one(
    x: NDArray[np.float64],
    n_components: int,
    *,
    covariance_type: CovarianceType,
    n_init: int,
    seed: int,
    tol: float,
    max_iter: int,
    reg_covar: float,
    means_init: NDArray[np.float64] | None = None,
) -> tuple[Mixture, float, int, bool]:
    """Fit one data set (n, d); returns the model, mean log-likelihood, iterations, converged."""
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.mixture import GaussianMixture

    estimator: Any = GaussianMixture(
        n_components,
        covariance_type=covariance_type,
        n_init=n_init,
        random_state=seed,
        tol=tol,
        max_iter=max_iter,
        reg_covar=reg_covar,
        means_init=means_init,
    )
    # One thread: data sets are small, a pool's start costs more than it gains, and sums keep their order.
    with _threads().limit(limits=1), warnings.catch_warnings():
        # Reported in `info.converged`; duplicate points also make k-means find fewer clusters, which EM survives.
        warnings.simplefilter("ignore", ConvergenceWarning)
        try:
            estimator.fit(x)
            model = Mixture.from_sklearn(estimator)
        except (ValueError, InputError) as e:
            raise FitError(f"EM failed: {e}", fix="raise reg_covar or lower n_components") from None
    return model, float(model.log_prob(x).mean()), int(estimator.n_iter_), bool(estimator.converged_)


def fit_mixture(
    x: ArrayLike,
    n_components: int,
    *,
    covariance_type: CovarianceType = "full",
    n_init: int = 1,
    seed: int | Stream = 0,
    tol: float = 1e-3,
    max_iter: int = 100,
    reg_covar: float = 1e-6,
    means_init: ArrayLike | None = None,
) -> MixtureFit:
    """Fit a mixture of Gaussians by maximum likelihood.

    Parameters
    ----------
    x : (n, d) one data set, or (B, n, d) a batch of independent ones.
    n_components : K
    covariance_type, n_init, tol, max_iter, reg_covar : as in scikit-learn.
    seed : of the k-means starts; fit b of a batch starts from ``stream.child(str(b))``.
    means_init : (K, d) start of the means, instead of k-means.

    Returns
    -------
    MixtureFit
        ``.model`` a `Mixture` for (n, d), a list of B for (B, n, d); ``.info`` with arrays of shape (B,).

    Raises
    ------
    DataError : points that are not finite, the wrong shape, more components than points.
    FitError : EM ended without a usable model.

    Examples
    --------
    >>> x = Mixture([1.0], [[0.0, 1.0]], [[1.0, 4.0]], covariance_type="diag").sample(500).x
    >>> fit = fit_mixture(x, 1, covariance_type="diag")
    >>> bool(np.allclose(fit.model.means[0], x.mean(0))), fit.info.converged.tolist()
    (True, [True])
    """
    batch = checked(x, n_components)
    stream = as_stream(seed)
    start = None if means_init is None else np.asarray(means_init, np.float64)
    fits = [
        fit_one(
            points,
            n_components,
            covariance_type=covariance_type,
            n_init=n_init,
            seed=stream.child(str(b)).integer(),
            tol=tol,
            max_iter=max_iter,
            reg_covar=reg_covar,
            means_init=start,
        )
        for b, points in enumerate(batch)
    ]
    models = [f[0] for f in fits]
    info = MixtureFitInfo(
        np.array([f[1] for f in fits]),
        np.array([f[2] for f in fits], np.int64),
        np.array([f[3] for f in fits], np.bool_),
    )
    return MixtureFit(models[0] if np.ndim(x) == 2 else models, info)
