"""What another process needs to make stages: small enough to send, whole enough not to plan the run again."""

from __future__ import annotations

import io
import os
import pickle
import platform
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hydrometer.core.dashboards import Dashboards
from hydrometer.core.errors import InputError
from hydrometer.core.spec import ChainSpec
from hydrometer.models.base import Family
from hydrometer.models.families import families
from hydrometer.run.graph.plan import ChainPlan, Plan
from hydrometer.stages.artifact_loader import ArtifactLoader
from hydrometer.stages.nodes import Context, LawRef, Node
from hydrometer.store.artifacts import ArtifactStore

__all__ = ["Parcel", "Work", "pack", "pack_node"]


@dataclass(frozen=True, slots=True)
class Parcel:
    """A run as it is sent: its chains and its store, without its stages.

    Attributes
    ----------
    cwd : folder that relative names of models refer to.
    chains : by name: specification, which brings the content of its prompts file; family, by name where it is
        installed, for an installed family need not be picklable; the truth.
    numerics : what the keys say of versions, threads, processor and device, by chain.
    dashboards : where fits report.
    """

    store: ArtifactStore
    cwd: Path
    chains: dict[str, tuple[ChainSpec, str | Family, LawRef]]
    numerics: dict[str, dict[str, object]]
    dashboards: Dashboards


def pack(plan: Plan, store: ArtifactStore) -> Parcel:
    """Make a run's parcel."""
    chains: dict[str, tuple[ChainSpec, str | Family, LawRef]] = {}
    numerics: dict[str, dict[str, object]] = {}
    for name, chain in plan.chains.items():
        family = chain.context.family
        installed = families().get(family.name) is family
        numerics[name] = dict(family.numerics(chain.context.spec))
        chains[name] = (chain.context.spec, family.name if installed else family, chain.truth)
    return Parcel(store, Path.cwd(), chains, numerics, plan.dashboards)


class _Pickler(pickle.Pickler):
    """Writes a chain as its name: a run has many stages, and few chains."""

    def persistent_id(self, obj: Any) -> tuple[str, bool] | None:
        return (obj.name, obj.on_training) if isinstance(obj, Context) else None


class _Unpickler(pickle.Unpickler):
    def __init__(self, data: bytes, contexts: dict[tuple[str, bool], Context]) -> None:
        super().__init__(io.BytesIO(data))
        self.contexts = contexts

    def persistent_load(self, pid: tuple[str, bool]) -> Context:
        if pid not in self.contexts:
            again = self.contexts[pid[0], False].judged_on_training()
            if again is None:
                raise pickle.UnpicklingError(f"{pid[0]} is not judged on prompts of training")
            self.contexts[pid] = again
        return self.contexts[pid]


def pack_node(node: Node) -> bytes:
    """Write a stage without its chain."""
    out = io.BytesIO()
    _Pickler(out, pickle.HIGHEST_PROTOCOL).dump(node)
    return out.getvalue()


class Work:
    """A parcel opened in the process that makes stages; laws stay open from one stage to the next.

    Attributes
    ----------
    plan : chains alone.
    bench : of the parcel's store.
    cwd : of the parcel.
    """

    def __init__(self, parcel: Parcel) -> None:
        known = families()
        self.plan = Plan(dashboards=parcel.dashboards)
        self._contexts: dict[tuple[str, bool], Context] = {}
        for name, (spec, family, truth) in parcel.chains.items():
            context = Context(name, spec, known[family] if isinstance(family, str) else family)
            self.plan.chains[name] = ChainPlan(context, truth, {})
            self._contexts[name, False] = context
        self.bench = ArtifactLoader(parcel.store)

        self.cwd, self._unchecked = parcel.cwd, dict(parcel.numerics)

    def enter(self) -> None:
        """Stand in the folder that the run was started in, where this machine has it."""
        if self.cwd.is_dir():
            os.chdir(self.cwd)

    def node(self, data: bytes) -> Node:
        """Read what `pack_node` wrote.

        Raises
        ------
        InputError : what is made here would not be what its key says: other versions, threads, processor or device.
        """
        node: Node = _Unpickler(data, self._contexts).load()
        said = self._unchecked.get(node.context.name)
        if said is not None:
            here = dict(node.context.family.numerics(node.context.spec))
            other = next((k for k in {**said, **here} if said.get(k) != here.get(k)), None)
            if other is not None:
                what = f"{node.context.name}: {platform.node()} has another {other} than the artifacts' keys say"
                fix = "use nodes with one installation and class of CPU, and set the chain's threads"
                raise InputError(what, got=f"{here.get(other)} for {said.get(other)}", fix=fix)
            del self._unchecked[node.context.name]
        return node
