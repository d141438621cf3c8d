"""Prompts and answers from a file: JSON lines or Parquet, read row by row under limits.

A file has one shape, that of its first row:

    {"prompt": TEXT | TURNS}                                    prompts
    {"messages": TURNS}                                         prompts; with answers, the last turn is the assistant's
    {"text": TEXT}                                              prompts, continued as they are; or whole documents
    {"prompt": TEXT | TURNS, "completion" | "answer": TEXT}     prompts with their answers

TURNS are ``[{"role": TEXT, "content": TEXT}, ...]``; messages may also be JSON text of them. Other columns are ignored.
Needs neither torch nor transformers.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import pyarrow.parquet as pq

from hydrometer.core.errors import DataError
from hydrometer.models.causal_lm.data.prompts import MAX_FILE_BYTES, MAX_LINE_BYTES, Turns, turns_in_text

__all__ = ["MAX_ROWS", "Answered", "read_answers", "read_questions"]

Shape = Literal["prompt", "messages", "text"]

MAX_ROWS = 100_000
_COLUMNS = ("messages", "prompt", "text", "completion", "answer")
_QUESTIONS: tuple[Shape, ...] = ("messages", "prompt", "text")
_PARQUET_ROWS = 256
_MOST_VALUES = 100 * MAX_ROWS  # of a column: turns of all conversations together


@dataclass(frozen=True, slots=True)
class Answered:
    """One row.

    Attributes
    ----------
    turns : (role, content) of the prompt; empty for a whole document.
    shape : its column.
    answer : the answer, or None in a file of prompts.
    where : file and row, for messages.
    """

    turns: Turns
    shape: Shape
    answer: str | None
    where: str


def read_questions(path: Path) -> list[Answered]:
    """Read prompts.

    Raises
    ------
    DataError : unreadable, not UTF-8, too large, without the columns, or rows of several shapes.
    """
    fix = 'write rows such as {"prompt": TEXT}, {"messages": [{"role": "user", "content": TEXT}]} or {"text": TEXT}'
    out: list[Answered] = []
    for where, row in _rows(path):
        shape: Shape | None = next((s for s in _QUESTIONS if s in row), None)
        if shape is None:
            raise DataError(f"{where}: no column prompt, messages or text", got=_seen(row), fix=fix)
        value = row[shape]
        turns = (("user", _text(value, shape, where)),) if shape == "text" else _turns(value, shape, where)
        out.append(Answered(turns, shape, None, where))
        _same_shape(out)
    return _some(out, path, fix)


def read_answers(path: Path) -> list[Answered]:
    """Read held-out text: documents, or prompts with their answers.

    Raises
    ------
    DataError : as `read_questions`; also an empty answer, or a last turn that is not the assistant's.
    """
    fix = 'write rows such as {"prompt": TEXT, "completion": TEXT}, {"messages": [..., {"role": "assistant", ...}]} or {"text": TEXT}'  # noqa: E501
    out: list[Answered] = []
    for where, row in _rows(path):
        if "messages" in row:
            turns = _turns(row["messages"], "messages", where)
            if len(turns) < 2 or turns[-1][0] != "assistant":
                what = f"{where}: the last of at least two messages must be the assistant's"
                raise DataError(what, got=[role for role, _ in turns], fix=fix)
            found = Answered(turns[:-1], "messages", turns[-1][1], where)
        elif "prompt" in row:
            column = next((c for c in ("completion", "answer") if c in row), None)
            if column is None:
                raise DataError(f"{where}: a prompt without completion or answer", got=_seen(row), fix=fix)
            answer = row[column]
            if isinstance(answer, list):
                replied = _turns(answer, column, where)
                if [role for role, _ in replied] != ["assistant"]:
                    raise DataError(f"{where}: {column} must be one turn of the assistant", got=answer, fix=fix)
                answer = replied[0][1]
            found = Answered(
                _turns(row["prompt"], "prompt", where), "prompt", _text(answer, column, where, empty=True), where
            )
        elif "text" in row:
            found = Answered((), "text", _text(row["text"], "text", where, empty=True), where)
        else:
            raise DataError(f"{where}: no column messages, prompt or text", got=_seen(row), fix=fix)
        if not found.answer:
            raise DataError(f"{where}: the answer is empty", fix="leave out rows without an answer")
        out.append(found)
        _same_shape(out)
    return _some(out, path, fix)


def _same_shape(rows: list[Answered]) -> None:
    first, last = rows[0], rows[-1]
    if first.shape != last.shape:
        what = f"{last.where}: a row of {last.shape} in a file of {first.shape}"
        raise DataError(what, got=last.shape, fix="give every row the same columns")


def _some(rows: list[Answered], path: Path, fix: str) -> list[Answered]:
    if not rows:
        raise DataError("the file holds no row", got=str(path), fix=fix)
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


def _rows(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield each row's location and known columns."""
    try:
        if path.exists() and not (path.is_file() and path.stat().st_size <= MAX_FILE_BYTES):
            raise OSError(f"it is no plain file, or larger than {MAX_FILE_BYTES} bytes")
        with path.open("rb") as f:
            is_parquet = f.read(4) == b"PAR1"
        yield from _parquet(path) if is_parquet else _lines(path)
    except OSError as e:
        raise DataError(f"the file cannot be read: {e.strerror or e}", got=str(path), fix="check the path") from None


