"""Packs: loss and gradients are those of padded rows, and no network is packed that would learn another law."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from families import IDS, family_lm, family_network, longrope  # noqa: E402
from hydrometer.core.rng import Stream  # noqa: E402
from hydrometer.models.base import FitRequest  # noqa: E402
from hydrometer.models.causal_lm.inference.model import CausalLM  # noqa: E402
from hydrometer.models.causal_lm.level_spec import LevelSpec  # noqa: E402
from hydrometer.models.causal_lm.networks.network import Network  # noqa: E402
from hydrometer.models.causal_lm.training import answer_loss as answer_loss_module  # noqa: E402
from hydrometer.models.causal_lm.training import packed_rows  # noqa: E402
from hydrometer.models.causal_lm.training.answer_loss import answer_loss, collate  # noqa: E402
from hydrometer.models.causal_lm.training.packed_rows import (  # noqa: E402
    IGNORED,
    learns_packed,
    pack,
    packed_size,
    takes_packed_rows,
)
from hydrometer.models.causal_lm.training.trainer import fit  # noqa: E402
from tiny import make_llama, make_tokenizer  # noqa: E402

PROMPTS = [(5,), (6, 7, 8, 9, 10, 11, 12), (6, 7, 8), (20, 21, 22, 23, 24, 25, 26, 27, 28, 29)]
PLAIN = {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0}  # of gpt2, whose configuration drops out


def batch(of, lengths, seed: int = 0):
    """Rows in no order; every other answer ends with the end token, which also pads, the rest are cut."""
    rng = np.random.default_rng(seed)
    answers = [[*rng.integers(3, IDS, n - 1).tolist(), 1 if i % 2 else 4] for i, n in enumerate(lengths)]
    rows = [
        {"input_ids": [*PROMPTS[u], *a], "labels": [IGNORED] * len(PROMPTS[u]) + a}
        for u, a in zip(of, answers, strict=True)
    ]
    return collate(rows)


MANY = batch([1, 3, 0, 1, 1, 3, 2, 3, 1, 3, 1, 3, 2, 3], [4, 1, 7, 3, 6, 2, 5, 8, 1, 3, 4, 2, 6, 5])


def learned(lm: CausalLM, rows, *, packs: bool, n_items: float = 31.0, dtype=torch.float32):
    """The loss and the gradients of it, in training mode."""
    lm.model.train().zero_grad()
    loss = answer_loss(lm, rows["input_ids"], rows["labels"], n_items, packs=packs, dtype=dtype)
    loss.backward()
    return float(loss.detach()), {n: p.grad.clone() for n, p in lm.model.named_parameters() if p.grad is not None}


def assert_learns_alike(lm: CausalLM, rows) -> None:
    """Within float32's rounding, of the loss and of the largest gradient."""
    (right, gradients), (other, found) = (learned(lm, rows, packs=packs) for packs in (False, True))
    assert other == pytest.approx(right, rel=1e-6)
    assert found.keys() == gradients.keys()
    largest = max(float(g.abs().max()) for g in gradients.values())
    assert largest > 0
    for name, g in gradients.items():
        assert float((found[name] - g).abs().max()) <= 2e-6 * largest, name


def tiny(**fields) -> CausalLM:
    return CausalLM(make_llama(**fields), make_tokenizer(IDS))


