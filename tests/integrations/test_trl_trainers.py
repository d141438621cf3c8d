"""The same figures under TRL's trainers as by `judge`; and what the page on them says runs."""

from __future__ import annotations

import json
import math
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("torch")
for needed in ("trl", "datasets"):
    if not __import__("importlib.util").util.find_spec(needed):
        pytest.skip(f"{needed} is not installed", allow_module_level=True)

from callback_world import LONGEST, World, figures, make_student  # noqa: E402
from hydrometer.integrations import PlaneCallback  # noqa: E402
from hydrometer.run.judging.judging import judge_models  # noqa: E402
from tiny import make_llama, make_tokenizer  # noqa: E402

pytestmark = pytest.mark.filterwarnings("ignore")  # trl and datasets warn when they are imported


@pytest.fixture(scope="module")
def judged(world: World, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    return judge_models(
        [world.student], truth=world.truth, prompts=world.prompts, answers_per_prompt=4, max_new_tokens=LONGEST,
        out=tmp_path_factory.mktemp("judged") / "judged",
    ).results["cells"][1]["metrics"]  # fmt: skip


def common(folder: Path) -> dict[str, Any]:
    return {
        "output_dir": str(folder), "max_steps": 2, "per_device_train_batch_size": 4, "learning_rate": 0.0,
        "logging_steps": 1, "save_strategy": "no", "report_to": "none", "use_cpu": True, "bf16": False,
        "disable_tqdm": True,
    }  # fmt: skip


def sft(folder: Path, world: World, callback: Any) -> Any:
    from datasets import Dataset
    from trl import SFTConfig, SFTTrainer

    return SFTTrainer(
        make_student(), SFTConfig(**common(folder), max_length=None), train_dataset=Dataset.from_list(world.rows[:16]),
        processing_class=make_tokenizer(64), callbacks=[callback],
    )  # fmt: skip


def gkd(folder: Path, world: World, callback: Any) -> Any:
    from datasets import Dataset
    from trl.experimental.gkd import GKDConfig, GKDTrainer

    turns = [{"role": "user", "content": "w3 w4"}, {"role": "assistant", "content": "w5 w6"}]
    return GKDTrainer(
        make_student(), make_llama(seed=0, initializer_range=0.25),
        args=GKDConfig(**common(folder), max_new_tokens=4, max_length=32, lmbda=0.5),
        train_dataset=Dataset.from_list([{"messages": turns}] * 16), processing_class=make_tokenizer(64),
        callbacks=[callback],
    )  # fmt: skip


def distillation(folder: Path, world: World, callback: Any) -> Any:
    from datasets import Dataset
    from trl import DistillationConfig, DistillationTrainer

    return DistillationTrainer(
        make_student(), make_llama(seed=0, initializer_range=0.25),
        DistillationConfig(**common(folder), max_completion_length=4),
        train_dataset=Dataset.from_list([{"prompt": "w3 w4"}] * 16), processing_class=make_tokenizer(64),
        callbacks=[callback],
    )  # fmt: skip


def dpo(folder: Path, world: World, callback: Any) -> Any:
    from datasets import Dataset
    from trl import DPOConfig, DPOTrainer

    row = {"prompt": "w3 w4", "chosen": " w5 w6", "rejected": " w7"}
    return DPOTrainer(
        make_student(), make_student(), DPOConfig(**common(folder), max_length=32),
        train_dataset=Dataset.from_list([row] * 16), processing_class=make_tokenizer(64), callbacks=[callback],
    )  # fmt: skip


def grpo(folder: Path, world: World, callback: Any) -> Any:
    from datasets import Dataset
    from trl import GRPOConfig, GRPOTrainer

    def reward(completions: list[str], **_: Any) -> list[float]:
        return [float(len(c)) for c in completions]

    return GRPOTrainer(
        make_student(), reward, args=GRPOConfig(**common(folder), num_generations=2, max_completion_length=4),
        train_dataset=Dataset.from_list([{"prompt": "w3 w4"}] * 16), processing_class=make_tokenizer(64),
        callbacks=[callback],
    )  # fmt: skip


@pytest.mark.parametrize("make", [sft, gkd, distillation, dpo, grpo])
def test_figures_of_a_frozen_model_are_those_of_judge(
    make: Any, world: World, judged: dict[str, Any], tmp_path: Path
) -> None:
    callback = PlaneCallback(world.truth, prompts=world.prompts, every=1, n=64, max_new_tokens=LONGEST)
    trainer = make(tmp_path / "t", world, callback)
    trainer.train()
    found = figures(trainer)
    assert list(found) == [0, 1, 2]
    losses = [h for h in trainer.state.log_history if "loss" in h]
    assert [h["step"] for h in losses] == [1, 2]
    assert not any(k.startswith("hydrometer/") for h in losses for k in h)
    for at in found.values():
        assert at["recall"] == pytest.approx(judged["recall"]["value"], rel=1e-6)  # of the same rows of the truth
        for name in ("precision", "entropy", "kl_student_truth", "kl_truth_student", "length", "eos_rate"):
            assert abs(at[name] - judged[name]["value"]) <= 5 * math.hypot(at[f"{name}_se"], judged[name]["se"]), name


def test_what_the_page_shows_runs(world: World, tmp_path: Path) -> None:
    """On two folders of models and three files, in a process of its own: datasets keeps files in the user's folder."""
    page = (Path(__file__).parents[2] / "docs" / "in-your-trainer.md").read_text()
    shown = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    assert len(shown) == 2
    turns = [{"role": "user", "content": "w3 w4"}, {"role": "assistant", "content": "w5 w6"}]
    files = {"train": {"messages": turns}, "prompts": {"prompt": "w3 w4"}}
    for name, row in files.items():
        (tmp_path / f"{name}.jsonl").write_text("\n".join([json.dumps(row)] * 16))
    (tmp_path / "held-out.jsonl").write_text(world.prompts.read_text())
    for name, folder in {"teacher": world.truth, "student": world.student}.items():
        (tmp_path / name).symlink_to(folder)
    small = r"\1use_cpu=True, report_to='none', disable_tqdm=True, bf16=False, max_steps=1, "
    code = "\n".join(re.sub(r"(Config\()", small, c) + "\nprint(trainer.state.log_history[0])" for c in shown)
    code = code.replace('output_dir="gkd"', 'output_dir="gkd", max_new_tokens=4, max_length=32')
    code = code.replace('output_dir="distilled"', 'output_dir="distilled", max_completion_length=4')
    environment = os.environ | {"HF_HOME": str(tmp_path / "hf"), "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.count("'hydrometer/kl_truth_student'") >= 2
