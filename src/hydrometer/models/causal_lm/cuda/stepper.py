"""One step of drawing for many rows at fixed addresses: replayed as a CUDA graph on an accelerator, called elsewhere.

Shapes as in `device_llama`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from hydrometer.models.causal_lm.cuda.device_llama import DeviceLlama, PromptKeys, RowKeys

__all__ = ["Stepper"]

_SPAN = 64  # attention looks at so many places more at a time: a graph for each


class Stepper:
    """Appends a token to each of B = U R rows, and returns the logits of their next ones.

    Parameters
    ----------
    llama : the network.
    prompts : of the rows, a prompt's side by side; used as they are, at their addresses.
    rows : how many in all. room : places of a row.
    keys : of rows that have begun; None for fresh ones.
    """

    def __init__(
        self, llama: DeviceLlama, prompts: PromptKeys, rows: int, room: int, keys: RowKeys | None = None
    ) -> None:
        self._llama, self.prompts, self._room = llama, prompts, max(room, 1)
        self.keys = keys or llama.row_keys(rows, self._room)
        self._ids = torch.zeros(rows, dtype=torch.long, device=llama.device)
        self._place = torch.zeros(1, dtype=torch.long, device=llama.device)
        self._runs: dict[int, Callable[[], Tensor]] = {}
        self._pool: Any = None
        llama.prepare(prompts.keys[0].shape[2] + self._room)

    def step(self, ids_B: Tensor, place: int) -> Tensor:
        """Append `ids_B` at a place; logits (B, W), which the next call overwrites."""
        self._ids.copy_(ids_B)
        self._place.fill_(place)
        span = min(self._room, (place // _SPAN + 1) * _SPAN)
        if span not in self._runs:
            self._runs[span] = self._captured(span)
        return self._runs[span]()

    def _captured(self, span: int) -> Callable[[], Tensor]:
        def run() -> Tensor:
            states = self._llama.step(self._ids, self._place, span, self.keys, self.prompts)
            return self._llama.logits(states)

        if self._llama.device.type != "cuda":
            return run
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):  # libraries make their workspaces; the same keys are written again
            run()
        torch.cuda.current_stream().wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool=self._pool):
            logits = run()
        self._pool = graph.pool()

        def replay() -> Tensor:
            graph.replay()
            return logits

        return replay
