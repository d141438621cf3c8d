import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

import hydrometer as hm
from chains import mixture_spec, write_spec
from elsewhere_world import World, contents
from hydrometer.core.errors import InputError
from hydrometer.core.rng import Stream
from hydrometer.core.spec import Selectivity


def read(path: Path) -> list[dict[str, Any]]:
    if path.suffix == ".parquet":
        return pq.read_table(path).to_pylist()
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_the_rows_are_the_teachers_own_draws(world: World, tmp_path: Path) -> None:
    """Drawn here again from the teacher's weights; the file has the same ids and log-probabilities."""
    from hydrometer.models.causal_lm.spec import PromptsFile

    done = hm.export(world.run, to=tmp_path / "rows.parquet", selectivity="temperature=0.6", seed=1)
    rows = read(done.path)
    teacher = next(p for p in (world.run / "artifacts").glob("fit-*") if _layers(p) == 2)
    prompts = PromptsFile.model_validate({"file": "prompts.jsonl"}, context={"base": world.run.parent})
    law = hm.CausalLM.from_pretrained(teacher).law(prompts, max_new_tokens=6, block_rows=16)
    x = law.select(Selectivity(temperature=0.6)).sample(32, seed=Stream(1).child("distill", "teacher"))
    assert done.rows == len(rows) == 32
    assert [r["completion_ids"] for r in rows] == [x.row(i).tolist() for i in range(32)]
    assert [r["prompt_ids"] for r in rows] == [list(x.prompt_ids[i % 2]) for i in range(32)]
    assert [r["finish_reason"] for r in rows] == list(x.finish_reason)
    np.testing.assert_allclose([r["log_prob"] for r in rows], x.log_prob, atol=1e-5)
    for i, r in enumerate(rows):
        assert len(r["token_log_prob"]) == len(r["completion_ids"])
        assert sum(r["token_log_prob"]) == pytest.approx(r["log_prob"], abs=1e-4)
        plain = law.log_prob(x.take(np.array([i])))[0]
        assert r["log_prob_unselected"] == pytest.approx(plain, abs=1e-3)
        assert r["input_ids"] == r["prompt_ids"] + r["completion_ids"]
        assert r["labels"] == [-100] * len(r["prompt_ids"]) + r["completion_ids"]
        assert (r["row"], r["seed"], r["role"], r["stream"]) == (i, 1, "teacher", "distill")
        assert json.loads(r["selectivity"]) == {"temperature": 0.6}
        assert r["tokenizer"] == law.lm.vocabulary_hash


def _layers(folder: Path) -> int:
    return int(json.loads((folder / "config.json").read_text())["num_hidden_layers"])


def test_each_stream_has_its_own_rows(world: World, tmp_path: Path) -> None:
    options: dict[str, dict[str, Any]] = {
        "warm": {"selectivity": "temperature=1"},
        "warm, held out": {"selectivity": "temperature=1", "held_out": True},
        "seed 1": {"selectivity": "temperature=1", "seed": 1},
        "truth": {"role": "truth"},
        "truth, held out": {"stream": "train", "held_out": True},
        "evaluate": {"cell": "lm.student.direct.seed0"},
    }
    found: dict[str, list[dict[str, Any]]] = {}
    for i, (name, o) in enumerate(options.items()):
        found[name] = read(hm.export(world.run, to=tmp_path / f"{i}.jsonl", **o).path)
    assert {k: len(v) for k, v in found.items()} == {
        "warm": 32, "warm, held out": 16, "seed 1": 32, "truth": 32, "truth, held out": 16, "evaluate": 48,
    }  # fmt: skip
    as_ids = {k: json.dumps([r["completion_ids"] for r in v[:16]]) for k, v in found.items()}
    assert len(set(as_ids.values())) == len(as_ids)
    assert found["truth"][0]["seed"] is None  # all seeds share the truth's rows
    assert found["truth"][0]["selectivity"] is None
    assert {r["cell"] for r in found["evaluate"]} == {"lm.student.direct.seed0"}


def test_parquet_and_jsonl_say_the_same(world: World, tmp_path: Path) -> None:
    one = hm.export(world.run, to=tmp_path / "a.parquet", selectivity="temperature=0.6")
    two = hm.export(world.run, to=tmp_path / "a.jsonl", selectivity="temperature=0.6")
    for a, b in zip(read(one.path), read(two.path), strict=True):
        assert {k: v for k, v in a.items() if "log_prob" not in k} == {
            k: v for k, v in b.items() if "log_prob" not in k
        }
        assert a["log_prob"] == b["log_prob"]
    assert one.exact + sum(one.lost.values()) == one.rows


def test_a_template_that_writes_on_after_the_answer_is_told(world: World) -> None:
    """As ChatML does with its last line break: a token that no law here has drawn."""
    from hydrometer.models.causal_lm.data.prompts import Prompts
    from hydrometer.models.causal_lm.data.trl_rows import AFTER, CUT, Form, text_rows
    from hydrometer.models.rows.sequences import Sequences
    from tiny import make_tokenizer

    template = (
        "{% for m in messages %}<bos> {{ m['role'] }} {{ m['content'] }} <eos> w9 {% endfor %}"
        "{% if add_generation_prompt %}<bos> assistant{% endif %}"
    )
    tokenizer = make_tokenizer(64, template)
    ids = tokenizer.apply_chat_template([{"role": "user", "content": "w3"}], add_generation_prompt=True, tokenize=True)
    prompt = tuple(int(t) for t in ids["input_ids"])
    prompts = Prompts((prompt,), ("w3",), turns=((("user", "w3"),),))
    x = Sequences(
        (prompt,),
        np.zeros(2, np.int64),
        np.array([[5, 1], [5, 6]]),
        np.array([2, 2]),
        np.array([True, False]),
        np.zeros(2),
    )
    ended, cut = text_rows(x, Form("messages"), tokenizer, (1,), prompts)
    assert (ended.lost, cut.lost) == (AFTER, CUT)
    assert ended.columns["messages"] == [{"role": "user", "content": "w3"}, {"role": "assistant", "content": "w5"}]


