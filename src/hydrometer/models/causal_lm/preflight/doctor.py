"""Diagnose a chain of language models: vocabularies, special tokens, prompts and sizes, then the probe.

Only the probe opens weights, and only if nothing fatal was found before it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from transformers import PretrainedConfig, PreTrainedTokenizerBase

from hydrometer.core.findings import Finding, fatal, note, warning
from hydrometer.models.base import Precision
from hydrometer.models.causal_lm.cost.memory import count_parameters
from hydrometer.models.causal_lm.crossing import OtherTeacher
from hydrometer.models.causal_lm.data.parts import parts_of
from hydrometer.models.causal_lm.data.prompts import Prompts
from hydrometer.models.causal_lm.data.tokenizer_file import difference, prompts_differ
from hydrometer.models.causal_lm.engines.served_model import Served
from hydrometer.models.causal_lm.inference.law import CausalLaw, learns_from_whole_rows
from hydrometer.models.causal_lm.inference.served_law import ServedLaw
from hydrometer.models.causal_lm.inference.served_source import ServedConfig
from hydrometer.models.causal_lm.loading import load
from hydrometer.models.causal_lm.loading.model_files import as_data_error
from hydrometer.models.causal_lm.networks.network import max_positions
from hydrometer.models.causal_lm.opening import judged_prompts
from hydrometer.models.causal_lm.preflight.prompt_checks import examine_parts, examine_prompts, shared_prompts
from hydrometer.models.causal_lm.preflight.truth_probe import examine_probe, take_probe
from hydrometer.models.causal_lm.spec import CausalLMChain, FromSource, PromptsFile
from hydrometer.models.causal_lm.text_truth import baseline_part, training_texts
from hydrometer.models.causal_lm.truth_spec import TextFile

__all__ = ["Subject", "examine"]

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
    def tokenizer(self) -> PreTrainedTokenizerBase:
        """The truth's."""
        return self.outline.tokenizer

    @property
    def size(self) -> int:
        """V: ids from 0 that the tokenizer knows."""
        return max(self.tokenizer.get_vocab().values()) + 1


def examine(subject: Subject, open_law: Callable[[Precision], CausalLaw | ServedLaw]) -> list[Finding]:
    """Examine one chain.

    Parameters
    ----------
    open_law : opens the truth's law in a precision; called only if nothing fatal is found without it.
    """
    found = [
        *_vocabularies(subject),
        *_tokenizer_file(subject),
        *_room(subject),
        *_stops(subject),
        *_padding(subject),
        *_prompts(subject),
        *shared_prompts(subject.chain.truth),
        *examine_parts(subject.chain),
        *examine_prompts(subject.prompts, subject.tokenizer, subject.stop_ids),
        *_special_text(subject),
        *_sizes(subject),
        *_weights(subject),
        *_rows_per_prompt(subject),
        *_texts(subject),
        *_columns(subject),
        *_drawn_elsewhere(subject),
        *_baselines(subject),
        *_other(subject),
        *_served(subject),
    ]
    if not any(f.is_fatal for f in found) and not subject.chain.truth.is_served:
        probe = take_probe(lambda precision: _opened(open_law(precision)), subject.chain)
        found += [*examine_probe(probe, subject.chain), *_learnt(subject, probe.law)]
    return found


def _opened(law: CausalLaw | ServedLaw) -> CausalLaw:
    if not isinstance(law, CausalLaw):
        raise TypeError("a probe of hidden states and entropies needs an opened model")
    return law


def _served(s: Subject) -> list[Finding]:
    """Say which models are served; no server is asked, as it may be started later."""
    out: list[Finding] = []
    named = {"truth": s.chain.truth, "teacher": s.chain.given_teacher}
    for role in sorted(s.chain.served_roles, reverse=True):
        model = named[role]
        if model is None or not isinstance(model.source, Served):
            continue
        at = model.source.served
        called = "reference" if role == "truth" and s.chain.truth.text is not None else role
        what = f"the {called} is {at.model}, served at {at.base_url}; nothing of its weights is opened here"
        why = (
            "its draws and scores are the server's, so figures under it are plain means without control variates, and "
            "under a selectivity it draws, but gives no entropy and no recall; it is told apart by its name alone"
        )
        out.append(note("served-model", what, why, "start the server before the run; other weights need another name"))
    return out


