"""Every tensor of a file is accounted for: what is missing, has no place or another shape is refused, and named."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")

from safetensors.torch import load_file, save_file  # noqa: E402
from transformers import (  # noqa: E402
    AutoModelForCausalLM,
    GPTNeoConfig,
    GPTNeoForCausalLM,
    MixtralConfig,
    MixtralForCausalLM,
)

from hydrometer.core.errors import ModelError  # noqa: E402
from hydrometer.models.causal_lm.data.prompts import Prompts  # noqa: E402
from hydrometer.models.causal_lm.family import CAUSAL_LM  # noqa: E402
from hydrometer.models.causal_lm.given import GIVEN, GivenModel, JudgedModels  # noqa: E402
from hydrometer.models.causal_lm.inference.model import CausalLM  # noqa: E402
from hydrometer.models.causal_lm.loading import load  # noqa: E402
from hydrometer.models.causal_lm.pretrained.adopt import open_adopted  # noqa: E402
from hydrometer.models.causal_lm.pretrained.existing import find_model  # noqa: E402
from hydrometer.models.causal_lm.spec import CausalLMChain  # noqa: E402
from tiny import make_gpt2, make_llama, make_tokenizer  # noqa: E402

State = dict[str, Any]
DOWN = "model.layers.1.mlp.down_proj.weight"
Q = "model.layers.0.self_attn.q_proj"


def write(folder: Path, network: Any) -> Path:
    CausalLM(network, make_tokenizer(64)).save(folder)
    return folder


def spoil(source: Path, folder: Path, change: Callable[[State], State] | None = None, **config: object) -> Path:
    shutil.copytree(source, folder)
    if change is not None:
        weights = folder / "model.safetensors"
        state = {k: v.contiguous() for k, v in change(load_file(weights)).items()}
        save_file(state, weights, {"format": "pt"})
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | config))
    return folder


def within(state: State, before: str, text: str) -> State:
    """Put a text into the names, behind `before`."""
    return {k.replace(before, before + text, 1): v for k, v in state.items()}


SPOILT: dict[str, tuple[Callable[[State], State] | None, dict[str, object], tuple[str, ...]]] = {
    "compiled": (
        lambda s: {f"_orig_mod.{k}": v for k, v in s.items()}, {},
        ("30 tensors are missing (lm_head.weight,", "not the network's (_orig_mod.lm_head.", "take '_orig_mod.' "),
    ),
    "in parallel": (lambda s: {f"module.{k}": v for k, v in s.items()}, {}, ("take 'module.' out of the names",)),
    "compiled in parallel": (
        lambda s: {f"module._orig_mod.{k}": v for k, v in s.items()}, {}, ("take 'module._orig_mod.' out",)
    ),
    "sharded": (
        lambda s: within(s, "layers.1.", "_fsdp_wrapped_module."), {}, ("take '_fsdp_wrapped_module.' out",)
    ),
    "under peft": (
        lambda s: {f"base_model.model.{k}": v for k, v in s.items()}, {}, ("take 'base_model.model.' out",)
    ),
    "with factors": (
        lambda s: within(s, "q_proj.", "base_layer.") | {f"{Q}.lora_A.default.weight": torch.ones(2, 32)}, {},
        ("3 tensors are missing", f"{Q}.base_layer.weight", "merge the adapter"),
    ),
    "quantised": (
        lambda s: {k.replace("up_proj.weight", "up_proj.qweight"): v for k, v in s.items()}, {},
        ("up_proj.qweight", "dequantised"),
    ),
    "scales left over": (lambda s: s | {f"{Q}.weight_scale": torch.ones(1)}, {}, ("weight_scale", "dequantised")),
    "no head": (
        lambda s: {k: v for k, v in s.items() if k != "lm_head.weight"}, {},
        ("1 tensor is missing (lm_head.weight)", "tie_word_embeddings"),
    ),
    "one missing": (lambda s: {k: v for k, v in s.items() if k != DOWN}, {}, (f"1 tensor is missing ({DOWN})",)),
    "one too many": (
        lambda s: s | {"v_head.weight": torch.ones(1, 32)}, {}, ("1 tensor is not the network's (v_head.weight)",)
    ),
    "fewer layers": (None, {"num_hidden_layers": 2}, ("model.layers.2.", "it says 2, the file holds 3")),
    "more layers": (None, {"num_hidden_layers": 5}, ("model.layers.3.", "it says 5, the file holds 3")),
    "other shapes": (
        None, {"intermediate_size": 40}, ("9 of another shape", "mlp.down_proj.weight: [32, 48] where [32, 40]")
    ),
    "another vocabulary": (None, {"vocab_size": 70}, ("2 of another shape", "lm_head.weight: [64, 32] where [70, 32]")),
    "integers": (
        lambda s: {k: (v * 100).to(torch.int8) if k == DOWN else v for k, v in s.items()}, {},
        ("no floating-point numbers", f"{DOWN} is I8", "dequantised"),
    ),
    "flags": (lambda s: s | {DOWN: s[DOWN] > 0}, {}, (f"{DOWN} is BOOL",)),
    "NaN": (lambda s: s | {DOWN: s[DOWN] * torch.nan}, {}, (f"1 tensor of the weights holds NaN or infinity ({DOWN}",)),
    "infinity": (
        lambda s: s | {k: s[k].index_fill(0, torch.tensor([1]), torch.inf) for k in (DOWN, "lm_head.weight")}, {},
        ("2 tensors of the weights hold NaN or infinity (", DOWN),
    ),
    "biases wanted": (None, {"attention_bias": True}, ("12 tensors are missing", "attention_bias")),
    "a bias too many": (lambda s: s | {f"{Q}.bias": torch.ones(32)}, {}, (f"{Q}.bias", "attention_bias")),
}  # fmt: skip


@pytest.mark.parametrize("name", SPOILT)
def test_tensors_that_are_not_the_networks_are_named(tmp_path: Path, llama_folder: Path, name: str) -> None:
    change, config, words = SPOILT[name]
    folder = spoil(llama_folder, tmp_path / "bad", change, **config)
    with pytest.raises(ModelError) as caught:
        CausalLM.from_pretrained(folder)
    said = str(caught.value)
    assert "\n" not in said
    assert all(w in said for w in words), said


def test_no_way_to_open_a_model_leads_around_it(tmp_path: Path, llama_folder: Path, llama: CausalLM) -> None:
    folder = spoil(llama_folder, tmp_path / "bad", lambda s: {k: v for k, v in s.items() if k != DOWN})
    truth = llama.law("w5", max_new_tokens=2)
    chain = CausalLMChain.model_validate(
        {"truth": {"source": str(folder), "max_new_tokens": 2, "prompts": "w5"}, "teacher": "truth",
         "student": {"init": {"source": str(folder)}}, "selectivity": [{"temperature": 1}], "threads": 1}
    )  # fmt: skip
    stored = tmp_path / "stored"
    CAUSAL_LM.save_law(truth, stored)
    save_file({k: v for k, v in load_file(stored / "model.safetensors").items() if k != DOWN},
              stored / "model.safetensors", {"format": "pt"})  # fmt: skip

    identity = find_model(str(folder)).resolved.identity
    model = GivenModel("bad", str(folder), None, identity, 1.0, Prompts(((5,),), ("w5",)), (1,), 2)
    judged = JudgedModels(models=(model,), rows=8, block_rows=8, threads=1, dtype="float32", device="cpu")
    ways = [
        lambda: CausalLM.from_pretrained(folder, dtype="bfloat16"),
        lambda: CAUSAL_LM.truth(chain, "float32"),
        lambda: CAUSAL_LM.load_law(stored, chain, "float32"),
        lambda: open_adopted(str(folder), None, truth),
        lambda: GIVEN.open_given(judged, "model bad", "float32"),
    ]  # fmt: skip
    for way in ways:
        with pytest.raises(ModelError, match=rf"missing \({DOWN}\)"):
            way()


def test_shards_are_counted_as_one_file_is(tmp_path: Path) -> None:
    make_llama().save_pretrained(tmp_path / "m", max_shard_size="20KB")
    make_tokenizer(64).save_pretrained(tmp_path / "m")
    whole = CausalLM.from_pretrained(tmp_path / "m").model.state_dict()
    assert all(torch.equal(v, whole[k]) for k, v in make_llama().state_dict().items())
    index = json.loads((tmp_path / "m" / "model.safetensors.index.json").read_text())["weight_map"]
    shard = tmp_path / "m" / index[DOWN]
    assert len(set(index.values())) > 2
    state = load_file(shard)
    save_file({f"module.{k}" if k == DOWN else k: v for k, v in state.items()}, shard, {"format": "pt"})
    with pytest.raises(ModelError, match=rf"missing \({DOWN}\).*not the network's \(module\.{DOWN}\)"):
        CausalLM.from_pretrained(tmp_path / "m")


def test_a_tensor_in_two_shards_is_refused(tmp_path: Path) -> None:
    make_llama().save_pretrained(tmp_path / "m", max_shard_size="20KB")
    make_tokenizer(64).save_pretrained(tmp_path / "m")
    index = json.loads((tmp_path / "m" / "model.safetensors.index.json").read_text())["weight_map"]
    other = tmp_path / "m" / next(f for f in index.values() if f != index[DOWN])
    state = load_file(other)
    save_file(state, tmp_path / "m" / "of-another-model.safetensors", {"format": "pt"})  # which the index does not name
    CausalLM.from_pretrained(tmp_path / "m")
    save_file(state | {DOWN: torch.ones(32, 48)}, other, {"format": "pt"})
    with pytest.raises(ModelError, match=f"two files of the weights hold the tensor {DOWN}"):
        CausalLM.from_pretrained(tmp_path / "m")


@pytest.mark.parametrize("kind", [torch.float16, torch.float64, torch.float8_e4m3fn])
def test_floating_point_numbers_of_any_kind_are_read(tmp_path: Path, llama_folder: Path, kind: torch.dtype) -> None:
    folder = spoil(llama_folder, tmp_path / "cast", lambda s: {k: v.to(kind) for k, v in s.items()})
    opened = CausalLM.from_pretrained(folder).model.state_dict()
    assert all(
        torch.equal(opened[k], v.to(kind).float()) for k, v in load_file(llama_folder / "model.safetensors").items()
    )


def test_what_is_no_fault_opens(tmp_path: Path, llama_folder: Path) -> None:
    """Ties written once, under either name; buffers of older releases; a body that is named without its prefix."""
    buffers = {f"model.layers.{i}.self_attn.rotary_emb.inv_freq": torch.ones(4) for i in range(3)}
    buffers["model.layers.0.self_attn.masked_bias"] = torch.ones(())
    tied = write(tmp_path / "tied", make_llama(tie_word_embeddings=True))
    gpt2 = write(tmp_path / "gpt2", make_gpt2(tied=True))
    masks = {"transformer.h.0.attn.bias": torch.ones(1, 1, 4, 4), "transformer.h.0.attn.masked_bias": torch.ones(())}
    cases: list[tuple[Path, Callable[[State], State]]] = [
        (llama_folder, lambda s: s | buffers),
        (tied, lambda s: {k: v for k, v in s.items() if k != "lm_head.weight"}),
        (tied, lambda s: {k.replace("model.embed_tokens", "lm_head"): v for k, v in s.items()}),
        (tied, lambda s: s | {"lm_head.weight": s["model.embed_tokens.weight"].clone()}),
        (gpt2, lambda s: s | masks),
        (gpt2, lambda s: {k.removeprefix("transformer."): v for k, v in s.items()}),
    ]
    for i, (source, change) in enumerate(cases):
        opened = CausalLM.from_pretrained(spoil(source, tmp_path / f"case{i}", change)).model.state_dict()
        right = AutoModelForCausalLM.from_pretrained(source, dtype=torch.float32).state_dict()
        assert opened.keys() == right.keys()
        assert all(torch.equal(opened[k], v) for k, v in right.items())


def test_a_buffer_that_the_network_computes_may_be_in_the_file(tmp_path: Path) -> None:
    """Masks that GPT-Neo's first releases saved; what is in the file does not matter."""
    config = GPTNeoConfig(
        vocab_size=64, hidden_size=16, num_layers=2, num_heads=2, attention_types=[[["global"], 2]],
        max_position_embeddings=32, bos_token_id=0, eos_token_id=1,
    )  # fmt: skip
    folder = write(tmp_path / "m", GPTNeoForCausalLM(config))
    mask = "transformer.h.1.attn.attention.bias"
    CausalLM.from_pretrained(spoil(folder, tmp_path / "again", lambda s: s | {mask: torch.zeros(1, 1, 32, 32)}))
    elsewhere = mask.replace("h.1", "h.2")
    bad = spoil(folder, tmp_path / "bad", lambda s: s | {elsewhere: torch.zeros(1, 1, 32, 32)})
    with pytest.raises(ModelError, match=r"transformer\.h\.2"):
        CausalLM.from_pretrained(bad)


