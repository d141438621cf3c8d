"""PEFT adapters: merged as the formula says; and those that are not to be trusted, or do not fit."""

from __future__ import annotations

import json
import shutil
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")
peft = pytest.importorskip("peft")

from safetensors.torch import load_file, save_file  # noqa: E402
from transformers import AutoModelForCausalLM  # noqa: E402

from hydrometer.core.errors import ModelError  # noqa: E402
from hydrometer.models.causal_lm.inference.model import CausalLM  # noqa: E402
from hydrometer.models.causal_lm.loading import load  # noqa: E402
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


@pytest.mark.parametrize("revision", [None, "abc123"])
def test_a_base_is_opened_at_the_revision_that_the_adapter_names(
    adapter: Path, llama_folder: Path, monkeypatch: pytest.MonkeyPatch, revision: str | None
) -> None:
    asked: list[tuple[str, str | None]] = []

    def at_hand(source: str, revision: str | None) -> load.Resolved:
        asked.append((source, revision))
        return load.resolve(str(llama_folder))

    monkeypatch.setattr(load, "_resolve_hub", at_hand)
    change(adapter, revision=revision)
    assert load.resolve(str(adapter)).base == load.resolve(str(llama_folder))
    assert asked == [("somebody/base", revision)]


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
        ({"trainable_token_indices": [1, 2]}, "trainable_token_indices"),
        ({"use_qalora": True}, "use_qalora"),
        ({"a_field_of_tomorrow": {"a": 1}}, "a_field_of_tomorrow"),
        ({"a_field_of_tomorrow": True}, "a_field_of_tomorrow"),
        ({"init_lora_weights": "pissa_niter_1"}, "changing its base's weights"),
        ({"target_modules": ["q_proj", "down_proj", "o_proj"]}, r"missing .*o_proj\.lora_A"),
        ({"init_lora_weights": "olora"}, "changing its base's weights"),
        ({"target_modules": ["q_proj"]}, r"not the network's .*down_proj\.lora_A"),
        ({"layers_to_transform": [99]}, r"not the network's .*q_proj\.lora_A"),
        ({"r": 8}, "have rank 3, the adapter's config says another"),
        ({"r": None}, "have rank 3"),
        ({"rank_pattern": {"q_proj": 2}}, r"q_proj have rank 3.*got \[2\]"),
        ({"lora_alpha": float("inf")}, "NaN or infinity"),
    ],
)
def test_a_config_that_says_too_much_is_refused(
    adapter: Path, llama_folder: Path, fields: dict[str, Any], words: str
) -> None:
    change(adapter, **fields)
    with pytest.raises(ModelError, match=words) as caught:
        CausalLM.from_pretrained(adapter, base=str(llama_folder))
    assert "\n" not in str(caught.value)


def test_patterns_and_parent_modules_in_the_config_are_never_used(adapter: Path, llama_folder: Path) -> None:
    """What is adapted is read from the weights, so what the config says of it cannot matter."""
    plain = CausalLM.from_pretrained(adapter, base=str(llama_folder)).model.state_dict()
    auto = {"base_model_class": "x", "parent_library": "os"}
    for fields in (
        {"target_modules": "(a|a)*$", "auto_mapping": auto},
        {"rank_pattern": {"(e|e)*$": 7}},
        {"layers_pattern": "(b|b)*$"},
        {"exclude_modules": "(c|c)*$", "layers_pattern": [["d"]], "layers_to_transform": {"a": [1]}},
        {"target_modules": {"a": 1}},
        {"target_modules": None},
    ):
        change(adapter, **fields)
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


# -- peft's own forward, unmerged, is what the law must be ----------------------------------------


def make_base(kind: str) -> Any:
    match kind:
        case "llama":
            return make_llama()
        case "tied":
            return make_llama(tie_word_embeddings=True)
        case "biased":
            network = make_llama(attention_bias=True)
            with torch.no_grad():
                for name, p in network.named_parameters():
                    if name.endswith("bias"):
                        p.copy_(torch.linspace(-1, 1, len(p)))
            return network
        case _:
            return make_gpt2(tied=True)


def trained(folder: Path, kind: str, **fields: Any) -> Any:
    """Write a base, and an adapter none of whose weights are as they began; return peft's network of the two."""
    CausalLM(make_base(kind), make_tokenizer(64)).save(folder / "base")
    options = {"r": 4, "lora_alpha": 6, "target_modules": ["q_proj"]} | fields
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # peft's, on ties
        torch.manual_seed(3)
        model = peft.get_peft_model(opened(folder / "base"), peft.LoraConfig(task_type="CAUSAL_LM", **options))
        noise = torch.Generator().manual_seed(4)
        with torch.no_grad():
            for p in model.parameters():
                if p.requires_grad:
                    p.add_(torch.randn(p.shape, generator=noise) * 0.1)
        model.save_pretrained(folder / "adapter")
        return peft.PeftModel.from_pretrained(opened(folder / "base"), folder / "adapter").eval()


