"""A truth, a student and prompts as small as they go, and trainers that take a callback."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")

from transformers import Trainer, TrainingArguments  # noqa: E402

from hydrometer.models.causal_lm.inference.model import CausalLM  # noqa: E402
from tiny import make_llama, make_tokenizer  # noqa: E402

PROMPTS = [f"w{3 + i} w{4 + i}" for i in range(16)]
LONGEST = 8


@dataclass(frozen=True)
class World:
    """Folders of truth and student, a file of prompts, and (N,) rows of the truth's as ids and labels."""

    truth: Path
    student: Path
    prompts: Path
    rows: list[dict[str, list[int]]]


def make_student() -> Any:
    """Near uniform; its dropout takes random numbers."""
    return make_llama(seed=3, layers=2, initializer_range=0.1, attention_dropout=0.1)


def make_world(root: Path) -> World:
    truth = CausalLM(make_llama(seed=0, initializer_range=0.25), make_tokenizer(64))
    truth.save(root / "truth")
    CausalLM(make_student(), make_tokenizer(64)).save(root / "student")
    (root / "prompts.jsonl").write_text("\n".join(json.dumps({"text": p}) for p in PROMPTS))
    law = truth.law(PROMPTS, max_new_tokens=LONGEST)
    drawn = law.sample(512, seed=7)
    rows: list[dict[str, list[int]]] = []
    for i, p in enumerate(drawn.prompt_index):
        asked, answer = list(law.prompts.ids[p]), drawn.row(i).tolist()
        rows.append({"input_ids": asked + answer, "labels": [-100] * len(asked) + answer})
    return World(root / "truth", root / "student", root / "prompts.jsonl", rows)


def padded(rows: list[dict[str, list[int]]]) -> dict[str, Any]:
    width = max(len(r["input_ids"]) for r in rows)
    ends = [width - len(r["input_ids"]) for r in rows]
    return {
        "input_ids": torch.tensor([r["input_ids"] + [1] * n for r, n in zip(rows, ends, strict=True)]),
        "labels": torch.tensor([r["labels"] + [-100] * n for r, n in zip(rows, ends, strict=True)]),
        "attention_mask": torch.tensor([[1] * len(r["input_ids"]) + [0] * n for r, n in zip(rows, ends, strict=True)]),
    }


def trainer_of(folder: Path, rows: Any, callbacks: list[Any], model: Any = None, **more: Any) -> Trainer:
    """A trainer of transformers, without a tokenizer."""
    arguments: dict[str, Any] = {
        "max_steps": 6, "per_device_train_batch_size": 16, "learning_rate": 1e-2, "logging_steps": 2,
        "lr_scheduler_type": "constant", "save_strategy": "no", **more,
    }  # fmt: skip
    args = TrainingArguments(str(folder), report_to="none", use_cpu=True, disable_tqdm=True, **arguments)
    student = make_student() if model is None else model
    return Trainer(student, args, train_dataset=rows, data_collator=padded, callbacks=callbacks)


def figures(trainer: Any) -> dict[int, dict[str, float]]:
    """What a callback logged, by step."""
    history = [h for h in trainer.state.log_history if "hydrometer/entropy" in h]
    return {h["step"]: {k.removeprefix("hydrometer/"): v for k, v in h.items()} for h in history}
