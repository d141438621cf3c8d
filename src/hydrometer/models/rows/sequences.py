"""Sequences of token ids: what causal language models and n-gram chains draw.

Shapes: N rows, T the longest answer, P prompts. Padding is known by length, never by an id.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, cast

import numpy as np
import pyarrow
import pyarrow.parquet
from numpy.typing import NDArray

from hydrometer.core.errors import StoreError
from hydrometer.core.shown import Shown
from hydrometer.core.statistics.sampling_design import Clusters, PromptsAre, Strata

__all__ = ["FinishReason", "Sequences", "load_prompts", "load_sequences", "save_sequences", "texts_exhibit"]

FinishReason = Literal["stop", "length"]
# pyarrow has no type information; what leaves this module is annotated.
pa: Any = pyarrow
pq: Any = pyarrow.parquet

_REASONS: tuple[FinishReason, ...] = ("stop", "length")
_EXHIBITED = 16
_PROMPTS_ARE = "prompts_are"
_PER_TOKEN = ("token_log_prob", "token_log_prob_unselected")
_PER_ROW = {"near_edge": np.int32, "draws": np.int64}
_REPEATING = ["prompt", "ids.list.element", "finish_reason", *_PER_ROW]


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class Sequences(Shown):
    """Rows of token ids drawn after prompts.

    Attributes
    ----------
    prompt_ids : (P,) tuples of token ids; row i answers ``prompt_ids[prompt_index[i]]``.
    prompt_index : (N,) int64
    ids : (N, T) int64, the answer's tokens; 0 at and beyond a row's length.
    lengths : (N,) int64 tokens drawn, the stop token included.
    stopped : (N,) bool, True where the row ended with a stop token ("stop"), False where it was cut ("length").
    log_prob : (N,) float64 nats, under the law and numerics that drew the row.
    token_log_prob : (N, T) float32 nats, of each token under the law that drew it, or None where it was not recorded.
    token_log_prob_unselected : the same under that law without its selectivity.
    near_edge : (N,) int64, at how many steps rounding could have changed what the selectivity keeps, or None.
    draws : (N,) int64, candidates drawn until each row was chosen, or None where nothing was chosen. Of chosen rows,
        `log_prob` and what belongs to it are under the candidates' law.
    prompts_are : "fixed", the experiment's own list, or "sample" of a population of prompts.
    """

    prompt_ids: tuple[tuple[int, ...], ...]
    prompt_index: NDArray[np.int64]
    ids: NDArray[np.int64]
    lengths: NDArray[np.int64]
    stopped: NDArray[np.bool_]
    log_prob: NDArray[np.float64]
    token_log_prob: NDArray[np.float32] | None = None
    token_log_prob_unselected: NDArray[np.float32] | None = None
    near_edge: NDArray[np.int64] | None = None
    draws: NDArray[np.int64] | None = None
    prompts_are: PromptsAre = "fixed"

    def __post_init__(self) -> None:
        n = self.ids.shape[0]
        wanted = {name: (n,) for name in ("prompt_index", "lengths", "stopped", "log_prob", "near_edge", "draws")}
        wanted |= {name: self.ids.shape for name in _PER_TOKEN}
        for name, shape in wanted.items():
            column = getattr(self, name)
            if column is not None and column.shape != shape:
                raise ValueError(f"{name} must have shape {shape}; got {column.shape}")

    def __len__(self) -> int:
        return int(self.ids.shape[0])

    def _facts(self) -> dict[str, object]:
        return {"rows": len(self), "prompts": len(self.prompt_ids), "longest": self.ids.shape[1]}

    @property
    def finish_reason(self) -> tuple[FinishReason, ...]:
        """Per row, "stop" or "length"."""
        return tuple(_REASONS[0] if s else _REASONS[1] for s in self.stopped)

    @property
    def strata(self) -> Strata | None:
        """Which prompt each row answers, as `Clusters` where prompts are a sample; None where there is only one."""
        if len(self.prompt_ids) == 1:
            return None
        return Clusters(self.prompt_index) if self.prompts_are == "sample" else self.prompt_index

    @property
    def within(self) -> NDArray[np.bool_]:
        """(N, T) True where a token is the row's own."""
        return np.less(np.arange(self.ids.shape[1], dtype=np.int64), self.lengths[:, None])

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
            token_log_prob=_part(self.token_log_prob, rows, width),
            token_log_prob_unselected=_part(self.token_log_prob_unselected, rows, width),
            near_edge=None if self.near_edge is None else self.near_edge[rows],
            draws=None if self.draws is None else self.draws[rows],
            prompts_are=self.prompts_are,
        )

    @staticmethod
    def concatenate(parts: Sequence[Sequences]) -> Sequences:
        """Join blocks of one law, in order."""
        if not parts:
            raise ValueError("nothing to join")
        if any(p.prompt_ids != parts[0].prompt_ids for p in parts):
            raise ValueError("blocks of different prompts cannot be joined")
        width = max(p.ids.shape[1] for p in parts)

        def joined(name: str) -> NDArray[Any] | None:
            columns: list[Any] = [getattr(p, name) for p in parts]
            if any(c is None for c in columns):
                return None
            if columns[0].ndim == 2:
                columns = [np.pad(c, ((0, 0), (0, width - c.shape[1]))) for c in columns]
            return np.concatenate(columns)

        return Sequences(
            parts[0].prompt_ids,
            np.concatenate([p.prompt_index for p in parts]),
            cast("NDArray[np.int64]", joined("ids")),
            np.concatenate([p.lengths for p in parts]),
            np.concatenate([p.stopped for p in parts]),
            np.concatenate([p.log_prob for p in parts]),
            token_log_prob=joined("token_log_prob"),
            token_log_prob_unselected=joined("token_log_prob_unselected"),
            near_edge=joined("near_edge"),
            draws=joined("draws"),
            prompts_are=parts[0].prompts_are,
        )


