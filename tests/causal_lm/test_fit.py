"""Fits: where the weights start, what is learned, and that a fit is a function of its request."""

from __future__ import annotations

import os
import random
from dataclasses import replace

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from transformers import AutoModelForCausalLM  # noqa: E402

from hydrometer.core.errors import FitError, InputError, LawMismatchError, SpecError  # noqa: E402
from hydrometer.core.rng import Stream  # noqa: E402
from hydrometer.core.spec import Selectivity  # noqa: E402
from hydrometer.models.base import FitRequest  # noqa: E402
from hydrometer.models.causal_lm.inference.law import CausalLaw  # noqa: E402
from hydrometer.models.causal_lm.inference.model import CausalLM  # noqa: E402
from hydrometer.models.causal_lm.inference.opened import pick_device  # noqa: E402
from hydrometer.models.causal_lm.level_spec import LevelSpec  # noqa: E402
from hydrometer.models.causal_lm.spec import Training  # noqa: E402
from hydrometer.models.causal_lm.training.answer_loss import Answers, collate  # noqa: E402
from hydrometer.models.causal_lm.training.initialization import init_model, scratch_config  # noqa: E402
from hydrometer.models.causal_lm.training.trainer import fit  # noqa: E402
from tiny import make_llama, make_tokenizer  # noqa: E402

SCRATCH = {"init": "scratch", "architecture": {"num_hidden_layers": 1, "hidden_size": 16, "num_attention_heads": 2}}
TRAINING = {"num_train_epochs": 2, "per_device_train_batch_size": 16, "learning_rate": 1e-2}


def level(**fields: object) -> LevelSpec:
    return LevelSpec.model_validate({**SCRATCH, "training": TRAINING, **fields})


@pytest.fixture(scope="module")
def truth(llama: CausalLM) -> CausalLaw:
    return llama.law(["w5", "w9 w10 w11"], max_new_tokens=8)


@pytest.fixture(scope="module")
def request_(truth: CausalLaw) -> FitRequest:
    return FitRequest(
        data=truth.sample(256, seed=Stream(0).child("train")),
        validate=truth.sample(64, seed=Stream(0).child("validate")),
        truth=truth,
        teacher=None,
        level=level(),
        prefix_source="truth",
        loss="mle",
        stream=Stream(0).child("fit"),
    )


def weights(law: CausalLaw) -> dict[str, torch.Tensor]:
    return law.lm.model.state_dict()


def test_a_fit_learns_and_reports(request_: FitRequest, truth: CausalLaw):
    ticks: list[tuple[float, float, str]] = []
    fitted = fit(replace(request_, tick=lambda *t: ticks.append(t)))
    fresh = replace(fitted.model, lm=init_model(request_.level, truth.lm, truth.lm, request_.stream.integer()))
    assert fitted.model.log_prob(request_.validate).mean() > fresh.log_prob(request_.validate).mean() + 1
    assert ticks[-1] == (32, 32, "steps")
    info = fitted.info
    assert info["steps"] == 32
    best = max(e["nats"] for e in info["validation"])
    assert info["validation"][info["best_epoch"] - 1]["nats"] == best
    assert fitted.model.log_prob(request_.validate).mean() == pytest.approx(best, abs=1e-9)
    fitted.model.compatible(truth)


def test_two_fits_are_bitwise_equal_and_leave_no_trace(request_: FitRequest):
    torch.manual_seed(5)
    before = (torch.get_rng_state(), random.getstate(), np.random.get_state()[1].copy())  # noqa: NPY002
    first = weights(fit(request_).model)
    assert torch.equal(before[0], torch.get_rng_state())
    assert before[1] == random.getstate()
    assert (before[2] == np.random.get_state()[1]).all()  # noqa: NPY002
    assert not torch.are_deterministic_algorithms_enabled()
    torch.manual_seed(6)
    second = weights(fit(request_).model)
    assert all(torch.equal(first[k], second[k]) for k in first)
    other = weights(fit(replace(request_, stream=Stream(1).child("fit"))).model)
    assert not all(torch.equal(first[k], other[k]) for k in first)


def test_the_worse_last_epoch_is_not_kept(request_: FitRequest):
    few = replace(request_, data=request_.data.take(slice(0, 16)))
    spec = level(training={**TRAINING, "num_train_epochs": 25, "learning_rate": 0.03, "decay_ratio": 0})
    fitted = fit(replace(few, level=spec))
    nats = [e["nats"] for e in fitted.info["validation"]]
    assert fitted.info["best_epoch"] < 25
    assert fitted.model.log_prob(request_.validate).mean() == pytest.approx(max(nats), abs=1e-9)
    assert all(not p.grad_fn for p in fitted.model.lm.model.parameters())


