"""Share of a training's time that `PlaneCallback` takes at its defaults, and what one evaluation takes.

A Llama of random weights is trained with and without the callback, in turn; the truth is another. The truth's answers
are made before; opening it counts. Weights are compared: they must be equal bit for bit.

    python benchmarks/callback.py [--steps 400] [--width 128] [--layers 4] [--turns 3] [--json FILE]
"""

from __future__ import annotations

import _peers  # first: it pins the threads

import argparse
import json
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
    Trainer,
    TrainerCallback,
    TrainingArguments,
)

from hydrometer.integrations import PlaneCallback
from hydrometer.models.causal_lm.inference.model import CausalLM

VOCABULARY = 4096


class Clock(TrainerCallback):
    """Seconds of a training, with all that callbacks after this one do."""

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self.began = time.perf_counter()

    def on_train_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self.seconds = time.perf_counter() - self.began


def network(a: argparse.Namespace, seed: int) -> LlamaForCausalLM:
    torch.manual_seed(seed)
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=VOCABULARY, hidden_size=a.width, intermediate_size=3 * a.width, num_hidden_layers=a.layers,
            num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=512, bos_token_id=0, eos_token_id=1,
        )
    )  # fmt: skip


def tokenizer() -> PreTrainedTokenizerFast:
    from tokenizers import Tokenizer, models, pre_tokenizers

    words = {"<bos>": 0, "<eos>": 1, "<unk>": 2} | {f"w{i}": i for i in range(3, VOCABULARY)}
    inner = Tokenizer(models.WordLevel(words, unk_token="<unk>"))
    inner.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=inner, bos_token="<bos>", eos_token="<eos>", unk_token="<unk>")


def train(
    a: argparse.Namespace, steps: int, folder: Path, rows: list[dict[str, list[int]]], plane: PlaneCallback | None
) -> tuple[Trainer, float]:
    args = TrainingArguments(
        str(folder), max_steps=steps, per_device_train_batch_size=32, report_to="none", use_cpu=True,
        disable_tqdm=True, save_strategy="no", logging_steps=steps,
    )  # fmt: skip
    clock = Clock()
    trainer = Trainer(network(a, 1), args, train_dataset=rows, callbacks=[clock, *([] if plane is None else [plane])])
    trainer.train()
    return trainer, clock.seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=400)
    parser.add_argument("--width", type=int, default=128)
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--json", type=Path)
    a = parser.parse_args()
    torch.set_num_threads(_peers.THREADS)
    with tempfile.TemporaryDirectory() as name:
        root = Path(name)
        CausalLM(network(a, 0), tokenizer()).save(root / "truth")
        (root / "prompts.jsonl").write_text("\n".join(json.dumps({"text": f"w{3 + i}"}) for i in range(32)))
        noise = torch.Generator().manual_seed(0)
        ids = torch.randint(3, VOCABULARY, (1024, 128), generator=noise).tolist()
        rows = [{"input_ids": r, "labels": r} for r in ids]

        def plane() -> PlaneCallback:
            return PlaneCallback(root / "truth", prompts=root / "prompts.jsonl")

        train(a, 1, root / "beside", rows, plane())  # makes the truth's answers, and compiles
        found: list[dict[str, float]] = []
        for _ in range(a.turns):
            alone, without = train(a, a.steps, root / "alone", rows, None)
            beside, took = train(a, a.steps, root / "beside", rows, plane())
            pairs = zip(alone.model.parameters(), beside.model.parameters(), strict=True)
            assert all(torch.equal(p, q) for p, q in pairs)
            history = beside.state.log_history
            every = next(h["hydrometer/every"] for h in history if "hydrometer/every" in h)
            evaluations = sum("hydrometer/entropy" in h for h in history)
            found.append({"without": without, "with": took, "every": every, "evaluations": evaluations})
            print(f"without {without:.1f} s, with {took:.1f} s; every {every}, {evaluations} evaluations", flush=True)
    shares = [(f["with"] - f["without"]) / f["without"] for f in found]
    print(f"share of the training's time: {100 * statistics.median(shares):.1f} %")
    if a.json is not None:
        a.json.write_text(json.dumps(found))


if __name__ == "__main__":
    main()
