import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

import hydrometer as hm
from campaign import kinds
from chains import lm_spec, without_timings, write_spec
from hydrometer.core.errors import DataError, FolderError, InputError, LawMismatchError, ModelError, SpecError
from hydrometer.models.base import FitRequest
from hydrometer.models.causal_lm.family import CAUSAL_LM
from hydrometer.run.graph.plan import plan_run
from hydrometer.stages.fit import fit
from hydrometer.stages.nodes import FitNode, LawRef

pytest.importorskip("torch")

TRAINING = {"num_train_epochs": 1, "per_device_train_batch_size": 16, "learning_rate": 0.003, "bf16": False}


def run(spec: dict[str, Any], tmp_path: Path, out: str = "out") -> hm.RunResult:
    return hm.run(write_spec(spec, tmp_path), out=tmp_path / out)


@pytest.mark.parametrize(
    ("init", "loss", "is_opened"),
    [
        ({"layers_of": "truth", "layers": [0]}, "mle", False),
        ({"layers_of": "above", "layers": [0]}, "mle", True),
        ("above", "mle", True),
        ({"layers_of": "truth", "layers": [0]}, "kl_teacher_student", True),
    ],
)
def test_a_fit_opens_its_teacher_only_where_it_needs_it(
    tmp_path: Path, tiny_models: dict[str, Path], monkeypatch: pytest.MonkeyPatch, init: Any, loss: str, is_opened: bool
) -> None:
    class Fitting(Exception):
        pass

    def fitting(_: Any, request: FitRequest) -> None:
        raise Fitting(request.teacher)

    class Bench:
        store = SimpleNamespace(root=tmp_path, partial=lambda *_: None)

        def law(self, _: Any, law: LawRef, *args: Any, **kwargs: Any) -> str:
            return law.role

        def rows(self, *_: Any) -> None:
            return None

        training_rows = rows

    monkeypatch.setattr(type(CAUSAL_LM), "fit", fitting)
    student = {"init": init, "training": TRAINING}
    spec = lm_spec(tiny_models["llama"], student=student, loss=[loss], selectivity=[{"temperature": 0.6}])
    plan = plan_run(hm.load_spec(write_spec(spec, tmp_path)))
    fits = [n for n in plan.nodes.values() if isinstance(n, FitNode) and n.distillation is not None]
    assert fits
    for node in fits:
        assert node.teacher is not None
        with pytest.raises(Fitting) as e:
            fit(node, Bench(), tmp_path, None)  # type: ignore[arg-type]
        assert e.value.args == ("teacher" if is_opened else None,)


@pytest.mark.parametrize("name", kinds("llama", campaign="gpt2 gpt2-untied qwen2-padded"))
def test_every_architecture_runs_end_to_end(tmp_path: Path, tiny_models: dict[str, Path], name: str) -> None:
    result = run(lm_spec(tiny_models[name]), tmp_path)
    assert not result.failed_cells
    cells = {c["group"]: c for c in result.results["cells"]}
    assert set(cells) == {
        "lm.truth", "lm.teacher", "lm.teacher.decoded-temperature0.6", "lm.student.direct",
        "lm.student.distilled-temperature1.0", "lm.student.distilled-temperature0.6",
        "lm.student.direct.decoded-temperature0.6", "lm.student.distilled-temperature1.0.decoded-temperature0.6",
    }  # fmt: skip
    for cell in cells.values():
        m = {k: v["value"] for k, v in cell["metrics"].items()}
        assert m["precision"] == pytest.approx(-m["entropy"] - m["kl_student_truth"], abs=1e-9)
        assert m["recall"] == pytest.approx(-m["entropy_truth"] - m["kl_truth_student"], abs=1e-9)
        # drawn and scored in float32: what was recorded is what is scored
        assert abs(m["recorded_minus_scored"]) < 1e-3
        assert m["precision_per_token"] == pytest.approx(m["precision"] / m["length"], rel=1e-9)
    # what does not depend on a seed is one cell for all
    assert cells["lm.truth"]["seed"] is None
    assert cells["lm.teacher"]["seed"] is None
    assert cells["lm.student.direct"]["seed"] == 0
    assert cells["lm.student.distilled-temperature0.6"]["metrics"]["entropy_teacher"]["value"] == pytest.approx(
        cells["lm.teacher.decoded-temperature0.6"]["metrics"]["entropy"]["value"]
    )
    cold, warm = (cells[f"lm.teacher{s}"]["metrics"]["entropy"]["value"] for s in (".decoded-temperature0.6", ""))
    assert cold < warm
    opened = sorted((tmp_path / "out" / "artifacts").glob("fit-*"))
    assert len(opened) == 4
    from transformers import AutoModelForCausalLM

    for folder in opened:
        assert AutoModelForCausalLM.from_pretrained(folder).num_parameters() > 0