def _learnt(s: Subject, law: CausalLaw) -> list[Finding]:
    """Check that levels of the truth's architecture can be fitted."""
    whole = replace(law, prompts=s.prompts, max_new_tokens=s.chain.truth.max_new_tokens)
    fitted = [role for role, level in s.chain.level_specs.items() if not isinstance(level.init, FromSource)]
    if learns_from_whole_rows(whole) or not fitted:
        return []
    limit = law.lm.running.limit
    return [
        fatal(
            "looks-ahead",
            "what the network says at a position depends on later ones or on other rows of a batch",
            f"the {' and the '.join(fitted)} would learn another law than the one that is drawn from and judged",
            "take another truth" + ("" if limit is None else f", or keep prompt and answer within {limit} tokens"),
        )
    ]


def _drawn_elsewhere(s: Subject) -> list[Finding]:
    """Say that an engine spares drawing alone."""
    if s.chain.drawing is None:
        return []
    engine, _ = s.chain.drawing
    return [
        note(
            "weights-opened",
            f"engine {engine.name} draws training rows, and does not spare opening the weights here",
            "this package scores every row itself, and draws what models are judged on, with the weights that the "
            "specification names",
            "nothing if they fit here, which `hydrometer plan` says; else name a model that is served alone, source: "
            "{served: ...}",
        )
    ]


def _columns(s: Subject) -> list[Finding]:
    """Say how a file's columns were read, where they have other names than a prompt and its answer."""
    source = s.chain.truth.text or s.chain.truth.prompts
    said = parts_of(source)[0].columns if isinstance(source, PromptsFile | TextFile) else None
    if said is None:
        return []
    why = "models are asked, and texts are taken, by this reading alone"
    fix = "nothing if that is meant; else name them: columns: {prompt: ..., completion: ...}"
    return [note("columns", said, why, fix)]


def _baselines(s: Subject) -> list[Finding]:
    """Say how many rows of a baseline's text are left out."""
    found: list[Finding] = []
    for b in s.chain.baselines:
        part, out = baseline_part(s.chain, b.name)
        if out:
            what = f"{out} of {out + len(part.answers)} rows of the text of baseline {b.name} are left out"
            why = "models are judged on their prompts, and none may be trained on those"
            found.append(note("baseline-rows-left-out", what, why, "nothing; or give a text with other prompts"))
    return found


def _other(s: Subject) -> list[Finding]:
    """Say how a teacher's answers come to students of another tokenizer."""
    if s.other is None:
        return []
    what = "the teacher's tokenizer is not the students': its answers cross to them as text, and are encoded anew"
    why = "what does not come back is trained on as the students' tokenizer writes it; results count it as `crossed`"
    return [note("teacher-crosses", what, why, "nothing if that is meant; else take a teacher of the same tokenizer")]


