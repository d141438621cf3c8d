"""Rows of token ids as the dataset types of TRL, and whether their text leads back to the ids.

A row is `prompt_ids` and `completion_ids`. TRL trains on columns `input_ids` and `labels` as they are; text it
tokenises itself, and adds an end of sequence on the way: the tokenizer's own to plain text that does not end with it,
and whatever the chat template writes after an assistant's turn. Here the same is done to every row, so that each says
whether its text stands for its ids.

Shapes: N rows, P prompts.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, cast

from hydrometer.core.errors import InputError
from hydrometer.models.causal_lm import load
from hydrometer.models.causal_lm.prompts import Prompts, open_prompts
from hydrometer.models.causal_lm.spec import PromptsFile
from hydrometer.models.causal_lm.templates import render_chat
from hydrometer.models.sequences import Sequences

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

__all__ = ["Form", "Format", "TextRow", "chat_prompts", "text_rows"]

Format = Literal["messages", "prompt-completion", "text"]
Message = dict[str, str]

CUT = "an end of sequence is written where the row was cut"
PROMPT = "the prompt's text gives other ids"
AFTER = "tokens are written after the row's last"
OTHER = "the text gives other ids"
_REFUSES = "the tokenizer refuses a row, as text or as ids"


@dataclass(frozen=True, slots=True)
class Form:
    """What the rows are written as: `format`, and for prompt-completion whether as messages (`chat`)."""

    format: Format
    chat: bool = False

    @property
    def is_chat(self) -> bool:
        """Whether the text goes through the chat template."""
        return self.chat or self.format == "messages"


@dataclass(frozen=True, slots=True)
class TextRow:
    """A row's text columns, and what tokenising them loses; an empty text where nothing is lost."""

    columns: dict[str, object]
    lost: str


def chat_prompts(
    prompts: Prompts, source: str | PromptsFile | None, tokenizer: PreTrainedTokenizerBase
) -> list[list[Message]]:
    """Return each prompt as the messages whose rendering it is, (P,).

    Parameters
    ----------
    prompts : of the law.
    source : the specification's prompts, read again where a prompt has more than one turn.

    Raises
    ------
    InputError : the prompts were not written by the chat template.
    DataError : the template refuses them.
    """
    found = [[{"role": "user", "content": text}] for text in prompts.texts]
    wrong = [p for p, turns in enumerate(found) if _opened(turns, tokenizer) != list(prompts.ids[p])]
    if wrong and isinstance(source, PromptsFile) and source.chat:
        with open_prompts(source) as f:  # the lines that `read_prompts` sees: a text may hold U+2028
            lines = [json.loads(x) for x in f if x.strip()]
        if len(lines) == len(found):
            for p in wrong:
                found[p] = lines[p].get("messages") or found[p]
        wrong = [p for p in wrong if _opened(found[p], tokenizer) != list(prompts.ids[p])]
    if wrong:
        raise InputError(
            "the prompts of this chain are not messages in the tokenizer's chat template",
            got=prompts.texts[wrong[0]],
            fix="use --format prompt-completion, without --chat",
        )
    return found


def _opened(turns: Sequence[Message], tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """Ids of a conversation with the assistant's turn opened; none without a template."""
    if not tokenizer.chat_template:
        return []
    return _rendered(turns, tokenizer, opened=True)


def _rendered(turns: Sequence[Message], tokenizer: PreTrainedTokenizerBase, *, opened: bool = False) -> list[int]:
    text = render_chat(tokenizer, turns, "a conversation to export", opened=opened)
    with load.quiet(), load.as_data_error(_REFUSES):
        encoded = cast("Any", tokenizer)(text, add_special_tokens=False)
    return [int(t) for t in encoded["input_ids"]]


def text_rows(
    x: Sequences,
    form: Form,
    tokenizer: PreTrainedTokenizerBase,
    stop_ids: Sequence[int],
    turns: Sequence[Sequence[Message]] | None = None,
) -> list[TextRow]:
    """Write rows as text of one of TRL's dataset types, and tokenise it as TRL's SFTTrainer does.

    Parameters
    ----------
    x : N rows.
    form : the dataset type.
    tokenizer : of the law.
    stop_ids : E; a row's last token is taken out of a chat answer where it is one of these.
    turns : (P,) the prompts as messages, for forms that go through the chat template.
    """
    if form.is_chat:
        if turns is None:
            raise ValueError("a chat form needs the prompts' messages")
        return [_chat_row(x, i, form, tokenizer, stop_ids, turns[int(x.prompt_index[i])]) for i in range(len(x))]
    return _plain_rows(x, form, tokenizer)


def _chat_row(
    x: Sequences, i: int, form: Form, tokenizer: PreTrainedTokenizerBase, stop_ids: Sequence[int],
    prompt: Sequence[Message],
) -> TextRow:  # fmt: skip
    ids = [int(t) for t in x.row(i)]
    spoken = ids[:-1] if ids and ids[-1] in stop_ids else ids
    answer = {"role": "assistant", "content": _decode(spoken, tokenizer)}
    turns = [*prompt, answer]
    columns: dict[str, object] = (
        {"messages": turns} if form.format == "messages" else {"prompt": list(prompt), "completion": [answer]}
    )
    return TextRow(columns, _lost(x, i, _rendered(turns, tokenizer)))


def _plain_rows(x: Sequences, form: Form, tokenizer: PreTrainedTokenizerBase) -> list[TextRow]:
    eos = str(tokenizer.eos_token or "")
    prompts = [_prompt_text(p, tokenizer) for p in x.prompt_ids]
    texts: list[tuple[str, str]] = []
    for i in range(len(x)):
        p = int(x.prompt_index[i])
        ids = [int(t) for t in x.row(i)]
        before, whole = _decode(x.prompt_ids[p], tokenizer), _decode([*x.prompt_ids[p], *ids], tokenizer)
        # Decoded after its prompt, an answer keeps the space that some tokenizers drop at the beginning of a text.
        answer = whole[len(before) :] if whole.startswith(before) else _decode(ids, tokenizer)
        texts.append((prompts[p], answer))
    trained = [prompt + (answer if answer.endswith(eos) else answer + eos) for prompt, answer in texts]
    with load.quiet(), load.as_data_error(_REFUSES):
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


def _prompt_text(ids: Sequence[int], tokenizer: PreTrainedTokenizerBase) -> str:
    """Text of a prompt; without the begin-of-sequence token where the tokenizer writes that itself."""
    whole = _decode(ids, tokenizer)
    rest = _decode(ids[1:], tokenizer)
    with load.quiet(), load.as_data_error(_REFUSES):
        for text in (whole, rest):
            if list(tokenizer(text=text)["input_ids"]) == list(ids):
                return text
    return whole


def _decode(ids: Sequence[int], tokenizer: PreTrainedTokenizerBase) -> str:
    with load.as_data_error(_REFUSES, ids):
        return str(tokenizer.decode(list(ids), skip_special_tokens=False, clean_up_tokenization_spaces=False))


def _lost(x: Sequences, i: int, back: list[int]) -> str:
    """What is lost where the ids of a row's text are `back`; empty where nothing is."""
    prompt = list(x.prompt_ids[int(x.prompt_index[i])])
    whole = [*prompt, *(int(t) for t in x.row(i))]
    if back == whole:
        return ""
    if back[: len(prompt)] != prompt:
        return PROMPT
    if back[: len(whole)] == whole:
        return AFTER if x.stopped[i] else CUT
    return OTHER
