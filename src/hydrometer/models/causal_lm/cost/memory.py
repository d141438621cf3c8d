"""Parameters, disk and memory of a chain's models, from their configurations.

Parameters are counted on networks without storage (torch's meta device), so the count is exact.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, Literal

import numpy as np
import torch
from transformers import AutoConfig, PretrainedConfig

from hydrometer.core.distillation import DENSE, MLE
from hydrometer.models.base import Footprint
from hydrometer.models.causal_lm.engines.served_model import Served
from hydrometer.models.causal_lm.inference.served_source import (
    ServedConfig,
    ServedSource,
    find_source,
    served_outline,
)
from hydrometer.models.causal_lm.level_spec import FromLayers, LevelSpec
from hydrometer.models.causal_lm.opening import judged_prompts, truth_opening
from hydrometer.models.causal_lm.spec import CausalLMChain, FromSource, GivenSource
from hydrometer.models.causal_lm.training.initialization import scratch_config
from hydrometer.models.causal_lm.training.layers import empty_network, layers_config
from hydrometer.models.causal_lm.training.memory.step_memory import BYTES, Batch, fit_bytes
from hydrometer.models.causal_lm.training.optimised import adapter_parameters
from hydrometer.models.causal_lm.training.teacher_laws import MAX_BYTES
from hydrometer.models.causal_lm.training_spec import Training
from hydrometer.models.rows.training_rows import IN_MEMORY

__all__ = [
    "count_parameters",
    "footprint",
    "judge_bytes",
    "level_configs",
    "on_accelerator",
    "row_bytes",
    "step_bytes",
    "trained_parameters",
]

_PARQUET = 6000  # bytes of a file's own, and of its prompts'
_JUDGED = 26_000


def level_configs(
    truth: PretrainedConfig, levels: Mapping[str, LevelSpec], teacher: GivenSource | None = None
) -> dict[str, PretrainedConfig]:
    """Return the configuration of the truth, of a teacher that is taken as it is, and of every level, by role."""
    configs = {"truth": truth}
    above = truth
    if teacher is not None:
        above = configs["teacher"] = _config_of(teacher.source, teacher.revision)
    for role, spec in levels.items():
        match spec.init:
            case "scratch":
                above = scratch_config(truth, spec.architecture)
            case "truth":
                above = truth
            case "above":
                pass
            case FromLayers(layers_of=owner, layers=layers):
                above = layers_config(truth if owner == "truth" else above, layers)
            case FromSource(source=source, revision=revision):
                above = _config_of(source, revision)
        configs[role] = above
    return configs


def _config_of(source: str | Served, revision: str | None) -> PretrainedConfig:
    resolved = find_source(source, revision)
    if isinstance(resolved, ServedSource):
        return served_outline(resolved).config
    resolved = resolved.base or resolved  # an adapter's network is its base's
    options: dict[str, Any] = {"revision": resolved.revision} if resolved.revision else {}
    return AutoConfig.from_pretrained(resolved.path, trust_remote_code=False, **options)


def count_parameters(config: PretrainedConfig) -> int:
    """Return how many parameters the network has, tied ones once; of one that is served, none are here."""
    if isinstance(config, ServedConfig):
        return 0
    return sum(p.numel() for p in empty_network(config).parameters())


def footprint(
    chain: CausalLMChain,
    configs: Mapping[str, PretrainedConfig],
    stage: Literal["draw", "fit", "judge"],
    role: str,
    rows: int,
    *,
    dtype: str | None = None,
    anywhere: bool = False,
    described: tuple[int, ...] | None = None,
) -> Footprint:
    """Return the bytes of a stage, without activations (`step_bytes`) and library overhead.

    Parameters
    ----------
    configs : of the truth and the levels, by role; see `level_configs`.
    dtype : precision of a draw or a score; None takes the widest that the stage may use.
    anywhere : also count an accelerator's memory.
    described : lengths of the prompts, where the truth is not at hand to count their tokens.

    Sources: `step_memory` for what a fit holds, its loss among it, `decoders` for keys and values.
    """

    def held(n_bytes: int) -> int:
        return n_bytes if anywhere or not on_accelerator(chain) else 0

    own, truth = configs[role], configs["truth"]
    n, longest = count_parameters(own), chain.truth.max_new_tokens
    match stage:
        case "draw":
            return Footprint(10 * rows, row_bytes(rows, longest), held(_drawn(chain, own, n, dtype, described)))
        case "fit":
            level = chain.level_specs.get(role)
            t = Training() if level is None else level.training
            fitted = fit_bytes(own, n, t)
            if role != "teacher" and set(chain.teacher_law) - {DENSE.to_json()}:
                fitted = max(fitted, 16 * n)  # what a kept law leaves out is measured by gradients of all weights
            fitted += BYTES[chain.judge_dtype] * count_parameters(truth)
            teacher, kept = configs.get("teacher", truth), 0
            matched = any(o != MLE.to_json() for o in chain.loss) and DENSE.to_json() in chain.teacher_law
            matched = matched and role != "teacher"
            if matched:
                kept = _remembered(teacher, rows * longest, 2 if t.bf16 else 4)
                kept += _remembered(teacher, chain.data.validate_ * longest, 4)
            if (
                role != "teacher"
                and "teacher" in configs
                and (matched or level is None or (level.starts_above and not chain.warm_start))
            ):
                fitted += BYTES[chain.judge_dtype] * count_parameters(teacher)
            if role != "teacher" and chain.warm_start:
                fitted += BYTES[chain.judge_dtype] * n
            ids = rows * longest * np.min_scalar_type(_vocabulary(truth) - 1).itemsize
            scratch = ids if ids > IN_MEMORY else 0
            stored = 4 * n + _adapter_bytes(own, n, level)
            return Footprint(stored, stored + _tokenizer_bytes(own), held(fitted) + kept, scratch)
        case "judge":
            both = n if role == "truth" else n + count_parameters(truth)
            # Of each side's rows: two log-probabilities, two controls, and two of each prefix length.
            columns = 4 + 2 * (1 + math.ceil(math.log2(longest)))
            return Footprint(16 * rows, 8 * columns * rows, held(both * BYTES[dtype or chain.judge_dtype]))


def _drawn(
    chain: CausalLMChain, own: PretrainedConfig, n: int, dtype: str | None, described: tuple[int, ...] | None
) -> int:
    """Weights, logits, keys and values of rows and of their distinct prompts, each kept as long as the longest."""
    trained = judged = described
    if trained is None or judged is None:
        asked_of, others = truth_opening(chain.truth)[1], judged_prompts(chain.truth)
        trained, judged = (tuple(map(len, p.ids)) for p in (asked_of, asked_of if others is None else others))
    asked = [(trained, chain.draw_dtype), (judged, chain.judge_dtype)]
    if dtype is not None:
        asked = [(p, dtype) for p, own_dtype in asked if own_dtype == dtype] or [(p, dtype) for p, _ in asked]
    rows, logits = chain.block_rows, 0 if isinstance(own, ServedConfig) else _vocabulary(own)
    most = 0
    for lengths, width in asked:
        tokens = rows * chain.truth.max_new_tokens + min(len(lengths), rows) * max(lengths)
        most = max(most, BYTES[width] * (n + tokens * _keys_and_values(own) + rows * logits))
    return most


def _remembered(teacher: PretrainedConfig, tokens: int, width: int) -> int:
    """A teacher's states along rows, which are kept where they are few."""
    n_bytes = tokens * int(teacher.get_text_config().hidden_size) * width
    return n_bytes if n_bytes <= MAX_BYTES else 0


