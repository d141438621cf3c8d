"""Prompts: what the models answer, as token ids, kept with the text that people read."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import IO, TYPE_CHECKING, Any, cast

from hydrometer.core.clusters import PromptsAre
from hydrometer.core.errors import DataError, ModelError
from hydrometer.models.causal_lm.load import as_data_error
from hydrometer.models.causal_lm.spec import PromptsFile
from hydrometer.models.causal_lm.templates import render_chat

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

__all__ = ["MAX_FILE_BYTES", "MAX_LINE_BYTES", "Prompts", "encode_prompt", "open_prompts", "read_prompts"]

MAX_LINE_BYTES = 1_000_000
MAX_LINES = 100_000
MAX_FILE_BYTES = 256_000_000


@dataclass(frozen=True, slots=True)
class Prompts:
    """P prompts.

    Attributes
    ----------
    ids : (P,) tuples of at least one token id.
    texts : (P,) what a person asked; empty for the begin-of-sequence prompt.
    are : "fixed", or "sample" where they stand for a population; says how errors are computed, not what is drawn.
    """

    ids: tuple[tuple[int, ...], ...]
    texts: tuple[str, ...]
    are: PromptsAre = "fixed"

    def __post_init__(self) -> None:
        if not self.ids or len(self.ids) != len(self.texts) or not all(self.ids):
            raise DataError("prompts need at least one token each", got=self.texts[:3], fix="leave out empty prompts")

    @property
    def digest(self) -> str:
        """Hash of the token ids."""
        return hashlib.sha256(json.dumps(self.ids).encode()).hexdigest()


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
        return Prompts(((begin,),), ("",))
    if isinstance(prompts, PromptsFile):
        return _read_file(prompts, tokenizer)
    texts = (prompts,) if isinstance(prompts, str) else tuple(prompts)
    with as_data_error("the tokenizer refuses a prompt", texts[:3]):
        return Prompts(tuple(tuple(tokenizer(t)["input_ids"]) for t in texts), texts)


def _read_file(spec: PromptsFile, tokenizer: PreTrainedTokenizerBase) -> Prompts:
    if spec.chat and not tokenizer.chat_template:
        raise ModelError("the tokenizer has no chat template", fix="set chat: false, or use an instruct model")
    ids: list[tuple[int, ...]] = []
    texts: list[str] = []
    try:
        with open_prompts(spec) as f:
            number = 0
            while line := f.readline(MAX_LINE_BYTES + 1):
                number += 1
                where = f"{spec.file}, line {number}"
                if len(line) > MAX_LINE_BYTES or number > MAX_LINES:
                    limit = f"at most {MAX_LINES} lines of {MAX_LINE_BYTES} bytes"
                    raise DataError(f"{where}: the prompts file is too large", fix=limit)
                if line.strip():
                    prompt = _messages(line, where)
                    ids.append(encode_prompt(prompt, spec.chat, tokenizer, where))
                    texts.append(prompt[-1]["content"])
    except (OSError, ValueError) as e:  # a name with NUL
        why = getattr(e, "strerror", None) or e
        raise DataError(f"the prompts file cannot be read: {why}", got=spec.file, fix="check the path") from None
    if not ids:
        raise DataError("the prompts file holds no prompt", got=spec.file, fix='write rows such as {"prompt": "..."}')
    if spec.are == "sample" and len(set(ids)) < 2:
        raise DataError("a sample of prompts needs at least two different ones", got=spec.file, fix="set are: fixed")
    return Prompts(tuple(ids), tuple(texts), spec.are)


def open_prompts(spec: PromptsFile) -> IO[bytes]:
    """Open a file of prompts. Raises OSError, ValueError, and DataError for no plain file or one that is too large."""
    path = spec.path
    if not spec.is_carried and path.exists() and not (path.is_file() and path.stat().st_size <= MAX_FILE_BYTES):
        what = f"the prompts file is no plain file, or larger than {MAX_FILE_BYTES} bytes"
        raise DataError(what, got=spec.file, fix="check the path")
    return spec.open()


def _messages(line: bytes, where: str) -> list[dict[str, str]]:
    """Parse one row; a plain prompt is one message of the user."""
    fix = 'write {"prompt": TEXT} or {"messages": [{"role": ROLE, "content": TEXT}, ...]}'
    try:
        row: object = json.loads(line)
    except (ValueError, RecursionError) as e:
        raise DataError(f"{where}: not JSON: {e}", got=line[:80].decode(errors="replace"), fix=fix) from None
    if isinstance(row, dict):
        keyed = cast("dict[str, object]", row)
        prompt, messages = keyed.get("prompt"), keyed.get("messages")
        if isinstance(prompt, str) and messages is None:
            return [{"role": "user", "content": prompt}]
        if isinstance(messages, list) and messages and prompt is None:
            turns = cast("list[Any]", messages)
            if all(
                isinstance(m, dict) and isinstance(m.get("role"), str) and isinstance(m.get("content"), str)
                for m in turns
            ):
                return [{"role": m["role"], "content": m["content"]} for m in turns]
    raise DataError(f"{where}: a row needs a prompt or messages", got=row, fix=fix)


def encode_prompt(
    messages: list[dict[str, str]], chat: bool, tokenizer: PreTrainedTokenizerBase, where: str
) -> tuple[int, ...]:
    """Turn one prompt's turns into token ids; `where` it stands is for messages. Raises DataError."""
    if not chat and len(messages) > 1:
        raise DataError(f"{where}: messages need the chat template", fix="set chat: true")
    with as_data_error(f"{where}: the tokenizer refuses it", messages):
        text = messages[0]["content"]
        if chat:
            text = render_chat(tokenizer, messages, where, opened=True)
        # The template writes the special tokens itself.
        ids = tuple(int(t) for t in tokenizer(text, add_special_tokens=not chat)["input_ids"])
    if not ids:
        raise DataError(f"{where}: the prompt has no token", got=messages[-1]["content"], fix="leave out empty prompts")
    return ids
