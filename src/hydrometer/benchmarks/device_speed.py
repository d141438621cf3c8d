"""How fast is an accelerator against what people use on it: drawing, scoring, training, divergences.

Each case names works that are run in turn, ours first; a work returns its rate. Peers take their best batch, found
beforehand. Peers draw without log-probabilities, which ours records: two for each token.
"""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any

import numpy as np
import torch
from torch.nn import functional as F

from hydrometer.benchmarks.random_models import TINY, random_lm
from hydrometer.core.rng import Stream
from hydrometer.core.spec import Selectivity
from hydrometer.models.base import FitRequest
from hydrometer.models.causal_lm.inference.scorer import score_steps
from hydrometer.models.causal_lm.level_spec import LevelSpec
from hydrometer.models.causal_lm.spec import Training
from hydrometer.models.causal_lm.training.losses import TeacherRows, linear_divergence
from hydrometer.models.causal_lm.training.trainer import fit
from hydrometer.models.objectives import Divergence
from hydrometer.models.rows.sequences import Sequences

__all__ = ["Case", "cases", "measured"]

Work = Callable[[], float]


@dataclass(frozen=True, slots=True)
class Case:
    """One line of the table.

    Attributes
    ----------
    title, unit : what is measured, and of what a second.
    aim : by how much ours should be faster. memory : what share of the peer's memory it should take, or None.
    works : name to rate; ours is the first.
    """

    title: str
    unit: str
    aim: float
    memory: float | None
    works: Mapping[str, Work]


@dataclass(frozen=True, slots=True)
class Sizes:
    """How large the cases are: of a card, or small enough for any machine."""

    small: bool

    @property
    def models(self) -> tuple[str, ...]:
        return (TINY,) if self.small else ("SmolLM2-135M", "SmolLM2-1.7B")

    @property
    def rows(self) -> tuple[int, int]:
        """Rows drawn, and tokens of each."""
        return (32, 12) if self.small else (1024, 128)

    @property
    def scored(self) -> tuple[int, int]:
        """Rows scored, and tokens of the longest."""
        return (64, 24) if self.small else (8192, 512)

    @property
    def batch(self) -> tuple[int, int, int]:
        """Rows and tokens of a batch of training, and steps."""
        return (4, 16, 4) if self.small else (32, 512, 12)

    @property
    def vocabulary(self) -> tuple[int, int, int]:
        """Positions, ids and width of a divergence."""
        return (64, 128, 16) if self.small else (8192, 49152, 576)


def cases(device: str, *, small: bool) -> Iterator[Callable[[], Case]]:
    """Return each case, made when it is called for: models are large."""
    sizes = Sizes(small)
    for shape in sizes.models:
        for s in (None, Selectivity(top_p=0.9)):
            yield lambda shape=shape, s=s: _drawing(device, sizes, shape, s)
        yield lambda shape=shape: _scoring(device, sizes, shape)
    yield lambda: _training(device, sizes)
    yield lambda: _divergence(device, sizes)


def measured(case: Case, device: str, repeats: int) -> dict[str, Any]:
    """Run a case's works in turn: rates, memory above what was held (MB; None on a processor), ratios of ours."""
    rates: dict[str, list[float]] = {name: [] for name in case.works}
    peaks: dict[str, float] = {}
    for turn in range(repeats + 1):  # the first one compiles, captures and fills caches
        for name, work in case.works.items():
            on_card = device == "cuda"
            held = 0
            if on_card:
                torch.cuda.synchronize()
                torch.cuda.reset_peak_memory_stats()
                held = torch.cuda.memory_allocated()
            rate = work()
            if turn:
                rates[name].append(rate)
                if on_card:
                    peak = (torch.cuda.max_memory_allocated() - held) / 2**20
                    peaks[name] = max(peaks.get(name, 0.0), peak)
    ours = next(iter(case.works))
    ratios = {
        name: statistics.median(a / b for a, b in zip(rates[ours], found, strict=True))
        for name, found in rates.items()
        if name != ours
    }
    return {
        "title": case.title, "unit": case.unit, "rates": rates, "ratios": ratios, "aim": case.aim,
        "memory": peaks or None, "aim_memory": case.memory,
    }  # fmt: skip


