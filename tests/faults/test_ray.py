"""Deaths on a Ray cluster: a worker process, and a whole node, at work on each kind of stage; a process of a fit."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

ray = pytest.importorskip("ray")

import hydrometer as hm  # noqa: E402
from chains import mixture_spec, write_spec  # noqa: E402
from faulty import World, artifacts, leftovers, recover, same  # noqa: E402
from hydrometer.run.execution import on_ray  # noqa: E402

pytestmark = pytest.mark.faults
ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])  # workers cannot import tests

SMALL = {"num_cpus": 1, "object_store_memory": 100 << 20}


@pytest.fixture
def cluster(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """A head that makes nothing, and two nodes of one core that may go; this process is its driver."""
    from ray.cluster_utils import Cluster

    monkeypatch.setenv("RAY_USAGE_STATS_ENABLED", "0")
    # A node that is silent for three seconds is dead; Ray's own patience is half a minute.
    alive = {"health_check_initial_delay_ms": 0, "health_check_period_ms": 1000, "health_check_failure_threshold": 3}
    head = SMALL | {"num_cpus": 0, "include_dashboard": False, "_system_config": alive}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        made = Cluster(initialize_head=True, head_node_args=head)
        for _ in range(2):
            made.add_node(**SMALL)
        made.wait_for_nodes()
        ray.init(address=made.address, log_to_driver=False, logging_level=40)
    yield made
    ray.shutdown()
    made.shutdown()


def run_while_nodes_come_back(cluster: Any, deaths: Path, spec: Path, out: Path) -> Any:
    """A run, in a thread, for Ray starts nodes from the main one alone: another for each that died."""
    with ThreadPoolExecutor(1) as pool:
        run = pool.submit(hm.run, spec, out=out, executor="ray")
        seen = 0
        while not run.done():
            died = len(list(deaths.iterdir()))
            for _ in range(died - seen):
                cluster.add_node(wait=False, **SMALL)
            seen = died
            time.sleep(0.2)
        return run.result()


def dies_once_a_kind(deaths: Path, what: str, moment: str) -> Callable[..., Any]:
    """`on_ray._make`, but the first worker at a stage of each kind is killed at it, or the node with it."""

    def make(parcel: list[Any], data: bytes, inputs: list[tuple[str, str]], each: dict[str, float]) -> Any:
        import os
        import signal

        from hydrometer.run.execution import on_ray
        from hydrometer.store import artifacts

        stage = on_ray._work(parcel).node(data).stage
        inner = getattr(artifacts, moment)

        def die(*args: Any) -> None:
            if moment == "_make_empty":
                inner(*args)  # begun: its folder is there
            try:
                os.close(os.open(deaths / stage, os.O_CREAT | os.O_EXCL))
            except FileExistsError:
                if moment != "_make_empty":
                    inner(*args)
                return
            if what == "node":
                raylet = os.getppid()
                if "raylet" not in Path(f"/proc/{raylet}/comm").read_text():
                    raise AssertionError("the parent of a worker is not its node's raylet")
                os.kill(raylet, signal.SIGKILL)
            os.kill(os.getpid(), signal.SIGKILL)

        setattr(artifacts, moment, die)
        try:
            return on_ray._make(parcel, data, inputs, each)
        finally:
            setattr(artifacts, moment, inner)

    return make


@pytest.mark.timeout(900)
@pytest.mark.parametrize(  # a stage that has begun; one whose last file is written
    ("what", "moment"), [("worker", "_make_empty"), ("worker", "_put"), ("node", "_put")]
)
def test_a_death_in_each_kind_of_stage_costs_that_stage_alone(
    world: World, tmp_path: Path, observe, cluster: Any, monkeypatch: pytest.MonkeyPatch, what: str, moment: str
) -> None:
    out, deaths = tmp_path / "out", tmp_path / "deaths"
    deaths.mkdir()
    monkeypatch.setattr(on_ray, "_make", dies_once_a_kind(deaths, what, moment))
    if what == "node":
        result = run_while_nodes_come_back(cluster, deaths, world.spec, out)
    else:
        result = hm.run(world.spec, out=out, executor="ray")
    kinds = {p.name for p in deaths.iterdir()}
    assert kinds == set(artifacts(world.undisturbed))
    assert not result.outcome.failed
    assert result.outcome.computed == artifacts(world.undisturbed)
    begun = Counter(x.split("-")[1] for x in leftovers(out) if x.startswith("artifacts/"))
    assert begun == Counter(kinds)  # one half-written folder for each death, and no other
    assert recover(world, out) == 0
    same(out, world.undisturbed)
    for kind in sorted(kinds):
        observe(f"SIGKILL of a Ray {what} at a stage of kind {kind}", "records equal", again=0, lost=begun[kind])


def rank_dies_once(flag: Path, step: int) -> Callable[..., Any]:
    """`on_ray._fit_together`, but one of the fit's processes is killed after a step."""

    def make(parcel: list[Any], data: bytes, inputs: list[tuple[str, str]], each: dict[str, float]) -> Any:
        from hydrometer.run.execution import on_ray, on_ray_train

        inner = on_ray_train._rank

        def rank(config: dict[str, Any]) -> None:
            import os
            import signal

            from hydrometer.models.causal_lm.training.checkpoints import Checkpoints
            from hydrometer.run.execution import on_ray_train

            def on_step_end(self: Any, args: Any, state: Any, control: Any, **_: Any) -> None:
                if not self.writes and state.global_step == step and not flag.exists():
                    flag.touch()
                    os.kill(os.getpid(), signal.SIGKILL)

            Checkpoints.on_step_end = on_step_end
            on_ray_train._rank(config)

        on_ray_train._rank = rank
        try:
            return on_ray._fit_together(parcel, data, inputs, each)
        finally:
            on_ray_train._rank = inner

    return make


