"""A fit of several workers through Ray Train: its TorchTrainer starts the processes and their torch.distributed group.

It does nothing else: rows come from the store, rank 0 writes the artifact there, and a fit that lost a worker is begun
again, from its last checkpoint where it has one.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Mapping
from typing import Any

from hydrometer.core.errors import MissingDependencyError, PeerLostError, StageError, one_line
from hydrometer.run.execution.rank import fit_as_rank
from hydrometer.run.execution.ranks import threads_of
from hydrometer.run.execution.task_payload import Parcel, Work

__all__ = ["train"]

_ATTEMPTS = 4


def train(parcel: Parcel, data: bytes, n_workers: int, each: Mapping[str, float]) -> None:
    """Make a fit's artifact by `n_workers` processes with these resources each.

    Raises
    ------
    Exception : what a worker raised.
    StageError : workers died at every attempt.
    """
    try:
        from ray.train import FailureConfig, RunConfig, ScalingConfig
        from ray.train.torch import TorchConfig, TorchTrainer
    except ImportError as e:
        what = f"a fit of several workers on Ray needs Ray Train: {e}"
        raise MissingDependencyError(what, fix="pip install 'hydrometer[ray]'") from None
    error: Exception | None = None
    for _ in range(_ATTEMPTS):
        # Nothing is kept there: workers report nothing to Ray. It must be on this machine alone.
        with tempfile.TemporaryDirectory(prefix="hydrometer-train-") as scratch:
            trainer = TorchTrainer(
                _rank,
                train_loop_config={"parcel": parcel, "node": data},
                scaling_config=ScalingConfig(
                    num_workers=n_workers, use_gpu=bool(each.get("GPU")), resources_per_worker=dict(each)
                ),
                torch_config=TorchConfig(timeout_s=7 * 86400),
                run_config=RunConfig(name="fit", storage_path=scratch, failure_config=FailureConfig(max_failures=0)),
            )
            try:
                trainer.fit()
                return
            except Exception as e:
                raised = _raised(e)
                if raised is not None:
                    raise raised from e
                error = e
    raise StageError(f"the workers of a fit died {_ATTEMPTS} times: {one_line(str(error), 300)}")


def _raised(error: Exception) -> Exception | None:
    """What a worker raised, below what Ray made of it; None where one died, and others at most lost it."""
    failures: Mapping[int, Any] = getattr(error, "worker_failures", {})
    raised = [getattr(failure, "_base_exc", None) for failure in failures.values()]
    if any(e is None for e in raised):
        return None
    return next((e for e in raised if isinstance(e, Exception) and not isinstance(e, PeerLostError)), None)


def _rank(config: dict[str, Any]) -> None:
    """Be one worker. Its group is there already."""
    from ray.train import get_context

    work = Work(config["parcel"])
    work.enter()  # Ray Train leaves a worker in a folder of its own
    node = work.node(config["node"])
    os.environ["OMP_NUM_THREADS"] = str(
        threads_of(node)
    )  # accelerate asks for it, and else sets torch's threads itself
    fit_as_rank(work, node, get_context().get_world_rank())
