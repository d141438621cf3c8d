"""A small float32 network of another's class and settings, for cheap tests of its architecture.

Widths, vocabulary, experts and layers are reduced, and every length in the configuration (a window, a chunk, the
trained length of a rotary embedding) is made so short that a few tokens exceed it. Weights are large enough for every
part to affect the logits.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import PretrainedConfig, PreTrainedModel

from hydrometer.models.causal_lm.networks.per_layer import chosen_fields, cut_config

__all__ = ["LIMIT", "VOCABULARY", "limit_of", "make_twin"]

VOCABULARY = 64
LIMIT, _WINDOW = 16, 8  # positions
_MOST = 30_000_000  # parameters
_TRAINED = "original_max_position_embeddings"
_LENGTH = re.compile(r"sliding_window$|window_size$|chunk_size$|^local_attention$|^block_size$")
_INNER = re.compile(r"intermediate_size|ffn_dim|n_inner|ffn_hidden_size")
_EXPERTS = re.compile(r"^(num|n)_(routed_|local_)?experts$|^moe_num_experts$")
_IDS = re.compile(r"token_ids?$")


def make_twin(model: PreTrainedModel, layers: Sequence[Sequence[int]] | None = None) -> PreTrainedModel | None:
    """Return a twin in evaluation mode, on the CPU; None if none with all parts of the network can be built.

    Parameters
    ----------
    layers : choices of decoder layers, tried in this order; None tries a few.
    """
    kinds = {type(m) for m in model.modules()}
    n = int(model.config.get_text_config().num_hidden_layers)
    few = layers if layers is not None else [range(min(n, k)) for k in (2, 4, 8, n)]
    for widths in (True, False):
        for chosen in few:
            twin = _built(type(model), model.config, chosen, widths=widths)
            if twin is not None and {type(m) for m in twin.modules()} == kinds and _runs(twin):
                return twin
    return None


def limit_of(config: PretrainedConfig) -> int | None:
    """Return the least trained length of a rotary embedding in a configuration, or None."""
    found = [v for key, v in _lengths(config.to_dict()) if key == _TRAINED]
    return min(found, default=None)


def _lengths(value: object) -> Iterator[tuple[str, int]]:
    if isinstance(value, Mapping):
        for key, inner in value.items():
            if isinstance(inner, int) and not isinstance(inner, bool):
                yield str(key), inner
            else:
                yield from _lengths(inner)


def _shortened(value: Any, key: str = "") -> Any:
    if isinstance(value, Mapping):
        return {k: _shortened(v, str(k)) for k, v in value.items()}
    if isinstance(value, int) and not isinstance(value, bool) and value > 0:
        if key == _TRAINED:
            return min(value, LIMIT)
        if _LENGTH.search(key):
            return min(value, _WINDOW)
    return value


def _narrowed(fields: dict[str, Any], aliases: Mapping[str, str]) -> dict[str, Any]:
    """Return reduced sizes for existing fields, which keep the known relations between them."""
    width, heads = (aliases.get(k, k) for k in ("hidden_size", "num_attention_heads"))
    new: dict[str, Any] = {}
    if isinstance(fields.get(heads), int) and isinstance(fields.get(width), int):
        groups = fields.get("num_key_value_heads")
        size = fields.get("head_dim") or fields[width] // fields[heads]
        few = min(int(groups or fields[heads]), 2)
        new[heads] = few * (2 if isinstance(groups, int) and groups < fields[heads] else 1)
        new[width] = new[heads] * int(size)
        if isinstance(groups, int):
            new["num_key_value_heads"] = few
    for key, value in fields.items():
        if not isinstance(value, int) or isinstance(value, bool):
            continue
        if _INNER.search(key) and "expand" not in fields:
            new[key] = min(value, 64)
        elif _EXPERTS.search(key):
            new[key] = min(
                value, 2 * max(int(fields.get("num_experts_per_tok") or 1), int(fields.get("n_group") or 1), 2)
            )
        elif key in ("q_lora_rank", "kv_lora_rank"):
            new[key] = min(value, 32)
    return new


def _built(
    kind: type[PreTrainedModel], config: PretrainedConfig, chosen: Sequence[int], *, widths: bool
) -> PreTrainedModel | None:
    """Build a twin of some layers; None if the class refuses the sizes."""
    text = config.get_text_config()
    if text is not config:
        return None
    try:
        n, fields = int(text.num_hidden_layers), text.to_dict()
        layers = text.attribute_map.get("num_hidden_layers", "num_hidden_layers")
        ids = {k: min(v, VOCABULARY - 1) for k, v in fields.items() if _IDS.search(k) and isinstance(v, int)}
        new = chosen_fields(fields, chosen, n) | {layers: len(chosen), "vocab_size": VOCABULARY, **ids}
        new |= _narrowed(fields, text.attribute_map) if widths else {}
        small = cut_config(config, _shortened(fields | new))
        small.dtype = torch.float32
        with torch.device("meta"):
            counted: Any = kind(small)
        if sum(p.numel() for p in counted.parameters()) > _MOST:
            return None
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            twin: Any = kind(small)
            twin = twin.float().eval()
            _spread(twin)
    except Exception:  # classes refuse sizes with errors without a common base
        return None
    return twin


def _spread(twin: PreTrainedModel) -> None:
    """Add noise to the weights: fresh ones are too small to affect the logits."""
    with torch.no_grad():
        for p in twin.parameters():
            fan_in = p[0].numel() if p.ndim > 1 else 0
            p.add_(torch.randn(p.shape) * (max(0.1, min(0.5, 2 * fan_in**-0.5)) if fan_in else 0.1))


def _runs(twin: PreTrainedModel) -> bool:
    with torch.no_grad():
        try:
            logits: Tensor = twin(input_ids=torch.arange(3, 15)[None], use_cache=False).logits
        except Exception:  # as above
            return False
    return bool(torch.isfinite(logits).all()) and float(logits.std()) > 0