def _timed(device: str, amount: float, run: Callable[[], object]) -> Work:
    def work() -> float:
        began = time.perf_counter()
        run()
        if device == "cuda":
            torch.cuda.synchronize()
        return amount / (time.perf_counter() - began)

    return work


def _best(works: Mapping[int, Work]) -> tuple[int, Work]:
    """The batch that is fastest on its second run; sizes that do not fit the memory are left out."""
    found: dict[int, float] = {}
    for size, work in works.items():
        try:
            work()
            found[size] = work()
        except torch.OutOfMemoryError:
            torch.cuda.empty_cache()
    best = max(found, key=lambda size: found[size])
    return best, works[best]


# -- drawing -----------------------------------------------------------------------------------------------------------


def _drawing(device: str, sizes: Sizes, shape: str, s: Selectivity | None) -> Case:
    rows, tokens = sizes.rows
    lm = random_lm(shape, device, torch.bfloat16)
    law = lm.law("t3 t4 t5", max_new_tokens=tokens, stop=[], selectivity=s, block_rows=rows)

    network: Any = lm.model

    def generate(batch: int) -> Callable[[], None]:
        ids = torch.tensor([law.prompts.ids[0]] * batch, device=device)
        options: dict[str, Any] = {"top_p": s.top_p} if s is not None else {}

        def run() -> None:
            for _ in range(rows // batch):
                network.generate(
                    ids, attention_mask=torch.ones_like(ids), max_new_tokens=tokens, min_new_tokens=tokens,
                    do_sample=True, top_k=0, cache_implementation="static", pad_token_id=1, **options,
                )  # fmt: skip

        return run

    sizes_of = [b for b in (128, 256, 512, 1024) if b <= rows] or [rows]
    batch, peer = _best({b: _timed(device, rows * tokens, generate(b)) for b in sizes_of})
    title = f"draw {rows:,} x {tokens}, {shape}, bfloat16, {'temperature 1' if s is None else s.label}"
    ours = _timed(device, rows * tokens, lambda: law.sample(rows, seed=0))
    return Case(title, "tokens/s", 5.0 if s is None else 8.0, None, {"hydrometer": ours, f"generate, {batch}": peer})


# -- scoring -----------------------------------------------------------------------------------------------------------


def _scoring(device: str, sizes: Sizes, shape: str) -> Case:
    n, longest = sizes.scored
    lm = random_lm(shape, device, torch.bfloat16)
    law = lm.law("t3", max_new_tokens=longest)
    x = _random_rows(law.prompts.ids, n, longest, lm.vocab_size)
    total = float(x.lengths.sum())

    @torch.inference_mode()
    def padded(batch: int) -> None:
        order = np.argsort(-x.lengths, kind="stable")
        for at in range(0, n, batch):
            part = x.take(order[at : at + batch])
            width = int(part.lengths.max())
            answers = part.ids[:, :width]
            ids = torch.from_numpy(np.pad(answers, ((0, 0), (1, 0)), constant_values=x.prompt_ids[0][0])).to(device)
            wanted = torch.from_numpy(np.arange(width) < part.lengths[:, None]).to(device)
            mask = F.pad(wanted, (1, 0), value=True)
            logits = lm.model(ids, attention_mask=mask.long()).logits[:, :-1]
            log_p = logits.float().log_softmax(-1).gather(-1, ids[:, 1:, None])[..., 0]
            (log_p * wanted).sum(-1).double().cpu()

    batch, peer = _best({b: _timed(device, total, lambda b=b: padded(b)) for b in (8, 16, 32, 64)})
    title = f"score {n:,} rows of 16 to {longest} tokens, {shape}, bfloat16"
    ours = _timed(device, total, lambda: score_steps(law, x))
    return Case(title, "tokens/s", 3.0, 0.2, {"hydrometer": ours, f"padded, {batch}": peer})


def _random_rows(prompts: Any, n: int, longest: int, vocabulary: int, shortest: int = 16) -> Sequences:
    rng = np.random.default_rng(0)
    lengths = rng.integers(min(shortest, longest), longest + 1, n)
    ids = rng.integers(3, vocabulary, (n, longest)) * (np.arange(longest) < lengths[:, None])
    return Sequences(prompts, np.zeros(n, np.int64), ids, lengths, np.zeros(n, np.bool_), np.zeros(n))


# -- training ----------------------------------------------------------------------------------------------------------


def _training(device: str, sizes: Sizes) -> Case:
    batch, length, steps = sizes.batch
    shape = sizes.models[0]
    options: dict[str, Any] = {"bf16": True, "learning_rate": 1e-4, "per_device_train_batch_size": batch}
    first = random_lm(shape, device)
    data = _random_rows(((0,),), batch * steps, length, first.vocab_size, shortest=length)

    def ours() -> float:
        at: list[float] = []
        level = LevelSpec(init="truth", training=Training(num_train_epochs=1, **options))
        law = first.law(None, max_new_tokens=length)

        def tick(done: float, total: float, what: str) -> None:
            at.append(time.perf_counter())

        fit(FitRequest(data, None, law, None, level, "truth", "mle", Stream(0), tick=tick))
        return batch * length / statistics.median(np.diff(at)[2:])

    def peer() -> float:
        from transformers import Trainer, TrainerCallback, TrainingArguments

        at: list[float] = []

        class Clock(TrainerCallback):
            def on_step_end(self, *_: Any, **__: Any) -> None:
                at.append(time.perf_counter())

        def collate(found: list[dict[str, list[int]]]) -> dict[str, torch.Tensor]:
            return {k: torch.tensor([f[k] for f in found]) for k in found[0]}

        lm = random_lm(shape, device)
        ids = [[0, *row] for row in data.ids.tolist()]
        rows = [{"input_ids": r, "labels": [-100, *r[1:]], "attention_mask": [1] * len(r)} for r in ids]
        with tempfile.TemporaryDirectory() as place:
            args = TrainingArguments(
                place, num_train_epochs=1, report_to=[], save_strategy="no", logging_strategy="no", disable_tqdm=True,
                use_cpu=device == "cpu", **options,
            )  # fmt: skip
            Trainer(lm.model, args, train_dataset=rows, data_collator=collate, callbacks=[Clock()]).train()  # pyright: ignore[reportArgumentType]
        return batch * length / statistics.median(np.diff(at)[2:])

    title = f"train {shape}, batches of {batch} x {length}, bfloat16 arithmetic"
    return Case(title, "tokens/s", 1.5, 1 / 3, {"hydrometer": ours, "Trainer": peer})


# -- divergences -------------------------------------------------------------------------------------------------------


def _divergence(device: str, sizes: Sizes) -> Case:
    m, v, width = sizes.vocabulary
    g = torch.Generator().manual_seed(0)
    mine, theirs = (
        [
            (torch.randn(n, width, generator=g) * scale).to(device, torch.bfloat16)
            for n, scale in ((m, 1), (v, width**-0.5))
        ]
        for _ in range(2)
    )
    for x in mine:
        x.requires_grad_()
    ids = torch.zeros(m, dtype=torch.long, device=device)

    def run(loss: Callable[[], Any]) -> Work:
        def once() -> None:
            for x in mine:
                x.grad = None
            loss().backward()

        return _timed(device, m, once)

    def ours() -> Any:
        target = TeacherRows(theirs[0], theirs[1]), Divergence("jsd")
        return linear_divergence(mine[0], (mine[1], None), ids, target, n_items=m, vocab_size=v)

    works = {"hydrometer": run(ours)}
    if device == "cuda" and find_spec("trl") is not None:
        from trl.kernels.chunked_divergence import ChunkedDivergenceFunction  # pyright: ignore

        chunked: Any = ChunkedDivergenceFunction
        works["TRL, chunked"] = run(lambda: chunked.apply(*mine, None, *theirs, None, 0.5)[0].mean())
    if device == "cuda" and find_spec("liger_kernel") is not None:
        from liger_kernel.chunked_loss import LigerFusedLinearJSDLoss  # pyright: ignore

        liger: Any = LigerFusedLinearJSDLoss(weight_hard_loss=0.0, weight_soft_loss=1.0, beta=0.5)
        works["Liger"] = run(lambda: liger(mine[0], mine[1], theirs[0], theirs[1], ids))
    title = f"jsd, {m:,} positions, {v:,} ids, width {width}, bfloat16, forward and backward"
    return Case(title, "positions/s", 1.0, 1.0, works)
