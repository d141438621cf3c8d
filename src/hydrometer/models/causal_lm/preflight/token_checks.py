"""Checks of what a chain of language models is written in: vocabularies, special tokens, and prompts as token ids."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from transformers import PretrainedConfig, PreTrainedTokenizerBase

from hydrometer.core.findings import Finding, fatal, note, warning
from hydrometer.models.causal_lm.crossing import OtherTeacher
from hydrometer.models.causal_lm.data.prompts import Prompts
from hydrometer.models.causal_lm.data.tokenizer_file import difference, prompts_differ
from hydrometer.models.causal_lm.loading import load
from hydrometer.models.causal_lm.loading.model_files import as_data_error
from hydrometer.models.causal_lm.spec import CausalLMChain, FromSource, PromptsFile

__all__ = ["Subject", "examine_tokens"]

_TEXTS = 1000  # prompts examined for special tokens, evenly spaced
_ENDLESS = "answers run on to max_new_tokens, and every student learns to do so"


@dataclass(frozen=True, slots=True, eq=False)
class Subject:
    """A chain, without its weights.

    Attributes
    ----------
    prompts, stop_ids : of the truth's law.
    configs : of the truth and of every level, by role; without a teacher of another tokenizer.
    other : such a teacher.
    """

    chain: CausalLMChain
    resolved: load.Resolved
    outline: load.Outline
    prompts: Prompts
    stop_ids: tuple[int, ...]
    configs: Mapping[str, PretrainedConfig]
    other: OtherTeacher | None = None

    @property
    def by_name(self) -> Mapping[str, PretrainedConfig]:
        """`configs` by what the models are called: beside a text the first is the teacher's or the reference's."""
        return {self.chain.truth.model_role if role == "truth" else role: c for role, c in self.configs.items()}

    @property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        """The truth's."""
        return self.outline.tokenizer

    @property
    def size(self) -> int:
        """V: ids from 0 that the tokenizer knows."""
        return max(self.tokenizer.get_vocab().values()) + 1


def examine_tokens(s: Subject) -> list[Finding]:
    """Return the findings on a chain's vocabularies, special tokens and prompts."""
    checks = (_vocabularies, _tokenizer_file, _stops, _padding, _prompts, _special_text)
    return [finding for check in checks for finding in check(s)]


def _vocabularies(s: Subject) -> Iterator[Finding]:
    """Compare the rows of every output matrix with the tokenizer's ids."""
    truth_rows, first = _rows(s.configs["truth"]), s.chain.truth.model_role
    for role, config in s.by_name.items():
        rows = _rows(config)
        if rows < s.size:
            yield fatal(
                "vocabulary-short",
                f"the {role} has {rows} output rows and the tokenizer {s.size} ids",
                "some tokens have no logit, so the model is no law over the truth's outcomes; its fit would fail",
                "use the model's own tokenizer" if role == first else f"leave vocab_size as the {first}'s",
            )
        elif rows != truth_rows:
            yield note(
                "vocabulary-padding-differs",
                f"the {role} has {rows} output rows, the {first} {truth_rows}, the tokenizer {s.size} ids",
                "every law here masks the rows beyond the tokenizer, so figures are right; a loss elsewhere that "
                "compares logits of the two models by position stops with a shape error",
                "cut both to the tokenizer's size before such a loss",
            )
    if truth_rows > s.size:
        yield note(
            "vocabulary-padded",
            f"the {first} has {truth_rows} output rows and the tokenizer {s.size} ids",
            "rows beyond the tokenizer are masked here and the rest renormalised; an engine that does not mask "
            "them can draw ids that mean nothing, and its log-probabilities differ by their mass",
            "mask them in the engine, or cut the matrix to the tokenizer's size",
        )


def _rows(config: PretrainedConfig) -> int:
    return int(config.get_text_config().vocab_size)


def _tokenizer_file(s: Subject) -> list[Finding]:
    """Compare the tokenizer in use with the folder's tokenizer.json."""
    found = difference(s.resolved, s.tokenizer)
    if found is None:
        return []
    fix = (
        "if the model was trained with the class that is opened, save its tokenizer anew; else set tokenizer_class to "
    )
    fix += "TokenizersBackend in tokenizer_config.json, which most families of transformers follow"
    if found.of == "decoding":
        why = "ids are right and so are the figures of this run; answers that are shown or compared as text are not"
        return [warning("tokenizer-file-differs", found.what, why, fix)]
    if found.of == "text" or prompts_differ(s.resolved, s.tokenizer, s.prompts):
        why = "the model is asked in ids that it was not trained on, so the truth is judged off its own ground"
        return [fatal("tokenizer-file-differs", found.what, why, fix)]
    why = "the prompts of this run have the file's ids; text of that kind would not have them"
    return [warning("tokenizer-file-differs", found.what, why, fix)]


