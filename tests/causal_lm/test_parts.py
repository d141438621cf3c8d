"""Prompts and texts: the columns that people use, data sets, and parts that share no prompt."""

from __future__ import annotations

import csv
import json
import pickle
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("torch")

from hydrometer.core.errors import DataError, SpecError
from hydrometer.models.causal_lm.data import parts
from hydrometer.models.causal_lm.data.parts import Kept, parts_of, prompts_of, source_digest
from hydrometer.models.causal_lm.data.prompts import encode_prompts
from hydrometer.models.causal_lm.data.text_dataset import read_answers, read_questions, said_columns
from hydrometer.models.causal_lm.truth_spec import File, PromptsFile, TextFile, Truth
from tiny import make_tokenizer

TURN = (("user", "do it"),)


def lines(folder: Path, rows: list[dict[str, Any]], name: str = "rows.jsonl") -> str:
    (folder / name).write_text("\n".join(json.dumps(r) for r in rows))
    return str(folder / name)


@pytest.mark.parametrize(
    ("row", "turns", "answer", "said"),
    [
        ({"instruction": "do it", "input": "", "output": "a"}, TURN, "a",
         "the prompt is the instruction with the input below it, the answer the output"),
        ({"instruction": "do it", "input": "here", "output": "a"}, (("user", "do it\n\nhere"),), "a",
         "the prompt is the instruction with the input below it, the answer the output"),
        ({"question": "do it", "answer": "a"}, TURN, "a", "the prompt is the question, the answer the answer"),
        ({"prompt": "do it", "response": "a"}, TURN, "a", "the prompt is the prompt, the answer the response"),
        ({"prompt": "do it", "completion": "a", "question": "other"}, TURN, "a", None),
        ({"conversations": [{"from": "human", "value": "do it"}, {"from": "gpt", "value": "a"}]}, TURN, "a",
         "conversations are messages, human the user and gpt the assistant"),
        ({"messages": [{"role": "user", "content": "do it"}, {"role": "assistant", "content": "a"}]}, TURN, "a", None),
        ({"messages": [{"role": "user", "content": "do it"}, {"role": "assistant", "content": "a"}], "output": "b"},
         TURN, "a", None),
    ],
)  # fmt: skip
def test_columns_as_people_name_them(
    tmp_path: Path, row: dict[str, Any], turns: Any, answer: str, said: str | None
) -> None:
    file = Path(lines(tmp_path, [row]))
    (found,) = read_answers(file)
    assert (found.turns, found.answer) == (turns, answer)
    assert said_columns([found]) == said
    if "messages" not in row and "conversations" not in row:
        (asked,) = read_questions(file)
        assert asked.turns == turns
        assert f"; the {list(row)[-1 - ('completion' in row)]} is not used" in (said_columns([asked]) or "")


def test_columns_that_are_named(tmp_path: Path) -> None:
    file = lines(tmp_path, [{"ask": "do it", "reply": "a", "prompt": "not this"}])
    named = File(file=file, columns={"prompt": "ask", "completion": "reply"})
    assert [(r.turns, r.answer) for r in read_answers(named)] == [(TURN, "a")]
    rows = [{"ask": "do it", "question": "not this", "reply": "a"}]
    named = File(file=lines(tmp_path, rows), columns={"prompt": "ask", "completion": "reply"})
    assert said_columns(read_answers(named)) is None  # the user said it
    file = lines(tmp_path, [{"ask": "do it", "reply": "a", "prompt": "not this"}])
    with pytest.raises(DataError, match=r"no column replies; got \['ask', 'prompt', 'reply'\]"):
        read_answers(File(file=file, columns={"prompt": "ask", "completion": "replies"}))
    with pytest.raises(DataError, match="line 1: reply must be text; got None"):
        read_answers(File(file=lines(tmp_path, [{"ask": "do it", "reply": None}]), columns=named.columns))
    with pytest.raises(DataError, match="conversations of somebody unknown; got 'robot'"):
        read_answers(Path(lines(tmp_path, [{"conversations": [{"from": "robot", "value": "x"}]}])))
    with pytest.raises(SpecError, match="give one of file: PATH and dataset"):
        File(file=file, dataset={"path": "x"})  # pyright: ignore[reportArgumentType]


def test_tables_and_data_sets(tmp_path: Path) -> None:
    rows = [{"question": f"q {i}, and more", "answer": f"a\n{i}"} for i in range(5)]
    with (tmp_path / "t.csv").open("w", newline="") as f:
        writer = csv.DictWriter(f, ["question", "answer"])
        writer.writeheader()
        writer.writerows(rows)
    wanted = [((("user", r["question"]),), r["answer"]) for r in rows]
    assert [(r.turns, r.answer) for r in read_answers(tmp_path / "t.csv")] == wanted
    (tmp_path / "odd.csv").write_text("question,answer\nq,a,b\n")
    with pytest.raises(DataError, match=r"odd.csv, row 1: another number of fields"):
        read_answers(tmp_path / "odd.csv")
    datasets = pytest.importorskip("datasets")
    lines(tmp_path, rows, "d.jsonl")
    datasets.Dataset.from_list(rows).to_parquet(tmp_path / "d.parquet")
    for name in ("t.csv", "d.jsonl", "d.parquet"):
        found = read_answers(File.model_validate({"dataset": {"path": name}}, context={"base": tmp_path}))
        assert [(r.turns, r.answer) for r in found] == wanted
    some = File.model_validate({"dataset": {"path": "t.csv", "split": "train[1:3]"}}, context={"base": tmp_path})
    assert [r.answer for r in read_answers(some)] == ["a\n1", "a\n2"]
    with pytest.raises(DataError, match="the data set cannot be opened"):
        read_answers(File.model_validate({"dataset": {"path": "t.csv", "split": "dev"}}, context={"base": tmp_path}))


