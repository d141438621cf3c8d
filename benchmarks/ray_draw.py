"""Drawing on Ray: 64 blocks of a small Llama by one one-core worker and by two, and whether the rows are the same.

Each cluster is started on this machine, and a worker of it is warm (torch imported, kernels compiled, law open) before
the clock runs. Repeats alternate. Expected on two idle cores: at least 1.7 times the rate, and equal files.

    python benchmarks/ray_draw.py [--repeats 3] [--json FILE]
"""

from __future__ import annotations

import _peers  # first: it pins the threads

import statistics
import tempfile
import time
from pathlib import Path

import ray
import torch
from hydrometer.models.causal_lm.inference.model import CausalLM
from hydrometer.models.families import parse_run_spec
from hydrometer.run.graph.outcome import SilentMonitor
from hydrometer.run.execution.on_ray import RayExecutor
from hydrometer.run.graph.plan import Plan
from hydrometer.run.graph.plan import plan_run
from hydrometer.stages.nodes import DrawNode
from hydrometer.store.artifacts import ArtifactStore
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

BLOCKS, ROWS, TOKENS, VOCABULARY = 64, 128, 64, 4096


def save_truth(folder: Path) -> None:
    torch.manual_seed(1)
    config = LlamaConfig(
        vocab_size=VOCABULARY, hidden_size=256, intermediate_size=683, num_hidden_layers=4, num_attention_heads=4,
        num_key_value_heads=4, max_position_embeddings=1024, tie_word_embeddings=True, initializer_range=0.1,
        bos_token_id=0, eos_token_id=1,
    )  # fmt: skip
    words = {f"w{i}": i for i in range(VOCABULARY)}
    inner = Tokenizer(models.WordLevel(words, unk_token="w2"))
    inner.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=inner, bos_token="w0", eos_token="w1", unk_token="w2")
    CausalLM(LlamaForCausalLM(config), tokenizer).save(folder)


def draws_of(truth: Path, seed: int, blocks: int) -> Plan:
    """The truth's training blocks of a seed, alone."""
    level = {"init": {"layers_of": "truth", "layers": [0]}}
    chain = {
        "family": "causal_lm", "truth": {"source": str(truth), "max_new_tokens": TOKENS}, "teacher": "truth",
        "student": level, "data": {"train": blocks * ROWS, "distill": ROWS, "validate": ROWS, "evaluate": ROWS},
        "selectivity": [{"temperature": 1.0}], "block_rows": ROWS, "threads": 1, "resample": ["data"],
    }  # fmt: skip
    plan = plan_run(parse_run_spec({"name": "draws", "seeds": [seed], "chains": {"lm": chain}}, "benchmark"))
    train = {
        k: n for k, n in plan.nodes.items()
        if isinstance(n, DrawNode) and n.law.kind == "truth" and "train" in n.stream.path
    }  # fmt: skip
    return Plan(dict(list(train.items())[:blocks]), plan.chains)


def rate(workers: int, truth: Path, out: Path, seed: int) -> float:
    """Tokens a second of so many workers, at most TOKENS a row."""
    ray.init(
        address="local", num_cpus=workers, include_dashboard=False, log_to_driver=False, logging_level=40,
        object_store_memory=100 << 20,
    )  # fmt: skip
    try:
        warm = draws_of(truth, 1000 + seed, 4 * workers)
        RayExecutor()(warm, ArtifactStore(out / "warm"), SilentMonitor())
        plan, store = draws_of(truth, seed, BLOCKS), ArtifactStore(out / "artifacts")
        begin = time.perf_counter()
        outcome = RayExecutor()(plan, store, SilentMonitor())
        seconds = time.perf_counter() - begin
        assert outcome.computed["draw"] == BLOCKS, outcome
        return sum(int(store.meta("draw", k)["info"]["tokens"]) for k in plan.nodes) / seconds
    finally:
        ray.shutdown()


def rows(out: Path) -> dict[str, bytes]:
    return {str(p.relative_to(out)): p.read_bytes() for p in (out / "artifacts").rglob("rows.parquet")}


def main() -> None:
    args = _peers.arguments(__doc__ or "")
    with tempfile.TemporaryDirectory() as folder:
        save_truth(Path(folder) / "truth")
        rates: dict[int, list[float]] = {1: [], 2: []}
        for repeat in range(args.repeats):
            for workers in (1, 2) if repeat % 2 == 0 else (2, 1):
                out = Path(folder) / f"{repeat}-{workers}"
                rates[workers].append(rate(workers, Path(folder) / "truth", out, repeat + 1))
            one, two = (rows(Path(folder) / f"{repeat}-{n}") for n in (1, 2))
            assert len(one) == BLOCKS
            assert one == two, "the rows of one worker and of two differ"
            print(
                f"repeat {repeat}: 1 worker {rates[1][-1]:.0f} tok/s, 2 workers {rates[2][-1]:.0f} tok/s, "
                f"ratio {rates[2][-1] / rates[1][-1]:.2f}; {len(one)} files equal byte for byte",
                flush=True,
            )
    ratios = [b / a for a, b in zip(rates[1], rates[2], strict=True)]
    print(f"two workers against one: median {statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})")
    _peers.finish([{"name": "ray_draw", "rates": rates, "ratios": ratios}], args.json)


if __name__ == "__main__":
    main()
