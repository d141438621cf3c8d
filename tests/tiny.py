"""Tiny random models with an in-memory word-level tokenizer."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")

from tokenizers import Tokenizer, decoders, models, pre_tokenizers  # noqa: E402
from transformers import (  # noqa: E402
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen2ForCausalLM,
)

TEMPLATE = (
    "{% for m in messages %}<bos> {{ m['role'] }} {{ m['content'] }} <eos> {% endfor %}"
    "{% if add_generation_prompt %}<bos> assistant{% endif %}"
)


def make_tokenizer(size: int, template: str | None = TEMPLATE) -> PreTrainedTokenizerFast:
    """<bos> 0, <eos> 1 (also the padding), <unk> 2, then words w3 w4 ..., and the chat roles where there is room."""
    words = ["<bos>", "<eos>", "<unk>", *(f"w{i}" for i in range(3, size))]
    if size >= 16:
        words[-2:] = ["user", "assistant"]
    inner = Tokenizer(models.WordLevel({w: i for i, w in enumerate(words)}, unk_token="<unk>"))
    inner.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=inner, bos_token="<bos>", eos_token="<eos>", unk_token="<unk>", pad_token="<eos>"
    )
    tokenizer.chat_template = template
    return tokenizer


def make_merging_tokenizer() -> PreTrainedTokenizerFast:
    """<bos> 0, <eos> 1, <unk> 2, a b c, and merges ab bc abc: many strings of ids are not what their text gives."""
    tokens = ["<bos>", "<eos>", "<unk>", "a", "b", "c", "ab", "bc", "abc"]
    merges = [("a", "b"), ("b", "c"), ("ab", "c")]
    inner = Tokenizer(models.BPE({t: i for i, t in enumerate(tokens)}, merges, unk_token="<unk>"))
    inner.decoder = decoders.Fuse()
    return PreTrainedTokenizerFast(
        tokenizer_object=inner, bos_token="<bos>", eos_token="<eos>", unk_token="<unk>", pad_token="<eos>"
    )


def make_llama(vocab: int = 64, layers: int = 3, seed: int = 0, **fields: object) -> LlamaForCausalLM:
    config = LlamaConfig(
        **{
            "vocab_size": vocab,
            "hidden_size": 32,
            "intermediate_size": 48,
            "num_hidden_layers": layers,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "max_position_embeddings": 128,
            "bos_token_id": 0,
            "eos_token_id": 1,
            "initializer_range": 0.4,
            **fields,
        }
    )
    torch.manual_seed(seed)
    return LlamaForCausalLM(config)


def make_gpt2(tied: bool, **fields: object) -> GPT2LMHeadModel:
    config = GPT2Config(
        vocab_size=64, n_embd=32, n_layer=3, n_head=4, n_positions=64, bos_token_id=0, eos_token_id=1,
        tie_word_embeddings=tied, initializer_range=0.2, **fields,
    )  # fmt: skip
    torch.manual_seed(1)
    return GPT2LMHeadModel(config)


def make_qwen2() -> Qwen2ForCausalLM:
    config = Qwen2Config(
        vocab_size=80, hidden_size=32, intermediate_size=48, num_hidden_layers=3, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=64, bos_token_id=0, eos_token_id=1, initializer_range=0.3,
    )  # fmt: skip
    torch.manual_seed(2)
    return Qwen2ForCausalLM(config)


def write_gguf(
    path: Path,
    *,
    without: str | None = None,
    more: dict[str, Any] | None = None,
    end: int = 1,
    factor: float | None = None,
) -> Path:
    """Write a Llama of one layer with a tokenizer of bytes, float32; `more` are tensors besides."""
    import gguf

    tokens = [*sorted(pre_tokenizers.ByteLevel.alphabet()), "ab", "<s>", "<|endoftext|>"]
    w = gguf.GGUFWriter(str(path), "llama")
    w.add_context_length(64)
    w.add_embedding_length(16)
    w.add_block_count(1)
    w.add_feed_forward_length(24)
    w.add_head_count(2)
    w.add_head_count_kv(2)
    w.add_layer_norm_rms_eps(1e-5)
    w.add_rope_dimension_count(8)
    if factor is not None:
        w.add_rope_scaling_type(gguf.RopeScalingType.YARN)
        w.add_rope_scaling_factor(factor)
    w.add_vocab_size(len(tokens))
    w.add_tokenizer_model("gpt2")
    w.add_token_list(tokens)
    w.add_token_merges(["a b"])
    w.add_token_types([1] * (len(tokens) - 2) + [3, 3])
    w.add_bos_token_id(len(tokens) - 2)
    w.add_eos_token_id(end)
    shapes = {
        "token_embd": (len(tokens), 16), "output": (len(tokens), 16), "output_norm": (16,), "blk.0.attn_norm": (16,),
        "blk.0.ffn_norm": (16,), "blk.0.attn_q": (16, 16), "blk.0.attn_k": (16, 16), "blk.0.attn_v": (16, 16),
        "blk.0.attn_output": (16, 16), "blk.0.ffn_gate": (24, 16), "blk.0.ffn_up": (24, 16), "blk.0.ffn_down": (16, 24),
    }  # fmt: skip
    rng = np.random.default_rng(0)
    for name, shape in shapes.items():
        if name != without:
            w.add_tensor(f"{name}.weight", rng.normal(size=shape).astype(np.float32))
    for name, values in (more or {}).items():
        w.add_tensor(name, values)
    w.write_header_to_file()
    w.write_kv_data_to_file()
    w.write_tensors_to_file()
    w.close()
    return path
