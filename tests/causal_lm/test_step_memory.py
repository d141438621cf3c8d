"""What a training step saves, counted without storage, against what autograd saves of real steps."""

from __future__ import annotations

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
from hydrometer.models.causal_lm.training.memory.step_memory import (  # noqa: E402
    Batch,
    SavedBytes,
    activation_bytes,
    fit_bytes,
    refuse_where_too_large,
)
from hydrometer.models.causal_lm.training.optimised import optimised  # noqa: E402
from hydrometer.models.causal_lm.training.packed_rows import IGNORED  # noqa: E402
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


@pytest.mark.parametrize("parts", [1, 2])
def test_gradients_take_the_place_of_activations_in_a_step_of_one_batch(parts: int) -> None:
    config, t = make_llama(64).config, Training(gradient_accumulation_steps=parts)
    n = sum(p.numel() for p in make_llama(64).parameters())
    saved = activation_bytes(config, t, BATCH)
    assert saved > 4 * n
    assert fit_bytes(config, n, t, BATCH) - fit_bytes(config, n, t) == (saved if parts > 1 else saved - 4 * n)


def test_a_fit_that_does_not_fit_is_refused_in_one_line() -> None:
    """The network itself is there already. Rows of at most 3 + 24 tokens in batches of two, two moments a weight."""
    lm, t = CausalLM(make_llama(64), make_tokenizer(64)), Training(per_device_train_batch_size=2)
    data = lm.law("w3 w4", max_new_tokens=24, block_rows=16).sample(5, seed=3)
    n, lengths, prompt = lm.n_parameters, data.lengths, len(data.prompt_ids[0])
    assert lengths.min() < lengths.max()

    def needs(width: int) -> int:
        return 8 * n + max(4 * n, activation_bytes(lm.model.config, t, Batch(2, width, int(lengths.min()))))

    widest, narrowest = needs(prompt + int(lengths.max())), needs(prompt + int(lengths.min()))
    assert narrowest < widest
    refuse_where_too_large(lm, data, t, widest)
    with pytest.raises(FitError, match=r"gradient_accumulation_steps, or gradient_checkpointing: true") as e:
        refuse_where_too_large(lm, data, t, widest - 1)
    assert re.match(r"the fit needs at least 0\.0 GiB more on the card", str(e.value))
    assert "\n" not in str(e.value)
    few = t.model_copy(update={"max_steps": 2})  # of three: the widest row may not be among theirs
    for kind, own in ((few, False), (t, True)):
        refuse_where_too_large(lm, data, kind, narrowest, draws_own=own)
        with pytest.raises(FitError):
            refuse_where_too_large(lm, data, kind, narrowest - 1, draws_own=own)


def test_what_cannot_be_counted_says_nothing_and_takes_no_time(capfd: pytest.CaptureFixture[str]) -> None:
    """Experts are chosen by numbers; a recurrent network runs position after position."""
    from transformers import MambaConfig, MixtralConfig

    small = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "vocab_size": 64}
    heads = {"num_attention_heads": 2, "num_key_value_heads": 2, "num_local_experts": 2, "num_experts_per_tok": 1}
    for config in (MambaConfig(**small), MixtralConfig(**small, **heads)):
        assert activation_bytes(config, Training(), BATCH) == 0
    assert capfd.readouterr().err == ""


def test_a_network_that_looks_at_numbers_is_not_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is not known is left out, and the fit is not refused."""
    from transformers.models.llama.modeling_llama import LlamaMLP

    inner = LlamaMLP.forward
    monkeypatch.setattr(LlamaMLP, "forward", lambda self, x: inner(self, x) * float(x.sum()))
    assert activation_bytes(make_llama(64, hidden_size=24).config, Training(), BATCH) == 0
