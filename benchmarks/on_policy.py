"""A fit on the student's own rows, draws included: ours against TRL's DistillationTrainer, both by KL(q, p).

Quickstart's student, two layers of width 576 over SmolLM2's vocabulary, and a teacher of twelve, both random; batches
of 16 answers of 24 tokens. Checked first: from equal weights both have the same loss at the first step, up to what they
draw. Each measurement is a process of its own, in turn.
"""

from __future__ import annotations

import _peers  # first: it pins the threads

import json
import os
import statistics
import sys
import tempfile
import time
from typing import Any

os.environ.setdefault("TRL_EXPERIMENTAL_SILENCE", "1")

import numpy as np
import torch
import transformers
from datasets import Dataset
from hydrometer.core.rng import Stream
from hydrometer.core.spec import Selectivity
from hydrometer.models.base import FitRequest
from hydrometer.models.causal_lm.cpu.freed_memory import keep_freed_memory
from hydrometer.models.causal_lm.inference.model import CausalLM
from hydrometer.models.causal_lm.level_spec import FromLayers, LevelSpec
from hydrometer.models.causal_lm.spec import Training
from hydrometer.models.causal_lm.training import trainer as ours
from hydrometer.models.causal_lm.training.initialization import init_model
from hydrometer.models.rows.sequences import Sequences
from transformers import LlamaConfig, LlamaForCausalLM, TrainerCallback
from trl import DistillationConfig, DistillationTrainer

BATCH, LENGTH = 16, 24
LEVEL = FromLayers(layers_of="above", layers=(0, 11))
PROMPTS = ["Write a short sentence about the sea.", "Name three colours.", "Say hello.", "What is a tree?"]
MAKERS = ("hydrometer", "trl")


def teacher() -> CausalLM:
    tokenizer = CausalLM.from_pretrained("smollm2-135m-instruct", dtype="bfloat16").tokenizer
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=49152, hidden_size=576, intermediate_size=1536, num_hidden_layers=12, num_attention_heads=9,
        num_key_value_heads=3, max_position_embeddings=1024, tie_word_embeddings=True, initializer_range=0.04,
    )  # fmt: skip
    return CausalLM(LlamaForCausalLM(config), tokenizer)


def recorded(kind: Any, losses: list[float]) -> type[Any]:
    class Recording(kind):
        def training_step(self, *a: Any, **k: Any) -> Any:
            loss = super().training_step(*a, **k)
            losses.append(float(loss))
            return loss

    return Recording


def by_hydrometer(lm: CausalLM, steps: int, losses: list[float]) -> list[float]:
    keep_freed_memory()  # as `run` does
    law = lm.law(PROMPTS, max_new_tokens=LENGTH, block_rows=BATCH, stop=[])
    n = BATCH * steps
    index = np.arange(n) % len(PROMPTS)
    prompts_only = Sequences(
        law.prompts.ids, index, np.zeros((n, 1), np.int64), np.ones(n, np.int64), np.zeros(n, np.bool_), np.zeros(n)
    )
    training = Training(num_train_epochs=1, per_device_train_batch_size=BATCH, learning_rate=1e-4)
    at: list[float] = []

    def tick(done: float, total: float, what: str) -> None:
        if what == "steps":
            at.append(time.perf_counter())

    ours._MLETrainer = recorded(ours._MLETrainer, losses)
    level = LevelSpec(init=LEVEL, training=training)
    ours.fit(
        FitRequest(
            prompts_only, None, law, law, level, "student", "kl_student_teacher", Stream(0), tick,
            selectivity=Selectivity(temperature=1.0),
        )
    )  # fmt: skip
    return at


def by_trl(lm: CausalLM, steps: int, losses: list[float]) -> list[float]:
    at: list[float] = []

    class Clock(TrainerCallback):
        def on_step_end(self, *_: Any, **__: Any) -> None:
            at.append(time.perf_counter())

    student = init_model(LevelSpec(init=LEVEL), lm, lm, 0).model.train()
    data = Dataset.from_dict({"prompt": [PROMPTS[i % len(PROMPTS)] for i in range(BATCH * steps)]})
    tokenizer = lm.tokenizer
    tokenizer.padding_side, tokenizer.pad_token = "left", tokenizer.pad_token or tokenizer.eos_token
    with tempfile.TemporaryDirectory() as folder:
        args = DistillationConfig(
            output_dir=folder, per_device_train_batch_size=BATCH, num_train_epochs=1, learning_rate=1e-4, beta=1.0,
            max_completion_length=LENGTH, bf16=True, gradient_checkpointing=False, use_cpu=True, save_strategy="no",
            report_to="none", logging_strategy="no", disable_tqdm=True, adam_beta2=0.95,
        )  # fmt: skip
        made = recorded(DistillationTrainer, losses)(
            model=student, teacher_model=lm.model, args=args, train_dataset=data, processing_class=tokenizer,
            callbacks=[Clock()],
        )  # fmt: skip
        made.train()
    return at


def one(maker: str, steps: int) -> dict[str, Any]:
    torch.set_num_threads(_peers.THREADS)
    losses: list[float] = []
    with _peers.Peak() as peak:
        at = (by_hydrometer if maker == "hydrometer" else by_trl)(teacher(), steps, losses)
    seconds = np.diff(at)[1:]
    return {"losses": losses, "rate": BATCH * LENGTH / statistics.median(seconds), "peak": peak.mb}


def main() -> None:
    if len(sys.argv) > 1 and sys.argv[1] == "--child":
        transformers.utils.logging.set_verbosity_error()
        print("RESULT " + json.dumps(one(sys.argv[2], int(sys.argv[3]))))
        return
    args = _peers.arguments(__doc__ or "")

    def run(maker: str, steps: int) -> dict[str, Any]:
        out = _peers.child("on_policy.py", "--child", maker, str(steps))
        return json.loads(next(x for x in out.splitlines() if x.startswith("RESULT "))[7:])

    rates: dict[str, list[float]] = {m: [] for m in MAKERS}
    peaks: dict[str, list[float]] = {m: [] for m in MAKERS}
    for _ in range(args.repeats):
        found = {m: run(m, 8) for m in MAKERS}
        a, b = (found[m]["losses"][0] for m in MAKERS)
        print(f"loss of the first step: {a:.4f} and {b:.4f} nats a token")
        assert abs(a - b) < 0.05 * b, found
        for m in MAKERS:
            rates[m].append(found[m]["rate"])
            peaks[m].append(found[m]["peak"])
    results = [_peers.report("on-policy fit, batches of 16 x 24", rates, "tok/s") | {"peaks": peaks}]
    print("  peak MB: " + ", ".join(f"{m} {statistics.median(v):.0f}" for m, v in peaks.items()))
    _peers.finish(results, args.json)


if __name__ == "__main__":
    main()
