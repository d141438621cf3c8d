"""Files of prompts and of held-out text, and what is wrong with them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from hydrometer.core.errors import DataError
from hydrometer.models.causal_lm.data.row_files import rows_of
from hydrometer.models.causal_lm.data.text_dataset import MAX_ROWS, guessed_columns, read_answers, read_questions

TURNS = [{"role": "system", "content": "s"}, {"role": "user", "content": "q"}]
REPLY = {"role": "assistant", "content": "a"}


def lines(folder: Path, *rows: Any) -> Path:
    path = folder / "rows.jsonl"
    path.write_text("\n".join(r if isinstance(r, str) else json.dumps(r) for r in rows))
    return path


@pytest.mark.parametrize(
    ("row", "turns", "shape"),
    [
        ({"prompt": "q"}, (("user", "q"),), "prompt"),
        ({"prompt": TURNS}, (("system", "s"), ("user", "q")), "prompt"),
        ({"messages": TURNS, "id": 3}, (("system", "s"), ("user", "q")), "messages"),
        ({"messages": json.dumps(TURNS)}, (("system", "s"), ("user", "q")), "messages"),
        ({"text": "t"}, (("user", "t"),), "text"),
    ],
)
@pytest.mark.parametrize("kind", ["jsonl", "parquet"])
def test_prompts_of_every_shape(tmp_path: Path, row: Any, turns: Any, shape: str, kind: str) -> None:
    path = lines(tmp_path, row, row, "")
    if kind == "parquet":
        path = tmp_path / "rows.parquet"
        pq.write_table(pa.Table.from_pylist([row, row]), path)
    found = read_questions(path)
    assert [(r.turns, r.shape, r.answer) for r in found] == [(turns, shape, None)] * 2
    assert "2" in found[-1].where


@pytest.mark.parametrize(
    ("row", "turns", "answer"),
    [
        ({"text": "t"}, (), "t"),
        ({"prompt": "q", "completion": "a"}, (("user", "q"),), "a"),
        ({"prompt": "q", "answer": "a"}, (("user", "q"),), "a"),
        ({"prompt": TURNS, "completion": [REPLY]}, (("system", "s"), ("user", "q")), "a"),
        ({"messages": [*TURNS, REPLY]}, (("system", "s"), ("user", "q")), "a"),
        ({"messages": json.dumps([*TURNS, REPLY])}, (("system", "s"), ("user", "q")), "a"),
    ],
)
def test_answers_of_every_shape(tmp_path: Path, row: Any, turns: Any, answer: str) -> None:
    (found,) = read_answers(lines(tmp_path, row))
    assert (found.turns, found.answer) == (turns, answer)


@pytest.mark.parametrize(
    ("reader", "rows", "words"),
    [
        (read_questions, [], "holds no row"),
        (read_questions, ["{"], "line 1: not JSON"),
        (read_questions, ["[1]"], "must be a JSON object"),
        (read_questions, ["[" * 100_000], "not JSON"),
        (read_questions, [{"query": "q"}], "no column messages, conversations, prompt"),
        (read_questions, [{"prompt": "q"}, {"text": "t"}], "line 2: a row of text in a file of prompt"),
        (read_questions, [{"prompt": ""}], "prompt is empty"),
        (read_questions, [{"prompt": 3}], "text or a list of messages"),
        (read_questions, [{"prompt": None}], "text or a list of messages"),
        (read_questions, [{"messages": []}], "list of messages"),
        (read_questions, [{"messages": [{"role": "user"}]}], "messages.content must be text"),
        (read_questions, ['{"prompt": "\\ud800"}'], "surrogate"),
        (read_questions, [{"messages": "q"}], "not JSON of messages"),
        (read_questions, [{"messages": "[1]"}], "not JSON of messages"),
        (read_questions, [{"messages": "[" * 100_000}], "not JSON of messages"),
        (read_questions, [{"messages": '[{"role": "user"}]'}], "messages.content must be text"),
        (read_answers, [{"messages": json.dumps(TURNS)}], "must be the assistant's"),
        (read_answers, [{"prompt": "q"}], "without completion or answer"),
        (read_answers, [{"prompt": "q", "completion": ""}], "the answer is empty"),
        (read_answers, [{"prompt": "q", "completion": float("nan")}], "completion must be text"),
        (read_answers, [{"text": ""}], "the answer is empty"),
        (read_answers, [{"instruction": "q", "output": None}], "line 1: output must be text; got None"),
        (read_answers, [{"question": "q", "answer": [TURNS[0]]}], "line 1: answer must be one turn"),
        (
            read_answers,
            [{"instruction": "q", "input": "i"}],
            r"without completion or answer; got \['input', 'instruction'\]",
        ),
        (read_questions, [{"question": 3}], "line 1: question must be text or a list"),
        (read_answers, [{"messages": TURNS}], "must be the assistant's"),
        (read_answers, [{"messages": [REPLY]}], "at least two messages"),
        (read_answers, [{"prompt": "q", "completion": [TURNS[0]]}], "one turn of the assistant"),
        (read_answers, [{"text": "t"}, {"prompt": "q", "answer": "a"}], "line 2: a row of prompt in a file of text"),
    ],
)
def test_what_is_wrong_is_one_line(tmp_path: Path, reader: Any, rows: list[Any], words: str) -> None:
    with pytest.raises(DataError, match=words) as caught:
        reader(lines(tmp_path, *rows))
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 1001


def test_files_that_are_no_text_or_too_large(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_bytes('{"prompt": "q"}\n'.encode("utf-16"))
    with pytest.raises(DataError, match="line 1: not text in UTF-8"):
        read_questions(path)
    path.write_bytes(b'\xef\xbb\xbf{"prompt": "q"}')  # a byte-order mark is allowed
    assert len(read_questions(path)) == 1
    path.write_bytes(b'{"prompt": "q"}\n' * 1_000_000)
    with pytest.raises(DataError, match=f"more than {MAX_ROWS}"):
        read_questions(path)
    with path.open("wb") as f:
        f.write(b'{"prompt": "')
        f.truncate(100_000_000)
    with pytest.raises(DataError, match="line 1: the line is too long"):
        read_questions(path)
    path.write_bytes(b"PAR1 and then nothing")
    with pytest.raises(DataError, match="Parquet file cannot be read"):
        read_questions(path)
    with pytest.raises(DataError, match="cannot be read"):
        read_questions(tmp_path)
    pq.write_table(pa.table({"prompt": ["q"] * (MAX_ROWS + 1)}), path)
    with pytest.raises(DataError, match=f"more than {MAX_ROWS}"):
        read_questions(path)
    pq.write_table(pa.table({"prompt": ["q", None]}), path)
    with pytest.raises(DataError, match="row 2"):
        read_questions(path)
    pq.write_table(pa.table({"prompt": ["q" * 2_000_000]}), path)
    with pytest.raises(DataError, match="row 1: prompt is too long"):
        read_questions(path)
    pq.write_table(pa.table({"id": [1]}), path)
    with pytest.raises(DataError, match="no column that is read"):
        read_questions(path)


@pytest.mark.parametrize("indent", [None, 1])
@pytest.mark.parametrize("mark", [b"", b"\xef\xbb\xbf"])
def test_a_list_of_objects_is_read_row_by_row(tmp_path: Path, indent: int | None, mark: bytes) -> None:
    """As Alpaca's file; rows longer than what is read at once, and brackets in texts."""
    rows = [{"instruction": "é" * (i * 977 % 90_000), "input": f"], [{i}", "output": "a]"} for i in range(60)]
    path = tmp_path / "alpaca.json"
    path.write_bytes(mark + json.dumps(rows, indent=indent, ensure_ascii=False).encode())
    assert [r for _, r in rows_of(path, ())] == rows
    found = read_answers(path)
    assert [(a.turns[0][1], a.answer) for a in found[:1]] == [("], [0", "a]")]
    assert found[59].where == "alpaca.json, row 60"


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("[]", "holds no row"),
        ("[", "after row 0 comes no JSON object"),
        ('[{"prompt": "q"}', "after row 1 comes no JSON object"),
        ('[{"prompt": "q"}, ]', "after row 1 comes no JSON object"),
        ('[{"prompt": "q"} {"prompt": "q"}]', "after row 1 comes no JSON object"),
        ('["q"]', "row 1: a row must be a JSON object"),
        ("[" * 100_000, "after row 0 comes no JSON object"),
        ('[{"prompt": "' + "q" * 2_000_000 + '"}]', "at most 1000000 bytes"),
        ("[" + ", ".join(['{"prompt": "q"}'] * (MAX_ROWS + 1)) + "]", f"more than {MAX_ROWS}"),
    ],
)
def test_a_broken_list_is_refused(tmp_path: Path, text: str, words: str) -> None:
    path = tmp_path / "rows.json"
    path.write_text(text)
    with pytest.raises(DataError, match=words):
        read_questions(path)


@pytest.mark.parametrize(
    ("row", "guess"),
    [
        ({"Prompt": "q", "Completion": "a"}, {"prompt": "Prompt", "completion": "Completion"}),
        ({"Answer": "a", "Question": "q"}, {"prompt": "Question", "completion": "Answer"}),
        ({"id": "7", "Frage": "q", "n": 3, "Antwort": "a"}, {"prompt": "Frage", "completion": "Antwort"}),
        ({"Messages": [{"role": "user", "content": "q"}], "source": "x"}, {"messages": "Messages"}),
        ({"Frage": "q"}, {"prompt": "Frage"}),
        ({"a": 1, "b": "2"}, {}),
    ],
)
def test_columns_without_a_known_name_are_guessed(tmp_path: Path, row: Any, guess: dict[str, str]) -> None:
    assert guessed_columns(lines(tmp_path, row)) == guess
