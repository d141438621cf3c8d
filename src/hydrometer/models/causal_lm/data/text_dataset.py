"""Prompts and answers from a person's file or data set, in the columns that people use.

Rows of one file have one shape, that of the first:

    {"prompt": TEXT | TURNS}                                 prompts
    {"messages": TURNS}                                      prompts; with answers, the last turn is the assistant's
    {"text": TEXT}                                           prompts, continued as they are; or whole documents
    {"prompt": TEXT | TURNS, "completion": TEXT}             prompts with their answers

TURNS are ``[{"role": TEXT, "content": TEXT}, ...]``; messages may also be JSON text of them. Other columns read:

    conversations         ShareGPT's messages, {"from": "human" | "gpt" | "system", "value": TEXT}
    instruction, input    a prompt: the instruction and, where there is one, the input in a paragraph below it
    question              a prompt
    answer, response, output    a completion

Other columns are ignored. Needs neither torch nor transformers.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from hydrometer.core.errors import DataError
from hydrometer.models.causal_lm.data.row_files import MAX_LINE_BYTES, MAX_ROWS, Source, name_of, rows_of
from hydrometer.models.causal_lm.truth_spec import File

__all__ = [
    "MAX_ROWS",
    "Answered",
    "Shape",
    "Turns",
    "guessed_columns",
    "read_answers",
    "read_questions",
    "said_columns",
    "turns_in_text",
]

Turns = tuple[tuple[str, str], ...]
"""(role, content) of a conversation's messages."""

Shape = Literal["prompt", "messages", "text"]
Column = Literal["messages", "prompt", "completion", "text"]

_QUESTIONS: tuple[Shape, ...] = ("messages", "prompt", "text")
_ANSWERS = ("completion", "answer", "response", "output")
_COLUMNS = ("messages", "conversations", "prompt", "instruction", "input", "question", "text", *_ANSWERS)
_ASKED = "messages, conversations, prompt, instruction, question or text"
_SPEAKERS = {
    "human": "user",
    "user": "user",
    "gpt": "assistant",
    "assistant": "assistant",
    "model": "assistant",
    "system": "system",
    "tool": "tool",
}
_FIX = (
    'write rows such as {"prompt": TEXT}, {"messages": [{"role": "user", "content": TEXT}]} or {"text": TEXT}, or name '
    "the columns: columns: {prompt: ...}"
)
_FIX_ANSWERS = (
    'write rows such as {"prompt": TEXT, "completion": TEXT}, '
    '{"messages": [..., {"role": "assistant", ...}]} or {"text": TEXT}, or name the columns: '
    "columns: {prompt: ..., completion: ...}"
)


@dataclass(frozen=True, slots=True)
class Answered:
    """One row.

    Attributes
    ----------
    turns : (role, content) of the prompt; empty for a whole document.
    shape : the column that it came from, or that its columns stand for.
    answer : the answer, or None where prompts alone are read.
    where : file and row, for messages.
    columns : the columns that were read.
    """

    turns: Turns
    shape: Shape
    answer: str | None
    where: str
    columns: tuple[str, ...] = ()


def read_questions(source: Source, *, mixed: bool = False) -> list[Answered]:
    """Read prompts; answers beside them are left out.

    Parameters
    ----------
    mixed : whether prompts and messages may stand in one file.

    Raises
    ------
    DataError : unreadable, not UTF-8, too large, without the columns, or rows of several shapes.
    """
    out: list[Answered] = []
    for where, row, seen, own in _rows(source, _FIX):
        shape: Shape | None = next((s for s in _QUESTIONS if s in row), None)
        if shape is None:
            raise DataError(f"{where}: no column {_ASKED}", got=_seen(row), fix=_FIX)
        value, called = row[shape], own.get(shape, shape)
        turns = (("user", _text(value, called, where)),) if shape == "text" else _turns(value, called, where)
        out.append(Answered(turns, shape, None, where, seen))
        if not mixed:
            _same_shape(out)
    return _some(out, source, _FIX)


def read_answers(source: Source) -> list[Answered]:
    """Read texts: documents, or prompts with their answers.

    Raises
    ------
    DataError : as `read_questions`; also an empty answer, or a last turn that is not the assistant's.
    """
    out: list[Answered] = []
    for where, row, seen, own in _rows(source, _FIX_ANSWERS):
        found = _answered(row, where, own)
        if not found.answer:
            raise DataError(f"{where}: the answer is empty", fix="leave out rows without an answer")
        out.append(Answered(found.turns, found.shape, found.answer, where, seen))
        _same_shape(out)
    return _some(out, source, _FIX_ANSWERS)


