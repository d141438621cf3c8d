"""States at the positions that predict given tokens, of Llama-type networks on an accelerator.

Shapes as in `networks.sources`.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from hydrometer.core.array_types import Ints
from hydrometer.models.causal_lm.cuda.device_llama import DeviceLlama

__all__ = ["DeviceSource"]


class DeviceSource:
    """Rows packed without padding, each prompt run once.

    Parameters
    ----------
    prompts : of the rows; empty if no states will be computed.
    """

    def __init__(self, llama: DeviceLlama, prompts: list[tuple[int, ...]]) -> None:
        self._llama = llama
        self._prompts = llama.prompts(prompts) if prompts else None

    def states(self, ids: list[Ints], of_B: Ints) -> Tensor:
        """(M, D): for each row in turn, of each of its tokens."""
        assert self._prompts is not None
        order = np.argsort(of_B, kind="stable")
        fed = [torch.from_numpy(ids[b][:-1]) for b in order]
        first = self._prompts.states[torch.from_numpy(of_B[order]).to(self._llama.device)]
        longer = [i for i, row in enumerate(fed) if len(row)]
        later = iter(())
        if longer:
            found = self._llama.packed([fed[i] for i in longer], [int(of_B[order[i]]) for i in longer], self._prompts)
            later = iter(found.split([len(fed[i]) for i in longer]))
        parts = [[first[i][None], *([next(later)] if len(row) else [])] for i, row in enumerate(fed)]
        place = np.argsort(order)
        return torch.cat([x for b in place for x in parts[b]])

    def logits(self, states_MD: Tensor) -> Tensor:
        """(M, W)."""
        return self._llama.logits(states_MD)
