"""The loss of a batch of rows: rows as the Trainer takes them, and the objective on their answer tokens.

Shapes: B rows, T positions, M answer tokens of a batch, D width, V ids.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils.data import Dataset

from hydrometer.core.distillation import Objective
from hydrometer.core.errors import FitError
from hydrometer.models.base import FitRequest
from hydrometer.models.causal_lm.inference.law import CausalLaw
from hydrometer.models.causal_lm.inference.opened import OpenedLM
from hydrometer.models.causal_lm.objective_spec import Divergence, divergence_of, refuse_infinite
from hydrometer.models.causal_lm.training.distributed import Loss
from hydrometer.models.causal_lm.training.losses import linear_cross_entropy, linear_divergence
from hydrometer.models.causal_lm.training.packed_rows import IGNORED, pack, packed_states, takes_packed_rows
from hydrometer.models.causal_lm.training.teacher_laws import TeacherLaws
from hydrometer.models.causal_lm.training_spec import Training
from hydrometer.models.rows.sequences import Sequences
from hydrometer.models.rows.training_rows import TrainingRows

__all__ = ["Answers", "answer_loss", "collate", "held_out_value", "loss_of", "matched_by"]


class Answers(Dataset[dict[str, list[int]]]):
    """Prompt and answer of each row, with labels on the answer alone."""

    def __init__(self, x: Sequences | TrainingRows) -> None:
        self.x = x

    def __len__(self) -> int:
        return len(self.x)

    def __getitem__(self, i: int) -> dict[str, list[int]]:
        if i < 0:  # an uncounted row; see `distributed`
            row = self[-1 - i]
            return {**row, "labels": [IGNORED] * len(row["labels"])}
        prompt = list(self.x.prompt_ids[int(self.x.prompt_index[i])])
        answer: list[int] = self.x.row(i).tolist()
        return {"input_ids": prompt + answer, "labels": [IGNORED] * len(prompt) + answer}


def collate(rows: list[dict[str, list[int]]]) -> dict[str, Tensor]:
    """Pad on the right; mask and labels mark padding, never an id."""
    width = max(len(r["input_ids"]) for r in rows)

    def padded(key: str, value: int) -> Tensor:
        return torch.tensor([r[key] + [value] * (width - len(r[key])) for r in rows])

    mask_BT = torch.tensor([[True] * len(r["input_ids"]) + [False] * (width - len(r["input_ids"])) for r in rows])
    return {"input_ids": padded("input_ids", 0), "labels": padded("labels", IGNORED), "attention_mask": mask_BT}


def loss_of(law: CausalLaw, training: Training, matched: Matched | None = None) -> Loss:
    """The loss of a batch of rows."""
    return partial(answer_loss, dtype=_dtype(training), packs=_packs(law.lm), matched=matched)


def _dtype(training: Training) -> torch.dtype:
    return torch.bfloat16 if training.bf16 else torch.float32


def _packs(lm: OpenedLM) -> bool:
    """Whether rows may share prompts: on the CPU only, where it was measured."""
    return lm.device.type == "cpu" and takes_packed_rows(lm.network)


class Matched(NamedTuple):
    """A teacher's laws that a student is to match, and how it is measured how far it is from them.

    `held_out` are the same laws in float32, as students are scored.
    """

    laws: TeacherLaws
    divergence: Divergence
    held_out: TeacherLaws


def matched_by(
    request: FitRequest, training: Training, data: Sequences | TrainingRows, validate: Sequences | None
) -> Matched | None:
    """Return what the objective matches; None for maximum likelihood.

    Raises
    ------
    SpecError : an objective that there is not, or an infinite one.
    FitError : an objective that needs a teacher, without one whose next-token laws can be had.
    """
    objective = Objective.from_json(request.loss)
    divergence = divergence_of(objective)
    if divergence is None:
        return None
    if not isinstance(request.teacher, CausalLaw):
        raise FitError("this objective needs a teacher that is opened here", got=request.loss, fix="use mle")
    if request.selectivity is not None:
        refuse_infinite(objective, request.selectivity)
    teacher, size = request.teacher, training.per_device_train_batch_size

    def laws(x: Sequences | TrainingRows | None, dtype: torch.dtype) -> TeacherLaws:
        states = partial(_answer_states, dtype=dtype, packs=_packs(teacher.lm))
        out = TeacherLaws(teacher, request.selectivity, states)
        if x is not None:
            out.remember(_batches(x, size, teacher.lm.device), int(x.lengths.sum()), dtype)
        return out

    return Matched(laws(data, _dtype(training)), divergence, laws(validate, torch.float32))


def held_out_value(law: CausalLaw, training: Training, matched: Matched) -> Callable[[Sequences], float]:
    """Return what gives the objective on held-out rows in float32, nats a token."""
    in_float32 = matched._replace(laws=matched.held_out)
    loss = partial(answer_loss, packs=_packs(law.lm), matched=in_float32)

    @torch.no_grad()
    def value(x: Sequences) -> float:
        tokens = int(x.lengths.sum())
        batches = _batches(x, training.per_device_eval_batch_size, law.lm.device)
        return sum(float(loss(law.lm, ids_BT, labels_BT, tokens)) for ids_BT, labels_BT in batches)

    return value


def _batches(x: Sequences | TrainingRows, size: int, device: torch.device) -> Iterator[tuple[Tensor, Tensor]]:
    """Ids and labels of all rows, by length."""
    rows, order = Answers(x), np.argsort(x.lengths, kind="stable")
    for at in range(0, len(order), size):
        batch = collate([rows[int(i)] for i in order[at : at + size]])
        yield batch["input_ids"].to(device), batch["labels"].to(device)


def _answer_states(lm: OpenedLM, ids_BT: Tensor, labels_BT: Tensor, *, dtype: torch.dtype, packs: bool) -> Tensor:
    """States that predict the answer tokens, (M, D), row by row. `packs`: rows may share prompts."""
    rows = pack(ids_BT, labels_BT) if packs else None
    with torch.autocast(lm.device.type, torch.bfloat16, enabled=dtype == torch.bfloat16):
        if rows is not None:
            return packed_states(lm.network, rows)
        # Padded rows need no mask: padding is on the right, and no answer token attends to it.
        return lm.network.body(ids_BT)[:, :-1][labels_BT[:, 1:] != IGNORED]


def answer_loss(
    lm: OpenedLM,
    ids_BT: Tensor,
    labels_BT: Tensor,
    n_items: float,
    *,
    dtype: torch.dtype = torch.float32,
    packs: bool = False,
    matched: Matched | None = None,
) -> Tensor:
    """The objective summed over the answer tokens, divided by `n_items`; nats. `packs`: rows may share prompts.

    Without `matched` their negative log-likelihood.
    """
    ids_M = labels_BT[:, 1:][labels_BT[:, 1:] != IGNORED]
    states_MD = _answer_states(lm, ids_BT, labels_BT, dtype=dtype, packs=packs)
    if not len(ids_M):  # nothing to learn, but every parameter needs a gradient, here zero
        last = lm.network.head(states_MD.to(lm.network.head.weight.dtype)) if lm.is_split else states_MD
        return last.float().sum() * 0.0
    head = lm.network.head if lm.is_split else None
    if matched is not None:
        return linear_divergence(
            states_MD if head is not None else lm.network.logits(states_MD).float(),
            None if head is None else (head.weight, head.bias),
            ids_M,
            (matched.laws.rows(ids_BT, labels_BT), matched.divergence),
            n_items=n_items,
            vocab_size=lm.vocab_size,
            holes=lm.holes,
            dtype=dtype if head is not None else torch.float32,
        )
    if head is not None:
        return linear_cross_entropy(
            states_MD,
            head.weight,
            head.bias,
            ids_M,
            n_items=n_items,
            vocab_size=lm.vocab_size,
            holes=lm.holes,
            dtype=dtype,
        )
    logits_MV = lm.network.logits(states_MD)[:, : lm.vocab_size].float()
    return F.cross_entropy(logits_MV, ids_M, reduction="sum") / n_items
