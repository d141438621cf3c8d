"""The gap of generalisation: figures on prompts kept apart, minus those on prompts that models were trained on."""

from __future__ import annotations

import itertools
import json
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")

import jsonschema  # noqa: E402
from transformers import AutoModelForCausalLM  # noqa: E402

import hydrometer as hm  # noqa: E402
from chains import without_timings, write_spec  # noqa: E402
from hydrometer.core.errors import InputError  # noqa: E402
from hydrometer.models.causal_lm.data.parts import parts_of  # noqa: E402
from hydrometer.models.causal_lm.inference.model import CausalLM  # noqa: E402
from hydrometer.models.causal_lm.text_rows import rows_of  # noqa: E402
from hydrometer.models.causal_lm.truth_spec import PromptsFile, TextFile  # noqa: E402
from hydrometer.report import build_report, verdict  # noqa: E402
from hydrometer.report.wording import num, signed  # noqa: E402
from hydrometer.run.execution.task_payload import Work, pack, pack_node  # noqa: E402
from hydrometer.run.graph.plan import plan_run  # noqa: E402
from hydrometer.run.judging.judging import judge_models  # noqa: E402
from hydrometer.stages.nodes import DrawNode  # noqa: E402
from hydrometer.store.artifacts import ArtifactStore  # noqa: E402
from tiny import make_llama, make_tokenizer  # noqa: E402

SCHEMA = json.loads((Path(__file__).parents[2] / "docs" / "results.schema.json").read_text())
V = 14
"""Tokens; with answers of two at most a model has 1 + 13 * 14 answers to a prompt."""
WORDS = [f"w{i}" for i in range(3, V)]
TRAINING = {"num_train_epochs": 20, "per_device_train_batch_size": 32, "learning_rate": 0.01, "bf16": False}
SMALL = {"num_hidden_layers": 1, "hidden_size": 32, "num_attention_heads": 2, "intermediate_size": 48}


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("models")
    for name, seed in (("hidden", 0), ("other", 5)):
        CausalLM(make_llama(V, seed=seed), make_tokenizer(V, None)).save(root / name)
    pairs = list(itertools.product(WORDS, WORDS))
    chosen = np.random.default_rng(1).permutation(len(pairs))[:16]
    (root / "p.jsonl").write_text("\n".join(json.dumps({"prompt": " ".join(pairs[i])}) for i in chosen))
    return root


def spec_of(folder: Path, models: Path, **chain: Any) -> Path:
    prompts = {"file": str(models / "p.jsonl"), "evaluate": 0.5, "are": "fixed"}
    body: dict[str, Any] = {
        "family": "causal_lm", "threads": 1, "block_rows": 256, "draw_dtype": "float32",
        "truth": {"source": str(models / "hidden"), "max_new_tokens": 2, "stop": [1], "prompts": prompts},
        "teacher": {"source": str(models / "other")},
        "student": {"init": "scratch", "architecture": SMALL, "training": TRAINING},
        "data": {"train": 64, "validate": 32, "distill": 64, "evaluate": 512},
        "selectivity": [{"temperature": 1.0}, {"temperature": 0.5}], "judge_training_prompts": True, **chain,
    }  # fmt: skip
    return write_spec({"name": "tiny", "seeds": 2, "chains": {"lm": body}}, folder)


@cache
def network_of(folder: Path) -> Any:
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float64)


def law_of(folder: Path, prompt: list[int]) -> np.ndarray:
    """Log-probabilities of every answer of two tokens at most, (1 + (V - 1) * V,), from the network's logits alone."""
    network = network_of(folder)
    starts = torch.tensor([[*prompt, t] for t in range(V)])
    with torch.no_grad():
        both = network(starts).logits.log_softmax(-1)
    first, second = both[0, -2].numpy(), both[:, -1].numpy()
    return np.concatenate([[first[1]], *(first[t] + second[t] for t in range(V) if t != 1)])


def exactly(truth: Path, model: Path, prompts: list[list[int]]) -> dict[str, float]:
    """Figures of a model on a list of prompts, by enumeration."""
    sums = np.zeros(4)
    for prompt in prompts:
        p, q = law_of(truth, prompt), law_of(model, prompt)
        at_p, at_q = np.exp(p), np.exp(q)
        assert at_p.sum() == pytest.approx(1, abs=1e-6)
        sums += [at_q @ p, at_p @ q, at_q @ (q - p), at_p @ (p - q)]
    names = ("precision", "recall", "kl_student_truth", "kl_truth_student")
    return dict(zip(names, sums / len(prompts), strict=True))


def parts(models: Path) -> list[list[list[int]]]:
    """Ids of the prompts trained on, and of those kept apart."""
    found = parts_of(PromptsFile(file=str(models / "p.jsonl"), evaluate=0.5))
    return [[[int(w[1:]) for w in turns[-1][1].split()] for _, turns in p.asked] for p in found if p is not None]