def test_two_levels_with_chat_prompts_from_jsonl_and_top_p(tmp_path: Path, tiny_models: dict[str, Path]) -> None:
    lines = [
        {"messages": [{"role": "user", "content": "w3 w4"}]},
        {"prompt": "w5"},
        {"messages": [{"role": "user", "content": "w6 w7 w8"}]},
    ]
    (tmp_path / "prompts.jsonl").write_text("\n".join(json.dumps(x) for x in lines))
    spec = lm_spec(
        tiny_models["llama"],
        truth={"source": str(tiny_models["llama"]), "max_new_tokens": 6,
               "prompts": {"file": "prompts.jsonl", "chat": True}},
        teacher="truth",
        student={"init": {"layers_of": "truth", "layers": [0, 1]}, "training": TRAINING},
        selectivity=[{"temperature": 1.0}, {"temperature": 0.8, "top_p": 0.7}],
    )  # fmt: skip
    result = run(spec, tmp_path)
    assert not result.failed_cells
    cells = {c["group"]: c["metrics"] for c in result.results["cells"]}
    nucleus = cells["lm.truth.decoded-temperature0.8_topp0.7"]
    assert nucleus["recall"]["value"] is None
    assert nucleus["recall"]["n_neg_inf"] > 0
    assert nucleus["truth_mass_outside_support"]["value"] > 0
    assert nucleus["precision"]["value"] is not None
    shown = json.loads((tmp_path / "out" / "exhibits" / "lm.truth.json").read_text())
    assert len({row["prompt"] for row in shown["rows"]}) == 3
    # prompts are strata, and the answers alone are counted
    assert cells["lm.truth"]["length"]["value"] <= 6
    again = run(spec, tmp_path)
    assert sum(again.outcome.computed.values()) == 0


def test_scratch_architecture_and_a_text_prompt(tmp_path: Path, tiny_models: dict[str, Path]) -> None:
    level = {
        "init": "scratch",
        "architecture": {"num_hidden_layers": 1, "hidden_size": 16, "num_attention_heads": 2},
        "training": TRAINING,
    }
    spec = lm_spec(
        tiny_models["llama"], student=level, teacher=level,
        truth={"source": str(tiny_models["llama"]), "max_new_tokens": 5, "prompts": "w3 w4"},
    )  # fmt: skip
    assert not run(spec, tmp_path).failed_cells


def test_seeds_share_data_and_teacher_and_redraw_students(tmp_path: Path, tiny_models: dict[str, Path]) -> None:
    result = run(lm_spec(tiny_models["llama"], seeds=2), tmp_path)
    assert not result.failed_cells
    cells = {c["id"]: c for c in result.results["cells"]}
    assert "lm.teacher" in cells
    a, b = (cells[f"lm.student.direct.seed{s}"]["metrics"]["recall"]["value"] for s in (0, 1))
    assert a != b
    table = {(c["a"], c["b"], c["metric"]): c for c in result.results["contrasts"]}
    gate = table["lm.teacher", "lm.student.direct", "recall"]
    assert gate["pairing"] == "row"
    assert gate["se"] > 0
    one = run(lm_spec(tiny_models["llama"], seeds=1), tmp_path, "one")
    for c in one.results["cells"]:
        assert c["metrics"] == cells[c["id"]]["metrics"]


def test_one_more_temperature_recomputes_only_its_own_stages(tmp_path: Path, tiny_models: dict[str, Path]) -> None:
    run(lm_spec(tiny_models["llama"]), tmp_path)
    more = lm_spec(tiny_models["llama"], selectivity=[{"temperature": t} for t in (1.0, 0.8, 0.6)])
    done = run(more, tmp_path).outcome.computed
    # draws in blocks of 16: distill 2, validate 1, and 3 for each of the four judged laws, scored on both sides' rows
    assert dict(done) == {"draw": 3 + 4 * 3, "fit": 1, "score": 4 * 6, "judge": 4, "show": 4}


