"""Adapters that are trained here: by peft's own network, stored for peft, and merged exactly."""

from __future__ import annotations

import json
import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")
peft = pytest.importorskip("peft")

from transformers import AutoModelForCausalLM  # noqa: E402

from chains import lm_spec  # noqa: E402
from hydrometer.core.errors import SpecError  # noqa: E402
from hydrometer.core.rng import Stream  # noqa: E402
from hydrometer.models.base import FitRequest, Fitted  # noqa: E402
from hydrometer.models.causal_lm.cost.memory import trained_parameters  # noqa: E402
from hydrometer.models.causal_lm.family import CAUSAL_LM  # noqa: E402
from hydrometer.models.causal_lm.inference.law import CausalLaw  # noqa: E402
from hydrometer.models.causal_lm.inference.model import CausalLM  # noqa: E402
from hydrometer.models.causal_lm.level_spec import FromLayers, Init, LevelSpec  # noqa: E402
from hydrometer.models.causal_lm.spec import CausalLMChain, FromSource, Training  # noqa: E402
from hydrometer.models.causal_lm.training import initialization  # noqa: E402
from hydrometer.models.causal_lm.training.trainer import fit  # noqa: E402
from tiny import make_gpt2, make_llama, make_qwen2, make_tokenizer  # noqa: E402

# peft asks transformers for an attribute that is to go; ours is not the place to mend it.
pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")

ROWS = 40
LORA = {"r": 3, "lora_alpha": 5}


OPEN = CausalLM.from_pretrained


class Killed(BaseException):
    """What a signal would be."""


def _request(
    lm: CausalLM, lora: dict[str, object], init: Init, partial: Path | None = None, **fields: object
) -> FitRequest:
    law = lm.law("w3 w4", max_new_tokens=6, block_rows=16)
    given = {"per_device_train_batch_size": 16, "learning_rate": 0.02, "bf16": False, "num_train_epochs": 3, **fields}
    level = LevelSpec(init=init, training=Training.model_validate({**given, "lora": lora}))
    rows, held_out = law.sample(ROWS, seed=3), law.sample(16, seed=4)
    return FitRequest(rows, held_out, law, None, level, "truth", "mle", Stream(7), partial=partial)


def _weights(fitted: Fitted[CausalLaw]) -> dict[str, Any]:
    return fitted.model.lm.model.state_dict()


def _open(folder: Path) -> Any:
    """In float64, so that only what is stored is compared, not the order of float32 sums."""
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).double().eval()


def _adapted(base: Path, adapter: Path) -> Any:
    return peft.PeftModel.from_pretrained(_open(base), adapter).double().eval()


IDS = torch.randint(3, 60, (4, 11), generator=torch.Generator().manual_seed(0))
TWO = FromLayers(layers_of="truth", layers=(0, 2))


@pytest.mark.parametrize(
    ("lora", "training"),
    [
        ({}, {}),
        ({"use_rslora": True, "lora_dropout": 0.2}, {"bf16": True}),
        ({"use_dora": True, "target_modules": ["q_proj", "down_proj"]}, {}),
        ({}, {"torch_dtype": "bfloat16", "gradient_checkpointing": True}),
    ],
    ids=["all-linear", "rslora, dropout, autocast", "dora", "bfloat16 base, recomputed"],
)
def test_peft_opens_what_was_judged(
    llama: CausalLM, tmp_path: Path, lora: dict[str, object], training: dict[str, object]
) -> None:
    request = _request(llama, LORA | lora, TWO, **training)
    fitted = fit(request)
    CAUSAL_LM.save_law(fitted.model, tmp_path)
    theirs = _adapted(tmp_path / "base", tmp_path / "adapter")
    with torch.no_grad():
        logits, before = theirs(IDS).logits, _open(tmp_path / "base")(IDS).logits
        assert torch.allclose(logits, _open(tmp_path)(IDS).logits, atol=1e-5)  # as every later stage opens it
        assert float((logits - before).abs().max()) > 0.1
    assert fitted.model.lm.is_llama  # kernels for plain networks run the merged one
    x, best = request.validate, max(e["nats"] for e in fitted.info["validation"])
    assert fitted.model.log_prob(x).mean() == pytest.approx(best, abs=1e-9)
    for i in range(4):
        row = [*x.prompt_ids[int(x.prompt_index[i])], *x.row(i).tolist()]
        n = len(x.row(i))
        log_p = theirs(torch.tensor([row])).logits[0, :-1].log_softmax(-1)[-n:]
        total = float(log_p.gather(-1, torch.tensor(row[-n:])[:, None]).sum())
        assert fitted.model.log_prob(x.take(slice(i, i + 1)))[0] == pytest.approx(total, abs=1e-4)