def _answered(row: dict[str, Any], where: str, own: Mapping[str, str]) -> Answered:
    asked, replied = own.get("prompt", "prompt"), own.get("completion", "completion")
    if "messages" in row:
        turns = _turns(row["messages"], "messages", where)
        if len(turns) < 2 or turns[-1][0] != "assistant":
            what = f"{where}: the last of at least two messages must be the assistant's"
            raise DataError(what, got=[role for role, _ in turns], fix=_FIX_ANSWERS)
        return Answered(turns[:-1], "messages", turns[-1][1], where)
    if "prompt" in row:
        if "completion" not in row:
            raise DataError(
                f"{where}: a prompt without completion or answer", got=sorted(own.values())[:8], fix=_FIX_ANSWERS
            )
        answer = row["completion"]
        if isinstance(answer, list):
            turns = _turns(answer, replied, where)
            if [role for role, _ in turns] != ["assistant"]:
                what = f"{where}: {replied} must be one turn of the assistant"
                raise DataError(what, got=answer, fix=_FIX_ANSWERS)
            answer = turns[0][1]
        said = _text(answer, replied, where, empty=True)
        return Answered(_turns(row["prompt"], asked, where), "prompt", said, where)
    if "text" in row:
        return Answered((), "text", _text(row["text"], own.get("text", "text"), where, empty=True), where)
    raise DataError(f"{where}: no column {_ASKED}", got=_seen(row), fix=_FIX_ANSWERS)


def said_columns(rows: Sequence[Answered]) -> str | None:
    """Say in one line how columns were read; None where they are messages, prompt, completion, answer or text."""
    seen = rows[0].columns
    asked = next((c for c in ("messages", "conversations", "prompt", "instruction", "question") if c in seen), None)
    if asked is None or asked == "messages":
        return None
    if asked == "conversations":
        return "conversations are messages, human the user and gpt the assistant"
    replied = next((c for c in _ANSWERS if c in seen), None) if rows[0].answer is not None else None
    idle = next((c for c in _ANSWERS if c in seen), None) if rows[0].answer is None else None
    if asked == "prompt" and idle is None and replied in (None, "completion", "answer"):
        return None
    below = " with the input below it" if asked == "instruction" and "input" in seen else ""
    return f"the prompt is the {asked}{below}" + (
        f", the answer the {replied}"
        if replied is not None
        else f"; the {idle} is not used (truth: {{text: FILE}} takes answers)"
        if idle
        else ""
    )


def guessed_columns(source: Source) -> dict[Column, str]:
    """Guess what a file's columns are where none has a name that is read: a known name otherwise spelt, else the order.

    Empty where nothing can be guessed. Raises DataError.
    """
    _, first = next(rows_of(source, None), ("", dict[str, Any]()))
    spelt = {str(c).strip().lower(): str(c) for c in first}
    for name in ("messages", "conversations"):
        if name in spelt:
            return {"messages": spelt[name]}
    texts = [str(c) for c, v in first.items() if isinstance(v, str) and v.strip() and not v.strip().isnumeric()]
    asked = next((spelt[n] for n in ("prompt", "question", "instruction") if n in spelt), *texts[:1] or [None])
    rest = [c for c in texts if c != asked]
    replied = next((spelt[n] for n in _ANSWERS if n in spelt), *rest[:1] or [None])
    guessed: dict[Column, str | None] = {"prompt": asked, "completion": replied}
    return {what: own for what, own in guessed.items() if own is not None}


def _rows(source: Source, fix: str) -> Iterator[tuple[str, dict[str, Any], tuple[str, ...], dict[str, str]]]:
    """Yield where a row is, its columns under the four names that are used, the names that were read, and their own."""
    renamed = {str(k): v for k, v in source.columns.items()} if isinstance(source, File) else {}
    theirs = {own: mine for mine, own in renamed.items()}
    for where, row in rows_of(source, (*theirs, *_COLUMNS)):
        if (lacking := next((c for c in theirs if c not in row), None)) is not None:
            raise DataError(f"{where}: no column {lacking}", got=_seen(row), fix="name columns that the rows have")
        rest = {k: v for k, v in row.items() if k not in theirs and k not in renamed}
        named = rest | {mine: row[own] for own, mine in theirs.items()}
        own = {c: renamed.get(c, c) for c in named}
        if "prompt" not in named and (asked := next((c for c in ("instruction", "question") if c in named), None)):
            own["prompt"] = own.pop(asked)
        if replied := next((c for c in _ANSWERS if c in named), None):
            own["completion"] = own.pop(replied)
        yield where, _canonical(named, where), tuple(named), own


