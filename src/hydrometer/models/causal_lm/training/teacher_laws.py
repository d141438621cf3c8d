"""A teacher's next-token laws along the rows that a student is trained on.

The teacher's hidden states are made once, before the first step, for all rows in a fixed order, and kept: every epoch
finds the same numbers, and so does a fit that goes on after a kill. Where they would take more than `MAX_BYTES`, they
are made again for every batch.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

import numpy as np
import torch
from torch import Tensor

from hydrometer.core.spec import Selectivity
from hydrometer.models.causal_lm.inference.law import CausalLaw
from hydrometer.models.causal_lm.inference.opened import OpenedLM
from hydrometer.models.causal_lm.training.losses import TeacherRows
from hydrometer.models.causal_lm.training.packed_rows import IGNORED

__all__ = ["MAX_BYTES", "States", "TeacherLaws"]

MAX_BYTES = 1 << 30
States = Callable[[OpenedLM, Tensor, Tensor], Tensor]
"""States that predict a batch's answer tokens, (M, D), row by row, of ids and labels (B, T)."""


class TeacherLaws:
    """A teacher as objectives see it.

    Parameters
    ----------
    teacher : the unselected law.
    selectivity : of the law that is matched.
    states : how a network's states are made.
    """

    def __init__(self, teacher: CausalLaw, selectivity: Selectivity | None, states: States) -> None:
        self.lm, self.selectivity, self.states = teacher.lm, selectivity, states
        self._known: dict[bytes, Tensor] = {}

    def remember(self, batches: Iterable[tuple[Tensor, Tensor]], tokens: int, dtype: torch.dtype) -> None:
        """Make the states of all rows, in these batches of ids and labels; `tokens` are all answers' together."""
        width = self.lm.network.head.in_features if self.lm.is_split else self.lm.vocab_size
        if tokens * width * dtype.itemsize > MAX_BYTES:
            return
        for ids_BT, labels_BT in batches:
            states_MD = self._made(ids_BT, labels_BT).to("cpu", dtype)
            at = 0
            for key, n in _rows(ids_BT, labels_BT):
                self._known[key] = states_MD[at : at + n].clone()
                at += n

    def rows(self, ids_BT: Tensor, labels_BT: Tensor) -> TeacherRows:
        """Return the laws at the positions that predict a batch's answer tokens."""
        keys = [key for key, n in _rows(ids_BT, labels_BT) if n]
        if keys and all(key in self._known for key in keys):
            states_MD = torch.cat([self._known[key] for key in keys]).to(ids_BT.device)
        else:
            states_MD = self._made(ids_BT, labels_BT)
        if not self.lm.is_split:
            return TeacherRows(self.lm.network.logits(states_MD), selectivity=self.selectivity)
        head = self.lm.network.head
        return TeacherRows(states_MD, head.weight, head.bias, self.lm.holes, self.selectivity)

    @torch.no_grad()
    def _made(self, ids_BT: Tensor, labels_BT: Tensor) -> Tensor:
        return self.states(self.lm, ids_BT, labels_BT)


def _rows(ids_BT: Tensor, labels_BT: Tensor) -> list[tuple[bytes, int]]:
    """Return of each row what tells it apart, and how many answer tokens it has."""
    ids, wanted = ids_BT.cpu().numpy(), labels_BT.cpu().numpy() != IGNORED
    out: list[tuple[bytes, int]] = []
    for row, own in zip(ids, wanted, strict=True):
        at = np.flatnonzero(own)
        first, end = (int(at[0]), int(at[-1]) + 1) if len(at) else (0, 0)
        out.append((f"{first} ".encode() + row[:end].tobytes(), len(at)))
    return out
