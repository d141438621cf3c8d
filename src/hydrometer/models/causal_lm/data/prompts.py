"""Prompts as token ids, with their text for people."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from hydrometer.core.errors import DataError, ModelError
from hydrometer.core.statistics.sampling_design import PromptsAre
from hydrometer.core.watching import doing
from hydrometer.models.causal_lm.data.templates import render_chat
from hydrometer.models.causal_lm.data.text_dataset import Turns, read_questions
from hydrometer.models.causal_lm.loading.model_files import as_data_error
from hydrometer.models.causal_lm.truth_spec import File, PromptsFile

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

__all__ = [
    "Prompts",
    "checked",
    "conversations",
    "conversations_digest",
    "encode_prompts",
    "prompts_written",
    "read_prompts",
]


@dataclass(frozen=True, slots=True)
class Prompts:
    """P prompts.

    Attributes
    ----------
    ids : (P,) tuples of at least one token id.
    texts : (P,) text for people; empty for the begin-of-sequence prompt.
    are : "fixed", or "sample" of a population; determines how errors are computed, not what is drawn.
    written : (P,) encoded text, such as a chat template's rendering; None if only ids are known.
    turns : (P,) conversations that a chat template rendered, or None.
    """

    ids: tuple[tuple[int, ...], ...]
    texts: tuple[str, ...]
    are: PromptsAre = "fixed"
    written: tuple[str, ...] | None = None
    turns: tuple[Turns, ...] | None = None

    def __post_init__(self) -> None:
        columns = [c for c in (self.texts, self.written, self.turns) if c is not None]
        if not self.ids or any(len(c) != len(self.ids) for c in columns) or not all(self.ids):
            raise DataError("prompts need at least one token each", got=self.texts[:3], fix="leave out empty prompts")

    @property
    def digest(self) -> str:
        """Hash of the token ids."""
        return hashlib.sha256(json.dumps(self.ids).encode()).hexdigest()

    def take(self, chosen: Sequence[int]) -> Prompts:
        """Return some of them, as fixed prompts."""
        return Prompts(
            tuple(self.ids[i] for i in chosen),
            tuple(self.texts[i] for i in chosen),
            written=None if self.written is None else tuple(self.written[i] for i in chosen),
            turns=None if self.turns is None else tuple(self.turns[i] for i in chosen),
        )


def prompts_written(parts: Mapping[str, Any]) -> tuple[str, ...] | None:
    """Read the encoded text from JSON, None without one. Raises TypeError."""
    found = parts.get("prompts_written")
    return None if found is None else tuple(str(t) for t in found)


def conversations_digest(asked: Sequence[Turns], *, chat: bool) -> str:
    """Return the hash of conversations and of `chat`."""
    return hashlib.sha256(json.dumps([chat, list(asked)]).encode()).hexdigest()


def read_prompts(prompts: str | Sequence[str] | PromptsFile | None, tokenizer: PreTrainedTokenizerBase) -> Prompts:
    """Turn a specification's prompts into token ids.

    Parameters
    ----------
    prompts : None for the begin-of-sequence token, a text, several texts, or a JSONL file.
    tokenizer : of the truth.

    Raises
    ------
    DataError : a broken file, or a prompt without a token.
    ModelError : no begin-of-sequence token, or no chat template where one is needed.
    """
    if prompts is None:
        begin = tokenizer.bos_token_id if tokenizer.bos_token_id is not None else tokenizer.eos_token_id
        if not isinstance(begin, int):
            raise ModelError("the tokenizer has no begin-of-sequence token", fix="give prompts")
        return Prompts(((begin,),), ("",), written=("",))
    if isinstance(prompts, PromptsFile):
        if prompts.chat and not tokenizer.chat_template:
            raise ModelError("the tokenizer has no chat template", fix="set chat: false, or use an instruct model")
        doing(f"rendering the prompts of {prompts.called}")
        rows = list(conversations(prompts))
        return checked(encode_prompts(rows, tokenizer, chat=prompts.chat, are=prompts.are), prompts)
    texts = (prompts,) if isinstance(prompts, str) else tuple(prompts)
    with as_data_error("the tokenizer refuses a prompt", texts[:3]):
        return Prompts(tuple(tuple(tokenizer(t)["input_ids"]) for t in texts), texts, written=texts)


def checked(found: Prompts, source: object) -> Prompts:
    """Return prompts, of which a sample holds at least two different ones. Raises DataError."""
    if found.are == "sample" and len(set(found.ids)) < 2:
        got = source.called if isinstance(source, File) else found.texts[:3]
        raise DataError("a sample of prompts needs at least two different ones", got=got, fix="set are: fixed")
    return found


def conversations(source: File) -> Iterator[tuple[str, Turns]]:
    """Yield where each conversation of a file stands, and its turns. Raises DataError."""
    for row in read_questions(source, mixed=True):
        yield row.where, row.turns


def encode_prompts(
    rows: Sequence[tuple[str, Turns]], tokenizer: PreTrainedTokenizerBase, *, chat: bool, are: PromptsAre
) -> Prompts:
    """Encode conversations, each with its location.

    Parameters
    ----------
    chat : use the chat template, with the assistant's turn opened; else each is one text.

    Raises
    ------
    DataError : several turns without a template, a template error, or a prompt without a token.
    """
    ids: list[tuple[int, ...]] = []
    written: list[str] = []
    texts: list[str] = []
    for where, turns in rows:
        said = [content for _, content in turns]
        if not chat and len(said) > 1:
            raise DataError(f"{where}: messages need the chat template", fix="set chat: true, or give --chat")
        with as_data_error(f"{where}: the tokenizer refuses it", turns):
            text = render_chat(tokenizer, turns, where, opened=True) if chat else said[0]
            # The template writes the special tokens itself.
            ids.append(tuple(int(t) for t in tokenizer(text, add_special_tokens=not chat)["input_ids"]))
        if not ids[-1]:
            raise DataError(f"{where}: the prompt has no token", got=said[-1], fix="leave out empty prompts")
        written.append(text)
        texts.append(said[-1])
    return Prompts(tuple(ids), tuple(texts), are, tuple(written), tuple(t for _, t in rows) if chat else None)
