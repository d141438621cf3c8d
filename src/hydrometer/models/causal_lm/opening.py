"""Open a chain's truth: source, tokenizer, prompts and network, each cached."""

from __future__ import annotations

import json
from dataclasses import replace
from functools import lru_cache
from typing import TYPE_CHECKING

from hydrometer.core.errors import InputError
from hydrometer.core.watching import doing
from hydrometer.models.base import Precision
from hydrometer.models.causal_lm.cpu.freed_memory import bound_freed_memory, keep_freed_memory
from hydrometer.models.causal_lm.data.parts import parts_of, prompts_of
from hydrometer.models.causal_lm.data.prompts import Prompts, checked
from hydrometer.models.causal_lm.loading import load
from hydrometer.models.causal_lm.loading.libraries import needs_torch
from hydrometer.models.causal_lm.spec import CausalLMChain
from hydrometer.models.causal_lm.truth_spec import GivenSource, Truth

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from hydrometer.models.causal_lm.inference.law import CausalLaw
    from hydrometer.models.causal_lm.inference.model import CausalLM
    from hydrometer.models.causal_lm.inference.served_law import ServedLaw

__all__ = [
    "judged_among",
    "judged_prompts",
    "open_law",
    "open_network",
    "open_tokenizer",
    "open_truth",
    "outline_of",
    "set_threads",
    "split_identity",
    "truth_opening",
]


def truth_opening(truth: Truth) -> tuple[load.Resolved, Prompts, tuple[int, ...]]:
    """Return the truth's source, the prompts that models are trained on, and the stop set: its law but the network."""
    needs_torch()
    from hydrometer.models.causal_lm.inference.opened import model_stop_ids, stop_set
    from hydrometer.models.causal_lm.inference.served_source import find_source

    resolved = find_source(truth.source, truth.revision)
    outline = outline_of(resolved)
    prompts, _ = prompts_of(truth, outline.tokenizer)
    own = model_stop_ids(outline.generation_config, outline.tokenizer)
    return resolved, prompts, own if truth.stop is None else stop_set(truth.stop, outline.tokenizer)


def judged_prompts(truth: Truth) -> Prompts | None:
    """Return the prompts that models are judged on, where they are others than those they are trained on.

    Raises
    ------
    DataError : they are to be a sample, and are one prompt.
    """
    if truth.evaluate is None:
        return None
    return judged_among(truth, *_both_parts(truth))


def judged_among(truth: Truth, trained: Prompts, judged: Prompts | None) -> Prompts | None:
    """Return the same of both parts, in whichever tokenizer's ids they are. Raises DataError."""
    if truth.of_training is None or judged is None:
        return judged
    return checked(replace(trained.take(truth.of_training), are=judged.are), truth.text or truth.prompts)


def _both_parts(truth: Truth) -> tuple[Prompts, Prompts | None]:
    from hydrometer.models.causal_lm.inference.served_source import find_source

    return prompts_of(truth, outline_of(find_source(truth.source, truth.revision)).tokenizer)


def split_identity(truth: Truth) -> dict[str, object]:
    """Return what a split, and texts, add to what a truth is."""
    out: dict[str, object] = {}
    if truth.evaluate is not None and (judged := _both_parts(truth)[1]) is not None:
        out["evaluate"] = judged.digest
    if truth.text is not None:
        out["text"] = [None if p is None else p.digest for p in parts_of(truth.text)]
    return out


def open_law(
    chain: CausalLMChain,
    named: GivenSource | Truth,
    precision: Precision,
    asked: tuple[Prompts, tuple[int, ...]] | None = None,
) -> CausalLaw | ServedLaw:
    """Open a model that a chain takes as it is, or one that is served, under the truth's prompts and stop set.

    Parameters
    ----------
    asked : prompts and stop set of a model of another tokenizer.

    Raises
    ------
    ModelError, InputError
    """
    from hydrometer.models.causal_lm.inference.law import CausalLaw
    from hydrometer.models.causal_lm.inference.served_law import ServedLaw, ServedLM
    from hydrometer.models.causal_lm.inference.served_source import ServedSource, find_source

    set_threads(chain)
    prompts, stop_ids = truth_opening(chain.truth)[1:] if asked is None else asked
    resolved = find_source(named.source, named.revision)
    of = prompts, stop_ids, chain.truth.max_new_tokens, None, chain.block_rows
    if isinstance(resolved, ServedSource) and resolved.served is not None:
        return ServedLaw(ServedLM(resolved.served, outline_of(resolved), chain.device), *of)
    source = str(resolved.gguf or resolved.path)
    lm = open_truth(source, resolved.revision, json.dumps(dict(resolved.identity)), chain.device, precision)
    return CausalLaw(lm, *of)


def open_tokenizer(chain: CausalLMChain) -> tuple[PreTrainedTokenizerBase, Prompts, tuple[int, ...]]:
    """Return the truth's tokenizer, prompts and stop set."""
    resolved, prompts, stop_ids = truth_opening(chain.truth)
    return outline_of(resolved).tokenizer, prompts, stop_ids


def outline_of(resolved: load.Resolved) -> load.Outline:
    """Return a model without its weights; cached."""
    from hydrometer.models.causal_lm.inference.served_source import ServedSource, served_outline

    if isinstance(resolved, ServedSource):
        return served_outline(resolved)
    base = resolved.base
    under = None if base is None else (base.path, base.revision, json.dumps(dict(base.identity)))
    return _read_outline(resolved.path, resolved.revision, json.dumps(dict(resolved.identity)), under)


@lru_cache(maxsize=8)
def _read_outline(
    path: str, revision: str | None, identity: str, under: tuple[str, str | None, str] | None
) -> load.Outline:
    """Read config and tokenizer once; `identity` in the cache key tells changed models apart."""
    doing("opening the tokenizer")
    base = None if under is None else load.Resolved(under[0], under[1], json.loads(under[2]), "")
    return load.outline(load.Resolved(path, revision, json.loads(identity), "", base))


def set_threads(c: CausalLMChain) -> None:
    """Set torch's threads to the chain's."""
    import torch

    keep_freed_memory()
    bound_freed_memory()
    torch.set_num_threads(c.n_threads)


def open_network(path: str, revision: str | None, device: str, precision: Precision) -> CausalLM:
    """Open a network for drawing and scoring. Raises InputError."""
    from hydrometer.models.causal_lm.inference.model import CausalLM

    if precision == "float64":
        raise InputError("a causal LM runs in float32 or bfloat16", got=precision)
    lm = CausalLM.open(load.resolve(path, revision), dtype=precision, device=device)
    lm.frozen = True  # drawn from and scored, never trained
    return lm


@lru_cache(maxsize=1)
def open_truth(path: str, revision: str | None, identity: str, device: str, precision: Precision) -> CausalLM:
    """Open the truth; cached for consecutive blocks."""
    doing("opening the truth's weights")
    return open_network(path, revision, device, precision)