def _vocabularies(s: Subject) -> list[Finding]:
    """Compare the rows of every output matrix with the tokenizer's ids."""
    found: list[Finding] = []
    truth_rows = _rows(s.configs["truth"])
    for role, config in s.configs.items():
        rows = _rows(config)
        if rows < s.size:
            found.append(
                fatal(
                    "vocabulary-short",
                    f"the {role} has {rows} output rows and the tokenizer {s.size} ids",
                    "some tokens have no logit, so the model is no law over the truth's outcomes; its fit would fail",
                    "use the model's own tokenizer" if role == "truth" else "leave vocab_size as the truth's",
                )
            )
        elif rows != truth_rows:
            found.append(
                note(
                    "vocabulary-padding-differs",
                    f"the {role} has {rows} output rows, the truth {truth_rows}, the tokenizer {s.size} ids",
                    "every law here masks the rows beyond the tokenizer, so figures are right; a loss elsewhere that "
                    "compares logits of the two models by position stops with a shape error",
                    "cut both to the tokenizer's size before such a loss",
                )
            )
    if truth_rows > s.size:
        found.append(
            note(
                "vocabulary-padded",
                f"the truth has {truth_rows} output rows and the tokenizer {s.size} ids",
                "rows beyond the tokenizer are masked here and the rest renormalised; an engine that does not mask "
                "them can draw ids that mean nothing, and its log-probabilities differ by their mass",
                "mask them in the engine, or cut the matrix to the tokenizer's size",
            )
        )
    return found


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


def _room(s: Subject) -> list[Finding]:
    longest = max(len(p) for p in s.prompts.ids) + s.chain.truth.max_new_tokens
    short = {
        role: room
        for role, config in s.configs.items()
        if (room := max_positions(config)) is not None and longest > room
    }
    return [
        fatal(
            "context-short",
            f"the {role} has {room} positions, prompt and answer take {longest}",
            "its law cannot be made, which would end the run after all that comes before it",
            "raise max_position_embeddings in its architecture, or shorten the prompts or max_new_tokens",
        )
        for role, room in short.items()
    ]


def _stops(s: Subject) -> list[Finding]:
    """Check the stop set of the model's files; the probe checks whether answers stop."""
    if not s.stop_ids:
        return [
            warning(
                "no-stop",
                "the stop set is empty",
                f"no answer can end: {_ENDLESS}; lengths and eos_rate say nothing",
                "name the end-of-sequence tokens in truth.stop",
            )
        ]
    found: list[Finding] = []
    given: Any = getattr(s.outline.generation_config, "eos_token_id", None)
    ids: list[int] = [] if given is None else [given] if isinstance(given, int) else list(given)
    outside = [i for i in ids if not 0 <= i < s.size]
    if outside and s.chain.truth.stop is None:
        found.append(
            warning(
                "stop-outside-vocabulary",
                f"the model's files name end-of-sequence ids that the tokenizer does not know: {outside}",
                "they are left out of the stop set; if the model was trained to end with them, its answers cannot end",
                "name the right tokens in truth.stop",
            )
        )
    own = s.tokenizer.eos_token_id
    if isinstance(own, int) and own not in s.stop_ids:
        found.append(
            warning(
                "eos-not-a-stop",
                f"the tokenizer's end of sequence, {s.tokenizer.eos_token!r}, is not in the stop set",
                "answers go on after it, and what follows it is judged and learnt",
                "add it to truth.stop, unless that is meant",
            )
        )
    return found


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
        return [warning("pad-is-eos", what, why, fix)]
    return [note("pad-is-eos", what, why, fix)]


def _prompts(s: Subject) -> list[Finding]:
    """Check the prompts for double begin-of-sequence tokens, unknown tokens and repeats."""
    found: list[Finding] = []
    bos, unknown, n = s.tokenizer.bos_token_id, s.tokenizer.unk_token_id, len(s.prompts.ids)
    twice = sum(p[:2] == (bos, bos) for p in s.prompts.ids) if isinstance(bos, int) else 0
    if twice:
        found.append(
            warning(
                "bos-twice",
                f"{twice} of {n} prompts begin with {s.tokenizer.bos_token!r} twice",
                "the model has not seen that in training: the truth is judged off its own ground",
                "take it out of the prompts' text, or out of the chat template",
            )
        )
    elif isinstance(bos, int) and _bos_when_encoded_again(s, bos):
        found.append(
            note(
                "bos-twice-elsewhere",
                "the prompts' text begins with the begin-of-sequence token, and the tokenizer puts another before it",
                "nothing here, where a template's text is encoded as it is; a server or trainer that encodes that text "
                "with special tokens conditions on two of them",
                "pass token ids, or encode with add_special_tokens=False",
            )
        )
    if isinstance(unknown, int) and (lost := sum(unknown in p for p in s.prompts.ids)):
        found.append(
            warning(
                "unknown-tokens",
                f"{lost} of {n} prompts hold the unknown token {s.tokenizer.unk_token!r}",
                "the model does not see what was written there",
                "write the prompts in the tokenizer's own script and spelling",
            )
        )
    repeats = sum(c - 1 for c in Counter(s.prompts.ids).values())
    if repeats:
        found.append(
            warning(
                "prompts-repeated",
                f"{repeats} of {n} prompts repeat another one",
                "figures are means over the prompts, so a repeated one counts as often as it is written, and its rows "
                "are taken for those of another stratum",
                "leave the repeats out",
            )
        )
    return found


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


