"""Several mixtures of one shape as one object."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, overload

import numpy as np

if TYPE_CHECKING:
    pass
from hydrometer.core.shown import Shown
from hydrometer.models.mixture.law import CovarianceType, Floats, Mixture

__all__ = ["MixtureBatch"]


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
