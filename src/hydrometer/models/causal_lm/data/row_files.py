"""Rows of a person's file or data set, as dictionaries, under limits: JSON, Parquet, CSV, or what datasets opens.

Needs neither torch nor transformers; the library datasets only where a data set is named.
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import IO, Any, cast

import pyarrow.parquet

from hydrometer.core.errors import DataError, MissingDependencyError, one_line
from hydrometer.core.io.yaml_io import where_to_look
from hydrometer.models.causal_lm.truth_spec import File

__all__ = ["MAX_FILE_BYTES", "MAX_LINE_BYTES", "MAX_ROWS", "Source", "name_of", "rows_of"]

Source = Path | File

MAX_LINE_BYTES = 1_000_000
MAX_FILE_BYTES = 256_000_000
MAX_ROWS = 100_000
_PARQUET_ROWS = 256
_PIECE = 65_536
_MOST_VALUES = 100 * MAX_ROWS  # of a column: turns of all conversations together
pq = cast("Any", pyarrow.parquet)


def name_of(source: Source) -> str:
    """Return what a file is called in messages."""
    return str(source) if isinstance(source, Path) else source.called


def _open(source: Source) -> IO[bytes]:
    """Open a file, or what came along of it, under the limits. Raises OSError."""
    if not isinstance(source, Path) and source.is_carried:
        return source.open()
    path = source if isinstance(source, Path) else source.path
    if path.exists() and not (path.is_file() and path.stat().st_size <= MAX_FILE_BYTES):
        raise OSError(f"it is no plain file, or larger than {MAX_FILE_BYTES} bytes")
    return path.open("rb")


def rows_of(source: Source, columns: tuple[str, ...] | None) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield where a row is, and its columns: of a table those of `columns` alone; None, any of texts or messages.

    Raises DataError.
    """
    name = Path(name_of(source)).name
    if isinstance(source, File) and source.dataset is not None:
        yield from _dataset(source, columns)
        return
    try:
        with _open(source) as f:
            head = f.read(64)
            f.seek(0)
            if head.startswith(b"PAR1"):
                yield from _parquet(f, name, columns)
            elif name.lower().endswith(".csv"):
                yield from _csv(f, name)
            elif name.lower().endswith(".json") and head.removeprefix(b"\xef\xbb\xbf").lstrip().startswith(b"["):
                yield from _list(f, name)
            else:
                yield from _lines(f, name)
    except (OSError, ValueError) as e:  # a name with NUL
        if isinstance(e, DataError):
            raise
        why = getattr(e, "strerror", None) or e
        fix = where_to_look(source if isinstance(source, Path) else source.path)
        raise DataError(f"the file cannot be read: {why}", got=name_of(source), fix=fix) from None


def _lines(f: IO[bytes], name: str) -> Iterator[tuple[str, dict[str, Any]]]:
    number = found = 0
    while line := f.readline(MAX_LINE_BYTES + 1):
        number += 1
        where = f"{name}, line {number}"
        if len(line) > MAX_LINE_BYTES:
            limit = f"a line holds at most {MAX_LINE_BYTES} bytes: shorten it or leave it out"
            raise DataError(f"{where}: the line is too long", got=f"more than {MAX_LINE_BYTES} bytes", fix=limit)
        if not line.strip():
            continue
        found += 1
        _count(found, name)
        try:
            row: object = json.loads(line.decode("utf-8-sig" if number == 1 else "utf-8"))
        except UnicodeDecodeError:
            raise DataError(f"{where}: not text in UTF-8", got=line[:40], fix="save the file as UTF-8") from None
        except (ValueError, RecursionError) as e:
            raise DataError(f"{where}: not JSON: {e}", got=line[:80], fix="write one JSON object a line") from None
        if not isinstance(row, dict):
            raise DataError(f"{where}: a row must be a JSON object", got=row, fix="write one JSON object a line")
        keyed = cast("dict[str, Any]", row)
        yield where, keyed


