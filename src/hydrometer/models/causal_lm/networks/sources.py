"""States at the positions that predict given tokens, of networks that transformers runs.

Shapes: U prompts, B rows scored together, T positions, M tokens of all rows, D width, W rows of the output matrix.
"""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor
from transformers import DynamicCache

from hydrometer.core.array_types import Ints
from hydrometer.models.causal_lm.networks.cache import select_rows
from hydrometer.models.causal_lm.networks.decoders import Way, last_states, prefill
from hydrometer.models.causal_lm.networks.network import Network
from hydrometer.models.causal_lm.networks.next_token import Logits

__all__ = ["GeneralSource", "Source"]


class Source(Protocol):
    """States at the positions that predict a batch's tokens, and their logits."""

    def states(self, ids: list[Ints], of_B: Ints) -> Tensor:
        """(M, D): for each row in turn, of each of its tokens."""
        ...

    def logits(self, states_MD: Tensor) -> Logits:
        """(M, W)."""
        ...


class GeneralSource:
    """Any network of transformers, in a way that `running` found right.

    Parameters
    ----------
    prompts : U prompts of the rows; empty if no states will be computed.
    """

    def __init__(self, network: Network, way: Way, prompts: list[tuple[int, ...]]) -> None:
        self.network, self.prompts = network, prompts
        self.way: Way = way
        self.prefix = prefill(network, prompts) if way == "cached" and prompts else None

    def states(self, ids: list[Ints], of_B: Ints) -> Tensor:
        """States of each row in turn, at each position that predicts one of its tokens."""
        if self.prefix is not None:
            return self._cached(self.prefix, ids, of_B)
        whole = [[*self.prompts[u], *row[:-1].tolist()] for u, row in zip(of_B, ids, strict=True)]
        if self.way == "padded":
            return self._padded(whole, ids)
        # Each state is that of the prefix alone.
        ends = [range(len(row) - len(own) + 1, len(row) + 1) for row, own in zip(whole, ids, strict=True)]
        return last_states(
            self.network, self.way, [row[:end] for row, own in zip(whole, ends, strict=True) for end in own]
        )

    def logits(self, states_MD: Tensor) -> Logits:
        """Logits of every row of the output matrix, (M, W)."""
        return self.network.logits(states_MD)

    def _cached(self, prefix: tuple[Tensor, DynamicCache, Tensor], ids: list[Ints], of_B: Ints) -> Tensor:
        device = self.network.device
        length_B = torch.tensor([len(row) for row in ids], device=device)
        width = int(length_B.max())
        wanted_BT = torch.arange(width, device=device) < length_B[:, None]
        ids_BT = torch.zeros(len(ids), width, dtype=torch.long)
        for b, row in enumerate(ids):
            ids_BT[b, : len(row)] = torch.from_numpy(row)
        ids_BT = ids_BT.to(device)
        first_UD, cache, mask_US = prefix
        of = torch.from_numpy(of_B).to(device)
        states_BTD = first_UD[of][:, None]
        if width > 1:
            mask_BS = torch.cat([mask_US[of], wanted_BT[:, :-1]], dim=1)
            later_BTD = self.network.body(ids_BT[:, :-1], mask_BS, select_rows(cache, of))
            states_BTD = torch.cat([states_BTD, later_BTD], dim=1)
        return states_BTD[wanted_BT]

    def _padded(self, whole: list[list[int]], ids: list[Ints]) -> Tensor:
        width = max(len(r) for r in whole)
        ids_BS = torch.tensor([r + [0] * (width - len(r)) for r in whole], device=self.network.device)
        states_BSD = self.network.body(ids_BS)
        return torch.cat([states_BSD[b, len(r) - len(ids[b]) : len(r)] for b, r in enumerate(whole)])
