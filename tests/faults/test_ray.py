"""A Ray worker, and a Ray node, killed in each kind of stage."""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
import warnings
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

ray = pytest.importorskip("ray")

import hydrometer as hm  # noqa: E402
from chains import lm_chain, without_timings, write_spec  # noqa: E402

pytestmark = [pytest.mark.ray, pytest.mark.faults]
ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])  # workers cannot import tests

KINDS = ("draw", "fit", "score", "judge", "show", "embed", "picture")


def _mortal() -> None:
    """In every worker: note each stage that was computed, and die of it, once, where a wish says so."""
    import hydrometer.run.execute as execute

    inner, deaths = execute.compute, Path(os.environ["DEATHS"])

    def compute(node: Any, *rest: Any) -> Any:
        info = inner(node, *rest)
        with (deaths / "computed").open("a") as log:
            log.write(f"{node.stage}-{node.key}\n")
        for victim, pid in (("worker", os.getpid()), ("node", os.getppid())):
            wish = deaths / f"{victim}-{node.stage}"
            try:
                wish.rename(deaths / f"{wish.name}.done")  # of several workers one is first
            except FileNotFoundError:
                continue
            os.kill(pid, signal.SIGKILL)
            time.sleep(60)  # a worker ends with its raylet
        return info

    execute.compute = compute


@pytest.fixture
def cluster() -> Iterator[Any]:
    """A head without CPUs, which is never killed, and two nodes of one."""
    from ray.cluster_utils import Cluster

    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        made = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False})
        for _ in range(2):
            made.add_node(num_cpus=1, object_store_memory=100 << 20)
        made.wait_for_nodes()
    yield made
    ray.shutdown()
    made.shutdown()


@pytest.mark.parametrize("victim", ["worker", "node"])
def test_a_death_in_each_kind_of_stage_costs_that_stage(tmp_path: Path, cluster: Any, observe, victim: str) -> None:
    from hydrometer.models.causal_lm.model import CausalLM
    from tiny import make_llama, make_tokenizer

    CausalLM(make_llama(), make_tokenizer(64)).save(tmp_path / "llama")
    data = {"train": 32, "validate": 16, "distill": 32, "evaluate": 32}
    chain = lm_chain(tmp_path / "llama", data=data, picture="pca")
    spec = write_spec({"name": "mortal", "seeds": 1, "chains": {"lm": chain}}, tmp_path)
    undisturbed = hm.run(spec, out=tmp_path / "local")
    assert set(undisturbed.outcome.computed) == set(KINDS)

    deaths = tmp_path / "deaths"
    deaths.mkdir()
    for kind in KINDS:
        (deaths / f"{victim}-{kind}").touch()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        ray.init(
            address=cluster.address, log_to_driver=False, logging_level=40,
            runtime_env={"worker_process_setup_hook": _mortal, "env_vars": {"DEATHS": str(deaths)}},
        )  # fmt: skip
    over = threading.Event()

    def replace() -> None:
        """Another node for each that died, as a scheduler's allocation would bring."""
        brought = 0
        while not over.wait(0.1):
            if victim == "node" and len(list(deaths.glob("*.done"))) > brought:
                brought += 1
                cluster.add_node(num_cpus=1, object_store_memory=100 << 20)

    bringer = threading.Thread(target=replace)
    bringer.start()
    try:
        result = hm.run(spec, out=tmp_path / "ray", executor="ray")
    finally:
        over.set()
        bringer.join()
    assert not result.failed_cells
    assert without_timings(result.results) == without_timings(undisturbed.results)
    assert {p.name for p in deaths.glob("*.done")} == {f"{victim}-{kind}.done" for kind in KINDS}
    times = Counter((deaths / "computed").read_text().split())
    again = Counter(name.partition("-")[0] for name, n in times.items() for _ in range(n - 1))
    for kind in KINDS:  # what was under way there, and nothing that was finished
        assert again[kind] == 1
        observe(f"SIGKILL of a Ray {victim} in a stage of kind {kind}", "records equal", again=0, lost=again[kind])
