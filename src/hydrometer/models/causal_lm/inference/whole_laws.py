"""Whole next-token laws along rows, as numbers, for what needs every probability of a few positions.

Shapes: M positions, V ids, D width.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from hydrometer.core.array_types import Floats
from hydrometer.core.errors import LawMismatchError, ModelError
from hydrometer.models.causal_lm.cpu.packed_source import PackedSource
from hydrometer.models.causal_lm.cpu.thread_pool import ThreadPool
from hydrometer.models.causal_lm.inference.opened import Asked
from hydrometer.models.causal_lm.networks.sources import GeneralSource, Source
from hydrometer.models.rows.sequences import Sequences

__all__ = ["WholeLaws", "whole_laws"]


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