def entries(results: dict[str, Any]) -> dict[str, Any]:
    jsonschema.validate(results, SCHEMA)
    return {e["group"]: e for e in results["summary"]["chains"]["lm"]["generalisation"]}


def test_the_gap_is_what_enumeration_says(tmp_path: Path, models: Path) -> None:
    """Students that overfit have one; the teacher's, trained on neither list, is how these two lists differ."""
    out = tmp_path / "out"
    found = hm.run(spec_of(tmp_path, models), out=out)
    gaps, cells = entries(found.results), found.results["cells"]
    assert set(gaps) == {"lm.teacher", *(f"lm.student.{x}" for x in (
        "direct", "distilled-temperature1.0", "distilled-temperature0.5"))}  # fmt: skip
    trained, kept = parts(models)
    for group, entry in gaps.items():
        mine = [c for c in cells if c["group"] == group]
        folders = [out / "artifacts" / (c["artifacts"]["fit"] or "") for c in mine]
        if group == "lm.teacher":
            folders = [models / "other"]
        on_kept, on_trained = ([exactly(models / "hidden", f, part) for f in folders] for part in (kept, trained))
        for metric in on_kept[0]:
            exact = float(np.mean([a[metric] - b[metric] for a, b in zip(on_kept, on_trained, strict=True)]))
            figure = entry["figures"][metric]
            gap = figure["gap"]
            assert gap["value"] == pytest.approx(figure["held_out"] - figure["training_prompts"])
            both = [(c["metrics"][metric], c["on_training_prompts"]["metrics"][metric]) for c in mine]
            errors = [np.hypot(x["se_mc"], y["se_mc"]) for x, y in both]
            assert abs(gap["value"] - exact) < 5 * np.linalg.norm(errors) / len(mine), metric
            between = float(np.std([x["value"] - y["value"] for x, y in both])) if len(mine) > 1 else errors[0]
            assert gap["se"] > 0.999 * between  # two seeds: the standard error of their mean
            assert gap["ci95"][0] < gap["value"] < gap["ci95"][1]
    direct = gaps["lm.student.direct"]["figures"]["kl_truth_student"]
    assert direct["gap"]["value"] > 5 * direct["gap"]["se"]  # it has overfitted
    against = gaps["lm.student.distilled-temperature0.5"]["vs_direct"]["kl_truth_student"]
    two = [gaps[f"lm.student.{x}"]["figures"]["kl_truth_student"]["gap"]["value"] for x in (
        "distilled-temperature0.5", "direct")]  # fmt: skip
    assert against["value"] == pytest.approx(two[0] - two[1])


def test_a_model_that_was_not_trained_has_none(tmp_path: Path, models: Path) -> None:
    """Where the prompts are a sample, the error holds what two samples of them differ by."""
    prompts = {"file": str(models / "p.jsonl"), "evaluate": 0.5}
    truth = {"source": str(models / "hidden"), "max_new_tokens": 2, "stop": [1], "prompts": prompts}
    found = hm.run(spec_of(tmp_path, models, truth=truth), out=tmp_path / "out", overrides=["seeds=1"])
    gaps = entries(found.results)
    for metric, figure in gaps["lm.teacher"]["figures"].items():
        assert abs(figure["gap"]["value"]) < 5 * figure["gap"]["se"], metric
        assert figure["gap"]["df"] <= 14  # two samples of eight prompts
    kl = gaps["lm.student.direct"]["figures"]["kl_truth_student"]
    student = kl["gap"]
    assert student["ci95"][0] > 0
    page = build_report([tmp_path / "out"]).read_text(encoding="utf-8")
    (said,) = (s for s in verdict(found.results)["lm"] if "prompts of training" in s)
    assert said.startswith("KL(p*‖q) on prompts that no model was trained on, minus that on prompts of training")
    for words in (f"direct {signed(student['value'], student['se'])} (95 %", "Undecided against the direct student’s"):
        assert words in said
        assert said in page
    assert "Generalisation: prompts kept apart minus prompts of training" in page
    row = ["direct", "KL(p*‖q)", *(num(kl[k], student["se"]) for k in ("held_out", "training_prompts"))]
    assert "".join(f"<td>{x}</td>" for x in row) in page.replace("\n", "").replace(" ", "")


