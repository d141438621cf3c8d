"""Prompt and score files, and the command line, by somebody who means harm."""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner

from hostile.strategies import JUNK, TEXTS
from hydrometer.cli import app
from hydrometer.core.errors import HydrometerError, InputError
from hydrometer.models.causal_lm.data import row_files
from hydrometer.models.causal_lm.data.text_dataset import read_answers, read_questions
from hydrometer.run.exchange import scoring
from hydrometer.run.exchange.exporting import _writer
from hydrometer.run.exchange.lm_eval import read_lm_eval
from hydrometer.run.exchange.scoring import _numbers, _read, _row, _table

pa: Any = pyarrow
QUIET = settings(
    derandomize=True, database=None, deadline=None, suppress_health_check=list(HealthCheck), phases=[Phase.generate]
)


def _prompts(file: Path, chat: bool = False) -> object:
    pytest.importorskip("transformers")
    from hydrometer.models.causal_lm.data.prompts import read_prompts
    from hydrometer.models.causal_lm.spec import PromptsFile
    from tiny import make_tokenizer

    return read_prompts(PromptsFile(file=str(file), chat=chat), make_tokenizer(16))


ROWS = [
    b"\xef\xbb\xbf{", b"\x00", b"\xff\xfe{}", b'{"prompt": NaN}', b"[" * 100_000, b'{"prompt": ' + b"9" * 5000 + b"}",
    b'{"prompt": 1}', b"x" * 1_000_001, b'"\x1b[31m"', b"{} {}", b'{"prompt": ""}', b'{"messages": [[]]}',
]  # fmt: skip


@pytest.mark.parametrize("row", ROWS)
def test_rows_of_prompts(row: bytes, tmp_path: Path, line_of: Any) -> None:
    (file := tmp_path / "rows.jsonl").write_bytes(b'{"prompt": "w3"}\n' + row)
    for read in (_prompts, read_questions, read_answers):
        with pytest.raises(InputError) as caught:
            read(file)
        line_of(caught.value)


def test_files_without_end_are_not_read_to_it(tmp_path: Path, line_of: Any) -> None:
    (many := tmp_path / "many.jsonl").write_bytes(b"\n" * 1_000_000)
    (link := tmp_path / "zero.jsonl").symlink_to("/dev/zero")
    with (long := tmp_path / "long.jsonl").open("wb") as f:
        f.truncate(100_000_000)
    began = time.monotonic()
    for file in (many, link, long):
        for read in (_prompts, read_questions):
            with pytest.raises(InputError) as caught:
                read(file)
            line_of(caught.value)
    assert time.monotonic() - began < 30


@QUIET
@given(value=JUNK)
def test_scores_of_any_kind(value: Any, line_of: Any) -> None:
    try:
        raw = json.dumps({"row": value, "cell": value, "score": value}).encode()
    except ValueError:  # more digits than are written out
        return
    tasks = {"results": {"t": {"acc,none": value, "acc_stderr,none": value}}}
    jobs: list[Any] = [lambda kind=kind: _table(raw, Path(f"a.{kind}")) for kind in ("jsonl", "csv", "parquet")]
    jobs += [lambda: read_lm_eval(raw, "a", "x"), lambda: read_lm_eval(json.dumps(tasks).encode(), "a", "x")]
    for work in (*jobs, lambda: _numbers([value], "score"), lambda: _row(value, 0)):
        try:
            work()
        except HydrometerError as e:
            line_of(e)


def test_numbers_too_large_for_a_float() -> None:
    for work in (lambda: _numbers([10**400], "score"), lambda: _row(10**400, 0)):
        with pytest.raises(InputError):
            work()


def test_a_parquet_file_does_not_unpack_beyond_bounds(tmp_path: Path, line_of: Any) -> None:
    """A text of a megabyte on each of 100,000 rows is 100 GB, and a small file."""
    text = pa.DictionaryArray.from_arrays(pa.array([0] * 100_000, pa.int32()), pa.array(["x" * 1_000_000]))
    table = pa.table({"row": list(range(100_000)), "text": text, "score": [1.0] * 100_000})
    pyarrow.parquet.write_table(table, tmp_path / "a.parquet")
    found = _table((tmp_path / "a.parquet").read_bytes(), Path("a.parquet"))
    assert sorted(found) == ["row", "score"]
    wide = pa.table({f"c{i}": [1] for i in range(1001)})
    pyarrow.parquet.write_table(wide, tmp_path / "wide.parquet")
    with pytest.raises(InputError) as caught:
        _table((tmp_path / "wide.parquet").read_bytes(), Path("wide.parquet"))
    assert "1001 columns" in line_of(caught.value)


WORDS = (
    "run doctor recipes report export adopt scores judge advise --set --out --json --cell --to --file --model --name "
    "--selectivity --student --truth nowhere paper-mixture a.b=c x.jsonl temperature=nan --seed -1 --pilot --chain"
).split()


@QUIET
@given(argv=st.lists(st.one_of(st.sampled_from(WORDS), TEXTS), max_size=8))
def test_any_command_line_ends_without_a_traceback(
    argv: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, line_of: Any
) -> None:
    monkeypatch.chdir(tmp_path)
    argv = ["doctor" if a == "run" else a for a in argv]  # what it would run is other tests' matter
    result = CliRunner().invoke(app, argv)
    if isinstance(result.exception, HydrometerError):
        line_of(result.exception)
    else:
        assert result.exception is None or isinstance(result.exception, SystemExit), repr(result.exception)


