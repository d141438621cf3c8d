"""Batches of a fit: their positions, and what a step of one holds."""

from __future__ import annotations

from functools import lru_cache
from typing import TYPE_CHECKING

import numpy as np

from hydrometer.models.causal_lm.cost.memory import on_accelerator
from hydrometer.models.causal_lm.spec import Training
from hydrometer.models.causal_lm.training.packed_rows import packed_size
from hydrometer.models.causal_lm.training.step_memory import Batch, fit_bytes

if TYPE_CHECKING:
    from hydrometer.models.causal_lm.cost.operations import Shape, Subject

__all__ = ["padded_batch", "step_bytes", "training_positions"]

_BATCHES = 8  # of training, whose packs are counted


def padded_batch(subject: Subject, training: Training) -> tuple[int, int]:
    """Rows of a training batch, and positions of its longest: prompt and max_new_tokens."""
    return training.per_device_train_batch_size, max(subject.prompts) + subject.chain.truth.max_new_tokens


def training_positions(s: Subject, own: Shape, rows: int, mean: float, *, most: int, longest: int) -> float:
    """Positions that a training batch is run at: of its packs, each prompt once, where the network takes them.

    Parameters
    ----------
    rows : of a batch. mean : tokens of an answer. most : prompts there are at most. longest : tokens of an answer, at
        most.
    """
    if on_accelerator(s.chain) or not own.packs:
        return float(rows * (max(s.prompts) + longest))
    return _packed_positions(
        s.prompts[:most], max(s.prompts) + longest, rows, longest, max(1, round(2 * mean) - longest)
    )


@lru_cache(maxsize=64)
def _packed_positions(prompts: tuple[int, ...], width: int, rows: int, longest: int, short: int) -> float:
    """Mean over a few batches, half of whose answers have the full length, the rest `short`."""
    rng, length_U = np.random.default_rng(0), np.array(prompts)
    found: list[int] = []
    for _ in range(_BATCHES):
        i = rng.permutation(4 * rows)[:rows]
        of = i % len(prompts)
        found.append(packed_size(of.tolist(), length_U[of], np.where(i % 2, min(short, longest), longest), width))
    return sum(found) / len(found)


def step_bytes(s: Subject, role: str, rows: int) -> int:
    """Bytes that a step's activations add to a fit of so many rows.

    Of padded rows of the longest prompt and max_new_tokens, as accelerators run them, wherever the plan is made; where
    rows are packed it is a bound. Each of several workers has its share of the rows.
    """
    level = s.levels.get(role)
    training = Training() if level is None else level.training
    rows_together, width = padded_batch(s, training)
    batch = Batch(min(-(-rows_together // training.num_workers), rows), width, s.chain.truth.max_new_tokens)
    config, n = s.configs[role], s.shapes[role].parameters
    return fit_bytes(config, n, training, batch) - fit_bytes(config, n, training)
