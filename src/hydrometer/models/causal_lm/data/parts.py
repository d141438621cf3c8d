"""Prompts and texts in two parts: what models are trained on, and what they are judged on.

The parts share no prompt. A share of a file is drawn by prompt from the stream ``0/prompts/evaluate``, so that it is
the same for every seed, chain and machine; rows of one prompt stay together. Whole documents follow no prompt and are
drawn one by one.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any, cast

import numpy as np
from numpy.typing import NDArray

from hydrometer.core.errors import DataError, ModelError
from hydrometer.core.rng import Stream
from hydrometer.core.statistics.sampling_design import PromptsAre
from hydrometer.core.watching import doing
from hydrometer.models.causal_lm.data.prompts import (
    Prompts,
    Turns,
    checked,
    conversations_digest,
    encode_prompts,
    prompts_written,
    read_prompts,
)
from hydrometer.models.causal_lm.data.text_dataset import Answered, Shape, read_answers, read_questions, said_columns
from hydrometer.models.causal_lm.truth_spec import BaselineText, File, PromptsFile, TextFile, Truth

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

__all__ = [
    "Kept",
    "Part",
    "are_of",
    "encoded",
    "is_templated",
    "part_of",
    "part_without",
    "parts_of",
    "prompts_of",
    "source_digest",
]

_STREAM = Stream(0, ("prompts", "evaluate"))


@dataclass(frozen=True, eq=False)
class Part:
    """Prompts, and the texts that answer them where there are texts.

    Attributes
    ----------
    asked : (P,) prompts and where each stands; one without turns where texts are whole documents.
    answers : (N,) texts; empty where a file holds prompts alone.
    prompt_index : (N,) the prompt that each text answers.
    shape : of the file's rows.
    columns : how the file's columns were read, in a line; None where they are a prompt's and an answer's own.
    """

    asked: tuple[tuple[str, Turns], ...]
    answers: tuple[str, ...]
    prompt_index: NDArray[np.int64]
    shape: Shape
    columns: str | None = None

    def texts(self, start: int, n: int) -> Mapping[str, object]:
        """Return the content of a block of texts."""
        rows = slice(start, start + n)
        return {"texts": list(self.answers[rows]), "prompts": self.prompt_index[rows].tolist()}

    def some(self, prompts: Sequence[int], texts: Sequence[int]) -> Part:
        """Return some of its prompts, and those of some of its texts that answer them."""
        place = {p: i for i, p in enumerate(prompts)}
        kept = [i for i in texts if int(self.prompt_index[i]) in place]
        index = np.array([place[int(self.prompt_index[i])] for i in kept], np.int64)
        asked, answers = tuple(self.asked[p] for p in prompts), tuple(self.answers[i] for i in kept)
        return replace(self, asked=asked, answers=answers, prompt_index=index)

    @property
    def strata(self) -> NDArray[np.int64] | None:
        """Which prompt each text answers, (N,); None where all follow one."""
        return None if len(self.asked) == 1 else self.prompt_index

    @cached_property
    def digest(self) -> str:
        """Hash of the content."""
        parts = [[turns for _, turns in self.asked], self.answers, self.prompt_index.tolist()]
        return hashlib.sha256(json.dumps(parts).encode()).hexdigest()


def parts_of(source: PromptsFile | TextFile) -> tuple[Part, Part | None]:
    """Read a file and return what models are trained on, and what they are judged on where that is something else.

    Raises
    ------
    DataError : a file that cannot be read, a prompt in both parts, or too few prompts to split.
    """
    return _read_of(source).parts


class _Read:
    """A file as it was read once, and what is made of it: its digest, and its prompts as tokenizers rendered them."""

    def __init__(self, source: PromptsFile | TextFile) -> None:
        self.source, self.parts = source, _parts(source)
        self._rendered: dict[int, tuple[object, tuple[Prompts, Prompts | None]]] = {}

    @cached_property
    def digest(self) -> str:
        chat, (mine, theirs) = self.source.chat, self.parts
        if isinstance(self.source, PromptsFile) and theirs is None:
            return conversations_digest([turns for _, turns in mine.asked], chat=self.source.chat)
        digests = [None if p is None else p.digest for p in (mine, theirs)]
        return hashlib.sha256(json.dumps([chat, digests]).encode()).hexdigest()

    def rendered(self, tokenizer: PreTrainedTokenizerBase) -> tuple[Prompts, Prompts | None]:
        """Return the prompts of both parts, as a tokenizer renders them the first time that it is asked."""
        if id(tokenizer) not in self._rendered:
            chat, (mine, theirs) = self.source.chat, self.parts
            doing(f"rendering the prompts of {self.source.called}")
            other = None if theirs is None else encoded(theirs, tokenizer, chat)
            self._rendered[id(tokenizer)] = tokenizer, (encoded(mine, tokenizer, chat), other)
        return self._rendered[id(tokenizer)][1]


_FILES_KEPT = 8
_read_already: dict[tuple[object, ...], _Read] = {}


def _read_of(source: PromptsFile | TextFile) -> _Read:
    other = source.evaluate if isinstance(source.evaluate, File) else None
    slot = repr(source), _state_of(source), None if other is None else _state_of(other)
    if slot not in _read_already:
        if len(_read_already) >= _FILES_KEPT:
            _read_already.clear()
        _read_already[slot] = _Read(source)
    return _read_already[slot]


def part_without(text: BaselineText, judged: Part | None) -> tuple[Part, int]:
    """Read a text; rows whose prompts models are judged on are left out.

    Returns
    -------
    the rest, and how many rows were left out.

    Raises
    ------
    DataError : a file that cannot be read, or of which nothing is left.
    """
    slot = repr(text), _state_of(text), None if judged is None else judged.digest
    if slot not in _texts_already:
        if len(_texts_already) >= _FILES_KEPT:
            _texts_already.clear()
        rows = _read(text, answered=True)
        asked = set[Turns]() if judged is None else {turns for _, turns in judged.asked if turns}
        kept = [r for r in rows if r.turns not in asked]
        if not kept:
            fix = "give a text with other prompts, or lower evaluate"
            raise DataError("models are judged on every prompt of the text", got=text.called, fix=fix)
        _texts_already[slot] = part_of(kept), len(rows) - len(kept)
    return _texts_already[slot]


_texts_already: dict[tuple[object, ...], tuple[Part, int]] = {}


def _state_of(file: File) -> tuple[object, ...]:
    """Where a file is, when it was written and how long it is; of content that came along, its hash."""
    if file.is_carried:
        with file.open() as f:
            return (hashlib.sha256(f.read()).hexdigest(),)
    if not file.path.is_file():
        return (file.path,)
    found = file.path.stat()
    return file.path, found.st_mtime_ns, found.st_size


def _parts(source: PromptsFile | TextFile) -> tuple[Part, Part | None]:
    answered, evaluate = isinstance(source, TextFile), source.evaluate
    rows = _read(source, answered)
    if isinstance(evaluate, File):
        held_out = _read(evaluate, answered)
        known = {r.turns for r in rows}
        if both := next((r for r in held_out if r.turns and r.turns in known), None):
            fix = "leave it out of one of the files: no model may be judged on what it was trained on"
            raise DataError(f"{both.where}: the prompt is in {source.called}, too", got=both.turns[-1][1], fix=fix)
        return part_of(rows), part_of(held_out)
    if evaluate is None:
        return part_of(rows), None
    keys: list[object] = [r.turns or i for i, r in enumerate(rows)]
    distinct = list(dict.fromkeys(keys))
    if len(distinct) < 2:
        fix = "give more prompts, or evaluate: {file: ...}"
        raise DataError("one prompt cannot be split into two parts", got=source.called, fix=fix)
    n = min(max(round(evaluate * len(distinct)), 1), len(distinct) - 1)
    order = np.argsort(_STREAM.uniforms(0, len(distinct), 1)[:, 0], kind="stable")
    judged = {distinct[int(i)] for i in order[:n]}
    mine, theirs = ([r for r, k in zip(rows, keys, strict=True) if (k in judged) is side] for side in (False, True))
    return part_of(mine), part_of(theirs)


def _read(file: File, answered: bool) -> list[Answered]:
    if answered:
        return read_answers(file)
    return [replace(r, shape="prompt") for r in read_questions(file, mixed=True)]


def part_of(rows: Sequence[Answered]) -> Part:
    """Return rows of a file as prompts and texts. Every row its own prompt where a file holds prompts alone."""
    shape, columns = rows[0].shape, said_columns(rows)
    if rows[0].answer is None:
        return Part(tuple((r.where, r.turns) for r in rows), (), np.zeros(0, np.int64), shape, columns)
    first: dict[Turns, int] = {}
    asked: list[tuple[str, Turns]] = []
    index: list[int] = []
    for r in rows:
        if r.turns not in first:
            first[r.turns] = len(asked)
            asked.append((r.where, r.turns))
        index.append(first[r.turns])
    return Part(tuple(asked), tuple(r.answer or "" for r in rows), np.array(index, np.int64), shape, columns)


@dataclass(frozen=True, slots=True)
class Kept:
    """Prompts as a run keeps them, so that it asks the same whatever a chat template writes later, such as the date.

    Attributes
    ----------
    source : digest of what they were rendered from, as `source_digest` gives it.
    prompts : as they were rendered.
    evaluate : those that models are judged on, where they are others.
    teacher : the same in the ids of a teacher of another tokenizer.
    """

    source: str
    prompts: Prompts
    evaluate: Prompts | None = None
    teacher: Kept | None = None

    def to_json(self) -> dict[str, object]:
        """Return the form in a run's folder."""
        more: dict[str, object] = {} if self.evaluate is None else {"evaluate": _rendered(self.evaluate)}
        more |= {} if self.teacher is None else {"teacher": self.teacher.to_json()}
        return {"version": 1, "source": self.source, **_rendered(self.prompts), **more}

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Kept:
        """Read `to_json`'s form. Raises DataError."""
        try:
            evaluate = None if value.get("evaluate") is None else _as_rendered(value["evaluate"])
            teacher = None if value.get("teacher") is None else cls.from_json(value["teacher"])
            return cls(str(value["source"]), _as_rendered(value), evaluate, teacher)
        except (KeyError, TypeError, ValueError, OverflowError, AttributeError) as e:
            raise DataError(f"the kept prompts cannot be read: {e}", fix="restore or remove the file") from None


