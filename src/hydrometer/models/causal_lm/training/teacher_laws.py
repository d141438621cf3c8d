"""A teacher's next-token laws along the rows that a student is trained on.

The teacher's hidden states are made once, before the first step, for all rows in a fixed order, and kept: every epoch
finds the same numbers, and so does a fit that goes on after a kill. Where they would take more than `MAX_BYTES`, they
are made again for every batch.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from hydrometer.core.distillation import TeacherLaw
from hydrometer.core.errors import FitError, LawMismatchError
from hydrometer.core.spec import Selectivity
from hydrometer.models.causal_lm.inference.law import CausalLaw
from hydrometer.models.causal_lm.inference.opened import OpenedLM
from hydrometer.models.causal_lm.training.kept_rows import KeptRows
from hydrometer.models.causal_lm.training.losses import TeacherRows
from hydrometer.models.causal_lm.training.packed_rows import IGNORED
from hydrometer.models.rows.kept_laws import KeptBlock, load_kept, names_of, row_name
from hydrometer.models.rows.sequences import Sequences
from hydrometer.models.rows.training_rows import TrainingRows

__all__ = ["MAX_BYTES", "LawsAlongRows", "States", "TeacherLaws"]

MAX_BYTES = 1 << 30
_OPEN = 16  # blocks of kept laws that stay open, three files each
States = Callable[[OpenedLM, Tensor, Tensor], Tensor]
"""States that predict a batch's answer tokens, (M, D), row by row, of ids and labels (B, T)."""


class TeacherLaws:
    """A teacher as objectives see it.

    Parameters
    ----------
    teacher : the unselected law.
    selectivity : of the law that is matched.
    states : how a network's states are made.
    """

    def __init__(self, teacher: CausalLaw, selectivity: Selectivity | None, states: States) -> None:
        self.lm, self.selectivity, self.states = teacher.lm, selectivity, states
        self._known: dict[bytes, Tensor] = {}

    def remember(self, batches: Iterable[tuple[Tensor, Tensor]], tokens: int, dtype: torch.dtype) -> None:
        """Make the states of all rows, in these batches of ids and labels; `tokens` are all answers' together."""
        width = self.lm.network.head.in_features if self.lm.is_split else self.lm.vocab_size
        if tokens * width * dtype.itemsize > MAX_BYTES:
            return
        for ids_BT, labels_BT in batches:
            states_MD = self._made(ids_BT, labels_BT).to("cpu", dtype)
            at = 0
            for key, n in _rows(ids_BT, labels_BT):
                self._known[key] = states_MD[at : at + n].clone()
                at += n

    def rows(self, ids_BT: Tensor, labels_BT: Tensor) -> TeacherRows:
        """Return the laws at the positions that predict a batch's answer tokens."""
        keys = [key for key, n in _rows(ids_BT, labels_BT) if n]
        if keys and all(key in self._known for key in keys):
            states_MD = torch.cat([self._known[key] for key in keys]).to(ids_BT.device)
        else:
            states_MD = self._made(ids_BT, labels_BT)
        if not self.lm.is_split:
            return TeacherRows(self.lm.network.logits(states_MD), selectivity=self.selectivity)
        head = self.lm.network.head
        return TeacherRows(states_MD, head.weight, head.bias, self.lm.holes, self.selectivity)

    @torch.no_grad()
    def _made(self, ids_BT: Tensor, labels_BT: Tensor) -> Tensor:
        return self.states(self.lm, ids_BT, labels_BT)


class LawsAlongRows:
    """A teacher as objectives see it where its laws were kept along rows: no model is opened.

    Parameters
    ----------
    law : in which form objectives see them.
    folders : of the blocks, in the rows' order. x : the rows.
    vocab_size : of the student.

    Raises
    ------
    LawMismatchError : laws kept along other rows, in another form, or of another vocabulary.
    """

    def __init__(self, law: TeacherLaw, folders: Sequence[Path], x: Sequences | TrainingRows, vocab_size: int) -> None:
        self.law, self.vocab_size = law, vocab_size
        self._block = lru_cache(_OPEN)(lambda i: replace(load_kept(folders[i]), names=None))
        sizes, kept = [0], [np.empty((0, 16), np.uint8)]
        for folder in folders:
            block = self._checked(load_kept(folder))
            sizes.append(block.rest.size)
            kept += [] if block.names is None else [np.array(block.names)]
        self.starts, self.offsets = np.cumsum(sizes), np.concatenate([[0], np.cumsum(x.lengths)])
        names, same = names_of(x), np.concatenate(kept)
        if self.starts[-1] != self.offsets[-1] or not np.array_equal(names, same):
            got, fix = f"{len(same)} rows for {len(x)}", "keep them along these, in their order"
            raise LawMismatchError("the teacher's laws were kept along other rows", got=got, fix=fix)
        self._at = {name.tobytes(): int(at) for name, at in zip(names, self.offsets, strict=False)}

    @property
    def first(self) -> KeptBlock:
        """What is kept along the first rows."""
        return self._block(0)

    def _checked(self, kept: KeptBlock) -> KeptBlock:
        if kept.ids.shape[1] != self.law.k or (kept.log_p is None) != self.law.is_sampled:
            got = f"{'drawn' if kept.log_p is None else 'likeliest'} {kept.ids.shape[1]}"
            raise LawMismatchError(f"{self.law.label} is not what was kept of a teacher", got=got, fix="keep it anew")
        if kept.ids.size and int(kept.ids.max()) >= self.vocab_size:
            raise LawMismatchError("a kept law has ids that the student lacks", got=int(kept.ids.max()))
        return kept

    def rows(self, ids_BT: Tensor, labels_BT: Tensor) -> KeptRows:
        """Return what is kept at the positions that predict a batch's answer tokens. Raises FitError: other rows."""
        at: list[tuple[int, int]] = []
        for key, n in _rows(ids_BT, labels_BT):
            if n and key not in self._at:
                fix = "fit to the rows along which they were kept"
                raise FitError("the teacher's laws were not kept along a row", got=f"a row of {n} tokens", fix=fix)
            at += [(self._at[key], n)] if n else []
        return self.at(at).on(ids_BT.device)

    def at(self, spans: Sequence[tuple[int, int]]) -> KeptRows:
        """Return what is kept of tokens, by where they begin among all rows' and how many they are."""
        parts: list[KeptBlock] = []
        for start, n in spans:
            i = int(np.searchsorted(self.starts, start, "right")) - 1
            parts.append(self._block(i).part(slice(start - int(self.starts[i]), start - int(self.starts[i]) + n)))
        found = KeptBlock.join(parts)
        log_p = None if found.log_p is None else torch.from_numpy(found.log_p)
        return KeptRows.of(self.law, torch.from_numpy(found.ids.astype(np.int64)), log_p, torch.from_numpy(found.rest))


def _rows(ids_BT: Tensor, labels_BT: Tensor) -> list[tuple[bytes, int]]:
    """Return of each row what tells it apart, and how many answer tokens it has."""
    ids, wanted = ids_BT.cpu().numpy(), labels_BT.cpu().numpy() != IGNORED
    out: list[tuple[bytes, int]] = []
    for row, own in zip(ids, wanted, strict=True):
        at = np.flatnonzero(own)
        first, end = (int(at[0]), int(at[-1]) + 1) if len(at) else (0, 0)
        out.append((row_name(first, row[:end]), len(at)))
    return out
