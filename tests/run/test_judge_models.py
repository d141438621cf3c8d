"""Models that exist, judged: against a truth, across tokenizers, against held-out text; hostile input; going on."""

from __future__ import annotations

import json
import shutil
import signal
import sys
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")

import jsonschema  # noqa: E402

from chains import complaints  # noqa: E402
from hydrometer.cli import commands  # noqa: E402
from hydrometer.core.errors import DataError, FolderError, InputError, ModelError  # noqa: E402
from hydrometer.core.spec import Selectivity  # noqa: E402
from hydrometer.models.causal_lm.inference.model import CausalLM  # noqa: E402
from hydrometer.run.judging.judging import JudgeResult, judge_models  # noqa: E402
from hydrometer.store.artifacts import content_key  # noqa: E402
from tiny import make_llama, make_tokenizer  # noqa: E402

FRONTIERS = ("prd_", "total_variation", "divergence_area", "typicality_", "entropy_kept", "effective_volume")
SCHEMA = json.loads((Path(__file__).parents[2] / "docs" / "results.schema.json").read_text())


@pytest.fixture(autouse=True)
def _one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Two models of one vocabulary, one of another that splits words into letters, one that diverged."""
    root = tmp_path_factory.mktemp("models")
    CausalLM(make_llama(seed=0), make_tokenizer(64)).save(root / "truth")
    CausalLM(make_llama(seed=0, layers=2), make_tokenizer(64)).save(root / "student")
    CausalLM(make_llama(vocab=32, seed=3), letters(32)).save(root / "other")
    broken = make_llama(seed=0)
    with torch.no_grad():
        broken.model.layers[1].mlp.up_proj.weight.fill_(float("nan"))
    broken.save_pretrained(root / "broken")
    make_tokenizer(64).save_pretrained(root / "broken")
    return {p.name: str(p) for p in root.iterdir()}


def letters(size: int) -> Any:
    """A tokenizer of characters: w, digits, space, and the rest unknown."""
    from tokenizers import Regex, Tokenizer, decoders, pre_tokenizers
    from tokenizers import models as kinds
    from transformers import PreTrainedTokenizerFast

    words = ["<bos>", "<eos>", "<unk>", " ", "w", *"0123456789", *(f"#{i}" for i in range(size - 15))]
    inner = Tokenizer(kinds.WordLevel({w: i for i, w in enumerate(words)}, unk_token="<unk>"))
    inner.pre_tokenizer = pre_tokenizers.Split(Regex("."), "isolated")
    inner.decoder = decoders.Fuse()
    return PreTrainedTokenizerFast(tokenizer_object=inner, bos_token="<bos>", eos_token="<eos>", unk_token="<unk>")


def prompts_file(folder: Path, rows: list[dict[str, Any]], name: str = "prompts.jsonl") -> Path:
    path = folder / name
    path.write_text("\n".join(json.dumps(r) for r in rows))
    return path


def texts(n: int) -> list[dict[str, Any]]:
    return [{"text": f"w{3 + i} w{4 + i}"} for i in range(n)]


def cells(result: JudgeResult) -> dict[str, dict[str, Any]]:
    jsonschema.validate(result.results, SCHEMA)
    return {c["id"]: c["metrics"] for c in result.results["cells"]}


def test_figures_are_those_of_judge(tmp_path: Path, models: dict[str, str]) -> None:
    """The same rows scored by the laws themselves give the same figures."""
    import hydrometer as hm

    file = prompts_file(tmp_path, texts(4))
    settings = [Selectivity(temperature=0.7), Selectivity(top_p=0.6)]
    result = judge_models(
        [models["student"]], truth=models["truth"], prompts=file, answers_per_prompt=8, max_new_tokens=6,
        decodings=settings, out=tmp_path / "out",
    )  # fmt: skip
    found = cells(result)
    plain = "judge.student.student"
    assert set(found) == {
        "judge.truth", plain, f"{plain}.decoded-temperature0.7", f"{plain}.decoded-topp0.6"
    }  # fmt: skip
    m = {k: v["value"] for k, v in found[plain].items()}
    assert m["precision"] == pytest.approx(-m["entropy"] - m["kl_student_truth"], abs=1e-9)
    assert m["recall"] == pytest.approx(-m["entropy_truth"] - m["kl_truth_student"], abs=1e-9)
    assert abs(m["recorded_minus_scored"]) < 1e-3
    assert found["judge.truth"]["kl_student_truth"]["value"] == 0
    nucleus = found[f"{plain}.decoded-topp0.6"]
    assert nucleus["recall"]["value"] is None
    assert nucleus["recall"]["n_neg_inf"] > 0
    # 4 prompts are a sample: 3 degrees of freedom, everywhere but where the truth's rows and the student's both count
    single = {k: v for k, v in found[plain].items() if v["se"] is not None and not k.startswith(FRONTIERS)}
    assert max(v["df"] for v in single.values()) == 3.0
    both = [v["df"] for k, v in found[plain].items() if v["se"] is not None and k.startswith(FRONTIERS)]
    assert both
    assert max(both) <= 6.0
    truth, student = (CausalLM.from_pretrained(models[k]).law(["w3 w4", "w4 w5"], max_new_tokens=6, block_rows=32)
                      for k in ("truth", "student"))  # fmt: skip
    direct = hm.judge(truth, student, n=600, seed=5)
    assert direct["entropy"].value == pytest.approx(m["entropy"], abs=6 * (direct["entropy"].se or 0) + 5)
    pairs = {(c["a"], c["metric"]): c for c in result.results["contrasts"]}
    cold = pairs[f"{plain}.decoded-temperature0.7", "entropy"]
    assert cold["pairing"] == "prompt"
    assert cold["df"] == 3
    assert cold["value"] == pytest.approx(found[f"{plain}.decoded-temperature0.7"]["entropy"]["value"] - m["entropy"])


def test_fixed_prompts_are_strata_and_draw_nothing_anew(tmp_path: Path, models: dict[str, str]) -> None:
    file = prompts_file(tmp_path, texts(3))
    ask = {"truth": models["truth"], "prompts": file, "answers_per_prompt": 6, "max_new_tokens": 5,
           "out": tmp_path / "out"}  # fmt: skip
    sample = judge_models([models["student"]], **ask)
    fixed = judge_models([models["student"]], prompts_are="fixed", **ask)
    assert dict(fixed.outcome.computed) == {"judge": 2}
    one, two = (cells(r)["judge.student.student"]["recall"] for r in (sample, fixed))
    assert one["value"] == two["value"]
    assert one["se"] != two["se"]
    assert one["df"] <= 2 < two["df"] <= 15  # three prompts; and eighteen rows of three strata
    assert fixed.results["summary"]["chains"]["judge"]["judged"]["prompts_are"] == "fixed"


def test_a_second_call_goes_on_and_more_is_added(
    tmp_path: Path, models: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from hydrometer.stages import compute

    file = prompts_file(tmp_path, texts(2))
    ask = {"truth": models["truth"], "prompts": file, "answers_per_prompt": 80, "max_new_tokens": 5}
    whole = judge_models([models["student"]], **ask, out=tmp_path / "whole")
    done = []

    def interrupted(*args: Any, **options: Any) -> Any:
        if done:
            raise KeyboardInterrupt
        done.append(1)
        return original(*args, **options)

    original = compute.score
    monkeypatch.setattr(compute, "score", interrupted)
    with pytest.raises(KeyboardInterrupt):
        judge_models([models["student"]], **ask, out=tmp_path / "cut")
    monkeypatch.undo()
    again = judge_models([models["student"]], **ask, out=tmp_path / "cut")
    assert again.outcome.reused["draw"] >= 1
    assert again.outcome.reused["score"] == 1
    assert again.outcome.computed["score"] == 5  # two blocks of the truth's rows under it, then of both rows under both
    assert cells(again) == cells(whole)
    more = judge_models([models["student"], models["truth"]], **ask, out=tmp_path / "cut")
    assert more.outcome.reused["score"] == 6
    assert cells(more)["judge.student.student"] == cells(whole)["judge.student.student"]


def test_figures_are_those_of_a_run(tmp_path: Path, models: dict[str, str]) -> None:
    """Control variates, frontiers, frontiers by prefix and what bfloat16 adds: all that a run's cell has."""
    file = prompts_file(tmp_path, texts(2))
    ask = {"truth": models["truth"], "prompts": file, "answers_per_prompt": 200, "max_new_tokens": 6}
    m = cells(judge_models([models["student"]], **ask, prompts_are="fixed", out=tmp_path / "a"))[
        "judge.student.student"
    ]
    assert m["precision"]["method"] == m["kl_student_truth"]["method"] == "cv"
    assert m["recall"]["se"] < m["recall"]["plain_se"]
    assert m["total_variation"]["value"] > 0
    exhibit = json.loads((tmp_path / "a" / "exhibits" / "judge.student.student.json").read_text())
    assert exhibit["kind"] == "texts"
    assert len(exhibit["rows"]) == 16
    assert exhibit["curves"]
    low = cells(judge_models([models["student"]], **ask, dtype="bfloat16", out=tmp_path / "b"))["judge.student.student"]
    assert {"precision_bias", "recall_bias", "entropy_bias"} <= set(low)
    rows = [{"prompt": "w3", "completion": "w5 w6"}, {"prompt": "w4", "completion": "w8"}]
    file = prompts_file(tmp_path, rows, "text.jsonl")
    found = judge_models(
        [models["student"]], truth_text=file, reference=models["truth"], chat=False, answers_per_prompt=200,
        max_new_tokens=5, prompts_are="fixed", out=tmp_path / "c",
    )  # fmt: skip
    m = cells(found)["judge.student.student"]
    assert {m[k]["method"] for k in ("precision_reference", "entropy", "kl_student_reference")} == {"cv"}
    assert m["kl_student_reference"]["value"] == pytest.approx(
        -m["entropy"]["value"] - m["precision_reference"]["value"], abs=1e-9
    )


