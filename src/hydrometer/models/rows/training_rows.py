"""Rows of token ids as a fit reads them: flat, in the smallest type, on disk where they are many.

    Sequences        ids (N, T) int64, two float32 a token          16 T bytes a row, whatever its length
    TrainingRows     ids flat, uint8, uint16 or uint32               2 bytes a token below 65,536 ids, 17 to 20 a row

A fit of maximum likelihood needs no recorded log-probability by token, so none is read. Ten million rows of 512 tokens
would be 82 GB as `Sequences` and are a file of 10 GB that is mapped into memory, and 0.2 GB beside it.

Shapes: N rows, M tokens of all rows, P prompts.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet
from numpy.typing import NDArray

from hydrometer.core.errors import FolderError, StoreError
from hydrometer.core.statistics.sampling_design import Clusters, PromptsAre, Strata
from hydrometer.models.rows.sequences import load_prompts

__all__ = ["TrainingRows", "load_training_rows"]

pq: Any = pyarrow.parquet

IN_MEMORY = 1 << 28
"""Bytes of token ids that are held in memory; more lie in a file."""

Unsigned = NDArray[np.unsignedinteger[Any]]


@dataclass(frozen=True, slots=True, eq=False)
class TrainingRows:
    """Rows of token ids that a fit can index; `models.base.Samples`.

    Attributes
    ----------
    prompt_ids : (P,) tuples of token ids; row i answers ``prompt_ids[prompt_index[i]]``.
    prompt_index : (N,) unsigned.
    ids : (M,) unsigned, the answers' tokens one after another, stop tokens included; maybe mapped from a file.
    offsets : (N + 1,) int64; row i is ``ids[offsets[i] : offsets[i + 1]]``.
    log_prob : (N,) float64 nats, under the law and numerics that drew the row.
    prompts_are : as in `Sequences`.
    """

    prompt_ids: tuple[tuple[int, ...], ...]
    prompt_index: Unsigned
    ids: Unsigned
    offsets: NDArray[np.int64]
    log_prob: NDArray[np.float64]
    prompts_are: PromptsAre = "fixed"

    def __len__(self) -> int:
        return self.offsets.size - 1

    @property
    def lengths(self) -> NDArray[np.int64]:
        """(N,) tokens, the stop token included."""
        return np.diff(self.offsets)

    @property
    def strata(self) -> Strata | None:
        """As of `Sequences`."""
        if len(self.prompt_ids) == 1:
            return None
        index = self.prompt_index.astype(np.int64)
        return Clusters(index) if self.prompts_are == "sample" else index

    def row(self, i: int) -> Unsigned:
        """Return the token ids of answer i, (length,)."""
        return self.ids[self.offsets[i] : self.offsets[i + 1]]


def load_training_rows(paths: Sequence[Path], n: int, scratch: Path) -> TrainingRows:
    """Read the first n rows of what `save_sequences` wrote, block by block; no more than one block is held whole.

    Parameters
    ----------
    paths : of the blocks, in order.
    scratch : folder for a file without a name, made where the ids exceed `IN_MEMORY` bytes; it is deleted when the
    process ends.

    Raises
    ------
    StoreError : not such files, of other prompts each, or fewer rows than n. FolderError : the disk is full.
    """
    try:
        highest, most = _bounds(paths)
        prompts, prompts_are = load_prompts(paths[0])
        _same_prompts(paths, prompts)
        lengths = np.empty(n, np.int64)
        index = np.empty(n, np.min_scalar_type(max(len(prompts) - 1, 0)))
        log_prob = np.empty(n)

        def tokens() -> Iterator[Unsigned]:
            at = 0
            for path in paths:
                block = pq.read_table(path, columns=["prompt", "ids", "log_prob"]).slice(0, n - at)
                part = slice(at, at + block.num_rows)
                column = block.column("ids").combine_chunks()
                offsets = column.offsets.to_numpy()
                lengths[part] = np.diff(offsets)
                index[part] = block.column("prompt").to_numpy()
                log_prob[part] = block.column("log_prob").to_numpy()
                at = part.stop
                yield column.values.to_numpy()[offsets[0] : offsets[-1]].astype(np.min_scalar_type(highest))
            if at < n:
                raise StoreError("blocks hold fewer rows than a fit needs", got=f"{at} of {n}", fix="run again")

        # In memory they are joined, which takes twice their size for a moment.
        ids = np.concatenate(list(tokens())) if most <= IN_MEMORY else _mapped(tokens(), scratch)
    except (OSError, KeyError, ValueError) as e:  # ArrowInvalid is a ValueError
        got = str(paths[0].parent)
        raise StoreError(f"rows cannot be read: {e}", got=got, fix="delete the artifact and run again") from None
    return TrainingRows(prompts, index, ids, np.concatenate([[0], np.cumsum(lengths)]), log_prob, prompts_are)


def _mapped(parts: Iterator[Unsigned], scratch: Path) -> Unsigned:
    """Write ids one after another into a file without a name, and map it."""
    with tempfile.TemporaryFile(dir=scratch) as file:
        dtype: np.dtype[Any] = np.dtype(np.uint8)
        for part in parts:
            dtype = part.dtype
            try:
                file.write(part.tobytes())
            except OSError as e:
                fix = "free some space, or choose another --out or --cache"
                raise FolderError(f"the rows of a fit cannot be written: {e.strerror}", got=scratch, fix=fix) from None
        file.flush()
        return np.asarray(np.memmap(file, dtype, "r"))


def _bounds(paths: Sequence[Path]) -> tuple[int, int]:
    """The highest id of all, from the files' footers, and the bytes that the ids take in the type that holds it."""
    highest = count = 0
    for path in paths:
        footer = pq.read_metadata(path)
        for g in range(footer.num_row_groups):
            group = footer.row_group(g)
            for c in range(group.num_columns):
                column = group.column(c)
                if column.path_in_schema.split(".")[0] != "ids":
                    continue
                known = column.statistics
                if known is None or not known.has_min_max or known.min < 0:
                    raise ValueError("token ids without bounds, or below 0")
                highest, count = max(highest, int(known.max)), count + int(column.num_values)
    return highest, count * np.min_scalar_type(highest).itemsize


def _same_prompts(paths: Sequence[Path], prompts: tuple[tuple[int, ...], ...]) -> None:
    """Blocks of one law answer the same prompts: files of equal bytes are not parsed again."""
    first = paths[0].with_suffix(".prompts.parquet").read_bytes()
    for path in paths[1:]:
        if path.with_suffix(".prompts.parquet").read_bytes() != first and load_prompts(path)[0] != prompts:
            raise ValueError("blocks of different prompts cannot be joined")
