"""Checks of a model's folder before a library reads it.

A folder of weights is untrusted input. Its sizes must be plausible and match its weights; it may not contain code, name
files outside itself, or hold text that two readers would parse differently.
"""

from __future__ import annotations

import math
import re
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Any

from hydrometer.core.errors import ModelError, brief, one_line
from hydrometer.core.io.yaml_io import read_json

__all__ = ["FILES", "MAX_CONFIG_BYTES", "check_files", "check_folder", "check_sizes", "tensor_shapes"]

MAX_CONFIG_BYTES = 10_000_000
MAX_TOKENIZER_BYTES = 200_000_000
MAX_TEMPLATE_BYTES = 1_000_000
MAX_HEADER_BYTES = 100_000_000  # the limit of safetensors
MAX_DEPTH = 32
# Largest value of a field, by its names in transformers' configs.
_LAYERS = ("num_hidden_layers", "n_layer", "n_layers", "num_layers")
_WIDTH = ("hidden_size", "n_embd", "d_model", "dim")
_LIMITS: dict[str, int] = {
    **dict.fromkeys(_LAYERS, 4096),
    **dict.fromkeys(_WIDTH, 2**20),
    **dict.fromkeys(("intermediate_size", "n_inner", "ffn_hidden_size", "ffn_dim", "moe_intermediate_size"), 2**22),
    **dict.fromkeys(
        ("num_attention_heads", "n_head", "num_key_value_heads", "num_experts", "num_local_experts"), 2**16
    ),
    **dict.fromkeys(("head_dim", "kv_lora_rank", "q_lora_rank", "state_size"), 2**20),
    "vocab_size": 2**26,
    **dict.fromkeys(("max_position_embeddings", "n_positions", "n_ctx"), 2**28),
}
_MAY_BE_ZERO = ("num_experts", "num_local_experts")
_TOKENIZER_FILES = ("vocab_file", "merges_file", "tokenizer_file", "spm_file")
# Fields that make transformers read other fields, or other files, than those checked here.
_ELSEWHERE = ("attribute_map", "configuration_files", "fast_tokenizer_files")
_EXPERT = re.compile(r"(.*\.experts\.)(\d{1,9})\.(.+)")
_KERNELS = ("attn_implementation", "experts_implementation")
_CONFIG = "config.json"
_BESIDE = ("tokenizer_config.json", "generation_config.json", "special_tokens_map.json")
_LARGE = {"tokenizer.json": MAX_TOKENIZER_BYTES, "chat_template.jinja": MAX_TEMPLATE_BYTES}
FILES = (_CONFIG, *_BESIDE, *_LARGE)
"""Files of a model, besides its weights, that are checked here."""


def check_folder(path: Path) -> None:
    """Refuse a folder that `save_pretrained` would not write.

    Raises
    ------
    ModelError : code, absurd or contradictory sizes, weights outside the folder, a damaged header, a file
        that is too large, nested too deeply, or holds a key twice.
    """
    config = check_files({name: path / name for name in FILES if (path / name).is_file()}, str(path))
    _check_weights(path, config)


def check_files(files: Mapping[str, Path], source: str) -> dict[str, Any]:
    """Refuse unsafe files of a model, its weights apart.

    Parameters
    ----------
    files : those of `FILES` that the model has, by name.
    source : names the model in messages.

    Returns
    -------
    dict : content of config.json, empty without one, as beside an adapter.

    Raises
    ------
    ModelError : see `check_folder`.
    """
    config = _read(files[_CONFIG], MAX_CONFIG_BYTES, source) if _CONFIG in files else {}
    _check_code(config, source)
    check_sizes(config, source)
    for name in (n for n in _BESIDE if n in files):
        own = _read(files[name], MAX_CONFIG_BYTES, source)
        _check_code(own, source, config.get("model_type"))
        _check_tokenizer(own)
    for name, most in _LARGE.items():
        if name in files and files[name].stat().st_size > most:
            raise ModelError(f"{name} is larger than {most} bytes", got=source, fix="give another model")
    return config


def check_sizes(config: Mapping[str, Any], source: str) -> None:
    """Refuse implausible sizes. Raises ModelError, which names the field."""
    fix = "correct the field, or give another model"
    for part in _parts(config):
        for name, value in part.items():
            # Architectures have many names for the number of layers; for unknown ones only the maximum is checked.
            known = name in _LIMITS
            if not known and not name.endswith("layers"):
                continue
            least, most = 0 if name in _MAY_BE_ZERO else 1, _LIMITS[name if known else _LAYERS[0]]
            for v in value if isinstance(value, list) else [value]:
                whole = v if isinstance(v, int) and not isinstance(v, bool) else None
                if whole is None and (v is None or not known):
                    continue
                if whole is None or whole > most or (known and whole < least):
                    what = f"{name} of a model must be a whole number from {least} to {most}, here it is {brief(v)}"
                    raise ModelError(what, got=source, fix=fix)


def _parts(value: object, depth: int = 0) -> Iterator[Mapping[str, Any]]:
    """Yield a configuration and its nested ones."""
    if isinstance(value, Mapping) and depth <= MAX_DEPTH:
        yield value
        for inner in value.values():
            yield from _parts(inner, depth + 1)


def _names_code(value: object, depth: int = 0) -> bool:
    """Whether an implementation, or one for a part of the model, names a repository."""
    if isinstance(value, dict | list):
        inner = value.values() if isinstance(value, dict) else value
        return depth > MAX_DEPTH or any(_names_code(v, depth + 1) for v in inner)
    return isinstance(value, str) and "/" in value


