"""Students that are fitted to a text of one's own, beside the direct and the distilled ones."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("torch")

import jsonschema

import hydrometer as hm
from chains import without_timings, write_spec
from hydrometer.core.errors import InputError
from hydrometer.models.causal_lm.data.parts import parts_of
from hydrometer.models.causal_lm.inference.model import CausalLM
from hydrometer.models.causal_lm.truth_spec import PromptsFile, TextFile
from hydrometer.models.rows.sequences import load_prompts
from hydrometer.report import advice_sentences, build_report
from hydrometer.report.words.verdict import verdict
from hydrometer.run.graph.plan import plan_run
from tiny import make_llama, make_tokenizer

SCHEMA = json.loads((Path(__file__).parents[2] / "docs" / "results.schema.json").read_text())
TRAINING = {"num_train_epochs": 1, "per_device_train_batch_size": 8, "learning_rate": 0.003, "bf16": False}
STUDENT = {"init": {"layers_of": "above", "layers": [0]}, "training": TRAINING}
SFT = "lm.student.baseline-sft"


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A truth, ten prompts, and a text that answers these and ten others."""
    root = tmp_path_factory.mktemp("baselines")
    CausalLM(make_llama(seed=0), make_tokenizer(64)).save(root / "truth")
    rng = np.random.default_rng(3)
    answers = [" ".join(f"w{j}" for j in rng.integers(3, 20, 1 + i % 4)) for i in range(40)]
    rows = [{"prompt": f"w{3 + i // 2}", "completion": a} for i, a in enumerate(answers)]
    write_rows(root / "human.jsonl", rows)
    write_rows(root / "prompts.jsonl", [{"prompt": f"w{3 + i}"} for i in range(10)])
    return root


def write_rows(path: Path, rows: list[dict[str, Any]]) -> None:
    path.write_text("\n".join(json.dumps(r) for r in rows))


def spec_of(home: Path, folder: Path, **chain: Any) -> Path:
    prompts = {"file": str(home / "prompts.jsonl"), "evaluate": 0.3}
    body: dict[str, Any] = {
        "family": "causal_lm", "truth": {"source": str(home / "truth"), "max_new_tokens": 6, "prompts": prompts},
        "teacher": "truth", "student": STUDENT, "threads": 1, "block_rows": 16, "draw_dtype": "float32",
        "data": {"train": 64, "validate": 8, "distill": 16, "evaluate": 32}, "decoding": [{"temperature": 0.5}],
        "selectivity": [{"temperature": 1.0}, {"temperature": 0.5}], **chain,
    }  # fmt: skip
    folder.mkdir(exist_ok=True)
    return write_spec({"name": "tiny", "seeds": 2, "chains": {"lm": body}}, folder)


@pytest.fixture(scope="module")
def finished(home: Path) -> tuple[Path, hm.RunResult, hm.RunResult]:
    """A run without baselines, and the same folder with one."""
    before = hm.run(spec_of(home, home / "a"), out=home / "run")
    path = spec_of(home, home / "b", baselines=[{"name": "sft", "text": str(home / "human.jsonl")}])
    return path, before, hm.run(path, out=home / "run")


def test_a_baseline_joins_a_finished_run_and_nothing_else_is_made_anew(finished: Any) -> None:
    _, before, after = finished
    jsonschema.validate(after.results, SCHEMA)
    old = {c["id"]: c["metrics"] for c in before.results["cells"]}
    new = {c["id"]: c for c in after.results["cells"]}
    assert {k: new[k]["metrics"] for k in old} == old
    own = [f"{SFT}{d}.seed{s}" for d in ("", ".decoded-temperature0.5") for s in (0, 1)]
    assert sorted(new.keys() - old.keys()) == sorted(own)
    assert all(new[c]["status"] == "ok" for c in own)
    cell = new[f"{SFT}.seed0"]
    assert (cell["training"], cell["baseline"], cell["prefix_source"]) == ("baseline", "sft", "text")
    assert (cell["parent"], cell["selectivity"], cell["loss"]) == (None, None, "mle")


