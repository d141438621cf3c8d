"""Sequences of token ids: what causal language models and n-gram chains draw.

Shapes: N rows, T the longest answer, P prompts. Padding is known by length, never by an id.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, cast

import numpy as np
import pyarrow
import pyarrow.parquet
from numpy.typing import NDArray

from hydrometer.core.errors import StoreError

__all__ = ["FinishReason", "Sequences", "load_sequences", "save_sequences"]

FinishReason = Literal["stop", "length"]
# pyarrow has no type information; what leaves this module is annotated.
pa = cast("Any", pyarrow)
pq = cast("Any", pyarrow.parquet)

_REASONS: tuple[FinishReason, ...] = ("stop", "length")


@dataclass(frozen=True, slots=True, eq=False)
class Sequences:
    """Rows of token ids drawn after prompts.

    Attributes
    ----------
    prompt_ids : (P,) tuples of token ids; row i answers ``prompt_ids[prompt_index[i]]``.
    prompt_index : (N,) int64
    ids : (N, T) int64, the answer's tokens; what lies at or beyond a row's length is 0 and means nothing.
    lengths : (N,) int64 tokens drawn, the stop token included.
    stopped : (N,) bool, True where the row ended with a stop token ("stop"), False where it was cut ("length").
    log_prob : (N,) float64 nats, under the law and numerics that drew the row.
    """

    prompt_ids: tuple[tuple[int, ...], ...]
    prompt_index: NDArray[np.int64]
    ids: NDArray[np.int64]
    lengths: NDArray[np.int64]
    stopped: NDArray[np.bool_]
    log_prob: NDArray[np.float64]

    def __post_init__(self) -> None:
        n = self.ids.shape[0]
        for name in ("prompt_index", "lengths", "stopped", "log_prob"):
            shape = getattr(self, name).shape
            if shape != (n,):
                raise ValueError(f"{name} must have shape ({n},); got {shape}")

    def __len__(self) -> int:
        return int(self.ids.shape[0])

    @property
    def finish_reason(self) -> tuple[FinishReason, ...]:
        """Per row, "stop" or "length"."""
        return tuple(_REASONS[0] if s else _REASONS[1] for s in self.stopped)

    @property
    def strata(self) -> NDArray[np.int64] | None:
        """Which prompt each row answers, or None where there is only one."""
        return self.prompt_index if len(self.prompt_ids) > 1 else None

    def row(self, i: int) -> NDArray[np.int64]:
        """Return the token ids of answer i, without padding, (length,)."""
        return self.ids[i, : self.lengths[i]]

    def take(self, rows: slice | NDArray[np.int64]) -> Sequences:
        """Return the chosen rows."""
        lengths = self.lengths[rows]
        width = int(lengths.max()) if lengths.size else 0
        return Sequences(
            self.prompt_ids,
            self.prompt_index[rows],
            self.ids[rows][:, :width],
            lengths,
            self.stopped[rows],
            self.log_prob[rows],
        )

    @staticmethod
    def concatenate(parts: Sequence[Sequences]) -> Sequences:
        """Join blocks of one law, in order."""
        if not parts:
            raise ValueError("nothing to join")
        if any(p.prompt_ids != parts[0].prompt_ids for p in parts):
            raise ValueError("blocks of different prompts cannot be joined")
        width = max(p.ids.shape[1] for p in parts)
        ids = np.zeros((sum(len(p) for p in parts), width), np.int64)
        at = 0
        for p in parts:
            ids[at : at + len(p), : p.ids.shape[1]] = p.ids
            at += len(p)
        return Sequences(
            parts[0].prompt_ids,
            np.concatenate([p.prompt_index for p in parts]),
            ids,
            np.concatenate([p.lengths for p in parts]),
            np.concatenate([p.stopped for p in parts]),
            np.concatenate([p.log_prob for p in parts]),
        )


def save_sequences(samples: Sequences, path: Path) -> None:
    """Write rows as Parquet: token ids, lengths, finish reason, recorded log-probability; prompts once, aside."""
    mask = np.less(np.arange(samples.ids.shape[1], dtype=np.int64), samples.lengths[:, None])
    offsets = np.concatenate([[0], np.cumsum(samples.lengths)]).astype(np.int32)
    ids = pa.ListArray.from_arrays(pa.array(offsets), pa.array(samples.ids[mask].astype(np.int32)))
    table = pa.table(
        {
            "prompt": pa.array(samples.prompt_index.astype(np.int32)),
            "ids": ids,
            "finish_reason": pa.array(samples.finish_reason).dictionary_encode(),
            "log_prob": pa.array(samples.log_prob),
        }
    )
    pq.write_table(table, path)
    prompts = pa.table({"ids": pa.array([list(p) for p in samples.prompt_ids], pa.list_(pa.int32()))})
    pq.write_table(prompts, path.with_suffix(".prompts.parquet"))


def load_sequences(path: Path) -> Sequences:
    """Read what `save_sequences` wrote.

    Raises
    ------
    StoreError : not such a file.
    """
    try:
        table = pq.read_table(path)
        prompts = pq.read_table(path.with_suffix(".prompts.parquet"))
        ragged = table.column("ids").combine_chunks()
        offsets = ragged.offsets.to_numpy().astype(np.int64)
        lengths = np.diff(offsets)
        width = int(lengths.max()) if lengths.size else 0
        ids = np.zeros((lengths.size, width), np.int64)
        ids[np.arange(width) < lengths[:, None]] = ragged.values.to_numpy()[offsets[0] : offsets[-1]]
        return Sequences(
            tuple(tuple(int(t) for t in p) for p in prompts.column("ids").to_pylist()),
            table.column("prompt").to_numpy().astype(np.int64),
            ids,
            lengths,
            np.array([r == "stop" for r in table.column("finish_reason").to_pylist()], np.bool_),
            table.column("log_prob").to_numpy().astype(np.float64),
        )
    except (OSError, KeyError, ValueError) as e:  # ArrowInvalid is a ValueError
        raise StoreError(f"rows cannot be read: {e}", got=path.name, fix="delete the artifact and run again") from None
