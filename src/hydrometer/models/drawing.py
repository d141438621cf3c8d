"""Drawing blocks by an engine other than a law's own sampler: what a family may offer besides the contract."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from typing import TYPE_CHECKING, Literal, Protocol, runtime_checkable

from hydrometer.core.rng import Stream
from hydrometer.models.base import Family, Law, Samples

if TYPE_CHECKING:
    from hydrometer.core.spec import ChainSpec

__all__ = ["DrawsByEngine", "draw_block", "draw_identity", "release"]

Purpose = Literal["train", "judge"]


@runtime_checkable
class DrawsByEngine(Protocol):
    """A family whose chains may name an engine that draws their rows."""

    def draw_identity(self, chain: ChainSpec, role: str, purpose: Purpose) -> Mapping[str, object]:
        """Return what a draw's key needs besides the law and its stream; nothing where the law's own sampler draws."""
        ...

    def draw_block(
        self, chain: ChainSpec, law: Law, role: str, purpose: Purpose, n: int, *, stream: Stream, start: int
    ) -> tuple[Samples, Mapping[str, object]]:
        """Draw rows ``start .. start + n``, by an engine or by the law itself; and facts for the artifact."""
        ...

    def release(self) -> None:
        """Give back what an engine holds (memory of an accelerator); it opens again when it is needed."""
        ...


@cache
def _by_engine(family: Family) -> DrawsByEngine | None:
    """Whether a family has the capability, asked once: a cheap block takes less time than the question."""
    return family if isinstance(family, DrawsByEngine) else None


def draw_identity(family: Family, chain: ChainSpec, role: str, purpose: Purpose) -> Mapping[str, object]:
    """Return what names the drawing engine in a key; empty where there is none but the law's own sampler."""
    able = _by_engine(family)
    return {} if able is None else able.draw_identity(chain, role, purpose)


def draw_block(
    family: Family, chain: ChainSpec, law: Law, role: str, purpose: Purpose, n: int, *, stream: Stream, start: int
) -> tuple[Samples, Mapping[str, object]]:
    """Draw a block as the chain says; and facts for its artifact. Raises StageError."""
    able = _by_engine(family)
    if able is not None:
        return able.draw_block(chain, law, role, purpose, n, stream=stream, start=start)
    return law.sample(n, seed=stream, start=start), {}


def release(family: Family) -> None:
    """Give back what engines of a family hold."""
    able = _by_engine(family)
    if able is not None:
        able.release()
