"""What a run reports while it goes on: read back by the libraries that it is written for, and no part of the run."""

from __future__ import annotations

import json
import math
import os
import socket
import struct
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

import hydrometer as hm
from chains import lm_spec, mixture_spec, without_timings, write_spec
from hydrometer.core import dashboards
from hydrometer.core.dashboards import Dashboards
from hydrometer.core.errors import InputError, MissingDependencyError
from hydrometer.core.rng import Stream
from hydrometer.core.watching import logged_by
from hydrometer.models.base import FitRequest
from hydrometer.run.graph.plan import plan_run

Scalars = dict[str, list[tuple[int, float]]]


def scalars(folder: Path) -> Scalars:
    """What TensorBoard shows of one of its runs: by tag, steps and values."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    found = EventAccumulator(str(folder)).Reload()
    return {tag: [(e.step, e.value) for e in found.Scalars(tag)] for tag in found.Tags()["scalars"]}


def logged(request: FitRequest) -> tuple[dict[str, list[tuple[int, float]]], Mapping[str, Any]]:
    from hydrometer.models.causal_lm.training.trainer import fit

    seen: Scalars = {}

    def log(step: int, figures: Mapping[str, float]) -> None:
        for name, value in figures.items():
            seen.setdefault(name, []).append((step, value))

    with logged_by(log):
        return seen, fit(request).info


@pytest.mark.parametrize("accumulated", [1, 2])
def test_a_fit_logs_its_loss_rate_and_held_out_loss(accumulated: int) -> None:
    """A copy of the truth has the truth's loss before its first step; rates are those of the formula."""
    pytest.importorskip("torch")
    from hydrometer.models.causal_lm.inference.model import CausalLM
    from hydrometer.models.causal_lm.level_spec import LevelSpec
    from hydrometer.models.causal_lm.spec import Training
    from tiny import make_llama, make_tokenizer

    law = CausalLM(make_llama(), make_tokenizer(64)).law("w3 w4", max_new_tokens=6, block_rows=16)
    rows, held_out = law.sample(32, seed=3), law.sample(16, seed=4)
    training = Training(
        num_train_epochs=4, per_device_train_batch_size=32 // accumulated, gradient_accumulation_steps=accumulated,
        learning_rate=0.01, bf16=False, lr_scheduler_type="constant_with_warmup", warmup_steps=2,
    )  # fmt: skip
    level = LevelSpec(init="truth", training=training)
    seen, info = logged(FitRequest(rows, held_out, law, None, level, "truth", "mle", Stream(7)))
    assert seen["train/loss"][0] == (1, pytest.approx(-rows.log_prob.sum() / rows.lengths.sum(), rel=1e-4))
    assert [s for s, _ in seen["train/loss"]] == [1, 2, 3, 4]
    assert seen["train/learning_rate"] == [(s, pytest.approx(0.01 * min((s - 1) / 2, 1))) for s in (1, 2, 3, 4)]
    assert seen["eval/loss"] == [(s, -e["nats_per_token"]) for s, e in enumerate(info["validation"], 1)]


def test_a_run_is_read_back_by_tensorboard(tmp_path: Path, tiny_models: dict[str, Path]) -> None:
    pytest.importorskip("tensorboard")
    spec = lm_spec(tiny_models["llama"], selectivity=[{"temperature": 1.0}], decoding=[])
    result = hm.run(write_spec(spec | {"report_to": "tensorboard"}, tmp_path), out=tmp_path / "out")
    board = tmp_path / "out" / "dashboards" / "tensorboard"
    fits = {p.name for p in (tmp_path / "out" / "models").iterdir()}
    assert {p.name for p in board.iterdir()} == fits | {"run"}
    for name in fits:
        linked = next(p for p in (tmp_path / "out" / "models" / name).iterdir() if p.is_symlink())
        meta = json.loads((linked.resolve().parent / "meta.json").read_text())["info"]
        fit = scalars(board / name)
        assert [s for s, _ in fit["train/loss"]] == list(range(1, meta["steps"] + 1))
        assert [v for _, v in fit["eval/loss"]] == pytest.approx([-e["nats_per_token"] for e in meta["validation"]])
    run = scalars(board / "run")
    done = sum(result.outcome.computed.values())
    assert run["stages/done"][-1] == (done, done)
    for stage in result.outcome.computed:
        artifacts = (tmp_path / "out" / "artifacts").glob(f"{stage}-*/meta.json")
        spent = sum(json.loads(p.read_text())["seconds"] for p in artifacts)
        assert run[f"seconds/{stage}"][-1][1] == pytest.approx(spent)
    for metric in ("precision", "recall", "entropy", "kl_student_truth", "kl_truth_student"):
        for group in {c["group"] for c in result.results["cells"]}:
            cells = [c["metrics"][metric] for c in result.results["cells"] if c["group"] == group]
            assert sorted(v for _, v in run[f"{metric}/{group}"]) == pytest.approx(sorted(c["value"] for c in cells))
            assert sorted(v for _, v in run[f"{metric}_se/{group}"]) == pytest.approx(sorted(c["se"] for c in cells))


