"""What a truth is asked, where that is rendered from something else: what a family may offer besides the contract."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Protocol, runtime_checkable

if TYPE_CHECKING:
    from hydrometer.core.spec import ChainSpec

__all__ = ["RendersPrompts"]


@runtime_checkable
class RendersPrompts(Protocol):
    """A family whose prompts are rendered by a program, which may write something else another day."""

    def rendered(self, chain: ChainSpec) -> Mapping[str, object]:
        """Return the chain's prompts as they are rendered, JSON-able. Raises InputError."""
        ...

    def with_rendered(self, chain: ChainSpec, kept: Mapping[str, object]) -> ChainSpec:
        """Return the chain with prompts as they were rendered earlier, which hold while their source is the same.

        Raises InputError.
        """
        ...
