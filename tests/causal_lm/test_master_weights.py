"""bfloat16 weights whose float32 masters the optimizer steps, against torch's own optimizers on float32 weights."""

from __future__ import annotations

import copy
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")

from hydrometer.core.errors import SpecError  # noqa: E402
from hydrometer.core.rng import Stream  # noqa: E402
from hydrometer.models.base import FitRequest, Fitted  # noqa: E402
from hydrometer.models.causal_lm.cost.memory import count_parameters  # noqa: E402
from hydrometer.models.causal_lm.inference.law import CausalLaw  # noqa: E402
from hydrometer.models.causal_lm.inference.model import CausalLM  # noqa: E402
from hydrometer.models.causal_lm.level_spec import FromLayers, LevelSpec  # noqa: E402
from hydrometer.models.causal_lm.spec import Training  # noqa: E402
from hydrometer.models.causal_lm.training.memory.step_memory import fit_bytes  # noqa: E402
from hydrometer.models.causal_lm.training.optimised import MasterWeights  # noqa: E402
from hydrometer.models.causal_lm.training.trainer import fit  # noqa: E402

ROWS = 32
MASTERS: dict[str, Any] = {"torch_dtype": "bfloat16", "master_weights": True}


class Killed(BaseException):
    """What a signal would be."""


def _request(llama: CausalLM, partial: Path | None = None, **fields: object) -> FitRequest:
    law = llama.law("w3 w4", max_new_tokens=6, block_rows=16)
    given: dict[str, Any] = {
        "per_device_train_batch_size": 16, "learning_rate": 0.01, "bf16": False, "lr_scheduler_type": "constant",
        **fields,
    }  # fmt: skip
    level = LevelSpec(init=FromLayers(layers_of="truth", layers=(0, 1)), training=Training(**given))
    return FitRequest(
        law.sample(ROWS, seed=3), law.sample(16, seed=4), law, None, level, "truth", "mle", Stream(7), partial=partial
    )


def _weights(fitted: Fitted[CausalLaw]) -> dict[str, Any]:
    return fitted.model.lm.model.state_dict()


def _start(llama: CausalLM) -> CausalLM:
    """The network that fits of `_request` begin with, in float32."""
    return fit(_request(llama, max_steps=1, learning_rate=1e-30, optim="sgd")).model.lm


def _gradients(lm: CausalLM, request: FitRequest) -> list[Any]:
    """Gradients of all rows' mean loss, by bfloat16 weights in torch alone, row by row in float32."""
    model: Any = copy.deepcopy(lm.model).requires_grad_(True).train()
    for p in model.parameters():
        p.data = p.data.bfloat16()
    x, made = request.data, [torch.zeros(p.shape) for p in model.parameters()]
    for i in range(len(x)):
        row = [*x.prompt_ids[int(x.prompt_index[i])], *x.row(i).tolist()]
        n = len(x.row(i))
        log_p = model(torch.tensor([row])).logits[0, :-1].float().log_softmax(-1)
        (-log_p[-n:].gather(-1, torch.tensor(row[-n:])[:, None]).sum() / int(x.lengths.sum())).backward()
        for g, p in zip(made, model.parameters(), strict=True):
            g += p.grad.float()
            p.grad = None
    return made


def test_it_is_in_keys_only_where_it_is_asked_for() -> None:
    body = Training(**MASTERS).model_dump(mode="json", context="key")
    assert body["master_weights"] is True
    assert Training.model_validate(body) == Training(**MASTERS)
    assert "master_weights" not in Training(torch_dtype="bfloat16").model_dump(mode="json", context="key")


@pytest.mark.parametrize("fields", [{}, {"torch_dtype": "bfloat16", "lora": {}}, {"num_workers": 2}])
def test_it_is_of_rounded_weights_alone(fields: dict[str, Any]) -> None:
    with pytest.raises(SpecError, match="master_weights needs torch_dtype: bfloat16") as e:
        Training(master_weights=True, **fields)
    assert "\n" not in str(e.value)


def test_several_workers_are_refused() -> None:
    with pytest.raises(SpecError, match="num_workers: 1"):
        Training(**MASTERS, num_workers=2)


def test_steps_below_the_rounding_add_up(llama: CausalLM) -> None:
    """20 steps of AdamW, of 1e-6 each at most, on weights of at least 2^-9: half an ulp of bfloat16 is 2^-18 = 3.8e-6.

    Such a step changes no bfloat16 weight; of all of them together the float32 masters keep every one.
    """
    few: dict[str, Any] = {"learning_rate": 1e-6, "max_steps": 20, "adam_beta1": 0.9}
    start = _start(llama).model.state_dict()
    lost, kept, exact = (
        _weights(fit(_request(llama, **few, **more))) for more in ({"torch_dtype": "bfloat16"}, MASTERS, {})
    )
    for name, w in start.items():
        large = w.abs() > 2**-9
        assert torch.equal(lost[name][large], w.bfloat16().float()[large]), name
        moved, wanted = kept[name] - w, exact[name] - w
        assert 1e-6 < moved.abs().max() < 2.2e-5
        assert (moved - wanted).norm() < 0.2 * wanted.norm()  # gradients are those of rounded weights
    assert any(not torch.equal(v, v.bfloat16().float()) for v in kept.values())  # the law is the masters'


