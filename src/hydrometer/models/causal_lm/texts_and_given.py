"""What a causal-LM family does for texts as truth, prompts kept for judging, and models taken as they are."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Literal

import numpy as np
from numpy.typing import NDArray

from hydrometer.core.errors import InputError
from hydrometer.core.findings import Finding
from hydrometer.core.spec import ChainSpec
from hydrometer.models.base import Law, Precision, Samples
from hydrometer.models.capabilities import Baseline, TextScores, TextTruth
from hydrometer.models.causal_lm.crossing import other_teacher, written_by
from hydrometer.models.causal_lm.opening import judged_prompts, open_law
from hydrometer.models.causal_lm.spec import causal_chain
from hydrometer.models.causal_lm.text_rows import answer_texts, score_drawn, score_held_out
from hydrometer.models.causal_lm.text_truth import (
    baselines,
    count_parts,
    held_out,
    text_truth,
    trained_prompts,
    training_texts,
)
from hydrometer.models.rows.sequences import Sequences

if TYPE_CHECKING:
    from hydrometer.models.causal_lm.inference.law import CausalLaw
    from hydrometer.models.causal_lm.inference.served_law import ServedLaw

__all__ = ["TextsAndGiven", "as_law", "as_opened", "as_sequences"]


class TextsAndGiven:
    """The capabilities `AsksParts`, `GivenModels` and `TextTruths` of causal language models."""

    def asked(self, chain: ChainSpec, law: Law, purpose: Literal["train", "judge"]) -> Law:
        """Return the law, asked the prompts that models are judged on where those are others."""
        c = causal_chain(chain)
        other = other_teacher(c)
        if other is not None and as_law(law).lm.vocabulary_hash == other.vocabulary:
            prompts = other.judged if purpose == "judge" else None
        else:
            prompts = judged_prompts(c.truth) if purpose == "judge" else None
        return law if prompts is None else replace(as_law(law), prompts=prompts)

    def judged_on_training(self, chain: ChainSpec) -> ChainSpec | None:
        """Return the chain, judged on prompts of training, where it asks for that and is not yet."""
        c = causal_chain(chain)
        if not c.judge_training_prompts or c.truth.of_training is not None:
            return None
        return c.model_copy(update={"truth": c.truth.judged_on(trained_prompts(c))})

    def asked_identity(self, chain: ChainSpec) -> Mapping[str, object]:
        """Name the prompts of training that models are judged on, where they are; others are part of the truth."""
        truth = causal_chain(chain).truth
        judged = None if truth.of_training is None else judged_prompts(truth)
        return {} if judged is None else {"prompts": judged.digest}

    def count_parts(self, chain: ChainSpec) -> Mapping[str, int]:
        """Count the prompts that a distilled student's rows and the rows for judging answer. Raises DataError."""
        return count_parts(causal_chain(chain))

    def examine_parts(self, chain: ChainSpec) -> Sequence[Finding]:
        """Say that models are judged on the prompts that they are trained on, where they are. Raises DataError."""
        from hydrometer.models.causal_lm.preflight.prompt_checks import shared_prompts

        return shared_prompts(causal_chain(chain).truth)

    def open_given(self, chain: ChainSpec, role: str, precision: Precision) -> CausalLaw | ServedLaw:
        """Open the teacher as it is, under the truth's prompts, in its own ids. Raises ModelError, InputError."""
        c = causal_chain(chain)
        if c.given_teacher is None:
            raise InputError("the chain has no teacher as it is", got=role)
        other = other_teacher(c)
        return open_law(c, c.given_teacher, precision, None if other is None else (other.prompts, other.stop_ids))

    def unscored_roles(self, chain: ChainSpec) -> frozenset[str]:
        """Served models: they draw under a selectivity, and score without one alone."""
        return causal_chain(chain).served_roles

    def given_roles(self, chain: ChainSpec) -> tuple[str, ...]:
        """The teacher, where it is taken as it is."""
        return () if causal_chain(chain).given_teacher is None else ("teacher",)

    def given_identity(self, chain: ChainSpec, role: str) -> Mapping[str, object]:
        """Name a model as it is by its content."""
        c = causal_chain(chain)
        if c.given_teacher is None:
            raise InputError("the chain has no teacher as it is", got=role)
        from hydrometer.models.causal_lm.inference.served_source import find_source

        identity = dict(find_source(c.given_teacher.source, c.given_teacher.revision).identity)
        other = other_teacher(c)
        return identity if other is None else {**identity, **other.identity}

    def judges_texts(self, chain: ChainSpec) -> bool:
        """Whether the teacher's tokenizer is not the chain's."""
        return other_teacher(causal_chain(chain)) is not None

    def text_truth(self, chain: ChainSpec) -> TextTruth | None:
        """Return the texts in the place of a truth, where there are such."""
        return text_truth(causal_chain(chain))

    def baselines(self, chain: ChainSpec) -> Sequence[Baseline]:
        """Return the students that are fitted to texts of their own."""
        return baselines(causal_chain(chain))

    def training_texts(
        self, chain: ChainSpec, which: Literal["train", "validate"], baseline: str | None = None
    ) -> Sequences:
        """Return the texts that models are trained on, as rows, or those that choose an epoch."""
        return training_texts(causal_chain(chain), which, baseline)

    def score_texts(self, chain: ChainSpec, law: Law, texts: Samples | range, role: str) -> TextScores:
        """Score texts in the law's canonical tokenisation. Raises StageError, DataError."""
        c = causal_chain(chain)
        if isinstance(texts, range):
            return score_held_out(as_law(law), held_out(c), texts)
        tokenizer, prompts, _ = written_by(c, role, "judge")
        return score_drawn(as_law(law), as_sequences(texts), prompts, tokenizer)

    def answers(self, chain: ChainSpec, role: str, rows: Samples) -> tuple[list[str], list[str]]:
        """Return the rows' prompts and answers as text."""
        tokenizer, prompts, _ = written_by(causal_chain(chain), role, "judge")
        return answer_texts(as_sequences(rows), prompts, tokenizer)

    def held_out_strata(self, chain: ChainSpec) -> NDArray[np.int64] | None:
        """Return which prompt each held-out text answers; None where all follow one."""
        return held_out(causal_chain(chain)).strata


def as_law(law: Law) -> CausalLaw | ServedLaw:
    """Return a causal LM's law. Raises InputError for another."""
    from hydrometer.models.causal_lm.inference.law import CausalLaw
    from hydrometer.models.causal_lm.inference.served_law import ServedLaw

    if not isinstance(law, CausalLaw | ServedLaw):
        raise InputError("not a causal LM's law", got=type(law).__name__)
    return law


def as_opened(law: Law) -> CausalLaw:
    """Return the law of a model whose weights are open. Raises InputError for another."""
    from hydrometer.models.causal_lm.inference.law import CausalLaw

    if not isinstance(law, CausalLaw):
        raise InputError("not the law of an opened causal LM", got=type(law).__name__)
    return law


def as_sequences(samples: Samples) -> Sequences:
    """Return sequences. Raises InputError for other samples."""
    if not isinstance(samples, Sequences):
        raise InputError("not Sequences", got=type(samples).__name__)
    return samples
