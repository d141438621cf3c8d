"""Models of real shapes with random weights, for measurements that need no download."""

from __future__ import annotations

from typing import Any

import torch
import transformers
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from hydrometer.models.causal_lm.inference.model import CausalLM

__all__ = ["SHAPES", "TINY", "random_lm"]

_LLAMA = {"tie_word_embeddings": True, "max_position_embeddings": 2048, "vocab_size": 49152}


def _llama(width: int, inner: int, layers: int, heads: int, groups: int) -> tuple[str, dict[str, Any]]:
    sizes = {"hidden_size": width, "intermediate_size": inner, "num_hidden_layers": layers}
    return "Llama", {**_LLAMA, **sizes, "num_attention_heads": heads, "num_key_value_heads": groups}


TINY = "tiny"
SHAPES: dict[str, tuple[str, dict[str, Any]]] = {
    "SmolLM2-135M": _llama(576, 1536, 30, 9, 3),
    "SmolLM2-360M": _llama(960, 2560, 32, 15, 5),
    "SmolLM2-1.7B": _llama(2048, 8192, 24, 32, 32),
    "Qwen3-0.6B": (
        "Qwen3",
        {**_llama(1024, 3072, 28, 16, 8)[1], "head_dim": 128, "vocab_size": 151936, "rms_norm_eps": 1e-6},
    ),
    TINY: ("Llama", {**_llama(32, 48, 3, 4, 2)[1], "vocab_size": 64, "initializer_range": 0.4}),
}
"""Class of transformers, and fields of its configuration."""


def random_lm(shape: str, device: str, dtype: torch.dtype = torch.float32, *, seed: int = 0, **fields: Any) -> CausalLM:
    """Make a model whose words are ``t0``, ``t1``, ...; id 0 begins and id 1 ends a text."""
    kind, sizes = SHAPES[shape]
    config: Any = getattr(transformers, f"{kind}Config")(**{**sizes, **fields}, bos_token_id=0, eos_token_id=1)
    torch.manual_seed(seed)
    network: Any = getattr(transformers, f"{kind}ForCausalLM")(config)
    words = {f"t{i}": i for i in range(config.vocab_size)}
    inner = Tokenizer(models.WordLevel(words, unk_token="t2"))
    inner.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=inner, bos_token="t0", eos_token="t1", unk_token="t2")
    return CausalLM(network.to(device, dtype), tokenizer)
