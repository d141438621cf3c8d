"""Whole next-token laws along rows, as numbers, for what needs every probability of a few positions.

Shapes: M positions, V ids, D width.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from hydrometer.core.array_types import Floats, Ints
from hydrometer.core.errors import LawMismatchError, ModelError, SpecError
from hydrometer.models.causal_lm.cpu.packed_source import PackedSource
from hydrometer.models.causal_lm.cpu.thread_pool import ThreadPool
from hydrometer.models.causal_lm.inference.opened import Asked
from hydrometer.models.causal_lm.networks.sources import GeneralSource, Source
from hydrometer.models.rows.sequences import Sequences

__all__ = ["LayerStates", "WholeLaws", "layer_states", "whole_laws"]


@dataclass(frozen=True, slots=True, eq=False)
class WholeLaws:
    """Next-token laws at each token of some rows, row by row.

    Attributes
    ----------
    log_p : (M, V) float64 nats, without selectivity; minus infinity for ids that do not exist.
    states : (M, D) float64, what the output matrix is multiplied with.
    """

    log_p: Floats
    states: Floats


@torch.inference_mode()
def whole_laws(law: Asked, x: Sequences) -> WholeLaws:
    """Return the unselected law of every token of few rows, given the tokens before it: 8 V bytes a token.

    Parameters
    ----------
    x : rows that answer the law's prompts.

    Raises
    ------
    LawMismatchError : the rows answer other prompts.
    ModelError : a network whose logits are not the product of states and a matrix.
    """
    if x.prompt_ids != law.prompts.ids:
        raise LawMismatchError("the rows answer other prompts than this law's", got=len(x.prompt_ids))
    if not law.lm.is_split:
        raise ModelError("the network's logits are no product of states and a matrix", got=type(law.lm.model).__name__)
    asked, of_B = np.unique(x.prompt_index, return_inverse=True)
    texts, engine = [law.prompts.ids[p] for p in asked], law.lm.engine
    source: Source = (
        GeneralSource(law.lm.network, law.way, texts) if engine is None else PackedSource(engine, texts, ThreadPool(1))
    )
    states_MD = source.states([x.row(i) for i in range(len(x))], of_B)
    logits_MV = source.logits(states_MD)[:, : law.lm.vocab_size]
    log_p_MV = torch.as_tensor(logits_MV).double().log_softmax(-1)
    return WholeLaws(log_p_MV.cpu().numpy(), states_MD.double().cpu().numpy())


@dataclass(frozen=True, slots=True, eq=False)
class LayerStates:
    """Next-token laws at some tokens of one row, and what the network has there after some of its layers.

    Attributes
    ----------
    log_p : (M, V) float64 nats, without selectivity. states : (M, D) float64 each, as the next layer is given them, of
        the last layer as the output matrix is.
    """

    log_p: Floats
    states: tuple[Floats, ...]


@torch.inference_mode()
def layer_states(law: Asked, x: Sequences, row: int, at: Ints, layers: Sequence[int]) -> LayerStates:
    """Run transformers over one prompt and its answer, once.

    Parameters
    ----------
    row : of x. at : (M,) tokens of it, counted from 0. layers : after how many; 0 is the embedding.

    Raises
    ------
    SpecError : the network has fewer layers.
    """
    prompt, own = x.prompt_ids[int(x.prompt_index[row])], x.row(row).tolist()
    before = torch.as_tensor(len(prompt) - 1 + at, device=law.lm.device)
    network: Any = law.lm.model
    ids_BS = torch.tensor([[*prompt, *own]], device=law.lm.device)
    out = network(ids_BS, output_hidden_states=True, use_cache=False, logits_to_keep=before)
    after = out.hidden_states
    if not 0 <= min(layers) <= max(layers) < len(after):
        raise SpecError(f"states are after 0 to {len(after) - 1} layers", got=list(layers))
    log_p_MV = out.logits[0, :, : law.lm.vocab_size].double().log_softmax(-1)
    return LayerStates(log_p_MV.cpu().numpy(), tuple(after[n][0, before].double().cpu().numpy() for n in layers))