def _read(file: Path, limit: int, source: str) -> dict[str, Any]:
    fix = "fetch the model again, or give another"
    try:
        value: object = read_json(file, limit, unique=True)
    except (OSError, ValueError) as e:
        what = f"{file.name} of the model cannot be used: {one_line(str(e), 200)}"
        raise ModelError(what, got=source, fix=fix) from None
    if not isinstance(value, dict):
        raise ModelError(f"{file.name} of the model holds no object", got=source, fix=fix)
    if any(isinstance(v, float) and math.isnan(v) for part in _parts(value) for v in part.values()):
        raise ModelError(f"{file.name} of the model holds NaN", got=source, fix=fix)
    return value


def _check_code(config: Mapping[str, Any], source: str, model_type: object = None) -> None:
    """Refuse a model that needs code of its own, or that its configuration names."""
    for part in _parts(config):
        for key, value in part.items():
            if key in _ELSEWHERE:
                what = f"{key} has other fields or files read than those of their names, which is not followed"
                raise ModelError(what, got=source, fix="remove the field, or give another model")
            if any(k in key for k in _KERNELS) and _names_code(value):
                what = f"{key} names code to fetch and run, which is never done"
                raise ModelError(what, got=value, fix="remove the field")
    kind = config.get("model_type", model_type)
    if not config.get("auto_map"):
        return
    from transformers import CONFIG_MAPPING

    if not isinstance(kind, str) or kind not in CONFIG_MAPPING:
        what = "the model needs code of its own (auto_map), which is never run"
        raise ModelError(what, got=source, fix="give a model whose architecture transformers knows")


def _check_tokenizer(config: Mapping[str, Any]) -> None:
    for key in _TOKENIZER_FILES:
        name = config.get(key)
        if isinstance(name, str) and (Path(name).is_absolute() or ".." in Path(name).parts):
            what = f"{key} of tokenizer_config.json names a file outside the model's folder"
            raise ModelError(what, got=name, fix="remove the field")


def _check_weights(path: Path, config: Mapping[str, Any]) -> None:
    """Compare the weights' headers with the files' lengths and with the config's sizes."""
    index = path / "model.safetensors.index.json"
    files: list[object] = []
    if index.is_file():
        named = _read(index, MAX_HEADER_BYTES, str(path)).get("weight_map")
        files = list(named.values()) if isinstance(named, dict) else [None]
        for name in files:
            if not isinstance(name, str) or not name.endswith(".safetensors") or Path(name).name != name:
                what = "the index of the weights names something else than safetensors files beside it"
                raise ModelError(what, got=name, fix="save the model again with save_pretrained")
    shapes, holder, shards = dict[str, tuple[int, ...]](), dict[str, str](), set(files)
    for file in sorted(path.glob("*.safetensors")):
        found = tensor_shapes(file)
        shapes |= found
        for name in found if file.name in shards else ():  # which of the two is read depends on the reader
            if (other := holder.setdefault(name, file.name)) != file.name:
                what = f"two files of the weights hold the tensor {one_line(name, 100)}"
                raise ModelError(what, got=(other, file.name), fix="save the model again with save_pretrained")
    _check_experts(shapes, path)
    tensors, elements = len(shapes), sum(map(math.prod, shapes.values()))
    for sizes in (config, config.get("text_config")):
        if not isinstance(sizes, Mapping):
            continue
        layers = next((sizes[k] for k in _LAYERS if isinstance(sizes.get(k), int)), 0)
        width = next((sizes[k] for k in _WIDTH if isinstance(sizes.get(k), int)), 0)
        vocabulary = sizes["vocab_size"] if isinstance(sizes.get("vocab_size"), int) else 0
        if layers > tensors or vocabulary * width > 4 * elements + 1024:
            what = f"the config claims {layers} layers of width {width} and {vocabulary} ids, its weights hold less"
            got = f"{tensors} tensors of {elements} numbers in {path}"
            raise ModelError(what, got=got, fix="fetch the model again, or give another")


def _check_experts(names: Collection[str], path: Path) -> None:
    """Refuse a layer some of whose experts lack a tensor that others have.

    transformers stacks a layer's experts by number. A missing one shifts those after it, or raises an error that names
    nothing.
    """
    layers: dict[str, dict[int, set[str]]] = {}
    for name in names:
        if m := _EXPERT.fullmatch(name):
            layers.setdefault(m[1], {}).setdefault(int(m[2]), set()).add(m[3])
    missing = [
        f"{layer}{number}.{rest}"
        for layer, experts in sorted(layers.items())
        for number in range(min(max(experts) + 1, 2 * len(names)))
        for rest in sorted(set[str]().union(*experts.values()) - experts.get(number, set()))
    ]
    if missing:
        count = f"{len(missing)} {'tensor' if len(missing) == 1 else 'tensors'}"
        what = f"the weights lack {count} of experts: {', '.join(one_line(n, 100) for n in missing[:3])}"
        raise ModelError(what, got=str(path), fix="fetch the model again, or save it again with save_pretrained")


def tensor_shapes(file: Path) -> dict[str, tuple[int, ...]]:
    """Return the shape of each tensor of a safetensors file, by name, from its header.

    Raises
    ------
    ModelError : not a regular file, or a header that is invalid or contradicts the file's length.
    """
    from safetensors import SafetensorError, safe_open

    fix = "fetch the model again, or give another"
    if not file.is_file():  # reading a pipe would block
        raise ModelError(f"{file.name} is not sound: no plain file", got=str(file), fix=fix)
    try:
        with safe_open(file, framework="np") as f:
            return {str(name): tuple(f.get_slice(name).get_shape()) for name in f.keys()}
    except (OSError, SafetensorError) as e:
        raise ModelError(f"{file.name} is not sound: {one_line(str(e), 120)}", got=str(file), fix=fix) from None
