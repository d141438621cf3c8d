"""A fit of several processes on this machine, `python -m hydrometer.run.execution.rank JOB RANK PARENT` for each.

The processes are new ones, not forks, so that what runs here is what runs on a cluster. They meet at a file: no port is
taken that another run may want. What each of them does is in `run/execution/rank.py`.
"""

from __future__ import annotations

import os
import pickle
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from hydrometer.core.errors import FitError, HydrometerError, PeerLostError, one_line
from hydrometer.models.drawing import release
from hydrometer.run.execution.task_payload import pack, pack_node
from hydrometer.run.graph.plan import Plan
from hydrometer.stages.nodes import Node
from hydrometer.store.artifacts import ArtifactStore

__all__ = ["fit_together", "threads_of"]

_POLL = 0.05  # seconds
_GRACE = 10.0


def fit_together(node: Node, plan: Plan, store: ArtifactStore) -> None:
    """Make a fit's artifact by its processes, here.

    Raises
    ------
    HydrometerError : what a process raised, as the fit in this process would; FitError where one died.
    """
    release(node.context.family)  # an engine that drew in this process holds memory that the fit's may need
    n = node.workers()
    with tempfile.TemporaryDirectory(prefix="hydrometer-ranks-") as scratch:
        job = Path(scratch) / "job"
        job.write_bytes(pickle.dumps((pack(plan, store), pack_node(node))))
        environment = os.environ | {
            "WORLD_SIZE": str(n),
            "LOCAL_WORLD_SIZE": str(n),
            "OMP_NUM_THREADS": str(threads_of(node)),
            "PYTHONPATH": os.pathsep.join(p or os.getcwd() for p in sys.path),
        }
        if sys.platform == "linux":  # what a host's own name leads to is not always an interface of its own
            environment.setdefault("GLOO_SOCKET_IFNAME", "lo")
        processes: list[subprocess.Popen[bytes]] = []
        try:
            for rank in range(n):
                # -P: no module of the folder that one stands in; what this process imports from is in PYTHONPATH.
                argv = [
                    sys.executable,
                    "-P",
                    "-m",
                    "hydrometer.run.execution.rank",
                    str(job),
                    str(rank),
                    str(os.getpid()),
                ]
                own = environment | {"RANK": str(rank), "LOCAL_RANK": str(rank)}
                with (Path(scratch) / f"{rank}.log").open("wb") as log:
                    processes.append(subprocess.Popen(argv, env=own, stdout=log, stderr=log, stdin=subprocess.DEVNULL))
            while any(p.poll() is None for p in processes) and not any(p.returncode for p in processes):
                time.sleep(_POLL)
            error = _why(processes, Path(scratch))
        finally:
            _end(processes)
        if error is not None:
            raise error


def _end(processes: list[subprocess.Popen[bytes]]) -> None:
    """End those that wait for one that died, or for nothing any more."""
    for p in processes:
        if p.poll() is None:
            p.terminate()
    deadline = time.monotonic() + _GRACE
    for p in processes:
        try:
            p.wait(max(0.0, deadline - time.monotonic()))
        except subprocess.TimeoutExpired:
            p.kill()
            p.wait()


def _why(processes: list[subprocess.Popen[bytes]], scratch: Path) -> HydrometerError | None:
    """Return why the fit failed, of a process that knows; None where none failed. None was ended here yet.

    One that only lost another may end before that other has: it is waited for.
    """
    deadline = time.monotonic() + _GRACE
    while True:
        codes = [p.poll() for p in processes]
        said = {rank: _said(scratch, rank) for rank, code in enumerate(codes) if code}
        knows = [rank for rank, error in said.items() if not isinstance(error, PeerLostError)]
        if not said:
            return None
        if knows or None not in codes or time.monotonic() > deadline:
            break
        time.sleep(_POLL)
    # Who was killed says nothing, and is why others fail.
    rank = min(knows or said, key=lambda r: (codes[r] != -signal.SIGKILL, said[r] is None))
    last = (scratch / f"{rank}.log").read_text("utf-8", "replace").strip().splitlines()[-1:]
    tail = f": {one_line(last[0], 300)}" if last else ""
    return said[rank] or FitError(f"process {rank} of the fit ended with code {codes[rank]}{tail}")


def _said(scratch: Path, rank: int) -> HydrometerError | None:
    told = scratch / f"job.{rank}.error"
    return pickle.loads(told.read_bytes()) if told.is_file() else None


def threads_of(node: Node) -> int:
    """Return the threads that a stage's bits depend on; 1 where they do not."""
    threads = node.context.family.numerics(node.context.spec).get("threads", 1)
    return threads if isinstance(threads, int) else 1
