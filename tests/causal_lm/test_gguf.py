"""GGUF files: what transformers leaves out of one, or fills with random numbers, is refused and named."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from hydrometer.core.errors import ModelError  # noqa: E402
from hydrometer.models.causal_lm.cost.operations import shape_of  # noqa: E402
from hydrometer.models.causal_lm.inference.model import CausalLM  # noqa: E402
from hydrometer.models.causal_lm.inference.opened import vocabulary_hash  # noqa: E402
from hydrometer.models.causal_lm.loading import load  # noqa: E402
from tiny import write_gguf  # noqa: E402


def kept(tmp_path: Path) -> list[str]:
    """What of GGUF files lies in the cache, leftovers included."""
    return sorted(f.name.rpartition("-")[2] for f in (tmp_path / "cache" / "models").iterdir())


@pytest.mark.parametrize(
    ("without", "named"),
    [("blk.0.ffn_up", "model.layers.0.mlp.up_proj.weight"), ("blk.0.attn_q", "model.layers.0.self_attn.q_proj.weight"),
     ("token_embd", "model.embed_tokens.weight")],
)  # fmt: skip
def test_a_gguf_file_without_a_tensor_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, without: str, named: str
) -> None:
    monkeypatch.setenv("HYDROMETER_CACHE", str(tmp_path / "cache"))
    with pytest.raises(ModelError, match=rf"missing \({named}\); got '.*m\.gguf'"):
        load.read_weights(load.resolve(str(write_gguf(tmp_path / "m.gguf", without=without))))
    assert kept(tmp_path) == ["outline"]


@pytest.mark.parametrize("name", ["blk.0.attn_q.bias", "blk.1.attn_q.weight", "mystery", "rope_freqs.weight"])
def test_a_tensor_of_a_gguf_file_that_transformers_leaves_out_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.setenv("HYDROMETER_CACHE", str(tmp_path / "cache"))
    file = write_gguf(tmp_path / "m.gguf", more={name: np.full(4, 2, np.float32)})
    with pytest.raises(ModelError, match=rf"not the network's \({name}\); got '.*m\.gguf'"):
        load.read_weights(load.resolve(str(file)))
    assert kept(tmp_path) == ["outline"]


def test_a_gguf_file_that_scales_what_the_network_does_not(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HYDROMETER_CACHE", str(tmp_path / "cache"))
    with pytest.raises(ModelError, match="scales its rotary embedding"):
        load.read_weights(load.resolve(str(write_gguf(tmp_path / "m.gguf", factor=4.0))))
    load.read_weights(load.resolve(str(write_gguf(tmp_path / "plain.gguf", factor=1.0))))


def test_rotary_factors_of_one_are_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HYDROMETER_CACHE", str(tmp_path / "cache"))
    load.read_weights(
        load.resolve(str(write_gguf(tmp_path / "m.gguf", more={"rope_freqs.weight": np.ones(4, np.float32)})))
    )


def test_weights_are_de_quantised_when_they_are_wanted_and_not_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HYDROMETER_CACHE", str(tmp_path / "cache"))
    file = write_gguf(tmp_path / "m.gguf")
    found = load.resolve(str(file))
    before = load.outline(found)
    assert kept(tmp_path) == ["outline"]
    lm = CausalLM.open(found, dtype="float32", device="cpu")
    assert kept(tmp_path) == ["outline", "whole"]
    again = load.resolve(str(file))
    after = load.outline(again)
    assert found.identity == again.identity
    assert shape_of(before.config) == shape_of(after.config)
    assert shape_of(before.config).parameters == lm.n_parameters
    assert vocabulary_hash(before.tokenizer) == vocabulary_hash(after.tokenizer) == lm.vocabulary_hash
    assert before.generation_config.eos_token_id == after.generation_config.eos_token_id
