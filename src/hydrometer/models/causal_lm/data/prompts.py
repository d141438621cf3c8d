"""Prompts as token ids, with their text for people."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import IO, TYPE_CHECKING, Any

from hydrometer.core.errors import DataError, ModelError
from hydrometer.core.statistics.sampling_design import PromptsAre
from hydrometer.core.watching import doing
from hydrometer.models.causal_lm.data.templates import render_chat
from hydrometer.models.causal_lm.loading.model_files import as_data_error
from hydrometer.models.causal_lm.spec import PromptsFile, Truth

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

__all__ = [
    "MAX_FILE_BYTES",
    "MAX_LINE_BYTES",
    "Kept",
    "Prompts",
    "Turns",
    "conversations_digest",
    "encode_prompts",
    "open_prompts",
    "prompts_of",
    "prompts_written",
    "read_prompts",
    "source_digest",
    "turns_in_text",
]

Turns = tuple[tuple[str, str], ...]
"""(role, content) of a conversation's messages."""

MAX_LINE_BYTES = 1_000_000
MAX_LINES = 100_000
MAX_FILE_BYTES = 256_000_000


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


@dataclass(frozen=True, slots=True)
class Kept:
    """Prompts as a run stores them, since a chat template may render differently later, such as with another date.

    Attributes
    ----------
    source : `source_digest` of their source.
    prompts : as rendered.
    """

    source: str
    prompts: Prompts

    def to_json(self) -> dict[str, object]:
        """Return the form in a run's folder."""
        p = self.prompts
        return {
            "version": 1,
            "source": self.source,
            "prompt_ids": p.ids,
            "prompt_texts": p.texts,
            "prompts_written": p.written,
            "prompt_turns": p.turns,
        }

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Kept:
        """Read `to_json`'s form. Raises DataError."""
        try:
            ids = tuple(tuple(int(t) for t in p) for p in value["prompt_ids"])
            texts = tuple(str(t) for t in value["prompt_texts"])
            turns = value["prompt_turns"]
            asked = None if turns is None else tuple(tuple((str(r), str(c)) for r, c in t) for t in turns)
            return cls(str(value["source"]), Prompts(ids, texts, "fixed", prompts_written(value), asked))
        except (KeyError, TypeError, ValueError, OverflowError) as e:
            raise DataError(f"the kept prompts cannot be read: {e}", fix="restore or remove the file") from None


def prompts_of(truth: Truth, tokenizer: PreTrainedTokenizerBase) -> Prompts:
    """Return a truth's prompts: as its run stored them if their source is unchanged, else rendered now.

    Raises
    ------
    DataError, ModelError : as `read_prompts`.
    """
    kept = truth.kept_prompts
    if not isinstance(kept, Kept) or kept.source != source_digest(truth.prompts):
        return read_prompts(truth.prompts, tokenizer)
    are = truth.prompts.are if isinstance(truth.prompts, PromptsFile) else "fixed"
    return _checked(replace(kept.prompts, are=are), truth.prompts)


def source_digest(prompts: str | PromptsFile | None) -> str:
    """Return the hash of the prompts' source. Raises DataError if the file cannot be read."""
    if isinstance(prompts, PromptsFile):
        return conversations_digest([turns for _, turns in _conversations(prompts)], chat=prompts.chat)
    return hashlib.sha256(json.dumps(prompts).encode()).hexdigest()


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
        doing(f"rendering the prompts of {prompts.file}")
        rows = list(_conversations(prompts))
        return _checked(encode_prompts(rows, tokenizer, chat=prompts.chat, are=prompts.are), prompts)
    texts = (prompts,) if isinstance(prompts, str) else tuple(prompts)
    with as_data_error("the tokenizer refuses a prompt", texts[:3]):
        return Prompts(tuple(tuple(tokenizer(t)["input_ids"]) for t in texts), texts, written=texts)


