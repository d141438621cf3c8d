"""Draws rows on an accelerator: `sampler`'s law and uniforms, all rows in step, finished ones dropped by halves.

Shapes: n rows of the block, U prompts of R slots each, A = U R, L the longest answer, V ids.

Nothing waits for the processor but every `_EVERY` steps, when it is asked which rows go on.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from hydrometer.core.array_types import Ints
from hydrometer.models.causal_lm.cuda.device_llama import DeviceLlama
from hydrometer.models.causal_lm.cuda.stepper import Stepper
from hydrometer.models.causal_lm.inference.opened import Asked
from hydrometer.models.causal_lm.networks import next_token
from hydrometer.models.rows.sequences import Sequences

__all__ = ["draw_on_device"]

_EVERY = 16  # steps
_FEW = 32  # rows: fewer are no faster


@torch.inference_mode()
def draw_on_device(law: Asked, llama: DeviceLlama, u_nL: NDArray[np.float64], prompt_n: Ints) -> Sequences:
    """Draw n rows together, each from its own uniforms and after its own prompt."""
    n, longest = u_nL.shape
    distinct, of_n = np.unique(prompt_n, return_inverse=True)
    prompts = llama.prompts([law.prompts.ids[p] for p in distinct])
    rows_UR = _slots(of_n, np.arange(n), n)
    out = _Drawn.empty(n, longest, llama.device)
    stops = torch.tensor(law.stop_ids, dtype=torch.long, device=llama.device)
    u = torch.from_numpy(np.pad(u_nL, ((0, 1), (0, 0)), constant_values=0.5)).to(llama.device)
    rows_A = torch.from_numpy(rows_UR.ravel()).to(llama.device)
    stepper = Stepper(llama, prompts, rows_UR.size, longest - 1)
    logits_AW = llama.logits(prompts.states).repeat_interleave(rows_UR.shape[1], 0)
    for step in range(longest):
        found = next_token.draw_on_device(logits_AW[:, : law.lm.vocab_size], law.selectivity, u[rows_A, step])
        out.write(rows_A, step, found, stops)
        if step + 1 == longest:
            break
        ids_A = found.ids
        if (step + 1) % _EVERY == 0:
            going = ~out.stopped.cpu().numpy()[:n]
            if not going.any():
                break
            fewer = _slots(of_n[going], np.flatnonzero(going), n)
            if fewer.size <= rows_UR.size // 2 and rows_UR.size > _FEW:
                place_of = np.full(n + 1, 0)
                place_of[rows_UR.ravel()] = np.arange(rows_UR.size)
                kept = torch.from_numpy(place_of[fewer.ravel()]).to(llama.device)
                used = torch.from_numpy(np.unique(of_n[going])).to(llama.device)
                rows_UR, rows_A, ids_A = fewer, torch.from_numpy(fewer.ravel()).to(llama.device), ids_A[kept]
                stepper = Stepper(llama, prompts.take(used), fewer.size, longest - 1, stepper.keys.take(kept))
        logits_AW = stepper.step(ids_A, step)
    return out.sequences(law, prompt_n)


def _slots(of: Ints, rows: Ints, dummy: int) -> Ints:
    """Rows by prompt, (U, R): as many slots for each prompt that has any as the most have; the rest is `dummy`."""
    _, at, counts = np.unique(of, return_inverse=True, return_counts=True)
    slots = np.full((len(counts), int(counts.max())), dummy)
    order = np.argsort(at, kind="stable")
    place = np.arange(len(rows)) - np.repeat(np.cumsum(counts) - counts, counts)
    slots[at[order], place] = rows[order]
    return slots


@dataclass(frozen=True, slots=True)
class _Drawn:
    """What was drawn of n rows, on the device, and of a last one that stands for empty slots."""

    ids: Tensor
    selected: Tensor
    unselected: Tensor
    near: Tensor
    length: Tensor
    stopped: Tensor

    @classmethod
    def empty(cls, n: int, longest: int, device: torch.device) -> _Drawn:
        shape = n + 1, longest
        return cls(
            torch.zeros(shape, dtype=torch.long, device=device),
            torch.zeros(shape, dtype=torch.float64, device=device),
            torch.zeros(shape, dtype=torch.float64, device=device),
            torch.zeros(n + 1, dtype=torch.long, device=device),
            torch.full((n + 1,), longest, device=device),
            torch.arange(n + 1, device=device) == n,
        )

    def write(self, rows_A: Tensor, step: int, found: next_token.OnDevice, stops: Tensor) -> None:
        """Note a step's ids of rows that had not stopped."""
        going = ~self.stopped[rows_A]
        self.ids[rows_A, step] = torch.where(going, found.ids, 0)
        self.selected[rows_A, step] = torch.where(going, found.selected, 0.0)
        self.unselected[rows_A, step] = torch.where(going, found.unselected, 0.0)
        self.near.index_add_(0, rows_A, (going & found.near_edge).long())
        ended = going & torch.isin(found.ids, stops)
        self.length[rows_A] = torch.where(ended, step + 1, self.length[rows_A])
        self.stopped[rows_A] = ~going | ended

    def sequences(self, law: Asked, prompt_n: Ints) -> Sequences:
        """Return the rows."""
        found = self.ids, self.length, self.stopped, self.selected, self.unselected, self.near
        return law.drawn(prompt_n, *(x[: len(prompt_n)].cpu().numpy() for x in found))
