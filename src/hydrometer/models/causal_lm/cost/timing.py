"""Times this machine at a chain's stages, on networks of its shapes with random weights and few layers.

Every figure is seconds per unit of a part of `operations`, measured through the sampler, scorer and trainer of a run.
Networks of one and of three layers are timed in turn: the difference gives a layer, the rest of the shallow one is the
head and the vocabulary. Medians of several turns.
"""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tokenizers import Tokenizer, models
from transformers import PretrainedConfig, PreTrainedTokenizerFast

from hydrometer.core.errors import InputError
from hydrometer.core.rng import Stream
from hydrometer.models.base import FitRequest
from hydrometer.models.causal_lm.cost.operations import (
    Shape,
    Subject,
    padded_batch,
    score_names,
    stage_work,
    training_positions,
    workers_of,
)
from hydrometer.models.causal_lm.data.prompts import Prompts
from hydrometer.models.causal_lm.inference.law import CausalLaw
from hydrometer.models.causal_lm.inference.model import CausalLM
from hydrometer.models.causal_lm.inference.opened import pick_device
from hydrometer.models.causal_lm.inference.scorer import PACKED_TOKENS, score_beside, score_steps
from hydrometer.models.causal_lm.level_spec import LevelSpec
from hydrometer.models.causal_lm.networks.network import max_positions
from hydrometer.models.causal_lm.spec import Training
from hydrometer.models.causal_lm.training.layers import fresh_network, layers_config
from hydrometer.models.causal_lm.training.trainer import fit
from hydrometer.models.rows.sequences import Sequences

__all__ = ["machine", "measure"]

_SHALLOW, _DEEP = 1, 3
_TURNS = 3
_FEW, _MANY = 2, 6  # tokens drawn
_STEPS = 4  # of training, the first not counted
_MOST_PARAMETERS = 300_000_000  # of a network of three layers
_MOST_POSITIONS = 4096  # of a training batch that is timed
_MOST_ROWS = 1024
_PROMPTS = 64  # of the chain's at most
_OPERATIONS, _RATED = 1_000_000_000, 0.15  # of a product that is timed, and seconds for it
_COPYING = 2  # threads from which copies of memory get no faster
_LEAST = 1e-12  # seconds a unit, where noise exceeds the difference


def measure(subject: Subject, mean: float, known: Mapping[str, float]) -> dict[str, float]:
    """Measure the parts of the chain's stages that are not in `known`.

    Parameters
    ----------
    mean : tokens of an answer. known : seconds a unit, by name of a part.

    Raises
    ------
    InputError : three layers of one of the chain's models are too large to be timed in seconds.
    """
    bench = _Bench(subject, mean)
    chain, out = subject.chain, dict(known)
    here = {role: config for role, config in subject.configs.items() if not subject.is_served(role)}
    truth = here.get("truth", here["student"])
    for role, config in here.items():
        shape = subject.shapes[role]
        for dtype in sorted({chain.draw_dtype, chain.judge_dtype}):
            names = [p.name for p in stage_work(subject, "draw", role, chain.block_rows, mean, dtype).parts]
            bench.add(out, names[:2], lambda c=config, d=dtype: bench.draw(c, d))
        # Held-out rows are scored in float32, and so are some of what is judged in bfloat16.
        for dtype in sorted({chain.draw_dtype, chain.judge_dtype, "float32"}):
            bench.add(out, [*score_names(subject, shape, dtype)], lambda c=config, d=dtype: bench.score(c, d))
        both = stage_work(subject, "score law", role, chain.block_rows, mean, chain.judge_dtype)
        judged = [p.name for p in both.parts]
        dtype = chain.judge_dtype
        beside = [n for n in judged if n.startswith("beside")]
        layers = [out[score_names(subject, subject.shapes[r], dtype)[0]] for r in ("truth", role) if r in here]
        bench.add(out, beside, lambda c=config, d=dtype, x=layers: (bench.beside(truth, c, d, sum(x)),))
        if role in subject.levels:
            fitted = [p.name for p in stage_work(subject, "fit", role, 1, mean, chain.draw_dtype).parts]
            training = subject.levels[role].training
            bench.add(out, fitted[:2], lambda c=config, t=training: bench.train(c, t))
    bench.add(out, ["open", "save"], lambda: bench.files(truth))
    return out


