"""Per-layer fields of a configuration, for a network of some of its layers.

Such fields have several forms, recognised by their structure rather than by name, so that future fields work too:

    a list with an entry a layer            layer_types, no_rope_layers, mlp_layer_types: the chosen entries
    a list of layers' indices               mlp_only_layers, full_attn_idxs, attn_layer_indices: new indices
    a mapping from layers' indices          the chosen entries under their new indices
    a pattern and its repeats               attention_types of gpt_neo: written out
    a pattern repeated to the end           block_types of recurrent_gemma: written out
    a number of first layers                first_k_dense_replace: how many of them are chosen
    a period and an offset                  attn_layer_period, attn_layer_offset: another pair, where one exists
    every so many layers, and exceptions    decoder_sparse_step, mlp_only_layers: all as exceptions

`training.layers` verifies the resulting configuration by comparing networks.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, TypeGuard

from transformers import PretrainedConfig

__all__ = ["chosen_fields", "cut_config", "first_fields", "settable"]

_NO_LAYERS = re.compile(r"token|architectures|label|languages|^quantization|^rope_|_mapping$")
_INDICES = re.compile(r"layers?$|layer_(idx|ind|num|id)|_?idxs?$|indices$|indexes$|_ids$")
_PATTERN = re.compile(r"types?$|pattern$")
_FIRST = re.compile(r"^first_k_|^num_dense_layers$|^n_dense_first|^max_window_layers$|^num_first_")


def chosen_fields(fields: Mapping[str, Any], chosen: Sequence[int], n: int) -> dict[str, Any]:
    """Return the fields that differ for a network of chosen layers, counted from 0, of n.

    Examples
    --------
    >>> chosen_fields({"layer_types": ["a", "b", "c"], "mlp_only_layers": [1, 2], "vocab_size": 8}, [0, 2], 3)
    {'layer_types': ['a', 'c'], 'mlp_only_layers': [1]}
    >>> chosen_fields({"attention_types": [[["global", "local"], 2]], "first_k_dense_replace": 1}, [1, 2], 4)
    {'attention_types': [[['local', 'global'], 1]], 'first_k_dense_replace': 0}
    >>> chosen_fields({"attn_layer_period": 2, "attn_layer_offset": 1}, [1, 3], 4)
    {'attn_layer_period': 1, 'attn_layer_offset': 0}
    """
    new: dict[str, Any] = {}
    for key, value in fields.items():
        if _NO_LAYERS.search(key):
            continue
        if isinstance(value, list | tuple):
            items = list(value)
            if (kinds := _written_out(items)) is not None and len(kinds) == n:
                new[key] = [[[kinds[i] for i in chosen], 1]]
            elif _are_indices(key, items, n):
                new[key] = [j for j, i in enumerate(chosen) if i in items]
            elif len(items) == n or (len(items) > n and "layer" in key):
                new[key] = [items[i] for i in chosen]
            elif 1 < len(items) < n and _PATTERN.search(key) and all(isinstance(k, str) for k in items):
                new[key] = [items[i % len(items)] for i in chosen]
        elif isinstance(value, Mapping) and value and (at := _by_index(value, n)) is not None:
            as_text = any(isinstance(k, str) for k in value)
            new[key] = {str(j) if as_text else j: at[i] for j, i in enumerate(chosen) if i in at}
        elif _FIRST.search(key) and _is_count(value):
            new[key] = sum(i < value for i in chosen)
    return new | _steps(fields, chosen, n) | _periods(fields, chosen)


def first_fields(fields: Mapping[str, Any], n: int, m: int) -> dict[str, Any]:
    """Return the fields that change from n layers to the first m; None selects the class's default.

    Examples
    --------
    >>> first_fields({"layer_types": ["a", "b", "c"], "mlp_only_layers": [1, 2]}, 3, 2)
    {'layer_types': ['a', 'b'], 'mlp_only_layers': [1]}
    >>> first_fields({"layer_types": ["a", "b", "c"], "mlp_only_layers": [1, 2]}, 3, 4)
    {'layer_types': None}
    """
    if m <= n:
        own = chosen_fields({k: v for k, v in fields.items() if isinstance(v, list | tuple | Mapping)}, range(m), n)
        return {k: v for k, v in own.items() if v != fields[k]}
    lists = chosen_fields({k: v for k, v in fields.items() if isinstance(v, list | tuple)}, range(n), n)
    return {k: None for k in lists if not _are_indices(k, list(fields[k]), n)}


def settable(config: PretrainedConfig, fields: Mapping[str, Any]) -> dict[str, Any]:
    """Return the fields without those that are read-only properties of the configuration's class."""
    aliases = config.attribute_map
    return {k: v for k, v in fields.items() if not isinstance(getattr(type(config), aliases.get(k, k), None), property)}


