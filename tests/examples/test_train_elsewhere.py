"""What a run exports is what TRL trains on, token by token; and the example goes the whole way round."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

import hydrometer as hm
from chains import lm_spec, write_spec

pytest.importorskip("torch")
for needed in ("trl", "datasets"):
    if not __import__("importlib.util").util.find_spec(needed):
        pytest.skip(f"{needed} is not installed", allow_module_level=True)

EXAMPLE = Path(__file__).parents[2] / "examples" / "train_elsewhere.py"
# In a process of its own: trl and datasets warn when they are imported, and warnings are errors here.
PREPARE = """
import json, sys
from datasets import Dataset
from transformers import AutoModelForCausalLM, AutoTokenizer
from trl import SFTConfig, SFTTrainer

work, found = sys.argv[1], {}
for argument in sys.argv[2:]:
    model, file = argument.split("=")
    read = Dataset.from_parquet if file.endswith(".parquet") else Dataset.from_json
    trainer = SFTTrainer(
        model=AutoModelForCausalLM.from_pretrained(model), processing_class=AutoTokenizer.from_pretrained(model),
        train_dataset=read(file, cache_dir=work),
        args=SFTConfig(output_dir=work, report_to="none", use_cpu=True, bf16=False, disable_tqdm=True),
    )
    rows = trainer.train_dataset
    batch = next(iter(trainer.get_train_dataloader()))
    found[file] = {"input_ids": list(rows["input_ids"]), "labels": list(rows["labels"]), "learned": [
        [int(t) for t in row[row != -100]] for row in batch["labels"]]}
