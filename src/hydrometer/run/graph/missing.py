"""What of a plan has to be made: what is not there, and what cannot be read though it is."""

from __future__ import annotations

from collections.abc import Mapping

from hydrometer.stages.nodes import Node
from hydrometer.store.artifacts import ArtifactStore

__all__ = ["missing_of"]


def missing_of(nodes: Mapping[str, Node], store: ArtifactStore) -> dict[str, Node]:
    """Return the nodes to make, in their order.

    Artifacts that were finished here and have not arrived in the store are sent first. One that is there and that a
    missing node or the results will read (`Node.in_results`) is checked now: a damaged one is missing, and then its own
    inputs are read, too.

    Parameters
    ----------
    nodes : by key, inputs before their users.
    """
    lacking = {key for _, key in store.absent([(n.stage, k) for k, n in nodes.items()])}
    lacking = {k for k in lacking if not store.restore(nodes[k].stage, k)}
    checked: set[str] = set()
    while True:
        read = {i for k in lacking for i in nodes[k].inputs if i in nodes}
        read |= {k for k, n in nodes.items() if n.in_results}
        read -= lacking | checked
        damaged = {key for _, key in store.damaged([(nodes[k].stage, k) for k in nodes if k in read])}
        checked |= read
        lacking |= damaged
        if not damaged:
            return {k: n for k, n in nodes.items() if k in lacking}
