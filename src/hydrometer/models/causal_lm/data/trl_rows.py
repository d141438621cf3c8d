"""Rows of token ids as dataset types of TRL, and whether their text encodes to the same ids.

A row is `prompt_ids` and `completion_ids`. TRL trains on columns `input_ids` and `labels` unchanged. It tokenises text
itself and adds an end of sequence: the tokenizer's to plain text without one, and the chat template's ending after an
assistant's turn. This module does the same to every row, and records whether the text reproduces the ids.

Shapes: N rows, P prompts.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from hydrometer.core.errors import InputError
from hydrometer.models.causal_lm.data.answer_text import PromptEnd, prompt_ends, prompt_text
from hydrometer.models.causal_lm.data.prompts import Prompts
from hydrometer.models.causal_lm.data.templates import render_chat
from hydrometer.models.causal_lm.loading.model_files import as_data_error, quiet
from hydrometer.models.rows.sequences import Sequences

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

__all__ = ["Form", "Format", "TextRow", "chat_prompts", "text_rows"]

Format = Literal["messages", "prompt-completion", "text"]
Message = dict[str, str]

CUT = "an end of sequence is written where the row was cut"
PROMPT = "the prompt's text gives other ids"
AFTER = "tokens are written after the row's last"
OTHER = "the text gives other ids"
_WORSE = ("", AFTER, CUT, OTHER, PROMPT)
_REFUSES = "the tokenizer refuses a row, as text or as ids"


@dataclass(frozen=True, slots=True)
class Form:
    """Export format of rows: `format`, and for prompt-completion whether as messages (`chat`)."""

    format: Format
    chat: bool = False

    @property
    def is_chat(self) -> bool:
        """Whether the text goes through the chat template."""
        return self.chat or self.format == "messages"


@dataclass(frozen=True, slots=True)
class TextRow:
    """A row's text columns, and what tokenising them loses; empty if nothing."""

    columns: dict[str, object]
    lost: str


def chat_prompts(prompts: Prompts) -> list[list[Message]]:
    """Return the messages of each prompt, (P,).

    Raises
    ------
    InputError : the prompts were not written by the chat template.
    """
    if prompts.turns is None:
        raise InputError(
            "the prompts of this chain are not messages in the tokenizer's chat template",
            got=prompts.texts[0],
            fix="use --format prompt-completion, without --chat",
        )
    return [[{"role": role, "content": content} for role, content in turns] for turns in prompts.turns]


def _rendered(turns: Sequence[Message], tokenizer: PreTrainedTokenizerBase) -> list[int]:
    said = [(m["role"], m["content"]) for m in turns]
    text = render_chat(tokenizer, said, "a conversation to export", opened=False)
    with quiet(), as_data_error(_REFUSES):
        encoded = tokenizer(text, add_special_tokens=False)
    return [int(t) for t in encoded["input_ids"]]


def text_rows(
    x: Sequences,
    form: Form,
    tokenizer: PreTrainedTokenizerBase,
    stop_ids: Sequence[int],
    prompts: Prompts,
) -> list[TextRow]:
    """Write rows as text of a TRL dataset type, and tokenise it as TRL's SFTTrainer does.

    Parameters
    ----------
    x : N rows.
    form : the dataset type.
    tokenizer : of the law.
    stop_ids : E; a final stop token is left out of a chat answer.
    prompts : of the rows.

    Raises
    ------
    InputError : a chat form of prompts that were not rendered by the chat template.
    """
    ends = prompt_ends(prompts, tokenizer)
    if form.is_chat:
        turns = chat_prompts(prompts)
        of_row = [int(p) for p in x.prompt_index]
        return [_chat_row(x, i, form, stop_ids, turns[p], ends[p]) for i, p in enumerate(of_row)]
    return _plain_rows(x, form, tokenizer, ends)


def _chat_row(
    x: Sequences, i: int, form: Form, stop_ids: Sequence[int], prompt: Sequence[Message], end: PromptEnd
) -> TextRow:
    ids = [int(t) for t in x.row(i)]
    spoken = ids[:-1] if ids and ids[-1] in stop_ids else ids
    found: list[TextRow] = []
    # A template may add text around a message, such as a space before it: try both.
    behind = end.decode(spoken, special=True)
    for content in dict.fromkeys((behind.removeprefix(" "), behind)):
        answer = {"role": "assistant", "content": content}
        turns = [*prompt, answer]
        columns: dict[str, object] = (
            {"messages": turns} if form.format == "messages" else {"prompt": list(prompt), "completion": [answer]}
        )
        found.append(TextRow(columns, _lost(x, i, _rendered(turns, end.tokenizer))))
    return min(found, key=lambda row: _WORSE.index(row.lost))


def _plain_rows(
    x: Sequences, form: Form, tokenizer: PreTrainedTokenizerBase, ends: Sequence[PromptEnd]
) -> list[TextRow]:
    eos = str(tokenizer.eos_token or "")
    prompts = [_shown(end) for end in ends]
    texts = [
        (prompts[int(p)], ends[int(p)].decode([int(t) for t in x.row(i)], special=True))
        for i, p in enumerate(x.prompt_index)
    ]
    trained = [prompt + (answer if answer.endswith(eos) else answer + eos) for prompt, answer in texts]
    with quiet(), as_data_error(_REFUSES):
        back: Any = tokenizer(text=trained)["input_ids"] if trained else []
        heads: list[list[int]] = [list(tokenizer(text=p)["input_ids"]) for p in prompts]
    out: list[TextRow] = []
    for i, (prompt, answer) in enumerate(texts):
        p = int(x.prompt_index[i])
        lost = PROMPT if heads[p] != list(x.prompt_ids[p]) else _lost(x, i, [int(t) for t in back[i]])
        columns: dict[str, object] = (
            {"text": prompt + answer} if form.format == "text" else {"prompt": prompt, "completion": answer}
        )
        out.append(TextRow(columns, lost))
    return out


def _shown(end: PromptEnd) -> str:
    """Text of a prompt, without a begin-of-sequence token that the tokenizer adds."""
    found = prompt_text(end.prompt, end.tokenizer) or end.written
    return str(end.tokenizer.decode(list(end.prompt), skip_special_tokens=False)) if found is None else found


def _lost(x: Sequences, i: int, back: list[int]) -> str:
    """What is lost if a row's text encodes to `back`; empty if nothing."""
    prompt = list(x.prompt_ids[int(x.prompt_index[i])])
    whole = [*prompt, *(int(t) for t in x.row(i))]
    if back == whole:
        return ""
    if back[: len(prompt)] != prompt:
        return PROMPT
    if back[: len(whole)] == whole:
        return AFTER if x.stopped[i] else CUT
    return OTHER
