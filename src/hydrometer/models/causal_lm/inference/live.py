"""A network in the midst of its training, judged as it would be saved, and given back as it was."""

from __future__ import annotations

import contextlib
from collections.abc import Generator
from typing import Any

import torch
from accelerate.utils import extract_model_from_parallel
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from hydrometer.core.errors import ModelError

__all__ = ["live_network", "live_tokenizer", "undisturbed"]


def live_network(model: Any) -> PreTrainedModel:
    """Return the network within what a trainer wraps around it: processes, a compiler, an adapter's layers.

    Raises
    ------
    ModelError : an adapter that puts tokens before the prompt, no network of transformers, or one on several devices.
    """
    inner: Any = extract_model_from_parallel(model)
    if hasattr(inner, "get_base_model"):  # peft's layers lie within the base, and add to what it computes
        if inner.active_peft_config.is_prompt_learning:
            what = "an adapter that puts tokens of its own before the prompt is no law of the prompt"
            raise ModelError(what, got=str(inner.active_peft_config.peft_type), fix="train LoRA, or all weights")
        inner = inner.get_base_model()
    if not isinstance(inner, PreTrainedModel):
        raise ModelError("the trainer's model is no network of transformers", got=type(inner).__name__)
    if len(devices := {str(d) for d in getattr(inner, "hf_device_map", {}).values()}) > 1:
        fix = "judge checkpoints by hydrometer judge"
        raise ModelError("the model in training lies on several devices", got=sorted(devices), fix=fix)
    return inner


def live_tokenizer(processing_class: Any) -> PreTrainedTokenizerBase | None:
    """Return a trainer's tokenizer, that of a processor too; None where it has none."""
    found = getattr(processing_class, "tokenizer", processing_class)
    return found if isinstance(found, PreTrainedTokenizerBase) else None


@contextlib.contextmanager
def undisturbed(network: PreTrainedModel) -> Generator[None]:
    """Put a network into evaluation, in the dtype of its weights, while the body runs; training goes on as without it.

    Put back are each module's mode, a forward that a trainer laid over its own (which casts to a half precision), and
    torch's random numbers.
    """
    modes = {part: part.training for part in network.modules()}
    laid_over = vars(network).pop("forward", None)
    cuda = [torch.cuda.current_device()] if network.device.type == "cuda" else []
    try:
        with torch.random.fork_rng(devices=cuda):
            network.eval()
            yield
    finally:
        for part, is_training in modes.items():
            part.training = is_training
        if laid_over is not None:
            vars(network)["forward"] = laid_over
