import json
import signal
import sys
from pathlib import Path
from typing import Any

import pytest

import hydrometer as hm
from chains import complaints
from elsewhere_world import World, contents
from hydrometer.cli import commands


@pytest.fixture
def hydrometer(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Any:
    """Run the command line in this process; returns exit code, stdout, stderr."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "300")

    def call(*argv: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["hydrometer", *map(str, argv)])
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

    return call


def test_the_way_round_from_the_command_line(world: World, hydrometer: Any, tmp_path: Path) -> None:
    spec = world.run.parent / "spec.yaml"
    code, out, _ = hydrometer("run", spec, "--out", "out", "--until", "draw", "--json")
    assert code == 0
    assert json.loads(out)["failed"] == []
    code, out, _ = hydrometer("run", spec, "--out", "out", "--until", "draw")
    assert (code, "hydrometer export out" in out) == (0, True)
    shared = "warning prompts-shared: lm: models are judged on the 2 prompts that they are trained on"
    code, out, _ = hydrometer(
        "export", "out", "--to", "rows.parquet", "--selectivity", "temperature=0.6", "--text-only"
    )
    assert code == 0
    done = hm.export("out", to="again.parquet", selectivity="temperature=0.6", text_only=True)
    assert f"the text of {done.rows - done.exact} of 32 rows does not give their ids" in out
    assert f"{done.cut} cut at max_new_tokens" in out
    assert "train on prompt_ids and completion_ids" in out
    code, out, _ = hydrometer("export", "out", "--to", "b.jsonl", "--selectivity", "temperature=0.6", "--json")
    assert json.loads(out)["rows"] == 32
    model = world.checkpoints["one-0"]
    cell = "lm.student.distilled-temperature0.6.adopted-trl.seed0"
    code, out, err = hydrometer("adopt", "out", "--model", model, "--name", "trl", "--selectivity", "temperature=0.6")
    assert code == 0, err
    assert f"adopted  {cell}" in out
    assert [line for line in err.splitlines() if "prompts-shared" in line and line.startswith(shared)] != []
    assert err.count("prompts-shared") == 1
    assert "models are judged on the 2 prompts that they are trained on" in (tmp_path / "out/report.html").read_text()
    assert "trl (adopted)" in out
    (tmp_path / "results_1.json").write_text(json.dumps({"results": {"t": {"acc,none": 0.5, "acc_stderr,none": 0.1}}}))
    code, out, _ = hydrometer("scores", "out", "--file", "results_1.json", "--cell", cell)
    assert (code, "lm_eval_t_acc" in out, "0.50 ± 0.10" in out) == (0, True, True)
    assert "lm_eval_t_acc" in (tmp_path / "out" / "report.html").read_text()


@pytest.mark.parametrize(
    ("argv", "says"),
    [
        (["export", "run", "--to", "rows.csv"], ".parquet or .jsonl"),
        (["export", "nowhere", "--to", "rows.jsonl"], "no run in the folder"),
        (["export", "run", "--to", "r.jsonl", "--format", "sharegpt"], "sharegpt"),
        (["adopt", "run", "--model", "none", "--name", "x", "--training", "direct"], "no such model"),
        (["adopt", "run", "--model", "none", "--name", "x", "--training", "dpo"], "dpo"),
        (["scores", "run", "--file", "none.jsonl"], "cannot be read"),
        (["run", "quickstart", "--until", "fit"], "fit"),
    ],
)
def test_bad_calls_are_one_line_and_exit_2(
    world: World, hydrometer: Any, tmp_path: Path, argv: list[str], says: str
) -> None:
    folder = world.copy(tmp_path)
    before = contents(folder)
    code, _, err = hydrometer(*argv)
    assert code == 2
    assert len(complaints(err)) == 1, err
    assert says in err
    assert contents(folder) == before