json.dump(found, open(work + "/found.json", "w"))
"""


def call(argv: list[str], home: Path) -> str:
    environment = os.environ | {"OMP_NUM_THREADS": "1", "HF_HOME": str(home), "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(
        [sys.executable, *argv], capture_output=True, text=True, env=environment, timeout=200, check=False
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


def draws(source: Path, folder: Path, prompts: Any, texts: str | None = None) -> Path:
    """A folder that holds rows drawn from the truth at two temperatures, and nothing fitted."""
    folder.mkdir()
    if texts is not None:
        (folder / "prompts.jsonl").write_text(texts)
    truth = {"source": str(source), "max_new_tokens": 8, "prompts": prompts}
    data = {"train": 16, "validate": 16, "distill": 48, "evaluate": 16}
    level = {"init": {"layers_of": "truth", "layers": [0]}}
    spec = lm_spec(source, truth=truth, teacher="truth", student=level, data=data)
    done = hm.run(write_spec(spec, folder), out=folder / "run", until="draw")
    assert not done.outcome.failed
    assert set(done.outcome.computed) == {"draw"}
    return done.folder


CHAT = '{"messages": [{"role": "user", "content": "w3 w4"}]}\n' + json.dumps(
    {"messages": [{"role": r, "content": c} for r, c in (("user", "w5"), ("assistant", "w6"), ("user", "w7"))]}
)
EXPORTS: dict[str, tuple[str, str, dict[str, Any]]] = {
    "ids": ("begin", "parquet", {}),
    "ids from messages": ("chat", "jsonl", {"format": "messages"}),
    "plain": ("begin", "parquet", {"text_only": True}),
    "plain, one prompt": ("text", "jsonl", {"text_only": True}),
    "text": ("text", "parquet", {"text_only": True, "format": "text"}),
    "messages": ("chat", "parquet", {"text_only": True, "format": "messages"}),
    "chat": ("chat", "parquet", {"text_only": True, "chat": True}),
    "merges": ("merges", "parquet", {"text_only": True}),
    "ids of merges": ("merges", "parquet", {}),
}


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[list[dict[str, Any]], dict[str, Any]]]:
    """Per export: the rows as written, and what SFTTrainer made of them."""
    from hydrometer.models.causal_lm.inference.model import CausalLM
    from tiny import make_llama, make_merging_tokenizer, make_tokenizer

    home = tmp_path_factory.mktemp("elsewhere")
    words, merges = home / "words", home / "merges"
    # Some three answers in four end before the eighth token.
    CausalLM(make_llama(initializer_range=0.2), make_tokenizer(64)).save(words)
    CausalLM(make_llama(vocab=9, initializer_range=0.2), make_merging_tokenizer()).save(merges)
    runs = {
        "begin": (words, draws(words, home / "a", None)),
        "text": (words, draws(words, home / "b", "w3 w4")),
        "chat": (words, draws(words, home / "c", {"file": "prompts.jsonl", "chat": True}, CHAT)),
        "merges": (merges, draws(merges, home / "d", None)),
    }
    files: dict[str, tuple[Path, Path]] = {}
    for i, (name, (run, kind, options)) in enumerate(EXPORTS.items()):
        model, folder = runs[run]
        done = hm.export(folder, to=home / f"{i}.{kind}", selectivity="temperature=1.0", **options)
        files[name] = model, done.path
    (home / "work").mkdir()
    call(["-c", PREPARE, str(home / "work"), *(f"{m}={f}" for m, f in files.values())], home)
    found = json.loads((home / "work" / "found.json").read_text())

    def rows(path: Path) -> list[dict[str, Any]]:
        if path.suffix == ".parquet":
            return pq.read_table(path).to_pylist()
        return [json.loads(line) for line in path.read_text().splitlines()]

    return {name: (rows(path), found[str(path)]) for name, (_, path) in files.items()}


@pytest.mark.parametrize("name", EXPORTS)
def test_trl_trains_on_the_drawn_ids_of_every_row_that_says_so(exported: Any, name: str) -> None:
    rows, trained = exported[name]
    assert len(rows) == len(trained["input_ids"]) == 48
    by_ids = not EXPORTS[name][2].get("text_only")
    for row, ids, labels in zip(rows, trained["input_ids"], trained["labels"], strict=True):
        drawn = row["prompt_ids"] + row["completion_ids"]
        assert (ids == drawn) == (row["round_trip"] or by_ids)
        if (ids == drawn and EXPORTS[name][2].get("format") not in ("text", "messages")) or by_ids:
            assert [t for t in labels if t != -100] == row["completion_ids"]


@pytest.mark.parametrize("name", ["ids", "ids from messages", "ids of merges"])
def test_a_row_that_was_cut_teaches_no_end(exported: Any, name: str) -> None:
    rows, trained = exported[name]
    cut = [i for i, row in enumerate(rows) if row["finish_reason"] == "length"]
    ended = [i for i, row in enumerate(rows) if row["finish_reason"] == "stop"]
    assert cut
    assert ended
    eos = 1
    for i in cut:
        assert not rows[i]["ends_with_stop"]
        assert trained["labels"][i][-1] != eos
    for i in ended:
        assert rows[i]["ends_with_stop"]
        assert trained["labels"][i][-1] == eos
    learned = [row["completion_ids"] for row in rows]
    assert all(batch in learned for batch in trained["learned"])  # after collation nothing is masked or added


def test_over_text_a_cut_row_would_be_ended_and_says_so(exported: Any) -> None:
    for name in ("plain", "text", "messages", "chat"):
        rows, trained = exported[name]
        assert any(r["round_trip"] for r in rows)
        for row, ids in zip(rows, trained["input_ids"], strict=True):
            if row["finish_reason"] == "length":
                assert not row["round_trip"]
                assert row["round_trip_lost"] == "an end of sequence is written where the row was cut"
                assert ids[-1] == 1


def test_ids_that_the_tokenizer_would_merge_are_told(exported: Any) -> None:
    rows, _ = exported["merges"]
    lost = [r["round_trip_lost"] for r in rows if r["finish_reason"] == "stop"]
    assert "the text gives other ids" in lost
    assert "" in lost


def test_the_example_goes_from_export_to_report(tmp_path: Path) -> None:
    from hydrometer.models.causal_lm.inference.model import CausalLM
    from tiny import make_llama, make_tokenizer

    source, start = tmp_path / "truth", tmp_path / "start"
    CausalLM(make_llama(), make_tokenizer(64)).save(source)
    CausalLM(make_llama(layers=1, seed=7, initializer_range=0.02), make_tokenizer(64)).save(start)
    run = hm.run(write_spec(lm_spec(source), tmp_path), out=tmp_path / "run")
    before = {c["id"]: c["metrics"] for c in run.results["cells"]}
    argv = [str(EXAMPLE), str(run.folder), "--student", str(start), "--selectivity", "temperature=1.0", "--cpu"]
    said = call([*argv, "--epochs", "4", "--work", str(tmp_path / "work")], tmp_path)
    after = hm.load_results(run.folder)
    cells = {c["id"]: c for c in after["cells"]}
    assert {k: v["metrics"] for k, v in cells.items() if k in before} == before
    adopted = cells["lm.student.distilled-temperature1.0.adopted-trl.seed0"]
    assert adopted["origin"]["adopted"] == "trl"
    told = re.search(r"adopted-trl\.seed0: precision ([-\d.]+), recall ([-\d.]+) nats", said)
    assert told
    assert float(told[2]) == pytest.approx(adopted["metrics"]["recall"]["value"], abs=0.01)
    untrained = hm.adopt(run.folder, model=start, name="untrained", selectivity="temperature=1.0")
    found = {c["id"]: c["metrics"] for c in untrained.run.results["cells"]}
    better = adopted["metrics"]["recall"]["value"]
    assert better > found["lm.student.distilled-temperature1.0.adopted-untrained.seed0"]["recall"]["value"]
    assert "trl (adopted), distilled at temperature 1" in (run.folder / "report.html").read_text()
