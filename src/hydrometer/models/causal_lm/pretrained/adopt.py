"""A checkpoint trained elsewhere as a law of a chain, under the truth's prompts, stop set and max_new_tokens."""

from __future__ import annotations

import copy

import torch
from transformers import PreTrainedTokenizerBase

from hydrometer.core.errors import LawMismatchError, ModelError
from hydrometer.models.causal_lm.inference.law import CausalLaw
from hydrometer.models.causal_lm.inference.model import CausalLM
from hydrometer.models.causal_lm.inference.opened import vocabulary_hash
from hydrometer.models.causal_lm.inference.served_law import ServedLaw
from hydrometer.models.causal_lm.loading import load

__all__ = ["check_adopted", "identify", "open_adopted"]


def identify(source: str, base: str | None = None) -> dict[str, str]:
    """Return a checkpoint's identity, by content; `base` is the model under an adapter.

    Raises
    ------
    ModelError : nothing there, or nothing that is safe to open.
    """
    if "\0" in source:
        raise ModelError("no such model", got=source, fix="give the folder that save_pretrained wrote")
    return dict(load.resolve(source, base=base).identity)


def check_adopted(source: str, base: str | None, tokenizer: PreTrainedTokenizerBase) -> None:
    """Refuse a checkpoint without a tokenizer, or of another vocabulary than the truth's; no weights are opened.

    Raises
    ------
    ModelError, LawMismatchError
    """
    found = load.outline(load.resolve(source, base=base))
    theirs, own = vocabulary_hash(found.tokenizer), vocabulary_hash(tokenizer)
    if theirs != own:
        raise LawMismatchError(
            "the checkpoint's vocabulary is not the truth's",
            got=(theirs[:12], own[:12]),
            fix="adopt a model of the truth's own tokenizer; `hydrometer judge` compares others",
        )


def open_adopted(source: str, base: str | None, truth: CausalLaw | ServedLaw) -> CausalLaw:
    """Open a checkpoint in float32 as a law over the truth's outcomes.

    Its own generation config is ignored: the stop set is the truth's, as for every student.

    Parameters
    ----------
    source : any source of `load.resolve`, such as a folder of safetensors.
    base : the model under an adapter, if not the one that it names.
    truth : the law whose prompts, stop set and max_new_tokens it takes over.

    Raises
    ------
    ModelError : it cannot be opened, or a weight is not finite.
    """
    lm = CausalLM.from_pretrained(source, base=base, dtype="float32", device=str(truth.lm.device))
    if not all(bool(torch.isfinite(p).all()) for p in lm.model.parameters()):
        raise ModelError("the checkpoint holds weights that are not finite", got=source, fix="train it again")
    if isinstance(truth, CausalLaw):
        lm.model.generation_config = copy.deepcopy(truth.lm.model.generation_config)
    return CausalLaw(lm, truth.prompts, truth.stop_ids, truth.max_new_tokens, None, truth.block_rows)
