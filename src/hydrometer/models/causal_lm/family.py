"""The causal-LM family: its levels, keys, files and exhibits. Importable without torch; the methods are not.

What a fit takes over from the truth, whatever it starts from: prompts, stop set E, max_new_tokens L, tokenizer.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import replace
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Literal, cast

import numpy as np
from numpy.typing import NDArray

from hydrometer.core.errors import InputError, LawMismatchError, SpecError, StoreError
from hydrometer.core.findings import Finding
from hydrometer.core.io.yaml_io import artifact_json
from hydrometer.core.rng import Stream
from hydrometer.core.spec import ChainSpec
from hydrometer.core.watching import doing
from hydrometer.models.base import Family, FitRequest, Fitted, Footprint, Law, Level, Precision, Samples, chain_levels
from hydrometer.models.capabilities import TextScores, TextTruth
from hydrometer.models.causal_lm.data.parts import Kept, source_digest
from hydrometer.models.causal_lm.data.prompts import Prompts, prompts_written
from hydrometer.models.causal_lm.engines import sessions
from hydrometer.models.causal_lm.loading import load
from hydrometer.models.causal_lm.opening import (
    judged_prompts,
    needs_torch,
    open_network,
    open_source,
    open_tokenizer,
    open_truth,
    outline_of,
    set_threads,
    split_identity,
    truth_opening,
)
from hydrometer.models.causal_lm.spec import CausalLMChain, FromLayers, FromSource, LevelSpec
from hydrometer.models.causal_lm.text_rows import answer_texts, score_drawn, score_held_out
from hydrometer.models.causal_lm.text_truth import held_out, text_truth, training_texts
from hydrometer.models.rows.sequences import Sequences, load_sequences, save_sequences, texts_exhibit
from hydrometer.models.rows.training_rows import TrainingRows, load_training_rows
from hydrometer.models.work import Device, Lengths, Stage, Work

if TYPE_CHECKING:
    from hydrometer.models.causal_lm.cost.operations import Subject
    from hydrometer.models.causal_lm.inference.law import CausalLaw
    from hydrometer.models.choosing.best_of_n import ChosenLaw

__all__ = ["CAUSAL_LM", "CausalLMFamily"]

LAW_FILE, ROWS_FILE = "law.json", "rows.parquet"

# What progress lines and shares of a cost are reckoned with: the two cores that the recipes were made on. Only ratios
# between stages matter there; hours for people come from `run.cost.devices`.
REFERENCE = Device(
    name="reference",
    source="two cores of an AMD EPYC (Zen 5), torch 2.13",
    flops={"float32": 2.1e11, "bfloat16": 8.8e11},
    bandwidth=2e10,
    utilisation={"draw": 0.45, "score": 0.6, "train": 0.3},
    link=5e8,
)


class CausalLMFamily:
    """Causal language models of Hugging Face; implements `models.base.Family`."""

    name = "causal_lm"
    chain_spec: type[ChainSpec] = CausalLMChain
    keeps_draws = True

    def levels(self, chain: ChainSpec) -> tuple[Level, ...]:
        """Teacher, unless it is taken as it is; assistants; student."""
        c = _chain(chain)
        return chain_levels(c.teacher if isinstance(c.teacher, LevelSpec) else "truth", c.assistants, c.student)

    def sizes(self, chain: ChainSpec) -> Mapping[str, int]:
        """Rows per stream."""
        return _chain(chain).data.model_dump(by_alias=True)

    def check(self, chain: ChainSpec) -> None:
        """Refuse what can be known without opening weights: sources, prompts, stop set, layers, vocabularies.

        Raises
        ------
        MissingDependencyError, ModelError, DataError, SpecError, LawMismatchError
        """
        self.check_inputs(chain)
        c = _chain(chain)
        resolved, prompts, _ = truth_opening(c.truth)

        from hydrometer.models.causal_lm.inference.opened import model_stop_ids, vocabulary_hash
        from hydrometer.models.causal_lm.training.initialization import scratch_config

        if c.drawing is not None:
            engine, settings = c.drawing
            engine.check(settings, c)
        truth = outline_of(resolved)
        room = getattr(truth.config.get_text_config(), "max_position_embeddings", None)
        longest = max(len(p) for p in prompts.ids) + c.truth.max_new_tokens
        if isinstance(room, int) and longest > room:
            fix = "shorten the prompts or max_new_tokens"
            raise SpecError(
                "prompt and answer exceed the truth's max_position_embeddings", got=(longest, room), fix=fix
            )
        n_truth = n_above = int(truth.config.get_text_config().num_hidden_layers)
        for level in self.levels(c):
            spec = cast("LevelSpec", level.spec)
            match spec.init:
                case "scratch":
                    n_own = int(scratch_config(truth.config, spec.architecture).num_hidden_layers)
                case "truth":
                    n_own = n_truth
                case "above":
                    n_own = n_above
                case FromLayers(layers_of=owner, layers=layers):
                    n = n_truth if owner == "truth" else n_above
                    if max(layers) >= n:
                        raise SpecError(
                            f"{level.role}: layers of {owner} are counted from 0 to {n - 1}", got=list(layers)
                        )
                    n_own = len(layers)
                case FromSource(source=source, revision=revision):
                    other = load.outline(load.resolve(source, revision))
                    same_vocabulary = vocabulary_hash(other.tokenizer) == vocabulary_hash(truth.tokenizer)
                    theirs = model_stop_ids(other.generation_config, other.tokenizer)
                    mine = model_stop_ids(truth.generation_config, truth.tokenizer)
                    if not same_vocabulary or theirs != mine:
                        what = "stop set" if same_vocabulary else "vocabulary"
                        fix = "start from a model of the truth's own tokenizer"
                        raise LawMismatchError(
                            f"{level.role}: the source's {what} is not the truth's", got=source, fix=fix
                        )
                    n_own = int(other.config.get_text_config().num_hidden_layers)
            n_above = n_own

    def check_inputs(self, chain: ChainSpec) -> None:
        """Refuse prompts that cannot be read and sources that are not there, by headers alone. Raises InputError."""
        c = _chain(chain)
        needs_torch()
        source_digest(c.truth)
        load.locate(c.truth.source)
        for level in self.levels(c):
            if isinstance(init := cast("LevelSpec", level.spec).init, FromSource):
                load.locate(init.source)

    def examine(self, chain: ChainSpec) -> Sequence[Finding]:
        """Look for what would spoil the result: vocabularies, prompts and ends, and a small probe of the truth."""
        from hydrometer.models.causal_lm.cost.memory import level_configs
        from hydrometer.models.causal_lm.preflight.doctor import Subject, examine

        c = _chain(chain)
        resolved, prompts, stop_ids = truth_opening(c.truth)
        configs = level_configs(outline_of(resolved).config, self.levels(c), c.given_teacher)
        for level in self.levels(c):  # a file that cannot be read is refused before anything is made
            if isinstance(init := cast("LevelSpec", level.spec).init, FromSource):
                source = load.resolve(init.source, init.revision)
                load.dequantised(source.base or source)
        subject = Subject(c, resolved, outline_of(resolved), prompts, stop_ids, configs)
        return examine(subject, lambda precision: self.truth(c, precision))

    def footprint(self, chain: ChainSpec, stage: Literal["draw", "fit", "judge"], role: str, rows: int) -> Footprint:
        """Weights, gradients, optimiser states and caches; activations are left out."""
        from hydrometer.models.causal_lm.cost.memory import footprint, level_configs

        c = _chain(chain)
        truth = outline_of(load.resolve(c.truth.source, c.truth.revision)).config
        configs = level_configs(truth, self.levels(c), c.given_teacher)
        training = {x.role: cast("LevelSpec", x.spec).training for x in self.levels(c)}.get(role)
        return footprint(c, configs, training, stage, role, rows)

    def numerics(self, chain: ChainSpec) -> Mapping[str, object]:
        """Versions, threads, processor class, and the content of what levels start from."""
        import torch

        c = _chain(chain)
        inits = {level.role: cast("LevelSpec", level.spec).init for level in self.levels(c)}
        return {
            **{package: metadata.version(package) for package in ("torch", "transformers", "tokenizers", "numba")},
            "threads": c.n_threads,
            "cpu": torch.backends.cpu.get_cpu_capability(),
            "device": c.device,
            "sources": {
                role: dict(load.resolve(init.source, init.revision).identity)
                for role, init in inits.items()
                if isinstance(init, FromSource)
            },
        }

    def block_rows(self, chain: ChainSpec) -> int:
        """Rows drawn together."""
        return _chain(chain).block_rows

    def precision(self, chain: ChainSpec, purpose: Literal["train", "judge"]) -> Precision:
        """`draw_dtype` or `judge_dtype`."""
        c = _chain(chain)
        return c.draw_dtype if purpose == "train" else c.judge_dtype

    def truth_identity(self, chain: ChainSpec) -> Mapping[str, object]:
        """Content of the weights and the prompts, E and L."""
        c = _chain(chain)
        resolved, prompts, stop_ids = truth_opening(c.truth)
        return {
            "source": dict(resolved.identity),
            "prompts": prompts.digest,
            "stop_ids": list(stop_ids),
            "max_new_tokens": c.truth.max_new_tokens,
            **({} if prompts.are == "fixed" else {"prompts_are": prompts.are}),
            **split_identity(c.truth),
        }

    def truth(self, chain: ChainSpec, precision: Precision) -> CausalLaw:
        """Make the truth's law."""
        from hydrometer.models.causal_lm.inference.law import CausalLaw

        c = _chain(chain)
        resolved, prompts, stop_ids = truth_opening(c.truth)
        set_threads(c)
        source = str(resolved.gguf or resolved.path)
        lm = open_truth(source, resolved.revision, json.dumps(dict(resolved.identity)), c.device, precision)
        return CausalLaw(lm, prompts, stop_ids, c.truth.max_new_tokens, None, c.block_rows)

    def asked(self, chain: ChainSpec, law: Law, purpose: Literal["train", "judge"]) -> Law:
        """Return the law, asked the prompts that models are judged on where those are others."""
        prompts = judged_prompts(_chain(chain).truth) if purpose == "judge" else None
        return law if prompts is None else replace(_law(law), prompts=prompts)

    def open_given(self, chain: ChainSpec, role: str, precision: Precision) -> CausalLaw:
        """Open the teacher as it is, under the truth's prompts. Raises ModelError, InputError."""
        c = _chain(chain)
        if c.given_teacher is None:
            raise InputError("the chain has no teacher as it is", got=role)
        return replace(self.truth(c, precision), lm=open_source(c, c.given_teacher, precision))

    def given_roles(self, chain: ChainSpec) -> tuple[str, ...]:
        """The teacher, where it is taken as it is."""
        return () if _chain(chain).given_teacher is None else ("teacher",)

    def given_identity(self, chain: ChainSpec, role: str) -> Mapping[str, object]:
        """Name a model as it is by its content."""
        c = _chain(chain)
        if c.given_teacher is None:
            raise InputError("the chain has no teacher as it is", got=role)
        return dict(load.resolve(c.given_teacher.source, c.given_teacher.revision).identity)

    def text_truth(self, chain: ChainSpec) -> TextTruth | None:
        """Return the texts in the place of a truth, where there are such."""
        return text_truth(_chain(chain))

    def training_texts(self, chain: ChainSpec, which: Literal["train", "validate"]) -> Sequences:
        """Return the texts that models are trained on, as rows, or those that choose an epoch."""
        return training_texts(_chain(chain), which)

    def score_texts(self, chain: ChainSpec, law: Law, texts: Samples | range, role: str) -> TextScores:
        """Score texts in the law's canonical tokenisation. Raises StageError, DataError."""
        c = _chain(chain)
        if isinstance(texts, range):
            return score_held_out(_law(law), held_out(c), texts)
        return score_drawn(_law(law), _sequences(texts), _law(law).prompts, open_tokenizer(c)[0])

    def answers(self, chain: ChainSpec, role: str, rows: Samples) -> tuple[list[str], list[str]]:
        """Return the rows' prompts and answers as text."""
        tokenizer, prompts, _ = open_tokenizer(_chain(chain))
        return answer_texts(_sequences(rows), judged_prompts(_chain(chain).truth) or prompts, tokenizer)

    def held_out_strata(self, chain: ChainSpec) -> NDArray[np.int64] | None:
        """Return which prompt each held-out text answers; None where all follow one."""
        return held_out(_chain(chain)).strata

    def rendered(self, chain: ChainSpec) -> Mapping[str, object]:
        """Return the truth's prompts, ids and text, in the form that a run keeps. Raises DataError, ModelError."""
        truth = _chain(chain).truth
        return Kept(source_digest(truth), truth_opening(truth)[1], judged_prompts(truth)).to_json()

    def with_rendered(self, chain: ChainSpec, kept: Mapping[str, object]) -> ChainSpec:
        """Return the chain, its truth asked what a run kept. Raises DataError."""
        c = _chain(chain)
        return c.model_copy(update={"truth": c.truth.with_kept(Kept.from_json(kept))})

    def draw_identity(self, chain: ChainSpec, role: str, purpose: Literal["train", "judge"]) -> Mapping[str, object]:
        """Name the engine of training rows, where it is another than the native one."""
        c = _chain(chain)
        if c.drawing is None or purpose == "judge" or not c.drawing[1].draws(role):
            return {}
        engine, settings = c.drawing
        return {"engine": {"name": engine.name, **engine.identity(settings)}}

    def draw_block(
        self, chain: ChainSpec, law: Law, role: str, purpose: Literal["train", "judge"], n: int, *,
        stream: Stream, start: int,
    ) -> tuple[Samples, Mapping[str, object]]:  # fmt: skip
        """Draw a block as the chain says, natively or by its engine. Raises StageError."""
        from hydrometer.models.causal_lm.inference.draw_block import draw_by_engine

        c = _chain(chain)
        if c.drawing is None or purpose == "judge" or not c.drawing[1].draws(role):
            self.release()
            return cast("CausalLaw | ChosenLaw", law).sample_block(n, stream=stream, start=start), {}
        engine, settings = c.drawing
        return draw_by_engine(
            _law(law), engine, settings, dtype=self.precision(c, purpose), n=n, stream=stream, start=start
        )

    def release(self) -> None:
        """Close the engine that is open, if one is."""
        sessions.release()

    def fit(self, request: FitRequest) -> Fitted[Law]:
        """Fit a new model by maximum likelihood. Raises FitError."""
        from hydrometer.models.causal_lm.training.trainer import fit

        return fit(request)

    def prepare(self, chain: ChainSpec) -> None:
        """Set torch's threads to the chain's."""
        set_threads(_chain(chain))

    def workers(self, level: Level) -> int:
        """`num_workers` of the level's training."""
        return cast("LevelSpec", level.spec).training.num_workers

    def group(self, chain: ChainSpec, rank: int, n_workers: int, meeting: Path) -> AbstractContextManager[None]:
        """Join a group on this machine: gloo on the processor, nccl on cuda."""
        from hydrometer.models.causal_lm.training.distributed import group

        return group(_chain(chain).device, rank, n_workers, meeting)

    def identify(self, source: str) -> Mapping[str, str]:
        """Return what a checkpoint is, by content. Raises ModelError."""
        from hydrometer.models.causal_lm.pretrained.adopt import identify

        return identify(source)

    def adopt(self, chain: ChainSpec, source: str) -> CausalLaw:
        """Open a checkpoint in float32, under the truth's prompts and stop set. Raises ModelError, LawMismatchError."""
        from hydrometer.models.causal_lm.pretrained.adopt import check_adopted, open_adopted

        check_adopted(source, open_tokenizer(_chain(chain))[0])
        return open_adopted(source, self.truth(chain, "float32"))

    def save_law(self, law: Law, folder: Path) -> None:
        """Write a folder that `from_pretrained` opens, and beside it what else makes the law."""
        mine = _law(law)
        if mine.selectivity is not None:
            raise InputError("only an unselected law is stored", got=mine.selectivity.label)
        mine.lm.save(folder)
        parts = {
            "version": 1,
            "prompt_ids": mine.prompts.ids,
            "prompt_texts": mine.prompts.texts,
            **({} if mine.prompts.written is None else {"prompts_written": mine.prompts.written}),
            "stop_ids": mine.stop_ids,
            "max_new_tokens": mine.max_new_tokens,
            **({} if mine.prompts.are == "fixed" else {"prompts_are": mine.prompts.are}),
        }
        (folder / LAW_FILE).write_text(json.dumps(parts), encoding="utf-8")

    def load_law(self, folder: Path, chain: ChainSpec, precision: Precision) -> CausalLaw:
        """Open what `save_law` wrote."""
        from hydrometer.models.causal_lm.inference.law import CausalLaw

        c = _chain(chain)
        try:
            parts = artifact_json(folder / LAW_FILE, dict)
            ids = tuple(tuple(p) for p in parts["prompt_ids"])
            are = parts.get("prompts_are", "fixed")
            prompts = Prompts(ids, tuple(parts["prompt_texts"]), are, prompts_written(parts))
            stop_ids, longest = tuple(parts["stop_ids"]), int(parts["max_new_tokens"])
        except (OSError, ValueError, KeyError, TypeError) as e:
            fix = "delete the artifact and run again"
            raise StoreError(f"the law cannot be read: {e}", got=folder.name, fix=fix) from None
        set_threads(c)
        doing("opening a fitted model")
        lm = open_network(str(folder), None, c.device, precision)
        return CausalLaw(lm, prompts, stop_ids, longest, None, c.block_rows)

    def save_samples(self, samples: Samples, folder: Path) -> None:
        """Write rows as Parquet."""
        save_sequences(_sequences(samples), folder / ROWS_FILE)

    def load_samples(self, folders: list[Path], n: int) -> Sequences:
        """Open the first n rows of blocks, in the order given."""
        return self.take(Sequences.concatenate([load_sequences(f / ROWS_FILE) for f in folders]), n)

    def load_training_rows(self, folders: list[Path], n: int, scratch: Path) -> TrainingRows:
        """Open the first n rows of blocks as a fit reads them: flat ids, on disk where they are many."""
        return load_training_rows([f / ROWS_FILE for f in folders], n, scratch)

    def take(self, samples: Samples, n: int) -> Sequences:
        """Return the first n rows."""
        return _sequences(samples).take(slice(0, n))

    def exhibit(
        self, chain: ChainSpec, truth: Law, law: Law, samples: Samples, log_prob_truth: NDArray[np.float64]
    ) -> Mapping[str, object] | None:
        """Return the first answers as text, with their log-probabilities."""
        x = _sequences(samples)
        prompts, answers = self.texts(chain, law, self.take(x, len(log_prob_truth)))
        return texts_exhibit(x, log_prob_truth, prompts.__getitem__, answers.__getitem__)

    def texts(self, chain: ChainSpec, law: Law, x: Sequences) -> tuple[list[str], list[str]]:
        """Return the rows' prompts and answers as text."""
        return _law(law).texts(x)

    def describe_truth(self, chain: ChainSpec) -> str:
        """Name the truth for what it is."""
        truth = _chain(chain).truth
        return load.resolve(truth.source, truth.revision).description

    def cost(self, chain: ChainSpec, stage: Literal["draw", "fit", "judge"], role: str, rows: int) -> float:
        """Seconds on the reference machine, from the same counts as `plan`; every answer as long as it may be."""
        c = _chain(chain)
        precision = c.draw_dtype if stage == "draw" else c.judge_dtype
        sides: tuple[Stage, ...] = ("score truth", "score law")
        kinds = (stage,) if stage != "judge" else ("score own",) if role == "truth" else sides
        works = [self.work(c, kind, role, rows, c.truth.max_new_tokens, precision) for kind in kinds]
        return sum(work.seconds(REFERENCE) for work in works)

    def work(self, chain: ChainSpec, stage: Stage, role: str, rows: int, mean: float, precision: Precision) -> Work:
        """Operations, bytes and tokens of a stage."""
        from hydrometer.models.causal_lm.cost.operations import stage_work

        return stage_work(self.subject(_chain(chain)), stage, role, rows, mean, precision)

    def unopened(self, chain: ChainSpec) -> Family | None:
        """Return the family that plans from `truth.architecture`, where the truth's model is not on this machine."""
        c = _chain(chain)
        needs_torch()
        from hydrometer.models.causal_lm.planning import at_hand

        return None if at_hand(c.truth) else _unopened()

    def lengths(self, chain: ChainSpec) -> Lengths:
        """Mean length of a few answers that the truth is asked for."""
        from hydrometer.models.causal_lm.planning import expected_lengths

        c = _chain(chain)
        return expected_lengths(c, self.truth(c, c.draw_dtype))

    def measure(self, chain: ChainSpec, mean: float, known: Mapping[str, float]) -> Mapping[str, float]:
        """Time random networks of the chain's shapes and few layers, through the sampler, scorer and trainer."""
        from hydrometer.models.causal_lm.cost.timing import measure

        c = _chain(chain)
        set_threads(c)
        return measure(self.subject(c), mean, known)

    def machine(self, chain: ChainSpec) -> Mapping[str, float]:
        """Rates of matrix products at the truth's width, and of memory copies, here."""
        from hydrometer.models.causal_lm.cost.timing import machine

        c = _chain(chain)
        set_threads(c)
        return machine(self.subject(c))

    def subject(self, c: CausalLMChain) -> Subject:
        """Return the chain's sizes, counted once."""
        from hydrometer.models.causal_lm.planning import subject_of

        resolved, prompts, _ = truth_opening(c.truth)
        return subject_of(c, self.levels(c), outline_of(resolved).config, tuple(len(p) for p in prompts.ids))


CAUSAL_LM = CausalLMFamily()


@cache
def _unopened() -> Family:
    """Make the family that plans only."""
    from hydrometer.models.causal_lm.unopened import Unopened

    class UnopenedCausalLM(Unopened, CausalLMFamily):
        """A family whose truth is not opened."""

    return UnopenedCausalLM()


def _chain(chain: ChainSpec) -> CausalLMChain:
    if not isinstance(chain, CausalLMChain):
        raise InputError("not a causal_lm chain", got=type(chain).__name__)
    return chain


def _law(law: Law) -> CausalLaw:
    from hydrometer.models.causal_lm.inference.law import CausalLaw

    if not isinstance(law, CausalLaw):
        raise InputError("not a causal LM's law", got=type(law).__name__)
    return law


def _sequences(samples: Samples) -> Sequences:
    if not isinstance(samples, Sequences):
        raise InputError("not Sequences", got=type(samples).__name__)
    return samples
