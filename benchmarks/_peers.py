"""What the benchmarks share: pinned threads, turns, spread, peak memory, the models."""

from __future__ import annotations

import os

THREADS = int(os.environ.get("BENCH_THREADS", "2"))
os.environ.setdefault("OMP_NUM_THREADS", str(THREADS))

import argparse
import json
import platform
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping
from importlib import metadata
from pathlib import Path

import psutil

ROOT = Path(__file__).resolve().parents[1]


def arguments(description: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--repeats", type=int, default=5, help="turns of each (at least 5 for a claim)")
    parser.add_argument("--json", type=Path, help="write the figures there too")
    parser.add_argument("--only", default="", help="run only the cases whose name holds this")
    return parser.parse_args()


def in_turn(works: Mapping[str, Callable[[], float]], repeats: int) -> dict[str, list[float]]:
    """Run each work once a turn, so that whatever else the machine does falls on all alike.

    A work returns its rate (work per second). All have been run before, to check them and to find batch sizes.
    """
    rates: dict[str, list[float]] = {name: [] for name in works}
    for _ in range(repeats):
        for name, work in works.items():
            rates[name].append(work())
    return rates


def timed(work: Callable[[], object], amount: float) -> Callable[[], float]:
    """`amount` a second."""

    def run() -> float:
        begin = time.perf_counter()
        work()
        return amount / (time.perf_counter() - begin)

    return run


def report(title: str, rates: Mapping[str, list[float]], unit: str, ours: str = "hydrometer") -> dict[str, object]:
    """Print medians, spread, and the ratio of ours to each peer's, turn by turn."""
    print(f"\n{title}")
    out: dict[str, object] = {"title": title, "unit": unit, "rates": dict(rates), "ratios": {}}
    for name, values in rates.items():
        line = f"  {name:42s} {statistics.median(values):10.1f} {unit}  ({min(values):.1f} to {max(values):.1f})"
        if name != ours:
            ratios = [a / b for a, b in zip(rates[ours], values, strict=True)]
            line += f"   ratio {statistics.median(ratios):5.2f}  ({min(ratios):.2f} to {max(ratios):.2f})"
            out["ratios"][name] = [statistics.median(ratios), min(ratios), max(ratios)]  # type: ignore[index]
        print(line, flush=True)
    return out


def machine() -> dict[str, object]:
    """Where this ran."""
    commit = subprocess.run(["git", "describe", "--always", "--dirty"], cwd=ROOT, capture_output=True, text=True).stdout
    versions = {}
    for package in ("torch", "transformers", "numba", "numpy"):
        versions[package] = metadata.version(package)
    cpu = platform.processor() or platform.machine()
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        cpu = next(x.split(":", 1)[1].strip() for x in lines if x.startswith("model name"))
    except (OSError, StopIteration):
        pass
    return {"cpu": cpu, "cores": os.cpu_count(), "threads": THREADS, "commit": commit.strip(), **versions}


class Peak:
    """Peak resident memory above what was there at the beginning, in MB, sampled every 2 ms."""

    def __enter__(self) -> Peak:
        self._process, self._stop = psutil.Process(), threading.Event()
        self._base = self._top = self._process.memory_info().rss
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()
        return self

    def _watch(self) -> None:
        while not self._stop.wait(0.002):
            self._top = max(self._top, self._process.memory_info().rss)

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()
        self.mb = (self._top - self._base) / 2**20


def finish(results: list[dict[str, object]], path: Path | None) -> None:
    """Print where, and write what was asked for."""
    where = machine()
    print("\n" + ", ".join(f"{k} {v}" for k, v in where.items()))
    if path is not None:
        path.write_text(json.dumps({"machine": where, "results": results}, indent=1))


def matmul_rate(dtype: object) -> float:
    """GFLOP/s of a 2048-cubed product: the bound that the others are held against."""
    import torch

    a = torch.randn(2048, 2048).to(dtype)  # type: ignore[arg-type]
    b = a.clone()
    rates = []
    for _ in range(12):
        begin = time.perf_counter()
        a @ b
        rates.append(2 * 2048**3 / (time.perf_counter() - begin) / 1e9)
    return statistics.median(rates[2:])


def child(script: str, *args: str) -> str:
    """Run a script of this folder in a process of its own; its output."""
    done = subprocess.run(
        [sys.executable, str(Path(__file__).with_name(script)), *args], capture_output=True, text=True
    )
    if done.returncode:
        raise RuntimeError(f"{script} failed: {done.stderr[-2000:]}")
    return done.stdout