def texts_exhibit(
    x: Sequences, log_prob_truth: NDArray[np.float64], prompt: Callable[[int], str], answer: Callable[[int], str]
) -> dict[str, object]:
    """Return the first rows as texts with their log-probabilities, for people to look at.

    Parameters
    ----------
    log_prob_truth : (N,) nats. prompt, answer : the text of a row's prompt and answer, by row.
    """

    def number(value: float) -> float | str:
        return float(value) if np.isfinite(value) else str(float(value))

    rows = [
        {
            "prompt": prompt(i),
            "answer": answer(i),
            "finish_reason": x.finish_reason[i],
            "log_prob_truth": number(log_prob_truth[i]),
            "log_prob": number(x.log_prob[i]),
        }
        for i in range(min(_EXHIBITED, len(x)))
    ]
    return {"kind": "texts", "version": 1, "rows": rows}


def _part(
    column: NDArray[np.float32] | None, rows: slice | NDArray[np.int64], width: int
) -> NDArray[np.float32] | None:
    return None if column is None else column[rows][:, :width]


def save_sequences(samples: Sequences, path: Path) -> None:
    """Write rows as Parquet: token ids, finish reason, recorded log-probabilities; prompts once, aside."""
    mask = samples.within
    offsets = np.concatenate([[0], np.cumsum(samples.lengths)]).astype(np.int32)

    def ragged(values: NDArray[Any]) -> Any:
        return pa.ListArray.from_arrays(pa.array(offsets), pa.array(values[mask]))

    columns: dict[str, Any] = {
        "prompt": pa.array(samples.prompt_index.astype(np.int32)),
        "ids": ragged(samples.ids.astype(np.int32)),
        "finish_reason": pa.array(samples.finish_reason).dictionary_encode(),
        "log_prob": pa.array(samples.log_prob),
    }
    for name in _PER_TOKEN:
        if (per_token := getattr(samples, name)) is not None:
            columns[name] = ragged(per_token)
    for name, stored in _PER_ROW.items():
        if (per_row := getattr(samples, name)) is not None:
            columns[name] = pa.array(per_row.astype(stored))
    # Log-probabilities hardly repeat: a dictionary of them is as large as they are, and its indices come on top.
    pq.write_table(pa.table(columns), path, use_dictionary=_REPEATING)
    prompts = pa.table({"ids": pa.array([list(p) for p in samples.prompt_ids], pa.list_(pa.int32()))})
    if samples.prompts_are != "fixed":
        prompts = prompts.replace_schema_metadata({_PROMPTS_ARE: samples.prompts_are})
    pq.write_table(prompts, path.with_suffix(".prompts.parquet"))


def load_prompts(path: Path) -> tuple[tuple[tuple[int, ...], ...], PromptsAre]:
    """Read the prompts that rows saved at `path` answer, and what they are. Raises OSError, ValueError."""
    table = pq.read_table(path.with_suffix(".prompts.parquet"))
    metadata: dict[bytes, bytes] = table.schema.metadata or {}
    ids = tuple(tuple(int(t) for t in p) for p in table.column("ids").to_pylist())
    return ids, "sample" if metadata.get(_PROMPTS_ARE.encode()) == b"sample" else "fixed"


def load_sequences(path: Path) -> Sequences:
    """Read what `save_sequences` wrote. Raises StoreError: not such a file."""
    try:
        table = pq.read_table(path)
        prompt_ids, prompts_are = load_prompts(path)
        ragged = table.column("ids").combine_chunks()
        offsets = ragged.offsets.to_numpy().astype(np.int64)
        lengths = np.diff(offsets)
        width = int(lengths.max()) if lengths.size else 0
        mask = np.arange(width) < lengths[:, None]

        def padded(column: Any, dtype: Any) -> NDArray[Any]:
            out: NDArray[Any] = np.zeros((lengths.size, width), dtype)
            out[mask] = column.values.to_numpy()[column.offsets.to_numpy()[0] : column.offsets.to_numpy()[-1]]
            return out

        def optional(name: str) -> Any:
            return table.column(name).combine_chunks() if name in table.column_names else None

        per_token = {name: None if (c := optional(name)) is None else padded(c, np.float32) for name in _PER_TOKEN}
        per_row = {name: None if (c := optional(name)) is None else c.to_numpy().astype(np.int64) for name in _PER_ROW}
        index = table.column("prompt").to_numpy().astype(np.int64)
        if index.size and not 0 <= index.min() <= index.max() < len(prompt_ids):
            raise ValueError("a row answers a prompt that there is not")
        return Sequences(
            prompt_ids,
            index,
            padded(ragged, np.int64),
            lengths,
            np.array([r == "stop" for r in table.column("finish_reason").to_pylist()], np.bool_),
            table.column("log_prob").to_numpy().astype(np.float64),
            prompts_are=prompts_are,
            **per_token,
            **per_row,
        )
    except (OSError, KeyError, ValueError, TypeError, AttributeError, NotImplementedError, IndexError) as e:
        # ArrowInvalid is a ValueError; columns of other types have no offsets, or other values.
        raise StoreError(f"rows cannot be read: {e}", got=path.name, fix="delete the artifact and run again") from None
