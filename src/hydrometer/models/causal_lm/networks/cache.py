"""transformers' key/value cache with spare room: a step writes its keys and values in place.

The original concatenates, which copies the whole cache at every step.
"""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache, PretrainedConfig
from transformers.cache_utils import DynamicLayer

__all__ = ["is_extensible", "roomy_cache", "select_rows"]

_GROWTH = 32  # positions at least


class _RoomyLayer(DynamicLayer):
    """Keys and values are the front of larger buffers. A final subclass, as transformers requires one."""

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self._buffers: tuple[Tensor, Tensor] | None = None

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """Append, in place while there is room; return all keys and values, (B, G, S, d)."""
        past = self.get_seq_length()
        total = past + key_states.shape[-2]
        if self._buffers is None or self._buffers[0].shape[-2] < total:
            self._buffers = (
                self._grown(key_states, self.keys, past, total),
                self._grown(value_states, self.values, past, total),
            )
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        for buffer, new in zip(self._buffers, (key_states, value_states), strict=True):
            buffer[..., past:total, :] = new
        self.keys, self.values = (buffer[..., :total, :] for buffer in self._buffers)
        return self.keys, self.values

    @staticmethod
    def _grown(new: Tensor, old: Tensor | None, past: int, total: int) -> Tensor:
        shape = list(new.shape)
        shape[-2] = total + max(_GROWTH, total // 2)
        buffer = torch.empty(shape, dtype=new.dtype, device=new.device)
        if past and old is not None:
            buffer[..., :past, :] = old
        return buffer

    def selected(self, rows: Tensor) -> _RoomyLayer:
        """Return a layer of the chosen rows with buffers of its own."""
        chosen = copy.copy(self)
        chosen._buffers = None
        if self.is_initialized and self.keys is not None and self.values is not None:
            chosen.keys, chosen.values = self.keys[rows], self.values[rows]
        return chosen


def roomy_cache(config: PretrainedConfig) -> DynamicCache:
    """Return an empty cache for a network of that configuration."""
    cache = DynamicCache(config=config)
    cache.layers = [_RoomyLayer() if type(layer) is DynamicLayer else layer for layer in cache.layers]
    if not cache.layers:
        cache.layer_class_to_replicate = _RoomyLayer
    return cache


def is_extensible(cache: DynamicCache, length: int) -> bool:
    """Whether every layer of the cache holds just keys and values, of so many positions."""
    layers = all(isinstance(layer, DynamicLayer) for layer in cache.layers)
    return bool(cache.layers) and layers and cache.get_seq_length() == length


def select_rows(cache: DynamicCache, rows: Tensor) -> DynamicCache:
    """Return a cache of the chosen rows; `cache` is unchanged."""
    chosen = copy.copy(cache)
    chosen.layers = []
    for layer in cache.layers:
        if isinstance(layer, _RoomyLayer):
            chosen.layers.append(layer.selected(rows))
        else:
            other: Any = copy.copy(layer)
            other.batch_select_indices(rows)
            chosen.layers.append(other)
    return chosen
