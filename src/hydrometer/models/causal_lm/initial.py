"""The network a level starts from: fresh weights, decoder layers of another level, or another pretrained model."""

from __future__ import annotations

import copy
import re
from collections.abc import Mapping, Sequence
from typing import Any, cast

import torch
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM, PretrainedConfig, PreTrainedModel

from hydrometer.core.documents import nearest
from hydrometer.core.errors import LawMismatchError, ModelError, SpecError
from hydrometer.models.causal_lm.model import CausalLM
from hydrometer.models.causal_lm.spec import FromLayers, FromSource, LevelSpec
from hydrometer.models.causal_lm.vet import check_sizes

__all__ = ["fresh_network", "init_model", "layers_config", "scratch_config"]


def init_model(level: LevelSpec, truth: CausalLM, above: CausalLM, seed: int) -> CausalLM:
    """Make a new float32 model for a level; nothing it holds is shared with `truth` or `above`.

    Parameters
    ----------
    level : see `LevelSpec.init`.
    truth : gives tokenizer, stop set, the config of scratch models, and layers.
    above : the level above, gives layers.
    seed : of the fresh weights.

    Raises
    ------
    SpecError : an unknown architecture field, a layer that is not there.
    ModelError : an architecture that cannot be built.
    LawMismatchError : another vocabulary or stop set than the truth's.
    """
    match level.init:
        case "scratch":
            model = fresh_network(scratch_config(truth.model.config, level.architecture), seed)
        case "truth":
            return _with_layers(truth, None)
        case "above":
            return _with_layers(above, None)
        case FromLayers(layers_of=owner, layers=layers):
            return _with_layers(truth if owner == "truth" else above, layers)
        case FromSource(source=source, revision=revision):
            lm = CausalLM.from_pretrained(source, dtype="float32", device=str(truth.device), revision=revision)
            if lm.vocabulary_hash != truth.vocabulary_hash or lm.stop_ids != truth.stop_ids:
                raise LawMismatchError(
                    "the source's vocabulary or stop set is not the truth's",
                    got=source,
                    fix="use a model of one tokenizer",
                )
            return lm
    model.generation_config = copy.deepcopy(truth.model.generation_config)
    return CausalLM(_to(model, truth), truth.tokenizer)


def scratch_config(base: PretrainedConfig, overrides: Mapping[str, Any]) -> PretrainedConfig:
    """Return the truth's config with fields overridden.

    What is not given but follows from what is: `head_dim` from width and heads, `num_key_value_heads` = heads,
    `intermediate_size` in proportion to the width, per-layer lists cut to the number of layers.
    """
    fields: dict[str, Any] = base.to_dict()
    aliases = base.attribute_map
    given: dict[str, Any] = {}
    for key, value in overrides.items():
        name = aliases.get(key, key)
        if name not in fields:
            known = sorted({*fields, *aliases})
            raise SpecError(f"unknown architecture field {key!r}; {nearest(key, known)}", got=base.model_type)
        given[name] = value
    width, heads, layers, inner = (
        aliases.get(k, k) for k in ("hidden_size", "num_attention_heads", "num_hidden_layers", "intermediate_size")
    )
    new = fields | given
    for name in (width, heads, layers):
        if not isinstance(new[name], int) or new[name] < 1:
            raise SpecError(f"architecture: {name} must be a whole number above 0", got=new[name])
    if {width, heads} & set(given):
        if new[width] % new[heads] and "head_dim" not in given:
            raise SpecError(f"architecture: {width} must be a multiple of {heads}", got=(new[width], new[heads]))
        derived = {"head_dim": new[width] // new[heads], "num_key_value_heads": new[heads]}
        if isinstance(fields.get(inner), int):
            derived[inner] = max(1, round(fields[inner] * new[width] / fields[width]))
        new |= {k: v for k, v in derived.items() if fields.get(k) is not None and k not in given}
    for name, value in fields.items():
        if isinstance(value, list) and name.startswith("layer") and name not in given:
            new[name] = value[: new[layers]] if new[layers] <= len(cast("list[Any]", value)) else None
    for name in ("model_type", "architectures", "dtype", "torch_dtype", "transformers_version", "_name_or_path"):
        new.pop(name, None)
    try:
        check_sizes({k: v for k, v in new.items() if k in given}, "architecture")
    except ModelError as e:
        raise SpecError(f"architecture: {e.what}", fix="correct the field") from None
    try:
        return AutoConfig.for_model(base.model_type, **new)
    except (ValueError, TypeError, KeyError) as e:
        raise SpecError(f"architecture: {e}", got=dict(overrides)) from None


def fresh_network(config: PretrainedConfig, seed: int) -> PreTrainedModel:
    """Make a float32 network with fresh weights; the global generators stay as they are."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        try:
            return AutoModelForCausalLM.from_config(config, dtype=torch.float32)
        except (ValueError, TypeError, RuntimeError, AttributeError) as e:
            raise ModelError(f"the architecture cannot be built: {e}", fix="check the architecture's fields") from None


def _with_layers(source: CausalLM, chosen: Sequence[int] | None) -> CausalLM:
    """Copy a model, or only some of its decoder layers with embeddings, final norm and head.

    The network is built anew from its config and the weights are loaded by name, so that what is trained is what
    `from_pretrained` will open.
    """
    source = source.float32()
    name, n = _layer_list(source.model)
    chosen = range(n) if chosen is None else chosen
    if max(chosen) >= n:
        raise SpecError(f"layers are counted from 0 to {n - 1}", got=list(chosen))
    model = fresh_network(layers_config(source.model.config, chosen), seed=0)
    model.load_state_dict(_renumbered(source.model.state_dict(), name, chosen), strict=True)
    model.generation_config = copy.deepcopy(source.model.generation_config)
    return CausalLM(_to(model, source), source.tokenizer)


def layers_config(base: PretrainedConfig, chosen: Sequence[int]) -> PretrainedConfig:
    """Return the config of a model of some decoder layers; lists with an entry a layer keep the chosen entries."""
    config = copy.deepcopy(base)
    text = config.get_text_config()
    n = int(text.num_hidden_layers)
    for key, value in list(text.to_dict().items()):
        if key.startswith("layer") and isinstance(value, list) and len(cast("list[Any]", value)) == n:
            setattr(text, key, [value[i] for i in chosen])
    text.num_hidden_layers = len(chosen)
    return config


def _renumbered(state: Mapping[str, torch.Tensor], name: str, chosen: Sequence[int]) -> dict[str, torch.Tensor]:
    numbered = re.compile(rf"^{re.escape(name)}\.(\d+)\.(.+)$")
    kept: dict[str, torch.Tensor] = {}
    layers: dict[int, dict[str, torch.Tensor]] = {}
    for key, tensor in state.items():
        if found := numbered.match(key):
            layers.setdefault(int(found[1]), {})[found[2]] = tensor
        else:
            kept[key] = tensor
    for new, old in enumerate(chosen):
        kept |= {f"{name}.{new}.{rest}": tensor for rest, tensor in layers[old].items()}
    return kept


def _layer_list(model: PreTrainedModel) -> tuple[str, int]:
    """Name and length of the list of decoder layers."""
    n = int(model.config.get_text_config().num_hidden_layers)
    for name, module in model.named_modules():
        if isinstance(module, nn.ModuleList) and len(module) == n:
            return name, n
    raise ModelError(
        "no list of decoder layers is found in the model", got=type(model).__name__, fix="use init: scratch"
    )


def _to(model: PreTrainedModel, like: CausalLM) -> PreTrainedModel:
    network: Any = model
    return network.to(like.device)
