"""A model in training on the plane: the figures of `judge`, a training that does not notice, and what resumes."""

from __future__ import annotations

import json
import logging
import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from transformers import TrainerCallback, TrainerControl  # noqa: E402

from callback_world import LONGEST, World, figures, make_student, trainer_of  # noqa: E402
from hydrometer.core.errors import InputError, LawMismatchError  # noqa: E402
from hydrometer.core.statistics.estimate import Estimate  # noqa: E402
from hydrometer.integrations import PlaneCallback, plane_callback  # noqa: E402
from hydrometer.metrics.collapse import is_collapsing  # noqa: E402
from hydrometer.models.causal_lm.inference.live import undisturbed  # noqa: E402
from hydrometer.models.causal_lm.inference.model import CausalLM  # noqa: E402
from hydrometer.run.judging.judge_settings import JudgeSettings  # noqa: E402
from hydrometer.run.judging.judging import judge_models  # noqa: E402
from hydrometer.run.judging.standing_truth import stand  # noqa: E402
from tiny import make_llama, make_tokenizer  # noqa: E402

BESIDE = ("precision", "recall", "entropy", "kl_student_truth", "kl_truth_student", "length", "eos_rate")


def plane(world: World, **more: Any) -> PlaneCallback:
    return PlaneCallback(world.truth, prompts=world.prompts, **{"n": 32, "max_new_tokens": LONGEST, "every": 2, **more})


@pytest.mark.filterwarnings("ignore:.*gradient_checkpointing:FutureWarning")  # of releases that rename it
def test_training_goes_on_as_without_it(world: World, tmp_path: Path) -> None:
    def trained(name: str, callbacks: list[Any]) -> Any:
        trainer = trainer_of(tmp_path / name, world.rows, callbacks)
        trainer.model.gradient_checkpointing_enable()
        trainer.model.model.layers[0].eval()  # a mode of the user's own
        random = torch.get_rng_state()
        trainer.train()
        assert not torch.equal(random, torch.get_rng_state())  # dropout takes numbers that a callback could take away
        return trainer.model

    beside, alone = trained("beside", [plane(world)]), trained("alone", [])
    assert all(torch.equal(a, b) for a, b in zip(beside.parameters(), alone.parameters(), strict=True))


def test_a_network_is_given_back_as_it_was() -> None:
    network = make_student().train()
    network.model.layers[0].eval()
    laid_over = network.forward
    network.forward = laid_over
    modes, random = [p.training for p in network.modules()], torch.get_rng_state()
    with undisturbed(network):
        torch.rand(3)
        assert not any(p.training for p in network.modules())
        assert "forward" not in vars(network)
    assert [p.training for p in network.modules()] == modes
    assert torch.equal(random, torch.get_rng_state())
    assert network.forward is laid_over


@pytest.mark.parametrize("bf16", [False, True])  # of the steps; the weights, which are judged, are float32
def test_figures_are_those_of_judge_and_go_where_the_trainer_reports(
    world: World, tmp_path: Path, *, bf16: bool
) -> None:
    heard: list[dict[str, float]] = []

    class Reporter(TrainerCallback):
        def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **_: Any) -> None:
            heard.append({**logs, "step": state.global_step})

    callback = plane(world, n=128)
    trainer = trainer_of(tmp_path / "t", world.rows, [Reporter(), callback], learning_rate=0.0, max_steps=4, bf16=bf16)
    trainer.train()
    found = figures(trainer)
    assert list(found) == [0, 2, 4]
    assert [h for h in heard if "hydrometer/entropy" in h] == [
        h for h in trainer.state.log_history if "hydrometer/entropy" in h
    ]
    assert sum("loss" in h for h in heard) == 2  # the trainer's own records are as they were
    judged = judge_models(
        [world.student], truth=world.truth, prompts=world.prompts, answers_per_prompt=8, max_new_tokens=LONGEST,
        out=tmp_path / "judged",
    ).results["cells"][1]["metrics"]  # fmt: skip
    for at in found.values():
        for name in ("recall", "kl_truth_student"):  # of the same rows of the truth
            assert at[name] == pytest.approx(judged[name]["value"], rel=1e-9)
            assert at[f"{name}_se"] == pytest.approx(judged[name]["se"], rel=1e-6)
        for name in BESIDE:
            assert abs(at[name] - judged[name]["value"]) <= 5 * math.hypot(at[f"{name}_se"], judged[name]["se"]), name
    assert found[2]["entropy"] != found[4]["entropy"]  # each step has rows of its own


