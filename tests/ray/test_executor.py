"""Whoever makes the stages, and however many: the same artifacts, byte for byte, and the same records."""

from __future__ import annotations

import _thread
import json
import os
import signal
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

ray = pytest.importorskip("ray")
pytest.importorskip("torch")

from ray.train import WorkerGroupError  # noqa: E402

import hydrometer as hm  # noqa: E402
from chains import mixture_spec, without_timings, write_spec  # noqa: E402
from hydrometer.core.errors import FitError, InputError, MissingDependencyError, PeerLostError  # noqa: E402
from hydrometer.models.families import families  # noqa: E402
from hydrometer.run.execution import on_ray  # noqa: E402
from hydrometer.run.execution.execute import execute  # noqa: E402
from hydrometer.run.execution.on_ray import RayExecutor  # noqa: E402
from hydrometer.run.execution.on_ray_needs import Machine, need_of  # noqa: E402
from hydrometer.run.execution.on_ray_train import _raised  # noqa: E402
from hydrometer.run.execution.task_payload import Work, pack, pack_node  # noqa: E402
from hydrometer.run.graph.outcome import SilentMonitor  # noqa: E402
from hydrometer.run.graph.plan import Plan, plan_run  # noqa: E402
from hydrometer.stages.judge_files import load_metrics  # noqa: E402
from hydrometer.stages.nodes import DrawNode, FitNode  # noqa: E402
from hydrometer.store.artifacts import ArtifactStore  # noqa: E402

pytestmark = pytest.mark.ray
ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])  # workers cannot import tests


def _files(out: Path) -> dict[str, bytes]:
    """All that artifacts hold but meta.json, where the seconds are."""
    found = sorted((out / "artifacts").rglob("*"))
    return {str(p.relative_to(out)): p.read_bytes() for p in found if p.is_file() and p.name != "meta.json"}


def _plan(path: Path) -> Plan:
    return plan_run(hm.load_spec(path))


def test_a_whole_run_on_three_workers_of_two_nodes_is_the_local_one(
    tmp_path: Path, small_run: Path, connected: None
) -> None:
    local = hm.run(small_run, out=tmp_path / "local")
    there = hm.run(small_run, out=tmp_path / "ray", executor="ray")
    assert there.outcome == local.outcome
    assert without_timings(there.results) == without_timings(local.results)
    assert _files(tmp_path / "ray") == _files(tmp_path / "local")
    drawn = {k: v for k, v in _files(tmp_path / "ray").items() if "/draw-" in k}
    assert len(drawn) > 10
    again = hm.run(small_run, out=tmp_path / "ray", executor="ray")
    assert not again.outcome.computed


class _DiesOnce:
    """A family whose first draw, in whichever worker, takes the worker with it; the flag says that it has happened."""

    def __init__(self, inner: Any, flag: Path) -> None:
        self.inner, self.flag = inner, flag

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return getattr(self.inner, name)

    def save_samples(self, samples: Any, folder: Path) -> None:
        if not self.flag.exists():
            self.flag.write_text(str(os.getpid()))
            os._exit(1)
        self.inner.save_samples(samples, folder)


def test_a_worker_that_dies_mid_draw_is_replaced(tmp_path: Path, small_run: Path, connected: None) -> None:
    plan = _plan(small_run)
    chain = plan.chains["lm"]
    draws = {k: n for k, n in plan.nodes.items() if isinstance(n, DrawNode) and n.law.kind == "truth"}
    mortal = replace(chain.context, family=_DiesOnce(chain.context.family, tmp_path / "died"))
    dying = Plan({k: replace(n, context=mortal) for k, n in draws.items()}, {"lm": replace(chain, context=mortal)})
    outcome = RayExecutor()(dying, ArtifactStore(tmp_path / "ray" / "artifacts"), SilentMonitor())
    assert (tmp_path / "died").exists()
    assert outcome.computed["draw"] == len(draws)
    assert not outcome.failed
    execute(Plan(dict(draws), plan.chains), ArtifactStore(tmp_path / "local" / "artifacts"), SilentMonitor())
    here = {k: v for k, v in _files(tmp_path / "ray").items() if "/.tmp" not in k}
    assert here == _files(tmp_path / "local")