def _rendered(p: Prompts) -> dict[str, object]:
    return {"prompt_ids": p.ids, "prompt_texts": p.texts, "prompts_written": p.written, "prompt_turns": p.turns}


def _as_rendered(value: Mapping[str, Any]) -> Prompts:
    ids = tuple(tuple(int(t) for t in p) for p in value["prompt_ids"])
    turns = value["prompt_turns"]
    asked = None if turns is None else tuple(tuple((str(r), str(c)) for r, c in t) for t in turns)
    return Prompts(ids, tuple(str(t) for t in value["prompt_texts"]), "fixed", prompts_written(value), asked)


def prompts_of(truth: Truth, tokenizer: PreTrainedTokenizerBase) -> tuple[Prompts, Prompts | None]:
    """Return what models are trained on, and what they are judged on where that is something else.

    As the run keeps them where their source is still the same, else rendered now.

    Raises
    ------
    DataError, ModelError : as `read_prompts`.
    """
    source = truth.text or truth.prompts
    are = are_of(source) if isinstance(source, PromptsFile | TextFile) else "fixed"
    kept = cast("Kept | None", truth.kept_prompts)
    if kept is None or kept.source != source_digest(truth):
        if not isinstance(source, PromptsFile | TextFile):
            return read_prompts(source, tokenizer), None
        kept = Kept("", *_read_of(source).rendered(tokenizer))
    if kept.evaluate is None:
        return checked(replace(kept.prompts, are=are), source), None
    return kept.prompts, checked(replace(kept.evaluate, are=are), source)


