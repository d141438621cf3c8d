"""Tiny random networks of the families of causal language models that transformers has.

A family is a name of transformers' configurations. Its sizes are the common small ones, as far as its configuration
has fields of these names, and what it needs besides. Weights are spread so that every part shows in the logits.
"""

from __future__ import annotations

from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM

from hydrometer.models.causal_lm.inference.model import CausalLM
from tiny import make_tokenizer

IDS = 64
SHORT = {
    "vocab_size": IDS, "bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 1,
    "hidden_size": 32, "num_hidden_layers": 4, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8,
    "intermediate_size": 48, "max_position_embeddings": 96, "sliding_window": 6,
    "d_model": 32, "encoder_layers": 2, "decoder_layers": 4, "encoder_attention_heads": 4,
    "decoder_attention_heads": 4, "encoder_ffn_dim": 48, "decoder_ffn_dim": 48, "ffn_dim": 48,
    "word_embed_proj_dim": 32,
    "num_experts": 4, "num_local_experts": 4, "n_routed_experts": 4, "moe_num_experts": 4, "num_experts_per_tok": 2,
    "moe_k": 2, "n_group": 1, "topk_group": 1, "n_shared_experts": 1, "moe_intermediate_size": 24,
    "shared_expert_intermediate_size": 24, "first_k_dense_replace": 1,
    "kv_lora_rank": 12, "q_lora_rank": 12, "qk_rope_head_dim": 8, "qk_nope_head_dim": 8, "v_head_dim": 8,
    "mamba_n_heads": 4, "mamba_d_head": 16, "mamba_n_groups": 1, "mamba_d_state": 8, "mamba_chunk_size": 6,
    "state_size": 8, "chunk_size": 6, "block_size": 6, "attention_chunk_size": 6, "attention_window_size": 6,
    "linear_num_value_heads": 4, "linear_num_key_heads": 2, "linear_key_head_dim": 8, "linear_value_head_dim": 8,
    "rotary_dim": 8, "lru_width": 32, "use_mamba_kernels": False, "original_max_position_embeddings": 24,
    "query_pre_attn_scalar": 8, "attention_hidden_size": 32, "local_attention": 6,
}  # fmt: skip
# No family's default, or unlike it in what counts here.
OWN: dict[str, dict[str, Any]] = {
    "bamba": {"attn_layer_indices": [1, 3]},
    "gemma2": {"final_logit_softcapping": 3.0, "attn_logit_softcapping": 2.0},
    "granite": {"logits_scaling": 2.0, "embedding_multiplier": 3.0, "residual_multiplier": 0.5},
    "gpt_neo": {"attention_types": [[["global", "local"], 2]], "window_size": 6},
    "jamba": {"attn_layer_period": 2, "attn_layer_offset": 1, "expert_layer_period": 2, "expert_layer_offset": 1},
    "lfm2": {"full_attn_idxs": [1, 3]},
    "falcon_h1": {"mamba_d_ssm": 64},
    "llama4_text": {"intermediate_size_mlp": 48},
    "mamba2": {"num_heads": 8, "n_groups": 2, "head_dim": 8},
    "qwen3_moe": {"mlp_only_layers": [1], "decoder_sparse_step": 1},
    "qwen3_next": {"layer_types": None},
    "longcat_flash": {"num_key_value_heads": 4}, "minicpm3": {"num_key_value_heads": 4},
    "youtu": {"num_key_value_heads": 4}, "deepseek_v32": {"num_key_value_heads": 4},
    "glm4_moe_lite": {"num_key_value_heads": 4},
    "glm_moe_dsa": {"num_key_value_heads": 4}, "axk1": {"num_key_value_heads": 4}, "axk2": {"num_key_value_heads": 4},
    "deepseek_v2": {"num_key_value_heads": 4, "topk_method": "greedy"}, "deepseek_v3": {"num_key_value_heads": 4},
    "smollm3": {"no_rope_layer_interval": 2},
    "phi3": {"sliding_window": None},
}  # fmt: skip


def family_config(kind: str, **fields: object) -> Any:
    base = AutoConfig.for_model(kind)
    known = {*base.to_dict(), *base.attribute_map}
    common = {k: v for k, v in SHORT.items() if k in known}
    return AutoConfig.for_model(kind, **{**common, **OWN.get(kind, {}), **fields})


def family_network(kind: str, *, fresh: bool = False, seed: int = 0, **fields: object) -> Any:
    torch.manual_seed(seed)
    network: Any = AutoModelForCausalLM.from_config(family_config(kind, **fields), dtype=torch.float32)
    if not fresh:
        spread(network, seed)
    return network.eval()


def spread(network: Any, seed: int, scale: float = 1.0) -> None:
    """Add noise to the weights, in place; not to what rates of decay are made of."""
    noise = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, p in network.named_parameters():
            if "A_log" not in name and "conv" not in name:
                p.add_(torch.randn(p.shape, generator=noise) * (0.15 if p.ndim > 1 else 0.1) * scale)


def family_lm(kind: str, **fields: object) -> CausalLM:
    return CausalLM(family_network(kind, **fields), make_tokenizer(IDS))


def longrope(kind: str = "phi3", limit: int = 24) -> Any:
    """A network whose rotary factors are others in rows longer than the limit."""
    rope = {
        "rope_type": "longrope", "rope_theta": 1e4, "short_factor": [1.0] * 4, "long_factor": [4.0, 9.0, 20.0, 50.0],
        "original_max_position_embeddings": limit,
    }  # fmt: skip
    return family_network(kind, rope_parameters=rope, original_max_position_embeddings=limit)


def log_prob_alone(law: Any, x: Any, i: int) -> list[float]:
    """What transformers says of each token of a row after the prefix before it alone: no padding, no cache."""
    prompt, row = list(law.prompts.ids[int(x.prompt_index[i])]), x.row(i).tolist()
    found = []
    with torch.no_grad():
        for t, token in enumerate(row):
            logits = law.lm.model(input_ids=torch.tensor([prompt + row[:t]]), use_cache=False).logits[0, -1]
            found.append(float(logits[: law.lm.vocab_size].double().log_softmax(-1)[token]))
    return found