def _canonical(row: dict[str, Any], where: str) -> dict[str, Any]:
    """Put a row under the names messages, prompt, completion and text."""
    out = {k: v for k, v in row.items() if k in ("messages", "prompt", "text")}
    if "messages" not in row and "conversations" in row:
        out["messages"] = _share_gpt(row["conversations"], where)
    if "prompt" not in row and "instruction" in row:
        task, more = (_text(row.get(k) or "", k, where, empty=True) for k in ("instruction", "input"))
        out["prompt"] = f"{task}\n\n{more}" if task and more else task or more
    elif "prompt" not in row and "question" in row:
        out["prompt"] = row["question"]
    replied = next((c for c in _ANSWERS if c in row), None)
    if "prompt" in out and replied is not None:
        out["completion"] = row[replied]
    return out or row


def _share_gpt(value: object, where: str) -> list[dict[str, object]]:
    turns: list[Any] = value if isinstance(value, list) else []
    fix = 'write [{"from": "human", "value": TEXT}, {"from": "gpt", "value": TEXT}]'
    if not turns or not all(isinstance(t, dict) and {"from", "value"} <= set(t) for t in turns):
        raise DataError(f"{where}: conversations must be a list of from and value", got=value, fix=fix)
    if (other := next((t["from"] for t in turns if t["from"] not in _SPEAKERS), None)) is not None:
        raise DataError(f"{where}: conversations of somebody unknown", got=other, fix=fix)
    return [{"role": _SPEAKERS[t["from"]], "content": t["value"]} for t in turns]


def turns_in_text(text: str) -> list[Any] | None:
    """Return the messages that a text is JSON of, as tables without nested columns keep them; None where it is not."""
    if not text.lstrip().startswith("["):
        return None
    try:
        found: object = json.loads(text)
    except (ValueError, RecursionError):
        return None
    turns: list[Any] = found if isinstance(found, list) else []
    return turns if turns and all(isinstance(t, dict) and "role" in t for t in turns) else None


def _same_shape(rows: list[Answered]) -> None:
    first, last = rows[0], rows[-1]
    if first.shape != last.shape:
        what = f"{last.where}: a row of {last.shape} in a file of {first.shape}"
        raise DataError(what, got=last.shape, fix="give every row the same columns")


def _some(rows: list[Answered], source: Source, fix: str) -> list[Answered]:
    if not rows:
        raise DataError("the file holds no row", got=name_of(source), fix=fix)
    return rows


def _seen(row: dict[str, Any]) -> object:
    return sorted(row)[:8]


def _text(value: object, column: str, where: str, *, empty: bool = False) -> str:
    if not isinstance(value, str):
        raise DataError(f"{where}: {column} must be text", got=value, fix="leave out rows without it")
    if not value and not empty:
        raise DataError(f"{where}: {column} is empty", fix="leave out empty rows")
    if len(value) > MAX_LINE_BYTES:
        raise DataError(f"{where}: {column} is too long", got=f"{len(value)} characters", fix="shorten it")
    try:
        value.encode()
    except UnicodeEncodeError:
        raise DataError(f"{where}: {column} holds half a surrogate pair", got=value, fix="mend the escape") from None
    return value


def _turns(value: object, column: str, where: str) -> Turns:
    if isinstance(value, str) and column == "messages":
        found = turns_in_text(value)
        if found is None:
            fix = 'write [{"role": "user", "content": TEXT}, ...], or name the column prompt or text'
            raise DataError(f"{where}: messages are a text that is not JSON of messages", got=value, fix=fix)
        value = found
    if isinstance(value, str):
        return (("user", _text(value, column, where)),)
    turns: list[Any] = value if isinstance(value, list) else []
    if not turns or not all(isinstance(t, dict) and isinstance(t.get("role"), str) for t in turns):
        fix = 'write [{"role": "user", "content": TEXT}, ...]'
        raise DataError(f"{where}: {column} must be text or a list of messages", got=value, fix=fix)
    return tuple((str(t["role"]), _text(t.get("content"), f"{column}.content", where, empty=True)) for t in turns)