def test_a_share_is_drawn_by_prompt(tmp_path: Path) -> None:
    rows = [{"prompt": f"p{i % 10}", "completion": f"a{i}"} for i in range(30)]
    trained, judged = parts_of(TextFile(file=lines(tmp_path, rows), evaluate=0.3))
    assert judged is not None
    asked = [{turns for _, turns in p.asked} for p in (trained, judged)]
    assert (len(asked[0]), len(asked[1]), asked[0] & asked[1]) == (7, 3, set())
    assert (len(trained.answers), len(judged.answers)) == (21, 9)  # rows of one prompt stay together
    for part in (trained, judged):
        for answer, i in zip(part.answers, part.prompt_index, strict=True):
            assert part.asked[int(i)][1] == (("user", f"p{int(answer[1:]) % 10}"),)
    again = parts_of(TextFile(file=lines(tmp_path, rows, "copy.jsonl"), evaluate=0.3))
    assert again[0].digest == trained.digest
    there = pickle.loads(pickle.dumps(TextFile(file=str(tmp_path / "rows.jsonl"), evaluate=0.3)))
    (tmp_path / "rows.jsonl").unlink()
    assert parts_of(there)[0].digest == trained.digest  # the content goes along to other machines


def test_documents_are_drawn_one_by_one(tmp_path: Path) -> None:
    trained, judged = parts_of(TextFile(file=lines(tmp_path, [{"text": f"t{i}"} for i in range(10)])))
    assert judged is not None
    assert (len(trained.answers), len(judged.answers)) == (8, 2)
    assert not set(trained.answers) & set(judged.answers)
    assert judged.strata is None


def test_another_file_shares_no_prompt(tmp_path: Path) -> None:
    first = lines(tmp_path, [{"prompt": "p1"}, {"prompt": "p2"}], "first.jsonl")
    other = lines(tmp_path, [{"prompt": "p3"}], "other.jsonl")
    trained, judged = parts_of(PromptsFile(file=first, evaluate={"file": other}))  # pyright: ignore[reportArgumentType]
    assert judged is not None
    assert [t for _, t in judged.asked] == [(("user", "p3"),)]
    both = lines(tmp_path, [{"prompt": "p3"}, {"prompt": "p2"}], "both.jsonl")
    with pytest.raises(DataError, match=r"both.jsonl, line 2: the prompt is in .*first.jsonl, too; got 'p2'"):
        parts_of(PromptsFile(file=first, evaluate={"file": both}))  # pyright: ignore[reportArgumentType]
    with pytest.raises(DataError, match="one prompt cannot be split"):
        parts_of(PromptsFile(file=other, evaluate=0.5))
    assert len(trained.asked) == 2


def test_prompts_of_both_parts_are_kept(tmp_path: Path) -> None:
    tokenizer = make_tokenizer(64)
    file = lines(tmp_path, [{"prompt": f"w{3 + i}"} for i in range(10)])
    truth = Truth(source="m", prompts=PromptsFile(file=file, evaluate=0.3))
    trained, judged = prompts_of(truth, tokenizer)
    assert judged is not None
    assert (len(trained.ids), len(judged.ids)) == (7, 3)
    assert (trained.are, judged.are) == ("fixed", "sample")  # what nobody was trained on stands for others
    kept = Kept.from_json(json.loads(json.dumps(Kept(source_digest(truth), trained, judged).to_json())))
    assert prompts_of(truth.with_kept(kept), make_tokenizer(64)) == (trained, judged)
    alone = Truth(source="m", prompts=PromptsFile(file=file))
    assert prompts_of(alone, tokenizer)[1] is None


@pytest.mark.parametrize("evaluate", [None, 0.3])
def test_a_file_is_read_and_rendered_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, evaluate: float | None
) -> None:
    """However often a truth is opened; a file that is written anew is read anew."""
    rendered: list[int] = []

    def counted(rows: Any, *args: Any, **fields: Any) -> Any:
        rendered.append(len(rows))
        return encode_prompts(rows, *args, **fields)

    monkeypatch.setattr(parts, "encode_prompts", counted)
    tokenizer, expected = make_tokenizer(64), [10] if evaluate is None else [3, 7]
    file = lines(tmp_path, [{"prompt": f"w{3 + i}"} for i in range(10)])
    truth = Truth(source="m", prompts=PromptsFile(file=file, evaluate=evaluate))
    first = prompts_of(truth, tokenizer)
    kept = truth.with_kept(Kept(source_digest(truth), *first))
    for again in (truth, kept, truth.model_copy()):
        assert prompts_of(again, tokenizer) == first
    assert sorted(rendered) == expected
    assert prompts_of(truth, make_tokenizer(64)) == first
    assert sorted(rendered) == sorted(2 * expected)  # another tokenizer renders by itself
    lines(tmp_path, [{"prompt": f"w{20 + i}"} for i in range(10)])
    assert prompts_of(kept, tokenizer)[0].texts[0] in {f"w{20 + i}" for i in range(10)}
