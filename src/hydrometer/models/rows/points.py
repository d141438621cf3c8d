"""Points of R^d: the shared form of rows for densities, as `models.rows.sequences` is for token ids."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

__all__ = ["Points"]

Floats = NDArray[np.float64]


@dataclass(frozen=True, slots=True, eq=False)
class Points:
    """Points drawn from a density: ``x`` (N, d) and ``log_prob`` (N,) nats."""

    x: Floats
    log_prob: Floats

    def __len__(self) -> int:
        return int(self.x.shape[0])

    @property
    def lengths(self) -> None:
        """Points have no length."""
        return

    @property
    def strata(self) -> None:
        """Points answer no prompt."""
        return
