"""Operations, bytes and tokens of a causal LM's stages, counted on networks without storage.

Shapes: T tokens, D width, V ids, P_l matrix entries of a decoder layer, c positions that a token attends to.

    forward, a token and layer      2 P_l + 4 c D_attention        learning takes three times that
    head, a token                   2 D V

The counts follow the code: each prompt runs once, not once an answer (`llama`, `packed_rows`); the head runs on answer
positions only (`scorer`, `trainer`); the truth's states at its own rows are cached (`hidden_state_cache`); workers wait
for the last batch (`thread_pool`). Mixtures of experts count all experts.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
from torch import nn
from transformers import PretrainedConfig

from hydrometer.models.causal_lm.cost.memory import (
    footprint,
    judge_bytes,
    on_accelerator,
    row_bytes,
    step_bytes,
    trained_parameters,
)
from hydrometer.models.causal_lm.cpu.thread_pool import MAX_THREADS
from hydrometer.models.causal_lm.inference.scorer import PACKED_TOKENS
from hydrometer.models.causal_lm.inference.served_source import ServedConfig
from hydrometer.models.causal_lm.level_spec import LevelSpec
from hydrometer.models.causal_lm.networks.hidden_state_cache import MAX_BYTES
from hydrometer.models.causal_lm.spec import CausalLMChain, Training
from hydrometer.models.causal_lm.training.layers import empty_network
from hydrometer.models.causal_lm.training.memory.step_memory import BYTES, MOMENTS
from hydrometer.models.causal_lm.training.packed_rows import learns_packed, packed_size
from hydrometer.models.rows.training_rows import IN_MEMORY
from hydrometer.models.work import Part, Stage, Work

__all__ = [
    "Shape",
    "Subject",
    "padded_batch",
    "score_names",
    "shape_of",
    "spread",
    "stage_work",
    "training_positions",
    "workers_of",
]

_ID_BYTES = 64  # moved a vocabulary entry where a row of logits is drawn from or scored by torch operations
_LAUNCHES = 16  # operations of a decoder layer
_BATCHES = 8  # of training, whose packs are counted
_SCORED = 1500  # bytes of an artifact of scores beside its columns
_GRAM_TOKEN = 88  # bytes that a token of judged rows takes while distinct n-grams are counted: `metrics.text`
_STEP_BYTES = 24  # a parameter and step: weights and gradient, read and written; the norm for clipping


@dataclass(frozen=True, slots=True)
class Shape:
    """A network's sizes.

    Attributes
    ----------
    layers, width, vocabulary : decoder layers, D, rows of the output matrix.
    layer : entries of the matrices of one decoder layer.
    attention : query heads times their size. kept : numbers a position leaves in the cache, a layer.
    parameters : all of them, tied ones once.
    packs : whether training batches are run as packs.
    """

    layers: int
    width: int
    vocabulary: int
    layer: int
    attention: int
    kept: int
    parameters: int
    packs: bool

    @property
    def label(self) -> str:
        """What a layer and a head cost, as part of a name; the number of layers is not in it."""
        return f"{self.width}w {self.layer}m {self.vocabulary}v"


def shape_of(config: PretrainedConfig) -> Shape:
    """Count a configuration's network, a served one's as nothing. Raises ModelError where none can be built of it."""
    if isinstance(config, ServedConfig):
        return Shape(0, 0, int(config.get_text_config().vocab_size), 0, 0, 0, 0, packs=False)
    network: Any = empty_network(config)
    text = config.get_text_config()
    tables = {id(m.weight) for m in network.modules() if isinstance(m, nn.Embedding)}
    head = network.get_output_embeddings()
    tables |= set() if head is None else {id(head.weight)}
    # Experts of a mixture are one parameter of three dimensions.
    matrices = sum(p.numel() for p in network.parameters() if p.ndim > 1 and id(p) not in tables)
    layers, heads = int(text.num_hidden_layers), int(getattr(text, "num_attention_heads", 1) or 1)
    size = int(getattr(text, "head_dim", None) or text.hidden_size // heads)
    groups = int(getattr(text, "num_key_value_heads", None) or heads)
    return Shape(
        layers,
        int(text.hidden_size),
        int(text.vocab_size),
        matrices // layers,
        heads * size,
        2 * groups * size,
        sum(p.numel() for p in network.parameters()),
        learns_packed(network),
    )


@dataclass(frozen=True, slots=True)
class Subject:
    """A chain, and the sizes of its models.

    Attributes
    ----------
    shapes : of the truth and the levels, by role. prompts : lengths of all prompts, tokens.
    levels : specifications of the levels, by role. configs : as `footprint` takes them.
    described : whether the truth is not at hand, but described.
    """

    chain: CausalLMChain
    configs: Mapping[str, PretrainedConfig]
    shapes: Mapping[str, Shape]
    levels: Mapping[str, LevelSpec]
    prompts: tuple[int, ...]
    described: bool = False

    def is_served(self, role: str) -> bool:
        """Whether a role's model computes elsewhere."""
        return self.shapes[role].layers == 0

    @property
    def prompt(self) -> float:
        """Mean length of a prompt, tokens."""
        return sum(self.prompts) / len(self.prompts)

    @property
    def span(self) -> str:
        """Length of the context, as part of a name: attention is measured at it."""
        return f"{self.prompt:.0f}+{self.chain.truth.max_new_tokens}t"