def test_float32_and_accumulation_follow_the_same_path(request_: FitRequest):
    """Two accumulated halves weigh by tokens, so they are one whole batch up to rounding."""
    spec = {**TRAINING, "bf16": False, "num_train_epochs": 1}
    whole = fit(replace(request_, level=level(training=spec))).model
    halves = {**spec, "per_device_train_batch_size": 8, "gradient_accumulation_steps": 2}
    parts = fit(replace(request_, level=level(training=halves))).model
    gap = whole.log_prob(request_.validate) - parts.log_prob(request_.validate)
    assert np.abs(gap).max() < 0.05


def test_the_stop_token_is_learned_and_the_prompt_is_not(request_: FitRequest, truth: CausalLaw):
    x = request_.data
    i = int(np.flatnonzero(x.stopped)[0])
    row = Answers(x)[i]
    prompt = truth.prompts.ids[x.prompt_index[i]]
    assert row["labels"][: len(prompt)] == [-100] * len(prompt)
    assert row["labels"][-1] == truth.stop_ids[0] == truth.lm.tokenizer.pad_token_id
    batch = collate([row, {"input_ids": [3], "labels": [3]}])
    assert batch["labels"][0, len(row["labels"]) - 1] == truth.stop_ids[0]
    assert batch["attention_mask"][1].sum() == 1
    assert (batch["labels"][1, 1:] == -100).all()


def test_a_student_learns_to_stop(truth: CausalLaw, request_: FitRequest):
    from hydrometer.models.rows.sequences import Sequences

    n = 128
    ids = np.tile([7, 8, 1], (n, 1))
    always = Sequences(truth.prompts.ids, np.arange(n) % 2, ids, np.full(n, 3), np.ones(n, np.bool_), np.zeros(n))
    training = {**TRAINING, "num_train_epochs": 6, "learning_rate": 0.03}
    student = fit(replace(request_, data=always, validate=None, level=level(training=training))).model
    assert student.sample(64).stopped.mean() > 0.9


@pytest.mark.parametrize(
    ("change", "error", "word"),
    [
        ({"loss": "reverse"}, SpecError, "no such objective"),
        ({"loss": "jsd"}, FitError, "needs a teacher"),
        ({"level": Training()}, InputError, "LevelSpec"),
        ({"data": None}, InputError, "Sequences"),
    ],
)
def test_bad_requests(request_: FitRequest, change, error, word):
    with pytest.raises(error, match=word):
        fit(replace(request_, **change))


def test_rows_of_other_prompts_and_no_rows(request_: FitRequest, llama: CausalLM):
    with pytest.raises(LawMismatchError, match="other prompts"):
        fit(replace(request_, data=llama.law(max_new_tokens=8).sample(4)))
    with pytest.raises(FitError, match="no rows"):
        fit(replace(request_, data=request_.data.take(slice(0, 0))))


def test_a_loss_that_is_not_finite_fails_the_fit(request_: FitRequest):
    wild = level(training={**TRAINING, "learning_rate": 1e30, "warmup_ratio": 0, "bf16": False})
    with pytest.raises(FitError, match="not finite"):
        fit(replace(request_, level=wild))


def test_layers_keep_their_weights(any_lm: CausalLM):
    spec = LevelSpec.model_validate({"init": {"layers_of": "above", "layers": [2, 0]}})
    lm = init_model(spec, any_lm, any_lm, 0)
    old, new = any_lm.model.state_dict(), lm.model.state_dict()
    prefix = "transformer.h" if any_lm.model.config.model_type == "gpt2" else "model.layers"
    for key, tensor in new.items():
        source = key.replace(f"{prefix}.0.", f"{prefix}.OLD2.").replace(f"{prefix}.1.", f"{prefix}.0.")
        assert torch.equal(tensor, old[source.replace("OLD", "")])
        assert tensor.data_ptr() != old[source.replace("OLD", "")].data_ptr()
    assert lm.model.config.num_hidden_layers == 2
    with pytest.raises(SpecError, match="counted from 0 to 2"):
        init_model(LevelSpec.model_validate({"init": {"layers_of": "truth", "layers": [3]}}), any_lm, any_lm, 0)


