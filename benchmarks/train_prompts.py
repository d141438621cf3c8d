"""Training on answers that share prompts: batches as packs, each prompt once, against padded rows, bf16.

Networks of SmolLM2-135M's shape with random weights: the quickstart's teacher of twelve layers and its student of two.
512 answers of 18 to 24 tokens to 4 or to 128 prompts of 54 to 66; whole steps, optimizer included, of batches of 16
(the quickstart's) and 32 rows, drawn at random as the trainer draws them. Both ways run in one process, step by step
in turn, on equal batches. Checked first: loss and gradients of a batch in float32.

With `BENCH_CPU_SECONDS=1`, seconds are those of the processor, of one thread: for machines that others use, too.
"""

from __future__ import annotations

import _peers  # first: it pins the threads

import os
import time
from collections.abc import Iterator

import numpy as np
import torch
from hydrometer.models.causal_lm.cpu.freed_memory import keep_freed_memory
from hydrometer.models.causal_lm.inference.model import CausalLM
from hydrometer.models.causal_lm.training.packed_rows import takes_packed_rows
from hydrometer.models.causal_lm.training.answer_loss import Answers, answer_loss, collate
from hydrometer.models.rows.sequences import Sequences
from tokenizers import Tokenizer, models
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

IDS, ROWS = 49152, 512
CASES = {
    f"{kind}, {p} prompts x {ROWS // p} answers, batch {batch}": (layers, p, batch)
    for kind, layers in (("teacher", 12), ("student", 2))
    for p in (4, 128)
    for batch in (16, 32)
}
WAYS = {"packs": True, "padded rows": False}
clock = time.process_time if os.environ.get("BENCH_CPU_SECONDS") else time.perf_counter


def network(layers: int) -> CausalLM:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=IDS, hidden_size=576, intermediate_size=1536, num_hidden_layers=layers, num_attention_heads=9,
        num_key_value_heads=3, max_position_embeddings=8192, tie_word_embeddings=True, rope_theta=100000.0,
    )  # fmt: skip
    words = Tokenizer(models.WordLevel({f"w{i}": i for i in range(IDS)}, unk_token="w0"))
    return CausalLM(LlamaForCausalLM(config), PreTrainedTokenizerFast(tokenizer_object=words))


def batches(prompts: int, rows: int) -> Iterator[dict[str, torch.Tensor]]:
    """Batches of epochs, every one in another order."""
    rng = np.random.default_rng(0)
    texts = tuple(tuple(rng.integers(5, IDS, n).tolist()) for n in rng.integers(54, 67, prompts))
    lengths = rng.integers(18, 25, ROWS)
    ids = rng.integers(5, IDS, (ROWS, 24)) * (np.arange(24) < lengths[:, None])
    x = Answers(Sequences(texts, np.arange(ROWS) % prompts, ids, lengths, np.zeros(ROWS, np.bool_), np.zeros(ROWS)))
    while True:
        order = rng.permutation(ROWS)
        for at in range(0, ROWS, rows):
            yield collate([x[int(i)] for i in order[at : at + rows]])


def learn(lm: CausalLM, batch: dict[str, torch.Tensor], packs: bool, dtype: torch.dtype) -> torch.Tensor:
    n = float((batch["labels"] != -100).sum())
    loss = answer_loss(lm, batch["input_ids"], batch["labels"], n, dtype=dtype, packs=packs)
    loss.backward()
    return loss.detach()


def check(lm: CausalLM, batch: dict[str, torch.Tensor]) -> None:
    """Print how far the two ways are apart in float32, over the largest gradient."""
    losses, gradients = [], []
    for packs in WAYS.values():
        losses.append(float(learn(lm, batch, packs, torch.float32)))
        gradients.append([p.grad.clone() for p in lm.model.parameters() if p.grad is not None])
        lm.model.zero_grad()
    largest = max(float(g.abs().max()) for g in gradients[1])
    gap = max(float((a - b).abs().max()) for a, b in zip(*gradients, strict=True)) / largest
    off = abs(losses[0] / losses[1] - 1)
    print(f"float32: loss off by {off:.1e} of itself, gradients by {gap:.1e} of the largest")
    assert off < 1e-6, losses
    assert gap < 1e-5, gap


def main() -> None:
    args = _peers.arguments(__doc__ or "")
    torch.set_num_threads(_peers.THREADS)
    torch.use_deterministic_algorithms(True)
    torch.utils.deterministic.fill_uninitialized_memory = False
    keep_freed_memory()
    results: list[dict[str, object]] = []
    for case, (layers, prompts, rows) in CASES.items():
        if args.only not in case:
            continue
        lm = network(layers)
        assert takes_packed_rows(lm.network)
        lm.model.train()
        optimizer = torch.optim.AdamW(lm.model.parameters(), lr=1e-4, fused=True)
        stream = batches(prompts, rows)
        print()
        check(lm, next(stream))
        rates: dict[str, list[float]] = {way: [] for way in WAYS}
        for turn in range(args.repeats + 1):
            batch = next(stream)
            for way, packs in WAYS.items():
                began = clock()
                learn(lm, batch, packs, torch.bfloat16)
                torch.nn.utils.clip_grad_norm_(lm.model.parameters(), 1.0)
                optimizer.step()
                optimizer.zero_grad()
                if turn:  # the first makes the optimizer's state
                    rates[way].append(float((batch["labels"] != -100).sum()) / (clock() - began))
        results.append(_peers.report(case, rates, "answer tok/s", ours="packs"))
    _peers.finish(results, args.json)


if __name__ == "__main__":
    main()