def _list(f: IO[bytes], name: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """Rows of one JSON list, parsed one by one."""
    text = io.TextIOWrapper(f, encoding="utf-8-sig")
    decode, rest, before, number = json.JSONDecoder().raw_decode, "", "[", 0
    try:
        while not (before == "," and rest.startswith("]")):
            inner = rest[1:].lstrip()
            if rest.startswith("[") and before == "[" and inner.startswith("]"):
                return
            row, end = None, 0
            with suppress(ValueError, RecursionError):  # a row of which only a part is read yet is no JSON
                row, end = decode(inner) if rest.startswith(before) else (None, 0)
            if end:
                number += 1
                _count(number, name)
                where = f"{name}, row {number}"
                if not isinstance(row, dict):
                    raise DataError(f"{where}: a row must be a JSON object", got=row, fix="write a list of objects")
                yield where, cast("dict[str, Any]", row)
                rest, before = inner[end:].lstrip(), ","
                continue
            piece = text.read(_PIECE) if len(rest) <= MAX_LINE_BYTES else ""
            if not piece:
                what = f"{name}: after row {number} comes no JSON object of at most {MAX_LINE_BYTES} bytes"
                raise DataError(what, got=rest[:80], fix="write a list of objects, or one object a line")
            rest = (rest + piece).lstrip()
    finally:
        text.detach()  # the file is closed by whoever opened it


def _csv(f: IO[bytes], name: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """Rows of a table whose first line names its columns."""
    text = io.TextIOWrapper(f, encoding="utf-8-sig", newline="")
    try:
        for number, row in enumerate(csv.DictReader(text, strict=True), start=1):
            _count(number, name)
            where = f"{name}, row {number}"
            if None in row or None in row.values():
                fix = "give every row as many fields as the header, quoted where they hold commas or lines"
                raise DataError(f"{where}: another number of fields than the header's", got=len(row), fix=fix)
            yield where, dict(row)
    except UnicodeDecodeError:
        raise DataError(f"{name}: not text in UTF-8", fix="save the file as UTF-8") from None
    except csv.Error as e:
        raise DataError(f"{name}: not CSV: {e}", fix="quote fields that hold commas, quotes or lines") from None
    finally:
        text.detach()  # the file is closed by whoever opened it


def _dataset(source: File, known: tuple[str, ...] | None) -> Iterator[tuple[str, dict[str, Any]]]:
    """Rows of a data set, opened by the library datasets."""
    d = source.dataset
    if d is None:
        raise ValueError("no data set is named")
    try:
        import datasets
    except ImportError:
        what = "a data set needs the library datasets"
        raise MissingDependencyError(what, fix="pip install datasets, or name a file") from None
    local = source.near(d.path)
    kind = {".json": "json", ".jsonl": "json", ".csv": "csv", ".parquet": "parquet"}.get(local.suffix.lower())
    try:
        if local.is_file() and kind is not None:
            found = datasets.load_dataset(kind, data_files=str(local), split=d.split)
        else:
            path = str(local) if local.exists() else d.path
            found = datasets.load_dataset(path, d.name, split=d.split, revision=d.revision)
    except Exception as e:  # the library raises what its readers, the hub and its cache raise
        said = one_line(str(e), 200) or type(e).__name__
        raise DataError(
            f"the data set cannot be opened: {said}", got=d.path, fix="check path, name and split"
        ) from None
    table: Any = found
    _count(int(table.num_rows), d.path)
    columns = [c for c in known or table.column_names if c in table.column_names]
    if not columns:
        fix = "name its columns: columns: {prompt: ..., completion: ...}"
        raise DataError(f"{d.path}: no column that is read", got=table.column_names[:8], fix=fix)
    size = 0
    for i, row in enumerate(table.select_columns(columns), start=1):
        size += _characters(row)
        if size > MAX_FILE_BYTES:
            raise DataError(f"{d.path}: its rows are too large together", got=f"more than {MAX_FILE_BYTES} characters")
        yield f"{d.path}, row {i}", {k: v for k, v in row.items() if v is not None} or row


def _parquet(f: IO[bytes], name: str, known: tuple[str, ...] | None) -> Iterator[tuple[str, dict[str, Any]]]:
    try:
        file = pq.ParquetFile(f)
        _count(int(file.metadata.num_rows), name)
        own = {c.name: c.type for c in file.schema_arrow}
        columns = [c for c in known if c in own] if known else [c for c, kind in own.items() if _holds_texts(kind)]
        if not columns:
            fix = "give it a column messages, prompt, instruction, question or text, or name its columns"
            raise DataError(f"{name}: no column that is read", got=list(own)[:8], fix=fix)
        _count_values(file.metadata, columns, name)
        number = size = 0
        for batch in file.iter_batches(batch_size=_batch_rows(file), columns=columns):
            if batch.nbytes > MAX_LINE_BYTES * _PARQUET_ROWS:
                raise DataError(f"{name}: rows from {number + 1} on are too long", got=f"{batch.nbytes} bytes")
            for row in batch.to_pylist():
                number += 1
                size += _characters(row)  # not of the batch, where a text that rows repeat may stand once
                if size > MAX_FILE_BYTES:
                    got = f"more than {MAX_FILE_BYTES} characters"
                    raise DataError(f"{name}: its rows are too large together", got=got, fix="take a sample")
                # A column of several shapes holds null where another is meant.
                yield f"{name}, row {number}", {k: v for k, v in row.items() if v is not None} or row
    except (ValueError, NotImplementedError, MemoryError) as e:  # ArrowInvalid is a ValueError
        fix = "save it again, or write JSON lines"
        raise DataError(f"the Parquet file cannot be read: {e}", got=name, fix=fix) from None


def _holds_texts(kind: Any) -> bool:
    """Whether a column may be of texts or of messages: of numbers, vectors and pictures it is not."""
    types, inner = pyarrow.types, getattr(kind, "value_type", kind)  # of a list, or of a dictionary of texts
    if types.is_list(kind) or types.is_large_list(kind):
        return types.is_struct(inner)
    return types.is_string(inner) or types.is_large_string(inner)


def _count_values(about: Any, columns: list[str], name: str) -> None:
    """Refuse lists that a few bytes make longer than any conversation, before they are unpacked."""
    values: dict[str, int] = {}
    for i in range(about.num_row_groups):
        group = about.row_group(i)
        for j in range(about.num_columns):
            column = group.column(j)
            values[column.path_in_schema] = values.get(column.path_in_schema, 0) + int(column.num_values)
    most = max((n for name, n in values.items() if name.split(".")[0] in columns), default=0)
    if most > _MOST_VALUES:
        got = f"{most} values in a column of {name}"
        raise DataError("the file holds too many values", got=got, fix="take a sample")


def _characters(value: object) -> int:
    if isinstance(value, dict):
        return sum(_characters(v) for v in cast("dict[str, object]", value).values())
    if isinstance(value, list):
        return sum(_characters(v) for v in cast("list[object]", value))
    return len(value) if isinstance(value, str) else 0


def _batch_rows(file: Any) -> int:
    """Rows read together: one text that a dictionary repeats on all of them must still fit the memory."""
    about = file.metadata
    sizes = [
        about.row_group(i).column(j).total_uncompressed_size
        for i in range(about.num_row_groups)
        for j in range(about.num_columns)
    ]
    return max(1, min(_PARQUET_ROWS, MAX_LINE_BYTES * _PARQUET_ROWS // max([1, *sizes])))


def _count(n: int, name: str) -> None:
    if n > MAX_ROWS:
        raise DataError("the file holds too many rows", got=f"more than {MAX_ROWS} in {name}", fix="take a sample")
