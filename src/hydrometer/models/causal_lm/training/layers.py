"""A network of some decoder layers of another, with its embeddings, final norm and head.

The network is built from a configuration and its weights are loaded by name, so that the trained network is the one
that `from_pretrained` will open. Its float32 logits must equal the owner's with all other layers skipped, also on a
small twin, whose windows a few tokens exceed.
"""

from __future__ import annotations

import contextlib
import copy
import json
import re
from collections.abc import Generator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, PretrainedConfig, PreTrainedModel

from hydrometer.core.errors import ModelError, SpecError, one_line
from hydrometer.core.io.os_errors import is_out_of_memory
from hydrometer.models.causal_lm.inference.model import CausalLM
from hydrometer.models.causal_lm.inference.opened import OpenedLM
from hydrometer.models.causal_lm.loading.model_files import quiet
from hydrometer.models.causal_lm.networks.network import max_positions, network_errors
from hydrometer.models.causal_lm.networks.per_layer import chosen_fields, cut_config
from hydrometer.models.causal_lm.networks.twin import make_twin

__all__ = ["Configuration", "empty_network", "fresh_network", "layers_config", "with_layers", "without_layers"]

_POSITIONS = 24
_TOLERANCE = 1e-4  # of the largest logit's size
_FIX = "choose other layers, or use init: truth or init: scratch"


def fresh_network(config: PretrainedConfig, seed: int) -> PreTrainedModel:
    """Make a float32 network with fresh weights, without changing the global generators. Raises ModelError."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return _build(config)


def empty_network(config: PretrainedConfig) -> PreTrainedModel:
    """Return a network of a configuration without storage, for counting. Raises ModelError."""
    return _empty(Configuration.of(config))


@dataclass(frozen=True, slots=True)
class Configuration:
    """A configuration, hashable by its JSON, which alone would lose infinities."""

    kind: type[PretrainedConfig]
    body: str
    config: PretrainedConfig = field(compare=False)

    @classmethod
    def of(cls, config: PretrainedConfig) -> Configuration:
        """Make one of a configuration as it is now."""
        return cls(type(config), config.to_json_string(use_diff=False), config)


@lru_cache(maxsize=64)
def _empty(named: Configuration) -> PreTrainedModel:
    with torch.device("meta"):
        return _build(copy.deepcopy(named.config))


def _build(config: PretrainedConfig) -> PreTrainedModel:
    try:
        with quiet():
            return AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    except Exception as e:  # a network's checks of its sizes are its author's and may raise anything
        if is_out_of_memory(e):
            raise
        said = one_line(str(e), 200) or type(e).__name__
        fix = "check the architecture's fields"
        raise ModelError(f"the architecture cannot be built: {said}", got=config.model_type, fix=fix) from None


def layers_config(base: PretrainedConfig, chosen: Sequence[int]) -> PretrainedConfig:
    """Return the config of a model of some decoder layers; see `per_layer`. Raises ModelError."""
    text = base.get_text_config()
    n = int(text.num_hidden_layers)
    if list(chosen) == list(range(n)):
        return copy.deepcopy(base)
    layers = text.attribute_map.get("num_hidden_layers", "num_hidden_layers")
    try:
        return cut_config(base, chosen_fields(text.to_dict(), chosen, n) | {layers: len(chosen)})
    except Exception as e:  # a configuration's checks are its author's and may raise anything
        said = one_line(str(e), 200) or type(e).__name__
        what = f"layers {[*chosen]} of the model have no configuration: {said}"
        raise ModelError(what, got=base.model_type, fix=_FIX) from None


def with_layers(source: OpenedLM, chosen: Sequence[int] | None) -> CausalLM:
    """Copy a model, or only some of its decoder layers with embeddings, final norm and head.

    Raises
    ------
    SpecError : an unknown layer.
    ModelError : the model has no list of decoder layers, or the chosen ones do not form a network of its class.
    """
    source = source.float32()
    if chosen is None:
        model = _renumbered(source.model, None)
    else:
        _, n = _layer_list(source.model)
        if max(chosen) >= n:
            raise SpecError(f"layers are counted from 0 to {n - 1}", got=list(chosen))
        model = _renumbered(source.model, chosen)
        if list(chosen) != list(range(n)):
            _check(source.model, model, chosen)
            twin = make_twin(source.model, [range(n)])
            if twin is not None:
                _check(twin, _renumbered(twin, chosen), chosen)
    model.generation_config = copy.deepcopy(source.model.generation_config)
    network: Any = model
    return CausalLM(network.to(source.device), source.tokenizer)


def without_layers(source: OpenedLM, left_out: Sequence[int]) -> CausalLM:
    """Copy a model without some of its decoder layers, counted from 0. Raises SpecError, ModelError."""
    n = _layer_list(source.model)[1]
    if unknown := sorted(set(left_out) - set(range(n))):
        raise SpecError(f"layers are counted from 0 to {n - 1}", got=unknown)
    return with_layers(source, [i for i in range(n) if i not in left_out])


def _renumbered(owner: PreTrainedModel, chosen: Sequence[int] | None) -> PreTrainedModel:
    """Build a network of the chosen layers, or of all for None, with the owner's weights."""
    if chosen is None:
        model, state = fresh_network(copy.deepcopy(owner.config), seed=0), owner.state_dict()
    else:
        model = fresh_network(layers_config(owner.config, chosen), seed=0)
        state = _renamed(owner.state_dict(), _layer_list(owner)[0], chosen)
    if type(model) is not type(owner):
        what = "a network of a class of its own cannot be built anew: saved and opened again, it would be another"
        raise ModelError(what, got=type(owner).__name__, fix="give a model of a class that transformers opens")
    try:
        model.load_state_dict(state, strict=True)
    except RuntimeError as e:
        if is_out_of_memory(e):
            raise
        what = "the chosen layers are of other kinds than the model has at their new places"
        raise ModelError(what, got=None if chosen is None else [*chosen], fix=_FIX) from None
    return model.eval()


