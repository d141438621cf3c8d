"""ThreadPool: order, threads, errors, interruption; and kernels where nothing can be cached."""

from __future__ import annotations

import subprocess
import sys
import threading
import time

import pytest

torch = pytest.importorskip("torch")

from hydrometer.models.causal_lm.cpu.thread_pool import ThreadPool  # noqa: E402


@pytest.mark.parametrize(("threads", "pieces", "count"), [(1, 9, 1), (2, 9, 2), (2, 1, 1), (2, 0, 1)])
def test_no_more_workers_than_threads_or_pieces(threads, pieces, count):
    torch.set_num_threads(threads)
    assert ThreadPool(pieces).count == count


def test_rows_are_divided_evenly_and_in_order():
    torch.set_num_threads(2)
    for n in (0, 1, 2, 7, 64):
        parts = ThreadPool(2).split(n)
        assert [i for p in parts for i in range(p.start, p.stop)] == list(range(n))
        assert all(p.stop > p.start for p in parts)


def test_results_come_in_order_from_threads_of_their_own():
    torch.set_num_threads(2)
    meeting = threading.Barrier(2, timeout=20)

    def work(i: int) -> tuple[int, str]:
        if i < 2:
            meeting.wait()  # passes only where two pool are at work at once
        return i, threading.current_thread().name

    found = ThreadPool(6).each(work, range(6))
    assert [i for i, _ in found] == list(range(6))
    assert all(name.startswith("worker") for _, name in found)
    assert torch.get_num_threads() == 2


def test_modes_of_the_caller_hold_in_the_lanes():
    torch.set_num_threads(2)
    modes = lambda _: (torch.is_inference_mode_enabled(), torch.is_grad_enabled())  # noqa: E731
    with torch.inference_mode():
        assert set(ThreadPool(2).each(modes, range(2))) == {(True, False)}
    with torch.no_grad():
        assert set(ThreadPool(2).each(modes, range(2))) == {(False, False)}
    assert set(ThreadPool(2).each(modes, range(2))) == {(False, True)}


def test_an_error_stops_the_other_lane_at_its_next_check():
    torch.set_num_threads(2)
    pool = ThreadPool(2)
    steps: list[int] = []

    def work(i: int) -> None:
        if i == 0:
            time.sleep(0.05)
            raise FloatingPointError("first worker")
        for step in range(4000):
            pool.check()
            steps.append(step)
            time.sleep(0.005)

    with pytest.raises(FloatingPointError, match="first worker"):
        pool.each(work, range(2))
    assert len(steps) < 2000
    assert torch.get_num_threads() == 2


def test_kernels_compile_where_no_cache_can_be_written(tmp_path):
    """numba refuses to cache where it finds no folder to write; the kernels are then compiled at every start."""
    code = (
        "import numba.core.caching as c\n"
        "c.CacheImpl._locator_classes = []\n"
        "import numpy as np\n"
        "from hydrometer.models.arithmetic import exp32\n"
        "print(float(exp32(np.float32(0))))\n"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=240)
    assert out.stdout.strip() == "1.0", out.stderr[-1000:]