def test_a_copy_is_the_same_law_and_opens_again(any_lm: CausalLM, tmp_path):
    for init in ("truth", {"layers_of": "truth", "layers": [0, 2]}):
        lm = init_model(LevelSpec.model_validate({"init": init}), any_lm, any_lm, 0)
        folder = tmp_path / ("copy" if init == "truth" else "layers")
        lm.save(folder)
        again = AutoModelForCausalLM.from_pretrained(folder)
        ids = torch.arange(6)[None]
        with torch.no_grad():
            assert torch.equal(again(ids).logits, lm.model(ids).logits)
            if init == "truth":
                assert torch.equal(again(ids).logits, any_lm.model(ids).logits)


def test_scratch_is_a_function_of_the_seed(any_lm: CausalLM):
    state = torch.get_rng_state()
    one, same, other = (init_model(level(), any_lm, any_lm, s).model.state_dict() for s in (1, 1, 2))
    assert all(torch.equal(one[k], same[k]) for k in one)
    assert not all(torch.equal(one[k], other[k]) for k in one)
    assert torch.equal(state, torch.get_rng_state())


def test_scratch_config(llama: CausalLM, any_lm: CausalLM):
    config = scratch_config(llama.model.config, {"hidden_size": 16, "num_attention_heads": 2})
    assert (config.head_dim, config.num_key_value_heads, config.intermediate_size) == (8, 2, 24)
    assert config.vocab_size == 64
    assert scratch_config(any_lm.model.config, {"num_hidden_layers": 1}).num_hidden_layers == 1
    with pytest.raises(SpecError, match="did you mean 'hidden_size'"):
        scratch_config(llama.model.config, {"hiden_size": 16})
    with pytest.raises(SpecError, match="multiple"):
        scratch_config(llama.model.config, {"hidden_size": 15})
    with pytest.raises(SpecError, match="whole number"):
        scratch_config(llama.model.config, {"num_hidden_layers": 0})
    with pytest.raises(LawMismatchError):
        init_model(level(architecture={"vocab_size": 32}), llama, llama, 0)


def test_a_source_of_another_vocabulary_is_refused(llama: CausalLM, llama_folder, tmp_path):
    same = init_model(LevelSpec.model_validate({"init": {"source": str(llama_folder)}}), llama, llama, 0)
    assert torch.equal(same.model.lm_head.weight, llama.model.lm_head.weight)
    CausalLM(make_llama(vocab=32), make_tokenizer(32)).save(tmp_path)
    with pytest.raises(LawMismatchError, match="vocabulary"):
        init_model(LevelSpec.model_validate({"init": {"source": str(tmp_path)}}), llama, llama, 0)


def test_a_rounded_truth_gives_its_layers_unrounded(llama: CausalLM, llama_folder):
    rounded = CausalLM.from_pretrained(llama_folder, dtype="bfloat16", device="cpu")
    lm = init_model(LevelSpec.model_validate({"init": "truth"}), rounded, rounded, 0)
    assert torch.equal(lm.model.lm_head.weight, llama.model.lm_head.weight)


def test_distilling_below_a_selected_teacher(request_: FitRequest, truth: CausalLaw):
    cold = truth.select(Selectivity(temperature=0.5))
    fitted = fit(replace(request_, data=cold.sample(64, seed=9), teacher=truth, prefix_source="teacher"))
    assert np.isfinite(fitted.model.log_prob(request_.validate)).all()


def test_a_cuda_device_brings_what_deterministic_fits_need(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", "x")  # so that what is set below is taken back
    monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert pick_device("cpu").type == "cpu"
    assert "CUBLAS_WORKSPACE_CONFIG" not in os.environ
    assert pick_device("auto").type == "cuda"
    assert os.environ["CUBLAS_WORKSPACE_CONFIG"] == ":4096:8"


def test_what_is_saved_does_not_say_how_it_was_opened(llama_folder, tmp_path, monkeypatch: pytest.MonkeyPatch) -> None:
    for k, offline in enumerate((False, True)):
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", offline)
        CausalLM.from_pretrained(llama_folder, dtype="float32", device="cpu").save(tmp_path / str(k))
    saved = [{p.name: p.read_bytes() for p in (tmp_path / str(k)).iterdir()} for k in range(2)]
    assert saved[0] == saved[1]
    assert b"is_local" not in saved[0]["tokenizer_config.json"]
