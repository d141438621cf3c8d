"""States at the positions that predict given tokens, of Llama-type networks on the processor.

Shapes as in `networks.sources`.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from hydrometer.core.array_types import Ints
from hydrometer.models.causal_lm.cpu.llama import Array, Llama, Packing
from hydrometer.models.causal_lm.cpu.thread_pool import ThreadPool

__all__ = ["PackedSource"]


class PackedSource:
    """A network of Llama type, without padding.

    Parameters
    ----------
    prompts : U prompts of the rows; empty if no states will be computed. pool : runs the prompts.
    """

    def __init__(self, engine: Llama, prompts: list[tuple[int, ...]], pool: ThreadPool) -> None:
        self.engine = engine
        engine.pack_head()
        self.prompts = engine.prompts(prompts, pool) if prompts else engine.no_prompts()

    def states(self, ids: list[Ints], of_B: Ints) -> Tensor:
        """States of each row in turn, at each position that predicts one of its tokens."""
        first_BD = self.prompts.states[torch.from_numpy(of_B)]
        fed = np.array([len(row) - 1 for row in ids])
        if not fed.any():
            return first_BD
        at = Packing.of(fed, self.prompts.length[of_B])
        cache = self.engine.cache(len(ids), int(fed.max()), shared=True)
        tokens = np.concatenate([row[:-1] for row in ids])
        later_MD = self.engine.forward(tokens, at, cache, self.prompts, of_B)
        # Each row's first state, then its others.
        starts = np.cumsum(fed) - fed
        whole = torch.empty(len(tokens) + len(ids), later_MD.shape[1], dtype=later_MD.dtype)
        is_first = np.zeros(len(whole), np.bool_)
        is_first[starts + np.arange(len(ids))] = True
        mask = torch.from_numpy(is_first)
        whole[mask], whole[~mask] = first_BD, later_MD
        return whole

    def logits(self, states_MD: Tensor) -> Array:
        """Logits of every row of the output matrix, (M, W)."""
        return self.engine.logits(states_MD)