def _stops(s: Subject) -> Iterator[Finding]:
    """Check the stop set of the model's files; the probe checks whether answers stop."""
    if not s.stop_ids:
        yield warning(
            "no-stop",
            "the stop set is empty",
            f"no answer can end: {_ENDLESS}; lengths and eos_rate say nothing",
            "name the end-of-sequence tokens in truth.stop",
        )
        return
    given: Any = getattr(s.outline.generation_config, "eos_token_id", None)
    ids: list[int] = [] if given is None else [given] if isinstance(given, int) else list(given)
    outside = [i for i in ids if not 0 <= i < s.size]
    if outside and s.chain.truth.stop is None:
        yield warning(
            "stop-outside-vocabulary",
            f"the model's files name end-of-sequence ids that the tokenizer does not know: {outside}",
            "they are left out of the stop set; if the model was trained to end with them, its answers cannot end",
            "name the right tokens in truth.stop",
        )
    own = s.tokenizer.eos_token_id
    if isinstance(own, int) and own not in s.stop_ids:
        yield warning(
            "eos-not-a-stop",
            f"the tokenizer's end of sequence, {s.tokenizer.eos_token!r}, is not in the stop set",
            "answers go on after it, and what follows it is judged and learnt",
            "add it to truth.stop, unless that is meant",
        )


def _padding(s: Subject) -> list[Finding]:
    pad: Any = s.tokenizer.pad_token_id
    if isinstance(pad, int) and pad not in s.stop_ids:
        return []
    what = (
        f"the padding token {s.tokenizer.pad_token!r} is a stop token"
        if isinstance(pad, int)
        else "the tokenizer has no padding token, and trainers then take the end of sequence"
    )
    why = (
        "fits here know padding by length and learn every stop; a collator elsewhere that masks labels equal to the "
        "padding id masks the real end too, and that student never stops"
    )
    fix = "where rows are trained on elsewhere, pad with another token, or mask by length"
    from_source = [role for role, level in s.chain.level_specs.items() if isinstance(level.init, FromSource)]
    if from_source:
        why += f"; the {' and the '.join(from_source)} starts from a source that may have been trained so"
        fix += f"; look at eos_rate of the {' and the '.join(from_source)}"
    return [note("pad-is-eos", what, why, fix)]


def _prompts(s: Subject) -> Iterator[Finding]:
    """Check the prompts for double begin-of-sequence tokens, unknown tokens and repeats."""
    bos, unknown, n = s.tokenizer.bos_token_id, s.tokenizer.unk_token_id, len(s.prompts.ids)
    twice = sum(p[:2] == (bos, bos) for p in s.prompts.ids) if isinstance(bos, int) else 0
    if twice:
        yield warning(
            "bos-twice",
            f"{twice} of {n} prompts begin with {s.tokenizer.bos_token!r} twice",
            "the model has not seen that in training: the truth is judged off its own ground",
            "take it out of the prompts' text, or out of the chat template",
        )
    elif isinstance(bos, int) and _bos_when_encoded_again(s, bos):
        yield note(
            "bos-twice-elsewhere",
            "the prompts' text begins with the begin-of-sequence token, and the tokenizer puts another before it",
            "nothing here, where a template's text is encoded as it is; a server or trainer that encodes that text "
            "with special tokens conditions on two of them",
            "pass token ids, or encode with add_special_tokens=False",
        )
    if isinstance(unknown, int) and (lost := sum(unknown in p for p in s.prompts.ids)):
        yield warning(
            "unknown-tokens",
            f"{lost} of {n} prompts hold the unknown token {s.tokenizer.unk_token!r}",
            "the model does not see what was written there",
            "write the prompts in the tokenizer's own script and spelling",
        )
    repeats = sum(c - 1 for c in Counter(s.prompts.ids).values())
    if repeats:
        of = "prompts" if s.chain.truth.evaluate is None else "prompts to train on"
        yield warning(
            "prompts-repeated",
            f"{repeats} of {n} {of} repeat another one",
            "figures are means over the prompts, so a repeated one counts as often as it is written, and intervals "
            "take it for another prompt",
            "leave the repeats out",
        )


def _bos_when_encoded_again(s: Subject, bos: int) -> bool:
    first = s.prompts.ids[0]
    if first[0] != bos or len(first) < 2:
        return False
    with as_data_error("the tokenizer refuses a prompt", first):
        text = s.tokenizer.decode(list(first), skip_special_tokens=False)
        again: Any = s.tokenizer(text)["input_ids"]
    return tuple(again[:2]) == (bos, bos)


def _special_text(s: Subject) -> list[Finding]:
    """Check for prompts whose text encodes to control tokens."""
    special = {i for i, t in s.tokenizer.added_tokens_decoder.items() if t.special}
    hit = 0
    texts = s.prompts.texts[:: 1 + (len(s.prompts.texts) - 1) // _TEXTS]
    for text in texts:
        with as_data_error("the tokenizer refuses a prompt", text):
            ids: Any = s.tokenizer(text, add_special_tokens=False)["input_ids"] if text else []
        hit += not special.isdisjoint(ids)
    if not hit:
        return []
    chat = isinstance(s.chain.truth.prompts, PromptsFile) and s.chain.truth.prompts.chat
    what = f"{hit} of {len(texts)} prompts spell special tokens in their text"
    why = "the tokenizer turns that text into control tokens"
    if chat:
        why += ": the turn ends, or another begins, in the middle of what the user is meant to say"
        return [warning("special-in-text", what, why, "take them out of the text; the chat template writes its own")]
    return [note("special-in-text", what, why, "nothing, where that is meant; else set chat: true, or escape them")]
