"""The causal-LM family: levels, keys, files and exhibits. The module imports without torch, its methods need it.

Every fit takes prompts, stop set E, max_new_tokens L and tokenizer from the truth, whatever its initial weights.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np
from numpy.typing import NDArray

from hydrometer.core.distillation import TeacherLaw
from hydrometer.core.errors import InputError, StoreError
from hydrometer.core.findings import Finding
from hydrometer.core.io.yaml_io import artifact_json
from hydrometer.core.rng import Stream
from hydrometer.core.spec import ChainSpec
from hydrometer.core.watching import doing
from hydrometer.models.base import Family, FitRequest, Fitted, Footprint, Law, Level, Precision, Samples
from hydrometer.models.causal_lm.cost_model import CostModel
from hydrometer.models.causal_lm.crossing import cross, other_teacher
from hydrometer.models.causal_lm.data.law_file import LAW_FILE, LawFile
from hydrometer.models.causal_lm.data.parts import Kept, source_digest
from hydrometer.models.causal_lm.engines.engine import release
from hydrometer.models.causal_lm.level_spec import level_spec
from hydrometer.models.causal_lm.loading import load
from hydrometer.models.causal_lm.loading.libraries import needs_torch, numerics
from hydrometer.models.causal_lm.opening import (
    judged_prompts,
    open_law,
    open_network,
    open_tokenizer,
    outline_of,
    set_threads,
    split_identity,
    truth_opening,
)
from hydrometer.models.causal_lm.spec import CausalLMChain, FromSource, causal_chain
from hydrometer.models.causal_lm.text_truth import baseline_part
from hydrometer.models.causal_lm.texts_and_given import TextsAndGiven, as_law, as_opened, as_sequences
from hydrometer.models.fit_capabilities import Budget
from hydrometer.models.rows.kept_laws import WHOLE_LAWS, bytes_a_token, save_kept
from hydrometer.models.rows.sequences import Sequences, load_sequences, save_sequences, texts_exhibit
from hydrometer.models.rows.training_rows import TrainingRows, load_training_rows

if TYPE_CHECKING:
    from hydrometer.models.causal_lm.inference.law import CausalLaw
    from hydrometer.models.causal_lm.inference.served_law import ServedLaw

__all__ = ["CAUSAL_LM", "CausalLMFamily"]

ROWS_FILE = "rows.parquet"


class CausalLMFamily(TextsAndGiven, CostModel):
    """Causal language models of Hugging Face; implements `models.base.Family`."""

    name = "causal_lm"
    chain_spec: type[ChainSpec] = CausalLMChain
    keeps_draws = True

    def levels(self, chain: ChainSpec) -> tuple[Level, ...]:
        """Teacher, unless it is taken as it is; assistants; student."""
        return causal_chain(chain).levels

    def sizes(self, chain: ChainSpec) -> Mapping[str, int]:
        """Rows per stream."""
        return causal_chain(chain).data.model_dump(by_alias=True)

    def check(self, chain: ChainSpec) -> None:
        """Check sources, prompts, stop set, layers and vocabularies, without opening weights.

        Raises
        ------
        MissingDependencyError, ModelError, DataError, SpecError, LawMismatchError
        """
        self.check_inputs(chain)
        from hydrometer.models.causal_lm.preflight.chain_check import check_chain

        check_chain(causal_chain(chain))

    def check_inputs(self, chain: ChainSpec) -> None:
        """Check that prompts are readable and sources exist, from headers only. Raises InputError."""
        c = causal_chain(chain)
        needs_torch()
        source_digest(c.truth)
        from hydrometer.models.causal_lm.inference.served_source import locate_source

        for named in (c.truth, c.given_teacher):
            if named is not None:
                locate_source(named.source, named.revision)
        for level in c.level_specs.values():
            if isinstance(level.init, FromSource):
                load.locate(level.init.source)
        for b in c.baselines:
            baseline_part(c, b.name)
            if isinstance(b.init, FromSource):
                load.locate(b.init.source)

    def examine(self, chain: ChainSpec) -> Sequence[Finding]:
        """Diagnose vocabularies, prompts and stop set, and draw a small probe of the truth."""
        from hydrometer.models.causal_lm.cost.memory import level_configs
        from hydrometer.models.causal_lm.preflight.doctor import Subject, examine

        c = causal_chain(chain)
        resolved, prompts, stop_ids = truth_opening(c.truth)
        configs = level_configs(outline_of(resolved).config, c.level_specs, c.given_teacher)
        for level in c.level_specs.values():  # refuse an unreadable file early
            if isinstance(level.init, FromSource):
                source = load.resolve(level.init.source, level.init.revision)
                load.dequantised(source.base or source)
        if (other := other_teacher(c)) is not None:
            configs = {role: config for role, config in configs.items() if role != "teacher"}
        subject = Subject(c, resolved, outline_of(resolved), prompts, stop_ids, configs, other)
        return examine(subject, lambda precision: self.truth(c, precision))

    def footprint(self, chain: ChainSpec, stage: Literal["draw", "fit", "judge"], role: str, rows: int) -> Footprint:
        """Weights, gradients, optimiser states and caches; activations are left out."""
        from hydrometer.models.causal_lm.cost.memory import footprint, level_configs

        c = causal_chain(chain)
        truth = outline_of(truth_opening(c.truth)[0]).config
        configs = level_configs(truth, c.level_specs, c.given_teacher)
        return footprint(c, configs, stage, role, rows)

    def numerics(self, chain: ChainSpec) -> Mapping[str, object]:
        """Versions, threads, processor class, and the identity of the levels' pretrained sources."""
        c = causal_chain(chain)
        sources = {
            role: dict(load.resolve(level.init.source, level.init.revision).identity)
            for role, level in c.level_specs.items()
            if isinstance(level.init, FromSource)
        }
        return {**numerics(c.n_threads, c.device), "sources": sources}

    def block_rows(self, chain: ChainSpec) -> int:
        """Rows drawn together."""
        return causal_chain(chain).block_rows

    def precision(self, chain: ChainSpec, purpose: Literal["train", "judge"]) -> Precision:
        """`draw_dtype` or `judge_dtype`."""
        c = causal_chain(chain)
        return c.draw_dtype if purpose == "train" else c.judge_dtype

    def truth_identity(self, chain: ChainSpec) -> Mapping[str, object]:
        """Hashes of the weights and the prompts, E and L."""
        c = causal_chain(chain)
        resolved, prompts, stop_ids = truth_opening(c.truth)
        return {
            "source": dict(resolved.identity),
            "prompts": prompts.digest,
            "stop_ids": list(stop_ids),
            "max_new_tokens": c.truth.max_new_tokens,
            **({} if prompts.are == "fixed" else {"prompts_are": prompts.are}),
            **split_identity(c.truth),
        }

    def truth(self, chain: ChainSpec, precision: Precision) -> CausalLaw | ServedLaw:
        """Make the truth's law."""
        c = causal_chain(chain)
        return open_law(c, c.truth, precision)

    def rendered(self, chain: ChainSpec) -> Mapping[str, object]:
        """Return the truth's prompts, ids and text, as a run stores them. Raises DataError, ModelError."""
        c = causal_chain(chain)
        other = other_teacher(c)
        teacher = None if other is None else other.kept(c)
        return Kept(source_digest(c.truth), truth_opening(c.truth)[1], judged_prompts(c.truth), teacher).to_json()

    def with_rendered(self, chain: ChainSpec, kept: Mapping[str, object]) -> ChainSpec:
        """Return the chain with the prompts that a run stored. Raises DataError."""
        c = causal_chain(chain)
        return c.model_copy(update={"truth": c.truth.with_kept(Kept.from_json(kept))})

    def draw_identity(self, chain: ChainSpec, role: str, purpose: Literal["train", "judge"]) -> Mapping[str, object]:
        """Identify the engine of training rows, if it is not the native sampler."""
        c = causal_chain(chain)
        if c.drawing is None or purpose == "judge" or not c.drawing[1].draws(role):
            return {}
        engine, settings = c.drawing
        return {"engine": {"name": engine.name, **engine.identity(settings)}}

    def draw_block(
        self,
        chain: ChainSpec,
        law: Law,
        role: str,
        purpose: Literal["train", "judge"],
        n: int,
        *,
        stream: Stream,
        start: int,
    ) -> tuple[Samples, Mapping[str, object]]:
        """Draw a block with the chain's engine, or natively; a teacher's to train on in the chain's ids.

        Raises StageError, DataError.
        """
        from hydrometer.models.causal_lm.inference.draw_block import draw_by_engine
        from hydrometer.models.causal_lm.inference.served_law import ServedLaw
        from hydrometer.models.choosing.best_of_n import ChosenLaw

        c = causal_chain(chain)
        if c.drawing is None or purpose == "judge" or not c.drawing[1].draws(role):
            self.release()
            able = law if isinstance(law, ChosenLaw) else as_law(law)
            drawn, facts = (
                able.draw_block(n, stream=stream, start=start)
                if isinstance(able, ServedLaw)
                else (able.sample_block(n, stream=stream, start=start), dict[str, object]())
            )
        else:
            engine, settings = c.drawing
            drawn, facts = draw_by_engine(
                as_opened(law), engine, settings, dtype=self.precision(c, purpose), n=n, stream=stream, start=start
            )
        other = other_teacher(c) if role == "teacher" and purpose == "train" else None
        if other is None:
            return drawn, facts
        crossed, counts = cross(c, other, drawn)
        return crossed, {**facts, **counts}

    def release(self) -> None:
        """Close the open engine, if any."""
        release()

    def fit(self, request: FitRequest) -> Fitted[Law]:
        """Fit a new model by maximum likelihood. Raises FitError."""
        from hydrometer.models.causal_lm.training.trainer import fit

        return fit(request)

    def keep_law(
        self, law: Law, rows: Samples, asked: TeacherLaw, folder: Path, *, stream: Stream, start: int
    ) -> Mapping[str, object]:
        """Keep a selected teacher's law along rows; of a served one its likeliest ids.

        Raises StageError, InputError.
        """
        from hydrometer.models.causal_lm.inference.served_law import ServedLaw
        from hydrometer.models.causal_lm.training.keeping import keep, keep_served

        x, teacher = as_sequences(rows), as_law(law)
        is_served = isinstance(teacher, ServedLaw)
        kept = keep_served(teacher, x, asked.k) if is_served else keep(teacher, x, asked, stream, start)
        save_kept(kept, folder)
        facts: dict[str, object] = {"tokens": len(kept.rest)}
        facts["bytes_a_token"] = bytes_a_token(asked, teacher.lm.vocab_size)
        return facts | ({} if asked.is_sampled else {"mass_beyond": float(np.exp(kept.rest).mean())})

    def kept_bytes(
        self, chain: ChainSpec, asked: TeacherLaw, rows: int, start: int, mean: float | None = None
    ) -> float:
        """Bytes of a block of what is kept; whole laws are beside the first."""
        c = causal_chain(chain)
        size = self.subject(c).shapes["truth"].vocabulary
        tokens = rows * (c.truth.max_new_tokens if mean is None else mean)
        return tokens * bytes_a_token(asked, size) + (4 * WHOLE_LAWS * size if start == 0 else 0)

    def prepare(self, chain: ChainSpec) -> None:
        """Set torch's threads to the chain's."""
        set_threads(causal_chain(chain))

    def starts_above(self, level: Level) -> bool:
        """Whether weights of the model above are copied."""
        return level_spec(level.spec).starts_above

    def workers(self, level: Level) -> int:
        """`num_workers` of the level's training."""
        return level_spec(level.spec).training.num_workers

    def own_rows(self, chain: ChainSpec, level: Level, rows: int, share: float) -> int:
        """A batch of every such step, and at every evaluation as many as are held out."""
        training, held_out = level_spec(level.spec).training, causal_chain(chain).data.validate_
        epoch, steps = training.steps(rows)
        batch = training.per_device_train_batch_size * training.gradient_accumulation_steps
        return round(share * steps * batch) + (held_out * -(-steps // (training.eval_steps or epoch)) if share else 0)

    def budget(self, chain: ChainSpec) -> Budget:
        """`budget` of the chain."""
        return causal_chain(chain).budget

    def steps(self, level: Level, rows: int) -> tuple[int, int]:
        """Steps of an epoch, and of the level's training."""
        return level_spec(level.spec).training.steps(rows)

    def at_steps(self, chain: ChainSpec, role: str, steps: int) -> ChainSpec:
        """Return the chain with `max_steps` of a distilled level."""
        c = causal_chain(chain)
        levels = c.level_specs
        training = levels[role].training.model_copy(update={"max_steps": steps})
        levels[role] = levels[role].model_copy(update={"training": training})
        assistants = tuple(x for r, x in levels.items() if r.startswith("assistant_"))
        return c.model_copy(update={"assistants": assistants, "student": levels["student"]})

    def group(self, chain: ChainSpec, rank: int, n_workers: int, meeting: Path) -> AbstractContextManager[None]:
        """Join a group on this machine: gloo on the processor, nccl on cuda."""
        from hydrometer.models.causal_lm.training.distributed import group

        return group(causal_chain(chain).device, rank, n_workers, meeting)

    def identify(self, source: str, base: str | None = None) -> Mapping[str, str]:
        """Return a checkpoint's identity, by content. Raises ModelError."""
        from hydrometer.models.causal_lm.pretrained.adopt import identify

        return identify(source, base)

    def adopt(self, chain: ChainSpec, source: str, base: str | None = None) -> CausalLaw:
        """Open a checkpoint in float32, under the truth's prompts and stop set. Raises ModelError, LawMismatchError."""
        from hydrometer.models.causal_lm.pretrained.adopt import check_adopted, open_adopted

        check_adopted(source, base, open_tokenizer(causal_chain(chain))[0])
        return open_adopted(source, base, self.truth(chain, "float32"))

    def save_law(self, law: Law, folder: Path) -> None:
        """Write a folder for `from_pretrained`, with law.json beside the weights."""
        mine = as_opened(law)
        if mine.selectivity is not None:
            raise InputError("only an unselected law is stored", got=mine.selectivity.label)
        mine.lm.save(folder)
        LawFile(mine.prompts, mine.stop_ids, mine.max_new_tokens).write(folder)

    def load_law(self, folder: Path, chain: ChainSpec, precision: Precision) -> CausalLaw:
        """Open a folder that `save_law` wrote."""
        from hydrometer.models.causal_lm.inference.law import CausalLaw

        c = causal_chain(chain)
        try:
            stored = LawFile.from_json(artifact_json(folder / LAW_FILE, dict))
        except ValueError as e:
            fix = "delete the artifact and run again"
            raise StoreError(f"the law cannot be read: {e}", got=folder.name, fix=fix) from None
        set_threads(c)
        doing("opening a fitted model")
        lm = open_network(str(folder), None, c.device, precision)
        return CausalLaw(lm, stored.prompts, stored.stop_ids, stored.max_new_tokens, None, c.block_rows)

    def save_samples(self, samples: Samples, folder: Path) -> None:
        """Write rows as Parquet."""
        save_sequences(as_sequences(samples), folder / ROWS_FILE)

    def load_samples(self, folders: list[Path], n: int) -> Sequences:
        """Open the first n rows of blocks, in the order given."""
        return self.take(Sequences.concatenate([load_sequences(f / ROWS_FILE) for f in folders]), n)

    def load_training_rows(self, folders: list[Path], n: int, scratch: Path) -> TrainingRows:
        """Open the first n rows of blocks for a fit: flat ids, memory-mapped where they are many."""
        return load_training_rows([f / ROWS_FILE for f in folders], n, scratch)

    def take(self, samples: Samples, n: int) -> Sequences:
        """Return the first n rows."""
        return as_sequences(samples).take(slice(0, n))

    def exhibit(
        self, chain: ChainSpec, truth: Law, law: Law, samples: Samples, log_prob_truth: NDArray[np.float64]
    ) -> Mapping[str, object] | None:
        """Return the first answers as text, with their log-probabilities."""
        x = as_sequences(samples)
        prompts, answers = self.texts(chain, law, self.take(x, len(log_prob_truth)))
        return texts_exhibit(x, log_prob_truth, prompts.__getitem__, answers.__getitem__)

    def texts(self, chain: ChainSpec, law: Law, x: Sequences) -> tuple[list[str], list[str]]:
        """Return the rows' prompts and answers as text."""
        return as_law(law).texts(x)

    def describe_truth(self, chain: ChainSpec) -> str:
        """Describe the truth in one line."""
        from hydrometer.models.causal_lm.inference.served_source import find_source

        truth = causal_chain(chain).truth
        model = find_source(truth.source, truth.revision).description
        return model if truth.text is None else f"texts ({truth.text.called}); reference: {model}"

    def unopened(self, chain: ChainSpec) -> Family | None:
        """Return the family that plans from `truth.architecture`, if the truth's model is not on this machine."""
        c = causal_chain(chain)
        needs_torch()
        from hydrometer.models.causal_lm.planning import at_hand

        return None if at_hand(c.truth) else _unopened()


CAUSAL_LM = CausalLMFamily()


@cache
def _unopened() -> Family:
    from hydrometer.models.causal_lm.planning import DescribedTruth

    class DescribedCausalLM(DescribedTruth, CausalLMFamily):
        """The family for a truth that is described, not opened."""

    return DescribedCausalLM()