def test_no_prompt_that_models_are_judged_on_is_trained_on_and_it_is_said(home: Path, finished: Any) -> None:
    path, _, _ = finished
    _, judged = parts_of(PromptsFile(file=str(home / "prompts.jsonl"), evaluate=0.3))
    assert judged is not None
    asked = {turns[-1][1] for _, turns in judged.asked}
    tokenizer = make_tokenizer(64)
    meta = [json.loads(p.read_text()) for p in (home / "run" / "artifacts").glob("fit-*/meta.json")]
    inputs = {k for m in meta for k in m["inputs"]}
    found = [
        {tokenizer.decode(p, skip_special_tokens=True).strip() for p in load_prompts(rows)[0]}
        for k in inputs
        for rows in (home / "run" / "artifacts" / f"draw-{k}").glob("*.parquet")
        if ".prompts" not in rows.name
    ]
    of_text = {f"w{3 + i}" for i in range(20)} - asked
    assert of_text in found
    assert all(not asked & prompts for prompts in found)
    said = [f.what for f in hm.doctor(path).findings if f.code == "baseline-rows-left-out"]
    assert said == [f"{2 * len(asked)} of 40 rows of the text of baseline sft are left out"]


def test_it_is_contrasted_shown_and_a_candidate_of_advice(home: Path, finished: Any) -> None:
    after = finished[2].results
    pairs = {(c["a"], c["b"]) for c in after["contrasts"] if c["metric"] == "precision"}
    assert {
        (SFT, "lm.student.direct"), (SFT, "lm.student.distilled-temperature1.0"),
        ("lm.student.distilled-temperature0.5", SFT), (f"{SFT}.decoded-temperature0.5", SFT),
    } <= pairs  # fmt: skip
    cells = {c["id"]: c["metrics"]["recall"]["value"] for c in after["cells"]}
    (entry,) = after["summary"]["chains"]["lm"]["baselines"]
    gap = [cells[f"{SFT}.seed{s}"] - cells[f"lm.student.direct.seed{s}"] for s in (0, 1)]
    assert entry["vs_direct"]["recall"]["value"] == pytest.approx(np.mean(gap))
    cold = next(s for s in after["summary"]["chains"]["lm"]["tradeoff"] if s["selectivity"] == {"temperature": 0.5})
    gap = [cells[f"lm.student.distilled-temperature0.5.seed{s}"] - cells[f"{SFT}.seed{s}"] for s in (0, 1)]
    assert cold["vs_baselines"][SFT]["recall"]["value"] == pytest.approx(np.mean(gap))
    said = [s for s in verdict(after)["lm"] if s.startswith("the baseline sft, minus the run’s direct student")]
    assert len(said) == 1
    page = build_report([home / "run"]).read_text(encoding="utf-8")
    assert "baseline sft, decoded at temperature 0.5" in page
    advice = hm.advise(home / "run", hm.Need(weight=0.5), fresh=False)
    found = {c["id"]: c for c in advice.data["candidates"]}
    assert {SFT, f"{SFT}.decoded-temperature0.5"} <= found.keys()
    assert found[SFT]["cost"]["teacher_rows"] == found[SFT]["cost"]["truth_rows"] == 0
    assert found[SFT]["cost"]["fit_seconds"] > 0
    named = advice_sentences({**advice.data, "status": "decided", "take": SFT, "leader": SFT})
    assert "the baseline sft as it is" in named[0]


def test_fitted_to_the_direct_students_texts_it_is_the_direct_student(home: Path, tmp_path: Path) -> None:
    """The same rows and the same stream give the same weights: recall is equal to the last bit."""
    rows = [json.loads(line) for line in (home / "human.jsonl").read_text().splitlines()]
    trained, _ = parts_of(TextFile(file=str(home / "human.jsonl"), chat=False))
    kept = {turns[-1][1] for _, turns in trained.asked}
    write_rows(tmp_path / "trained.jsonl", [r for r in rows if r["prompt"] in kept])
    slower = {**TRAINING, "learning_rate": 1e-4}
    path = spec_of(
        home, tmp_path, teacher={"source": str(home / "truth")},
        truth={"text": {"file": str(home / "human.jsonl"), "chat": False}, "max_new_tokens": 6, "stop": [1]},
        baselines=[
            {"name": "sft", "text": str(tmp_path / "trained.jsonl")},
            {"name": "whole", "text": str(home / "human.jsonl")},
            {"name": "slow", "text": str(tmp_path / "trained.jsonl"), "training": slower},
        ],
    )  # fmt: skip
    results = hm.run(path, out=tmp_path / "out").results
    assert not [c["reason"] for c in results["cells"] if c["status"] == "failed"]
    recall = {c["id"]: c["metrics"]["recall"]["value"] for c in results["cells"]}
    for seed in (0, 1):
        direct = recall[f"lm.student.direct.seed{seed}"]
        assert recall[f"{SFT}.seed{seed}"] == direct
        assert recall[f"lm.student.baseline-whole.seed{seed}"] == direct  # the rows judged on are left out
        assert recall[f"lm.student.baseline-slow.seed{seed}"] != direct
    again = hm.run(path, out=tmp_path / "out")
    assert not again.outcome.computed
    assert without_timings(again.results) == without_timings(results)