def test_another_tokenizer_gets_nats_per_byte_and_nothing_else(tmp_path: Path, models: dict[str, str]) -> None:
    file = prompts_file(tmp_path, [{"text": "w3 w4"}, {"text": "w5"}, {"text": "w7 w9"}])
    result = judge_models(
        [models["other"], models["student"]], truth=models["truth"], prompts=file, answers_per_prompt=5,
        max_new_tokens=6, out=tmp_path / "out",
    )  # fmt: skip
    found = cells(result)
    other, same = found["judge.student.other"], found["judge.student.student"]
    for name in ("precision", "recall", "entropy", "entropy_truth"):
        assert name not in other
        assert name in same
        for cell in (other, same):
            assert cell[f"{name}_per_byte"]["unit"] == "nats/byte"
            assert cell[f"{name}_per_byte"]["method"] == "canonical"
    assert not [k for k in other if k.startswith("kl_")]
    assert any("canonical" in n for n in result.results["summary"]["chains"]["judge"]["judged"]["notes"])
    compared = {(c["a"], c["metric"]) for c in result.results["contrasts"]}
    assert compared == {
        (f"judge.student.{s}", m)
        for s in ("student", "other")
        for m in ("precision_per_byte", "recall_per_byte", "entropy_per_byte")
    } | {("judge.student.student", m) for m in ("precision", "recall", "entropy")}
    assert next(c["b"] for c in result.results["contrasts"]) == "judge.truth"