def test_seeds_are_points_and_reporting_changes_no_result(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    path = write_spec(mixture_spec(3), tmp_path)
    plain = hm.run(path, out=tmp_path / "plain")
    result = hm.run(path, out=tmp_path / "out", overrides=["report_to=tensorboard"])
    assert without_timings(result.results) == without_timings(plain.results)
    assert not (tmp_path / "plain" / "dashboards").exists()
    board = tmp_path / "out" / "dashboards" / "tensorboard"
    assert [p.name for p in board.iterdir()] == ["run"]  # a mixture's fits log nothing
    shown = scalars(board / "run")["recall/m.student.direct"]
    cells = [c["metrics"]["recall"] for c in result.results["cells"] if c["group"] == "m.student.direct"]
    assert [v for _, v in shown] == pytest.approx([c["value"] for c in cells])
    assert len(shown) == 3


def test_work_that_is_done_again_is_shown_once(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    boards = Dashboards(("tensorboard",), tmp_path, "p")
    for first, value in ((1, 1.0), (3, 2.0)):
        with boards.opened("fit") as log:
            for step in range(first, 5):
                log(step, {"train/loss": value})
    assert scalars(tmp_path / "tensorboard" / "fit")["train/loss"] == [(1, 1.0), (2, 1.0), (3, 2.0), (4, 2.0)]


@pytest.fixture
def knocks(monkeypatch: pytest.MonkeyPatch) -> Any:
    """A proxy for all that would leave this machine; whether anybody came."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        for name in ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "http_proxy", "https_proxy", "all_proxy"):
            monkeypatch.setenv(name, f"http://127.0.0.1:{server.getsockname()[1]}")
        monkeypatch.setenv("HF_TOKEN", "hf_" + "x" * 34)
        monkeypatch.setenv("WANDB_API_KEY", "x" * 40)
        for name in ("WANDB_MODE", "TRACKIO_SPACE_ID", "TRACKIO_SERVER_URL", "TRACKIO_DIR"):
            monkeypatch.delenv(name, raising=False)
        server.setblocking(False)

        def came() -> bool:
            try:
                server.accept()
            except BlockingIOError:
                return False
            return True

        yield came


def test_trackio_keeps_it_here(tmp_path: Path, knocks: Any, capfd: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("trackio")
    import sqlite3

    with Dashboards(("trackio",), tmp_path / "dashboards", "my-run").opened("direct-seed0") as log:
        for step in (1, 2):
            log(step, {"train/loss": 1.5 / step, "eval/loss": math.inf})
    (database,) = (tmp_path / "dashboards" / "trackio").glob("my-run*.db")
    with sqlite3.connect(database) as found:
        rows = found.execute("select run_name, step, metrics from metrics order by step").fetchall()
    assert [(name, step, json.loads(m)["train/loss"]) for name, step, m in rows] == [
        ("direct-seed0", 1, 1.5), ("direct-seed0", 2, 0.75),
    ]  # fmt: skip
    assert capfd.readouterr().out == ""
    assert not knocks()


def log_records(raw: bytes) -> Iterator[bytes]:
    """Records of a log of LevelDB, in blocks of 32 kB, behind the 7 bytes of a header."""
    at, record = 7, b""
    while at + 7 <= len(raw):
        if (left := 32768 - at % 32768) < 7:
            at += left
            continue
        size, kind = struct.unpack_from("<HB", raw, at + 4)
        record += raw[at + 7 : at + 7 + size]
        at += 7 + size
        if kind in (1, 4):  # whole, or the last part of one
            yield record
            record = b""


def test_weights_and_biases_stays_offline(tmp_path: Path, knocks: Any, capfd: pytest.CaptureFixture[str]) -> None:
    wandb = pytest.importorskip("wandb")
    from wandb.proto import wandb_internal_pb2

    boards = Dashboards(("wandb",), tmp_path / "dashboards", "my-run")
    with boards.opened("run") as run, boards.opened("direct-seed0") as fit:  # one inside the other
        run(1, {"stages/done": 1})
        fit(1, {"train/loss": 1.5})
        run(2, {"stages/done": 2})
    wandb.teardown()  # its process writes the last of a file after a run's end was answered
    found: dict[str, list[dict[str, str]]] = {}
    for file in (tmp_path / "dashboards" / "wandb").glob("offline-run-*/*.wandb"):
        name, rows = "", list[dict[str, str]]()
        for raw in log_records(file.read_bytes()):
            (record := wandb_internal_pb2.Record()).ParseFromString(raw)
            if record.HasField("run"):
                name = record.run.display_name
                assert (record.run.project, record.run.run_group) == ("my-run", tmp_path.name)
            if record.HasField("history"):
                rows.append({i.key or "/".join(i.nested_key): i.value_json for i in record.history.item})
        found[name] = rows
    assert [r["stages/done"] for r in found["run"]] == ["1", "2"]
    assert [(r["train/loss"], r["_step"]) for r in found["direct-seed0"]] == [("1.5", "1")]
    assert capfd.readouterr().out == ""
    assert not knocks()


def test_a_missing_package_is_one_line_before_the_run(
    tmp_path: Path, command: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dashboards, "find_spec", lambda name: None)
    path = write_spec(mixture_spec(1), tmp_path)
    code, _, said = command("run", str(path), "--out", "out", "--set", "report_to=[trackio]")
    assert code == 2
    (line,) = (x for x in said.splitlines() if not x.startswith("["))
    assert "got 'trackio'; pip install 'hydrometer[trackio]'" in line
    assert not (tmp_path / "out").exists()
    with pytest.raises(MissingDependencyError):
        hm.run(path, out=tmp_path / "out", overrides=["report_to=trackio"])


def test_what_is_reported_is_no_part_of_the_experiment(tmp_path: Path) -> None:
    path = write_spec(mixture_spec(1), tmp_path)
    plain, reported = hm.load_spec(path), hm.load_spec(path, ["report_to=[tensorboard, wandb]"])
    assert reported.report_to == ("tensorboard", "wandb")
    assert reported.model_dump(mode="json") == plain.model_dump(mode="json")
    assert plan_run(reported).nodes.keys() == plan_run(plain).nodes.keys()
    with pytest.raises(hm.SpecError, match="report_to"):
        hm.load_spec(path, ["report_to=mlflow"])
    assert "out" not in os.listdir(tmp_path)


def test_a_level_names_where_the_key_stands() -> None:
    from hydrometer.models.causal_lm.spec import Training

    with pytest.raises(hm.SpecError, match="report_to is refused: give it at the specification's top"):
        Training(report_to="tensorboard")  # type: ignore[call-arg]


def test_an_object_store_is_refused(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    pytest.importorskip("s3fs")
    from hydrometer.run.results.reported import check_report
    from hydrometer.store.storage_uri import place_of

    class Far:
        place = place_of("s3://bucket/run")

    spec = hm.load_spec(write_spec(mixture_spec(1), tmp_path), ["report_to=tensorboard"])
    with pytest.raises(InputError, match="--out FOLDER --cache URL"):
        check_report(spec, Far())  # type: ignore[arg-type]
