"""Initial weights of a level: fresh, from decoder layers of another level, or from a pretrained model."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

from transformers import AutoConfig, PretrainedConfig, PreTrainedModel

from hydrometer.core.errors import LawMismatchError, ModelError, SpecError, one_line
from hydrometer.core.io.yaml_io import nearest
from hydrometer.models.causal_lm.inference.model import CausalLM
from hydrometer.models.causal_lm.inference.opened import OpenedLM
from hydrometer.models.causal_lm.inference.served_law import ServedLM
from hydrometer.models.causal_lm.level_spec import FromLayers, LevelSpec
from hydrometer.models.causal_lm.loading.checkpoint_safety import check_sizes
from hydrometer.models.causal_lm.networks.per_layer import first_fields, settable
from hydrometer.models.causal_lm.spec import FromSource
from hydrometer.models.causal_lm.training.layers import fresh_network, with_layers

__all__ = ["init_model", "scratch_config"]


def init_model(
    level: LevelSpec,
    truth: OpenedLM | ServedLM,
    above: OpenedLM | ServedLM,
    seed: int,
    start: OpenedLM | ServedLM | None = None,
) -> CausalLM:
    """Make a new float32 model for a level, which shares nothing with `truth` or `above`.

    Parameters
    ----------
    level : see `LevelSpec.init`.
    truth : gives tokenizer, stop set, the config of scratch models, and layers.
    above : the level above, gives layers. Served models give no config and no layers.
    seed : of the fresh weights.
    start : a model to go on from, in the place of all that; None for none.

    Raises
    ------
    SpecError : an unknown architecture field or layer.
    ModelError : an architecture that cannot be built.
    LawMismatchError : another vocabulary or stop set than the truth's.
    """
    if start is not None:
        return with_layers(_opened(start), None)
    match level.init:
        case "scratch":
            like = _opened(truth)
            model = fresh_network(scratch_config(like.model.config, level.architecture), seed)
        case "truth":
            return with_layers(_opened(truth), None)
        case "above":
            return with_layers(_opened(above), None)
        case FromLayers(layers_of=owner, layers=layers):
            return with_layers(_opened(truth if owner == "truth" else above), layers)
        case FromSource(source=source, revision=revision):
            lm = CausalLM.from_pretrained(source, dtype="float32", device=str(truth.device), revision=revision)
            if lm.vocabulary_hash != truth.vocabulary_hash or lm.stop_ids != truth.stop_ids:
                raise LawMismatchError(
                    "the source's vocabulary or stop set is not the truth's",
                    got=source,
                    fix="use a model of one tokenizer",
                )
            return lm
    model.generation_config = copy.deepcopy(like.model.generation_config)
    return CausalLM(_to(model, like), like.tokenizer)


def _opened(lm: OpenedLM | ServedLM) -> OpenedLM:
    if isinstance(lm, ServedLM):
        fix = "start from a model that is here, init: {source: PATH}"
        raise SpecError("a served model gives neither layers nor a configuration", got=lm.served.model, fix=fix)
    return lm


def scratch_config(base: PretrainedConfig, overrides: Mapping[str, Any]) -> PretrainedConfig:
    """Return the truth's config with fields overridden.

    Derived unless given: `head_dim` from width and heads, `num_key_value_heads` = heads, `intermediate_size` in
    proportion to the width, per-layer lists cut to the number of layers.
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
    for name in (n for n in (width, heads, layers) if n in fields):
        if not isinstance(new[name], int) or new[name] < 1:
            raise SpecError(f"architecture: {name} must be a whole number above 0", got=new[name])
    if heads in fields and {width, heads} & set(given):
        if new[width] % new[heads] and "head_dim" not in given:
            raise SpecError(f"architecture: {width} must be a multiple of {heads}", got=(new[width], new[heads]))
        derived = {"head_dim": new[width] // new[heads], "num_key_value_heads": new[heads]}
        new |= {k: v for k, v in derived.items() if fields.get(k) is not None and k not in given}
    if width in given and isinstance(fields.get(inner), int) and inner not in given:
        new[inner] = max(1, round(fields[inner] * new[width] / fields[width]))
    new |= {k: v for k, v in first_fields(fields, fields[layers], new[layers]).items() if k not in given}
    new = settable(base, new)
    for name in ("model_type", "architectures", "dtype", "torch_dtype", "transformers_version", "_name_or_path"):
        new.pop(name, None)
    try:
        check_sizes({k: v for k, v in new.items() if k in given}, "architecture")
    except ModelError as e:
        raise SpecError(f"architecture: {e.what}", fix="correct the field") from None
    try:
        return AutoConfig.for_model(base.model_type, **new)
    except Exception as e:  # a configuration's checks are its author's and may raise anything
        raise SpecError(f"architecture: {one_line(str(e), 200) or type(e).__name__}", got=dict(overrides)) from None


def _to(model: PreTrainedModel, like: OpenedLM) -> PreTrainedModel:
    network: Any = model
    return network.to(like.device)