def test_texts_may_be_the_truth(world: World, tmp_path: Path) -> None:
    file = tmp_path / "answers.jsonl"
    file.write_text("\n".join(json.dumps({"prompt": f"w{i} w{i}", "completion": f" w{i + 1}"}) for i in range(3, 19)))
    callback = PlaneCallback(file, reference=world.truth, every=1, n=64, max_new_tokens=LONGEST)
    trainer = trainer_of(tmp_path / "t", world.rows, [callback], learning_rate=0.0, max_steps=1)
    trainer.train()
    judged = judge_models(
        [world.student], truth_text=file, reference=world.truth, answers_per_prompt=4, max_new_tokens=LONGEST,
        out=tmp_path / "judged",
    ).results["cells"][1]["metrics"]  # fmt: skip
    at = figures(trainer)[1]
    assert at["recall"] == pytest.approx(judged["recall"]["value"], rel=1e-6)
    assert at["recall_se"] == pytest.approx(judged["recall"]["se"], rel=1e-6)
    for name in ("precision_reference", "kl_student_reference", "entropy"):
        assert abs(at[name] - judged[name]["value"]) <= 5 * math.hypot(at[f"{name}_se"], judged[name]["se"]), name
    assert "kl_truth_student" not in at


@pytest.mark.filterwarnings("ignore:.*gradient_checkpointing:FutureWarning")  # of releases that rename it
def test_an_adapter_in_training_is_judged_with_its_base(world: World, tmp_path: Path) -> None:
    peft = pytest.importorskip("peft")
    config = peft.LoraConfig(r=4, init_lora_weights=False, target_modules=["q_proj", "up_proj"], task_type="CAUSAL_LM")
    model = peft.get_peft_model(make_student(), config)
    model.gradient_checkpointing_enable()
    trainer = trainer_of(tmp_path / "t", world.rows, [plane(world)], model, learning_rate=0.0, max_steps=2)
    trainer.train()
    CausalLM(model.merge_and_unload(), make_tokenizer(64)).save(tmp_path / "merged")
    judged = judge_models(
        [tmp_path / "merged"], truth=world.truth, prompts=world.prompts, answers_per_prompt=2, max_new_tokens=LONGEST,
        out=tmp_path / "judged",
    ).results["cells"][1]["metrics"]  # fmt: skip
    assert figures(trainer)[2]["recall"] == pytest.approx(judged["recall"]["value"], rel=1e-4)
    state = begun()
    plane(world).on_train_begin(trainer.args, state, TrainerControl(), model=make_student())
    assert state.log_history[0]["hydrometer/recall"] != pytest.approx(judged["recall"]["value"], rel=1e-3)


def begun() -> Any:
    return SimpleNamespace(is_world_process_zero=True, log_history=[], global_step=0, epoch=0.0)


def test_a_resumed_training_has_the_same_figures(world: World, tmp_path: Path) -> None:
    settings = {"max_steps": 6, "save_strategy": "steps", "save_steps": 4}
    whole = trainer_of(tmp_path / "t", world.rows, [plane(world)], **settings)
    whole.train()
    resumed = trainer_of(tmp_path / "t", world.rows, [plane(world)], **settings)
    resumed.train(resume_from_checkpoint=str(tmp_path / "t" / "checkpoint-4"))
    assert list(figures(whole)) == [0, 2, 4, 6]
    assert figures(resumed) == figures(whole)


