"""A fit of several processes on this machine, without Ray: the same fit as one process makes, up to rounding."""

from __future__ import annotations

import json
import os
import pickle
import resource
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("torch")

import hydrometer as hm
from chains import write_spec
from hydrometer.core.dashboards import Dashboards
from hydrometer.core.errors import FitError, FolderError
from hydrometer.models.causal_lm.family import CausalLMFamily
from hydrometer.run.execution.execute import execute
from hydrometer.run.execution.ranks import fit_together
from hydrometer.run.execution.task_payload import pack, pack_node
from hydrometer.run.graph.outcome import SilentMonitor
from hydrometer.run.graph.plan import Plan, plan_run
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
    """And report what one reports: the loss of all rows of a step."""
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    losses: list[list[float]] = []
    reported: list[list[float]] = []
    store = ArtifactStore(tmp_path / "artifacts")
    for training in ({}, {"num_workers": 2, "strategy": strategy}):
        plan = _direct_fit(small_run, tmp_path, **training)
        plan.dashboards = Dashboards(("tensorboard",), tmp_path / "boards" / str(len(losses)), "run")
        outcome = execute(plan, store, SilentMonitor())
        assert not outcome.failed
        (board,) = (plan.dashboards.folder / "tensorboard").iterdir()
        reported.append([e.value for e in accumulator.EventAccumulator(str(board)).Reload().Scalars("train/loss")])
        info = store.meta("fit", next(k for k, n in plan.nodes.items() if n.stage == "fit"))["info"]
        assert info["steps"] == 6
        losses.append([e["nats_per_token"] for e in info["validation"]])
    assert losses[0] == pytest.approx(losses[1], abs=1e-5)
    assert losses[0] != losses[1]
    assert len(reported[0]) == 6
    assert reported[0] == pytest.approx(reported[1], rel=1e-4)


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


def _ready(small_run: Path, tmp_path: Path, **training: object) -> tuple[FitNode, Plan, ArtifactStore]:
    """A fit of two processes whose rows are drawn."""
    plan = _direct_fit(small_run, tmp_path, num_workers=2, **training)
    store = ArtifactStore(tmp_path / "artifacts")
    fit = next(n for n in plan.nodes.values() if isinstance(n, FitNode))
    execute(Plan({k: n for k, n in plan.nodes.items() if n is not fit}, plan.chains), store, SilentMonitor())
    return fit, plan, store


def _watched(monkeypatch: pytest.MonkeyPatch, **more: Any) -> list[subprocess.Popen[bytes]]:
    """The processes that are started from now on."""
    started: list[subprocess.Popen[bytes]] = []
    start = subprocess.Popen

    def watched(*args: Any, **kwargs: Any) -> subprocess.Popen[bytes]:
        started.append(start(*args, **kwargs, **more))
        return started[-1]

    monkeypatch.setattr(subprocess, "Popen", watched)
    return started


@pytest.mark.parametrize("rank", [0, 1])
def test_a_process_that_was_killed_is_the_reason(
    tmp_path: Path, small_run: Path, monkeypatch: pytest.MonkeyPatch, rank: int
) -> None:
    fit, plan, store = _ready(small_run, tmp_path, num_train_epochs=2000, save_steps=2)
    started = _watched(monkeypatch)

    def kill() -> None:
        deadline = time.monotonic() + 120
        while not list(store.root.glob(".partial-*/*/whole.json")) and time.monotonic() < deadline:
            time.sleep(0.01)
        started[rank].kill()

    killer = threading.Thread(target=kill)
    killer.start()
    with pytest.raises(FitError, match=f"^process {rank} of the fit ended with code -9"):
        fit_together(fit, plan, store)
    killer.join()
    assert all(p.returncode for p in started)


def test_what_the_machine_refuses_to_a_process_ends_the_run(
    tmp_path: Path, small_run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fit, plan, store = _ready(small_run, tmp_path)
    _watched(monkeypatch, preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, 10_000)))
    with pytest.raises(FolderError, match="File too large"):
        execute(Plan({k: plan.nodes[k] for k in (*fit.inputs, fit.key)}, plan.chains), store, SilentMonitor())


def test_a_process_whose_run_is_gone_before_it_looks_ends(tmp_path: Path, small_run: Path) -> None:
    fit, plan, store = _ready(small_run, tmp_path)
    job = tmp_path / "job"
    job.write_bytes(pickle.dumps((pack(plan, store), pack_node(fit))))
    command = f'"{sys.executable}" -m hydrometer.run.execution.rank "{job}" 0 $$ >/dev/null 2>&1 & echo $!'
    environment = os.environ | {"WORLD_SIZE": "2", "RANK": "0", "PYTHONPATH": os.pathsep.join(p for p in sys.path if p)}
    shell = subprocess.run(["sh", "-c", command], env=environment, stdout=subprocess.PIPE, check=True)
    pid = int(shell.stdout)
    deadline = time.monotonic() + 60
    while _lives(pid) and time.monotonic() < deadline:
        time.sleep(0.1)
    if lives := _lives(pid):
        os.kill(pid, signal.SIGKILL)
    assert not lives


def _lives(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def test_an_engine_is_given_back_before_the_processes_begin(
    tmp_path: Path, small_run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = _direct_fit(small_run, tmp_path, num_workers=2)
    fit = next(n for n in plan.nodes.values() if isinstance(n, FitNode))
    happened: list[str] = []

    def start(*args: object, **kwargs: object) -> None:
        happened.append("started")
        raise MemoryError

    monkeypatch.setattr(CausalLMFamily, "release", lambda self: happened.append("released"))
    monkeypatch.setattr(subprocess, "Popen", start)
    with pytest.raises(MemoryError):
        fit_together(fit, plan, ArtifactStore(tmp_path / "artifacts"))
    assert happened == ["released", "started"]
