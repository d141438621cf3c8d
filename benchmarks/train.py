"""Training a 4-layer, width-256 model of SmolLM2's vocabulary: ours against transformers' default Trainer, bf16.

Checked first: both reach the same losses in float32 over 8 steps, from equal weights on equal batches. Each
measurement is a process of its own (memory is a high-water mark), in turn.
"""

from __future__ import annotations

import _peers  # first: it pins the threads

import json
import statistics
import sys
import tempfile
import time
from typing import Any

import numpy as np
import torch
import transformers
from hydrometer.models.causal_lm.cpu.freed_memory import keep_freed_memory
from hydrometer.models.causal_lm.inference.model import CausalLM
from hydrometer.models.causal_lm.spec import Training
from hydrometer.models.causal_lm.training.answer_loss import Answers, loss_of
from hydrometer.models.causal_lm.training.trainer import _MLETrainer
from hydrometer.models.causal_lm.training.trainer_settings import trainer_arguments
from hydrometer.models.rows.sequences import Sequences
from transformers import LlamaConfig, LlamaForCausalLM, Trainer, TrainerCallback

CASES = {"32x64": (32, 64, 10), "32x512": (32, 512, 4)}


def network() -> tuple[CausalLM, Any]:
    tokenizer = CausalLM.from_pretrained("smollm2-135m-instruct", dtype="bfloat16").tokenizer
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=49152, hidden_size=256, intermediate_size=683, num_hidden_layers=4, num_attention_heads=4,
        num_key_value_heads=4, max_position_embeddings=1024, tie_word_embeddings=True,
    )  # fmt: skip
    return CausalLM(LlamaForCausalLM(config), tokenizer), tokenizer


def rows(n: int, length: int) -> Sequences:
    ids = np.random.default_rng(0).integers(5, 49152, (n, length))
    return Sequences(((1,),), np.zeros(n, np.int64), ids, np.full(n, length), np.zeros(n, np.bool_), np.zeros(n))


class Clock(TrainerCallback):
    """The seconds of every step, and peak memory above what there was before the first."""

    def __init__(self) -> None:
        self.at: list[float] = []
        self.peak = _peers.Peak()

    def on_train_begin(self, *_: Any, **__: Any) -> None:
        self.peak.__enter__()

    def on_step_begin(self, *_: Any, **__: Any) -> None:
        self.at.append(time.perf_counter())

    def on_train_end(self, *_: Any, **__: Any) -> None:
        self.at.append(time.perf_counter())
        self.peak.__exit__()


def one(kind: str, case: str, bf16: bool, steps: int) -> dict[str, Any]:
    batch, length, _ = CASES[case]
    torch.set_num_threads(_peers.THREADS)
    lm, _ = network()
    data = rows(batch * steps, length)
    training = Training(num_train_epochs=1, per_device_train_batch_size=batch, learning_rate=1e-3, bf16=bf16)
    losses: list[float] = []
    clock = Clock()
    with tempfile.TemporaryDirectory() as folder:
        args = trainer_arguments(training, len(data), lm, 0, folder)
        if kind == "hydrometer":
            keep_freed_memory()  # as `run` does
            trainer: Any = _MLETrainer(lm, loss_of(lm.law(max_new_tokens=length), training), args, data, clock, None)
        else:
            args.bf16 = bf16

            def collate(rows: list[dict[str, list[int]]]) -> dict[str, torch.Tensor]:
                return collate(rows)

            trainer = Trainer(
                model=lm.model, args=args, train_dataset=Answers(data), data_collator=collate, callbacks=[clock]
            )
        inner = trainer.training_step

        def recording(*a: Any, **k: Any) -> Any:
            loss = inner(*a, **k)
            losses.append(float(loss))
            return loss

        trainer.training_step = recording
        trainer.train()
    seconds = np.diff(clock.at)[2:]
    return {
        "losses": losses,
        "tokens_per_second": batch * length / statistics.median(seconds),
        # Adam's two moments come into being within the first step; weights were there before.
        "peak_mb": clock.peak.mb - 8 * lm.n_parameters / 2**20,
    }


def main() -> None:
    if len(sys.argv) > 1 and sys.argv[1] == "--child":
        kind, case, dtype, steps = sys.argv[2:]
        transformers.utils.logging.set_verbosity_error()
        print("RESULT " + json.dumps(one(kind, case, dtype == "bf16", int(steps))))
        return
    args = _peers.arguments(__doc__ or "")

    def run(kind: str, case: str, dtype: str, steps: int) -> dict[str, Any]:
        out = _peers.child("train.py", "--child", kind, case, dtype, str(steps))
        return json.loads(next(x for x in out.splitlines() if x.startswith("RESULT "))[7:])

    ours, peer = (run(kind, "32x64", "f32", 8)["losses"] for kind in ("hydrometer", "Trainer"))
    gap = max(abs(a - b) for a, b in zip(ours, peer, strict=True))
    print(f"float32 losses over 8 steps: {ours[0]:.5f} to {ours[-1]:.5f}, largest difference {gap:.1e}")
    assert gap < 1e-3, (ours, peer)
    results: list[dict[str, object]] = []
    for case, (_, _, steps) in CASES.items():
        if args.only not in case:
            continue
        rates: dict[str, list[float]] = {"hydrometer": [], "Trainer": []}
        peaks: dict[str, list[float]] = {"hydrometer": [], "Trainer": []}
        for _ in range(args.repeats):
            for kind in rates:
                r = run(kind, case, "bf16", steps)
                rates[kind].append(r["tokens_per_second"])
                peaks[kind].append(r["peak_mb"])
        found = _peers.report(f"train {case}, bf16", rates, "tok/s")
        found["peak_mb"] = {k: statistics.median(v) for k, v in peaks.items()}
        print(f"  peak above weights and optimizer state, MB: {found['peak_mb']}")
        results.append(found)
    _peers.finish(results, args.json)


if __name__ == "__main__":
    main()