def test_a_model_is_not_compared_with_itself(tmp_path: Path, models: dict[str, str]) -> None:
    """The truth among the students, a student twice, and a decoding that changes nothing."""
    file = prompts_file(tmp_path, texts(2))
    result = judge_models(
        [models["student"], models["truth"], models["student"]], truth=models["truth"], prompts=file,
        answers_per_prompt=4, max_new_tokens=4, decodings=[Selectivity(temperature=1.0)], out=tmp_path / "out",
    )  # fmt: skip
    pairs = {(c["a"], c["b"]) for c in result.results["contrasts"]}
    assert ("judge.student.truth-2", "judge.truth") not in pairs
    assert ("judge.student.student-2", "judge.student.student") not in pairs
    assert ("judge.student.student.decoded-temperature1.0", "judge.student.student") not in pairs
    assert ("judge.student.student-2", "judge.truth") in pairs
    assert ("judge.student.truth-2", "judge.student.student") in pairs


def test_recall_of_held_out_text_is_the_models_own_log_probability(tmp_path: Path, models: dict[str, str]) -> None:
    rows = [
        {"prompt": "w3", "completion": "w5 w6"}, {"prompt": "w3", "completion": "w8"},
        {"prompt": "w4 w9", "completion": "w5"}, {"prompt": "w7", "completion": "w6 w6 w6"},
    ]  # fmt: skip
    file = prompts_file(tmp_path, rows, "text.jsonl")
    result = judge_models(
        [models["student"]], truth_text=file, reference=models["truth"], chat=False, answers_per_prompt=6,
        max_new_tokens=5, out=tmp_path / "out",
    )  # fmt: skip
    found = cells(result)
    student = found["judge.student.student"]
    lm = CausalLM.from_pretrained(models["student"])
    expected = []
    for r in rows:
        prompt, answer = (lm.tokenizer(r[k])["input_ids"] for k in ("prompt", "completion"))
        ids = [*prompt, *answer, 1]
        with torch.no_grad():
            log_p = torch.log_softmax(lm.model(torch.tensor([ids])).logits[0].double(), -1)
        expected.append(sum(float(log_p[len(prompt) - 1 + t, ids[len(prompt) + t]]) for t in range(len(answer) + 1)))
    assert student["recall"]["value"] == pytest.approx(np.mean(expected), abs=1e-4)
    n_bytes = sum(len(r["completion"]) for r in rows)
    assert student["recall_per_byte"]["value"] == pytest.approx(sum(expected) / n_bytes, abs=1e-5)
    # three prompts, two rows of one of them: clusters, by hand
    e = np.array(expected) - np.mean(expected)
    clustered = np.array([e[0] + e[1], e[2], e[3]])
    assert student["recall"]["se"] == pytest.approx(np.sqrt(1.5 * (clustered**2).sum()) / 4, rel=1e-4)
    assert student["recall"]["df"] == 2
    assert "precision" not in student
    assert student["precision_reference"]["method"] == "mc"
    assert found["judge.reference.truth"]["kl_student_reference"]["value"] == 0
    assert student["kl_student_reference"]["value"] == pytest.approx(
        -student["entropy"]["value"] - student["precision_reference"]["value"], abs=1e-9
    )