@pytest.mark.parametrize("make", [lambda: make_gpt2(tied=True), make_qwen2], ids=["gpt2", "qwen2"])
def test_other_architectures_and_biases(make: Any, tmp_path: Path) -> None:
    """GPT-2's products are stored the other way round, its head is tied; Qwen's have biases, and rows without an id."""
    lm = CausalLM(make(), make_tokenizer(64))
    fitted = fit(_request(lm, {**LORA, "bias": "all"}, "truth"))
    CAUSAL_LM.save_law(fitted.model, tmp_path)
    theirs = _adapted(tmp_path / "base", tmp_path / "adapter")
    with torch.no_grad():
        assert torch.allclose(theirs(IDS).logits, _open(tmp_path)(IDS).logits, atol=1e-5)
    changed = {k for k, v in lm.model.state_dict().items() if not torch.equal(v, _weights(fitted)[k])}
    assert any(k.endswith("bias") for k in changed)
    assert not any("embed" in k or "wte" in k or "lm_head" in k for k in changed)


def test_a_named_base_is_named_and_not_stored(llama: CausalLM, llama_folder: Path, tmp_path: Path) -> None:
    fitted = fit(_request(llama, LORA, FromSource(source=str(llama_folder), revision="v1.0")))
    CAUSAL_LM.save_law(fitted.model, tmp_path)
    assert not (tmp_path / "base").exists()
    config = json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())
    assert (config["base_model_name_or_path"], config["revision"]) == (str(llama_folder), "v1.0")
    again = CausalLM.from_pretrained(tmp_path / "adapter", base=str(llama_folder))
    for name, value in again.model.state_dict().items():
        assert torch.allclose(value, _weights(fitted)[name], atol=1e-6)


def test_one_step_is_that_of_plain_torch(llama: CausalLM) -> None:
    """The gradient reaches the adapters, and nothing else: one step of gradient descent on all rows."""
    fields: dict[str, Any] = {
        "optim": "sgd",
        "max_steps": 1,
        "lr_scheduler_type": "constant",
        "per_device_train_batch_size": ROWS,
        "max_grad_norm": 1e9,
    }
    request = _request(llama, {**LORA, "target_modules": ["v_proj"]}, "truth", **fields)
    fitted = fit(request)
    adapter: Any = fitted.model.lm.adapter
    a = {k: v.detach() for k, v in adapter.trained.model.named_parameters() if "lora_A" in k}
    model = make_llama()
    x, total = request.data, torch.zeros(())
    for i in range(len(x)):
        row = [*x.prompt_ids[int(x.prompt_index[i])], *x.row(i).tolist()]
        n = len(x.row(i))
        log_p = model(torch.tensor([row])).logits[0, :-1].log_softmax(-1)[-n:]
        total = total - log_p.gather(-1, torch.tensor(row[-n:])[:, None]).sum()
    (total / int(x.lengths.sum())).backward()
    scale = LORA["lora_alpha"] / LORA["r"]
    before, after = model.state_dict(), _weights(fitted)
    for name, p in model.named_parameters():
        if "v_proj" not in name:
            assert torch.equal(after[name], before[name])
            continue
        # B begins at zero, so that A gets no gradient: dB = s G A', and W' = W - rate s^2 G A' A.
        factor = a[name.replace(".weight", ".lora_A.default.weight")]
        wanted = p.detach() - 0.02 * scale**2 * p.grad @ factor.T @ factor
        assert torch.allclose(after[name], wanted, atol=1e-6)
        assert float((after[name] - p.detach()).abs().max()) > 1e-4


def test_a_killed_fit_goes_on_bit_for_bit(llama: CausalLM, tmp_path: Path) -> None:
    """With dropout, whose generators are part of a checkpoint, and the best evaluation in the past."""
    fields = {"save_steps": 2, "eval_steps": 2, "num_train_epochs": 6, "learning_rate": 1.0}
    lora = {**LORA, "lora_dropout": 0.1}
    whole = fit(_request(llama, lora, TWO, **fields))
    steps = [e["step"] for e in whole.info["validation"]]
    assert whole.info["best_step"] < steps[-1]

    def tick(done: float, total: float, what: str) -> None:
        if what == "steps" and done == 13:
            raise Killed

    request = _request(llama, lora, TWO, tmp_path, **fields)
    with pytest.raises(Killed):
        fit(replace(request, tick=tick))
    again = fit(request)
    assert again.info["resumed"] == "checkpoint-12"
    assert again.info["validation"] == whole.info["validation"]
    assert all(torch.equal(v, _weights(whole)[k]) for k, v in _weights(again).items())


