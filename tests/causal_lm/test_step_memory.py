"""What a training step saves, counted without storage, against what autograd saves of real steps."""

from __future__ import annotations

import copy
import re
from functools import partial
from typing import Any

import pytest

torch = pytest.importorskip("torch")

from torch.nn import functional as F  # noqa: E402
from torch.nn.attention import SDPBackend, sdpa_kernel  # noqa: E402

from hydrometer.core.errors import FitError  # noqa: E402
from hydrometer.models.causal_lm.inference.model import CausalLM  # noqa: E402
from hydrometer.models.causal_lm.level_spec import FromLayers, LevelSpec  # noqa: E402
from hydrometer.models.causal_lm.spec import Training  # noqa: E402
from hydrometer.models.causal_lm.training.answer_loss import answer_states  # noqa: E402
from hydrometer.models.causal_lm.training.optimised import optimised  # noqa: E402
from hydrometer.models.causal_lm.training.packed_rows import IGNORED  # noqa: E402
from hydrometer.models.causal_lm.training.step_memory import (  # noqa: E402
    Batch,
    SavedBytes,
    activation_bytes,
    fit_bytes,
    refuse_too_large,
)
from tiny import make_gpt2, make_llama, make_tokenizer  # noqa: E402

BATCH = Batch(3, 14, 5)
HEADS = {"num_key_value_heads": 4}  # grouped heads are no fused attention on a processor
NETWORKS: dict[str, Any] = {
    "llama": partial(make_llama, 64, **HEADS),
    "tied": partial(make_llama, 64, tie_word_embeddings=True, **HEADS),
    "gpt2": lambda: make_gpt2(True, attn_pdrop=0.0),  # with dropout of states
}
SETTINGS: dict[str, dict[str, Any]] = {
    "float32": {"bf16": False},
    "autocast": {},
    "bfloat16": {"torch_dtype": "bfloat16", "master_weights": True},
    "lora": {"lora": {"r": 2}},
}


def _real(lm: CausalLM, training: Training) -> int:
    """Bytes that a real step of the batch saves, its states for the answers among them."""
    level = LevelSpec(init=FromLayers(layers_of="truth", layers=(0, 1, 2)), training=training)
    ids_BT = torch.randint(64, BATCH[:2], generator=torch.Generator().manual_seed(0))
    labels_BT = ids_BT.clone()
    labels_BT[:, : -BATCH.answers] = IGNORED
    with optimised(lm, level, 0) as own, sdpa_kernel(SDPBackend.FLASH_ATTENTION):
        network: Any = own.trained.model.train()
        dtype = torch.bfloat16 if training.bf16 else torch.float32
        with SavedBytes([*network.parameters(), *network.buffers()]) as saved:
            states_MD = answer_states(own.trained, ids_BT, labels_BT, dtype=dtype, packs=False)
            if own.trained.is_split:
                made = states_MD.to(dtype)  # as the loss does, and a gradient of the same size
                held = {x.untyped_storage()._cdata: x.nbytes for x in (states_MD, made)}
                return saved.bytes() + sum(held.values()) + made.nbytes
            ids_M = labels_BT[:, 1:][labels_BT[:, 1:] != IGNORED]
            loss = F.cross_entropy(states_MD.float(), ids_M, reduction="sum")
            assert loss.requires_grad
            return saved.bytes()


@pytest.mark.parametrize("kind", NETWORKS)
@pytest.mark.parametrize("setting", SETTINGS)
def test_the_count_is_what_a_real_step_saves(kind: str, setting: str) -> None:
    if setting == "lora":
        pytest.importorskip("peft")
    lm, training = CausalLM(NETWORKS[kind](), make_tokenizer(64)), Training(**SETTINGS[setting])
    counted = activation_bytes(lm.model.config, training, BATCH)
    assert counted > 0
    assert counted == _real(lm, training)


@pytest.mark.parametrize("bf16", [True, False])
def test_recomputing_keeps_inputs_of_layers_and_one_layer(bf16: bool) -> None:
    """A layer's own share is what a network of three layers saves more than one of two; its input is kept anyway."""
    two, three = (CausalLM(make_llama(64, layers=n, **HEADS), make_tokenizer(64)) for n in (2, 3))
    plain, recomputed = Training(bf16=bf16), Training(bf16=bf16, gradient_checkpointing=True)
    given = BATCH.rows * BATCH.positions * 32 * 4
    one = _real(three, plain) - _real(two, plain) - given
    counted = activation_bytes(three.model.config, recomputed, BATCH)
    assert counted == _real(three, recomputed) + one
    assert counted < activation_bytes(three.model.config, plain, BATCH)