def cut_config(config: PretrainedConfig, fields: Mapping[str, Any]) -> PretrainedConfig:
    """Return a configuration with changed fields, as after saving and loading."""
    text, own = config.get_text_config(), config.to_dict()
    part = own
    if text is not config:
        name = next(k for k, v in vars(config).items() if v is text)
        own[name] = part = dict(own[name])
    part |= settable(text, fields)
    made = type(config).from_dict(copy.deepcopy(own))
    made._attn_implementation = config._attn_implementation  # pyright: ignore[reportPrivateUsage]
    return made


def _is_count(value: object) -> TypeGuard[int]:
    return isinstance(value, int) and not isinstance(value, bool)


def _are_indices(key: str, items: Sequence[Any], n: int) -> bool:
    """Whether a list contains layer indices; one or two flags, one a layer, may look alike and are not."""
    whole = all(_is_count(i) and 0 <= i < n for i in items) and len(set(items)) == len(items)
    return whole and bool(items) and _INDICES.search(key) is not None and not (len(items) == n and n <= 2)


def _written_out(items: Sequence[Any]) -> list[Any] | None:
    """Expand a list of patterns with their numbers of repeats; None if it is no such list."""
    pairs = [x for x in items if isinstance(x, list | tuple) and len(x) == 2]
    if not pairs or len(pairs) != len(items):
        return None
    if not all(isinstance(kinds, list | tuple) and _is_count(repeats) for kinds, repeats in pairs):
        return None
    return [kind for kinds, repeats in pairs for _ in range(repeats) for kind in kinds]


def _by_index(value: Mapping[Any, Any], n: int) -> dict[int, Any] | None:
    """Return a mapping with integer layer indices as keys; None if its keys are not such."""
    if not all(_is_count(k) or (isinstance(k, str) and k.isdecimal()) for k in value):
        return None
    at = {int(k): v for k, v in value.items()}
    return at if all(0 <= i < n for i in at) else None


def _steps(fields: Mapping[str, Any], chosen: Sequence[int], n: int) -> dict[str, Any]:
    """Experts in every n-th layer, with exceptions: list all dense layers as exceptions."""
    step, dense = fields.get("decoder_sparse_step"), fields.get("mlp_only_layers")
    if not _is_count(step) or step < 2 or not isinstance(dense, list | tuple | None):
        return {}
    every = {i for i in range(n) if (i + 1) % step} | set(dense or ())
    return {"decoder_sparse_step": 1, "mlp_only_layers": [j for j, i in enumerate(chosen) if i in every]}


def _periods(fields: Mapping[str, Any], chosen: Sequence[int]) -> dict[str, Any]:
    """Layers of a kind by period and offset: the least period that gives the chosen ones, if any."""
    new: dict[str, Any] = {}
    for period in (k for k in fields if k.endswith("_period")):
        offset = period.removesuffix("_period") + "_offset"
        p, o = fields[period], fields.get(offset)
        if not (_is_count(p) and _is_count(o) and p > 0):
            continue
        wanted = [i % p == o for i in chosen]
        found = next((pair for pair in _pairs(len(chosen)) if _marks(pair, len(chosen)) == wanted), None)
        if found is not None and wanted != _marks((p, o), len(chosen)):
            new |= {period: found[0], offset: found[1]}
    return new


def _pairs(m: int) -> Iterator[tuple[int, int]]:
    return ((p, o) for p in range(1, m + 2) for o in range(p))


def _marks(pair: tuple[int, int], m: int) -> list[bool]:
    return [j % pair[0] == pair[1] for j in range(m)]