def test_a_file_of_scores_that_is_none(tmp_path: Path, line_of: Any) -> None:
    (tmp_path / "zero.csv").symlink_to("/dev/zero")
    os.mkfifo(tmp_path / "pipe.jsonl")
    for name in ("zero.csv", "pipe.jsonl"):
        with pytest.raises(InputError) as caught:
            _read(tmp_path / name)
        assert "no plain file" in line_of(caught.value)


def test_a_table_of_scores_is_bounded_and_says_what_is_meant(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, line_of: Any
) -> None:
    wide = b"\n\n" + b",".join(b"c%d" % i for i in range(1001)) + b"\n"
    twice = pa.table([pa.array([0]), pa.array([1.0]), pa.array([2.0])], names=["row", "score", "score"])
    pyarrow.parquet.write_table(twice, tmp_path / "twice.parquet")
    monkeypatch.setattr(scoring, "MAX_ROWS", 10)
    for raw, name, said in (
        (wide, "a.csv", "1001 columns"),
        (b"row\n" + b"1\n" * 11, "a.csv", "11 rows"),
        (b'{"row": 1}\n' * 11, "a.jsonl", "more than 10 rows"),
        (b"row,score,score\n0,1,2\n", "a.csv", "'score' is there twice"),
        ((tmp_path / "twice.parquet").read_bytes(), "a.parquet", "'score' is there twice"),
    ):
        with pytest.raises(InputError) as caught:
            _table(raw, Path(name))
        assert said in line_of(caught.value)
    assert _table(b"\nrow,score\n0,1.5\n", Path("a.csv")) == {"row": [0], "score": [1.5]}


def test_files_of_prompts_are_bounded_as_a_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, line_of: Any) -> None:
    turns = pa.array([[{"role": "user", "content": "w"}] * 50] * 60)
    pyarrow.parquet.write_table(pa.table({"messages": turns}), tmp_path / "long.parquet")
    same = pa.DictionaryArray.from_arrays(pa.array([0] * 2000, pa.int32()), pa.array(["x" * 1000]))
    pyarrow.parquet.write_table(pa.table({"text": same}), tmp_path / "packed.parquet")
    (tmp_path / "large.jsonl").write_text('{"text": "x"}\n' * 80_000)
    os.mkfifo(tmp_path / "pipe.jsonl")
    assert len(read_questions(tmp_path / "packed.parquet")) == 2000
    monkeypatch.setattr(row_files, "MAX_FILE_BYTES", 1_000_000)
    monkeypatch.setattr(row_files, "_MOST_VALUES", 2500)
    for name, said in (
        ("long.parquet", "3000 values"), ("packed.parquet", "too large together"), ("large.jsonl", "larger than"),
        ("pipe.jsonl", "no plain file"),
    ):  # fmt: skip
        with pytest.raises(InputError) as caught:
            read_questions(tmp_path / name)
        assert said in line_of(caught.value)


def test_a_name_of_prompts_that_no_file_has(line_of: Any) -> None:
    for name in ("a\0b", "~no-user-of-this-machine/rows.jsonl"):
        with pytest.raises(InputError) as caught:
            _prompts(Path(name))
        line_of(caught.value)


# the folder that one stands in ----------------------------------------------------------------------------------------


def test_no_module_of_the_folder_that_one_stands_in_is_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from types import SimpleNamespace

    import hydrometer
    from hydrometer.models import arithmetic

    for file in Path(hydrometer.__file__).parent.rglob("*.py"):
        for line in file.read_text("utf-8").splitlines():
            assert "[sys.executable," not in line or '"-P"' in line, f"{file}: {line}"
    (tmp_path / "pickle.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.path", [p for p in sys.path if p])
    arithmetic._compile_elsewhere(SimpleNamespace(py_func=json.dumps), None)
    assert not (tmp_path / "ran").exists()


def test_what_is_written_first_has_a_name_that_nobody_can_guess(tmp_path: Path) -> None:
    (tmp_path / "kept.txt").write_text("kept")
    (tmp_path / f".rows.jsonl.{os.getpid()}.tmp").symlink_to(tmp_path / "kept.txt")
    with _writer(tmp_path / "rows.jsonl") as put:
        put([{"row": 1}])
    assert (tmp_path / "kept.txt").read_text() == "kept"
    assert (tmp_path / "rows.jsonl").read_text() == '{"row": 1}\n'


def test_a_plan_reads_no_more_of_a_prompts_file_than_a_run(tmp_path: Path, line_of: Any) -> None:
    pytest.importorskip("transformers")
    from hydrometer.models.causal_lm.planning import described_prompts
    from hydrometer.models.causal_lm.spec import PromptsFile, Truth

    (tmp_path / "zero.jsonl").symlink_to("/dev/zero")
    with pytest.raises(InputError) as caught:
        described_prompts(Truth(source="x", prompts=PromptsFile(file=str(tmp_path / "zero.jsonl"))))
    assert "no plain file" in line_of(caught.value)