def test_a_failed_stage_takes_with_it_those_that_need_it(tmp_path: Path, small_run: Path, connected: None) -> None:
    spec = json.loads(small_run.read_text())
    spec["chains"]["lm"]["student"]["training"]["learning_rate"] = 1e30
    path = write_spec(spec, tmp_path, "broken.yaml")
    result = hm.run(path, out=tmp_path / "out", executor="ray")
    local = hm.run(path, out=tmp_path / "local")
    assert result.failed_cells == local.failed_cells
    assert result.outcome.failed == local.outcome.failed
    assert all("\n" not in reason for reason in result.outcome.failed.values())


def test_a_fit_of_two_workers_is_that_of_one_up_to_rounding(tmp_path: Path, small_run: Path, connected: None) -> None:
    infos: list[dict[str, Any]] = []
    metrics: list[dict[str, Any]] = []
    keys: list[str] = []
    for n, executor in ((1, execute), (2, RayExecutor())):
        overrides = [f"chains.lm.student.training.num_workers={n}", "chains.lm.student.training.num_train_epochs=2"]
        overrides.append("chains.lm.data.train=33")  # the last batch has one row, which one of two workers gets
        plan = plan_run(hm.load_spec(small_run, overrides))
        cell = next(c for c in plan.cells if c.training == "direct" and c.decoding is None)
        wanted = {cell.judge}
        for key, node in reversed(plan.nodes.items()):
            wanted |= set(node.inputs) if key in wanted else set()
        store = ArtifactStore(tmp_path / str(n))
        outcome = executor(
            Plan({k: v for k, v in plan.nodes.items() if k in wanted}, plan.chains), store, SilentMonitor()
        )
        assert not outcome.failed
        keys.append(next(k for k in wanted if plan.nodes[k].stage == "fit"))
        infos.append(store.meta("fit", keys[-1])["info"])
        metrics.append(load_metrics(store.path("judge", cell.judge)))
    one, two = ([e["nats_per_token"] for e in info["validation"]] for info in infos)
    assert one == pytest.approx(two, abs=1e-3)
    assert one != two  # sums are of other order: another fit, under another key
    assert keys[0] != keys[1]
    for name, x in metrics[0].items():
        y = metrics[1][name]
        if x.value is not None and x.se:
            assert abs(x.value - y.value) <= 4 * (x.se**2 + y.se**2) ** 0.5, name


def test_sigterm_ends_a_run_as_its_handler_says(tmp_path: Path, small_run: Path, connected: None) -> None:
    class Terminated(BaseException):
        pass

    def terminate(number: int, frame: object) -> None:
        raise Terminated

    class Sends(SilentMonitor):
        sent = False

        def done(self, cost: float, failed: str | None) -> None:
            if not self.sent:
                self.sent = True
                os.kill(os.getpid(), signal.SIGTERM)

    before = signal.signal(signal.SIGTERM, terminate)
    try:
        with pytest.raises(Terminated):
            hm.run(small_run, out=tmp_path / "out", executor="ray", monitor=Sends())
        assert signal.getsignal(signal.SIGTERM) is terminate
    finally:
        signal.signal(signal.SIGTERM, before)
    assert not (tmp_path / "out" / "results.json").exists()
    assert not hm.run(small_run, out=tmp_path / "out", executor="ray").failed_cells


def test_without_ray_it_is_one_line(tmp_path: Path, small_run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(MissingDependencyError, match=r"pip install 'hydrometer\[ray\]'") as caught:
        hm.run(small_run, out=tmp_path / "out", executor="ray")
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "out").exists()


