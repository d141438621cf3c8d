"""Fits by an objective: which epoch is kept, the teacher's laws, and what is refused."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from hydrometer.core.distillation import Objective  # noqa: E402
from hydrometer.core.errors import SpecError  # noqa: E402
from hydrometer.core.rng import Stream  # noqa: E402
from hydrometer.core.spec import Selectivity  # noqa: E402
from hydrometer.models.base import FitRequest  # noqa: E402
from hydrometer.models.causal_lm.inference.law import CausalLaw  # noqa: E402
from hydrometer.models.causal_lm.inference.model import CausalLM  # noqa: E402
from hydrometer.models.causal_lm.level_spec import FromLayers, LevelSpec  # noqa: E402
from hydrometer.models.causal_lm.spec import Training  # noqa: E402
from hydrometer.models.causal_lm.training import teacher_laws  # noqa: E402
from hydrometer.models.causal_lm.training.trainer import fit  # noqa: E402
from hydrometer.models.objectives import divergence_of, refuse_infinite  # noqa: E402
from hydrometer.models.rows.sequences import Sequences  # noqa: E402
from tiny import make_llama, make_tokenizer  # noqa: E402

V = 24
COLD = Selectivity(temperature=0.7)


def law(scale: float) -> CausalLaw:
    lm = CausalLM(make_llama(V, layers=2, seed=1), make_tokenizer(V))
    with torch.no_grad():  # a law that says something
        lm.model.get_output_embeddings().weight.mul_(scale)
    return lm.law("w3 w4", max_new_tokens=5, block_rows=16, stop=[])


@pytest.fixture(scope="module")
def truth() -> CausalLaw:
    return law(12)


def laws(network, x: Sequences, temperature: float = 1.0):
    """Next-token log-laws at every position of every row, (tokens, V)."""
    out = []
    for i in range(len(x)):
        prompt, row = list(x.prompt_ids[int(x.prompt_index[i])]), x.row(i).tolist()
        with torch.no_grad():
            logits = network(input_ids=torch.tensor([prompt + row])).logits[0, len(prompt) - 1 : -1, :V].double()
        out.append((logits / temperature).log_softmax(-1))
    return torch.cat(out)


def plain(truth: CausalLaw, loss: str, **fields: object) -> FitRequest:
    """A student of the truth's own layers, few steps."""
    teacher = truth.select(COLD)
    settings = {
        "num_train_epochs": 2, "per_device_train_batch_size": 8, "learning_rate": 0.01, "bf16": False, **fields,
    }  # fmt: skip
    level = LevelSpec(init=FromLayers(layers_of="truth", layers=(0,)), training=Training.model_validate(settings))
    rows, held_out = teacher.sample(40, seed=3), teacher.sample(16, seed=4)
    return FitRequest(rows, held_out, truth, truth, level, "teacher", loss, Stream(7), selectivity=COLD)


def test_the_epoch_is_that_of_the_lowest_objective_on_held_out_rows(truth):
    asked = plain(truth, "kl_student_teacher", num_train_epochs=6, learning_rate=0.05)
    fitted = fit(asked)
    found = [e["objective"] for e in fitted.info["validation"]]
    assert fitted.info["best_epoch"] == 1 + int(np.argmin(found))
    log_p = laws(truth.lm.model, asked.validate, COLD.temperature)
    log_q = laws(fitted.model.lm.model, asked.validate)
    value = (log_q.exp() * (log_q - log_p)).sum(-1).mean()
    assert min(found) == pytest.approx(float(value), rel=1e-5)


def held_out(fitted) -> list[float]:
    return [e["objective"] for e in fitted.info["validation"]]


def test_a_teacher_remembered_or_run_for_each_batch_makes_the_same_student(truth, monkeypatch):
    kept = held_out(fit(plain(truth, "jsd")))
    monkeypatch.setattr(teacher_laws, "MAX_BYTES", 0)
    assert held_out(fit(plain(truth, "jsd"))) == pytest.approx(kept, rel=1e-4)


def test_a_network_whose_logits_no_one_product_makes_is_distilled_too(truth, monkeypatch):
    """The same numbers through whole logits, as of a network with a soft cap."""
    split = held_out(fit(plain(truth, "jsd(mle=0.2)")))
    monkeypatch.setattr("hydrometer.models.causal_lm.networks.network._is_split", lambda *_: False)
    lm = CausalLM(truth.lm.model, truth.lm.tokenizer)
    assert not lm.is_split
    assert held_out(fit(plain(replace(truth, lm=lm), "jsd(mle=0.2)"))) == pytest.approx(split, rel=1e-4)


@pytest.mark.parametrize(
    ("loss", "said"),
    [
        ("kl_student_techer", "did you mean .kl_student_teacher"),
        ("jsd(weight=1)", "a weight lies between 0 and 1"),
        ("jsd(beta=0.5)", "jsd has no such parameter; got 'beta'"),
        ("total_variation(weight=0.5)", "no such parameter"),
        ("jsd(temperature=0)", "out of range"),
    ],
)
def test_objectives_that_are_not(loss, said):
    with pytest.raises(SpecError, match=said) as e:
        divergence_of(Objective.from_json(loss))
    assert "\n" not in str(e.value)


@pytest.mark.parametrize("cut", [{"top_k": 5}, {"top_p": 0.9}, {"min_p": 0.1}])
def test_a_direction_that_is_infinite_is_refused(truth, cut):
    s = Selectivity(**cut)
    with pytest.raises(SpecError, match="drops tokens that the student may say"):
        fit(replace(plain(truth, "kl_student_teacher"), selectivity=s))
    refuse_infinite(Objective.from_json("jsd"), s)
    refuse_infinite(Objective.from_json("skew_kl_student_teacher"), s)