def test_drawing_alone_fits_no_student_and_a_later_run_goes_on(world: World, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    spec = world.run.parent / "spec.yaml"
    drawn = hm.run(spec, out=folder, until="draw")
    fits = [p for p in (folder / "artifacts").glob("fit-*")]
    assert len(fits) == 1  # the teacher
    assert not list((folder / "artifacts").glob("judge-*"))
    assert not (folder / "results.json").exists()
    hm.export(folder, to=tmp_path / "rows.jsonl", selectivity="temperature=0.6")
    whole = hm.run(spec, out=folder)
    assert whole.outcome.reused["draw"] == drawn.outcome.computed["draw"]
    kept = {c["id"]: c["metrics"] for c in hm.load_results(world.run)["cells"]}
    assert {c["id"]: c["metrics"] for c in whole.results["cells"]} == kept


BAD: dict[str, tuple[dict[str, Any], str]] = {
    "another kind of file": ({"to": "rows.csv"}, "parquet or .jsonl"),
    "a file that is there": ({"to": "there.jsonl"}, r"exists already; got '.*there\.jsonl'; choose another --to$"),
    "no folder": ({"to": "none/rows.jsonl"}, "the folder does not exist"),
    "into the artifacts": ({"to": "run/artifacts/rows.parquet"}, "belongs to the run"),
    "into the artifacts, by a detour": ({"to": "run/../run/artifacts/rows.parquet"}, "belongs to the run"),
    "a NUL": ({"to": "a\0.jsonl"}, "parquet or .jsonl"),
    "unknown selectivity": ({"selectivity": "temperature=0.7"}, "it has temperature=1.0; temperature=0.6"),
    "no selectivity": ({"selectivity": None}, "several selectivities"),
    "not a selectivity": ({"selectivity": "0.8"}, "NAME=VALUE"),
    "misspelt": ({"selectivity": "temprature=1"}, "did you mean 'temperature'"),
    "unknown seed": ({"seed": 9}, "known: 0, 1"),
    "unknown role": ({"role": "assistant_3"}, "known: teacher"),
    "unknown chain": ({"chain": "ln"}, "did you mean 'lm'"),
    "unknown cell": ({"selectivity": None, "cell": "lm.student.direct.seed7"}, "did you mean"),
    "a cell of no rows": ({"selectivity": None, "stream": "evaluate"}, "named by their cell"),
    "a cell and a stream": ({"cell": "lm.truth", "stream": "train", "selectivity": None}, "goes with"),
    "messages of plain prompts": ({"format": "messages"}, "chat template"),
    "chat text": ({"format": "text", "chat": True}, "goes with the format"),
}  # fmt: skip


@pytest.mark.parametrize("what", BAD)
def test_what_cannot_be_exported_is_one_line_and_changes_nothing(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, what: str
) -> None:
    folder = world.copy(tmp_path)
    (tmp_path / "there.jsonl").write_text("mine\n")
    monkeypatch.chdir(tmp_path)
    before = contents(tmp_path)
    change, says = BAD[what]
    with pytest.raises(InputError, match=says) as caught:
        hm.export(folder, **{"to": "rows.jsonl", "selectivity": "temperature=0.6"} | change)
    assert "\n" not in str(caught.value)
    assert contents(tmp_path) == before


def test_rows_that_were_never_drawn_and_folders_of_no_run(world: World, tmp_path: Path) -> None:
    folder = world.copy(tmp_path)
    for block in (folder / "artifacts").glob("draw-*"):
        (block / "rows.parquet").write_bytes(b"")
    with pytest.raises(InputError, match="not drawn"):
        hm.export(folder, to=tmp_path / "rows.jsonl", selectivity="temperature=0.6")
    for wrong in (tmp_path, tmp_path / "nowhere", folder / "results.json"):
        with pytest.raises(InputError, match="no run in the folder"):
            hm.export(wrong, to=tmp_path / "rows.jsonl")
    mixture = hm.run(write_spec(mixture_spec(seeds=1), tmp_path), out=tmp_path / "m")
    with pytest.raises(InputError, match="chains of language models"):
        hm.export(mixture.folder, to=tmp_path / "rows.jsonl", selectivity="weight_power=1")


def test_a_prompts_file_is_read_again_as_it_was_read(tmp_path: Path) -> None:
    """Lines end at line feeds alone: U+2028 and U+0085 are text, and a byte-order mark is none."""
    from hydrometer.models.causal_lm.data.prompts import read_prompts
    from hydrometer.models.causal_lm.data.trl_rows import chat_prompts
    from hydrometer.models.causal_lm.spec import PromptsFile
    from tiny import make_tokenizer

    turns = [{"role": "user", "content": "w3\u2028w4\x85"}, {"role": "assistant", "content": "w5"}]
    rows = [{"messages": [*turns, {"role": "user", "content": "w6"}]}, {"prompt": "w7"}]
    text = "".join(json.dumps(r, ensure_ascii=False) + "\n" for r in rows)
    (tmp_path / "rows.jsonl").write_text("\ufeff" + text, encoding="utf-8")
    source, tokenizer = PromptsFile(file=str(tmp_path / "rows.jsonl"), chat=True), make_tokenizer(16)
    found = chat_prompts(read_prompts(source, tokenizer))
    assert found == [rows[0]["messages"], [{"role": "user", "content": "w7"}]]
