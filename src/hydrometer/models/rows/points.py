"""Points of R^d: the shared form of rows for densities, as `models.rows.sequences` is for token ids."""

from __future__ import annotations

from dataclasses import dataclass

from hydrometer.core.array_types import Floats
from hydrometer.core.shown import Shown

__all__ = ["Points"]


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