def workers_of(chain: CausalLMChain) -> int:
    """Return how many workers score on the CPU."""
    return 1 if on_accelerator(chain) else min(chain.n_threads, MAX_THREADS)


def spread(tokens: float, workers: int) -> float:
    """Return the tokens that all workers could process until the last batch is done: at least `tokens`.

    Examples
    --------
    >>> spread(1024, 2), spread(2048, 2), spread(3072, 2)  # a batch of 1024 is not divided
    (2048.0, 2048.0, 4096.0)
    """
    full, rest = divmod(tokens, PACKED_TOKENS)
    busy = [0.0] * workers
    for batch in [float(PACKED_TOKENS)] * min(int(full), 64 * workers) + ([rest] if rest else []):
        busy[busy.index(min(busy))] += batch
    counted = min(int(full), 64 * workers) * PACKED_TOKENS + rest
    return max(busy) * workers + (tokens - counted)


def padded_batch(subject: Subject, training: Training) -> tuple[int, int]:
    """Rows of a training batch, and positions of its longest: prompt and max_new_tokens."""
    return training.per_device_train_batch_size, max(subject.prompts) + subject.chain.truth.max_new_tokens


def training_positions(s: Subject, own: Shape, rows: int, mean: float, *, most: int, longest: int) -> float:
    """Positions that a training batch is run at: of its packs, each prompt once, where the network takes them.

    Parameters
    ----------
    rows : of a batch. mean : tokens of an answer. most : prompts there are at most. longest : tokens of an answer, at
        most.
    """
    if on_accelerator(s.chain) or not own.packs:
        return float(rows * (max(s.prompts) + longest))
    return _packed_positions(
        s.prompts[:most], max(s.prompts) + longest, rows, longest, max(1, round(2 * mean) - longest)
    )


@lru_cache(maxsize=64)
def _packed_positions(prompts: tuple[int, ...], width: int, rows: int, longest: int, short: int) -> float:
    """Mean over a few batches, half of whose answers have the full length, the rest `short`."""
    rng, length_U = np.random.default_rng(0), np.array(prompts)
    found: list[int] = []
    for _ in range(_BATCHES):
        i = rng.permutation(4 * rows)[:rows]
        of = i % len(prompts)
        found.append(packed_size(of.tolist(), length_U[of], np.where(i % 2, min(short, longest), longest), width))
    return sum(found) / len(found)