def _checked(found: Prompts, source: object) -> Prompts:
    if found.are == "sample" and len(set(found.ids)) < 2:
        got = source.file if isinstance(source, PromptsFile) else found.texts[:3]
        raise DataError("a sample of prompts needs at least two different ones", got=got, fix="set are: fixed")
    return found


def _conversations(spec: PromptsFile) -> Iterator[tuple[str, Turns]]:
    """Yield the location and turns of each conversation of a file."""
    number, some = 0, False
    try:
        with open_prompts(spec) as f:
            while line := f.readline(MAX_LINE_BYTES + 1):
                number += 1
                where = f"{spec.file}, line {number}"
                if len(line) > MAX_LINE_BYTES or number > MAX_LINES:
                    limit = f"at most {MAX_LINES} lines of {MAX_LINE_BYTES} bytes"
                    raise DataError(f"{where}: the prompts file is too large", fix=limit)
                if line.strip():
                    some = True
                    yield where, _messages(line, where)
    except (OSError, ValueError) as e:  # a name with NUL
        why = getattr(e, "strerror", None) or e
        raise DataError(f"the prompts file cannot be read: {why}", got=spec.file, fix="check the path") from None
    if not some:
        raise DataError("the prompts file holds no prompt", got=spec.file, fix='write rows such as {"prompt": "..."}')


def open_prompts(spec: PromptsFile) -> IO[bytes]:
    """Open a file of prompts. Raises OSError, ValueError, and DataError if not a regular file or too large."""
    path = spec.path
    if not spec.is_carried and path.exists() and not (path.is_file() and path.stat().st_size <= MAX_FILE_BYTES):
        what = f"the prompts file is no plain file, or larger than {MAX_FILE_BYTES} bytes"
        raise DataError(what, got=spec.file, fix="check the path")
    return spec.open()


def _messages(line: bytes, where: str) -> Turns:
    """Parse one row; a plain prompt is one message of the user."""
    fix = 'write {"prompt": TEXT} or {"messages": [{"role": ROLE, "content": TEXT}, ...]}'
    try:
        row: object = json.loads(line)
    except (ValueError, RecursionError) as e:
        raise DataError(f"{where}: not JSON: {e}", got=line[:80].decode(errors="replace"), fix=fix) from None
    if isinstance(row, dict):
        prompt, messages = row.get("prompt"), row.get("messages")
        if isinstance(prompt, str) and messages is None:
            return (("user", prompt),)
        if isinstance(messages, str):
            messages = turns_in_text(messages)
        if isinstance(messages, list) and messages and prompt is None:
            if all(
                isinstance(m, dict) and isinstance(m.get("role"), str) and isinstance(m.get("content"), str)
                for m in messages
            ):
                return tuple((m["role"], m["content"]) for m in messages)
    raise DataError(f"{where}: a row needs a prompt or messages", got=row, fix=fix)


def turns_in_text(text: str) -> list[Any] | None:
    """Parse a text as JSON of messages, as in tables without nested columns; None if it is not."""
    if not text.lstrip().startswith("["):
        return None
    try:
        found: object = json.loads(text)
    except (ValueError, RecursionError):
        return None
    turns: list[Any] = found if isinstance(found, list) else []
    return turns if turns and all(isinstance(t, dict) and "role" in t for t in turns) else None


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
            raise DataError(f"{where}: messages need the chat template", fix="set chat: true")
        with as_data_error(f"{where}: the tokenizer refuses it", turns):
            text = render_chat(tokenizer, turns, where, opened=True) if chat else said[0]
            # The template writes the special tokens itself.
            ids.append(tuple(int(t) for t in tokenizer(text, add_special_tokens=not chat)["input_ids"]))
        if not ids[-1]:
            raise DataError(f"{where}: the prompt has no token", got=said[-1], fix="leave out empty prompts")
        written.append(text)
        texts.append(said[-1])
    return Prompts(tuple(ids), tuple(texts), are, tuple(written), tuple(t for _, t in rows) if chat else None)
