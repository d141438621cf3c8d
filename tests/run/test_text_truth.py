"""A run whose truth is texts, whose teacher is a model as it is, and whose prompts nobody was trained on."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")

import jsonschema  # noqa: E402
from rich.console import Console  # noqa: E402

import hydrometer as hm  # noqa: E402
from chains import without_timings, write_spec  # noqa: E402
from hydrometer.core.errors import InputError  # noqa: E402
from hydrometer.models.causal_lm.data.parts import parts_of  # noqa: E402
from hydrometer.models.causal_lm.inference.model import CausalLM  # noqa: E402
from hydrometer.models.causal_lm.text_rows import rows_of  # noqa: E402
from hydrometer.models.causal_lm.truth_spec import PromptsFile, TextFile  # noqa: E402
from hydrometer.models.rows.sequences import load_sequences  # noqa: E402
from hydrometer.report import advice_sentences, advice_table, build_report, summary_table  # noqa: E402
from hydrometer.run.graph.plan import plan_run  # noqa: E402
from hydrometer.run.judging.judging import judge_models  # noqa: E402
from hydrometer.stages.nodes import DrawNode, FitNode  # noqa: E402
from tiny import make_llama, make_tokenizer  # noqa: E402

SCHEMA = json.loads((Path(__file__).parents[2] / "docs" / "results.schema.json").read_text())
TRAINING = {"num_train_epochs": 1, "per_device_train_batch_size": 8, "learning_rate": 0.003, "bf16": False}
STUDENT = {"init": {"layers_of": "above", "layers": [0]}, "training": TRAINING}


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("models")
    CausalLM(make_llama(seed=0), make_tokenizer(64)).save(root / "teacher")
    CausalLM(make_llama(seed=5), make_tokenizer(64)).save(root / "hidden")
    return root


@pytest.fixture(scope="module")
def texts(models: Path) -> Path:
    """Answers to twenty prompts, three each."""
    rng = np.random.default_rng(3)
    path = models / "texts.jsonl"
    rows = [
        {"prompt": f"w{3 + i}", "completion": " ".join(f"w{j}" for j in rng.integers(3, 20, 1 + k))}
        for i in range(20)
        for k in range(3)
    ]
    path.write_text("\n".join(json.dumps(r) for r in rows))
    return path


def spec_of(folder: Path, truth: dict[str, Any], **chain: Any) -> Path:
    body: dict[str, Any] = {
        "family": "causal_lm", "truth": {"max_new_tokens": 6, "stop": [1], **truth}, "student": STUDENT,
        "data": {"train": 64, "validate": 8, "distill": 16, "evaluate": 32}, "threads": 1, "block_rows": 16,
        "selectivity": [{"temperature": 1.0}, {"temperature": 0.5}], "draw_dtype": "float32", **chain,
    }  # fmt: skip
    return write_spec({"name": "tiny", "seeds": 2, "chains": {"lm": body}}, folder)


def metrics_of(results: dict[str, Any]) -> dict[str, dict[str, Any]]:
    jsonschema.validate(results, SCHEMA)
    assert not [c["reason"] for c in results["cells"] if c["status"] == "failed"]
    return {c["id"]: c["metrics"] for c in results["cells"]}


def test_a_run_on_texts(tmp_path: Path, models: Path, texts: Path) -> None:
    """Recall is over held-out text, precision under the teacher by its own name; as `judge` says of the same models."""
    path = spec_of(tmp_path, {"text": {"file": str(texts), "chat": False}}, teacher={"source": str(models / "teacher")})
    found = hm.run(path, out=tmp_path / "out")
    cells = metrics_of(found.results)
    assert {c["role"] for c in found.results["cells"]} == {"teacher", "student"}
    student = cells["lm.student.distilled-temperature0.5.seed0"]
    assert "precision" not in student
    assert student["precision_reference"]["value"] == pytest.approx(
        -student["entropy"]["value"] - student["kl_student_reference"]["value"], abs=1e-9
    )
    assert cells["lm.teacher"]["kl_student_reference"]["value"] == 0
    held_out = [json.loads(line) for line in texts.read_text().splitlines()]
    trained, judged = parts_of(TextFile(file=str(texts)))
    assert judged is not None
    asked = {t[-1][1] for _, t in judged.asked}
    assert len(asked) == 4
    (tmp_path / "held.jsonl").write_text("\n".join(json.dumps(r) for r in held_out if r["prompt"] in asked))
    alone = judge_models([models / "teacher"], truth_text=tmp_path / "held.jsonl", chat=False, out=tmp_path / "judged")
    recall = alone.results["cells"][0]["metrics"]["recall"]
    for key in ("value", "se", "df"):
        assert cells["lm.teacher"]["recall"][key] == pytest.approx(recall[key], rel=1e-5)
    chain = found.results["summary"]["chains"]["lm"]
    assert chain["truth_group"] is None
    assert chain["teacher_group"] == "lm.teacher"
    assert chain["gate"]["contrast"]["metric"] == "recall"
    pairs = {(c["a"], c["b"], c["metric"]) for c in found.results["contrasts"]}
    assert ("lm.student.distilled-temperature0.5", "lm.student.direct", "precision_reference") in pairs
    page = build_report([tmp_path / "out"]).read_text(encoding="utf-8")
    assert "Texts as truth" in page
    assert "precision under the teacher" in page
    assert "KL(q‖teacher)" in page
    assert "reference: " in chain["truth"]
    assert "log p*" not in page.partition("What the figures mean")[0]
    assert "student and the unselected teacher." in page
    mean = np.mean([2 if len(r["completion"].split()) == 0 else len(r["completion"].split()) + 1 for r in held_out])
    assert f"Recall is over whole texts, mean {mean:.0f} tokens; precision over answers of at most 6." in page
    advice = hm.advise(tmp_path / "out", fresh=False)
    assert advice.data["reference"] == "teacher"
    rows_judged = sum(r["prompt"] in asked for r in held_out)
    counts = {"trained": 16, "judged": 4, "apart": 4, "rows_trained": 16, "rows_judged": rows_judged}
    assert chain["prompts"] == counts
    words = f"4 judged on ({rows_judged} rows), 16 trained on (16 rows)"
    assert words in page
    told = io.StringIO()
    Console(file=told, width=10_000).print(summary_table(found.results))
    assert f"; prompts: {words}" in told.getvalue()
    assert all("precision under the teacher" in s for s in advice_sentences(advice.data)[1:2])
    assert advice_table(advice.data).head[1] == "precision under the teacher gained"
    assert {c["id"] for c in advice.data["candidates"]} >= {"lm.student.distilled-temperature0.5"}
    again = hm.run(path, out=tmp_path / "out")
    assert not again.outcome.computed
    assert without_timings(again.results) == without_timings(found.results)
    assert len(trained.answers) + len(judged.answers) == len(held_out)
    for file, seen in ((texts, ["16 of 20 prompts"]), (tmp_path / "held.jsonl", [])):
        own = judge_models(
            [tmp_path / "out" / "models" / "direct-seed0"],
            truth_text=file,
            chat=False,
            out=tmp_path / f"on-{file.stem}",
        )
        notes = own.results["summary"]["chains"]["judge"]["judged"]["notes"]
        assert [n.partition(" are training prompts")[0] for n in notes if "training prompts" in n] == seen


def test_columns_of_other_names_are_said(tmp_path: Path, models: Path, texts: Path) -> None:
    rows = [json.loads(line) for line in texts.read_text().splitlines()]
    other = tmp_path / "other.jsonl"
    other.write_text("\n".join(json.dumps({"question": r["prompt"], "response": r["completion"]}) for r in rows))
    said = "the prompt is the question, the answer the response"
    teacher = {"source": str(models / "teacher")}
    for file, wanted in ((other, said), (texts, None)):
        path = spec_of(tmp_path, {"text": {"file": str(file), "chat": False}}, teacher=teacher)
        found = {f.code: f.what for f in hm.doctor(path).findings}
        assert found.get("columns") == wanted
        judged = judge_models([models / "teacher"], truth_text=file, chat=False, out=tmp_path / f"{file.stem}.out")
        notes = judged.results["summary"]["chains"]["judge"]["judged"]["notes"]
        assert (f"{file}: {said}" in notes) is (wanted is not None)


def test_texts_longer_than_what_is_drawn(tmp_path: Path, models: Path, texts: Path) -> None:
    """They are cut where drawn answers are, and the doctor says so; nothing of them is drawn anew for advice."""
    truth = {"text": {"file": str(texts), "chat": False}, "max_new_tokens": 2}
    path = spec_of(tmp_path, truth, teacher={"source": str(models / "teacher")})
    found = {f.code: f for f in hm.doctor(path).findings}
    part, _ = parts_of(TextFile(file=str(texts)))
    chosen = rows_of(part, "train", (64, 8))
    cut = sum(" " in part.answers[i] for i in chosen)  # two words and an end
    assert 0 < cut < len(chosen)
    assert found["texts-cut"].what == f"{cut} of {len(chosen)} texts to train on are longer than max_new_tokens 2"
    assert not {"teacher-is-truth", "prompts-unanswered"} & set(found)
    path = spec_of(tmp_path, truth, teacher={"source": str(models / "teacher")}, draw_dtype="bfloat16")
    drawn = {f.code: f for f in hm.doctor(path).findings}["draw-dtype"]
    assert "off the float32 teacher" in drawn.what
    assert "KL(drawn law || teacher)" in drawn.why
    path = spec_of(tmp_path, truth, teacher={"source": str(models / "teacher")})
    cells = metrics_of(hm.run(path, out=tmp_path / "out", overrides=["seeds=1"]).results)
    assert cells["lm.student.direct.seed0"]["recall"]["value"] > -60  # of whole texts: they are not cut there
    assert hm.advise(tmp_path / "out").data["expected"]["on"] != "fresh rows"


def test_a_teacher_as_it_is_and_prompts_that_nobody_was_trained_on(tmp_path: Path, models: Path) -> None:
    """A truth and another model as its teacher: nothing fits the teacher, and all are judged on the other prompts."""
    (tmp_path / "p.jsonl").write_text("\n".join(json.dumps({"prompt": f"w{3 + i}"}) for i in range(20)))
    truth = {"source": str(models / "hidden"), "prompts": {"file": str(tmp_path / "p.jsonl"), "evaluate": 0.25}}
    path = spec_of(tmp_path, truth, teacher={"source": str(models / "teacher")})
    plan = plan_run(hm.load_spec(path))
    fits = [n for n in plan.nodes.values() if isinstance(n, FitNode)]
    assert {n.level.role for n in fits} == {"student"}
    assert {n.law.kind for n in plan.nodes.values() if isinstance(n, DrawNode) and n.law.role == "teacher"} == {"given"}
    found = hm.run(path, out=tmp_path / "out")
    cells = metrics_of(found.results)
    asked = {c["role"]: c["level"] for c in found.results["cells"]}
    assert asked == {"truth": 0, "teacher": 1, "student": 2}
    drawn: dict[str, set[int]] = {}
    for n in plan.nodes.values():
        if isinstance(n, DrawNode):
            rows = load_sequences(tmp_path / "out" / "artifacts" / f"draw-{n.key}" / "rows.parquet")
            drawn.setdefault(n.purpose, set()).add(len(rows.prompt_ids))
    assert drawn == {"train": {15}, "judge": {5}}
    for part, asked_for, rest in (
        ("judge", {"stream": "evaluate", "cell": "lm.teacher"}, set(_judged(tmp_path / "p.jsonl"))),
        (
            "train",
            {"selectivity": "temperature=0.5"},
            {f"w{3 + i}" for i in range(20)} - set(_judged(tmp_path / "p.jsonl")),
        ),
    ):
        hm.export(tmp_path / "out", to=tmp_path / f"{part}.jsonl", **asked_for)
        rows = [json.loads(line) for line in (tmp_path / f"{part}.jsonl").read_text().splitlines()]
        assert {r["prompt"].split()[-1] for r in rows} <= rest
    (tmp_path / "judged.jsonl").write_text("\n".join(json.dumps({"prompt": t}) for t in _judged(tmp_path / "p.jsonl")))
    alone = judge_models(
        [models / "teacher"], truth=models / "hidden", prompts=tmp_path / "judged.jsonl", chat=False,
        answers_per_prompt=200, max_new_tokens=6, out=tmp_path / "judged",
    )  # fmt: skip
    kl, exact = cells["lm.teacher"]["kl_student_truth"], alone.results["cells"][1]["metrics"]["kl_student_truth"]
    assert abs(kl["value"] - exact["value"]) < 4 * np.hypot(kl["se"], exact["se"])
    assert kl["df"] <= 4  # five prompts are a sample of others


def test_rows_are_chosen_by_the_truth_on_the_prompts_of_their_purpose(tmp_path: Path, models: Path) -> None:
    """Best of two under the truth: training rows answer the one part, judged rows the other."""
    (tmp_path / "p.jsonl").write_text("\n".join(json.dumps({"prompt": f"w{3 + i}"}) for i in range(8)))
    truth = {"source": str(models / "hidden"), "prompts": {"file": str(tmp_path / "p.jsonl"), "evaluate": 0.25}}
    chain = {"selectivity": [{"temperature": 1.0}, {"best_of": 2, "rank_by": "truth_log_prob"}]}
    path = spec_of(tmp_path, truth, teacher={"source": str(models / "teacher")}, **chain)
    metrics_of(hm.run(path, out=tmp_path / "out", overrides=["seeds=1"]).results)


def _judged(path: Path) -> list[str]:
    _, judged = parts_of(PromptsFile(file=str(path), evaluate=0.25))
    assert judged is not None
    return [turns[-1][1] for _, turns in judged.asked]


@pytest.mark.parametrize(
    ("truth", "chain", "words"),
    [
        ({"text": "TEXTS"}, {"teacher": "truth"}, "beside a text the teacher is a model"),
        ({"text": "TEXTS", "prompts": "w3"}, {}, "a text brings its own prompts"),
        ({"text": "nowhere.jsonl"}, {}, "the file cannot be read"),
        ({"text": "ENDS"}, {}, "an answer ends with the text of a stop token"),
        ({"text": {"file": "TEXTS", "chat": False, "evaluate": {"file": "ENDS"}}}, {}, "an answer ends with the text"),
        ({"text": "LACKS"}, {}, "line 1: a prompt without completion or answer"),
        ({"source": "TEACHER", "reference": "x"}, {}, "a reference goes with text"),
        ({}, {}, "the truth is a model, source: PATH, or text: FILE"),
        ({"text": {"file": "TEXTS", "evaluate": 1.5}}, {}, "a share of the prompts between 0 and 1"),
        ({"text": {"file": "TEXTS", "evaluate": {"file": "TEXTS"}}}, {}, "the prompt is in"),
        ({"text": {"file": "TEXTS", "columns": {"prompt": "ask"}}}, {}, "no column ask"),
        ({"text": "TEXTS"}, {"selectivity": [{"best_of": 2, "rank_by": "truth_log_prob"}]}, "texts score nothing"),
    ],
)  # fmt: skip
def test_wrong_texts_are_one_line(
    tmp_path: Path, models: Path, texts: Path, truth: dict[str, Any], chain: dict[str, Any], words: str
) -> None:
    (tmp_path / "lacks.jsonl").write_text('{"prompt": "w3"}')
    ends = [{"prompt": f"w{40 + i}", "completion": "w3 <eos>"} for i in range(12)]
    (tmp_path / "ends.jsonl").write_text("\n".join(json.dumps(r) for r in ends))
    known = {
        "ENDS": str(tmp_path / "ends.jsonl"),
        "TEXTS": str(texts),
        "LACKS": str(tmp_path / "lacks.jsonl"),
        "TEACHER": str(models / "teacher"),
    }
    body = json.loads(_replaced(json.dumps(truth), known))
    with pytest.raises(InputError, match=words) as caught:
        hm.run(spec_of(tmp_path, body, **({"teacher": {"source": known["TEACHER"]}} | chain)), out=tmp_path / "out")
    assert "\n" not in str(caught.value)


def test_whole_documents_are_a_sample_of_documents(tmp_path: Path, models: Path) -> None:
    """Whatever `are` says: they follow no prompt, so each counts by itself, as `judge` counts them."""
    rng = np.random.default_rng(3)
    rows = [{"text": " ".join(f"w{j}" for j in rng.integers(3, 20, 1 + k % 4))} for k in range(40)]
    file, held = tmp_path / "documents.jsonl", tmp_path / "held.jsonl"
    file.write_text("\n".join(json.dumps(r) for r in rows))
    path = spec_of(tmp_path, {"text": str(file)}, teacher={"source": str(models / "teacher")}, decoding=[])
    said = {f.code: f.what for f in hm.doctor(path).findings}
    assert said["parts"] == (
        "29 texts train, and 3 others choose the epoch; models are judged on 8 texts of which none has a part in either"
    )
    assert "few-prompts" not in said
    cells = metrics_of(hm.run(path, out=tmp_path / "out", overrides=["seeds=1"]).results)
    _, judged = parts_of(TextFile(file=str(file)))
    assert judged is not None
    held.write_text("\n".join(json.dumps({"text": t}) for t in judged.answers))
    alone = judge_models([models / "teacher"], truth_text=held, out=tmp_path / "judged")
    recall = alone.results["cells"][0]["metrics"]["recall"]
    for key in ("value", "se", "df"):
        assert cells["lm.teacher"]["recall"][key] == pytest.approx(recall[key], rel=1e-5)


def _replaced(text: str, known: dict[str, str]) -> str:
    for name, value in known.items():
        text = text.replace(f'"{name}"', json.dumps(value))
    return text
