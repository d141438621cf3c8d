"""What a fit of mixtures returns."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from hydrometer.core.shown import Shown
from hydrometer.models.mixture.batch import MixtureBatch
from hydrometer.models.mixture.law import Mixture

__all__ = ["MixtureFit", "MixtureFitInfo"]

Floats = NDArray[np.float64]


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
