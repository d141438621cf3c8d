"""States of a network at rows that are scored again and again: the truth's, beside every judged law.

Rows come block by block, all blocks beside one law and then all beside the next. What was kept first stays: of a round
longer than there is room for, its first blocks are found again every time, where keeping the last would find none.
"""

from __future__ import annotations

import hashlib

import numpy as np
from torch import Tensor

from hydrometer.models.rows.sequences import Sequences

__all__ = ["KeptStates", "kept_states"]

_KEPT_BYTES = 256 << 20


class KeptStates:
    """States of one network at blocks of rows, by batch."""

    def __init__(self) -> None:
        self.bytes = 0
        self._blocks: dict[bytes, dict[bytes, Tensor]] = {}
        self._asked: dict[bytes, int] = {}
        self._clock = 0

    def of(self, block: bytes) -> dict[bytes, Tensor]:
        """Return what is kept of a block, to be filled by `keep`.

        A block that is asked for again ends a round: what was not asked for in that round is let go.
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
        """Keep a batch's states while there is room; lanes may do so at once."""
        if self.bytes + _size(found) <= _KEPT_BYTES:
            self.bytes += _size(found)
            states[batch] = found


def _size(states: Tensor) -> int:
    return states.numel() * states.element_size()


def kept_states(kept: KeptStates | None, x: Sequences) -> tuple[KeptStates, dict[bytes, Tensor]]:
    """Return what is kept of a network, nothing so far for None, and what of it at these rows."""
    digest = hashlib.sha256(repr((x.prompt_ids, x.ids.shape)).encode())
    for column in (x.prompt_index, x.lengths, x.ids):
        digest.update(np.ascontiguousarray(column).tobytes())
    kept = KeptStates() if kept is None else kept
    return kept, kept.of(digest.digest())