def opened(folder: Path) -> Any:
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)


CONFIGS: dict[str, tuple[str, dict[str, Any]]] = {
    "plain": ("llama", {}),
    "rslora": ("llama", {"use_rslora": True}),
    "dora": ("llama", {"use_dora": True, "target_modules": ["q_proj", "down_proj", "lm_head"]}),
    "patterns": ("llama", {"target_modules": ["q_proj", "k_proj", "up_proj"], "rank_pattern": {"k_proj": 2},
                           "alpha_pattern": {"layers.1.self_attn.q_proj": 9, "up_proj": 1}}),
    "every linear": ("llama", {"target_modules": "all-linear"}),
    "a pattern": ("llama", {"target_modules": r".*\.[02]\.(self_attn\.v_proj|mlp\.gate_proj)"}),
    "some layers": ("llama", {"layers_to_transform": [0, 2], "target_modules": ["q_proj", "o_proj"]}),
    "one layer of a list": ("llama", {"layers_to_transform": 1, "layers_pattern": "layers"}),
    "all but some": ("llama", {"exclude_modules": ["model.layers.1.self_attn.q_proj"]}),
    "a head saved": ("llama", {"modules_to_save": ["lm_head"]}),
    "norms saved": ("llama", {"modules_to_save": ["input_layernorm", "norm"]}),
    "biases": ("biased", {"bias": "all", "target_modules": ["q_proj", "o_proj"]}),
    "biases of what is adapted": ("biased", {"bias": "lora_only"}),
    "biases of the factors": ("biased", {"lora_bias": True}),
    "stored the other way round": ("gpt2", {"target_modules": ["c_attn", "c_proj"], "fan_in_fan_out": True}),
    "tied, elsewhere": ("tied", {}),
    "tied, head": ("tied", {"target_modules": ["lm_head"]}),
    "tied, embeddings": ("tied", {"target_modules": ["embed_tokens", "v_proj"]}),
    "tied, both": ("tied", {"target_modules": ["embed_tokens", "lm_head"]}),
    "tied, dora of the head": ("tied", {"target_modules": ["lm_head"], "use_dora": True}),
    "tied, head saved": ("tied", {"modules_to_save": ["lm_head"]}),
    "tied, embeddings saved": ("tied", {"modules_to_save": ["embed_tokens"]}),
    "tied, both saved": ("tied", {"modules_to_save": ["embed_tokens", "lm_head"]}),
    "tied, one adapted and one saved": ("tied", {"target_modules": ["embed_tokens"], "modules_to_save": ["lm_head"]}),
    "tied, under other names": ("gpt2", {"target_modules": ["wte"], "fan_in_fan_out": False}),
}  # fmt: skip


@pytest.mark.parametrize("name", CONFIGS)
def test_the_law_is_pefts_own(tmp_path: Path, name: str) -> None:
    kind, fields = CONFIGS[name]
    right = trained(tmp_path, kind, **fields)
    lm = CausalLM.from_pretrained(tmp_path / "adapter", base=str(tmp_path / "base"), device="cpu")
    law = lm.law("w5 w6", max_new_tokens=6, block_rows=4)
    x = law.sample(4, seed=0)
    scored = law.log_prob(x)
    plain = CausalLM.from_pretrained(tmp_path / "base").law("w5 w6", max_new_tokens=6, block_rows=4).log_prob(x)
    prompt = list(law.prompts.ids[0])
    for i in range(4):
        row = x.row(i).tolist()
        with torch.no_grad():
            logits = right(torch.tensor([prompt + row])).logits[0, :, : lm.vocab_size].double()
        steps = logits.log_softmax(-1)[len(prompt) - 1 : -1]
        assert scored[i] == pytest.approx(float(steps[range(len(row)), row].sum()), abs=1e-3)
    assert np.abs(scored - plain).max() > 0.01  # the adapter does something
    # What is merged is a model like any other: it is saved and opened again as it is.
    lm.save(tmp_path / "merged")
    again = CausalLM.from_pretrained(tmp_path / "merged")
    assert np.allclose(again.law("w5 w6", max_new_tokens=6, block_rows=4).log_prob(x), scored, atol=1e-5)
    assert ("head" in load.resolve(str(tmp_path / "adapter"), base=str(tmp_path / "base")).identity) == (
        name.startswith("tied,") and name != "tied, elsewhere"
    )