def test_a_wrong_executor_or_address_is_one_line(tmp_path: Path, small_run: Path) -> None:
    with pytest.raises(InputError, match="an address is that of a Ray cluster"):
        hm.run(small_run, out=tmp_path / "out", address="auto")
    with pytest.raises(InputError, match="known: local, ray"):
        hm.run(small_run, out=tmp_path / "out", executor="dask")  # type: ignore[arg-type]
    assert not (tmp_path / "out").exists()


def test_a_parcel_takes_the_prompts_along_and_keys_stay(tmp_path: Path, small_run: Path) -> None:
    import pickle

    plan = _plan(small_run)
    parcel = pickle.dumps(pack(plan, ArtifactStore(tmp_path / "artifacts")))
    nodes = {k: pack_node(n) for k, n in plan.nodes.items()}
    (tmp_path / "prompts.jsonl").unlink()
    work = Work(pickle.loads(parcel))
    context = work.plan.chains["lm"].context
    assert context.family is families()["causal_lm"]
    said = {"family": "causal_lm", **context.family.truth_identity(context.spec)}
    assert said == plan.chains["lm"].truth_identity
    for key, data in nodes.items():
        assert len(data) < 4096
        assert work.node(data).key == key
    assert work.bench.store.root == (tmp_path / "artifacts").absolute()


def test_a_worker_of_other_numerics_is_refused_in_one_line(tmp_path: Path, small_run: Path) -> None:
    plan = _plan(small_run)
    parcel = pack(plan, ArtifactStore(tmp_path / "artifacts"))
    data = pack_node(next(iter(plan.nodes.values())))
    parcel.numerics["lm"]["threads"] = 7
    with pytest.raises(InputError, match="another threads than the artifacts' keys say; got '1 for 7'"):
        Work(parcel).node(data)


def test_needs_follow_the_chain_and_never_exceed_a_node(small_run: Path) -> None:
    plan = plan_run(hm.load_spec(small_run, ["chains.lm.threads=6"]))
    fit = next(n for n in plan.nodes.values() if n.stage == "fit")
    wide = need_of(fit, [Machine(8, 0, 1e12)], {})
    assert (wide.cpus, wide.gpus) == (6, 0)
    assert 0 < wide.memory < 1e9
    narrow = need_of(fit, [Machine(2, 0, 1000), Machine(4, 0, 10)], {})
    assert (narrow.cpus, narrow.memory) == (2, 1000)  # no node has 4 CPUs and 1000 bytes: it would wait without end
    assert need_of(fit, [Machine(2, 0, 1e12), Machine(8, 0, 1e12)], {}).cpus == 6
    assert need_of(fit, [Machine(8, 0, 1000), Machine(2, 0, 1e12)], {}).cpus == 2
    assert need_of(fit, [Machine(8, 1, 1e12)], {}).gpus == 0
    both = plan_run(hm.load_spec(small_run, ["chains.lm.threads=6", "chains.lm.student.training.num_workers=3"]))
    fits = next(n for n in both.nodes.values() if n.stage == "fit")
    need = need_of(fits, [Machine(8, 0, 1e12)], {})
    assert need.workers == 3
    assert 3 * need.cpus <= 8
    assert need.options() == {"num_cpus": 0}


def test_another_kind_of_chain_runs_too(tmp_path: Path, connected: None) -> None:
    path = write_spec(mixture_spec(as_released=True), tmp_path)
    local = hm.run(path, out=tmp_path / "local")
    there = hm.run(path, out=tmp_path / "ray", executor="ray")
    assert without_timings(there.results) == without_timings(local.results)


