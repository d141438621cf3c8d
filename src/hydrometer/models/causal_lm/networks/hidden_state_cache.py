"""Cache of hidden states at rows that are scored repeatedly: the truth's, beside every judged law.

Rows come block by block, all blocks beside one law, then all beside the next. The cache keeps the first blocks when it
is full: they are found again in every round, where keeping the last ones would find none.
"""

from __future__ import annotations

import hashlib

import numpy as np
from torch import Tensor

from hydrometer.models.rows.sequences import Sequences

__all__ = ["MAX_BYTES", "HiddenStateCache", "cached_states"]

MAX_BYTES = 256 << 20


class HiddenStateCache:
    """States of one network at blocks of rows, by batch."""

    def __init__(self) -> None:
        self.bytes = 0
        self._blocks: dict[bytes, dict[bytes, Tensor]] = {}
        self._asked: dict[bytes, int] = {}
        self._clock = 0

    def of(self, block: bytes) -> dict[bytes, Tensor]:
        """Return a block's cached states, to be filled by `keep`.

        A block that is requested again ends a round: blocks not requested in that round are dropped.
        """
        self._clock += 1
        before = self._asked.get(block)
        if before is not None:
            for other in [b for b, at in self._asked.items() if at < before]:
                self.bytes -= sum(map(_size, self._blocks.pop(other, {}).values()))
                del self._asked[other]
        self._asked[block] = self._clock
        return self._blocks.setdefault(block, {})

    def keep(self, states: dict[bytes, Tensor], batch: bytes, found: Tensor) -> None:
        """Keep a batch's states while there is room; threads may call it concurrently."""
        if self.bytes + _size(found) <= MAX_BYTES:
            self.bytes += _size(found)
            states[batch] = found


def _size(states: Tensor) -> int:
    return states.numel() * states.element_size()


def cached_states(kept: HiddenStateCache | None, x: Sequences) -> tuple[HiddenStateCache, dict[bytes, Tensor]]:
    """Return a network's cache, a new one for None, and its states at these rows."""
    digest = hashlib.sha256(repr((x.prompt_ids, x.ids.shape)).encode())
    for column in (x.prompt_index, x.lengths, x.ids):
        digest.update(np.ascontiguousarray(column).tobytes())
    kept = HiddenStateCache() if kept is None else kept
    return kept, kept.of(digest.digest())
