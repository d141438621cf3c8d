"""What of a plan has to be made: what is not there, and what cannot be read though it is."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import ClassVar, Protocol, TypeVar

from hydrometer.store.artifacts import ArtifactStore

__all__ = ["missing_of"]

# Read by those that need them alone; all others are read for the books.
_FOR_OTHERS = ("draw", "fit", "embed", "score", "score_texts")


class _Stage(Protocol):
    stage: ClassVar[str]

    @property
    def inputs(self) -> tuple[str, ...]: ...


_S = TypeVar("_S", bound=_Stage)


def missing_of(nodes: Mapping[str, _S], store: ArtifactStore, unread: Collection[str] = _FOR_OTHERS) -> dict[str, _S]:
    """Return the nodes to make, in their order.

    What was finished here and has not arrived in the store is sent first. An artifact that is there but that a missing
    node or the books will read is checked now: a damaged one is missing, and then its own inputs are read, too.

    Parameters
    ----------
    nodes : by key, inputs before their users.
    unread : stages that the books do not read.
    """
    lacking = {key for _, key in store.absent([(n.stage, k) for k, n in nodes.items()])}
    lacking = {k for k in lacking if not store.restore(nodes[k].stage, k)}
    checked: set[str] = set()
    while True:
        read = {i for k in lacking for i in nodes[k].inputs if i in nodes}
        read |= {k for k, n in nodes.items() if n.stage not in unread}
        read -= lacking | checked
        damaged = {key for _, key in store.damaged([(nodes[k].stage, k) for k in nodes if k in read])}
        checked |= read
        lacking |= damaged
        if not damaged:
            return {k: n for k, n in nodes.items() if k in lacking}