def test_a_model_by_another_spelling_of_its_path_is_the_same(
    tmp_path: Path, tiny_models: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    model = tiny_models["llama"]
    monkeypatch.chdir(model.parent)
    data = {"train": 8, "validate": 4, "distill": 8, "evaluate": 8}
    run(lm_spec(f"./{model.name}", data=data), tmp_path)
    assert dict(run(lm_spec(model.absolute(), data=data), tmp_path).outcome.computed) == {}
    other = lm_spec(model.name, data=data | {"train": 9, "distill": 9}, student={"init": {"source": str(model)}})
    with pytest.raises(SpecError, match=r"lm\.data\.distill, chains\.lm\.data\.train, .*lm\.student.* differ;"):
        run(other, tmp_path)


def test_prompts_that_changed_are_another_experiment(tmp_path: Path, tiny_models: dict[str, Path]) -> None:
    truth = {"source": str(tiny_models["llama"]), "max_new_tokens": 4, "prompts": {"file": "p.jsonl"}}
    (tmp_path / "p.jsonl").write_text('{"prompt": "w3"}\n')
    run(lm_spec(tiny_models["llama"], truth=truth), tmp_path)
    (tmp_path / "p.jsonl").write_text('{"prompt": "w4"}\n')
    with pytest.raises(FolderError, match="another experiment"):
        run(lm_spec(tiny_models["llama"], truth=truth), tmp_path)


def test_judging_in_bfloat16_stores_its_bias(tmp_path: Path, tiny_models: dict[str, Path]) -> None:
    result = run(lm_spec(tiny_models["llama"], judge_dtype="bfloat16", draw_dtype="bfloat16"), tmp_path)
    for cell in result.results["cells"]:
        for name in ("precision_bias", "recall_bias", "entropy_bias"):
            assert cell["metrics"][name]["n"] == 48
    direct = next(c for c in result.results["cells"] if c["group"] == "lm.student.direct")["metrics"]
    assert 0 < abs(direct["precision_bias"]["value"]) < 0.5


def test_bad_models_and_prompts_are_refused_before_anything_runs(tmp_path: Path, tiny_models: dict[str, Path]) -> None:
    from hydrometer.models.causal_lm.inference.model import CausalLM
    from tiny import make_llama, make_tokenizer

    other_vocabulary, other_stop = tmp_path / "other-vocabulary", tmp_path / "other-stop"
    CausalLM(make_llama(vocab=32), make_tokenizer(32)).save(other_vocabulary)
    model = make_llama()
    model.generation_config.eos_token_id = 5
    CausalLM(model, make_tokenizer(64)).save(other_stop)
    (tmp_path / "empty").mkdir()
    (tmp_path / "bad.jsonl").write_text('{"prompt": "w3"}\n{"nothing": 1}\n')
    source = tiny_models["llama"]

    def student(where: Path) -> dict[str, Any]:
        return {"student": {"init": {"source": str(where)}, "training": TRAINING}}

    cases: list[tuple[dict[str, Any], type[InputError], str]] = [
        (student(other_vocabulary), LawMismatchError, "vocabulary"),
        (student(other_stop), LawMismatchError, "stop set"),
        ({"truth": {"source": str(tmp_path / "empty")}}, ModelError, "empty"),
        ({"truth": {"source": str(tmp_path / "nowhere")}}, ModelError, "nowhere"),
        ({"truth": {"source": str(source), "prompts": {"file": "bad.jsonl"}}}, DataError, "line 2"),
        ({"truth": {"source": str(source), "prompts": {"file": "none.jsonl"}}}, DataError, "none.jsonl"),
        ({"student": {"init": {"layers_of": "truth", "layers": [9]}}}, SpecError, "layers"),
        ({"truth": {"source": str(source), "selectivity": {"temperature": 0.5}}}, SpecError, "no selectivity"),
        ({"selectivity": [{"weight_power": 2}]}, SpecError, "weight_power"),
    ]
    for change, error, says in cases:
        with pytest.raises(error, match=says) as caught:
            run(lm_spec(source, **change), tmp_path)
        assert "\n" not in str(caught.value)
        assert not (tmp_path / "out").exists()


def test_equal_runs_are_equal_byte_for_byte(tmp_path: Path, tiny_models: dict[str, Path]) -> None:
    one, two = (run(lm_spec(tiny_models["llama"]), tmp_path, o) for o in ("a", "b"))
    assert without_timings(one.results) == without_timings(two.results)


def test_bfloat16_judging_of_a_truncated_law_has_a_finite_bias(tmp_path: Path, tiny_models: dict[str, Path]) -> None:
    settings = [{"temperature": 1.0}, {"top_p": 0.95}]
    spec = lm_spec(tiny_models["llama"], judge_dtype="bfloat16", selectivity=settings)
    result = run(spec, tmp_path)
    assert not result.failed_cells
    cell = next(c for c in result.results["cells"] if c["group"] == "lm.teacher.decoded-topp0.95")
    assert cell["metrics"]["recall"]["value"] is None
    assert cell["metrics"]["recall_bias"]["value"] is not None


def test_laws_over_other_outcomes_are_not_judged(tiny_models: dict[str, Path]) -> None:
    lm = hm.CausalLM.from_pretrained(str(tiny_models["llama"]))
    with pytest.raises(LawMismatchError, match="max_new_tokens"):
        hm.judge(lm.law(max_new_tokens=4), lm.law(max_new_tokens=5), n=8)
    with pytest.raises(LawMismatchError, match="prompts"):
        hm.judge(lm.law("w3", max_new_tokens=4), lm.law("w4", max_new_tokens=4), n=8)
    with pytest.raises(LawMismatchError, match="stop sets"):
        hm.judge(lm.law(max_new_tokens=4), lm.law(max_new_tokens=4, stop=[5]), n=8)