def test_a_tie_that_peft_would_keep_is_refused(tmp_path: Path) -> None:
    trained(tmp_path, "tied", target_modules=["embed_tokens"])
    change(tmp_path / "adapter", ensure_weight_tying=True)
    with pytest.raises(ModelError, match="ensure_weight_tying"):
        load.resolve(str(tmp_path / "adapter"), base=str(tmp_path / "base"))


def test_each_of_several_adapters_is_its_own(tmp_path: Path) -> None:
    base = make_llama()
    CausalLM(base, make_tokenizer(64)).save(tmp_path / "base")
    options = {"task_type": "CAUSAL_LM", "target_modules": ["q_proj"], "init_lora_weights": False}
    torch.manual_seed(1)
    model: Any = peft.get_peft_model(opened(tmp_path / "base"), peft.LoraConfig(r=2, **options))
    model.add_adapter("other", peft.LoraConfig(r=5, **options))
    model.save_pretrained(tmp_path / "adapter")
    ids = torch.arange(6)[None]
    for name, folder in (("default", tmp_path / "adapter"), ("other", tmp_path / "adapter" / "other")):
        model.set_adapter(name)
        lm = CausalLM.from_pretrained(folder, base=str(tmp_path / "base"))
        with torch.no_grad():
            assert torch.allclose(lm.model(ids).logits, model(ids).logits, atol=1e-4)


Q0 = "base_model.model.model.layers.0.self_attn.q_proj"


@pytest.mark.parametrize(
    ("spoilt", "named"),
    [
        (lambda s: {k: v for k, v in s.items() if k != f"{Q0}.lora_B.weight"}, f"missing ({Q0}.lora_B.weight)"),
        (lambda s: {k: v for k, v in s.items() if k != f"{Q0}.lora_A.weight"}, f"{Q0}.lora_B.weight"),
        (lambda s: {k: v for k, v in s.items() if not k.startswith(Q0)}, f"missing ({Q0}.lora_A)"),
        (lambda s: {k: v for k, v in s.items() if "lm_head" not in k}, "base_model.model.lm_head.weight"),
        (lambda s: s | {f"{Q0}.lora_C.weight": torch.ones(2)}, f"not the network's ({Q0}.lora_C.weight)"),
        (lambda s: s | {f"{Q0}.lora_B.weight": torch.ones(2, 2)}, f"{Q0}.lora_B.weight: [2, 2] where [32, 4]"),
        (lambda s: {k.replace("lora_A.", "lora_A.default."): v for k, v in s.items()}, "holds no LoRA weights"),
        (lambda s: {f"module.{k}": v for k, v in s.items()}, "holds no LoRA weights"),
        (lambda s: {k: v.to(torch.int8) for k, v in s.items()}, "no floating-point numbers"),
        (lambda s: s | {f"{Q0}.lora_B.weight": torch.full((32, 4), torch.nan)}, "layers.0.self_attn.q_proj.weight"),
    ],
)
@pytest.mark.parametrize("targets", [["q_proj", "v_proj"], r".*\.[qv]_proj"])
def test_tensors_that_do_not_fit_are_named(tmp_path: Path, spoilt: Any, named: str, targets: Any) -> None:
    trained(tmp_path, "llama", target_modules=targets, modules_to_save=["lm_head"])
    weights = tmp_path / "adapter" / "adapter_model.safetensors"
    save_file(spoilt(load_file(weights)), weights)
    with pytest.raises(ModelError) as caught:
        CausalLM.from_pretrained(tmp_path / "adapter", base=str(tmp_path / "base"))
    assert named in str(caught.value)
    assert "\n" not in str(caught.value)


def test_an_adapter_over_fewer_layers_is_refused(tmp_path: Path) -> None:
    trained(tmp_path, "llama")
    CausalLM(make_llama(layers=2), make_tokenizer(64)).save(tmp_path / "short")
    with pytest.raises(ModelError, match=r"does not fit.*layers\.2\.self_attn"):
        load.resolve(str(tmp_path / "adapter"), base=str(tmp_path / "short"))
    CausalLM(make_llama(layers=4), make_tokenizer(64)).save(tmp_path / "long")
    with pytest.raises(ModelError, match=r"missing.*layers\.3\.self_attn"):
        load.resolve(str(tmp_path / "adapter"), base=str(tmp_path / "long"))
