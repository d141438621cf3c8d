"""Lanes: threads that each do whole pieces of work, in place of one piece whose every operation all threads share.

A decode step of a small model is hundreds of short operations; where two threads share each of them, they wait for each
other hundreds of times, and one that is held up holds up both. A lane shares nothing until the end.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from typing import TypeVar

import torch

__all__ = ["Lanes"]

_MOST = 8
A = TypeVar("A")
T = TypeVar("T")


class Lanes:
    """Runs pieces of work side by side, torch's threads divided among them.

    Parameters
    ----------
    pieces : how many pieces can be had; there are no more lanes than that, than torch's threads, or than eight.
    """

    def __init__(self, pieces: int) -> None:
        self.threads: int = torch.get_num_threads()
        self.count: int = max(1, min(self.threads, pieces, _MOST))
        self._stop = threading.Event()

    def split(self, n: int) -> list[slice]:
        """Divide n rows evenly among the lanes, in order; no part is empty unless n is less than the lanes."""
        edges = [n * i // self.count for i in range(self.count + 1)]
        return [slice(a, b) for a, b in pairwise(edges) if b > a]

    def run(self, works: Sequence[Callable[[], T]]) -> list[T]:
        """Run the works, as many at a time as there are lanes; their results in order.

        The first error is raised, when the other lanes have come to their next `check`.
        """
        if self.count == 1 or len(works) == 1:
            return [work() for work in works]

        def begin() -> None:
            torch.set_num_threads(max(1, self.threads // self.count))  # of this thread; and of threads yet unborn

        def enter(work: Callable[[], T]) -> T:
            self.check()
            with torch.inference_mode(inference), torch.set_grad_enabled(grad):
                return work()

        inference, grad = torch.is_inference_mode_enabled(), torch.is_grad_enabled()
        try:
            with ThreadPoolExecutor(self.count, "lane", begin) as pool:
                futures = [pool.submit(enter, work) for work in works]
                try:
                    return [f.result() for f in futures]
                except BaseException:
                    self._stop.set()
                    raise
        finally:
            torch.set_num_threads(self.threads)

    def check(self) -> None:
        """Raise InterruptedError in a lane whose work is no longer wanted: another failed, or the user interrupts."""
        if self._stop.is_set():
            raise InterruptedError

    def each(self, work: Callable[[A], T], items: Iterable[A]) -> list[T]:
        """Apply `work` to every item."""
        return self.run([lambda item=item: work(item) for item in items])