def test_it_has_no_gap_of_generalisation_and_a_name_of_its_own(home: Path, tmp_path: Path) -> None:
    """It learned from other prompts than those of training that the run's students are judged on."""
    two = [{"name": n, "text": str(home / "human.jsonl")} for n in ("sft", "other")]
    path = spec_of(home, tmp_path, judge_training_prompts=True, baselines=two)
    cells = [c for c in plan_run(hm.load_spec(path)).chains["lm"].cells if c.decoding is None and c.role == "student"]
    has_gap = {c.training: c.judge_training is not None for c in cells}
    assert has_gap == {"direct": True, "baseline": False, "distilled": True}
    names = {c.model_name() for c in cells if c.training == "baseline"}
    assert names == {f"baseline-{n}-seed{s}" for n in ("sft", "other") for s in (0, 1)}


@pytest.mark.parametrize(
    ("baselines", "said"),
    [
        ([{"name": "a", "text": "none.jsonl"}], "none.jsonl"),
        ([{"name": "a", "text": "judged.jsonl"}], "models are judged on every prompt of the text"),
        ([{"name": "a", "text": "human.jsonl"}, {"name": "a", "text": "human.jsonl"}], "two baselines have one name"),
        ([{"name": "SFT", "text": "human.jsonl"}, {"name": "sft", "text": "human.jsonl"}], "but for its case"),
        ([{"name": "a", "text": "human.jsonl", "init": "scratch"}], "init scratch only"),
        (
            [{"name": "a", "text": "human.jsonl", "init": {"layers_of": "truth", "layers": [9]}}],
            "baseline a: layers of truth are counted from 0 to",
        ),
        ([{"name": "a", "text": "prompts.jsonl"}], "prompts.jsonl"),
    ],
)
def test_what_cannot_be_a_baseline_is_one_line(
    home: Path, tmp_path: Path, baselines: list[dict[str, Any]], said: str
) -> None:
    for name in ("human.jsonl", "prompts.jsonl"):
        shutil.copy(home / name, tmp_path / name)
    write_rows(tmp_path / "judged.jsonl", [{"prompt": "w3", "completion": "w4"}, {"prompt": "w3", "completion": "w5"}])
    write_rows(tmp_path / "w3.jsonl", [{"prompt": "w3"}, {"prompt": "w6"}])
    write_rows(tmp_path / "rest.jsonl", [{"prompt": "w4"}, {"prompt": "w5"}])
    prompts = {"file": "rest.jsonl", "evaluate": {"file": "w3.jsonl"}}
    truth = {"source": str(home / "truth"), "max_new_tokens": 6, "prompts": prompts}
    with pytest.raises(InputError) as e:
        hm.run(spec_of(home, tmp_path, truth=truth, baselines=baselines), out=tmp_path / "out")
    assert said in str(e.value)
    assert "\n" not in str(e.value)


def test_another_text_under_a_name_that_is_taken_is_refused(home: Path, finished: Any, tmp_path: Path) -> None:
    shutil.copytree(home / "run", tmp_path / "run")
    other = spec_of(
        home, tmp_path, baselines=[{"name": "sft", "text": {"file": str(home / "human.jsonl"), "chat": True}}]
    )
    with pytest.raises(InputError, match="another baseline of that name"):
        hm.run(other, out=tmp_path / "run")
