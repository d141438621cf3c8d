"""Tilts of a mixture by rewards that make it a mixture again, exactly.

exp(r(x) / b) is one Gaussian factor for a quadratic reward, and for a bump a positive sum of them,

    exp(h g(x) / b) = sum_n (h / b)^n / n! g(x)^n,    g(x)^n = exp(-n/2 sum_i (x_i - c_i)^2 / w_i^2)

and a Gaussian component times such a factor is a Gaussian component of another weight. As g <= 1, what the sum leaves
out from n = N on is at most P(n >= N), n Poisson of mean h / b, of the tilted density at any point: below rounding.

Shapes: K components, d dimensions, P factors.
"""

from __future__ import annotations

import numpy as np

from hydrometer.core.array_types import Floats
from hydrometer.core.errors import InputError
from hydrometer.core.tilt import Bump, Quadratic, Tilt
from hydrometer.models.mixture.real_arrays import CovarianceType

__all__ = ["MOST_NATS", "place_of", "tilted"]

MOST_NATS = 30.0
"""Largest h / b of a bump: components grow by a factor of as much again, and some."""
_LEFT_OUT = 1e-15


def place_of(tilt: Tilt, n_features: int) -> Quadratic | Bump:
    """Return where a tilt pulls. Raises InputError for one that a mixture has not in closed form."""
    place = None if isinstance(tilt.reward, str) else tilt.reward.quadratic or tilt.reward.bump
    if place is None:
        raise InputError("a mixture has no such reward", got=tilt.by, fix="use quadratic or bump")
    if len(place.center) != n_features:
        raise InputError(f"the center of a reward has {n_features} numbers here", got=list(place.center))
    if isinstance(place, Bump) and place.height / tilt.strength > MOST_NATS:
        what = f"a bump tilts by at most {MOST_NATS:g} nats, height over strength"
        raise InputError(what, got=place.height / tilt.strength, fix="raise strength, or lower height")
    return place


def tilted(
    log_weights: Floats, means: Floats, covariances: Floats, covariance_type: CovarianceType, tilt: Tilt
) -> tuple[Floats, Floats, Floats, CovarianceType]:
    """Return the parts of the mixture ``p(x) exp(r(x) / b) / Z``.

    Parameters
    ----------
    log_weights, means, covariances, covariance_type : of p, as `Mixture` has them.

    Returns
    -------
    The same of the tilt: K components for a quadratic, K P for a bump. Spherical ones stay so where the reward's width
    is one number, tied ones where there is one factor.

    Raises
    ------
    InputError : as `place_of`; a tilt that float64 does not hold.
    """
    k, d = means.shape
    place = place_of(tilt, d)
    with np.errstate(all="ignore"):
        center, log_scale_P, precision_Pd = _factors(place, tilt.strength)
        if covariance_type in ("full", "tied"):
            found = _times_full(means, np.broadcast_to(covariances, (k, d, d)), center, precision_Pd)
        else:
            found = _times_diag(means, np.broadcast_to(covariances.reshape(k, -1), (k, d)), center, precision_Pd)
        log_w = (log_weights + log_scale_P[:, None] + found[0]).ravel()
        log_w -= np.logaddexp.reduce(log_w)
    mean, spread = (x.reshape(-1, *x.shape[2:]) for x in found[1:])
    if np.isnan(log_w).any() or not (np.isfinite(mean).all() and np.isfinite(spread).all()):
        raise InputError("float64 does not hold this tilt", got=tilt.label, fix="raise width, or strength")
    if covariance_type == "spherical" and (precision_Pd == precision_Pd[:, :1]).all():
        return log_w, mean, spread[:, 0], "spherical"
    if covariance_type == "tied" and len(log_scale_P) == 1:
        return log_w, mean, spread[0], "tied"
    return log_w, mean, spread, "diag" if spread.ndim == 2 else "full"


def _factors(place: Quadratic | Bump, strength: float) -> tuple[Floats, Floats, Floats]:
    """Return center (d,), log scales (P,) and precisions (P, d) of the Gaussian factors whose sum is exp(r / b)."""
    center = np.asarray(place.center, np.float64)
    precision = 1 / np.square(np.broadcast_to(np.asarray(place.width, np.float64), center.shape))
    if not isinstance(place, Bump):
        return center, np.zeros(1), precision[None] / strength
    from scipy.special import gammaln, pdtrc, xlogy

    rate = place.height / strength
    every = np.arange(200)  # a Poisson variable of mean `MOST_NATS` is above the last with probability 1e-80
    n = every[: 1 + int(np.argmax(pdtrc(every, rate) < _LEFT_OUT))].astype(np.float64)
    return center, xlogy(n, rate) - gammaln(n + 1), n[:, None] * precision


def _times_diag(mean_Kd: Floats, var_Kd: Floats, center: Floats, precision_Pd: Floats) -> tuple[Floats, Floats, Floats]:
    """Return log factors (P, K), means (P, K, d) and variances (P, K, d) of each component times each factor."""
    scaled = var_Kd * precision_Pd[:, None]
    off = center - mean_Kd
    squares = precision_Pd[:, None] * np.square(off) / (1 + scaled)
    log_factor = -0.5 * (np.log1p(scaled) + squares).sum(axis=-1)
    return log_factor, mean_Kd + scaled / (1 + scaled) * off, var_Kd / (1 + scaled)


def _times_full(
    mean_Kd: Floats, cov_Kdd: Floats, center: Floats, precision_Pd: Floats
) -> tuple[Floats, Floats, Floats]:
    """Return the same with covariances (P, K, d, d): one dimension's factor after the other.

    For precision q at dimension i and S the covariance so far, S' = S - S_i S_i' q / (1 + q S_ii); its row i is
    S_i / (1 + q S_ii), written as that, since it would be a difference of nearly equal numbers where q is large.
    """
    shape = (len(precision_Pd), *mean_Kd.shape)
    mean, cov = np.broadcast_to(mean_Kd, shape).copy(), np.broadcast_to(cov_Kdd, (*shape, shape[-1])).copy()
    log_factor = np.zeros(shape[:2])
    for i, q_P1 in enumerate(precision_Pd.T[:, :, None]):
        column, off = cov[..., i].copy(), center[i] - mean[..., i]
        scaled = q_P1 * column[..., i]
        gain = q_P1 / (1 + scaled)
        log_factor -= 0.5 * (np.log1p(scaled) + gain * np.square(off))
        mean += (gain * off)[..., None] * column
        cov -= gain[..., None, None] * column[..., :, None] * column[..., None, :]
        cov[..., i] = cov[..., i, :] = column / (1 + scaled)[..., None]
    return log_factor, mean, cov
