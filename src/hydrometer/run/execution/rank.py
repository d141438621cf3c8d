"""One process of a fit of several: it opens the fit's inputs from the store and fits; rank 0 writes the artifact."""

from __future__ import annotations

import os
import pickle
import sys
import tempfile
import threading
import time
from pathlib import Path

from hydrometer.core.errors import FitError, HydrometerError, PeerLostError
from hydrometer.models.base import no_progress
from hydrometer.models.fit_capabilities import FitsTogether
from hydrometer.run.execution.execute import make, reason_of
from hydrometer.run.execution.task_payload import Parcel, Work
from hydrometer.stages.compute import compute
from hydrometer.stages.nodes import Node

__all__ = ["fit_as_rank"]


def fit_as_rank(work: Work, node: Node, rank: int) -> None:
    """Fit as one of several processes that are in one group already; rank 0 writes the artifact."""
    if rank == 0:
        make(node, work.bench, no_progress, work.plan.dashboards)
        return
    with tempfile.TemporaryDirectory(prefix="hydrometer-rank-") as scratch:
        compute(node, work.bench, Path(scratch), no_progress)


def _end_with(parent: int) -> None:
    """End when the run that started this process is gone: the next one makes this fit again, in the same folders."""
    while os.getppid() == parent:
        time.sleep(1)
    os._exit(1)


def _told(error: Exception, node: Node, where: Path) -> HydrometerError:
    """What the run that waits for this process is to raise; a defect is raised here, and its last line is told."""
    if isinstance(error, PeerLostError):
        return error
    try:
        return FitError(reason_of(error, node.stage, where))
    except HydrometerError as e:
        return e


def main(job: Path, rank: int, parent: int) -> int:
    """Be one process of a fit; the exit status."""
    threading.Thread(target=_end_with, args=(parent,), daemon=True).start()
    parcel, data = pickle.loads(job.read_bytes())
    assert isinstance(parcel, Parcel)
    work = Work(parcel)
    node = work.node(data)
    family = node.context.family
    assert isinstance(family, FitsTogether)
    try:
        with family.group(node.context.spec, rank, node.workers(), job.with_name("meeting")):
            fit_as_rank(work, node, rank)
    except Exception as e:
        job.with_name(f"job.{rank}.error").write_bytes(pickle.dumps(_told(e, node, work.bench.store.root)))
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])))
