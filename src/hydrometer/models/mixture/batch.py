"""Several mixtures of one shape as one object, and what a fit of mixtures returns."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import overload

import numpy as np
from numpy.typing import NDArray

from hydrometer.core.array_types import Floats
from hydrometer.core.shown import Shown
from hydrometer.models.mixture.law import CovarianceType, Mixture

__all__ = ["MixtureBatch", "MixtureFit", "MixtureFitInfo"]


class MixtureBatch(Shown, Sequence[Mixture]):
    """B mixtures as stacked arrays; a `Mixture` is made when it is asked for.

    Attributes
    ----------
    log_weights : (B, K) nats; -inf for a component without weight.
    means : (B, K, d)
    covariances : (B, ...) shaped as `covariance_type` asks.
    """

    __slots__ = ("covariance_type", "covariances", "log_weights", "means")

    def __init__(
        self, log_weights: Floats, means: Floats, covariances: Floats, covariance_type: CovarianceType
    ) -> None:
        self.log_weights, self.means, self.covariances = log_weights, means, covariances
        self.covariance_type: CovarianceType = covariance_type

    def _facts(self) -> dict[str, object]:
        b, k, d = self.means.shape
        return {"mixtures": b, "components": k, "dimensions": d, "covariance_type": self.covariance_type}

    def __len__(self) -> int:
        return len(self.means)

    @overload
    def __getitem__(self, i: int) -> Mixture: ...
    @overload
    def __getitem__(self, i: slice) -> MixtureBatch: ...
    def __getitem__(self, i: int | slice) -> Mixture | MixtureBatch:
        fields = (self.log_weights[i], self.means[i], self.covariances[i], self.covariance_type)
        return MixtureBatch(*fields) if isinstance(i, slice) else Mixture.from_log_weights(*fields)

    @property
    def weights(self) -> Floats:
        """(B, K) weights."""
        return np.exp(self.log_weights)


@dataclass(frozen=True, slots=True, repr=False)
class MixtureFitInfo(Shown):
    """How EM went.

    Attributes
    ----------
    log_likelihood : (B,) mean per point, weighted, nats.
    n_iter : (B,) iterations of the best start.
    converged : (B,) whether the gain fell below `tol` within `max_iter`.
    floored : (B,) variances, or pivots of covariances, that had to be raised to stay positive in the last step.
    reseeded : (B,) times an empty component was given to the point of least density.
    """

    log_likelihood: Floats
    n_iter: NDArray[np.int64]
    converged: NDArray[np.bool_]
    floored: NDArray[np.int64]
    reseeded: NDArray[np.int64]

    def _facts(self) -> dict[str, object]:
        return {name: getattr(self, name) for name in ("log_likelihood", "n_iter", "converged", "floored", "reseeded")}


@dataclass(frozen=True, slots=True)
class MixtureFit:
    """What `fit_mixture` returns: one model, or B models, and `info`."""

    model: Mixture | MixtureBatch
    info: MixtureFitInfo
