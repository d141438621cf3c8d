"""A thread pool for whole batches, instead of sharing every operation among torch's threads.

A decode step of a small model is hundreds of short operations. Two threads that share each of them wait for each other
hundreds of times, and a delay of one delays both. Here each thread runs its own batch, and they meet at the end only.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from typing import TypeVar

import torch

__all__ = ["MAX_THREADS", "ThreadPool"]

MAX_THREADS = 8
A = TypeVar("A")
T = TypeVar("T")


class ThreadPool:
    """Runs work in parallel, with torch's threads divided among the workers.

    Parameters
    ----------
    pieces : of work; the pool has at most as many workers, at most torch's threads, and at most `MAX_THREADS`.
    """

    def __init__(self, pieces: int) -> None:
        self.threads: int = torch.get_num_threads()
        self.count: int = max(1, min(self.threads, pieces, MAX_THREADS))
        self._stop = threading.Event()

    def split(self, n: int) -> list[slice]:
        """Divide n rows evenly among the workers, in order; parts without rows are left out."""
        edges = [n * i // self.count for i in range(self.count + 1)]
        return [slice(a, b) for a, b in pairwise(edges) if b > a]

    def run(self, works: Sequence[Callable[[], T]]) -> list[T]:
        """Run all works and return their results in order.

        The first error is raised once the other workers have reached their next `check`.
        """
        if self.count == 1 or len(works) == 1:
            return [work() for work in works]

        def begin() -> None:
            torch.set_num_threads(max(1, self.threads // self.count))  # of this thread, and the default of new ones

        def enter(work: Callable[[], T]) -> T:
            self.check()
            with torch.inference_mode(inference), torch.set_grad_enabled(grad):
                return work()

        inference, grad = torch.is_inference_mode_enabled(), torch.is_grad_enabled()
        try:
            with ThreadPoolExecutor(self.count, "worker", begin) as pool:
                futures = [pool.submit(enter, work) for work in works]
                try:
                    return [f.result() for f in futures]
                except BaseException:
                    self._stop.set()
                    raise
        finally:
            torch.set_num_threads(self.threads)

    def check(self) -> None:
        """Raise InterruptedError if another worker failed or the user interrupts."""
        if self._stop.is_set():
            raise InterruptedError

    def each(self, work: Callable[[A], T], items: Iterable[A]) -> list[T]:
        """Apply `work` to every item."""
        return self.run([lambda item=item: work(item) for item in items])
