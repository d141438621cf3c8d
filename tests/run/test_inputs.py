"""Nothing dear before something cheap: every command refuses what it can before it opens a model."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("torch")

import hydrometer as hm
from chains import complaints, lm_spec, write_spec
from hydrometer.models.causal_lm.loading import load
from hydrometer.run.advice import advise as advising
from hydrometer.run.exchange import adopting, exporting, scoring

JUDGE = ("judge", "--truth", "llama", "--student", "gpt2", "--out", "out")
DEAR = "a model was opened"


@pytest.fixture
def closed(monkeypatch: pytest.MonkeyPatch, tiny_models: dict[str, Path], tmp_path: Path) -> None:
    """Models that are there and may not be opened, nor the stages of a run planned again."""

    def dear(*_: Any, **__: Any) -> Any:
        raise AssertionError(DEAR)

    for name in ("_dequantise", "outline", "read_weights"):
        monkeypatch.setattr(load, name, dear)
    for module in (adopting, exporting, scoring):
        monkeypatch.setattr(module, "reopen", dear)
    monkeypatch.setattr(advising, "open_source", dear)
    monkeypatch.chdir(tmp_path)
    for name in ("llama", "gpt2"):
        (tmp_path / name).symlink_to(tiny_models[name])
    (tmp_path / "file").write_text("")
    (tmp_path / "odd.jsonl").write_text('{"query": "w3"}\n')
    (tmp_path / "one.jsonl").write_text('{"prompt": "w3"}\n')
    turns = [{"role": r, "content": "w3"} for r in ("user", "assistant", "user")]
    (tmp_path / "turns.jsonl").write_text(json.dumps({"messages": turns}) + "\n")


def said(command: Any, *argv: str) -> str:
    """The one line with which a call is refused."""
    code, out, err = command(*argv)
    assert code == 2, err
    assert out == ""
    (line,) = complaints(err)
    return line


@pytest.mark.usefixtures("closed")
@pytest.mark.parametrize(
    ("argv", "says"),
    [
        (("--prompts", "odd.jsonl"), "odd.jsonl, line 1: no column messages, conversations, prompt"),
        (("--prompts", "ode.jsonl"), "got 'ode.jsonl'; looked in /"),
        (("--prompts", "turn.jsonl"), ": did you mean 'turns.jsonl'?"),
        (("--prompts", "away/odd.jsonl"), "away, which does not exist"),
        (("--prompts", "one.jsonl", "--prompts-are", "sample"), "--prompts-are fixed"),
        (("--prompts", "one.jsonl", "--answers-per-prompt", "1"), "--answers-per-prompt"),
        (("--prompts", "turns.jsonl", "--no-chat"), "leave --no-chat out"),
        (("--answers-per-prompt", "0"), "--answers-per-prompt must lie between"),
        (("--max-new-tokens", "0"), "--max-new-tokens must lie between"),
        (("--student", "nowhere"), "no such model; got 'nowhere'; looked in /"),
        (("--student", "lama"), ": did you mean 'llama'?"),
        (("--student", "file"), "a model file must be GGUF"),
        (("--out", "file/out"), "Not a directory"),
    ],
)
def test_judge(command: Any, argv: tuple[str, ...], says: str) -> None:
    line = said(command, *JUDGE, *argv)
    assert says in line
    assert "truth.prompts" not in line


@pytest.mark.usefixtures("closed")
@pytest.mark.parametrize("verb", [("run",), ("plan",), ("doctor",), ("advise", "--pilot")])
def test_prompts_and_sources_of_a_specification(command: Any, tmp_path: Path, verb: tuple[str, ...]) -> None:
    truth = {"source": "llama", "max_new_tokens": 4, "prompts": {"file": "odd.jsonl"}}
    write_spec(lm_spec("llama", truth=truth), tmp_path, "odd.yaml")
    elsewhere = {"init": {"source": "nowhere"}}
    write_spec(lm_spec("llama", student=elsewhere), tmp_path, "nowhere.yaml")
    for name, says in (("odd.yaml", "no column messages, conversations, prompt"), ("nowhere.yaml", "no such model")):
        if verb == ("doctor",):
            code, out, _ = command("doctor", name, "--json")
            (found,) = [f for f in json.loads(out)["findings"] if f["severity"] == "fatal"]
            assert (code, found["chain"]) == (2, "lm")
            assert says in found["what"]
            assert found["fix"] not in found["what"]
        else:
            assert says in said(command, *verb, name)


@pytest.mark.usefixtures("closed")
def test_the_doctor_looks_at_all_chains_before_it_opens_one(command: Any, tmp_path: Path) -> None:
    spec = lm_spec("llama")
    spec["chains"]["other"] = lm_spec("nowhere")["chains"]["lm"]
    write_spec(spec, tmp_path)
    with pytest.raises(AssertionError, match=DEAR):  # of what is sound, the first chain is opened then
        command("doctor", "spec.yaml")
    spec["chains"]["lm"] = spec["chains"]["other"]
    write_spec(spec, tmp_path)
    _, out, _ = command("doctor", "spec.yaml", "--json")
    assert {f["chain"] for f in json.loads(out)["findings"]} == {"lm", "other"}


@pytest.mark.usefixtures("closed")
def test_folders_of_a_run(command: Any, tmp_path: Path) -> None:
    write_spec(lm_spec("llama"), tmp_path)
    assert "Not a directory" in said(command, "run", "spec.yaml", "--out", "file/out")
    assert "Not a directory" in said(command, "run", "spec.yaml", "--cache", "file/cache")
    hm.run("markov", out=tmp_path / "out", overrides=["seeds=1", "chains.markov.data.evaluate=20"])
    assert "another experiment; got 'markov'" in said(command, "run", "spec.yaml", "--out", "out")
    code, out, _ = command("doctor", "spec.yaml", "--out", "file/out", "--json")
    found = json.loads(out)["findings"][0]
    assert (code, found["code"]) == (2, "folder")
    assert found["what"].count(found["fix"]) == 0


@pytest.mark.usefixtures("closed")
def test_what_comes_from_elsewhere(command: Any, tmp_path: Path) -> None:
    hm.run("markov", out=tmp_path / "out", overrides=["seeds=1", "chains.markov.data.evaluate=20"])
    (tmp_path / "scores.csv").write_text("row,cell\n0,x\n")
    (tmp_path / "lm.json").write_text("[]")
    adopt = ("adopt", "out", "--name", "trl", "--model")
    export = ("export", "out", "--to", "rows.parquet")
    refused: tuple[tuple[tuple[str, ...], str], ...] = (
        ((*adopt, "nowhere", "--training", "direct"), "no such model"),
        ((*adopt, "llama"), "give --selectivity"),
        ((*export, "--cell", "x", "--stream", "train"), "--cell goes with --stream evaluate"),
        ((*export, "--stream", "train", "--selectivity", "temperature=0.5"), "use --stream distill"),
        ((*export, "--selectivity", "temperature=cold"), "temperature"),
        (("export", "out", "--to", "file/rows.parquet"), "the folder does not exist"),
        (("scores", "out", "--file", "scores.csv"), "no column of scores"),
        (("scores", "out", "--file", "nowhere.csv"), "cannot be read"),
        (("scores", "out", "--file", "lm.json", "--cell", "x"), "lm.json"),
        (("advise", "out", "--weight", "2"), "weight, between 0 (recall alone)"),
    )
    for argv, says in refused:
        assert says in said(command, *argv), argv


def test_a_key_of_a_union_is_named_as_it_is_written(command: Any, tmp_path: Path) -> None:
    truth = {"source": "llama", "max_new_tokens": 4, "prompts": {"file": 3}}
    write_spec(lm_spec("llama", truth=truth, student={"init": {"source": 3}}), tmp_path)
    line = said(command, "run", "spec.yaml")
    assert "chains.lm: truth.prompts.file: " in line
    assert "<" not in line
