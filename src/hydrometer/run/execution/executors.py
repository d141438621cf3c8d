"""Who makes the stages of a plan: this process, or the workers of a Ray cluster."""

from __future__ import annotations

from typing import Literal, Protocol

from hydrometer.core.errors import InputError
from hydrometer.run.execution.execute import Ended, Monitor, Outcome, execute, nobody
from hydrometer.run.graph.plan import Plan
from hydrometer.store.artifacts import ArtifactStore

__all__ = ["Executor", "ExecutorName", "executor_of"]


class Executor(Protocol):
    """Makes what is missing of a plan; `ended` hears of every stage that has ended."""

    def __call__(self, plan: Plan, store: ArtifactStore, monitor: Monitor, ended: Ended = nobody) -> Outcome:
        """Make it. Raises what ends a run."""
        ...


ExecutorName = Literal["local", "ray"]


def executor_of(name: str, address: str | None = None) -> Executor:
    """Return the executor of that name. Nothing is started before it has something to do.

    Parameters
    ----------
    name : "local" or "ray".
    address : of a Ray cluster, ``host:port`` or "auto"; None for one that is started here and ends with the run.

    Raises
    ------
    InputError : no such executor, or an address that it cannot have.
    MissingDependencyError : Ray is not installed.

    Examples
    --------
    >>> executor_of("local").__name__
    'execute'
    """
    if name == "ray":
        from hydrometer.run.execution.on_ray import RayExecutor

        return RayExecutor(address)
    if name != "local":
        raise InputError("no such executor", got=name, fix="known: local, ray")
    if address is not None:
        raise InputError("an address is that of a Ray cluster", got=address, fix="set the executor to ray")
    return execute