def are_of(source: PromptsFile | TextFile) -> PromptsAre:
    """Return what the prompts are. Whole documents follow none: each is drawn by itself, whatever `are` says."""
    return source.are if parts_of(source)[0].asked[0][1] else "fixed"


def is_templated(part: Part, chat: bool | None, *, has_template: bool) -> bool:
    """Whether prompts go through the chat template: as asked; else messages do, and prompts where there is one.

    Parameters
    ----------
    chat : what is asked for, None for nothing.
    """
    if not part.asked[0][1]:  # whole documents follow no prompt
        return False
    return part.shape == "messages" or (part.shape == "prompt" and has_template) if chat is None else chat


def encoded(part: Part, tokenizer: PreTrainedTokenizerBase, chat: bool | None) -> Prompts:
    """Turn a part's prompts into a tokenizer's ids; whole documents follow the begin-of-sequence token, all one prompt.

    Raises
    ------
    DataError, ModelError : as `read_prompts`.
    """
    if not part.asked[0][1]:
        return read_prompts(None, tokenizer)
    template = bool(tokenizer.chat_template)
    chat = is_templated(part, chat, has_template=template)
    if chat and not template:
        raise ModelError("the tokenizer has no chat template", fix="set chat: false, or use an instruct model")
    return encode_prompts(part.asked, tokenizer, chat=chat, are="fixed")


def source_digest(truth: Truth) -> str:
    """Return the hash of what prompts are rendered from. Raises DataError where a file cannot be read."""
    source = truth.text or truth.prompts
    if isinstance(source, PromptsFile | TextFile):
        return _read_of(source).digest
    return hashlib.sha256(json.dumps(source).encode()).hexdigest()