@pytest.mark.timeout(900)
def test_a_fit_that_lost_a_process_goes_on_from_its_checkpoint(
    world: World, tmp_path: Path, observe, cluster: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = json.loads(world.spec.read_text())
    chain = spec["chains"]["lm"]
    chain |= {"selectivity": [{"temperature": 1.0}], "picture": None}
    chain["student"]["training"] |= {"num_workers": 2, "save_steps": 2, "num_train_epochs": 3}
    chain["data"] |= {"train": 48}
    path = write_spec(spec | {"chains": {"lm": chain}}, tmp_path)
    undisturbed = hm.run(path, out=tmp_path / "undisturbed", executor="ray")
    assert not undisturbed.failed_cells
    flag = tmp_path / "died"
    monkeypatch.setattr(on_ray, "_fit_together", rank_dies_once(flag, 5))
    result = hm.run(path, out=tmp_path / "out", executor="ray")
    assert flag.exists()
    assert not result.failed_cells
    assert result.outcome.computed == undisturbed.outcome.computed
    same(tmp_path / "out", tmp_path / "undisturbed")
    infos = [json.loads(p.read_text())["info"] for p in (tmp_path / "out" / "artifacts").glob("fit-*/meta.json")]
    assert [i["resumed"] for i in infos if i.get("resumed")] == ["checkpoint-4"]
    fault = "SIGKILL of a process of a fit of two on Ray, after step 5 of 9, with save_steps 2"
    observe(fault, "records equal; the fit went on from step 4")


def test_what_the_memory_monitor_kills_fails_with_a_reason(tmp_path: Path, observe) -> None:
    """Ray tries it again without end by itself; a cluster of its own, for the bound is set before Ray is imported."""
    spec, out = write_spec(mixture_spec(seeds=1), tmp_path), tmp_path / "out"
    argv = [sys.executable, "-m", "hydrometer.cli", "run", str(spec), "--out", str(out), "--json"]
    monitor = {"RAY_memory_usage_threshold": "0.01", "RAY_memory_monitor_refresh_ms": "50"}
    killed = subprocess.run([*argv, "--executor", "ray"], env=os.environ | monitor, capture_output=True, text=True)
    assert killed.returncode == 1, killed.stderr
    cells = json.loads((out / "results.json").read_text())["cells"]
    assert {c["reason"] for c in cells} == {"its worker ran out of memory, 4 times at most; see the node's Ray logs"}
    assert subprocess.run(argv, capture_output=True).returncode == 0
    observe("a Ray worker killed by Ray's memory monitor, every time", "the cells fail with a reason; later run whole")
