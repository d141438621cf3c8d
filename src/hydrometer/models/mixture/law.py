"""Mixtures of Gaussians: the family in which the theory is exact.

    p(x) = sum_k a_k N(x; mu_k, S_k)

Shapes: N points, K components, d dimensions. float64 and nats throughout. Covariance types and the shapes of
`covariances` are scikit-learn's: full (K, d, d), tied (d, d), diag (K, d), spherical (K,).
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, cast

import numpy as np
from numpy.typing import ArrayLike, NDArray

from hydrometer.core.array_types import Floats
from hydrometer.core.errors import DataError, InputError, LawMismatchError, MissingDependencyError
from hydrometer.core.rng import Stream, as_stream
from hydrometer.core.shown import Shown
from hydrometer.core.spec import Selectivity
from hydrometer.core.statistics.controls import Reference
from hydrometer.models.base import Law, PairedScores, Samples, ScoreKind
from hydrometer.models.finite_selectivity import power_log_weights, refuse_choice
from hydrometer.models.mixture.real_arrays import CovarianceType, covariance_shape, real_array, symmetric
from hydrometer.models.mixture.tilting import tilted
from hydrometer.models.rows.points import Points

if TYPE_CHECKING:
    from sklearn.mixture import GaussianMixture

__all__ = ["CovarianceType", "Mixture"]

_LOG_2PI = math.log(2 * math.pi)


class Mixture(Shown):
    """A mixture of Gaussians, immutable.

    Parameters
    ----------
    weights : (K,) non-negative, summing to 1.
    means : (K, d)
    covariances : shaped as `covariance_type` asks. One that rounding left asymmetric, by at most 1e-5 of its largest
        entry, is taken for its symmetric part, whose density is the mixture's.
    covariance_type : "full", "tied", "diag" or "spherical".

    Raises
    ------
    InputError : shapes that do not fit, NaN, weights that do not sum to 1, a covariance that is not symmetric or not
        positive definite; anything but plain real numbers (masked, complex or text values, objects).

    Examples
    --------
    >>> m = Mixture([0.5, 0.5], [[-1.0], [1.0]], [0.1, 0.1], covariance_type="spherical")
    >>> m.log_prob(np.array([[1.0]])).round(4).tolist()
    [-0.4608]
    >>> m.select(Selectivity(weight_power=float("inf"))).weights.tolist()
    [0.5, 0.5]
    """

    __slots__ = ("_factor", "_log_norm", "_log_weights", "_scales", "covariance_type", "covariances", "means")

    score_kind: ScoreKind = "exact"

    def __init__(
        self,
        weights: ArrayLike,
        means: ArrayLike,
        covariances: ArrayLike,
        *,
        covariance_type: CovarianceType = "full",
    ) -> None:
        if covariance_type not in ("full", "tied", "diag", "spherical"):
            raise InputError("covariance_type must be full, tied, diag or spherical", got=covariance_type)
        w = real_array(weights, "weights", InputError)
        mu = np.ascontiguousarray(real_array(means, "means", InputError))
        cov = real_array(covariances, "covariances", InputError)
        if mu.ndim != 2 or 0 in mu.shape or w.shape != mu.shape[:1]:
            raise InputError("a mixture needs weights (K,) and means (K, d)", got=(w.shape, mu.shape))
        shape = covariance_shape(covariance_type, *mu.shape)
        if cov.shape != shape:
            raise InputError(f"{covariance_type!r} covariances must have shape {shape}", got=cov.shape)
        if not (np.isfinite(w).all() and np.isfinite(mu).all() and np.isfinite(cov).all()):
            raise InputError("weights, means and covariances must be finite", fix="remove NaN and infinite values")
        if (w < 0).any() or abs(w.sum() - 1) > 1e-6:
            raise InputError("weights must not be negative and must sum to 1", got=w.tolist())
        self.means: Floats = mu
        self.covariances: Floats = symmetric(cov, "covariances") if covariance_type in ("full", "tied") else cov
        self.covariance_type: CovarianceType = covariance_type
        with np.errstate(divide="ignore"):
            self._log_weights: Floats = np.log(w / w.sum())
        self._scales: Floats = self._cholesky()
        self._factor, self._log_norm = self._inverses()

    def _facts(self) -> dict[str, object]:
        k, d = self.means.shape
        shown = {
            name: np.array2string(getattr(self, name), precision=4, threshold=20, separator=", ")
            for name in ("weights", "means", "covariances")
        }
        return {"components": k, "dimensions": d, "covariance_type": self.covariance_type, **shown}

    def _inverses(self) -> tuple[Floats, Floats]:
        """Return what `kernels` takes: inverse factors (K, e, D), and log N(mu_k; mu_k, S_k), (K,)."""
        from hydrometer.models.mixture.kernels import padded

        k, d = self.means.shape
        e = padded(d)
        if self.covariance_type in ("full", "tied"):
            factor = np.zeros((k, e, e))
            factor[:, :d, :d] = np.tril(np.linalg.inv(self._scales))
            log_det = np.log(np.diagonal(self._scales, axis1=1, axis2=2)).sum(axis=1)
        else:
            factor = np.zeros((k, e, 1))
            factor[:, :d, 0] = 1 / self._scales
            log_det = np.log(self._scales).sum(axis=1)
        return factor, np.broadcast_to(-0.5 * d * _LOG_2PI - log_det, (k,))

    def _cholesky(self) -> Floats:
        """Lower factors (K, d, d) or (1, d, d) for full and tied, standard deviations (K, d) otherwise."""
        k, d = self.means.shape
        match self.covariance_type:
            case "full" | "tied":
                stacked = self.covariances.reshape(-1, d, d)
                try:
                    return np.asarray(np.linalg.cholesky(stacked), np.float64)
                except np.linalg.LinAlgError:
                    raise InputError("a covariance is not positive definite", fix="raise reg_covar") from None
            case "diag" | "spherical":
                if not (self.covariances > 0).all():
                    raise InputError("variances must be above 0", got=float(self.covariances.min()))
                variances = self.covariances.reshape(k, -1)
                return np.sqrt(np.broadcast_to(variances, (k, d)))

    @property
    def n_components(self) -> int:
        """K."""
        return int(self.means.shape[0])

    @property
    def n_features(self) -> int:
        """The dimension d."""
        return int(self.means.shape[1])

    @property
    def log_weights(self) -> Floats:
        """(K,) normalised log-weights, nats; -inf for a component without weight."""
        return self._log_weights

    @property
    def weights(self) -> Floats:
        """(K,) weights."""
        return np.exp(self._log_weights)

    def component_log_prob(self, x: Floats) -> Floats:
        """``log N(x_n; mu_k, S_k)``, (K, N), nats. Differences are taken before squaring, so far points stay exact."""
        from scipy.linalg import solve_triangular  # pyright: ignore[reportUnknownVariableType]

        x = self._rows(x)
        n, k, d = x.shape[0], *self.means.shape
        out = np.empty((k, n))
        for j in range(k):
            centred = x - self.means[j]
            if self.covariance_type in ("full", "tied"):
                lower = self._scales[j if self.covariance_type == "full" else 0]
                z = cast("Floats", solve_triangular(lower, centred.T, lower=True, check_finite=False))
                squares = np.einsum("dn,dn->n", z, z)
                log_det = float(np.log(np.diagonal(lower)).sum())
            else:
                z = centred / self._scales[j]
                squares = np.einsum("nd,nd->n", z, z)
                log_det = float(np.log(self._scales[j]).sum())
            out[j] = -0.5 * (d * _LOG_2PI + squares) - log_det
        return out

    def component(self, k: int) -> Mixture:
        """Return component k alone."""
        one = self.covariances if self.covariance_type == "tied" else self.covariances[k : k + 1]
        return Mixture([1.0], self.means[k : k + 1], one, covariance_type=self.covariance_type)

    def component_points(self, components: NDArray[np.intp], z: Floats) -> Floats:
        """Move standard normal points z (M, d) under each of the components named: mu_k + L_k z, (len, M, d)."""
        if self.covariance_type in ("full", "tied"):
            lower = self._scales[components if self.covariance_type == "full" else np.zeros_like(components)]
            return self.means[components][:, None] + np.einsum("kij,mj->kmi", lower, z)
        return self.means[components][:, None] + self._scales[components][:, None] * z

    def kernel_parts(self) -> tuple[Floats, Floats, Floats, Floats]:
        """Return what `models.mixture.kernels` takes of the components with weight.

        Returns
        -------
        offset (K,), mean (K, d), factor (K, e, D), and weights (K,).
        """
        alive = np.flatnonzero(self.weights)
        offset = (self._log_weights + self._log_norm)[alive]
        return (
            offset,
            self.means[alive],
            np.broadcast_to(self._factor, (self.n_components, *self._factor.shape[1:]))[alive],
            self.weights[alive],
        )

    def moments(self) -> tuple[Floats, Floats]:
        """Return mean (d,) and covariance (d, d) of the whole mixture."""
        w, d = self.weights, self.n_features
        mean = w @ self.means
        match self.covariance_type:
            case "full":
                within = np.einsum("k,kij->ij", w, self.covariances)
            case "tied":
                within = self.covariances
            case "diag":
                within = np.diag(w @ self.covariances)
            case "spherical":
                within = float(w @ self.covariances) * np.eye(d)
        off = self.means - mean
        return mean, within + np.einsum("k,ki,kj->ij", w, off, off)

    def log_prob(self, x: Samples | Floats) -> Floats:
        """Log density of each point, (N,) nats; minus infinity at infinity.

        Parameters
        ----------
        x : `Points` or (N, d)

        Raises
        ------
        DataError : another shape, NaN, or anything but plain real numbers.
        """
        from hydrometer.models.mixture.kernels import log_density

        points = self._rows(x)
        out = np.empty(len(points))
        log_density(points, self._log_weights + self._log_norm, self.means, self._factor, out)
        if not np.isfinite(points).all():
            out[np.isinf(points).any(axis=1)] = -math.inf  # not NaN, where infinities cancel
        return out

    def _rows(self, x: Samples | ArrayLike) -> Floats:
        """Return points (N, d), checked."""
        points = real_array(x.x if isinstance(x, Points) else x, "points")
        if points.ndim != 2 or points.shape[1] != self.n_features:
            raise DataError(f"points must have shape (N, {self.n_features})", got=points.shape)
        if np.isnan(points).any():
            first = int(np.flatnonzero(np.isnan(points).any(axis=1))[0])
            raise DataError("points must not be NaN", got=f"NaN first in row {first}", fix="drop them")
        return np.ascontiguousarray(points)

    def score_beside(self, x: Samples, other: Law, *, again: bool = False) -> PairedScores:
        """Score points that this mixture drew under it and under `other`, with surrogates of both as control variates.

        One column for each of the two log densities: a function near it whose mean under this mixture is known
        (`models.mixture.surrogate`), with the reference it was fitted on, so that nothing is fitted to the rows.
        A density without a finite value at some point of the reference has no surrogate, and none is then used. See
        `models.base.Controlled`; nothing is kept.

        Raises
        ------
        LawMismatchError : another dimension.
        DataError : points as `log_prob` refuses them.
        """
        from hydrometer.models.mixture.surrogate import Surrogate, reference_points

        self.compatible(other)
        points = self._rows(x)
        own = self.log_prob(points)
        theirs = own if other is self else other.log_prob(x)
        beside = other if isinstance(other, Mixture) and other is not self else None
        at, weights, own_there = reference_points(self, beside)
        theirs_there = own_there if other is self else other.log_prob(Points(at, own_there))
        if not np.isfinite(theirs_there).all():
            return PairedScores(own, theirs, np.empty((len(points), 0)))
        targets = np.stack([own_there] if other is self else [own_there, theirs_there], axis=1)
        surrogate = Surrogate.fit(self, at, weights, targets)
        reference = Reference(weights, own_there, theirs_there, surrogate.columns(at))
        return PairedScores(own, theirs, surrogate.columns(points), reference=reference)

    def sample(self, n: int, *, seed: int | Stream = 0, start: int = 0) -> Points:
        """Draw rows ``start .. start + n`` by inverse CDF: one uniform for the component, d for the normals."""
        from scipy.special import ndtri

        u = as_stream(seed).uniforms(start, n, 1 + self.n_features)
        cumulative = np.cumsum(self.weights)
        heaviest_last = int(np.flatnonzero(self.weights)[-1])  # rounding in the sum must not reach a weightless one
        component = np.minimum(np.searchsorted(cumulative, u[:, 0], side="right"), heaviest_last)
        z = ndtri(u[:, 1:])
        if self.covariance_type in ("full", "tied"):
            lower = self._scales[component if self.covariance_type == "full" else np.zeros_like(component)]
            offset = np.einsum("nij,nj->ni", lower, z)
        else:
            offset = self._scales[component] * z
        x = self.means[component] + offset
        return Points(x, self.log_prob(x))

    def select(self, s: Selectivity) -> Mixture:
        """Return the mixture with weights raised to ``s.weight_power`` and normalised, then tilted by ``s.tilt``.

        Raises
        ------
        InputError : a token selectivity, or a choice among candidates; a mixture has no tokens. A tilt by another
            reward than `quadratic` and `bump`, in other dimensions, or by a bump too high.
        """
        refuse_choice(s)
        if not set(s.to_json()) <= {"weight_power", "tilt"}:
            fix = "use weight_power: BETA"
            raise InputError("a mixture is selected by weight_power or tilt", got=s.label, fix=fix)
        powered = self
        if s.weight_power is not None:
            powered = self._with_log_weights(power_log_weights(self._log_weights, s.weight_power))
        if s.tilt is None:
            return powered
        parts = powered.log_weights, self.means, self.covariances, self.covariance_type
        return Mixture.from_log_weights(*tilted(*parts, s.tilt))

    def compatible(self, other: object) -> None:
        """Refuse a law over other outcomes: a density over R^d says d as `n_features`. Raises LawMismatchError."""
        theirs = getattr(other, "n_features", type(other).__name__)
        if theirs != self.n_features:
            raise LawMismatchError(f"a mixture in {self.n_features} dimensions is compared with its like", got=theirs)

    def _with_log_weights(self, log_weights: Floats) -> Mixture:
        chosen = object.__new__(Mixture)
        chosen.means, chosen.covariances, chosen.covariance_type = self.means, self.covariances, self.covariance_type
        chosen._log_weights, chosen._scales = log_weights, self._scales
        chosen._factor, chosen._log_norm = self._factor, self._log_norm
        return chosen

    @classmethod
    def from_log_weights(
        cls, log_weights: ArrayLike, means: ArrayLike, covariances: ArrayLike, covariance_type: CovarianceType
    ) -> Mixture:
        """Make a mixture from normalised log-weights, kept to the last bit."""
        kept = real_array(log_weights, "log_weights", InputError)
        return cls(np.exp(kept), means, covariances, covariance_type=covariance_type)._with_log_weights(kept)

    def to_sklearn(self) -> GaussianMixture:
        """Return a fitted `sklearn.mixture.GaussianMixture` of the same law. Raises MissingDependencyError."""
        try:
            from sklearn.mixture import GaussianMixture
        except ModuleNotFoundError:
            raise MissingDependencyError("to_sklearn needs scikit-learn", fix="pip install scikit-learn") from None

        fitted: Any = GaussianMixture(self.n_components, covariance_type=self.covariance_type)
        fitted.weights_, fitted.means_, fitted.covariances_ = self.weights, self.means, self.covariances
        match self.covariance_type:
            case "full" | "tied":
                inverse = np.linalg.inv(self._scales).swapaxes(1, 2)
                fitted.precisions_cholesky_ = inverse if self.covariance_type == "full" else inverse[0]
            case "diag":
                fitted.precisions_cholesky_ = 1 / self._scales
            case "spherical":
                fitted.precisions_cholesky_ = 1 / self._scales[:, 0]
        fitted.n_features_in_, fitted.converged_ = self.n_features, True
        return fitted

    @classmethod
    def from_sklearn(cls, fitted: GaussianMixture) -> Mixture:
        """Take over a fitted `sklearn.mixture.GaussianMixture`.

        Raises
        ------
        InputError : it was not fitted, or its parameters are not those of a mixture.
        """
        source: Any = fitted
        try:
            weights, means, covariances = source.weights_, source.means_, source.covariances_
            kind = source.covariance_type
        except AttributeError:
            raise InputError("this is no fitted GaussianMixture", got=type(source).__name__, fix="fit it") from None
        w = real_array(weights, "weights", InputError)
        total = float(w.sum())
        return cls(w / total if total > 0 else w, means, covariances, covariance_type=kind)
