"""PEFT adapters: merged as the formula says; and those that are not to be trusted, or do not fit."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")
peft = pytest.importorskip("peft")

from safetensors.torch import load_file, save_file  # noqa: E402

from hydrometer.core.errors import ModelError  # noqa: E402
from hydrometer.models.causal_lm import load  # noqa: E402
from hydrometer.models.causal_lm.model import CausalLM  # noqa: E402
from tiny import make_gpt2, make_llama, make_tokenizer  # noqa: E402

# peft asks transformers for an attribute that is to go; ours is not the place to mend it.
pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")


def make_adapter(folder: Path, network: Any, named: str, **fields: Any) -> Path:
    torch.manual_seed(9)
    options = {"r": 3, "lora_alpha": 5, "target_modules": ["q_proj", "down_proj"], "init_lora_weights": False} | fields
    model = peft.get_peft_model(network, peft.LoraConfig(task_type="CAUSAL_LM", **options))
    model.save_pretrained(folder)
    change(folder, base_model_name_or_path=named)
    return folder


def change(folder: Path, **fields: Any) -> None:
    path = folder / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | fields))


@pytest.fixture
def adapter(tmp_path: Path) -> Path:
    return make_adapter(tmp_path / "adapter", make_llama(), "somebody/base")


@pytest.mark.parametrize(
    "fields",
    [{}, {"use_rslora": True}, {"rank_pattern": {"q_proj": 2}, "alpha_pattern": {"q_proj": 7}}, {"use_dora": True}],
)
def test_merged_weights_are_the_formulas(tmp_path: Path, llama_folder: Path, fields: dict[str, Any]) -> None:
    folder = make_adapter(tmp_path / "adapter", make_llama(), "somebody/base", **fields)
    lm = CausalLM.from_pretrained(folder, base=str(llama_folder))
    base, merged = make_llama().state_dict(), lm.model.state_dict()
    tensors = load_file(folder / "adapter_model.safetensors")
    assert set(merged) == set(base)
    for name, before in base.items():
        key = f"base_model.model.{name.removesuffix('.weight')}"
        if f"{key}.lora_A.weight" not in tensors:
            assert torch.equal(merged[name], before)
            continue
        a, b = (tensors[f"{key}.lora_{k}.weight"].double() for k in "AB")
        alpha = 7 if fields.get("alpha_pattern") and "q_proj" in name else 5
        scale = alpha / len(a) ** (0.5 if fields.get("use_rslora") else 1.0)
        after = before.double() + scale * b @ a
        if fields.get("use_dora"):  # Liu et al. 2024: the magnitude of every row is the adapter's
            magnitude = tensors[f"{key}.lora_magnitude_vector"].double()
            after = magnitude[:, None] * after / after.norm(dim=1, keepdim=True)
        assert torch.allclose(merged[name].double(), after, atol=1e-6)
    assert lm.source is not None
    assert "an adapter over" in lm.source.description
    law = lm.law("w5", max_new_tokens=4, block_rows=4)
    x = law.sample(4, seed=0)
    assert np.allclose(law.log_prob(x), x.log_prob, atol=1e-3)


def test_an_adapter_of_another_architecture(tmp_path: Path) -> None:
    """GPT-2's products are stored the other way round."""
    CausalLM(make_gpt2(tied=True), make_tokenizer(64)).save(tmp_path / "gpt2")
    folder = make_adapter(
        tmp_path / "adapter", make_gpt2(tied=True), "somebody/gpt2", target_modules=["c_attn"], fan_in_fan_out=True
    )
    merged = CausalLM.from_pretrained(folder, base=str(tmp_path / "gpt2")).model.state_dict()
    tensors = load_file(folder / "adapter_model.safetensors")
    name = "transformer.h.1.attn.c_attn"
    a, b = (tensors[f"base_model.model.{name}.lora_{k}.weight"] for k in "AB")
    before = make_gpt2(tied=True).state_dict()[f"{name}.weight"]
    assert torch.allclose(merged[f"{name}.weight"], before + 5 / 3 * (b @ a).T, atol=1e-6)


def test_a_tokenizer_of_its_own_is_used(adapter: Path, llama_folder: Path) -> None:
    make_tokenizer(60).save_pretrained(adapter)
    assert CausalLM.from_pretrained(adapter, base=str(llama_folder)).vocab_size == 60


def test_a_tokenizer_of_its_own_is_vetted(adapter: Path, llama_folder: Path) -> None:
    make_tokenizer(60).save_pretrained(adapter)
    (adapter / "tokenizer.more").mkdir()
    load.resolve(str(adapter), base=str(llama_folder))
    path = adapter / "tokenizer_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"vocab_file": "/etc/passwd"}))
    with pytest.raises(ModelError, match="outside the model's folder"):
        load.resolve(str(adapter), base=str(llama_folder))


def test_its_identity_is_of_its_content_and_its_base(adapter: Path, llama_folder: Path, tmp_path: Path) -> None:
    one = load.resolve(str(adapter), base=str(llama_folder)).identity
    copy = tmp_path / "elsewhere"
    shutil.copytree(adapter, copy)
    assert load.resolve(str(copy), base=str(llama_folder)).identity == one
    tensors = load_file(copy / "adapter_model.safetensors")
    save_file({k: v + 1 for k, v in tensors.items()}, copy / "adapter_model.safetensors")
    assert load.resolve(str(copy), base=str(llama_folder)).identity != one