def on_accelerator(chain: CausalLMChain) -> bool:
    """Whether the chain's networks run on an accelerator of this machine."""
    return chain.device == "cuda" or (chain.device == "auto" and torch.cuda.is_available())


def row_bytes(rows: int, tokens: float) -> int:
    """Return the bytes of stored rows of so many tokens each, without the artifact's `meta.json`.

    A stored token is two float32 log-probabilities, 8 bytes, and a dictionary-encoded id: 2 bytes in text, up to 7
    where hardly any id repeats.
    """
    return int(rows * (tokens * 15 + 20)) + _PARQUET


def step_bytes(config: PretrainedConfig, n: int, training: Training, rows: int, longest: tuple[int, int]) -> int:
    """Return the bytes that a step's activations add to a fit of so many rows.

    Of padded rows, as accelerators run them; where rows are packed it is a bound. Each of several workers has its share
    of the rows.

    Parameters
    ----------
    n : parameters of the network. longest : positions of a row, and answer tokens among them, at most.
    """
    together = -(-training.per_device_train_batch_size // training.num_workers)
    batch = Batch(min(together, rows), *longest)
    return fit_bytes(config, n, training, batch) - fit_bytes(config, n, training)


def judge_bytes(rows: int) -> int:
    """Return the bytes of a judged cell: four columns by row, and figures and frontiers of fixed size."""
    return 32 * rows + _JUDGED


def trained_parameters(config: PretrainedConfig, training: Training) -> int:
    """Return how many parameters are trained: all, or those of adapters."""
    network = empty_network(config)
    return count_parameters(config) if training.lora is None else adapter_parameters(network, training.lora)


def _adapter_bytes(config: PretrainedConfig, n: int, level: LevelSpec | None) -> int:
    """A stored adapter, and its base where no one else has it."""
    if level is None or level.training.lora is None:
        return 0
    base = 0 if isinstance(level.init, FromSource) else 4 * n + _tokenizer_bytes(config)
    return 4 * trained_parameters(config, level.training) + base


def _vocabulary(config: PretrainedConfig) -> int:
    return int(config.get_text_config().vocab_size)


def _keys_and_values(config: PretrainedConfig) -> int:
    """Numbers per position and row in an attention cache."""
    if isinstance(config, ServedConfig):
        return 0
    text = config.get_text_config()
    heads = int(getattr(text, "num_attention_heads", 0) or 0)
    kept = int(getattr(text, "num_key_value_heads", None) or heads)
    size = int(getattr(text, "head_dim", None) or (int(text.hidden_size) // heads if heads else 0))
    return 2 * int(text.num_hidden_layers) * kept * size


def _tokenizer_bytes(config: PretrainedConfig) -> int:
    return 80 * _vocabulary(config)