@pytest.mark.parametrize("most", [512, 20, 8], ids=["one pack", "three", "prompts repeated"])
def test_loss_and_gradients_are_those_of_padded_rows(most, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(packed_rows, "_MOST", most)
    monkeypatch.setattr(packed_rows, "_PAYS", 1.0)
    packs = pack(MANY["input_ids"], MANY["labels"])
    assert packs is not None
    assert (len(packs.ids) > 1) == (most < 512)
    assert_learns_alike(tiny(), MANY)


@pytest.mark.parametrize("kind", ["qwen2", "qwen3", "gemma", "gpt_neox", "gpt2", "phi3", "cohere"])
def test_other_families_learn_alike(kind):
    """Grouped queries, learned positions, a bias, logits that are more than a product."""
    lm = family_lm(kind, **(PLAIN if kind == "gpt2" else {}))
    assert takes_packed_rows(lm.network)
    assert_learns_alike(lm, MANY)


def test_ids_that_do_not_exist_and_a_tied_head_learn_alike():
    lm = tiny(tie_word_embeddings=True)
    lm.holes = torch.tensor([2])
    assert_learns_alike(lm, MANY)


@pytest.mark.parametrize("kind", ["mistral", "gemma2", "gpt2", "bloom", "mamba", "falcon_h1", "gpt_oss"])
def test_windows_states_dropout_and_biases_by_distance_are_not_packed(kind):
    assert not takes_packed_rows(Network(family_network(kind)))


def test_a_rotary_embedding_that_knows_the_longest_row_is_not_packed():
    assert not takes_packed_rows(Network(longrope()))


def test_a_network_that_is_not_its_twin_is_not_packed(monkeypatch: pytest.MonkeyPatch):
    """What a twin does not show is seen on the network's own rows."""
    lm = tiny()
    assert takes_packed_rows(lm.network)
    real = lm.model.model.forward
    monkeypatch.setattr(
        lm.model.model, "forward",
        lambda *a, position_ids, **k: real(*a, position_ids=torch.arange(position_ids.shape[1])[None], **k),
    )  # fmt: skip
    assert not takes_packed_rows(lm.network)
    assert learns_packed(lm.model)


def test_what_is_asked_of_a_network_leaves_no_trace():
    lm = tiny()
    state = torch.get_rng_state()
    before = {n: p.clone() for n, p in lm.model.named_parameters()}
    assert takes_packed_rows(lm.network)
    assert torch.equal(state, torch.get_rng_state())
    assert not lm.model.training
    assert all(torch.equal(p, before[n]) and p.grad is None for n, p in lm.model.named_parameters())


def test_prompts_are_run_once_and_nothing_is_padded():
    packs = pack(MANY["input_ids"], MANY["labels"])
    used = sum(len(p) for p in PROMPTS)
    fed = int((MANY["labels"] != IGNORED).sum()) - 14
    assert packs.ids.shape == (1, used + fed)
    assert len(packs.at) == fed + 14
    sees = packs.mask[0, 0] == 0
    assert sees.any(1).all()
    assert not sees.triu(1).any()


@pytest.mark.parametrize(
    "rows",
    [batch([0, 1, 2, 3], [11, 5, 9, 2]), {**batch([1], [3]), "labels": torch.full((1, 10), IGNORED)}],
    ids=["other prompts", "no answer"],
)
def test_rows_that_share_nothing_are_not_packed(rows):
    assert pack(rows["input_ids"], rows["labels"]) is None


def test_the_size_that_is_planned_is_the_size_that_is_run():
    rng = np.random.default_rng(3)
    for _ in range(50):
        n = int(rng.integers(1, 40))
        of, lengths = rng.integers(0, 4, n), rng.integers(1, 90, n)
        rows = batch(of, lengths)
        width = int(rows["labels"].shape[1])
        packs = pack(rows["input_ids"], rows["labels"])
        run = rows["labels"].numel() if packs is None else packs.ids.numel()
        prompts = np.array([len(PROMPTS[u]) for u in of])
        assert packed_size(of.tolist(), prompts, lengths, width) == run


@pytest.fixture(scope="module")
def request_():
    truth = tiny().law(["w5", "w9 w10 w11 w12 w13 w14 w15 w16 w17 w18"], max_new_tokens=8)
    level = {"init": "truth", "training": {"num_train_epochs": 1, "per_device_train_batch_size": 16, "bf16": False}}
    return FitRequest(
        data=truth.sample(96, seed=Stream(0).child("train")), validate=None, truth=truth, teacher=None,
        level=LevelSpec.model_validate(level), prefix_source="truth", loss="mle", stream=Stream(0).child("fit"),
    )  # fmt: skip


def test_a_fit_packs_what_shares_and_learns_the_same(request_: FitRequest, monkeypatch: pytest.MonkeyPatch):
    seen = []

    def watching(*rows):
        seen.append(pack(*rows))
        return seen[-1]

    monkeypatch.setattr(answer_loss_module, "pack", watching)
    packed = fit(request_).model.lm.model.state_dict()
    assert len(seen) == 6
    assert None not in seen
    monkeypatch.setattr(answer_loss_module, "takes_packed_rows", lambda network: False)
    padded = fit(request_).model.lm.model.state_dict()
    assert len(seen) == 6
    for name, p in padded.items():
        assert torch.allclose(packed[name], p, atol=2e-4), name


def test_in_bfloat16_too_a_fit_is_a_function_of_its_request(request_: FitRequest):
    training = request_.level.training.model_copy(update={"bf16": True})
    rounded = replace(request_, level=request_.level.model_copy(update={"training": training}))
    first, second = (fit(rounded).model.lm.model.state_dict() for _ in range(2))
    assert all(torch.equal(first[n], second[n]) for n in first)


@pytest.mark.parametrize("packs", [True, False])
@pytest.mark.parametrize(
    ("weights", "dtype"), [("float32", "float32"), ("float32", "bfloat16"), ("bfloat16", "bfloat16")]
)
def test_a_part_of_a_batch_without_an_answer_learns_nothing(weights: str, dtype: str, packs: bool):
    rows = batch([1, 1], [3, 4])
    rows["labels"][:] = IGNORED
    lm = tiny()
    lm.model.to(getattr(torch, weights))
    loss, gradients = learned(lm, rows, packs=packs, dtype=getattr(torch, dtype))
    assert loss == 0.0
    assert gradients.keys() == dict(lm.model.named_parameters()).keys()
    assert not any(g.any() for g in gradients.values())


def test_rows_without_an_answer_are_left_out():
    rows = batch([1, 1, 1, 1, 0], [3, 4, 5, 3, 2])
    rows["labels"][4] = IGNORED
    packs = pack(rows["input_ids"], rows["labels"])
    assert packs is not None
    assert packs.ids.numel() == len(PROMPTS[1]) + 15 - 4
    learns = partial(learned, tiny())
    assert learns(rows, packs=True)[0] == pytest.approx(learns(rows, packs=False)[0], rel=1e-6)