@pytest.mark.parametrize(
    "named",
    ["../../etc", "/etc", "https://example.org/model", "s3://bucket/model", "file:///etc", "..", "a/../b", ".", ""],
)
def test_a_path_or_an_address_in_its_config_is_not_followed(adapter: Path, named: str) -> None:
    change(adapter, base_model_name_or_path=named)
    with pytest.raises(ModelError, match="--base") as caught:
        load.resolve(str(adapter))
    assert "\n" not in str(caught.value)


def test_a_relative_folder_that_looks_like_a_hub_id_is_not_followed(
    adapter: Path, llama_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    shutil.copytree(llama_folder, tmp_path / "somebody" / "base")
    with pytest.raises(ModelError, match="not followed"):
        load.resolve(str(adapter))


def test_a_base_that_is_not_to_be_had_is_named(adapter: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(load, "_resolve_hub", lambda source, revision: load.resolve(f"/nowhere/{source}"))
    with pytest.raises(ModelError, match=r"somebody/base.*--base"):
        load.resolve(str(adapter))


def test_another_base_is_refused_and_the_right_one_named(adapter: Path, tmp_path: Path) -> None:
    CausalLM(make_llama(hidden_size=16), make_tokenizer(64)).save(tmp_path / "narrow")
    with pytest.raises(ModelError, match=r"does not fit.*made for 'somebody/base'"):
        load.resolve(str(adapter), base=str(tmp_path / "narrow"))
    CausalLM(make_gpt2(tied=True), make_tokenizer(64)).save(tmp_path / "gpt2")
    with pytest.raises(ModelError, match=r"does not fit.*made for 'somebody/base'"):
        load.resolve(str(adapter), base=str(tmp_path / "gpt2"))
    change(adapter, base_model_name_or_path=None)
    with pytest.raises(ModelError, match="does not say which model"):
        load.resolve(str(adapter), base=str(adapter))


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"peft_type": "PREFIX_TUNING"}, "only LoRA"),
        ({"peft_type": None}, "only LoRA"),
        ({"megatron_config": {"a": 1}, "megatron_core": "os"}, "megatron_config"),
        ({"layer_replication": [[0, 2]]}, "layer_replication"),
        ({"modules_to_save": ["(a+)+$"]}, "plain names"),
        ({"modules_to_save": "lm_head"}, "plain names"),
        ({"alpha_pattern": {"(.*)*": 3}}, "plain names"),
        ({"lora_alpha": "many"}, "no number"),
        ({"use_dora": "yes"}, "no flags"),
        ({"bias": "../x"}, "no flags"),
    ],
)
def test_a_config_that_says_too_much_is_refused(
    adapter: Path, llama_folder: Path, fields: dict[str, Any], words: str
) -> None:
    change(adapter, **fields)
    with pytest.raises(ModelError, match=words) as caught:
        load.resolve(str(adapter), base=str(llama_folder))
    assert "\n" not in str(caught.value)


def test_patterns_and_parent_modules_in_the_config_are_never_used(adapter: Path, llama_folder: Path) -> None:
    """What is adapted is read from the weights, so what the config says of it cannot matter."""
    plain = CausalLM.from_pretrained(adapter, base=str(llama_folder)).model.state_dict()
    auto = {"base_model_class": "x", "parent_library": "os"}
    change(adapter, target_modules="(a|a)*$", r=10**9, auto_mapping=auto, init_lora_weights="pissa_niter_1")
    again = CausalLM.from_pretrained(adapter, base=str(llama_folder)).model.state_dict()
    assert all(torch.equal(plain[k], again[k]) for k in plain)


def test_weights_that_are_pickled_missing_broken_or_of_no_adapter(adapter: Path, llama_folder: Path) -> None:
    weights = adapter / "adapter_model.safetensors"
    kept = weights.read_bytes()
    weights.write_bytes(b"\xff" * 64)
    with pytest.raises(ModelError, match="is not sound"):
        load.resolve(str(adapter), base=str(llama_folder))
    save_file({"a": torch.zeros(2)}, weights)
    with pytest.raises(ModelError, match="no LoRA weights"):
        load.resolve(str(adapter), base=str(llama_folder))
    weights.unlink()
    with pytest.raises(ModelError, match="holds no adapter_model"):
        load.resolve(str(adapter), base=str(llama_folder))
    (adapter / "adapter_model.bin").write_bytes(kept)
    with pytest.raises(ModelError, match="pickled"):
        load.resolve(str(adapter), base=str(llama_folder))
    (adapter / "adapter_config.json").write_text("[1]")
    with pytest.raises(ModelError, match="holds no configuration"):
        load.resolve(str(adapter), base=str(llama_folder))
    (adapter / "adapter_config.json").write_text("{" * 10_000)
    with pytest.raises(ModelError, match="cannot be read"):
        load.resolve(str(adapter), base=str(llama_folder))
