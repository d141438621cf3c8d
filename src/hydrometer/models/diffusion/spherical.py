"""Mixtures of round Gaussians in the plane: the truth, and what denoises for a sampler.

    p(x) = sum_k a_k N(x; mu_k, v_k I),    p_s = p * N(0, s^2 I) = sum_k a_k N(x; mu_k, (v_k + s^2) I)

The denoiser at noise level s is D(x; s) = E[x_0 | x] = x + s^2 grad log p_s(x): closed form at every level.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from hydrometer.core.array_types import Floats
from hydrometer.core.errors import InputError
from hydrometer.core.spec import Selectivity
from hydrometer.models.cheap import Density
from hydrometer.models.diffusion.law import Diffusion

__all__ = ["Spherical", "ddim", "noise_levels"]

_LOG_2PI = math.log(2 * math.pi)


@dataclass(frozen=True, eq=False)
class Spherical(Density):
    """A mixture of round Gaussians in the plane, immutable. It takes no selectivity: its samplers do.

    Attributes
    ----------
    weights : (K,) above 0, summing to 1.
    means : (K, 2)
    covariances : (K,) variances, above 0.

    Raises
    ------
    InputError : other shapes, numbers that are not finite or not above 0, weights that do not sum to 1.

    Examples
    --------
    >>> Spherical(np.ones(1), np.zeros((1, 2)), np.ones(1)).log_prob(np.zeros((1, 2))).round(4).tolist()
    [-1.8379]
    """

    weights: Floats
    means: Floats
    covariances: Floats

    def __post_init__(self) -> None:
        k = len(self.weights)
        shapes = self.weights.shape, self.means.shape, self.covariances.shape
        if not k or shapes != ((k,), (k, 2), (k,)):
            raise InputError("a round mixture needs weights (K,), means (K, 2) and covariances (K,)", got=shapes)
        if not all(np.isfinite(a).all() for a in (self.weights, self.means, self.covariances)):
            raise InputError("weights, means and covariances must be finite")
        if not (min(self.weights) > 0 and min(self.covariances) > 0 and abs(self.weights.sum() - 1) < 1e-6):
            got = self.weights.tolist(), self.covariances.tolist()
            raise InputError("weights and covariances must be above 0, and weights sum to 1", got=got)

    @property
    def n_features(self) -> int:
        """Two: the plane."""
        return 2

    def component_log_density(self, x: Floats) -> Floats:
        """Return ``log a_k N(x_n; mu_k, v_k I)``, (K, N)."""
        square = (x[:, 0] - self.means[:, :1]) ** 2 + (x[:, 1] - self.means[:, 1:]) ** 2
        constant = np.log(self.weights / self.weights.sum()) - _LOG_2PI - np.log(self.covariances)
        return constant[:, None] - 0.5 * square / self.covariances[:, None]

    def log_density(self, x: Floats) -> Floats:
        """Log density of points (N, 2), (N,) nats."""
        logs = self.component_log_density(x)
        top = np.maximum(logs.max(axis=0), -1e300)  # a point at infinity
        return top + np.log(np.exp(logs - top).sum(axis=0))

    def points(self, uniforms: Floats) -> Floats:
        """Inverse CDF. Where in its component's share a first uniform lies is a uniform of its own."""
        from scipy.special import ndtri

        ends = np.cumsum(self.weights / self.weights.sum())
        u, k = uniforms[:, 0], np.minimum(np.searchsorted(ends, uniforms[:, 0], side="right"), len(ends) - 1)
        width = np.diff(ends, prepend=0.0)[k]
        inside = np.clip((u - (ends[k] - width)) / width, 2.0**-54, 1 - 2.0**-53)
        z = np.asarray(ndtri(np.stack([inside, uniforms[:, 1]], axis=1)), np.float64)
        return self.means[k] + np.sqrt(self.covariances[k])[:, None] * z

    def sharpened(self, s: Selectivity) -> Spherical:
        """Refuse: only a sampler has a temperature. Raises InputError."""
        raise InputError("a truth of this family is not selected", got=s.label, fix="select its sampler")


def noise_levels(steps: int, sigma_max: float, sigma_min: float, rho: float) -> Floats:
    """Return the levels (steps,) of Karras et al. (2022), eq. 5, from `sigma_max` down; after the last comes 0.

    Examples
    --------
    >>> noise_levels(3, 9.0, 1.0, 1.0).tolist(), noise_levels(1, 9.0, 1.0, 7.0).tolist()
    ([9.0, 5.0, 1.0], [9.0])
    """
    share = np.arange(steps) / max(steps - 1, 1)
    low, high = sigma_min ** (1 / rho), sigma_max ** (1 / rho)
    levels = (high + share * (low - high)) ** rho
    levels[0] = sigma_max  # to the last bit
    return levels


def ddim(mixture: Spherical, levels: Floats) -> Diffusion:
    """Return the DDIM sampler of a mixture's exact denoiser over falling noise levels (n,), and from the last one to 0.

    Source: Song, Meng and Ermon (2021); in this parametrisation the Euler steps of Karras et al. (2022).

    Raises
    ------
    InputError : levels that do not fall, or end at 0 themselves.

    Examples
    --------
    >>> law = ddim(Spherical(np.ones(1), np.ones((1, 2)), np.ones(1)), noise_levels(1000, 100.0, 0.001, 7.0))
    >>> law.log_prob(np.ones((1, 2))).round(2).tolist()
    [-1.83]
    """
    after = np.append(levels[1:], 0.0)
    if levels.ndim != 1 or not len(levels) or not (after < levels).all() or not np.isfinite(levels).all():
        raise InputError("noise levels must fall, and stay above 0", got=levels.tolist())
    s2, share = (levels**2)[:, None], (1 - after / levels)[:, None]  # share of the denoiser in a step
    noisy = mixture.covariances + s2
    norm = np.square(mixture.means).sum(axis=1)
    offsets = share * s2 * (np.log(mixture.weights) - np.log(noisy) - 0.5 * norm / noisy)
    slopes = (share * s2 / noisy)[:, :, None] * mixture.means
    curvatures = 1 - share + share * mixture.covariances / noisy
    return Diffusion(float(levels[0]), offsets, slopes, curvatures, 1 / (share * s2)[:, 0])
