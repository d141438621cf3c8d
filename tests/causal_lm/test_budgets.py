"""Fits that end with their tokens, and evaluations chosen by another figure than the objective."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from hydrometer.core.rng import Stream  # noqa: E402
from hydrometer.core.spec import Selectivity  # noqa: E402
from hydrometer.models.base import FitRequest  # noqa: E402
from hydrometer.models.causal_lm.inference.law import CausalLaw  # noqa: E402
from hydrometer.models.causal_lm.inference.model import CausalLM  # noqa: E402
from hydrometer.models.causal_lm.level_spec import LevelSpec  # noqa: E402
from hydrometer.models.causal_lm.spec import Training  # noqa: E402
from hydrometer.models.causal_lm.training import evaluations  # noqa: E402
from hydrometer.models.causal_lm.training.trainer import fit  # noqa: E402
from tiny import make_llama, make_tokenizer  # noqa: E402

WARM = Selectivity(temperature=1.3)


@pytest.fixture(scope="module")
def truth() -> CausalLaw:
    return CausalLM(make_llama(16, layers=1, seed=2), make_tokenizer(16)).law(["w3", "w4 w5"], max_new_tokens=5)


def asked(truth: CausalLaw, loss: str, source: str, **fields: object) -> FitRequest:
    settings = {
        "num_train_epochs": 3, "per_device_train_batch_size": 4, "learning_rate": 0.02, "bf16": False, **fields,
    }  # fmt: skip
    level = LevelSpec(
        architecture={"num_hidden_layers": 1, "hidden_size": 16, "intermediate_size": 16, "num_attention_heads": 2},
        training=Training.model_validate(settings),
    )
    rows, held_out = truth.sample(12, seed=3), truth.sample(8, seed=4)
    return FitRequest(rows, held_out, truth, truth, level, source, loss, Stream(7), selectivity=WARM)


def weights(found: Any) -> dict[str, torch.Tensor]:
    return found.model.lm.model.state_dict()


def same(a: Any, b: Any) -> bool:
    return all(torch.equal(x, weights(b)[k]) for k, x in weights(a).items())


@pytest.mark.parametrize("source", ["student", "truth(student=0.5)", "truth"])
def test_the_step_that_reaches_the_tokens_is_the_last_and_the_schedule_follows_them(truth, monkeypatch, source):
    seen: list[tuple[int, float]] = []  # tokens with those of the step, and the rate at which it learns
    real = evaluations.Evaluations.on_pre_optimizer_step

    def step(self: Any, args: Any, state: Any, control: Any, **more: Any) -> None:
        real(self, args, state, control, **more)
        seen.append((int(state.num_input_tokens_seen), self._rate))

    monkeypatch.setattr(evaluations.Evaluations, "on_pre_optimizer_step", step)
    request = replace(asked(truth, "jsd", source, lr_scheduler_type="linear", warmup_ratio=0), tokens=100)
    found = fit(request)
    tokens = [0, *(n for n, _ in seen)]
    assert tokens[-2] < 100 <= tokens[-1] == found.info["tokens"]
    assert found.info["steps"] == len(seen) != 9
    planned = 9  # three epochs of three steps
    expected = [0.02 * (1 - round(planned * n / 100) / planned) for n in tokens[:-1]]
    assert [rate for _, rate in seen] == pytest.approx(expected)
    assert len(found.info["validation"]) == -(-len(seen) // 3)


def test_tokens_of_all_epochs_are_all_epochs(truth):
    request = asked(truth, "mle", "truth", lr_scheduler_type="constant")
    whole = fit(request)
    assert same(whole, fit(replace(request, tokens=3 * int(request.data.lengths.sum()))))


class Killed(BaseException):
    pass


@pytest.mark.parametrize("at", [7, 1000])
def test_a_killed_fit_ends_with_the_same_tokens(truth, tmp_path, at):
    whole = fit(replace(asked(truth, "jsd", "student"), tokens=150))
    request = replace(asked(truth, "jsd", "student", save_steps=1), tokens=150, partial=tmp_path / "partial")
    steps: list[float] = []

    def tick(done: float, total: float, what: str) -> None:
        steps.append(done)
        if what == "tokens" and (len(steps) == at or done >= total):
            raise Killed

    with pytest.raises(Killed):
        fit(replace(request, tick=tick))
    again = fit(request)
    assert same(again, whole)
    for name in ("validation", "steps", "tokens", "tokens_drawn", "best_epoch"):
        assert again.info[name] == whole.info[name]


def test_a_fit_killed_behind_an_early_stop_says_the_same(truth, tmp_path, monkeypatch):
    settings = {"save_steps": 1, "eval_steps": 1, "early_stopping_patience": 1, "learning_rate": 5.0}
    request = replace(asked(truth, "jsd", "student", **settings), tokens=100_000)
    whole = fit(request)
    assert 0 < whole.info["tokens"] < 100_000
    best = evaluations.Evaluations
    restore = best.restore_best

    def dying(self):
        monkeypatch.setattr(best, "restore_best", restore)
        raise Killed

    monkeypatch.setattr(best, "restore_best", dying)
    request = replace(request, partial=tmp_path / "partial")
    with pytest.raises(Killed):
        fit(request)
    again = fit(request)
    assert same(again, whole)
    for name in ("validation", "steps", "tokens", "tokens_drawn"):
        assert again.info[name] == whole.info[name]


def test_what_a_student_draws_is_what_it_learns_from_and_what_is_held_out(truth):
    found = fit(asked(truth, "jsd", "student", eval_steps=9)).info
    assert found["tokens"] < found["tokens_drawn"] <= found["tokens"] + 8 * 5  # one evaluation of eight rows


def test_another_figure_chooses_the_evaluation_and_is_said(truth):
    def cold(**fields: object) -> Any:
        request = asked(truth, "kl_student_teacher", "student", num_train_epochs=10, **fields)
        return fit(replace(request, selectivity=Selectivity(temperature=0.3)))

    plain = cold()
    history = plain.info["validation"]
    assert plain.info["chosen_by"] == "kl_student_teacher"
    by_likelihood = int(np.argmax([e["nats"] for e in history]))
    assert by_likelihood != np.argmin([e["objective"] for e in history]) == plain.info["best_epoch"] - 1
    likeliest = cold(metric_for_best_model="mle")
    assert likeliest.info["validation"] == history
    assert (likeliest.info["chosen_by"], likeliest.info["best_epoch"]) == ("mle", by_likelihood + 1)
    held_out = asked(truth, "mle", "truth").validate
    assert likeliest.model.log_prob(held_out).mean() == pytest.approx(history[by_likelihood]["nats"], abs=1e-4)
    nearest = cold(metric_for_best_model="jsd")
    found = [e["jsd"] for e in nearest.info["validation"]]
    assert nearest.info["best_epoch"] == 1 + int(np.argmin(found))
    by_objective = fit(asked(truth, "jsd", "truth", num_train_epochs=1, metric_for_best_model="jsd")).info["validation"]
    assert by_objective[0]["jsd"] == by_objective[0]["objective"]  # on the held-out rows themselves


def test_a_fit_that_does_not_see_its_teacher_is_chosen_by_likelihood(truth):
    found = fit(asked(truth, "mle", "truth", metric_for_best_model="kl_teacher_student"))
    assert found.info["chosen_by"] == "mle"
    assert found.info["best_epoch"] == 1 + int(np.argmax([e["nats"] for e in found.info["validation"]]))