def test_models_are_judged_there_as_here(tmp_path: Path, llama_folder: Path, connected: None) -> None:
    """Against a truth of the same vocabulary, and on held-out text: two stages of each kind at once."""
    import torch

    from hydrometer.run.judging.judging import judge_models

    (tmp_path / "prompts.jsonl").write_text('{"text": "w3 w4"}\n{"text": "w5"}\n')
    (tmp_path / "text.jsonl").write_text('{"prompt": "w3", "completion": "w5"}\n{"prompt": "w4", "completion": "w8"}\n')
    by_model: dict[str, Any] = {"truth": llama_folder, "prompts": tmp_path / "prompts.jsonl", "max_new_tokens": 5}
    by_text: dict[str, Any] = {"truth_text": tmp_path / "text.jsonl", "chat": False}
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        for name, asked in (("model", by_model), ("text", by_text)):
            local = judge_models([llama_folder], **asked, out=tmp_path / f"{name}-local")
            there = judge_models([llama_folder], **asked, out=tmp_path / f"{name}-ray", executor="ray")
            assert there.outcome == local.outcome
            assert without_timings(there.results) == without_timings(local.results)
    finally:
        torch.set_num_threads(before)


def test_a_node_of_other_numerics_ends_the_run_in_one_line(
    tmp_path: Path, small_run: Path, connected: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    def packed(plan: Plan, store: ArtifactStore) -> Any:
        parcel = pack(plan, store)
        parcel.numerics["lm"]["threads"] = 7
        return parcel

    monkeypatch.setattr(on_ray, "pack", packed)
    with pytest.raises(InputError, match=r"^lm: .* has another threads .*; got '1 for 7'; use nodes") as caught:
        RayExecutor()(_plan(small_run), ArtifactStore(tmp_path / "artifacts"), SilentMonitor())
    assert "\n" not in str(caught.value)


def test_a_handler_that_returns_is_called_once(tmp_path: Path, small_run: Path, connected: None) -> None:
    class Sends(SilentMonitor):
        stages = 0

        def done(self, cost: float, failed: str | None) -> None:
            self.stages += 1
            if self.stages == 1:
                os.kill(os.getpid(), signal.SIGTERM)

    heard: list[int] = []
    before = signal.signal(signal.SIGTERM, lambda number, frame: heard.append(number))
    plan = _plan(small_run)
    draws = {k: n for k, n in plan.nodes.items() if isinstance(n, DrawNode) and n.law.kind == "truth"}
    try:
        outcome = RayExecutor()(Plan(draws, plan.chains), ArtifactStore(tmp_path / "artifacts"), Sends())
    finally:
        signal.signal(signal.SIGTERM, before)
    assert outcome.computed["draw"] == len(draws)
    assert heard == [signal.SIGTERM]


class _Waits:
    """A family whose draws last; the file holds the worker that makes one. A deaf one does not hear of its end."""

    def __init__(self, inner: Any, file: Path, deaf: bool = False) -> None:
        self.inner, self.file, self.deaf = inner, file, deaf

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return getattr(self.inner, name)

    def save_samples(self, samples: Any, folder: Path) -> None:
        if self.deaf:
            signal.signal(signal.SIGINT, lambda number, frame: None)
        self.file.write_text(str(os.getpid()))
        for _ in range(3000):  # a cancelled task hears of it between two instructions
            time.sleep(0.1)


@pytest.mark.parametrize("deaf", [False, True])
def test_a_cancelled_worker_ends(
    tmp_path: Path, small_run: Path, connected: None, monkeypatch: pytest.MonkeyPatch, deaf: bool
) -> None:
    """One that was interrupted inside an import of torch would fail every stage of the next run."""
    monkeypatch.setattr(on_ray, "_PATIENCE", 1.0 if deaf else 60.0)
    forced, cancel = list[Any](), ray.cancel

    def watched(ref: Any, *, force: bool) -> None:
        forced.extend([ref] if force else [])
        cancel(ref, force=force)

    monkeypatch.setattr(ray, "cancel", watched)
    plan = _plan(small_run)
    chain = plan.chains["lm"]
    waits = replace(chain.context, family=_Waits(chain.context.family, tmp_path / "pid", deaf))
    draw = next(n for n in plan.nodes.values() if isinstance(n, DrawNode))
    store = ArtifactStore(tmp_path / "artifacts")

    def interrupt() -> None:
        while not ((tmp_path / "pid").exists() and (tmp_path / "pid").read_text()):
            time.sleep(0.05)
        os.kill(os.getpid(), signal.SIGINT)

    threading.Thread(target=interrupt, daemon=True).start()
    alone = Plan({draw.key: replace(draw, context=waits)}, {"lm": replace(chain, context=waits)})
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # or none, in the background
    try:
        with pytest.raises(KeyboardInterrupt):
            RayExecutor()(alone, store, SilentMonitor())
    finally:
        signal.signal(signal.SIGINT, before)
    worker = Path("/proc") / (tmp_path / "pid").read_text()
    deadline = time.monotonic() + 120
    while worker.exists() and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not worker.exists()
    assert bool(forced) is deaf
    assert deaf or not list(store.root.iterdir())
    store.sweep(shared=True)
    assert not list(store.root.iterdir())


@pytest.mark.parametrize("inherited", [signal.SIG_IGN, signal.SIG_DFL, lambda number, frame: None])
def test_a_worker_hears_whatever_was_set_before(monkeypatch: pytest.MonkeyPatch, inherited: Any) -> None:
    """A shell begins what it puts in the background with SIGINT ignored; Ray Train leaves a handler of its own."""

    class Ended(BaseException):
        pass

    def end(code: int) -> None:
        raise Ended(code)

    def cancelled(parcel: Any) -> Any:
        _thread.interrupt_main()  # as Ray does
        for _ in range(100):
            time.sleep(0.01)

    monkeypatch.setattr(on_ray, "_work", cancelled)
    monkeypatch.setattr(os, "_exit", end)
    before = signal.signal(signal.SIGINT, inherited)
    try:
        with pytest.raises(Ended):
            on_ray._make([], b"", [], {})
    finally:
        signal.signal(signal.SIGINT, before)


class _LosesAWorker:
    """A family whose first fit loses its second process at the third step; the flag says that it has happened."""

    def __init__(self, inner: Any, flag: Path) -> None:
        self.inner, self.flag = inner, flag

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return getattr(self.inner, name)

    def fit(self, request: Any) -> Any:
        import torch

        def tick(done: float, total: float, what: str) -> None:
            if done == 3 and torch.distributed.get_rank() == 1 and not self.flag.exists():
                self.flag.touch()
                os._exit(1)

        return self.inner.fit(replace(request, tick=tick))


def test_a_fit_that_loses_a_worker_is_begun_again(tmp_path: Path, small_run: Path, connected: None) -> None:
    overrides = ["num_workers=2", "num_train_epochs=2"]
    plan = plan_run(hm.load_spec(small_run, [f"chains.lm.student.training.{o}" for o in overrides]))
    chain = plan.chains["lm"]
    fit = next(n for n in plan.nodes.values() if isinstance(n, FitNode) and n.teacher is None)
    nodes = {k: plan.nodes[k] for k in (*fit.inputs, fit.key)}
    store = ArtifactStore(tmp_path / "artifacts")
    execute(Plan({k: n for k, n in nodes.items() if n is not fit}, plan.chains), store, SilentMonitor())
    mortal = replace(chain.context, family=_LosesAWorker(chain.context.family, tmp_path / "died"))
    dying = Plan({k: replace(n, context=mortal) for k, n in nodes.items()}, {"lm": replace(chain, context=mortal)})
    outcome = RayExecutor()(dying, store, SilentMonitor())
    assert (tmp_path / "died").exists()
    assert not outcome.failed
    assert outcome.computed == {"fit": 1}


def test_who_raised_is_told_from_who_lost_it() -> None:
    def raised(*errors: Exception | None) -> Exception | None:
        told = {i: SimpleNamespace(_base_exc=e) if e else RuntimeError("actor died") for i, e in enumerate(errors)}
        return _raised(WorkerGroupError("", told))

    lost, mine, defect = PeerLostError("gone"), FitError("the loss is not finite"), ValueError("a defect")
    assert raised(lost, mine) is mine
    assert raised(lost, defect) is defect
    assert raised(lost) is None  # begun again, as after a death
    assert raised(lost, None) is raised(mine, None) is None
    assert _raised(RuntimeError("no workers")) is None
