"""Decoders, which run a network one token at a time: of Llama type, with a cache, or without.

`running` finds out which is right for a network, and up to which length.

Shapes: B rows, A rows still kept, T tokens so far, D width, W rows of the output matrix.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Literal

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F
from transformers import DynamicCache

from hydrometer.core.array_types import Ints
from hydrometer.models.causal_lm.cpu.llama import Llama, Packing, PromptCache
from hydrometer.models.causal_lm.networks.cache import select_rows
from hydrometer.models.causal_lm.networks.network import Network
from hydrometer.models.causal_lm.networks.next_token import Logits

__all__ = ["CachedDecoder", "Decoder", "LlamaDecoder", "RecomputeDecoder", "Way", "last_states", "prefill"]


Way = Literal["cached", "padded", "by length", "alone"]
"""How transformers runs a network: with a cache, or whole prefixes at every step: padded on the right, batched by equal
length, or one by one."""

_TOGETHER = 8192  # positions of a batch of prefixes


class Decoder(ABC):
    """Draws rows one token at a time."""

    @abstractmethod
    def start(self) -> Logits:
        """Logits of every row's first token, (B, W)."""

    @abstractmethod
    def step(self, tokens_A: Ints) -> Logits:
        """Append a token to every kept row; logits of the next, (A, W)."""

    @abstractmethod
    def keep(self, rows: Ints) -> None:
        """Keep only these rows, by index among the kept ones."""

    def pays(self, active: int, kept: int) -> bool:
        """Whether dropping the finished rows pays if `active` of `kept` go on: always, where it copies nothing."""
        return active < kept


class LlamaDecoder(Decoder):
    """Rows of one worker through a Llama-type network.

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
        """Keep only these rows; the cache is not copied."""
        self._slot_A = self._slot_A[rows]


class CachedDecoder(Decoder):
    """Rows through any transformers network with a cache of keys and values."""

    def __init__(self, network: Network, prompts: list[tuple[int, ...]], of_B: Ints) -> None:
        self._network = network
        self._states_UD, cache, mask_US = prefill(network, prompts)
        self._of_B = torch.from_numpy(of_B).to(network.device)
        self._cache, self._mask_AS = select_rows(cache, self._of_B), mask_US[self._of_B]

    def start(self) -> Logits:
        """Logits of every row's first token; computed once a prompt."""
        return self._network.logits(self._states_UD)[self._of_B]

    def step(self, tokens_A: Ints) -> Logits:
        """Append a token to every kept row."""
        self._mask_AS = F.pad(self._mask_AS, (0, 1), value=True)
        ids_A1 = torch.from_numpy(tokens_A).to(self._network.device)[:, None]
        return self._network.logits(self._network.body(ids_A1, self._mask_AS, self._cache)[:, -1])

    def keep(self, rows: Ints) -> None:
        """Copy the rows that stay."""
        kept = torch.from_numpy(rows).to(self._network.device)
        self._mask_AS, self._cache = self._mask_AS[kept], select_rows(self._cache, kept)

    def pays(self, active: int, kept: int) -> bool:
        """Copying the cache pays once a fifth of the rows have finished."""
        return active < 0.8 * kept


class RecomputeDecoder(Decoder):
    """Rows through a network without a cache: each step runs whole prefixes, in any way but "cached"."""

    def __init__(self, network: Network, way: Way, prompts: list[tuple[int, ...]], of_B: Ints) -> None:
        self._network = network
        self._way: Way = way
        self._rows = [list(prompts[u]) for u in of_B]

    def start(self) -> Logits:
        """Logits of every row's first token."""
        return self._network.logits(last_states(self._network, self._way, self._rows))

    def step(self, tokens_A: Ints) -> Logits:
        """Append a token to every kept row."""
        for row, token in zip(self._rows, tokens_A.tolist(), strict=True):
            row.append(token)
        return self.start()

    def keep(self, rows: Ints) -> None:
        """Keep only these rows."""
        self._rows = [self._rows[i] for i in rows]


def last_states(network: Network, way: Way, prefixes: list[list[int]]) -> Tensor:
    """Run prefixes whole and return the state at the end of each, (prefixes, D), in any way but "cached"."""
    device = network.device
    if way == "padded":
        width = max(len(p) for p in prefixes)
        ids_AT = torch.tensor([p + [0] * (width - len(p)) for p in prefixes], device=device)
        last_A = torch.tensor([len(p) - 1 for p in prefixes], device=device)
        return network.body(ids_AT)[torch.arange(len(last_A), device=device), last_A]
    groups: dict[int, list[int]] = {}
    for i, p in enumerate(prefixes):
        groups.setdefault(i if way == "alone" else len(p), []).append(i)
    found: dict[int, Tensor] = {}
    for group in groups.values():
        n = max(1, _TOGETHER // len(prefixes[group[0]]))
        for part in (group[at : at + n] for at in range(0, len(group), n)):
            last = network.body(torch.tensor([prefixes[i] for i in part], device=device))[:, -1]
            found |= zip(part, last, strict=True)
    return torch.stack([found[i] for i in range(len(prefixes))])


def prefill(network: Network, prompts: list[tuple[int, ...]]) -> tuple[Tensor, DynamicCache, Tensor]:
    """Run U prompts through a network with a cache, padded on the left to end at the same position.

    Returns
    -------
    states_UD : the state that predicts the first token of the answer.
    cache : of the U prompts.
    mask_US : True on real tokens.
    """
    width = max(len(p) for p in prompts)
    ids_US = torch.tensor([[0] * (width - len(p)) + list(p) for p in prompts], device=network.device)
    mask_US = torch.tensor([[False] * (width - len(p)) + [True] * len(p) for p in prompts], device=network.device)
    cache = network.cache()
    return network.body(ids_US, mask_US, cache)[:, -1], cache, mask_US