def test_text_alone_and_a_reference_of_another_tokenizer(tmp_path: Path, models: dict[str, str]) -> None:
    file = prompts_file(tmp_path, texts(5), "text.jsonl")
    alone = cells(judge_models([models["student"]], truth_text=file, out=tmp_path / "alone"))
    assert list(alone) == ["judge.student.student"]
    assert alone["judge.student.student"]["recall"]["n"] == 5
    assert alone["judge.student.student"]["recall"]["df"] <= 4  # documents: every row is its own
    beside = cells(
        judge_models(
            [models["other"]],
            truth_text=file,
            reference=models["truth"],
            answers_per_prompt=8,
            max_new_tokens=5,
            out=tmp_path / "beside",
        )
    )["judge.student.other"]
    assert beside["precision_reference_per_byte"]["method"] == "canonical"
    assert "precision_reference" not in beside
    assert "precision" not in beside


def test_students_bring_their_prompts_along(tmp_path: Path, models: dict[str, str]) -> None:
    student = tmp_path / "fitted"
    shutil.copytree(models["student"], student)
    law = {"version": 1, "prompt_ids": [[5, 6], [7]], "prompt_texts": ["a", "b"], "stop_ids": [1], "max_new_tokens": 4}
    (student / "law.json").write_text(json.dumps(law))
    result = judge_models([student], truth=models["truth"], answers_per_prompt=3, out=tmp_path / "out")
    judged = result.results["summary"]["chains"]["judge"]["judged"]
    assert (judged["prompts"], judged["max_new_tokens"]) == (2, 4)
    assert result.results["cells"][1]["metrics"]["length"]["value"] <= 4
    seen = "prompts are training prompts of the run that fitted is of"
    assert sum(n.startswith(f"2 of 2 {seen}") for n in judged["notes"]) == 1
    for row, told in (("w5 w6", True), ("w6 w5", False)):
        file = prompts_file(tmp_path, [{"text": row}, {"text": "w9"}])
        other = judge_models(
            [student, models["student"]], truth=models["truth"], prompts=file, max_new_tokens=2, answers_per_prompt=2,
            out=tmp_path / row,
        )  # fmt: skip
        notes = other.results["summary"]["chains"]["judge"]["judged"]["notes"]
        assert [n[:6] for n in notes if seen in n] == ["1 of 2"] * told
    with pytest.raises(InputError, match="same prompts along"):
        judge_models([student, models["student"]], truth=models["truth"], out=tmp_path / "two")
    for wrong in ("{", "[]", '{"prompt_ids": [[1e999]]}', json.dumps(law | {"prompt_ids": [[]]})):
        (student / "law.json").write_text(wrong)
        with pytest.raises(ModelError, match=r"law\.json"):
            judge_models([student], truth=models["truth"], out=tmp_path / "three")


