"""Make a plan's stages by the workers of a Ray cluster. The one module that imports ray, when it is used.

The driver holds the graph and sends a stage when its inputs are whole, few at a time; a worker opens the inputs from
the store, makes the stage, writes it into the store and answers with a line at most. A worker process keeps its laws
open from one stage to the next. A worker that dies is Ray's to replace: its stage is made again, and a finished one is
found in the store. A stage that fails is answered, never raised, so that Ray does not try it again.
"""

from __future__ import annotations

import contextlib
import heapq
import logging
import os
import signal
import threading
import time
import warnings
from collections.abc import Callable, Generator, Mapping
from graphlib import TopologicalSorter
from typing import TYPE_CHECKING, Any

from hydrometer.core.errors import (
    FolderError,
    HydrometerError,
    InputError,
    MissingDependencyError,
    StoreError,
    one_line,
)
from hydrometer.core.watching import doing
from hydrometer.models.base import no_progress
from hydrometer.run.execution.execute import begin, make, reason_of
from hydrometer.run.execution.on_ray_needs import Machine, Need, need_of
from hydrometer.run.execution.task_payload import Work, pack, pack_node
from hydrometer.run.graph.outcome import Ended, Monitor, Outcome, nobody
from hydrometer.run.graph.plan import Plan
from hydrometer.stages.nodes import Node
from hydrometer.store.artifacts import ArtifactStore

if TYPE_CHECKING:
    from types import ModuleType

__all__ = ["RayExecutor"]

RETRIES = 3  # of a stage whose worker died; Ray's own default for tasks
_AHEAD = 2  # stages sent beyond those that can run at once, for each of these
_VISIBLE = 60.0  # seconds for what another machine wrote to be seen here: NFS keeps an absence that long
_LISTEN = 0.5  # seconds between looks at what signals are to do
_PATIENCE = 10.0  # seconds for a cancelled worker to remove what it has half written, before it is ended by force
_OBJECTS = 256 << 20  # bytes of the object store of a cluster started here; rows never go through it


def _ray() -> ModuleType:
    # What its memory monitor kills Ray tries again without end, unless told so before it starts.
    os.environ.setdefault("RAY_task_oom_retries", str(RETRIES))
    try:
        import ray
    except ImportError:
        raise MissingDependencyError("--executor ray needs Ray", fix="pip install 'hydrometer[ray]'") from None
    return ray


class RayExecutor:
    """Makes stages on a Ray cluster.

    Parameters
    ----------
    address : ``host:port`` or "auto" of a running cluster; None starts one on this machine and ends it after the run.
        Where this process is connected to a cluster already, None is that one.

    Raises
    ------
    MissingDependencyError : Ray is not installed.
    """

    def __init__(self, address: str | None = None) -> None:
        self.address = address
        _ray()

    def __call__(self, plan: Plan, store: ArtifactStore, monitor: Monitor, ended: Ended = nobody) -> Outcome:
        """Make what is missing. Raises InputError where the cluster cannot be reached, or has no place for a stage."""
        outcome, missing, costs = begin(plan, store, monitor)
        if missing:
            with _connected(self.address):
                driver = _Driver(plan, store, monitor, outcome, missing, costs, ended)
                try:
                    driver.run()
                finally:
                    driver.cancel()
            _await_visible(plan, store, [k for k in missing if k not in outcome.failed])
        return outcome


@contextlib.contextmanager
def _connected(address: str | None) -> Generator[None]:
    ray = _ray()
    if ray.is_initialized():
        yield
        return
    options: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR}
    if address is None:
        options |= {"address": "local", "include_dashboard": False, "object_store_memory": _OBJECTS}
        # This machine's CPUs, and not the fewer that a container's quota rounds to: threads are part of a draw.
        options["num_cpus"] = os.cpu_count() or 1
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    else:
        options["address"] = address
    main = threading.current_thread() is threading.main_thread()
    handler = signal.getsignal(signal.SIGTERM)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # what future versions of Ray will do
            ray.init(**options)
    except (ConnectionError, ValueError, RuntimeError, TimeoutError) as e:
        first = str(e).strip().splitlines()[0] if str(e).strip() else type(e).__name__
        what = "no Ray cluster could be started" if address is None else "no Ray cluster answers"
        fix = "see its logs" if address is None else "start one with `ray start --head`, or leave the address out"
        raise InputError(f"{what}: {first}", got=address or "this machine", fix=fix) from None
    finally:
        if main:  # Ray sets one of its own; how a run ends on SIGTERM is not its to say
            signal.signal(signal.SIGTERM, handler)
    try:
        yield
    finally:
        ray.shutdown()