def stage_work(subject: Subject, stage: Stage, role: str, rows: int, mean: float, precision: str) -> Work:
    """Return the work of a stage.

    Parameters
    ----------
    role : whose law draws, is fitted, judged or opened. rows : drawn, learned, or judged of each law.
    mean : tokens of an answer. precision : arithmetic of a draw, and of scores.
    """
    tokens, longest, level = rows * mean, subject.chain.truth.max_new_tokens, subject.levels.get(role)
    if stage == "open":
        n = subject.shapes[role].parameters
        return Work(parts=(Part("open", n, "score", loaded=4.0 * n),))
    training = None if level is None else level.training
    if stage in ("states", "heads"):
        own = subject.shapes[role]
        if stage == "states":
            parts = (_layers(subject, own, precision, tokens, mean), *_prefill(subject, own, precision, rows, 1.0))
        else:
            parts = (_heads(own, tokens, precision),)
        return Work(tokens, parts=parts)
    likes = stage if stage in ("draw", "fit") else "judge"
    dtype = None if stage in ("fit", "judge") else precision
    described = subject.prompts if subject.described else None
    takes = footprint(
        subject.chain, subject.configs, likes, role, rows, dtype=dtype, anywhere=True, described=described
    )
    match stage:
        case "draw":
            parts = () if subject.is_served(role) else _draw(subject, subject.shapes[role], precision, rows, mean)
            return Work(tokens, row_bytes(rows, mean), takes.memory_least, parts)
        case "judge":  # joins what was scored: no model is opened
            return Work(0.0, judge_bytes(rows), float(rows * longest * _GRAM_TOKEN))
        case "fit":
            parts = _fit(subject, role, rows, mean)
            epochs = 1.0 if training is None else _epochs(training, rows)
            held = min(rows * longest * 2, IN_MEMORY)  # more of them are mapped
            t, n, width = training or Training(), subject.shapes[role].parameters, max(subject.prompts) + longest
            on_card = subject.chain.device != "cpu"  # on the processor batches are packed, and narrower
            saved = step_bytes(subject.configs[role], n, t, rows, (width, longest)) if on_card else 0
            return Work(tokens * epochs, takes.disk_most, takes.memory_least + held + saved, parts)
        case _:
            parts = _score(subject, stage, role, rows, mean, precision)
            return Work(tokens, takes.disk_most + _SCORED, takes.memory_least, parts)


def score_names(subject: Subject, shape: Shape, dtype: str) -> tuple[str, str]:
    """Name the parts of a scored token: a decoder layer, and the rest."""
    return f"score.layer {shape.label} {dtype} {subject.span}", f"score.rest {shape.label} {dtype} {subject.span}"


def _draw(s: Subject, own: Shape, dtype: str, rows: int, mean: float) -> tuple[Part, ...]:
    tokens, width, steps = rows * mean, BYTES[dtype], s.chain.truth.max_new_tokens
    blocks = max(rows / s.chain.block_rows, 1.0)
    context = s.prompt + mean / 2
    kept = tokens * context * own.kept * width
    name = f"{own.label} {dtype} {s.chain.block_rows}r {s.span}"
    layer = Part(
        f"draw.layer {name}",
        own.layers * tokens,
        "draw",
        own.layers * (2.0 * own.layer * tokens + 4.0 * own.attention * context * tokens),
        own.layers * (blocks * steps * own.layer * width + kept),
        dtype,
        blocks * steps * own.layers * _LAUNCHES,
    )
    matrix = float(own.width * own.vocabulary)
    rest = Part(
        f"draw.rest {name}",
        tokens,
        "draw",
        2.0 * matrix * tokens,
        blocks * steps * matrix * width + tokens * own.vocabulary * _ID_BYTES,
        dtype,
        blocks * steps * _LAUNCHES,
    )
    return layer, rest, *_prefill(s, own, dtype, rows, blocks)


def _prefill(s: Subject, own: Shape, dtype: str, rows: int, times: float) -> tuple[Part, ...]:
    """The prompts of so many rows, each run once."""
    tokens = sum(s.prompts) * min(1.0, rows / times / len(s.prompts)) * times
    flops = own.layers * (2.0 * own.layer * tokens + 2.0 * own.attention * s.prompt * tokens)
    return (Part(score_names(s, own, dtype)[0], own.layers * tokens, "score", flops, 0.0, dtype),)


def _layers(s: Subject, own: Shape, dtype: str, tokens: float, mean: float, share: float = 1.0) -> Part:
    """Decoder layers over whole answers, by rows together."""
    context = s.prompt + mean / 2
    flops = share * own.layers * tokens * (2.0 * own.layer + 4.0 * own.attention * context)
    units = share * own.layers * spread(tokens, workers_of(s.chain))
    return Part(score_names(s, own, dtype)[0], units, "score", flops, 0.0, dtype)