def test_it_adds_stages_and_changes_none(tmp_path: Path, models: Path) -> None:
    """A finished run is given it without a fit; another process makes its stages from the chain's name."""
    quick = ["seeds=1", "chains.lm.student.training.num_train_epochs=1", "chains.lm.data.evaluate=32"]
    spec = spec_of(tmp_path, models)
    without = [*quick, "chains.lm.judge_training_prompts=false"]
    alone, both = (plan_run(hm.load_spec(spec, settings)) for settings in (without, quick))
    assert set(alone.nodes) < set(both.nodes)
    assert [(c.id, c.judge) for c in alone.cells] == [(c.id, c.judge) for c in both.cells]
    assert "judge_training_prompts" not in hm.load_spec(spec, without).chains["lm"].model_dump()
    before = hm.run(spec, out=tmp_path / "out", overrides=without)
    assert "generalisation" not in before.results["summary"]["chains"]["lm"]
    after = hm.run(spec, out=tmp_path / "out", overrides=quick)
    assert set(after.outcome.computed) == {"draw", "score", "judge"}
    assert entries(after.results)
    known = {c["id"]: c["metrics"] for c in after.results["cells"]}
    assert all(known[c["id"]] == c["metrics"] for c in before.results["cells"])
    again = hm.run(spec, out=tmp_path / "out", overrides=without)  # what a folder has, it keeps
    assert without_timings(again.results) == without_timings(after.results)
    adopted = hm.adopt(tmp_path / "out", model=tmp_path / "out/models/direct-seed0", name="back", training="direct")
    gaps = entries(adopted.run.results)
    one, other = (gaps[g]["figures"]["recall"] for g in ("lm.student.direct", "lm.student.direct.adopted-back"))
    assert other["gap"]["value"] == pytest.approx(one["gap"]["value"])  # the same model on the same rows of the truth
    assert gaps["lm.student.direct.adopted-back"]["vs_direct"]["recall"]["value"] == pytest.approx(0)

    work = Work(pack(both, ArtifactStore(tmp_path / "store")))
    drawn = [n for n in both.nodes.values() if isinstance(n, DrawNode) and n.context.on_training]
    nodes = [work.node(pack_node(n)) for n in drawn if n.law.kind == "truth"]
    asked = {work.bench.law(n.context, n.law, "float32").prompts.ids for n in nodes}
    trained, _ = parts(models)
    assert asked == {tuple(tuple(p) for p in trained)}


def test_of_texts_it_is_on_the_very_texts_trained_on(tmp_path: Path, models: Path) -> None:
    """Recall there is what `judge` says of the same texts, without those that chose the epoch."""
    rng = np.random.default_rng(3)
    rows = [{"prompt": f"{a} {b}", "completion": " ".join(rng.choice(WORDS, 2))} for a, b in
            itertools.product(WORDS[:5], WORDS[:4]) for _ in range(2)]  # fmt: skip
    (tmp_path / "t.jsonl").write_text("\n".join(map(json.dumps, rows)))
    text = {"file": str(tmp_path / "t.jsonl"), "chat": False}
    training = {**TRAINING, "num_train_epochs": 20}
    found = hm.run(
        spec_of(
            tmp_path, models, truth={"text": text, "max_new_tokens": 2, "stop": [1]},
            student={"init": "scratch", "architecture": SMALL, "training": training},
            data={"train": 40, "validate": 4, "distill": 64, "evaluate": 64},
        ),
        out=tmp_path / "out",
        overrides=["seeds=1"],
    )  # fmt: skip
    gaps = entries(found.results)
    part, _ = parts_of(TextFile(**text))  # pyright: ignore[reportArgumentType]
    chosen = rows_of(part, "train", (40, 4))
    assert len(chosen) < len(part.answers)
    asked = [part.asked[int(part.prompt_index[i])][1][-1][1] for i in chosen]
    lines = [{"prompt": p, "completion": part.answers[i]} for p, i in zip(asked, chosen, strict=True)]
    (tmp_path / "trained.jsonl").write_text("\n".join(map(json.dumps, lines)))
    student = next(c for c in found.results["cells"] if c["group"] == "lm.student.direct")
    fit = tmp_path / "out" / "artifacts" / student["artifacts"]["fit"]
    alone = judge_models([fit], truth_text=tmp_path / "trained.jsonl", chat=False, out=tmp_path / "judged")
    known, mine = alone.results["cells"][0]["metrics"]["recall"], student["on_training_prompts"]["metrics"]["recall"]
    for key in ("value", "se", "df", "n"):
        assert mine[key] == pytest.approx(known[key], rel=1e-5)
    gap = gaps["lm.student.direct"]["figures"]["recall"]["gap"]
    assert gap["ci95"][1] < 0
    assert {"precision_reference", "kl_student_reference_per_token"} < set(gaps["lm.student.direct"]["figures"])


def test_it_needs_prompts_kept_for_judging(tmp_path: Path, models: Path) -> None:
    truth = {"source": str(models / "hidden"), "prompts": {"file": str(models / "p.jsonl")}}
    with pytest.raises(InputError, match="judge_training_prompts needs prompts kept for judging") as caught:
        hm.load_spec(spec_of(tmp_path, models, truth=truth))
    assert "\n" not in str(caught.value)
