"""Points of R^d: the shared form of rows for densities, as `models.rows.sequences` is for token ids."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from hydrometer.core.array_types import Floats
from hydrometer.core.shown import Shown

__all__ = ["Points", "density_exhibit"]

_GRID = 72
_SHOWN_POINTS = 200


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class Points(Shown):
    """Points drawn from a density: ``x`` (N, d) and ``log_prob`` (N,) nats."""

    x: Floats
    log_prob: Floats

    def _facts(self) -> dict[str, object]:
        return {"rows": len(self), "dimensions": int(self.x.shape[1])}

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


def density_exhibit(
    log_density: Callable[[Floats], Floats],
    corners: tuple[Floats, Floats],
    points: Points,
    means: Floats,
    weights: Floats,
) -> dict[str, object]:
    """Return a log density of the plane on a grid, and the first points, for contours.

    Parameters
    ----------
    log_density : of points (N, 2), (N,) nats.
    corners : (2,) and (2,), lower and upper.
    means, weights : (K, 2) and (K,) of what is marked.
    """
    low, high = corners
    steps = np.arange(_GRID, dtype=np.float64) / (_GRID - 1)
    x, y = (low[i] + (high[i] - low[i]) * steps for i in range(2))
    grid = np.column_stack([np.tile(x, _GRID), np.repeat(y, _GRID)])
    return {
        "kind": "density-2d",
        "version": 1,
        "x": x.round(6).tolist(),
        "y": y.round(6).tolist(),
        "log_density": log_density(grid).reshape(_GRID, _GRID).round(4).tolist(),
        "points": points.x[:_SHOWN_POINTS].round(4).tolist(),
        "means": means.round(6).tolist(),
        "weights": weights.round(9).tolist(),
    }
