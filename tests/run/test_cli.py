import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

import hydrometer as hm
from chains import complaints, mixture_spec, write_spec
from hydrometer._stopping import Stop, how_to_go_on
from hydrometer.claims import load_claim
from hydrometer.cli import commands
from hydrometer.cli.exit import end_with

COMMAND = [sys.executable, "-m", "hydrometer.cli"]


def call(argv: list[str], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> tuple[int, str, str]:
    """Run the command line in this process; returns exit code, stdout, stderr."""
    monkeypatch.setattr(sys, "argv", ["hydrometer", *argv])
    handler = signal.getsignal(signal.SIGTERM)
    try:
        commands.main()
        code = 0
    except SystemExit as e:
        code = int(e.code or 0)
    finally:
        signal.signal(signal.SIGTERM, handler)
    captured = capsys.readouterr()
    return code, captured.out, captured.err


@pytest.fixture
def hydrometer(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Any:
    monkeypatch.chdir(tmp_path)
    return lambda *argv: call([str(a) for a in argv], capsys, monkeypatch)


def test_run_report_and_json(hydrometer: Any, tmp_path: Path) -> None:
    spec = write_spec(mixture_spec(), tmp_path)
    code, out, err = hydrometer("run", spec, "--out", "out", "--json")
    assert code == 0
    body = json.loads(out)
    assert Path(body["report"]).is_file()
    assert body["failed_cells"] == []
    assert body["summary"] == hm.load_results("out")["summary"]
    assert "100%" in err  # progress goes to standard error
    Path(body["report"]).unlink()
    code, out, _ = hydrometer("report", "out", "--json")
    assert code == 0
    assert Path(json.loads(out)["report"]).is_file()


def test_the_terminal_shows_a_table_and_where_the_report_is(hydrometer: Any, tmp_path: Path) -> None:
    code, out, _ = hydrometer("run", write_spec(mixture_spec(), tmp_path), "--out", "out")
    assert code == 0
    assert "precision" in out
    assert "report.html" in out
    code, out, err = hydrometer("run", "spec.yaml", "--out", "out")
    assert "going on: 0 stages left" in err
    assert "going on" not in out


def test_recipes_are_listed_and_every_one_parses(hydrometer: Any) -> None:
    code, out, _ = hydrometer("recipes", "--json")
    found = json.loads(out)
    assert code == 0
    assert {"quickstart", "paper-mixture", "smollm2-cpu"} <= set(found)
    for name, description in found.items():
        assert description
        read = load_claim(name.removeprefix("claims/")) if name.startswith("claims/") else hm.load_spec(name)
        assert read.name == name.removeprefix("claims/")


def test_set_reaches_the_specification(hydrometer: Any, tmp_path: Path) -> None:
    spec = write_spec(mixture_spec(), tmp_path)
    code, _out, _ = hydrometer(
        "run", spec, "--out", "o", "--json", "--set", "seeds=[4]", "--set", "chains.m.data.evaluate=50"
    )
    assert code == 0
    cells = hm.load_results("o")["cells"]
    assert {c["seed"] for c in cells} == {4}
    assert {m["n"] for c in cells for k, m in c["metrics"].items() if k == "precision"} == {50}


def bad(change: dict[str, Any]) -> str:
    return json.dumps(mixture_spec(**change))


BAD: dict[str, tuple[bytes | str, str]] = {
    "beta below 1": (bad({"selectivity": [{"weight_power": 0.5}]}), "at least 1"),
    "temperature 0": (bad({"selectivity": [{"temperature": 0}]}), "temperature"),
    "temperature below 0": (bad({"selectivity": [{"temperature": -1}]}), "temperature"),
    "top_p 0": (bad({"selectivity": [{"top_p": 0}]}), "top_p"),
    "top_p above 1": (bad({"selectivity": [{"top_p": 1.5}]}), "top_p"),
    "misspelt key": (bad({"studnet": {"n_components": 1}}), "did you mean 'student'"),
    "misspelt nested key": (bad({"student": {"n_component": 1}}), "did you mean 'n_components'"),
    "missing key": (json.dumps({"name": "x", "chains": {"m": {"family": "mixture"}}}), "missing"),
    "unknown family": (json.dumps({"name": "x", "chains": {"m": {"family": "mixtur"}}}), "did you mean 'mixture'"),
    "no chains": (json.dumps({"name": "x", "chains": {}}), "chains"),
    "path in a name": (json.dumps({"name": "../x", "chains": {}}), "name"),
    "path in a chain": (json.dumps({"name": "x", "chains": {"../m": mixture_spec()["chains"]["m"]}}), "name"),
    "too many components": (bad({"student": {"n_components": 61}}), "more than the 60 points"),
    "NaN in the truth": (
        "name: x\nchains: {m: {family: mixture, truth: {means: [[.nan, 0]], covariances: 1}, teacher: truth, "
        "student: {n_components: 1}, selectivity: [{weight_power: 1}]}}",
        "finite",
    ),
    "repeated selectivity": (bad({"selectivity": [{"weight_power": 2}, {"weight_power": 2.0}]}), "twice"),
    "no selectivity": (bad({"selectivity": []}), "selectivity"),
    "seeds 0": (json.dumps(mixture_spec(seeds=0)), "seeds"),
    "empty": (b"", "mapping"),
    "a list": (b"- a", "mapping"),
    "binary": (b"\x89PNG\r\n\x1a\n\x00\x00", "not text"),
    "python tags": (b"name: !!python/object/apply:os.system ['touch hacked']", "not plain YAML"),
    "alias bomb": (
        "a: &a [x]\n" + "".join(f"{c}: &{c} [*{p}, *{p}, *{p}]\n" for p, c in zip("abcdefgh", "bcdefghi", strict=True)),
        "aliases",
    ),
}  # fmt: skip


@pytest.mark.parametrize("what", BAD)
def test_bad_specifications_are_one_line_and_exit_2(hydrometer: Any, tmp_path: Path, what: str) -> None:
    content, says = BAD[what]
    (tmp_path / "bad.yaml").write_bytes(content if isinstance(content, bytes) else content.encode())
    code, _out, err = hydrometer("run", "bad.yaml", "--out", "out")
    assert code == 2
    assert len(complaints(err)) == 1
    assert says in err
    assert not (tmp_path / "out").exists()
    assert not (tmp_path / "hacked").exists()


@pytest.mark.parametrize(
    ("argv", "says"),
    [
        (["run", "quickstrat"], "did you mean 'quickstart'"),
        (["run", "nowhere.yaml"], "cannot be read"),
        (["run", "spec.yml"], ": did you mean 'spec.yaml'?"),
        (["run", "spec.yaml", "--out", "spec.yaml"], "is a file"),
        (["run", "spec.yaml", "--out", "."], "holds no run"),
        (["run", "spec.yaml", "--set", "chains.m.data.train"], "PATH=VALUE"),
        (["run", "spec.yaml", "--set", "chains.m.data.trian=5"], "did you mean 'train'"),
        (["run", "spec.yaml", "--nonsense"], "nonsense"),
        (["runn"], "runn"),
        (["report", "nowhere"], "results.json"),
    ],
)
def test_bad_calls_are_one_line_and_exit_2(hydrometer: Any, tmp_path: Path, argv: list[str], says: str) -> None:
    write_spec(mixture_spec(), tmp_path)
    before = sorted(p.name for p in tmp_path.iterdir())
    code, _, err = hydrometer(*argv)
    assert code == 2
    assert len(complaints(err)) == 1, err
    assert says in err
    assert sorted(p.name for p in tmp_path.iterdir()) == before


def test_another_experiment_is_refused_with_2(hydrometer: Any, tmp_path: Path) -> None:
    write_spec(mixture_spec(), tmp_path)
    write_spec(mixture_spec(student={"n_components": 2}), tmp_path, "other.yaml")
    assert hydrometer("run", "spec.yaml", "--out", "out")[0] == 0
    before = (tmp_path / "out" / "results.json").read_bytes()
    code, _, err = hydrometer("run", "other.yaml", "--out", "out")
    assert code == 2
    assert "another experiment: chains.m.student.n_components" in err
    assert (tmp_path / "out" / "results.json").read_bytes() == before


def test_a_failed_cell_is_exit_1(hydrometer: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from hydrometer.core.errors import FitError
    from hydrometer.models.mixture import em

    def never(*_: Any, **__: Any) -> Any:
        raise FitError("no usable model")

    write_spec(mixture_spec(), tmp_path)
    monkeypatch.setattr(em, "fit_mixture", never)
    code, _, err = hydrometer("run", "spec.yaml", "--out", "out")
    assert code == 1
    assert "no usable model" in err
    assert (tmp_path / "out" / "report.html").is_file()


def test_a_stop_that_a_library_makes_its_own_error_of_is_a_stop(capsys: pytest.CaptureFixture[str]) -> None:
    def compiled(**_: object) -> None:
        try:
            raise Stop(signal.SIGTERM)
        except Stop as e:
            raise RuntimeError("failed in the pipeline") from e

    with pytest.raises(SystemExit) as ended:
        end_with(compiled)
    assert ended.value.code == 143
    assert capsys.readouterr().err.startswith("hydrometer: terminated; ")


def test_a_stopped_claim_is_not_said_to_go_on(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.argv", ["hydrometer", "run", "claims/heating"])
    assert how_to_go_on() == "a claim that is stopped is measured anew, by: hydrometer run claims/heating"
    monkeypatch.setattr("sys.argv", ["hydrometer", "run", "quickstart"])
    assert how_to_go_on() == "nothing finished is lost, go on with: hydrometer run quickstart"


@pytest.mark.parametrize(("signum", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_interrupted_runs_say_how_to_go_on(tmp_path: Path, signum: signal.Signals, code: int) -> None:
    spec = write_spec(mixture_spec(seeds=400), tmp_path)
    argv = [*COMMAND, "run", str(spec), "--out", str(tmp_path / "out")]
    process = subprocess.Popen(
        argv, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=os.environ | {"COLUMNS": "200"}
    )
    deadline = time.monotonic() + 60
    while not list((tmp_path / "out" / "artifacts").glob("judge-*")) and time.monotonic() < deadline:
        time.sleep(0.05)
    process.send_signal(signum)
    _, err = process.communicate(timeout=30)
    assert process.returncode == code
    assert "Traceback" not in err
    assert f"go on with: hydrometer run {spec}" in err