def _renamed(state: Mapping[str, Tensor], name: str, chosen: Sequence[int]) -> dict[str, Tensor]:
    numbered = re.compile(rf"^{re.escape(name)}\.(\d+)\.(.+)$")
    kept: dict[str, Tensor] = {}
    layers: dict[int, dict[str, Tensor]] = {}
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


@torch.no_grad()
def _check(owner: PreTrainedModel, made: PreTrainedModel, chosen: Sequence[int]) -> None:
    """Refuse a network whose logits differ from those of the owner's chosen layers. Raises ModelError."""
    text = owner.config.get_text_config()
    n = min(_POSITIONS, max_positions(text) or _POSITIONS)
    noise = torch.Generator().manual_seed(0)
    ids = torch.randint(int(text.vocab_size), (1, n), generator=noise)
    with network_errors(owner, "running the chosen layers"):
        with _only(owner, made, chosen):
            wanted = owner(input_ids=ids.to(owner.device), use_cache=False).logits.cpu()
        logits = made(input_ids=ids, use_cache=False).logits
        again = type(made.config).from_dict(_decoded(made.config)).to_dict() == made.config.to_dict()
    off = float((logits - wanted).abs().max())
    size = max(1.0, float(wanted.abs().max()))
    if not (again and off <= _TOLERANCE * size):
        what = "the chosen layers, under their new numbers, do not say what they say in the model"
        raise ModelError(what, got=[*chosen], fix=_FIX)


def _decoded(config: PretrainedConfig) -> dict[str, Any]:
    """A configuration's fields after saving and loading."""
    fields: dict[str, Any] = json.loads(config.to_json_string(use_diff=False))

    def plain(value: Any) -> Any:
        if isinstance(value, dict):
            return float(value["__float__"]) if set(value) == {"__float__"} else {k: plain(v) for k, v in value.items()}
        return [plain(v) for v in value] if isinstance(value, list) else value

    return plain(fields)


@contextlib.contextmanager
def _only(owner: PreTrainedModel, made: PreTrainedModel, chosen: Sequence[int]) -> Generator[None]:
    """Make the owner run its chosen layers only."""
    name, n = _layer_list(owner)
    layers: Any = owner.get_submodule(name)
    with contextlib.ExitStack() as held:
        if all(a < b for a, b in pairwise(chosen)):
            # In ascending order: the others run too, and their output is ignored. No layer is renumbered.
            for i in set(range(n)) - set(chosen):
                held.callback(layers[i].register_forward_hook(_pass_on, with_kwargs=True).remove)
        else:
            parent, _, last = name.rpartition(".")
            above, config = owner.get_submodule(parent), owner.config.get_text_config()
            before = dict(vars(config))
            held.callback(vars(config).update, before)
            held.callback(setattr, above, last, layers)
            setattr(above, last, nn.ModuleList([layers[i] for i in chosen]))
            vars(config).update(vars(made.config.get_text_config()))
        yield


def _pass_on(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> Any:
    """Replace a layer's output by its input."""
    given = args[0] if args else kwargs["hidden_states"]
    return (given, *output[1:]) if isinstance(output, tuple) else given