def test_an_adapter_is_judged_over_its_base(tmp_path: Path, models: dict[str, str]) -> None:
    """An adapter that changes nothing is its base; the file that says so does not say where the base is."""
    peft = pytest.importorskip("peft")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        config = peft.LoraConfig(task_type="CAUSAL_LM", r=2, target_modules=["q_proj"])  # B is zero at the start
        peft.get_peft_model(make_llama(seed=0), config).save_pretrained(tmp_path / "lora")
    ask = {"truth": models["truth"], "answers_per_prompt": 8, "max_new_tokens": 5}
    with pytest.raises(ModelError, match="--base"):
        judge_models([tmp_path / "lora"], **ask, out=tmp_path / "out")
    found = cells(judge_models([tmp_path / "lora"], **ask, base=models["truth"], out=tmp_path / "out"))
    assert found["judge.student.lora"]["kl_student_truth"]["value"] == pytest.approx(0, abs=1e-5)


def test_a_model_that_diverged_is_a_failed_cell(tmp_path: Path, models: dict[str, str]) -> None:
    file = prompts_file(tmp_path, texts(2), "text.jsonl")
    result = judge_models([models["broken"], models["student"]], truth_text=file, out=tmp_path / "out")
    assert result.failed_cells == ["judge.student.broken"]
    assert "NaN" in result.results["cells"][0]["reason"]
    assert cells(result)["judge.student.student"]["recall"]["value"] is not None


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"truth": None}, "a model or a text"),
        ({"truth_text": "x.jsonl"}, "a model or a text"),
        ({"reference": "x"}, "--truth-text only"),
        ({"answers_per_prompt": 0}, "between 1 and"),
        ({"answers_per_prompt": 10**12}, "between 1 and"),
        ({"truth": None, "truth_text": "x", "max_new_tokens": 3}, "nothing is drawn"),
        ({"max_new_tokens": 500}, "max_position_embeddings"),
        ({"prompts_are": "sample"}, "one prompt is no sample"),
        ({"prompts_are": "nested"}, "fixed or a sample"),
        ({"dtype": "float16"}, "float32 or bfloat16"),
        ({"seed": -1}, "negative"),
        ({"chat": True}, "needs prompts"),
        ({"decodings": [Selectivity(weight_power=2)]}, "decoded by temperature"),
        ({"decodings": [Selectivity(top_p=0.5)] * 2}, "twice"),
        ({"students": []}, "no student"),
        ({"students": ["nowhere"]}, "no such model"),
        ({"prompts": "missing.jsonl"}, "cannot be read"),
        ({"truth": None, "truth_text": "ENDS", "chat": False}, "an answer ends with the text of a stop token"),
    ],
)
def test_wrong_input_is_refused_before_anything_is_made(
    tmp_path: Path, models: dict[str, str], change: dict[str, Any], words: str
) -> None:
    asked: dict[str, Any] = {"students": [models["student"]], "truth": models["truth"], "out": tmp_path / "out"}
    asked |= change
    if asked.get("truth_text") == "ENDS":
        (tmp_path / "ends.jsonl").write_text('{"prompt": "w3", "completion": "w4 <eos>"}\n')
        asked["truth_text"] = tmp_path / "ends.jsonl"
    with pytest.raises(InputError, match=words) as caught:
        judge_models(asked.pop("students"), **asked)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "out").exists()