def _lines(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    number = found = 0
    with path.open("rb") as f:
        while line := f.readline(MAX_LINE_BYTES + 1):
            number += 1
            where = f"{path.name}, line {number}"
            if len(line) > MAX_LINE_BYTES:
                limit = f"a line holds at most {MAX_LINE_BYTES} bytes: shorten it or leave it out"
                raise DataError(f"{where}: the line is too long", got=f"more than {MAX_LINE_BYTES} bytes", fix=limit)
            if not line.strip():
                continue
            found += 1
            _count(found, path)
            try:
                row: object = json.loads(line.decode("utf-8-sig" if number == 1 else "utf-8"))
            except UnicodeDecodeError:
                raise DataError(f"{where}: not text in UTF-8", got=line[:40], fix="save the file as UTF-8") from None
            except (ValueError, RecursionError) as e:
                raise DataError(f"{where}: not JSON: {e}", got=line[:80], fix="write one JSON object a line") from None
            if not isinstance(row, dict):
                raise DataError(f"{where}: a row must be a JSON object", got=row, fix="write one JSON object a line")
            yield where, {k: row[k] for k in _COLUMNS if k in row} or row


def _parquet(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    try:
        file = pq.ParquetFile(path)
        _count(int(file.metadata.num_rows), path)
        columns = [c for c in _COLUMNS if c in file.schema_arrow.names]
        if not columns:
            fix = "give it a column prompt, messages or text"
            raise DataError(f"{path.name}: no column that is read", got=file.schema_arrow.names[:8], fix=fix)
        _count_values(file.metadata, columns, path)
        number = size = 0
        for batch in file.iter_batches(batch_size=_batch_rows(file), columns=columns):
            if batch.nbytes > MAX_LINE_BYTES * _PARQUET_ROWS:
                raise DataError(f"{path.name}: rows from {number + 1} on are too long", got=f"{batch.nbytes} bytes")
            for row in batch.to_pylist():
                number += 1
                size += _characters(row)  # per row: a batch stores a repeated text once
                if size > MAX_FILE_BYTES:
                    got = f"more than {MAX_FILE_BYTES} characters"
                    raise DataError(f"{path.name}: its rows are too large together", got=got, fix="take a sample")
                # Rows of another shape hold null in this column.
                yield f"{path.name}, row {number}", {k: v for k, v in row.items() if v is not None} or row
    except (ValueError, NotImplementedError, MemoryError) as e:  # ArrowInvalid is a ValueError
        fix = "save it again, or write JSON lines"
        raise DataError(f"the Parquet file cannot be read: {e}", got=path.name, fix=fix) from None


def _count_values(about: Any, columns: list[str], path: Path) -> None:
    """Refuse compressed lists that would unpack to too many values."""
    values: dict[str, int] = {}
    for i in range(about.num_row_groups):
        group = about.row_group(i)
        for j in range(about.num_columns):
            column = group.column(j)
            values[column.path_in_schema] = values.get(column.path_in_schema, 0) + int(column.num_values)
    most = max((n for name, n in values.items() if name.split(".")[0] in columns), default=0)
    if most > _MOST_VALUES:
        got = f"{most} values in a column of {path.name}"
        raise DataError("the file holds too many values", got=got, fix="take a sample")


def _characters(value: object) -> int:
    if isinstance(value, dict):
        return sum(_characters(v) for v in value.values())
    if isinstance(value, list):
        return sum(_characters(v) for v in value)
    return len(value) if isinstance(value, str) else 0


def _batch_rows(file: Any) -> int:
    """Rows per batch: a dictionary-encoded text repeated in all of them must fit in memory."""
    about = file.metadata
    sizes = [
        about.row_group(i).column(j).total_uncompressed_size
        for i in range(about.num_row_groups)
        for j in range(about.num_columns)
    ]
    return max(1, min(_PARQUET_ROWS, MAX_LINE_BYTES * _PARQUET_ROWS // max([1, *sizes])))


def _count(n: int, path: Path) -> None:
    if n > MAX_ROWS:
        raise DataError("the file holds too many rows", got=f"more than {MAX_ROWS} in {path.name}", fix="take a sample")
