"""Ways to run a network one token at a time, one interface: Llama type, any with a cache, any without.

Shapes: B rows, A rows still kept, T tokens so far, D width, W rows of the output matrix.
"""

from __future__ import annotations

from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F
from transformers import DynamicCache

from hydrometer.models.causal_lm.cache import roomy_cache, select_rows
from hydrometer.models.causal_lm.llama import Llama, Packing, PromptCache
from hydrometer.models.causal_lm.model import CausalLM
from hydrometer.models.causal_lm.next_token import Logits

__all__ = ["CachedDecoder", "Decoder", "LlamaDecoder", "RecomputeDecoder", "prefill"]

Ints = NDArray[np.int64]


class Decoder(Protocol):
    """Rows that answer prompts, one token at a time."""

    def start(self) -> Logits:
        """Logits of every row's first token, (B, W)."""
        ...

    def step(self, tokens_A: Ints) -> Logits:
        """Append a token to every kept row; logits of the next, (A, W)."""
        ...

    def keep(self, rows: Ints) -> None:
        """Drop all kept rows but these, by index among the kept."""
        ...

    def pays(self, active: int, kept: int) -> bool:
        """Whether to drop the finished rows where `active` of `kept` go on: dropping has a price."""
        ...


class LlamaDecoder:
    """Rows of one lane through a Llama-type network.

    Parameters
    ----------
    engine : the network, packed.
    prompts : caches of all prompts. of_B : which prompt each row answers.
    longest : tokens drawn at most.
    """

    def __init__(self, engine: Llama, prompts: PromptCache, of_B: Ints, longest: int) -> None:
        self._engine, self._prompts, self._of_B = engine, prompts, of_B
        self._cache = engine.cache(len(of_B), longest - 1)
        self._slot_A = np.arange(len(of_B))
        self._steps = 0

    def start(self) -> Logits:
        """Logits of every row's first token; computed once a prompt."""
        used, of = np.unique(self._of_B, return_inverse=True)
        return self._engine.logits(self._prompts.states[torch.from_numpy(used)])[of]

    def step(self, tokens_A: Ints) -> Logits:
        """Append a token to every kept row."""
        place_A = np.full(len(tokens_A), self._steps)
        at = Packing(self._prompts.length[self._of_B[self._slot_A]] + place_A, self._slot_A, place_A)
        self._steps += 1
        return self._engine.logits(self._engine.forward(tokens_A, at, self._cache, self._prompts, self._of_B))

    def keep(self, rows: Ints) -> None:
        """Forget the others; the cache stays where it is."""
        self._slot_A = self._slot_A[rows]

    def pays(self, active: int, kept: int) -> bool:
        """Nothing is moved."""
        return active < kept


class CachedDecoder:
    """Rows through any transformers network that keeps keys and values."""

    def __init__(self, lm: CausalLM, prompts: list[tuple[int, ...]], of_B: Ints) -> None:
        self._lm = lm
        self._states_UD, cache, mask_US = prefill(lm, prompts)
        self._of_B = torch.from_numpy(of_B).to(lm.device)
        self._cache, self._mask_AS = select_rows(cache, self._of_B), mask_US[self._of_B]

    def start(self) -> Logits:
        """Logits of every row's first token; computed once a prompt."""
        return self._lm.logits(self._states_UD)[self._of_B]

    def step(self, tokens_A: Ints) -> Logits:
        """Append a token to every kept row."""
        self._mask_AS = F.pad(self._mask_AS, (0, 1), value=True)
        ids_A1 = torch.from_numpy(tokens_A).to(self._lm.device)[:, None]
        return self._lm.logits(self._lm.body(ids_A1, self._mask_AS, self._cache)[:, -1])

    def keep(self, rows: Ints) -> None:
        """Copy the rows that stay."""
        kept = torch.from_numpy(rows).to(self._lm.device)
        self._mask_AS, self._cache = self._mask_AS[kept], select_rows(self._cache, kept)

    def pays(self, active: int, kept: int) -> bool:
        """Copying the cache does when a fifth of the rows have finished."""
        return active < 0.8 * kept


class RecomputeDecoder:
    """Rows through a network without a cache: each step runs the whole prefix again, padded on the right."""

    def __init__(self, lm: CausalLM, prompts: list[tuple[int, ...]], of_B: Ints) -> None:
        self._lm = lm
        self._rows = [list(prompts[u]) for u in of_B]

    def start(self) -> Logits:
        """Logits of every row's first token."""
        width = max(len(r) for r in self._rows)
        ids_AT = torch.tensor([r + [0] * (width - len(r)) for r in self._rows], device=self._lm.device)
        last_A = torch.tensor([len(r) - 1 for r in self._rows], device=self._lm.device)
        states_ATD = self._lm.body(ids_AT)
        return self._lm.logits(states_ATD[torch.arange(len(last_A), device=last_A.device), last_A])

    def step(self, tokens_A: Ints) -> Logits:
        """Append a token to every kept row."""
        for row, token in zip(self._rows, tokens_A.tolist(), strict=True):
            row.append(token)
        return self.start()

    def keep(self, rows: Ints) -> None:
        """Forget the others."""
        self._rows = [self._rows[i] for i in rows]

    def pays(self, active: int, kept: int) -> bool:
        """Every row dropped is a row not run."""
        return active < kept


def prefill(lm: CausalLM, prompts: list[tuple[int, ...]]) -> tuple[Tensor, DynamicCache, Tensor]:
    """Run U prompts through a network with a cache, padded on the left so that all end at the same place.

    Returns
    -------
    states_UD : the state that predicts the first token of the answer.
    cache : of the U prompts.
    mask_US : True on real tokens.
    """
    width = max(len(p) for p in prompts)
    ids_US = torch.tensor([[0] * (width - len(p)) + list(p) for p in prompts], device=lm.device)
    mask_US = torch.tensor([[False] * (width - len(p)) + [True] * len(p) for p in prompts], device=lm.device)
    cache = roomy_cache(lm.model.config)
    return lm.body(ids_US, mask_US, cache)[:, -1], cache, mask_US