@pytest.mark.parametrize("parts", [1, 2])
def test_a_step_is_along_the_clipped_gradient_in_float32(llama: CausalLM, parts: int) -> None:
    """Of the rounded weights' rows, by torch alone; also where batches accumulate."""
    request = _request(
        llama, optim="sgd", max_steps=1, max_grad_norm=0.5, gradient_accumulation_steps=parts,
        per_device_train_batch_size=ROWS // parts, **MASTERS,
    )  # fmt: skip
    lm = _start(llama)
    gradients = _gradients(lm, request)
    norm = torch.stack([g.norm() for g in gradients]).norm()
    assert norm > 0.5  # so that clipping counts
    after = _weights(fit(request))
    for (name, p), g in zip(lm.model.named_parameters(), gradients, strict=True):
        wanted = -0.01 * 0.5 / norm * g
        # Batches add up bfloat16 products in other orders than rows do.
        assert (after[name] - p.detach() - wanted).norm() < 0.05 * wanted.norm(), name


@pytest.mark.parametrize("fused", [True, False])
def test_steps_are_torchs_adamw_on_float32_weights_given_the_gradients(llama: CausalLM, fused: bool) -> None:
    """Three steps of two batches each, bit for bit; the network in the loop is the masters rounded after each."""
    lm = _start(llama)
    plain: Any = copy.deepcopy(lm.model).requires_grad_(True)
    own = MasterWeights(lm, torch.bfloat16)
    settings: dict[str, Any] = {"lr": 0.01, "betas": (0.9, 0.95), "weight_decay": 0.1, "fused": fused}
    made = torch.optim.AdamW(own.stepped.model.parameters(), **settings)
    own.attach(made, 0.5)
    reference = torch.optim.AdamW(plain.parameters(), **settings)
    batches = torch.randint(64, (6, 4, 9), generator=torch.Generator().manual_seed(0))
    for t in range(3):
        total = [torch.zeros(p.shape) for p in plain.parameters()]
        for ids in batches[2 * t : 2 * t + 2]:
            rounded: Any = copy.deepcopy(plain)
            for p in rounded.parameters():
                p.data, p.grad = p.data.bfloat16(), None
            rounded(ids, labels=ids).loss.backward()
            total = [g + p.grad.float() for g, p in zip(total, rounded.parameters(), strict=True)]
            trained: Any = own.trained.model
            assert all(torch.equal(a, b) for a, b in zip(trained.parameters(), rounded.parameters(), strict=True))
            trained(ids, labels=ids).loss.backward()
        for p, g in zip(plain.parameters(), total, strict=True):
            p.grad = g
        assert torch.nn.utils.clip_grad_norm_(plain.parameters(), 0.5) > 0.5
        for optimizer in (reference, made):
            optimizer.step()
    assert all(torch.equal(a, b) for a, b in zip(own.stepped.model.parameters(), plain.parameters(), strict=True))
    assert all(state["exp_avg"].dtype == torch.float32 for state in made.state.values())


def test_each_optimizer_repeats_and_learns_as_in_float32(llama: CausalLM) -> None:
    for more in ({"optim": "adafactor"}, {"gradient_checkpointing": True}, {"bf16": True}):
        request = _request(llama, max_steps=4, **MASTERS, **more)
        a, b = fit(request), fit(request)
        assert all(torch.equal(v, _weights(b)[k]) for k, v in _weights(a).items())
        exact = fit(_request(llama, max_steps=4, **more))
        assert a.info["validation"][-1]["nats"] == pytest.approx(exact.info["validation"][-1]["nats"], rel=0.02)


def test_the_law_that_is_judged_is_the_masters(llama: CausalLM) -> None:
    request = _request(llama, num_train_epochs=2, **MASTERS)
    fitted = fit(request)
    best = max(e["nats"] for e in fitted.info["validation"])
    assert fitted.model.log_prob(request.validate).mean() == pytest.approx(best, abs=1e-9)


@pytest.mark.parametrize("optim", ["adamw_torch_fused", "adafactor", "sgd"])
def test_a_killed_fit_goes_on_bit_for_bit(llama: CausalLM, tmp_path: Path, optim: str) -> None:
    fields: dict[str, Any] = {"num_train_epochs": 3, "save_steps": 2, "optim": optim, **MASTERS}
    whole = fit(_request(llama, **fields))
    request = _request(llama, tmp_path, **fields)

    def tick(done: float, total: float, what: str) -> None:
        if what == "steps" and done == 5:
            raise Killed

    with pytest.raises(Killed):
        fit(replace(request, tick=tick))
    again = fit(request)
    assert again.info["resumed"] == "checkpoint-4"
    assert all(torch.equal(v, _weights(again)[k]) for k, v in _weights(whole).items())
    assert again.info["validation"] == whole.info["validation"]


def test_memory_counts_masters_and_their_states(llama: CausalLM) -> None:
    """Of a parameter: master 4, rounded 2, gradient 4, two moments of 4, the best evaluation's copy 4 bytes."""
    config = llama.model.config
    n = count_parameters(config)
    plain = fit_bytes(config, n, Training())
    assert fit_bytes(config, n, Training(**MASTERS)) - plain == 2 * n
    assert fit_bytes(config, n, Training(torch_dtype="bfloat16")) - plain == -4 * n
    assert fit_bytes(config, n, Training(**MASTERS, optim="sgd")) - plain == -6 * n
