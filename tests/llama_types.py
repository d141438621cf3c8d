"""Small networks of every kind that runs as a Llama, and prompts that share much or nothing."""

from __future__ import annotations

import torch
import transformers

from naive import PROMPTS
from tiny import make_llama, make_qwen2

SHARED = "w5 w6 w7 w8 w9 w10 w11 w12 w13"
PROMPT_SETS = {
    "apart": [*PROMPTS, "w20 w21 w22 w23 w24 w25 w26 w27 w28 w29 w30 w31"],
    "shared": [f"{SHARED} w3", f"{SHARED} w14 w15 w16", f"{SHARED} w10", f"{SHARED} w3 w4"],
    "nested": [SHARED, f"{SHARED} w3", f"{SHARED} w3 w4 w5"],
}
SIZES = {
    "vocab_size": 64, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 3, "num_attention_heads": 4,
    "num_key_value_heads": 2, "max_position_embeddings": 128, "bos_token_id": 0, "eos_token_id": 1,
    "initializer_range": 0.4,
}  # fmt: skip


def make(name: str, **fields: object) -> torch.nn.Module:
    torch.manual_seed(3)
    config = getattr(transformers, f"{name}Config")(**SIZES, **fields)
    return getattr(transformers, f"{name}ForCausalLM")(config)


def scrambled(model: torch.nn.Module) -> torch.nn.Module:
    """Norms and biases begin as ones and zeros, which hides mistakes."""
    torch.manual_seed(4)
    with torch.no_grad():
        for p in model.parameters():
            if p.ndim == 1:
                p.add_(0.3 * torch.randn_like(p))
    return model


LLAMA_TYPE = {
    "llama": make_llama,
    "llama-tied": lambda: make_llama(tie_word_embeddings=True, initializer_range=0.2),
    "llama-biases": lambda: make_llama(attention_bias=True, mlp_bias=True),
    "llama-wide-heads": lambda: make_llama(head_dim=24, num_key_value_heads=1),
    "llama3-rope": lambda: make_llama(
        rope_parameters={
            "rope_type": "llama3", "rope_theta": 1e4, "factor": 4.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
            "original_max_position_embeddings": 32,
        }
    ),
    "yarn-rope": lambda: make_llama(
        rope_parameters={
            "rope_type": "yarn", "rope_theta": 1e4, "factor": 4.0, "original_max_position_embeddings": 32,
        }
    ),
    "mistral": lambda: make("Mistral", sliding_window=None),
    "qwen2-padded": make_qwen2,
    "qwen3": lambda: make("Qwen3", head_dim=16),
}  # fmt: skip
