"""What a stage asks of a Ray cluster: processors, accelerators, memory."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from hydrometer.core.errors import InputError
from hydrometer.run.execution.ranks import threads_of
from hydrometer.stages.nodes import Node

__all__ = ["Machine", "Need", "need_of"]


@dataclass(frozen=True, slots=True)
class Machine:
    """What a node of the cluster has: CPUs, GPUs, memory in bytes."""

    cpus: float
    gpus: float
    memory: float

    @classmethod
    def of(cls, resources: Mapping[str, float]) -> Machine:
        """Read Ray's resources of a node."""
        return cls(*(float(resources.get(name, 0)) for name in ("CPU", "GPU", "memory")))


@dataclass(frozen=True, slots=True)
class Need:
    """What one stage asks for; for a fit of several workers, what each of them does.

    No more than some node has: where a chain's threads outnumber every node's CPUs, its stages run there one at
    a time with all their threads, as they would on that machine without Ray.
    """

    cpus: float
    gpus: float
    memory: int
    workers: int = 1

    @property
    def each(self) -> dict[str, float]:
        """Resources of one worker of a fit, as Ray Train names them."""
        return {"CPU": self.cpus} | ({"GPU": self.gpus} if self.gpus else {})

    def options(self) -> dict[str, Any]:
        """Options of the task. One that waits for the workers of a fit takes nothing itself."""
        if self.workers > 1:
            return {"num_cpus": 0}
        return {"num_cpus": self.cpus, "num_gpus": self.gpus} | ({"memory": self.memory} if self.memory else {})


def need_of(node: Node, machines: list[Machine], known: dict[object, Need]) -> Need:
    """Return what a stage asks for; `known` keeps what equal stages ask for.

    Raises
    ------
    InputError : it needs an accelerator, and the cluster has none.
    """
    slot = (node.context.name, node.stage, *node.about())
    if slot not in known:
        known[slot] = _need(node, machines)
    return known[slot]


def _need(node: Node, machines: list[Machine]) -> Need:
    device = node.context.family.numerics(node.context.spec).get("device", "cpu")
    has_gpu = any(m.gpus for m in machines)
    if device == "cuda" and not has_gpu:
        what = f"{node.context.name}: device cuda, and no node of the Ray cluster has a GPU"
        raise InputError(what, fix="start one that has, or set device: cpu")
    gpus = 1.0 if has_gpu and device in ("cuda", "auto") else 0.0
    usable = [m for m in machines if m.gpus >= gpus]
    workers, threads = node.workers(), float(threads_of(node))
    if workers > 1:
        cpus = min(threads, max(m.cpus for m in usable))
        while sum(_places(m, cpus, gpus) for m in usable) < workers:
            if gpus and sum(int(m.gpus) for m in usable) < workers:
                what = f"{node.context.name}: a fit of {workers} workers needs as many GPUs as it has workers"
                raise InputError(what, got=sum(int(m.gpus) for m in usable), fix="lower num_workers")
            cpus /= 2
        return Need(cpus, gpus, 0, workers)
    memory = node.footprint().memory_least
    # Of one machine: what no node has all of would be waited for without end.
    best = max(usable, key=lambda m: (min(memory, m.memory), min(threads, m.cpus)))
    return Need(min(threads, best.cpus), gpus, int(min(memory, best.memory)))


def _places(machine: Machine, cpus: float, gpus: float) -> int:
    by_cpu = int(machine.cpus / cpus)
    return min(by_cpu, int(machine.gpus / gpus)) if gpus else by_cpu