def test_an_interval_is_chosen_once(world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = {"max_steps": 14, "save_strategy": "steps", "save_steps": 12}
    monkeypatch.setattr(plane_callback, "MOST_OF_THE_TIME", 1e6)  # every step
    whole = trainer_of(tmp_path / "t", world.rows, [plane(world, every=None, n=4)], **settings)
    whole.train()
    assert list(figures(whole)) == [0, 12, 13, 14]
    monkeypatch.setattr(plane_callback, "MOST_OF_THE_TIME", 0.0)  # never again
    resumed = trainer_of(tmp_path / "t", world.rows, [plane(world, every=None, n=4)], **settings)
    resumed.train(resume_from_checkpoint=str(tmp_path / "t" / "checkpoint-12"))
    assert figures(resumed) == figures(whole)
    fresh = trainer_of(tmp_path / "t", world.rows, [plane(world, every=None, n=4)], **settings)
    fresh.train()
    assert list(figures(fresh)) == [0]


@pytest.mark.parametrize(("evaluation", "step", "steps"), [(2.0, 0.5, 10_000), (0.1, 3.0, 50), (30.0, 1.0, 700)])
def test_the_interval_is_the_smallest_that_5_percent_pay_for(evaluation: float, step: float, steps: int) -> None:
    def share(every: int) -> float:
        return evaluation * (1 + steps // every) / (step * steps)

    every = plane_callback.round_interval(evaluation, step, steps)
    rounds = [d * 10**p for p in range(6) for d in (1, 2, 5)]
    assert every == next(r for r in rounds if r > steps or share(r) <= 0.05)
    assert every > steps or share(every) <= 0.05


def planted(world: World) -> list[dict[str, list[int]]]:
    """One answer, whatever is asked."""
    answer = [9, 23, 11, 40, 1]
    asked = [r["input_ids"][: r["labels"].count(-100)] for r in world.rows]
    return [{"input_ids": a + answer, "labels": [-100] * len(a) + answer} for a in asked]


def test_a_collapse_is_flagged_in_time(world: World, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    settings: dict[str, Any] = {"max_steps": 30, "learning_rate": 5e-3}
    with caplog.at_level(logging.WARNING):
        going = trainer_of(tmp_path / "going", planted(world), [plane(world, every=1, n=64)], **settings)
        going.train()
    found = figures(going)
    assert found[30]["entropy"] < found[0]["entropy"] / 4
    flagged = [step for step, at in found.items() if at["collapse"] == 1.0]
    assert found[flagged[0]]["entropy"] > found[0]["entropy"] / 4
    assert flagged == list(range(flagged[0], 31))
    assert sum("collapses" in r.message for r in caplog.records) == 1
    stopped = trainer_of(
        tmp_path / "s", planted(world), [plane(world, every=1, n=64, stop_on_collapse=True)], **settings
    )
    stopped.train()
    assert stopped.state.global_step == flagged[0]


@pytest.mark.parametrize("seed", [0, *(pytest.param(s, marks=pytest.mark.campaign) for s in range(1, 20))])
def test_a_sound_fit_is_not_flagged(world: World, tmp_path: Path, seed: int) -> None:
    model = make_llama(seed=100 + seed, layers=2, initializer_range=0.1)
    settings: dict[str, Any] = {"max_steps": 30, "learning_rate": 2e-3, "seed": seed}
    sound = trainer_of(tmp_path, world.rows, [plane(world, n=64)], model, **settings)
    sound.train()
    found = figures(sound)
    assert found[30]["kl_truth_student"] < found[0]["kl_truth_student"]
    assert not any(at["collapse"] for at in found.values())


def test_false_alarms_of_a_training_are_below_the_level() -> None:
    """Entropy is lost for certain, and the divergence stays as it is: the hardest of the sound trainings."""
    rng = np.random.default_rng(0)
    alarms = trainings = 0
    for _ in range(150):
        entropy = [Estimate(32.0 / 2**k, 0.1, 0.1, 64, 0, "mc", "nats") for k in range(9)]
        stays = [Estimate(5.0 + rng.normal(), 1.0, 1.0, 10_000, 0, "mc", "nats") for _ in entropy]
        alarms += any(is_collapsing(entropy[:k], stays[:k], level=0.2) for k in range(2, 10))
        trainings += 1
        rises = [Estimate(5.0 + 12 * k, 1.0, 1.0, 64, 0, "mc", "nats") for k in range(9)]
        assert is_collapsing(entropy[:3], rises[:3])
        assert not is_collapsing(rises, rises)  # further away, and wider
    assert 0 < alarms <= 0.2 * trainings + 3 * math.sqrt(0.2 * 0.8 * trainings)


def test_a_flag_stays_while_the_figures_say_so() -> None:
    def known(*values: float, se: float = 0.1) -> list[Estimate]:
        return [Estimate(x, se, se, 64, 0, "mc", "nats", 2.0) for x in values]

    collapsed = known(20.0, 4.0, se=1.0), known(5.0, 9.0, se=1.0)
    assert not is_collapsing(*collapsed)
    assert is_collapsing(*collapsed, flagged=True)
    for again in ((20.0, 10.5), (5.0, 9.0)), ((20.0, 4.0), (5.0, 4.9)):  # wide again; near again
        assert not is_collapsing(*(known(*x) for x in again), flagged=True)


def test_what_cannot_be_judged_is_refused(world: World, tmp_path: Path) -> None:
    args = trainer_of(tmp_path / "t", world.rows, []).args
    other: dict[str, Any] = {"model": make_llama(vocab=80), "processing_class": make_tokenizer(80)}
    with pytest.raises(LawMismatchError, match="another vocabulary"):
        plane(world).on_train_begin(args, begun(), TrainerControl(), **other)
    for name, value in {"fsdp": ["full_shard"], "deepspeed": "zero3.json", "world_size": 2}.items():
        parts: Any = SimpleNamespace(**{"fsdp": [], "deepspeed": None, "world_size": 1, name: value})
        with pytest.raises(InputError, match="got"):
            plane(world, stop_on_collapse=True).on_train_begin(parts, begun(), TrainerControl())
    no_reference = JudgeSettings((), truth_text=str(world.prompts))
    with pytest.raises(InputError, match="reference"):
        stand(no_reference, 4, tmp_path / "kept")
    with pytest.raises(InputError, match="every"):
        plane(world, every=0)
