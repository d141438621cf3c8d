"""A cluster whose nodes share nothing but the bucket."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

ray = pytest.importorskip("ray")

import hydrometer as hm  # noqa: E402
from chains import mixture_spec, without_timings, write_spec  # noqa: E402

pytestmark = pytest.mark.ray
SMALL: dict[str, Any] = {"object_store_memory": 100 << 20}


@pytest.fixture
def nodes(s3: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[list[Path]]:
    """Two nodes of one core, each with copies of its own; this process is their driver and makes nothing."""
    from ray.cluster_utils import Cluster

    monkeypatch.setenv("RAY_USAGE_STATS_ENABLED", "0")
    caches = [tmp_path / "node-1", tmp_path / "node-2"]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        made = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False, **SMALL})
        for cache in caches:
            made.add_node(num_cpus=1, env_vars={"HYDROMETER_CACHE": str(cache)}, **SMALL)
        made.wait_for_nodes()
        ray.init(address=made.address, log_to_driver=False, logging_level=40)
    yield caches
    ray.shutdown()
    made.shutdown()


def test_nodes_that_share_a_bucket_alone_make_the_local_run(tmp_path: Path, bucket: str, nodes: list[Path]) -> None:
    spec = write_spec(mixture_spec(), tmp_path)
    local = hm.run(spec, out=tmp_path / "local")
    there = hm.run(spec, out=f"s3://{bucket}/run", executor="ray")
    assert there.outcome == local.outcome
    assert without_timings(there.results) == without_timings(local.results)
    for cache in nodes:  # both made stages, and have sent what they made
        assert list(cache.glob("remote/*/copies/*-*"))
        assert not list(cache.glob("remote/*/unsent/*"))