def _score(s: Subject, side: str, role: str, rows: int, mean: float, dtype: str) -> tuple[Part, ...]:
    """One block of rows: under one law alone, or under the truth and another with both expectations."""
    truth, own = s.shapes["truth"], s.shapes[role]
    tokens = rows * mean
    units = spread(tokens, workers_of(s.chain))
    ids = tokens * truth.vocabulary * _ID_BYTES
    if s.is_served(role):
        return ()
    if s.is_served("truth"):
        side = "score own"
    if side == "score own":
        head = 2.0 * own.width * own.vocabulary * tokens
        return (
            _layers(s, own, dtype, tokens, mean),
            Part(score_names(s, own, dtype)[1], units, "score", head, ids, dtype),
            *_prefill(s, own, dtype, rows, 1.0),
        )
    room = MAX_BYTES / (s.chain.data.evaluate * mean * truth.width * BYTES[dtype])
    again = 1.0 - min(1.0, room) if side == "score truth" else 1.0
    heads = 2.0 * tokens * (truth.width * truth.vocabulary + own.width * own.vocabulary)
    return (
        _layers(s, truth, dtype, tokens, mean, again),
        _layers(s, own, dtype, tokens, mean),
        Part(f"beside.rest {truth.label} + {own.label} {dtype} {s.span}", units, "score", heads, 2 * ids, dtype),
        *_prefill(s, truth, dtype, rows, 1.0),
        *_prefill(s, own, dtype, rows, 1.0),
    )


def _heads(own: Shape, tokens: float, dtype: str) -> Part:
    """The output matrix of a teacher that is matched."""
    flops = 2.0 * own.width * own.vocabulary * tokens
    return Part(f"match.head {own.label} {dtype}", tokens, "train", flops, tokens * own.vocabulary * _ID_BYTES, dtype)


def _fit(s: Subject, role: str, rows: int, mean: float) -> tuple[Part, ...]:
    own, training = s.shapes[role], s.levels[role].training
    epochs, dtype = _epochs(training, rows), "bfloat16" if training.bf16 else "float32"
    batch, width = padded_batch(s, training)
    longest = s.chain.truth.max_new_tokens
    share = training_positions(s, own, batch, mean, most=len(s.prompts), longest=longest) / (batch * width)
    learnt = trained_parameters(s.configs[role], training)
    packs = "" if share == 1 else f" {share:.2f}"
    name = f"{own.label} {dtype} {batch}x{width}{packs}{_manner(training, learnt)}"
    positions, answers = share * rows * width * epochs, rows * mean * epochs
    again, adapted = float(training.gradient_checkpointing), training.lora is not None
    # Forward, the gradients of states, and those of weights; adapters have only their own.
    matrices = 2.0 * own.layer * (2.0 + again if adapted else 3.0 + again)
    adapters = 6.0 * learnt * positions if adapted else 0.0
    layer = Part(
        f"train.layer {name}",
        own.layers * positions,
        "train",
        own.layers * positions * (matrices + (3.0 + again) * 2.0 * own.attention * width) + adapters,
        0.0,
        dtype,
    )
    steps = epochs * rows / (batch * training.gradient_accumulation_steps)
    matrix = own.width * own.vocabulary
    width = BYTES["float32" if adapted or training.master_weights else training.torch_dtype]
    moved = (_STEP_BYTES + 8 * MOMENTS[training.optim]) * width / 4
    rest = Part(
        f"train.rest {name}",
        answers,
        "train",
        (4.0 if adapted else 6.0) * matrix * answers,
        steps * learnt * moved + answers * own.vocabulary * _ID_BYTES,
        dtype,
    )
    held, times = s.chain.data.validate_ * mean, _evaluations(training, rows)
    judged = "float32"  # what is trained is scored in float32, whatever models are judged in
    scored = Part(
        score_names(s, own, judged)[1],
        times * spread(held, workers_of(s.chain)),
        "score",
        times * 2.0 * matrix * held,
        times * held * own.vocabulary * _ID_BYTES,
        judged,
    )
    kept = Part("save", own.parameters, "train", loaded=4.0 * own.parameters)
    return layer, rest, _layers(s, own, judged, held, mean, times), scored, kept


def _epochs(training: Training, rows: int) -> float:
    """How often the rows are learnt, if nothing stops the fit early."""
    epoch, steps = training.steps(rows)
    return steps / epoch


def _evaluations(training: Training, rows: int) -> int:
    epoch, steps = training.steps(rows)
    return -(-steps // (training.eval_steps or epoch))


def _manner(training: Training, learnt: int) -> str:
    """What besides shapes changes the seconds of a step, as part of a name; empty for defaults."""
    said = {
        f"lora{learnt}": training.lora is not None,
        "recomputed": training.gradient_checkpointing,
        "rounded": training.torch_dtype != "float32",
        "mastered": training.master_weights,
        training.optim: training.optim != Training().optim,
    }
    return "".join(f" {word}" for word, is_so in said.items() if is_so)