def test_a_folder_of_something_else_is_refused(tmp_path: Path, models: dict[str, str]) -> None:
    (tmp_path / "specs").mkdir()
    key = content_key({"spec": {"name": "other"}, "truths": {}})
    (tmp_path / "specs" / f"{key}.yaml").write_text("spec: {name: other}\ntruths: {}\n")
    with pytest.raises(FolderError, match="not a judgement"):
        judge_models([models["student"]], truth=models["truth"], out=tmp_path)


@pytest.fixture
def command(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Any:
    """Run the command line in this process; returns exit code, stdout, stderr."""

    def call(*argv: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["hydrometer", "judge", *(str(a) for a in argv)])
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


def test_the_command_prints_a_table_and_json_and_one_line_errors(
    tmp_path: Path, models: dict[str, str], command: Any
) -> None:
    file = prompts_file(tmp_path, texts(3))
    argv = ["--truth", models["truth"], "--student", models["student"], "--prompts", file, "--n", 4]
    argv += ["--max-new-tokens", 5, "--decoding", "temperature=0.7,top_p=0.9", "--out", tmp_path / "out"]
    code, out, _ = command(*argv)
    assert code == 0
    words = " ".join(out.split())
    assert "clustered by prompt" in words
    against_truth = words.index("student minus truth (truth): precision")
    assert words.rstrip().split("report ")[-1].count("recall") == 1  # its last sentence says what to take
    assert len(json.loads((tmp_path / "out" / "results.json").read_text())["cells"]) == 3
    assert against_truth < words.index("student, decoded at temperature 0.7, top-p 0.9 minus student: precision")
    page = (tmp_path / "out" / "report.html").read_text()
    assert "student, decoded at temperature 0.7, top-p 0.9" in page
    assert "There is no teacher gate" not in page  # nothing is said of a chain that was not run
    code, out, err = command(*argv, "--json")
    body = json.loads(out)
    assert (code, body["computed"], body["failed_cells"]) == (0, {}, [])
    assert "going on" in err
    (tmp_path / "bad.jsonl").write_bytes(b'{"prompt": "\xff"}\n')
    for wrong, said in (
        (["--prompts", tmp_path / "bad.jsonl"], "UTF-8"),
        (["--decoding", "temperature=0"], "above 0"),
        (["--decoding", "hotter"], "NAME=VALUE"),
        (["--seed", "x"], "integer"),
    ):
        code, _, err = command(*argv, *wrong)
        assert code == 2
        assert said in err
        assert len(complaints(err)) == 1


def test_a_chat_template_that_is_not_there(tmp_path: Path, models: dict[str, str]) -> None:
    file = prompts_file(tmp_path, [{"messages": [{"role": "user", "content": "w3"}]}])
    with pytest.raises(ModelError, match="no chat template"):
        judge_models([models["other"]], truth=models["truth"], prompts=file, out=tmp_path / "out")
    turns = [
        {"role": "user", "content": "w3"},
        {"role": "assistant", "content": "w4"},
        {"role": "user", "content": "w5"},
    ]
    file = prompts_file(tmp_path, [{"messages": turns}])
    with pytest.raises(DataError, match="chat template"):
        judge_models([models["student"]], truth=models["truth"], prompts=file, chat=False, out=tmp_path / "out")


def test_held_out_text_needs_room_for_itself_alone(tmp_path: Path) -> None:
    """Nothing is drawn, so nothing is kept free for what would be."""
    net = make_llama(max_position_embeddings=8)
    CausalLM(net, make_tokenizer(64)).save(tmp_path / "small")
    file = prompts_file(tmp_path, [{"prompt": "w3", "completion": f" w{4 + i} w5"} for i in range(3)])
    result = judge_models([tmp_path / "small"], truth_text=file, chat=False, out=tmp_path / "out")
    value = cells(result)["judge.student.small"]["recall"]["value"]
    with torch.no_grad():
        rows = [torch.tensor([[3, 4 + i, 5, 1]]) for i in range(3)]
        steps = [net(x).logits[0, :-1].log_softmax(-1).gather(1, x[0, 1:, None]).sum() for x in rows]
    assert value == pytest.approx(float(sum(steps)) / 3, abs=1e-4)
    assert result.results["summary"]["chains"]["judge"]["judged"]["max_new_tokens"] is None
    exactly = prompts_file(tmp_path, [{"prompt": "w3", "completion": " w4" * n} for n in (6, 7)], "long.jsonl")
    with pytest.raises(InputError, match="max_position_embeddings"):
        judge_models(
            [tmp_path / "small"], truth_text=exactly, reference=tmp_path / "small", chat=False, out=tmp_path / "drawn"
        )
    failed = judge_models([tmp_path / "small"], truth_text=exactly, chat=False, out=tmp_path / "long")
    assert "text 2 with its prompt exceeds" in failed.results["cells"][0]["reason"]


def test_odd_prompts_are_named(tmp_path: Path, models: dict[str, str]) -> None:
    turns = [{"role": "user", "content": "w3"}, {"role": "assistant", "content": "w4"}]

    def notes(rows: list[dict[str, Any]], out: str) -> list[str]:
        file = prompts_file(tmp_path, rows)
        found = judge_models(
            [models["student"]], truth=models["truth"], prompts=file, answers_per_prompt=2, max_new_tokens=2,
            out=tmp_path / out,
        )  # fmt: skip
        return found.results["summary"]["chains"]["judge"]["judged"]["notes"]

    assert notes([{"messages": turns[:1]}], "plain") == []
    (said,) = notes([{"messages": turns}], "answered")
    assert "1 prompt ends with the assistant's turn" in said
    (said,) = notes([{"text": "w3 <eos>"}], "stopped")
    assert "1 prompt ends with a stop token" in said
    as_text = judge_models(
        [models["student"]], truth=models["truth"], answers_per_prompt=2, max_new_tokens=2, out=tmp_path / "as-text",
        prompts=prompts_file(tmp_path, [{"messages": json.dumps(turns[:1])}]),
    )  # fmt: skip
    plain = json.loads((tmp_path / "plain" / "results.json").read_text())
    assert [c["metrics"] for c in as_text.results["cells"]] == [c["metrics"] for c in plain["cells"]]


def test_a_tokenizer_without_a_boundary_is_counted(tmp_path: Path, models: dict[str, str]) -> None:
    """The word w31 is one token, so that "1" behind "w3" has no token of its own; letters have."""
    file = prompts_file(tmp_path, [{"prompt": "w3", "completion": c} for c in ("1", " w4")])
    result = judge_models(
        [models["student"], models["other"]], truth_text=file, chat=False, out=tmp_path / "out"
    )  # fmt: skip
    words, letters = cells(result)["judge.student.student"], cells(result)["judge.student.other"]
    assert (words["spans_prompt_truth"]["value"], letters["spans_prompt_truth"]["value"]) == (0.5, 0)
    assert (words["round_trip_truth"]["value"], letters["round_trip_truth"]["value"]) == (0.5, 1)
