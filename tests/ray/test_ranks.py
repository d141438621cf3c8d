"""A fit of several processes on this machine, without Ray: the same fit as one process makes, up to rounding."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

pytest.importorskip("torch")

import hydrometer as hm
from chains import write_spec
from hydrometer.core.errors import FitError
from hydrometer.run.execute import SilentMonitor, execute
from hydrometer.run.plan import Plan, plan_run
from hydrometer.run.ranks import fit_together
from hydrometer.stages.nodes import FitNode
from hydrometer.store.artifacts import ArtifactStore


def _direct_fit(small_run: Path, tmp_path: Path, **training: object) -> Plan:
    """The direct student's fit, and the rows it needs, alone."""
    spec = json.loads(small_run.read_text())
    spec["chains"]["lm"]["student"]["training"] |= {"num_train_epochs": 2, **training}
    spec["chains"]["lm"]["data"] |= {"train": 33}  # the last batch has one row, which one of two processes gets
    plan = plan_run(hm.load_spec(write_spec(spec, tmp_path, "fit.yaml")))
    fit = next(n for n in plan.nodes.values() if isinstance(n, FitNode) and n.teacher is None)
    return Plan({k: plan.nodes[k] for k in (*fit.inputs, fit.key)}, plan.chains)


@pytest.mark.parametrize("strategy", ["fsdp"])
def test_two_processes_fit_what_one_fits(tmp_path: Path, small_run: Path, strategy: str) -> None:
    losses: list[list[float]] = []
    store = ArtifactStore(tmp_path / "artifacts")
    for training in ({}, {"num_workers": 2, "strategy": strategy}):
        plan = _direct_fit(small_run, tmp_path, **training)
        outcome = execute(plan, store, SilentMonitor())
        assert not outcome.failed
        info = store.meta("fit", next(k for k, n in plan.nodes.items() if n.stage == "fit"))["info"]
        assert info["steps"] == 6
        losses.append([e["nats_per_token"] for e in info["validation"]])
    assert losses[0] == pytest.approx(losses[1], abs=1e-5)
    assert losses[0] != losses[1]


def test_what_a_process_says_is_the_reason(tmp_path: Path, small_run: Path) -> None:
    plan = _direct_fit(small_run, tmp_path, num_workers=2, learning_rate=1e30)
    store = ArtifactStore(tmp_path / "artifacts")
    fit = next(n for n in plan.nodes.values() if n.stage == "fit")
    execute(Plan({k: n for k, n in plan.nodes.items() if n is not fit}, plan.chains), store, SilentMonitor())
    with pytest.raises(FitError, match=r"not finite.*lower the learning rate") as caught:
        fit_together(fit, plan, store)
    assert "\n" not in str(caught.value)
    assert not store.has("fit", fit.key)
    assert not list(store.root.glob(".tmp-*"))
