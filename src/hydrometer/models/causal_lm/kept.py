"""States of a network at rows that are scored again and again: the truth's, beside every judged law."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

import numpy as np
from torch import Tensor

from hydrometer.models.sequences import Sequences

if TYPE_CHECKING:
    from hydrometer.models.causal_lm.model import CausalLM

__all__ = ["KeptStates", "kept_states"]

_KEPT_BYTES = 256 << 20


class KeptStates:
    """States of one network at the rows that it was last asked to keep, by batch."""

    def __init__(self, rows: bytes) -> None:
        self.rows = rows
        self.bytes = 0
        self.states: dict[bytes, Tensor] = {}

    def keep(self, batch: bytes, states: Tensor) -> None:
        """Keep a batch's states while there is room; lanes may do so at once."""
        size = states.numel() * states.element_size()
        if self.bytes + size <= _KEPT_BYTES:
            self.bytes += size
            self.states[batch] = states


def kept_states(lm: CausalLM, x: Sequences) -> KeptStates:
    """Return what is kept of a network at these rows, anew where it was asked for others last."""
    digest = hashlib.sha256(repr((x.prompt_ids, x.ids.shape)).encode())
    for column in (x.prompt_index, x.lengths, x.ids):
        digest.update(np.ascontiguousarray(column).tobytes())
    if lm.kept_states is None or lm.kept_states.rows != digest.digest():
        lm.kept_states = KeptStates(digest.digest())
    return lm.kept_states