def _sizes(s: Subject) -> list[Finding]:
    teacher = s.configs.get("teacher", s.configs["truth"]) if s.other is None else s.other.outline.config
    if isinstance(teacher, ServedConfig):
        return []
    n_teacher, n_student = count_parameters(teacher), count_parameters(s.configs["student"])
    if n_student <= n_teacher:
        return []
    return [
        warning(
            "student-larger",
            f"the student has {n_student:,} parameters, the teacher {n_teacher:,}",
            "a student that can hold more than its teacher is not the compression that distilling is about",
            "give the student fewer layers, or the teacher more",
        )
    ]


def _weights(s: Subject) -> list[Finding]:
    """Note a quantised truth."""
    quantised = getattr(s.outline.config, "quantization_config", None) is not None
    if s.resolved.identity.get("kind") != "gguf" and not quantised:
        return []
    return [
        note(
            "quantised-truth",
            f"the truth is {s.resolved.description}",
            "figures are about the network with rounded weights, which is a law of its own; they are exact for it and "
            "say nothing of the original's",
            "use the original weights where the original is meant",
        )
    ]


def _texts(s: Subject) -> list[Finding]:
    """Texts to train on that are longer than what is drawn."""
    if s.chain.truth.text is None:
        return []
    rows, longest = training_texts(s.chain, "train"), s.chain.truth.max_new_tokens
    cut = int((~rows.stopped).sum())
    if not cut:
        return []
    return [
        note(
            "texts-cut",
            f"{cut} of {len(rows)} texts to train on are longer than max_new_tokens {longest}",
            "models learn their first tokens, as students of a teacher learn what it says up to there; recall is over "
            "whole texts",
            "raise max_new_tokens if answers are that long in use",
        )
    ]


def _rows_per_prompt(s: Subject) -> list[Finding]:
    data, judged = s.chain.data, judged_prompts(s.chain.truth)
    asked = len(s.prompts.ids)
    n = asked if judged is None else len(judged.ids)
    wanted = [("distill", data.distill, asked), ("evaluate", data.evaluate, n)]
    wanted += [] if s.chain.truth.text is not None else [("train", data.train, asked)]
    few = {k: (v, p) for k, v, p in sorted(wanted, reverse=True) if v < p}
    if few:
        rows = " and ".join(f"data.{k} {v} for {p} prompts" for k, (v, p) in few.items())
        return [
            warning(
                "prompts-unanswered",
                f"fewer rows than prompts: {rows}",
                "row i answers prompt i mod P, so the last prompts get no row there and the figures are not about them",
                "raise these numbers to a multiple of the prompts, or give fewer prompts",
            )
        ]
    if n > 1 and data.evaluate < 2 * n:
        return [
            warning(
                "one-row-a-prompt",
                f"{n} prompts are judged on {data.evaluate} rows",
                "with less than two rows of some prompt the error without strata is used, which also counts how "
                "prompts differ: intervals are wider than they need be",
                f"set data.evaluate to {2 * n} or more",
            )
        ]
    return []
