"""The law of a deterministic sampler: a Gaussian of the plane, sent through steps that can all be undone.

    z ~ N(0, I),    x_0 = scale z,    x_i = F_i(x_{i-1}),    x = x_n
    log q(x) = log N(z; 0, I) - 2 log scale - sum_i log det F_i'(x_{i-1})

float64 and nats throughout. Shapes: N points, n steps, K pieces a step (`convex_steps`).
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np

from hydrometer.core.array_types import Floats
from hydrometer.core.errors import InputError
from hydrometer.core.rng import Stream, as_stream
from hydrometer.core.spec import Selectivity
from hydrometer.models.cheap import Density
from hydrometer.models.diffusion.convex_steps import Step
from hydrometer.models.rows.points import Points

__all__ = ["Diffusion"]

_LOG_2PI = math.log(2 * math.pi)


@dataclass(frozen=True, eq=False)
class Diffusion(Density):
    """An n-step sampler, immutable: the law of the rows that it draws, not of the differential equation behind it.

    A row records its log density on the way out; `log_prob` takes any point back, step by step, by Newton's method to
    1e-12. Both are exact but for rounding.

    `temperature` is guidance of scale 1 / temperature: at every step each piece's share r_k becomes r_k ** (1 /
    temperature), normalised. Of a denoiser's steps these are the posterior probabilities of the mixture's components
    given the noisy point, sharpened at every noise level: the score gets the gradient of ``T log sum_k r_k ** (1 / T)``
    added, which is classifier guidance (Dhariwal and Nichol 2021) that names no class. It is not the power law of the
    density. Temperatures multiply.

    Attributes
    ----------
    scale : standard deviation of the latent Gaussian: the first noise level.
    offsets, slopes, curvatures : (n, K), (n, K, 2) and (n, K) of the steps, first to last.
    sharpness : (n,)

    Raises
    ------
    InputError : other shapes, numbers that are not finite; a scale, a curvature or a sharpness that is not above 0.

    Examples
    --------
    >>> law = Diffusion(2.0, np.zeros((1, 1)), np.ones((1, 1, 2)), np.full((1, 1), 0.5), np.ones(1))
    >>> law.log_prob(np.array([[1.0, 1.0]])).round(4).tolist()  # N((1, 1), I)
    [-1.8379]
    """

    scale: float
    offsets: Floats
    slopes: Floats
    curvatures: Floats
    sharpness: Floats
    selected_by = ("temperature",)

    def __post_init__(self) -> None:
        n, k = self.offsets.shape if self.offsets.ndim == 2 else (0, 0)
        shapes = self.slopes.shape, self.curvatures.shape, self.sharpness.shape
        if not n * k or shapes != ((n, k, 2), (n, k), (n,)):
            raise InputError("steps need (n, K), (n, K, 2), (n, K) and (n,)", got=(self.offsets.shape, *shapes))
        if not all(np.isfinite(a).all() for a in (self.scale, self.offsets, self.slopes, self.curvatures)):
            raise InputError("a sampler's numbers must be finite", fix="remove NaN and infinite values")
        least = min(self.scale, float(self.curvatures.min()), float(self.sharpness.min()))
        if not least > 0 or not np.isfinite(self.sharpness).all():
            raise InputError("scale, curvatures and sharpness must be above 0 and finite", got=least)

    @property
    def n_features(self) -> int:
        """Two: the plane."""
        return 2

    @property
    def steps(self) -> tuple[Step, ...]:
        """The steps, first to last."""
        parts = zip(self.offsets, self.slopes, self.curvatures, self.sharpness.tolist(), strict=True)
        return tuple(Step(*part) for part in parts)

    def points(self, uniforms: Floats) -> Floats:
        """Send the normals of uniforms (N, 2) through the steps."""
        return self.sent(_normals(uniforms))[0]

    def sample(self, n: int, *, seed: int | Stream = 0, start: int = 0) -> Points:
        """Draw rows ``start .. start + n`` of the stream, with the density found on the way out."""
        return Points(*self.sent(_normals(as_stream(seed).uniforms(start, n, 2))))

    def sent(self, z: Floats) -> tuple[Floats, Floats]:
        """Return the points (N, 2) that latent ones z (N, 2) become, and their log density (N,) nats."""
        x = self.scale * z
        log_density = self._base(z)
        for step in self.steps:
            x, jacobian = step.at(x)
            log_density -= np.log(jacobian[3])
        return x, log_density

    def latent(self, x: Floats) -> Floats:
        """Return the latent points (N, 2) that become x (N, 2). Raises FitError."""
        for step in reversed(self.steps):
            x = step.inverse(x)
        return x / self.scale

    def log_density(self, x: Floats) -> Floats:
        """Log density of points (N, 2), (N,) nats. Raises FitError."""
        found = np.full(len(x), -math.inf)
        finite = np.isfinite(x).all(axis=1)
        at, log_dets = x[finite], np.zeros(int(finite.sum()))
        for step in reversed(self.steps):
            at = step.inverse(at)
            log_dets += np.log(step.at(at)[1][3])
        found[finite] = self._base(at / self.scale) - log_dets
        return found

    def sharpened(self, s: Selectivity) -> Diffusion:
        """Return the sampler with its shares raised to ``1 / s.temperature``."""
        return replace(self, sharpness=self.sharpness / (s.temperature or 1.0))

    def _base(self, z: Floats) -> Floats:
        return -0.5 * (z[:, 0] ** 2 + z[:, 1] ** 2) - _LOG_2PI - 2 * math.log(self.scale)


def _normals(uniforms: Floats) -> Floats:
    from scipy.special import ndtri

    return np.asarray(ndtri(uniforms), np.float64)
