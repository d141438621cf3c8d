"""Texts in the place of a chain's truth, and of its baselines: how many rows, which are trained on or judged on."""

from __future__ import annotations

from typing import Literal

import numpy as np

from hydrometer.core.errors import InputError, SpecError
from hydrometer.core.rng import Stream
from hydrometer.models.capabilities import Baseline as BaselineFacts
from hydrometer.models.capabilities import TextTruth
from hydrometer.models.causal_lm.data.parts import Part, are_of, encoded, part_without, parts_of
from hydrometer.models.causal_lm.level_spec import Baseline
from hydrometer.models.causal_lm.loading import load
from hydrometer.models.causal_lm.opening import open_tokenizer
from hydrometer.models.causal_lm.spec import CausalLMChain
from hydrometer.models.causal_lm.text_rows import encode_texts, rows_of, stop_of
from hydrometer.models.causal_lm.truth_spec import FromSource, PromptsFile, TextFile
from hydrometer.models.rows.sequences import Sequences

__all__ = ["baseline_part", "baselines", "count_parts", "held_out", "text_truth", "trained_prompts", "training_texts"]

_STREAM = Stream(0, ("prompts", "training"))


def held_out(chain: CausalLMChain) -> Part:
    """Return the texts that a chain's models are judged on. Raises InputError."""
    if chain.truth.text is None:
        raise InputError("the chain's truth is no text")
    trained, judged = parts_of(chain.truth.text)
    if chain.truth.of_training is not None:
        return trained.some(chain.truth.of_training, _trained_on(chain, trained))
    return judged or trained


def _trained_on(chain: CausalLMChain, part: Part) -> tuple[int, ...]:
    return rows_of(part, "train", (chain.data.train, chain.data.validate_))


def trained_prompts(chain: CausalLMChain) -> tuple[int, ...]:
    """Choose the prompts of training to judge on: at most `data.evaluate` of those that all models are trained on.

    Row i answers prompt i mod P, so few rows answer the first prompts alone; of texts, some choose an epoch instead.

    Raises
    ------
    SpecError : the models share none.
    """
    source, data = chain.truth.text or chain.truth.prompts, chain.data
    if not isinstance(source, PromptsFile | TextFile):
        raise InputError("the chain keeps no prompts for judging")
    part, _ = parts_of(source)
    if isinstance(source, TextFile):
        found = sorted({int(part.prompt_index[i]) for i in _trained_on(chain, part)})
    else:
        found = list(range(min(len(part.asked), data.train)))
    found = [p for p in found if p < data.distill]
    if not found:
        what = "judge_training_prompts: no prompt is in the rows of the direct and of the distilled students"
        raise SpecError(what, got=f"data.distill {data.distill}", fix="raise data.distill")
    if len(found) <= data.evaluate:
        return tuple(found)
    order = np.argsort(_STREAM.uniforms(0, len(found), 1)[:, 0], kind="stable")
    return tuple(sorted(found[int(i)] for i in order[: data.evaluate]))


def count_parts(chain: CausalLMChain) -> dict[str, int]:
    """Count the prompts that a distilled student's rows and the rows for judging answer; nothing of a single prompt.

    `apart` is how many of those for judging nobody is trained on. Raises DataError.
    """
    source, texts = chain.truth.text or chain.truth.prompts, text_truth(chain)
    if not isinstance(source, PromptsFile | TextFile):
        return {}
    mine, theirs = parts_of(source)
    n, others = len(mine.asked), None if theirs is None else len(theirs.asked)
    if n < 2:
        return {}
    trained, judged = chain.data.distill, chain.data.evaluate if texts is None else texts.evaluate
    asked = min(n if others is None else others, judged)
    apart = 0 if others is None else asked
    return {"trained": min(n, trained), "judged": asked, "apart": apart, "rows_trained": trained, "rows_judged": judged}


def text_truth(chain: CausalLMChain) -> TextTruth | None:
    """Return how many texts stand in the place of a truth; None where the truth is a model. Raises DataError."""
    if chain.truth.text is None:
        return None
    part, _ = parts_of(chain.truth.text)
    most = chain.data.train, chain.data.validate_
    train, validate = (len(rows_of(part, which, most)) for which in ("train", "validate"))
    judged = held_out(chain)
    return TextTruth(
        train=train,
        validate=validate,
        evaluate=len(judged.answers),
        identity={"text": part.digest},
        judged=judged.digest,
        by_teacher=chain.truth.reference == "teacher",
        are=are_of(chain.truth.text),
    )


def baselines(chain: CausalLMChain) -> list[BaselineFacts]:
    """Return a chain's students that are fitted to texts of their own. Raises DataError, ModelError."""
    most = chain.data.train, chain.data.validate_
    found: list[BaselineFacts] = []
    for b in chain.baselines:
        part, _ = baseline_part(chain, b.name)
        train, validate = (len(rows_of(part, which, most)) for which in ("train", "validate"))
        identity: dict[str, object] = {"text": part.digest, "chat": _chat_of(chain, b)}
        if isinstance(b.init, FromSource):
            identity["source"] = dict(load.resolve(b.init.source, b.init.revision).identity)
        found.append(BaselineFacts(b.name, b.level(chain.student), train, validate, identity))
    return found


def baseline_part(chain: CausalLMChain, name: str) -> tuple[Part, int]:
    """Return the text of a baseline, and how many of its rows are left out, as models are judged on their prompts.

    Raises
    ------
    DataError : a file that cannot be read, or of which nothing is left.
    """
    source = chain.truth.text or chain.truth.prompts
    judged = parts_of(source)[1] if isinstance(source, PromptsFile | TextFile) else None
    return part_without(_named(chain, name).text, judged)


def _named(chain: CausalLMChain, name: str) -> Baseline:
    return next(b for b in chain.baselines if b.name == name)


def _chat_of(chain: CausalLMChain, baseline: Baseline) -> bool | None:
    """Whether prompts go through the chat template: as the truth's, unless the baseline says."""
    source = chain.truth.text or chain.truth.prompts
    if baseline.text.chat is None and isinstance(source, PromptsFile | TextFile):
        return source.chat
    return baseline.text.chat


def training_texts(chain: CausalLMChain, which: Literal["train", "validate"], baseline: str | None = None) -> Sequences:
    """Return the texts that models are trained on, or those that choose an epoch, as rows. Raises DataError."""
    tokenizer, prompts, stop_ids = open_tokenizer(chain)
    if baseline is not None:
        part, _ = baseline_part(chain, baseline)
        prompts = encoded(part, tokenizer, _chat_of(chain, _named(chain, baseline)))
    elif chain.truth.text is not None:
        part, _ = parts_of(chain.truth.text)
    else:
        raise InputError("the chain's truth is no text")
    chosen = rows_of(part, which, (chain.data.train, chain.data.validate_))
    end = stop_of(tokenizer, stop_ids), chain.truth.max_new_tokens
    return encode_texts(part, chosen, prompts, tokenizer, end)
