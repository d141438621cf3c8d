"""What is kept of a teacher's next-token laws along rows, as files: fits read it in the place of the teacher.

Shapes: N rows of a block, M tokens of their answers, one after another; k ids kept of each; R of the positions, V ids.

    both       what tells a row from others (N, 16)
    top_k      ids (M, k), log-probabilities (M, k), log of the mass of all other ids (M,)       6 k + 4 bytes a token
    sampled    ids (M, k), entropy of the law (M,)                                               2 k + 4 bytes a token

below 65,537 ids; beyond, an id takes 4 bytes. At R positions of the first block the whole law is kept as well, against
which fits measure what the rest leaves out.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields
from hashlib import blake2b
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hydrometer.core.distillation import TeacherLaw
from hydrometer.core.errors import StoreError
from hydrometer.core.io.arrays import map_array
from hydrometer.models.rows.sequences import Sequences
from hydrometer.models.rows.training_rows import TrainingRows

__all__ = ["WHOLE_LAWS", "KeptBlock", "bytes_a_token", "load_kept", "names_of", "row_name", "save_kept"]

WHOLE_LAWS = 64
"""Positions of the first block at which the whole law is kept."""


@dataclass(frozen=True, slots=True, eq=False)
class KeptBlock:
    """What is kept along the rows of one block.

    Attributes
    ----------
    ids : (M, k) unsigned: the likeliest, or the drawn ones, which may be equal.
    rest : (M,) float32 nats: log of the mass of all other ids, or, beside drawn ids, the law's entropy.
    log_p : (M, k) float32 nats; None of drawn ids.
    names : (N, 16) uint8, of the rows (`names_of`); None of a part.
    whole_at, whole : (R,) int64 tokens, and (R, V) float32 log-probabilities at them; None in other blocks than the
        first.
    """

    ids: NDArray[np.unsignedinteger[Any]]
    rest: NDArray[np.float32]
    log_p: NDArray[np.float32] | None = None
    names: NDArray[np.uint8] | None = None
    whole_at: NDArray[np.int64] | None = None
    whole: NDArray[np.float32] | None = None

    def part(self, tokens: slice) -> KeptBlock:
        """Return what is kept of some tokens, without names and whole laws."""
        return KeptBlock(self.ids[tokens], self.rest[tokens], None if self.log_p is None else self.log_p[tokens])

    @staticmethod
    def join(parts: Sequence[KeptBlock]) -> KeptBlock:
        """Join parts of one block, in order; `whole_at` are of the whole block."""
        columns = {f.name: [x for p in parts if (x := getattr(p, f.name)) is not None] for f in fields(KeptBlock)}
        return KeptBlock(**{k: np.concatenate(v) for k, v in columns.items() if v})


def row_name(first: int, ids: NDArray[np.int64]) -> bytes:
    """Return what tells a row from others: where its answer begins, and the ids of prompt and answer. 16 bytes."""
    return blake2b(f"{first} ".encode() + ids.tobytes(), digest_size=16).digest()


def names_of(x: Sequences | TrainingRows) -> NDArray[np.uint8]:
    """Return what tells rows from others, (N, 16)."""
    prompts = [np.array(p, np.int64) for p in x.prompt_ids]
    own = ((prompts[int(x.prompt_index[i])], x.row(i).astype(np.int64)) for i in range(len(x)))
    names = b"".join(row_name(len(p), np.concatenate([p, a])) for p, a in own)
    return np.frombuffer(names, np.uint8).reshape(-1, 16)


def bytes_a_token(law: TeacherLaw, vocab_size: int) -> int:
    """Return how many bytes a token takes."""
    return law.k * (np.min_scalar_type(vocab_size - 1).itemsize + (0 if law.is_sampled else 4)) + 4


def save_kept(kept: KeptBlock, folder: Path) -> None:
    """Write a block into an existing folder, a file an array."""
    for name, array in _arrays(kept):
        np.save(folder / f"{name}.npy", array, allow_pickle=False)


def _arrays(kept: KeptBlock) -> Iterator[tuple[str, NDArray[Any]]]:
    for f in fields(kept):
        if (array := getattr(kept, f.name)) is not None:
            yield f.name, array


def load_kept(folder: Path) -> KeptBlock:
    """Map what `save_kept` wrote. Raises StoreError."""
    try:
        found: dict[str, NDArray[Any]] = {
            f.name: map_array(path) for f in fields(KeptBlock) if (path := folder / f"{f.name}.npy").exists()
        }
        kept = KeptBlock(**found)
        floats = [x for x in (kept.rest, kept.log_p, kept.whole) if x is not None]
        if kept.ids.ndim != 2 or kept.ids.dtype.kind != "u" or any(x.dtype != np.float32 for x in floats):
            raise ValueError("arrays of other types")
        if kept.whole is not None or kept.whole_at is not None:
            at, whole = kept.whole_at, kept.whole
            if at is None or whole is None or at.dtype != np.int64 or whole.shape[:1] != at.shape or whole.ndim != 2:
                raise ValueError("whole laws without their positions")
            if at.size and not 0 <= at.min() <= at.max() < kept.rest.size:
                raise ValueError("whole laws at positions that there are not")
        shapes = {kept.ids.shape, (*kept.rest.shape, kept.ids.shape[-1])}
        if len(shapes | ({kept.ids.shape} if kept.log_p is None else {kept.log_p.shape})) > 1:
            raise ValueError(f"arrays of unequal length, {sorted(shapes)}")
    except (ValueError, TypeError) as e:
        fix = "delete the artifact and run again"
        raise StoreError(f"a kept teacher law cannot be read: {e}", got=folder.name, fix=fix) from None
    return kept
