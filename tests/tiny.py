"""Tiny random models with an in-memory word-level tokenizer."""

from __future__ import annotations

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


def make_gpt2(tied: bool) -> GPT2LMHeadModel:
    config = GPT2Config(
        vocab_size=64, n_embd=32, n_layer=3, n_head=4, n_positions=64, bos_token_id=0, eos_token_id=1,
        tie_word_embeddings=tied, initializer_range=0.2,
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
