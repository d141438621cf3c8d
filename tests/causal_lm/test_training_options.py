"""Settings of a fit by the names of TrainingArguments: schedules, steps, evaluations, optimizers, types of weights."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from hydrometer.core.errors import SpecError  # noqa: E402
from hydrometer.core.rng import Stream  # noqa: E402
from hydrometer.models.base import FitRequest, Fitted  # noqa: E402
from hydrometer.models.causal_lm.inference.law import CausalLaw  # noqa: E402
from hydrometer.models.causal_lm.inference.model import CausalLM  # noqa: E402
from hydrometer.models.causal_lm.level_spec import FromLayers, LevelSpec  # noqa: E402
from hydrometer.models.causal_lm.spec import Training  # noqa: E402
from hydrometer.models.causal_lm.training.evaluations import Evaluations  # noqa: E402
from hydrometer.models.causal_lm.training.trainer import fit  # noqa: E402
from tiny import make_llama, make_tokenizer  # noqa: E402

ROWS, EPOCH = 40, 3  # rows, and steps of an epoch
RATE = 0.01


class Killed(BaseException):
    """What a signal would be."""


def _request(llama: CausalLM, partial: Path | None = None, **fields: object) -> FitRequest:
    law = llama.law("w3 w4", max_new_tokens=6, block_rows=16)
    given = {"per_device_train_batch_size": 16, "learning_rate": RATE, "bf16": False, **fields}
    level = LevelSpec(init=FromLayers(layers_of="truth", layers=(0, 1)), training=Training(**given))
    rows, held_out = law.sample(ROWS, seed=3), law.sample(16, seed=4)
    return FitRequest(rows, held_out, law, None, level, "truth", "mle", Stream(7), partial=partial)


def _weights(fitted: Fitted[CausalLaw]) -> dict[str, Any]:
    return fitted.model.lm.model.state_dict()


def _equal(a: Fitted[CausalLaw], b: Fitted[CausalLaw]) -> bool:
    ours, theirs = _weights(a), _weights(b)
    return all(torch.equal(ours[k], theirs[k]) for k in ours)


# -- keys -------------------------------------------------------------------------------------------------------------

OLD = {
    "num_train_epochs": 3, "learning_rate": 1e-3, "per_device_train_batch_size": 32, "per_device_eval_batch_size": 64,
    "gradient_accumulation_steps": 1, "weight_decay": 0.0, "adam_beta1": 0.9, "adam_beta2": 0.95, "max_grad_norm": 1.0,
    "warmup_ratio": 0.01, "decay_ratio": 0.2, "bf16": True,
}  # fmt: skip
OTHERS = {
    "max_steps": 5, "warmup_steps": 2, "lr_scheduler_type": "cosine", "optim": "sgd", "torch_dtype": "bfloat16",
    "gradient_checkpointing": True, "eval_steps": 2, "early_stopping_patience": 1, "lora": {},
}  # fmt: skip


def test_what_is_at_its_default_is_in_no_key() -> None:
    assert Training().model_dump(mode="json", context="key") == OLD


@pytest.mark.parametrize("name", OTHERS)
def test_what_is_not_is(name: str) -> None:
    training = Training.model_validate({name: OTHERS[name]})
    body = training.model_dump(mode="json", context="key")
    assert name in body
    assert body != OLD
    assert Training.model_validate(body) == training


def test_equal_fits_have_equal_keys() -> None:
    """What is not read is not said."""
    said = [Training(max_steps=9, num_train_epochs=3), Training(max_steps=9)]
    assert said[0].model_dump() == said[1].model_dump()
    assert "num_train_epochs" not in said[0].model_dump()
    names = Training.model_validate({"lora": {"target_modules": ["v_proj", "q_proj"]}})
    assert names == Training.model_validate({"lora": {"target_modules": ["q_proj", "v_proj"]}})


@pytest.mark.parametrize(
    ("fields", "word"),
    [
        ({"packing": True}, "see each other"),
        ({"tf32": True}, "reproducible"),
        ({"torch_compile": True}, "reproducible"),
        ({"group_by_length": True}, "no random batch"),
        ({"dataloader_num_workers": 4}, "who loads them"),
        ({"neftune_noise_alpha": 5}, "global generator"),
        ({"seed": 1}, "named streams"),
        ({"optim": "adamw_bnb_8bit"}, "adafactor"),
        ({"lora": {"modules_to_save": ["lm_head"]}}, "only adapters"),
        ({"lora": {"target_modules": [".*"]}}, "plain names"),
        ({"lora": {}, "num_workers": 2}, "num_workers: 1"),
        ({"max_steps": 5, "num_train_epochs": 4}, "max_steps takes its place"),
        ({"lr_scheduler_type": "linear", "decay_ratio": 0.5}, "warmup_stable_decay"),
        ({"optim": "sgd", "adam_beta1": 0.5}, "adamw"),
    ],
)
def test_refusals_are_one_line_with_the_reason(fields: dict[str, object], word: str) -> None:
    with pytest.raises(SpecError, match=word) as e:
        Training(**fields)
    assert "\n" not in str(e.value)


# -- schedules and steps ----------------------------------------------------------------------------------------------

STEPS = 2 * EPOCH


def _ramp(t: int, warmup: int) -> float:
    return t / warmup if t < warmup else 1.0


FORMS: dict[str, Callable[[int], float]] = {  # of the step, warm-up of 2
    "linear": lambda t: min(_ramp(t, 2), (STEPS - t) / (STEPS - 2)),
    "cosine": lambda t: _ramp(t, 2) if t < 2 else (1 + math.cos(math.pi * (t - 2) / (STEPS - 2))) / 2,
    "constant_with_warmup": lambda t: _ramp(t, 2),
    "constant": lambda t: 1.0,
    "warmup_stable_decay": lambda t: min(_ramp(t, 2), (STEPS - t) / 2),
}


@pytest.mark.parametrize("name", FORMS)
def test_schedules_are_transformers_formulas(llama: CausalLM, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    rates: list[float] = []
    inner = Evaluations.on_step_begin

    def watching(self: Evaluations, *given: Any, lr_scheduler: Any, **more: Any) -> None:
        rates.append(lr_scheduler.get_last_lr()[0])
        inner(self, *given, **more)

    monkeypatch.setattr(Evaluations, "on_step_begin", watching)
    fields = {} if name == "constant" else {"warmup_steps": 2}
    fit(_request(llama, num_train_epochs=2, lr_scheduler_type=name, **fields))
    np.testing.assert_allclose(rates, [RATE * FORMS[name](t) for t in range(STEPS)], rtol=1e-12)


def test_max_steps_ends_in_the_midst_of_an_epoch(llama: CausalLM) -> None:
    some = fit(_request(llama, max_steps=4, lr_scheduler_type="constant"))
    assert some.info["steps"] == 4
    assert [e["epoch"] for e in some.info["validation"]] == [1, 2]
    whole = fit(_request(llama, max_steps=2 * EPOCH, lr_scheduler_type="constant"))
    assert _equal(whole, fit(_request(llama, num_train_epochs=2, lr_scheduler_type="constant")))
    assert not _equal(whole, some)
    assert whole.info["tokens"] == 2 * int(_request(llama).data.lengths.sum())


def test_plain_gradient_descent_is_a_step_along_the_gradient(llama: CausalLM) -> None:
    """One batch of all rows, by torch alone."""
    request = _request(
        llama,
        optim="sgd",
        max_steps=1,
        lr_scheduler_type="constant",
        per_device_train_batch_size=ROWS,
        max_grad_norm=0.5,
    )
    start = fit(replace(request, level=request.level.model_copy(update={"training": Training(
        learning_rate=1e-30, optim="sgd", max_steps=1, lr_scheduler_type="constant", bf16=False)})))  # fmt: skip
    model: Any = start.model.lm.model.train().requires_grad_(True)
    x, total = request.data, torch.zeros(())
    for i in range(len(x)):
        row = [*x.prompt_ids[int(x.prompt_index[i])], *x.row(i).tolist()]
        log_p = model(torch.tensor([row])).logits[0, :-1].log_softmax(-1)
        n = len(x.row(i))
        total = total - log_p[-n:].gather(-1, torch.tensor(row[-n:])[:, None]).sum()
    (total / int(x.lengths.sum())).backward()
    norm = torch.nn.utils.clip_grad_norm_(model.parameters(), 0.5)
    assert norm > 0.5  # so that clipping counts
    after = _weights(fit(request))
    for name, p in model.named_parameters():
        assert torch.allclose(after[name], p.detach() - RATE * p.grad, atol=1e-7), name
        assert not torch.equal(after[name], p.detach())


@pytest.mark.parametrize("optim", ["adamw_torch", "adafactor"])
def test_optimizers_are_reproducible_and_differ(llama: CausalLM, optim: str) -> None:
    request = _request(llama, optim=optim, num_train_epochs=1)
    a, b, default = fit(request), fit(request), fit(_request(llama, num_train_epochs=1))
    assert _equal(a, b)
    gap = max(float((_weights(a)[k] - v).abs().max()) for k, v in _weights(default).items())
    assert gap < 1e-5 if optim == "adamw_torch" else gap > 1e-4


def test_recomputing_changes_memory_alone(llama: CausalLM) -> None:
    a, b = (fit(_request(llama, num_train_epochs=1, gradient_checkpointing=on)) for on in (True, False))
    assert all(torch.allclose(v, _weights(b)[k], atol=1e-7) for k, v in _weights(a).items())
    assert not any(getattr(m, "gradient_checkpointing", False) for m in a.model.lm.model.modules())


def test_layers_are_recomputed(llama: CausalLM, monkeypatch: pytest.MonkeyPatch) -> None:
    from transformers.models.llama.modeling_llama import LlamaMLP

    def forwards(on: bool) -> int:
        calls: list[int] = []
        inner = LlamaMLP.forward
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(LlamaMLP, "forward", lambda self, x: (calls.append(1), inner(self, x))[1])
            fit(replace(_request(llama, max_steps=2, gradient_checkpointing=on), validate=None))
        return len(calls)

    assert forwards(True) - forwards(False) == 2 * 2  # two layers, two steps


def test_weights_in_bfloat16_are_judged_as_they_are(llama: CausalLM) -> None:
    request = _request(llama, torch_dtype="bfloat16", num_train_epochs=2)
    fitted = fit(request)
    for value in _weights(fitted).values():
        assert value.dtype == torch.float32
        assert torch.equal(value, value.bfloat16().float())
    nats = max(e["nats"] for e in fitted.info["validation"])
    assert fitted.model.log_prob(request.validate).mean() == pytest.approx(nats, abs=1e-9)
    assert _equal(fitted, fit(request))


# -- evaluations ------------------------------------------------------------------------------------------------------

WORSE = {"num_train_epochs": 20, "learning_rate": 0.05, "eval_steps": 2, "decay_ratio": 0}  # soon learnt by heart


def test_the_best_evaluation_is_kept(llama: CausalLM) -> None:
    request = _request(llama, **{**WORSE, "num_train_epochs": 5})
    fitted = fit(request)
    found = fitted.info["validation"]
    assert [e["step"] for e in found] == [2, 4, 6, 8, 10, 12, 14, 15]
    best = max(found, key=lambda e: e["nats"])
    assert best["step"] == fitted.info["best_step"] < 15
    assert fitted.model.log_prob(request.validate).mean() == pytest.approx(best["nats"], abs=1e-9)


def test_patience_ends_a_fit_and_a_killed_one_goes_on(llama: CausalLM, tmp_path: Path) -> None:
    plain = fit(_request(llama, **WORSE))
    nats = [e["nats"] for e in plain.info["validation"]]
    k = next(i for i in range(1, len(nats)) if max(nats[: i - 1], default=-math.inf) >= max(nats[i - 1 : i + 1]))
    patient = {**WORSE, "early_stopping_patience": 2}
    stopped = fit(_request(llama, **patient))
    assert [e["nats"] for e in stopped.info["validation"]] == nats[: k + 1]
    assert stopped.info["steps"] == 2 * (k + 1) < 20 * EPOCH
    best = nats.index(max(nats[: k + 1]))
    assert stopped.info["best_step"] == 2 * (best + 1)
    for save, killed in ((1, 2 * k), (2, 2 * (k + 1)), (3, 2 * k + 1)):
        request = _request(llama, tmp_path / f"{save}", save_steps=save, **patient)
        _killed_at(request, killed)
        again = fit(request)
        assert "resumed" in again.info
        assert _equal(again, stopped)
        for name in ("validation", "best_step", "steps", "tokens"):
            assert again.info[name] == stopped.info[name]


def test_a_fit_killed_after_its_last_checkpoint_ends_as_it_would(
    llama: CausalLM, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The checkpoint of the step at which patience ran out is whole, and nothing is learnt after it."""
    patient = {**WORSE, "early_stopping_patience": 1}
    stopped = fit(_request(llama, **patient))
    request = _request(llama, tmp_path / "p", save_steps=1, **patient)
    with monkeypatch.context() as patch:
        patch.setattr(Evaluations, "restore_best", lambda self: (_ for _ in ()).throw(Killed()))
        with pytest.raises(Killed):
            fit(request)
    ticks: list[float] = []
    again = fit(replace(request, tick=lambda done, total, what: ticks.append(done)))
    assert again.info["resumed"] == f"checkpoint-{stopped.info['steps']}"
    assert not ticks
    assert _equal(again, stopped)
    assert again.info["steps"] == stopped.info["steps"]


