"""Optional capabilities of families whose models are trained: what their fits may ask for."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING, Literal, Protocol, runtime_checkable

from hydrometer.core.rng import Stream
from hydrometer.models.base import Law, Level, Samples

if TYPE_CHECKING:
    from hydrometer.core.distillation import TeacherLaw
    from hydrometer.core.spec import ChainSpec

__all__ = ["Budget", "Budgets", "DrawsInFits", "FitsTogether", "KeepsLaws", "StartsAlone"]


@runtime_checkable
class FitsTogether(Protocol):
    """A family whose fits may take several processes: an optional capability.

    Each process calls `fit` with the same request, inside a group of torch.distributed; each gets the whole model.
    """

    def workers(self, level: Level) -> int:
        """Return how many processes fit a level together; 1 for an ordinary fit."""
        ...

    def group(self, chain: ChainSpec, rank: int, n_workers: int, meeting: Path) -> AbstractContextManager[None]:
        """Join a group on this machine, which meets at a file that is not there yet."""
        ...


@runtime_checkable
class StartsAlone(Protocol):
    """A family whose fits by maximum likelihood may need no model above, which is then not opened: optional."""

    def starts_above(self, level: Level) -> bool:
        """Whether a fit of the level takes anything of the model above; else `FitRequest.teacher` is None."""
        ...


@runtime_checkable
class DrawsInFits(Protocol):
    """A family whose students draw rows of their own while they are fitted: an optional capability."""

    def own_rows(self, chain: ChainSpec, level: Level, rows: int, share: float) -> int:
        """Return how many rows that share of the steps of a fit to `rows` takes, evaluations included."""
        ...


Budget = Literal["epochs", "tokens", "steps", "compute"]


@runtime_checkable
class Budgets(Protocol):
    """A family whose ways to distil may be compared at other budgets than equal epochs: an optional capability."""

    def budget(self, chain: ChainSpec) -> Budget:
        """Return what the chain's distilled fits have in common with `mle` on the teacher's rows."""
        ...

    def steps(self, level: Level, rows: int) -> tuple[int, int]:
        """Return the steps of an epoch of so many rows, and of the fit."""
        ...

    def at_steps(self, chain: ChainSpec, role: str, steps: int) -> ChainSpec:
        """Return the chain with a level that is fitted for so many steps."""
        ...


@runtime_checkable
class KeepsLaws(Protocol):
    """A family whose fits may read a teacher's next-token laws as they were kept along rows: an optional capability."""

    def keep_law(
        self, law: Law, rows: Samples, asked: TeacherLaw, folder: Path, *, stream: Stream, start: int
    ) -> Mapping[str, object]:
        """Write a selected law along rows into `folder`, and return facts; `FitRequest.kept` names the folder.

        Parameters
        ----------
        law : of the teacher, selected.
        asked : what is kept.
        stream, start : of what is drawn, and number of the first row in it; beside the first row comes what fits
            measure by.
        """
        ...

    def kept_bytes(
        self, chain: ChainSpec, asked: TeacherLaw, rows: int, start: int, mean: float | None = None
    ) -> float:
        """Return the bytes that it takes along rows of `mean` tokens on average; without `mean` at most."""
        ...