@contextlib.contextmanager
def _signals() -> Generator[list[Callable[[], None]]]:
    """Collect what SIGINT and SIGTERM are to do, for the loop to do: inside a call of Ray it may be lost.

    Ray looks for signals while it waits, and knows a handler that raises KeyboardInterrupt alone.
    """
    pending: list[Callable[[], None]] = []
    if threading.current_thread() is not threading.main_thread():
        yield pending
        return
    before = {s: signal.getsignal(s) for s in (signal.SIGINT, signal.SIGTERM)}

    def note(number: int, frame: object) -> None:
        def act() -> None:
            handler = before[signal.Signals(number)]
            if callable(handler):
                handler(number, None)
            elif handler is signal.SIG_DFL:
                signal.signal(number, signal.SIG_DFL)
                os.kill(os.getpid(), number)

        pending.append(act)

    try:
        for s in before:
            signal.signal(s, note)
        yield pending
    finally:
        for s, handler in before.items():
            signal.signal(s, handler)


def _await_visible(plan: Plan, store: ArtifactStore, keys: list[str]) -> None:
    """Wait until this machine sees what the workers wrote."""
    deadline = time.monotonic() + _VISIBLE
    for key in keys:
        while not store.has(plan.nodes[key].stage, key):
            if time.monotonic() > deadline:
                raise FolderError(
                    "artifacts that workers made are not in the folder as this machine sees it",
                    got=store.location,
                    fix="put --out, or --cache, on a filesystem that all nodes share",
                )
            time.sleep(0.2)


class _Driver:
    """Sends stages and hears of their ends. Work and memory per stage do not grow with the graph."""

    def __init__(
        self,
        plan: Plan,
        store: ArtifactStore,
        monitor: Monitor,
        outcome: Outcome,
        missing: Mapping[str, Node],
        costs: Mapping[str, float],
        ended: Ended,
    ) -> None:
        self.ray: Any = _ray()
        self.ended = ended
        self.plan, self.monitor, self.outcome, self.missing, self.costs = plan, monitor, outcome, missing, costs
        self.place = {key: i for i, key in enumerate(missing)}
        self.graph = TopologicalSorter({k: [i for i in n.inputs if i in missing] for k, n in missing.items()})
        self.graph.prepare()
        self.ready: list[tuple[int, str]] = []  # a heap: first what the first figures need
        self.flying: dict[Any, str] = {}
        self.machines = [
            Machine.of(n["Resources"]) for n in self.ray.nodes() if n["Alive"] and n["Resources"].get("CPU", 0)
        ]
        if not self.machines:
            raise InputError("the Ray cluster has no node with CPUs", fix="start its workers first")
        self.most = max(4, int((1 + _AHEAD) * sum(m.cpus for m in self.machines)))
        self.parcel: Any = self.ray.put(pack(plan, store))
        self.tasks: dict[Need, Any] = {}
        self.needs: dict[object, Need] = {}

    def run(self) -> None:
        with _signals() as pending:
            while self.graph.is_active():
                for key in self.graph.get_ready():
                    heapq.heappush(self.ready, (self.place[key], key))
                while self.ready and len(self.flying) < self.most:
                    self.send(heapq.heappop(self.ready)[1])
                refs = list(self.flying)
                if refs:
                    doing(f"{len(refs)} stages at once")
                    done, _ = self.ray.wait(refs, num_returns=1, timeout=_LISTEN, fetch_local=False)
                    more, _ = self.ray.wait(refs, num_returns=len(refs), timeout=0, fetch_local=False)
                    for ref in {*done, *more}:
                        self.hear(self.flying.pop(ref), ref)
                while pending:
                    pending.pop(0)()

    def send(self, key: str) -> None:
        """Send a stage, unless something that it needs has failed."""
        node = self.missing[key]
        reason = next((self.outcome.failed[i] for i in node.inputs if i in self.outcome.failed), None)
        if reason is not None:
            self.end(key, reason)
            return
        need = need_of(node, self.machines, self.needs)
        if need not in self.tasks:
            work = _fit_together if need.workers > 1 else _make
            self.tasks[need] = self.ray.remote(work).options(max_retries=RETRIES, **need.options())
        inputs = [(self.plan.nodes[i].stage, i) for i in node.inputs if i in self.plan.nodes]
        # In a list, for Ray would open a bare reference anew for every task.
        self.flying[self.tasks[need].remote([self.parcel], pack_node(node), inputs, need.each)] = key

    def hear(self, key: str, ref: Any) -> None:
        errors = self.ray.exceptions
        try:
            reason, error = self.ray.get(ref)
        except (errors.WorkerCrashedError, errors.NodeDiedError, errors.OutOfMemoryError) as e:
            kind = "ran out of memory" if isinstance(e, errors.OutOfMemoryError) else "died"
            reason, error = f"its worker {kind}, {1 + RETRIES} times at most; see the node's Ray logs", None
        except errors.RayError as e:
            missing = [line for line in str(e).splitlines() if "ModuleNotFoundError" in line or "ImportError" in line]
            if not missing:
                raise
            what = f"a node cannot make stages: {one_line(missing[-1], 300)}"
            raise InputError(what, fix="install the same hydrometer on every node") from None
        if error is not None:
            raise error
        self.end(key, reason)

    def end(self, key: str, reason: str | None) -> None:
        """Count a stage as made, or as failed; those that only waited for it are ready."""
        self.outcome.end(self.missing[key], reason)
        self.graph.done(key)
        self.monitor.stage(self.missing[key].label, self.costs[key])
        self.monitor.done(self.costs[key], reason)
        self.ended(self.missing[key], self.outcome)

    def cancel(self) -> None:
        """Stop what is under way. What a worker had half written it removes; the next run, where it did not end."""
        refs = list(self.flying)
        self.flying.clear()
        if refs:
            for ref in refs:
                self.ray.cancel(ref, force=False)
            _, left = self.ray.wait(refs, num_returns=len(refs), timeout=_PATIENCE, fetch_local=False)
            for ref in left:
                self.ray.cancel(ref, force=True)