def test_a_head_of_its_own_beside_a_config_that_ties(tmp_path: Path) -> None:
    """transformers then uses both matrices; so does what is saved and made of the model."""
    tied = write(tmp_path / "tied", make_llama(tie_word_embeddings=True))
    head = torch.linspace(-1, 1, 64 * 32).reshape(64, 32)
    lm = CausalLM.from_pretrained(spoil(tied, tmp_path / "both", lambda s: s | {"lm_head.weight": head}))
    ids = torch.arange(5)[None]
    with torch.no_grad():
        right = AutoModelForCausalLM.from_pretrained(tmp_path / "both", dtype=torch.float32)(ids).logits
        assert torch.allclose(lm.model(ids).logits, right, atol=1e-5)
        lm.save(tmp_path / "saved")
        assert not json.loads((tmp_path / "saved" / "config.json").read_text())["tie_word_embeddings"]
        assert torch.allclose(CausalLM.from_pretrained(tmp_path / "saved").model(ids).logits, right, atol=1e-5)


def test_an_expert_that_is_missing_is_named(tmp_path: Path) -> None:
    config = MixtralConfig(
        vocab_size=64, hidden_size=16, intermediate_size=24, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=2, num_local_experts=3, num_experts_per_tok=1, bos_token_id=0, eos_token_id=1,
        max_position_embeddings=32,
    )  # fmt: skip
    folder = write(tmp_path / "m", MixtralForCausalLM(config))
    experts = "model.layers.1.block_sparse_moe.experts"
    for n, gone in enumerate((f"{experts}.1.w1.weight", f"{experts}.0.")):
        bad = spoil(
            folder, tmp_path / f"bad{n}", lambda s, gone=gone: {k: v for k, v in s.items() if not k.startswith(gone)}
        )
        with pytest.raises(ModelError, match=rf"lack .* of experts: {gone}"):
            load.resolve(str(bad))
    last = spoil(folder, tmp_path / "last", lambda s: {k: v for k, v in s.items() if f"{experts}.2." not in k})
    with pytest.raises(ModelError, match=r"mlp\.experts\.down_proj: \[2, 16, 24\] where \[3, 16, 24\]"):
        CausalLM.from_pretrained(last)
    CausalLM.from_pretrained(folder)