@pytest.mark.parametrize("lora", [{}, {"use_dora": True}, {"bias": "all"}, {"bias": "lora_only", "r": 2}])
@pytest.mark.parametrize("make", [make_llama, lambda: make_gpt2(tied=True), make_qwen2], ids=["llama", "gpt2", "qwen2"])
def test_plan_counts_what_peft_trains(make: Any, lora: dict[str, object]) -> None:
    model = make()
    config = peft.LoraConfig(task_type="CAUSAL_LM", target_modules="all-linear", **{"r": 3, **lora})
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of transposed weights, which it then handles
        theirs, _ = peft.get_peft_model(make(), config).get_nb_trainable_parameters()
    assert trained_parameters(model.config, Training.model_validate({"lora": {"r": 3, **lora}})) == theirs


def chain_of(folder: Path, **training: object) -> CausalLMChain:
    student = {"init": {"layers_of": "truth", "layers": [0]}, "training": training}
    return CausalLMChain.model_validate(lm_spec(folder)["chains"]["lm"] | {"threads": 1, "student": student})


def test_plan_prices_adapters_and_recomputing(llama_folder: Path) -> None:
    def work(**training: object) -> Any:
        return CAUSAL_LM.work(chain_of(llama_folder, **training), "fit", "student", 64, 6.0, "float32")

    plain, adapted = work(), work(lora={"r": 1, "target_modules": ["q_proj"]})
    assert plain.flops * 0.6 < adapted.flops < plain.flops * 0.8  # no gradients of weights
    assert adapted.memory < plain.memory
    assert adapted.disk > plain.disk
    assert plain.flops * 1.1 < work(gradient_checkpointing=True).flops < plain.flops * 4 / 3
    assert work(optim="sgd").memory < plain.memory
    half = work(max_steps=1, per_device_train_batch_size=32)
    assert half.tokens == 64 * 6.0 / 2
    names = [{p.name for p in w.parts} for w in (plain, adapted, work(optim="sgd"), work(gradient_checkpointing=True))]
    assert len({frozenset(n) for n in names}) == 4  # each is timed


@pytest.mark.parametrize(
    ("names", "word"), [(["q_proj", "query"], "query.*down_proj"), (["lm_head"], "lm_head.*q_proj"), (["mlp"], "mlp")]
)
def test_modules_that_are_not_there(llama: CausalLM, llama_folder: Path, names: list[str], word: str) -> None:
    with pytest.raises(SpecError, match=word) as e:
        CAUSAL_LM.check(chain_of(llama_folder, lora={"target_modules": names}))
    assert "\n" not in str(e.value)
    with pytest.raises(SpecError, match=word):
        fit(_request(llama, {"target_modules": names}, "truth"))


def test_adapters_need_a_model_to_adapt() -> None:
    with pytest.raises(SpecError, match="give init"):
        LevelSpec(architecture={"num_hidden_layers": 1}, training=Training.model_validate({"lora": {}}))


def test_adapters_are_equal_for_equal_requests(llama: CausalLM) -> None:
    first, second = (_weights(fit(_request(llama, LORA, "truth", num_train_epochs=1))) for _ in range(2))
    assert all(torch.equal(v, second[k]) for k, v in first.items())
    before = llama.model.state_dict()
    assert not all(torch.equal(v, before[k]) for k, v in first.items())
    assert np.isfinite(float(first["lm_head.weight"].sum()))


def test_a_model_under_an_adapter_is_learnt_further(llama: CausalLM, llama_folder: Path, tmp_path: Path) -> None:
    """All weights of what a merged adapter gives are trained."""
    adapted = fit(_request(llama, LORA, FromSource(source=str(llama_folder)), num_train_epochs=1))
    CAUSAL_LM.save_law(adapted.model, tmp_path)
    request = _request(llama, LORA, FromSource(source=str(tmp_path / "adapter")), num_train_epochs=1)
    level = request.level.model_copy(update={"training": request.level.training.model_copy(update={"lora": None})})
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            initialization.CausalLM,
            "from_pretrained",
            lambda source, **options: OPEN(source, **{**options, "base": str(llama_folder)}),
        )
        after = _weights(fit(replace(request, level=level)))
    assert not any(torch.equal(v, after[k]) for k, v in _weights(adapted).items())
