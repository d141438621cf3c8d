"""Whole runs at URLs: as local ones, through damage, kills and lost connections."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

import hydrometer as hm
from chains import mixture_spec, without_timings, write_spec
from hydrometer.cli import commands
from hydrometer.core.errors import FolderError, StoreError, UnreachableError
from hydrometer.run.execution import recorder
from hydrometer.run.graph.outcome import SilentMonitor
from hydrometer.run.results.named_models import named_models
from hydrometer.store import records
from hydrometer.store.records import RunFolder
from hydrometer.store.run_status import RunStatus, read_status
from hydrometer.store.storage_uri import Url

MARKOV = [
    "seeds=2",
    "chains.markov.data.evaluate=100",
    "chains.markov.selectivity=[{temperature: 1}, {temperature: 0.5}]",
]


@pytest.fixture
def spec(tmp_path: Path) -> str:
    return str(write_spec(mixture_spec(), tmp_path))


@pytest.fixture
def expected(spec: str, tmp_path: Path) -> str:
    return without_timings(hm.run(spec, out=tmp_path / "local").results)


def test_as_a_local_run(spec: str, expected: str, bucket: str, objects: Any, tmp_path: Path, elsewhere: Any) -> None:
    place = f"s3://{bucket}/deep/run"
    first = hm.run(spec, out=place)
    assert without_timings(first.results) == expected
    assert first.folder == Url("s3", bucket, "deep/run")
    local = {
        str(p.relative_to(tmp_path / "local")) for p in (tmp_path / "local").rglob("*.json") if p.parent.name != "local"
    }
    books = {o.removeprefix("deep/run/") for o in objects() if "/artifacts/" not in o}
    assert {b for b in books if b.endswith(".json") and "/" in b} == {
        x for x in local if not x.startswith("artifacts/")
    }
    assert "results.json" in books
    assert ".lock" not in books
    assert not list(tmp_path.glob("cache/remote/*/unsent/*"))
    elsewhere()
    second = hm.run(spec, out=place)
    assert not second.outcome.computed
    assert second.outcome.reused == first.outcome.computed
    assert hm.load_results(place) == second.results == first.results
    opened = hm.load_run(place)
    assert (opened.folder, opened.results) == (first.folder, first.results)
    assert opened.charts() == hm.load_run(tmp_path / "local").charts()  # those of exhibits too
    assert "density: truth p*" in opened.charts()
    fits = {c["name"]: c["artifacts"]["fit"] for c in second.results["cells"] if "name" in c}
    assert {m.name: str(m.place) for m in named_models(place)} == {n: f"{place}/artifacts/{f}" for n, f in fits.items()}
    page = hm.build_report([place])
    assert str(page) == place + "/report.html"
    shown = objects("deep/run/")
    assert {"deep/run/report.html", "deep/run/figures/m-plane.svg"} <= shown.keys()


def test_a_file_url_is_the_folder(spec: str, expected: str, tmp_path: Path) -> None:
    found = hm.run(spec, out=f"file://{tmp_path}/by-url")
    assert found.folder == tmp_path / "by-url"
    assert without_timings(hm.load_results(tmp_path / "by-url")) == expected


@pytest.mark.smoke
def test_markov_chain_and_advice(bucket: str, tmp_path: Path, elsewhere: Any, objects: Any) -> None:
    place = f"s3://{bucket}/markov"
    local = hm.run("markov", out=tmp_path / "local", overrides=MARKOV)
    remote = hm.run("markov", out=place, overrides=MARKOV)
    assert without_timings(local.results) == without_timings(remote.results)
    elsewhere()
    need = hm.Need(max_recall_loss=0.5)
    here, there = hm.advise(tmp_path / "local", need), hm.advise(place, need)
    assert (here.status, here.leader) == (there.status, there.leader)
    assert here.data["take"] == there.data["take"]
    assert "markov/advice.json" in objects("markov/")
    found = hm.doctor("markov", out=place, overrides=MARKOV)
    assert "resumes" in {f.code for f in found.findings}
    with pytest.raises(FolderError, match="another experiment"):
        hm.run("markov", out=place, overrides=[*MARKOV, "name=other"])


def test_a_cache_between_two_local_folders(
    spec: str, expected: str, bucket: str, tmp_path: Path, elsewhere: Any, objects: Any
) -> None:
    cache = f"s3://{bucket}/cache"
    first = hm.run(spec, out=tmp_path / "one", cache=cache)
    assert set(o.split("/")[0] for o in objects()) == {"cache"}
    elsewhere()
    second = hm.run(spec, out=tmp_path / "two", cache=cache)
    assert first.outcome.computed == second.outcome.reused
    assert not second.outcome.computed
    assert without_timings(first.results) == without_timings(second.results) == expected
    assert not (tmp_path / "two" / "artifacts").exists()


@pytest.mark.parametrize("stage", ["judge", "fit"])
def test_damage_is_made_again_in_the_same_run(
    spec: str, expected: str, bucket: str, s3: Any, objects: Any, elsewhere: Any, stage: str
) -> None:
    """Of what the run reads: a judged cell is read for the books, a fit for a cell that has to be judged again."""
    place = f"s3://{bucket}/run"
    whole = hm.run(spec, out=place)
    names = [o for o in objects(f"run/artifacts/{stage}-") if not o.endswith("meta.json")]
    flipped = next(o for o in names if objects(o)[o] > 100)
    raw = bytearray(s3.get_object(Bucket=bucket, Key=flipped)["Body"].read())
    raw[50] ^= 1
    s3.put_object(Bucket=bucket, Key=flipped, Body=bytes(raw))
    lost = objects("run/artifacts/judge-")
    if stage == "fit":
        for o in lost:
            if o.endswith("metrics.json"):
                s3.delete_object(Bucket=bucket, Key=o)
    elsewhere()
    again = hm.run(spec, out=place)
    assert again.outcome.computed[stage] == (1 if stage == "fit" else again.outcome.computed["judge"])
    assert again.outcome.computed[stage] >= 1
    assert again.outcome.computed["judge"] == (whole.outcome.computed["judge"] if stage == "fit" else 1)
    assert without_timings(again.results) == expected


def test_a_lost_connection_ends_the_run_in_one_line(
    spec: str, expected: str, bucket: str, proxy: Any, objects: Any,
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture,
) -> None:  # fmt: skip
    place = f"s3://{bucket}/run"
    proxy.seen.clear()
    proxy.after = ("PUT", 20)
    monkeypatch.setattr(sys, "argv", ["hydrometer", "run", spec, "--out", place])
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(SystemExit) as ended:
        commands.main()
    signal.signal(signal.SIGTERM, before)
    assert ended.value.code == 1
    said = capsys.readouterr().err.strip().splitlines()
    assert said[-1].startswith(f"hydrometer: {place}/artifacts does not answer")
    assert "Traceback" not in "\n".join(said)
    assert not [r for r in caplog.records if r.levelname == "ERROR"]
    there = {o.split("/")[2] for o in objects("run/artifacts/") if o.endswith("meta.json")}
    assert there
    assert not objects("run/results.json")
    with pytest.raises(UnreachableError):
        hm.load_results(place)
    proxy.mend()
    assert objects("run/.lock")  # left behind by this very process, which lives
    again = hm.run(spec, out=place)
    assert again.outcome.reused.total() >= len(there)
    assert without_timings(again.results) == expected


def test_a_killed_driver(spec: str, expected: str, bucket: str, objects: Any, elsewhere: Any) -> None:
    """SIGKILL once a few artifacts are there; run again, on this machine and on another."""
    place = f"s3://{bucket}/run"
    code = f"import hydrometer as hm; hm.run({spec!r}, out={place!r})"
    process = subprocess.Popen([sys.executable, "-c", code], env=os.environ | {"OMP_NUM_THREADS": "1"})
    try:
        for _ in range(6000):
            if (
                len([o for o in objects("run/artifacts/") if o.endswith("meta.json")]) >= 3
                or process.poll() is not None
            ):
                break
            time.sleep(0.02)
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
    assert process.returncode == -signal.SIGKILL
    assert objects("run/.lock")
    assert objects("run/specs/")
    assert not objects("run/results.json")
    elsewhere()  # without what was on its way
    again = hm.run(spec, out=place)
    assert again.outcome.reused.total() >= 2
    assert again.outcome.computed.total() >= 1
    assert without_timings(again.results) == expected
    assert not objects("run/.lock")


def test_refusals(spec: str, bucket: str, s3: Any, objects: Any, tmp_path: Path) -> None:
    for out in ("memory://x", f"s3://u:p@{bucket}/x", "s3://there-is-no-such-bucket-here/x"):
        with pytest.raises(FolderError):
            hm.run(spec, out=out)
        with pytest.raises(FolderError):
            hm.run(spec, out=tmp_path / "out", cache=out)
    s3.put_object(Bucket=bucket, Key="mine/thesis.tex", Body=b"")
    for verb in (lambda: hm.run(spec, out=f"s3://{bucket}/mine"), lambda: hm.load_results(f"s3://{bucket}/empty")):
        with pytest.raises(FolderError):
            verb()
    with pytest.raises(FolderError, match="no run"):
        hm.export(f"s3://{bucket}/empty", to=tmp_path / "rows.jsonl")
    assert list(objects()) == ["mine/thesis.tex"]


def test_facts_of_a_fit_that_are_damaged_are_made_again_by_the_next_run(
    spec: str, expected: str, bucket: str, s3: Any, objects: Any, elsewhere: Any
) -> None:
    """Where all is finished nothing of a fit is read but its seconds."""
    place = f"s3://{bucket}/run"
    hm.run(spec, out=place)
    meta = next(o for o in objects("run/artifacts/fit-") if o.endswith("meta.json"))
    s3.put_object(Bucket=bucket, Key=meta, Body=b"{")
    elsewhere()
    with pytest.raises(StoreError, match="run it again"):
        hm.run(spec, out=place)
    again = hm.run(spec, out=place)
    assert dict(again.outcome.computed) == {"fit": 1}
    assert without_timings(again.results) == expected


def test_no_books_without_a_specification(bucket: str, objects: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Cut off between them, the place would hold no run, and be refused ever after."""
    place = Url("s3", bucket, "run")
    folder = RunFolder(place)
    assert folder._mirror is not None
    put_file = folder._mirror._fs.put_file

    def cut(here: str, there: str) -> None:
        if "/specs/" in there:
            raise OSError(5, "cut")
        put_file(here, there)

    with folder.hold():
        folder.accept({"name": "x"})
        for i in range(30):
            folder.put("records", f"a{i}", {"id": f"a{i}"})
        monkeypatch.setattr(folder._mirror._fs, "put_file", cut)
        with pytest.raises(UnreachableError):
            folder.push()
    assert objects() == {}
    RunFolder(place)


def test_results_elsewhere_are_read_within_bounds(bucket: str, s3: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    s3.put_object(Bucket=bucket, Key="run/results.json", Body=b'{"schema": 1}' + b" " * 100)
    assert hm.load_results(f"s3://{bucket}/run") == {"schema": 1}
    monkeypatch.setattr(records, "MAX_RESULTS_BYTES", 100)
    with pytest.raises(FolderError, match="larger than 100 bytes"):
        hm.load_results(f"s3://{bucket}/run")


def test_a_run_is_watched_in_its_store(spec: str, bucket: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recorder, "_REMOTE", 0.02)
    place = f"s3://{bucket}/watched"
    seen: list[RunStatus] = []

    class Look(SilentMonitor):
        def stage(self, label: str, cost: float) -> None:
            if len(seen) < 4 and (status := read_status(place)) is not None:
                seen.append(status)

    hm.run(spec, out=place, monitor=Look())
    assert [s.state for s in seen] == ["running"] * 4
    end = read_status(place)
    assert end is not None
    assert (end.state, end.done, end.failed) == ("done", end.stages, 0)
    found = CliRunner().invoke(commands.app, ["watch", place])
    assert found.exit_code == 0
    assert "done in" in found.output
    assert "distilled at β = 20" in found.output
