"""A run's own cluster: started for it, one worker here, and ended with it, however it ends."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest

ray = pytest.importorskip("ray")
pytest.importorskip("torch")

import hydrometer as hm  # noqa: E402
from hydrometer.run.execution.execute import SilentMonitor, execute  # noqa: E402
from hydrometer.run.execution.on_ray import RayExecutor, _connected  # noqa: E402
from hydrometer.run.graph.plan import Plan, plan_run  # noqa: E402
from hydrometer.stages.nodes import DrawNode  # noqa: E402
from hydrometer.store.artifacts import ArtifactStore  # noqa: E402

pytestmark = pytest.mark.ray


def _files(out: Path) -> dict[str, bytes]:
    """All that artifacts hold but meta.json, where the seconds are."""
    found = sorted((out / "artifacts").rglob("*"))
    return {str(p.relative_to(out)): p.read_bytes() for p in found if p.is_file() and p.name != "meta.json"}


@pytest.mark.smoke
def test_a_cluster_of_its_own_with_one_worker(tmp_path: Path, small_run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    truth = {
        k: n
        for k, n in plan_run(hm.load_spec(small_run)).nodes.items()
        if isinstance(n, DrawNode) and n.law.kind == "truth"
    }
    plan = Plan(dict(truth), plan_run(hm.load_spec(small_run)).chains)
    execute(plan, ArtifactStore(tmp_path / "local" / "artifacts"), SilentMonitor())
    monkeypatch.setattr(os, "cpu_count", lambda: 1)
    handler = signal.getsignal(signal.SIGTERM)
    with _connected(None):
        assert ray.cluster_resources()["CPU"] == 1
        assert signal.getsignal(signal.SIGTERM) is handler
        one = Plan(dict(list(truth.items())[:3]), plan.chains)
        store = ArtifactStore(tmp_path / "one" / "artifacts")
        with pytest.raises(KeyboardInterrupt):
            RayExecutor()(one, store, _Interrupts())
        done = sum(store.has("draw", k) for k in one.nodes)
        assert 1 <= done
        assert RayExecutor()(one, store, SilentMonitor()).reused["draw"] >= done
    assert not ray.is_initialized()
    few = _files(tmp_path / "one")
    assert not [name for name in few if ".tmp" in name]
    assert len({name.split("/")[1] for name in few}) == 3
    assert few.items() <= _files(tmp_path / "local").items()


class _Interrupts(SilentMonitor):
    """A monitor under which someone presses Ctrl-C when the first stage is done."""

    def done(self, cost: float, failed: str | None) -> None:
        raise KeyboardInterrupt
