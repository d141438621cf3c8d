"""The vocabulary-sized loss: value, gradients, memory, and the whole trainer against transformers' own."""

from __future__ import annotations

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from torch.nn import functional as F  # noqa: E402

from hydrometer.models.causal_lm.inference.model import CausalLM  # noqa: E402
from hydrometer.models.causal_lm.spec import Training  # noqa: E402
from hydrometer.models.causal_lm.training import losses  # noqa: E402
from hydrometer.models.causal_lm.training.answer_loss import Answers, collate, loss_of  # noqa: E402
from hydrometer.models.causal_lm.training.evaluations import Evaluations  # noqa: E402
from hydrometer.models.causal_lm.training.losses import linear_cross_entropy  # noqa: E402
from hydrometer.models.causal_lm.training.optimised import Optimised  # noqa: E402
from hydrometer.models.causal_lm.training.trainer import _MLETrainer  # noqa: E402
from hydrometer.models.causal_lm.training.trainer_settings import trainer_arguments  # noqa: E402
from tiny import make_gpt2, make_llama, make_tokenizer  # noqa: E402

V, W, D = 700, 720, 24


def leaves(m: int, dtype=torch.float32, bias: bool = False, seed: int = 0):
    g = torch.Generator().manual_seed(seed)
    h = torch.randn(m, D, generator=g).to(dtype).requires_grad_()
    w = (torch.randn(W, D, generator=g) * 0.5).to(dtype).requires_grad_()
    b = torch.randn(W, generator=g).to(dtype).requires_grad_() if bias else None
    return h, w, b, torch.randint(0, V, (m,), generator=g)


def oracle(h, w, b, ids, n_items, holes=None):
    """In float64 by autograd through all logits."""
    h, w = h.detach().double().requires_grad_(), w.detach().double().requires_grad_()
    b = None if b is None else b.detach().double().requires_grad_()
    logits = F.linear(h, w, b)[:, :V]
    if holes is not None:
        logits = logits.index_fill(-1, holes, -torch.inf)
    loss = F.cross_entropy(logits, ids, reduction="sum") / n_items
    loss.backward()
    return loss.detach(), h.grad, w.grad, None if b is None else b.grad


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("m", [1, 511, 2300])
@pytest.mark.parametrize("bias", [False, True])
def test_value_and_gradients_in_float32(m, bias, threads):
    torch.set_num_threads(threads)
    h, w, b, ids = leaves(m, bias=bias)
    loss = linear_cross_entropy(h, w, b, ids, n_items=m / 2, vocab_size=V)
    (3 * loss).backward()
    right = oracle(h, w, b, ids, m / 2)
    torch.testing.assert_close(loss.double(), right[0], rtol=1e-6, atol=0)
    for mine, theirs in zip((h, w, b), right[1:], strict=True):
        if mine is not None:
            torch.testing.assert_close(mine.grad.double(), 3 * theirs, rtol=1e-4, atol=1e-6)
    assert not w.grad[V:].any()


def test_value_and_gradients_in_float64():
    h, w, b, ids = leaves(50, torch.float64, bias=True)
    loss = linear_cross_entropy(h, w, b, ids, n_items=50, vocab_size=V)
    loss.backward()
    right = oracle(h, w, b, ids, 50)
    torch.testing.assert_close((loss, h.grad, w.grad, b.grad), right, rtol=1e-12, atol=1e-12)


def test_holes_of_the_vocabulary_get_no_weight_and_no_gradient():
    h, w, _, ids = leaves(50)
    holes = torch.tensor([3, 99])
    ids[ids == 3] = 4
    ids[ids == 99] = 4
    loss = linear_cross_entropy(h, w, None, ids, n_items=50, vocab_size=V, holes=holes)
    loss.backward()
    right = oracle(h, w, None, ids, 50, holes)
    torch.testing.assert_close(loss.double(), right[0], rtol=1e-6, atol=0)
    torch.testing.assert_close(w.grad.double(), right[2], rtol=1e-4, atol=1e-6)
    assert not w.grad[holes].any()


def test_bfloat16_products_of_float32_leaves():
    h, w, _, ids = leaves(600)
    loss = linear_cross_entropy(h, w, None, ids, n_items=600, vocab_size=V, dtype=torch.bfloat16)
    loss.backward()
    right = oracle(h, w, None, ids, 600)
    assert h.grad.dtype == w.grad.dtype == torch.float32
    assert loss.item() == pytest.approx(right[0].item(), rel=2e-3)
    for mine, theirs in ((h.grad, right[1]), (w.grad, right[2])):
        assert float((mine.double() - theirs).norm() / theirs.norm()) < 0.01


def test_kernel_and_torch_operations_make_the_same_gradient():
    """The second is what another device runs."""
    for dtype, tolerance in ((torch.float32, 1e-6), (torch.bfloat16, 1e-2)):
        g = torch.Generator().manual_seed(3)
        logits = (4 * torch.randn(40, W, generator=g)).to(dtype)
        ids = torch.randint(0, V, (40,), generator=g)
        mine, theirs = logits.clone(), logits.clone()
        a = losses._to_gradient(mine, ids, V, 0.25)
        b = losses._to_gradient_by_torch(theirs, ids, V, 0.25)
        assert a == pytest.approx(b, rel=1e-6)
        torch.testing.assert_close(mine, theirs, rtol=tolerance, atol=1e-6)


def test_no_more_than_a_chunk_of_logits_exists(monkeypatch):
    torch.set_num_threads(2)
    seen: list[int] = []
    real = losses._to_gradient

    def watching(logits, *rest):
        seen.append(len(logits))
        return real(logits, *rest)

    monkeypatch.setattr(losses, "_to_gradient", watching)
    h, w, _, ids = leaves(3000)
    linear_cross_entropy(h, w, None, ids, n_items=1, vocab_size=V)
    assert sum(seen) == 3000
    assert max(seen) <= losses._CHUNK / 2 == 512


def train(lm: CausalLM, x, kind: str) -> list[float]:
    from transformers import Trainer

    training = Training(
        num_train_epochs=1, per_device_train_batch_size=4, gradient_accumulation_steps=2, learning_rate=5e-3, bf16=False
    )
    args = trainer_arguments(training, len(x), lm, 0, "/nonexistent")
    if kind == "ours":
        law = lm.law("w5", max_new_tokens=6)
        own = Optimised(lm, torch.float32)
        evaluations = Evaluations(law, own, None, training, len(x), lambda *_: None, None)
        trainer = _MLETrainer(own, loss_of(law, training), args, x, evaluations, None)
    else:
        trainer = Trainer(model=lm.model, args=args, train_dataset=Answers(x), data_collator=collate)
    inner, out = trainer.training_step, []

    def recording(*a, **k):
        loss = inner(*a, **k)
        out.append(float(loss))
        return loss

    trainer.training_step = recording
    torch.manual_seed(0)
    trainer.train()
    return out


@pytest.mark.parametrize("make", [make_llama, lambda: make_gpt2(tied=True)], ids=["llama", "gpt2"])
def test_the_loss_curve_is_the_plain_trainers_in_float32(make):
    """Accumulated steps, answers of unequal length, prompts not learned, padding on the right."""
    x = CausalLM(make_llama(), make_tokenizer(64)).law(["w5", "w9 w10 w11"], max_new_tokens=6).sample(48, seed=1)
    curves = [train(CausalLM(make(), make_tokenizer(64)), x, kind) for kind in ("ours", "plain")]
    assert len(curves[0]) == 12
    assert curves[0][0] != curves[0][-1]
    np.testing.assert_allclose(*curves, rtol=2e-5)