def _killed_at(request: FitRequest, step: int) -> None:
    def tick(done: float, total: float, what: str) -> None:
        if what == "steps" and done == step:
            raise Killed

    with pytest.raises(Killed):
        fit(replace(request, tick=tick))


@pytest.mark.parametrize(
    "fields",
    [
        {"lora": {"r": 2}},
        {"torch_dtype": "bfloat16"},
        {"max_steps": 4, "lr_scheduler_type": "constant", "eval_steps": 4},
    ],
)
def test_a_fit_killed_after_its_last_step_is_stored_as_it_was(
    monkeypatch, tmp_path: Path, fields: dict[str, Any]
) -> None:
    if "lora" in fields:
        pytest.importorskip("peft")
    llama = CausalLM(make_llama(64, layers=3), make_tokenizer(64))
    fields = {"save_steps": 2, **({} if "max_steps" in fields else {"num_train_epochs": 1}), **fields}
    whole = fit(_request(llama, **fields))

    def killed(_: Evaluations) -> None:
        raise Killed

    with monkeypatch.context() as m:
        m.setattr(Evaluations, "restore_best", killed)
        with pytest.raises(Killed):
            fit(_request(llama, tmp_path, **fields))
    again = fit(_request(llama, tmp_path, **fields))
    assert "resumed" in again.info
    assert _equal(whole, again)
    assert (again.info["steps"], again.info["validation"]) == (whole.info["steps"], whole.info["validation"])