# In a worker ----------------------------------------------------------------------------------------------------------

Answer = tuple[str | None, HydrometerError | None]
"""Why the stage failed, and what ends the run; None twice where it is made."""

_opened: tuple[str, Work] | None = None


def _work(parcel: list[Any]) -> Work:
    """Open a run once in a worker process: its laws stay open for the next stage."""
    global _opened
    name = parcel[0].hex()
    if _opened is None or _opened[0] != name:
        _opened = name, Work(_ray().get(parcel[0]))
        _opened[1].enter()
    return _opened[1]


def _make(parcel: list[Any], data: bytes, inputs: list[tuple[str, str]], each: Mapping[str, float]) -> Answer:
    """Make a stage, unless it is there."""
    return _answered(parcel, data, inputs, lambda work, node: make(node, work.bench, no_progress, work.plan.dashboards))


def _answered(
    parcel: list[Any], data: bytes, inputs: list[tuple[str, str]], how: Callable[[Work, Node], None]
) -> Answer:
    """Make a stage, unless it is there, and say why it could not be made."""
    # Ray cancels by what SIGINT would do in a worker. That is nothing where the run began in the background, and what
    # Ray Train leaves behind where this worker has led a fit of several.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        try:
            work = _work(parcel)
            node = work.node(data)
        except HydrometerError as e:  # this machine is not as the others: no stage can be made on it
            return None, e
        store = work.bench.store
        try:
            _await_inputs(store, inputs)
            if not store.has(node.stage, node.key):
                how(work, node)
        except Exception as e:
            return _answer(e, node, store)
        return None, None
    except KeyboardInterrupt:  # cancelled, perhaps inside an import, which cannot be taken up again in this process
        os._exit(1)


def _answer(error: Exception, node: Node, store: ArtifactStore) -> Answer:
    """Tell a stage's failure from what ends the run, as the local executor does; a defect is raised."""
    try:
        return reason_of(error, node.stage, store.root), None
    except FolderError as e:
        where = _ray().util.get_node_ip_address()
        return None, FolderError(f"on the node {where}: {e}")
    except HydrometerError as e:
        return None, e


def _await_inputs(store: ArtifactStore, inputs: list[tuple[str, str]]) -> None:
    """Wait until this machine sees a stage's inputs, which other machines may have written a moment ago."""
    deadline = time.monotonic() + _VISIBLE
    for stage, key in inputs:
        while not store.has(stage, key):
            if time.monotonic() > deadline:
                raise StoreError(
                    f"the node {_ray().util.get_node_ip_address()} does not see {stage}-{key}, which another made",
                    fix="put --out, or --cache, on a filesystem that all nodes share",
                )
            time.sleep(0.2)


def _fit_together(parcel: list[Any], data: bytes, inputs: list[tuple[str, str]], each: Mapping[str, float]) -> Answer:
    """Make a fit by several workers, as Ray Train starts them."""

    def fit(work: Work, node: Node) -> None:
        from hydrometer.run.execution.on_ray_train import train

        train(_ray().get(parcel[0]), data, node.workers(), each)
        _await_inputs(work.bench.store, [(node.stage, node.key)])

    return _answered(parcel, data, inputs, fit)
