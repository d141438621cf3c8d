"""Where answers end is one set in the library, in a run and under `judge`, found in transformers' order."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")

from transformers import AutoConfig, AutoModelForCausalLM  # noqa: E402

from hydrometer.core.errors import ModelError  # noqa: E402
from hydrometer.models.causal_lm.family import CAUSAL_LM  # noqa: E402
from hydrometer.models.causal_lm.inference.model import CausalLM  # noqa: E402
from hydrometer.models.causal_lm.loading import load  # noqa: E402
from hydrometer.models.causal_lm.pretrained.existing import find_model  # noqa: E402
from hydrometer.models.causal_lm.spec import CausalLMChain  # noqa: E402
from hydrometer.run.judging.judging import judge_models  # noqa: E402
from tiny import make_llama, make_tokenizer, write_gguf  # noqa: E402

GENERATION, CONFIG = "generation_config.json", "config.json"


def edit(file: Path, change: Callable[[dict[str, Any]], object]) -> None:
    fields = json.loads(file.read_text())
    change(fields)
    file.write_text(json.dumps(fields))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Three ends that differ: 10 and 11 to generate with, 20 in the config, 1 of the tokenizer."""
    made = tmp_path / "m"
    CausalLM(make_llama(layers=1), make_tokenizer(64)).save(made)
    edit(made / GENERATION, lambda c: c.update(eos_token_id=[11, 10]))
    edit(made / CONFIG, lambda c: c.update(eos_token_id=20))
    return made


def everywhere(source: Path, **more: Any) -> set[tuple[int, ...]]:
    """The stop set by every way there is."""
    chain = CausalLMChain.model_validate(
        {"truth": {"source": str(source), "max_new_tokens": 2, "prompts": "w5"}, "teacher": "truth",
         "student": {"init": "truth"}, "selectivity": [{"temperature": 1}], "threads": 1}
    )  # fmt: skip
    lm = CausalLM.from_pretrained(source, **more)
    known: Any = CAUSAL_LM.truth_identity(chain)["stop_ids"] if not more else lm.stop_ids
    truth = CAUSAL_LM.truth(chain, "float32").stop_ids if not more else lm.stop_ids
    return {
        lm.stop_ids, lm.law("w5", max_new_tokens=2).stop_ids, find_model(str(source), **more).stop_ids, tuple(known),
        truth,
    }  # fmt: skip


def test_each_file_stands_in_for_the_one_before(folder: Path) -> None:
    assert everywhere(folder) == {(10, 11)}
    edit(folder / GENERATION, lambda c: c.pop("eos_token_id"))
    assert everywhere(folder) == {(20,)}
    (folder / GENERATION).unlink()
    assert everywhere(folder) == {(20,)}
    edit(folder / CONFIG, lambda c: c.update(eos_token_id=[21, 20]))
    assert everywhere(folder) == {(20, 21)}
    edit(folder / CONFIG, lambda c: c.update(eos_token_id=None))
    assert everywhere(folder) == {(1,)}
    edit(folder / CONFIG, lambda c: c.pop("eos_token_id"))  # for which Llama's class would say 2
    assert everywhere(folder) == {(1,)}
    edit(folder / "tokenizer_config.json", lambda c: c.update(eos_token=None))
    assert everywhere(folder) == {()}


def test_a_file_that_names_ends_beyond_the_vocabulary_is_still_the_one_that_counts(folder: Path) -> None:
    edit(folder / GENERATION, lambda c: c.update(eos_token_id=[11, 64, -1]))
    assert everywhere(folder) == {(11,)}
    edit(folder / GENERATION, lambda c: c.update(eos_token_id=99))
    assert everywhere(folder) == {()}


@pytest.mark.parametrize("ends", ["x", [1, None], 1.5, True])
def test_ends_that_are_no_ids_are_refused(folder: Path, ends: object) -> None:
    (folder / GENERATION).unlink()
    edit(folder / CONFIG, lambda c: c.update(eos_token_id=ends))
    with pytest.raises(ModelError) as caught:
        find_model(str(folder))
    assert "\n" not in str(caught.value)


def test_transformers_finds_no_other(folder: Path) -> None:
    for _ in range(2):
        found: Any = AutoModelForCausalLM.from_pretrained(folder).generation_config.eos_token_id
        assert everywhere(folder) == {tuple(sorted(found if isinstance(found, list) else [found]))}
        (folder / GENERATION).unlink(missing_ok=True)


def test_a_config_within_the_config(tmp_path: Path) -> None:
    text = {"vocab_size": 64, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 1, "head_dim": 8,
            "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 64,
            "eos_token_id": [30, 31]}  # fmt: skip
    sight = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2,
             "image_size": 16, "patch_size": 8}  # fmt: skip
    network = AutoModelForCausalLM.from_config(AutoConfig.for_model("gemma3", text_config=text, vision_config=sight))
    network.save_pretrained(tmp_path / "m")
    make_tokenizer(64).save_pretrained(tmp_path / "m")
    (tmp_path / "m" / GENERATION).unlink()
    assert everywhere(tmp_path / "m") == {(30, 31)}
    edit(tmp_path / "m" / CONFIG, lambda c: c.update(eos_token_id=40))
    assert everywhere(tmp_path / "m") == {(40,)}


def test_what_is_saved_ends_where_it_did(folder: Path, tmp_path: Path) -> None:
    (folder / GENERATION).unlink()
    CausalLM.from_pretrained(folder).save(tmp_path / "again")
    assert everywhere(tmp_path / "again") == {(20,)}


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")
def test_an_adapter_ends_where_its_base_does(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    peft = pytest.importorskip("peft")
    (folder / GENERATION).unlink()
    options = peft.LoraConfig(task_type="CAUSAL_LM", target_modules=["q_proj"], init_lora_weights=False)
    peft.get_peft_model(make_llama(layers=1), options).save_pretrained(tmp_path / "adapter")
    edit(tmp_path / "adapter" / "adapter_config.json", lambda c: c.update(base_model_name_or_path="somebody/base"))
    assert everywhere(tmp_path / "adapter", base=str(folder)) == {(20,)}
    # In a run the adapter names its base, by an id of the hub.
    monkeypatch.setattr(load, "_resolve_hub", lambda source, revision: load.resolve(str(folder)))
    assert everywhere(tmp_path / "adapter") == {(20,)}


def test_judge_stops_there(folder: Path, tmp_path: Path) -> None:
    """With half of all ids as ends, half of the answers' first tokens are one."""
    (folder / GENERATION).unlink()
    edit(folder / CONFIG, lambda c: c.update(eos_token_id=list(range(0, 64, 2))))
    result = judge_models([folder], truth=folder, answers_per_prompt=128, max_new_tokens=2, out=tmp_path / "out")
    judged = result.results["summary"]["groups"]["judge.truth"]["metrics"]["eos_rate"]["value"]
    stopped = CausalLM.from_pretrained(folder).law(max_new_tokens=2).sample(512, seed=0).stopped
    assert judged > 0.2
    assert judged == pytest.approx(float(stopped.mean()), abs=5 * (0.25 / 128 + 0.25 / 512) ** 0.5)


def test_a_gguf_file_ends_where_it_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HYDROMETER_CACHE", str(tmp_path / "cache"))
    assert everywhere(write_gguf(tmp_path / "m.gguf", end=5)) == {(5,)}