def machine(subject: Subject) -> dict[str, float]:
    """Return rates at the truth's width, in FLOP/s, and of memory copies, bytes/s; an accelerator's memory besides.

    Where the truth is served, the width is the student's.

    A matrix of the width and four times that meets as many tokens as make a billion operations: square products of a
    thousand, which processors with matrix units do twenty times faster, say nothing of a network that is 576 wide.
    `train` is the share of that rate that forward and backward of such a layer with its activation reach, in the
    arithmetic of the student's training. On the processor it is the processor's seconds of one thread that count, which
    other work on the machine hardly changes, and threads are taken to add up.
    """
    chain = subject.chain
    width = subject.shapes["student" if subject.is_served("truth") else "truth"].width
    where = pick_device(chain.device if torch.cuda.is_available() else "cpu")
    before = torch.get_num_threads()
    try:
        if where.type == "cpu":
            torch.set_num_threads(1)
            rates = _rates(width, max(1, min(1024, _OPERATIONS // (8 * width**2))), chain.student.training.bf16, where)
            products = {k: v * chain.n_threads for k, v in rates.items() if k in ("float32", "bfloat16")}
            return {**rates, **products, "bandwidth": rates["bandwidth"] * min(chain.n_threads, _COPYING)}
        held = float(torch.cuda.get_device_properties(where).total_memory)
        return {**_rates(width, 4096, chain.student.training.bf16, where), "memory": held}
    finally:
        torch.set_num_threads(before)


def _rates(width: int, tokens: int, bf16: bool, where: torch.device) -> dict[str, float]:
    clock = time.thread_time if where.type == "cpu" else time.perf_counter
    wait = torch.cuda.synchronize if where.type == "cuda" else int  # kernels are queued

    def median(work: Callable[[], object]) -> float:
        times: list[float] = []
        while len(times) < 4 or (len(times) < 20 and sum(times) < _RATED):  # the first one packs
            began = clock()
            work()
            wait()
            times.append(clock() - began)
        return max(statistics.median(times[1:]), _LEAST)

    out: dict[str, float] = {}
    for name, dtype in (("float32", torch.float32), ("bfloat16", torch.bfloat16)):
        x, w = (torch.ones(n, width, dtype=dtype, device=where) for n in (tokens, 4 * width))
        out[name] = 8.0 * tokens * width**2 / median(lambda x=x, w=w: torch.nn.functional.linear(x, w))
    x, w = (torch.ones(n, width, device=where, requires_grad=True) for n in (tokens, 4 * width))

    def step() -> None:
        with torch.autocast(where.type, torch.bfloat16, enabled=bf16):
            y = torch.nn.functional.silu(torch.nn.functional.linear(x, w))
        torch.autograd.grad(y.float().sum(), (x, w))

    out["train"] = 24.0 * tokens * width**2 / median(step) / out["bfloat16" if bf16 else "float32"]
    a, b = (torch.zeros(1 << 25, device=where) for _ in range(2))
    out["bandwidth"] = 2.0 * 4 * a.numel() / median(lambda: b.copy_(a))
    return out


def _seconds(work: Callable[[], object]) -> float:
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


def _median(work: Callable[[], object], turns: int = _TURNS) -> float:
    """Median seconds of a piece of work, without the first turn, which compiles and packs."""
    return _medians([work], turns)[0]


def _medians(works: Sequence[Callable[[], object]], turns: int = _TURNS) -> list[float]:
    """Median seconds of several pieces of work, timed in turn, so that load on the machine affects all alike."""
    times = [[_seconds(work) for work in works] for _ in range(turns + 1)][1:]
    return [statistics.median(column) for column in zip(*times, strict=True)]


class _Bench:
    """Networks with random weights, and rows for them."""

    def __init__(self, subject: Subject, mean: float) -> None:
        self.subject, self.mean = subject, mean
        self.chain = subject.chain
        self.most = subject.chain.truth.max_new_tokens
        self._lms: dict[tuple[str, int, str], CausalLM] = {}
        self._tokenizers: dict[int, PreTrainedTokenizerFast] = {}

    def add(self, out: dict[str, float], names: list[str], work: Callable[[], tuple[float, ...]]) -> None:
        """Measure these parts, unless all are known."""
        if any(n not in out for n in names):
            torch.set_num_threads(self.chain.n_threads)
            out |= dict(zip(names, work(), strict=True))

    # -- networks and rows --------------------------------------------------------------------------------------------

    def lm(self, config: PretrainedConfig, layers: int, dtype: str) -> CausalLM:
        slot = (config.to_json_string(use_diff=False), layers, dtype)
        if slot not in self._lms:
            small = self.small(config, layers)
            device = self.chain.device if torch.cuda.is_available() else "cpu"
            network: Any = fresh_network(small, seed=layers)
            network = network.to(dtype=getattr(torch, dtype), device=pick_device(device))
            self._lms[slot] = CausalLM(network, self.tokenizer(int(small.get_text_config().vocab_size)))
            self._lms[slot].frozen = True
        return self._lms[slot]

    def small(self, config: PretrainedConfig, layers: int) -> PretrainedConfig:
        own = _shape(self.subject, config)
        if own.parameters - (own.layers - layers) * own.layer > _MOST_PARAMETERS:
            raise InputError(
                "the chain's models are too large to be timed here in seconds",
                got=f"{own.parameters:.3g} parameters",
                fix="give --device h100, or a file with figures of the machine that will run it",
            )
        few = layers_config(config, [i % own.layers for i in range(layers)])
        text: Any = few.get_text_config()
        room = max_positions(few)
        if room is not None:  # half an answer and the tokens that are timed may be more than a whole answer
            text.max_position_embeddings = room + _MANY
        return few

    def tokenizer(self, size: int) -> PreTrainedTokenizerFast:
        if size not in self._tokenizers:
            words = Tokenizer(models.WordLevel({f"w{i}": i for i in range(size)}, unk_token="w0"))
            self._tokenizers[size] = PreTrainedTokenizerFast(tokenizer_object=words)
        return self._tokenizers[size]

    def law(self, lm: CausalLM, longest: int, rows: int = 1, extra: int = 0) -> CausalLaw:
        """Make a law without stops: every row has the full length. `extra` positions stand for half an answer."""
        ids = np.random.default_rng(0).integers(0, lm.vocab_size, sum(self.subject.prompts) + extra * _PROMPTS)
        prompts: list[tuple[int, ...]] = []
        at = 0
        for n in self.subject.prompts[:_PROMPTS]:
            prompts.append(tuple(int(i) for i in ids[at : at + n + extra]))
            at += n + extra
        return CausalLaw(lm, Prompts(tuple(prompts), ("",) * len(prompts)), (), longest, None, rows)

    def rows(self, law: CausalLaw, n: int, *, short: int) -> Sequences:
        """Make random answers: every other one of full length, the rest of `short` tokens."""
        longest, rng = law.max_new_tokens, np.random.default_rng(1)
        lengths = np.where(np.arange(n) % 2 == 0, longest, short).astype(np.int64)
        ids = rng.integers(0, law.lm.vocab_size, (n, longest)) * (np.arange(longest) < lengths[:, None])
        of = np.arange(n, dtype=np.int64) % len(law.prompts.ids)
        zero = np.zeros(n)
        return Sequences(law.prompts.ids, of, ids.astype(np.int64), lengths, np.zeros(n, np.bool_), zero)

    # -- what is timed ------------------------------------------------------------------------------------------------

    def draw(self, config: PretrainedConfig, dtype: str) -> tuple[float, float]:
        """A layer's seconds a drawn token, and the rest's: the difference of drawing few and some more tokens."""
        rows, extra = max(1, min(_MOST_ROWS, round(self.chain.block_rows * self.mean / self.most))), int(self.mean / 2)
        lms = [self.lm(config, layers, dtype) for layers in (_SHALLOW, _DEEP)]
        laws = [self.law(lm, n, rows, extra) for lm in lms for n in (_FEW, _MANY)]
        few, many, deep_few, deep_many = _medians([lambda x=x: x.sample(rows) for x in laws])
        tokens = (_MANY - _FEW) * rows
        return _split((many - few) / tokens, (deep_many - deep_few) / tokens)

    def score(self, config: PretrainedConfig, dtype: str) -> tuple[float, float]:
        """A layer's seconds a scored token, and the rest's, the entropy of the next-token law among it."""
        laws = [self.law(self.lm(config, layers, dtype), self.longest) for layers in (_SHALLOW, _DEEP)]
        x = self.scored(laws[0])
        tokens = float(x.lengths.sum())
        shallow, deep = _medians([lambda a=a: score_steps(a, x, entropy=True) for a in laws])
        return _split(shallow / tokens, deep / tokens)

    def beside(self, truth: PretrainedConfig, own: PretrainedConfig, dtype: str, layers: float) -> float:
        """Seconds a token, but for the layers, of scoring rows under two laws with both expectations."""
        p, q = (self.law(self.lm(c, _SHALLOW, dtype), self.longest) for c in (truth, own))
        x = self.scored(p)
        return max(_median(lambda: score_beside(p, x, q)) / float(x.lengths.sum()) - layers, _LEAST)

    @property
    def longest(self) -> int:
        return min(self.most, 256)

    def scored(self, law: CausalLaw) -> Sequences:
        return self.rows(law, max(2, PACKED_TOKENS * workers_of(self.chain) // self.longest), short=self.longest)

    def train(self, config: PretrainedConfig, training: Training) -> tuple[float, float]:
        """A layer's seconds a position, and the rest's an answer token, by the trainer itself."""
        batch, width = padded_batch(self.subject, training)
        longest = max(1, min(self.most, _MOST_POSITIONS - max(self.subject.prompts)))
        rows = max(1, min(batch, _MOST_POSITIONS // width))
        settings = training.model_copy(
            update={
                "per_device_train_batch_size": rows,
                "gradient_accumulation_steps": 1,
                "num_train_epochs": 1,
                "num_workers": 1,
                "save_steps": None,
                "max_steps": None,
                "eval_steps": None,
            }
        )
        truth = self.law(self.lm(config, _SHALLOW, "float32"), longest)
        x = self.rows(truth, rows * _STEPS, short=max(1, min(longest, round(2 * self.mean) - longest)))
        answers = float(x.lengths.sum()) / _STEPS
        positions = training_positions(
            self.subject, _shape(self.subject, config), rows, self.mean, most=_PROMPTS, longest=longest
        )
        times = {n: self.step(config, truth, x, settings, n) for n in (_SHALLOW, _DEEP)}
        layer, rest = _split(times[_SHALLOW], times[_DEEP])
        return layer / positions, rest / answers

    def step(self, config: PretrainedConfig, truth: CausalLaw, x: Sequences, settings: Training, layers: int) -> float:
        ticks: list[float] = []
        above = self.law(self.lm(config, layers, "float32"), truth.max_new_tokens)
        level = LevelSpec(init="above", training=settings)

        def tick(done: float, total: float, what: str) -> None:
            ticks.append(time.perf_counter())

        fit(FitRequest(x, None, truth, above, level, "teacher", "mle", Stream(1, ("plan",)), tick))
        return statistics.median(np.diff(ticks).tolist())

    def files(self, config: PretrainedConfig) -> tuple[float, float]:
        """Seconds a parameter to open a stored model, and to write one."""
        lm = self.lm(config, _SHALLOW, "float32")
        with tempfile.TemporaryDirectory(prefix="hydrometer-") as folder:
            began = time.perf_counter()
            lm.save(Path(folder))
            saved = time.perf_counter() - began
            opened = _median(lambda: CausalLM.from_pretrained(folder, dtype="float32", device="cpu"), 1)
        return opened / lm.n_parameters, saved / lm.n_parameters


def _shape(subject: Subject, config: PretrainedConfig) -> Shape:
    return next(subject.shapes[role] for role, c in subject.configs.items() if c is config)


def _split(shallow: float, deep: float) -> tuple[float, float]:
    """A layer's share of the shallow network's seconds, and the rest; both positive."""
    layer = max((deep - shallow) / (_DEEP - _SHALLOW), _LEAST)
    return layer, max(shallow - _SHALLOW * layer, _LEAST)
