"""`init` on files that people have: what it writes passes the doctor, and says what it guessed."""

from __future__ import annotations

import csv
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

torch = pytest.importorskip("torch")

from typer.testing import CliRunner  # noqa: E402

import hydrometer as hm  # noqa: E402
from hydrometer.cli.commands import app  # noqa: E402
from hydrometer.core.errors import DataError, InputError, SpecError  # noqa: E402
from hydrometer.integrations import PlaneCallback  # noqa: E402
from hydrometer.models.causal_lm.drafting.drafts import begin, guesses_of  # noqa: E402
from hydrometer.models.causal_lm.inference.model import CausalLM  # noqa: E402
from hydrometer.models.causal_lm.spec import CausalLMChain  # noqa: E402
from tiny import make_llama, make_tokenizer, write_gguf  # noqa: E402

N = 30
ASKED = [f"w{3 + i} w{4 + i}" for i in range(N)]
REPLIED = [f"w{5 + i} w{6 + i} w{7 + i}" for i in range(N)]


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A larger model, and a smaller one of the same tokenizer."""
    root = tmp_path_factory.mktemp("models")
    CausalLM(make_llama(layers=4), make_tokenizer(64)).save(root / "large")
    CausalLM(make_llama(layers=1, seed=3), make_tokenizer(64)).save(root / "small")
    return root


def messages(path: Path) -> None:
    rows = [
        {"messages": [{"role": "user", "content": q}, {"role": "assistant", "content": a}]}
        for q, a in zip(ASKED, REPLIED, strict=True)
    ]
    path.write_text("\n".join(map(json.dumps, rows)))


def alpaca(path: Path) -> None:
    rows = [{"instruction": q, "input": "", "output": a} for q, a in zip(ASKED, REPLIED, strict=True)]
    path.write_text(json.dumps(rows, indent=2))


def table(path: Path, header: tuple[str, ...]) -> None:
    with path.open("w", newline="") as f:
        csv.writer(f).writerows([header, *zip(map(str, range(N)), ASKED, REPLIED, strict=True)])


def questions(path: Path) -> None:
    table(path, ("id", "question", "answer"))


def strange(path: Path) -> None:
    table(path, ("id", "Frage", "Antwort"))


def columns(path: Path) -> None:
    """With what is no text before it: a vector, a picture."""
    rows = [
        {"vector": [0.5, 1.0], "picture": {"bytes": b"x"}, "Frage": q, "Antwort": a, "score": 1.0}
        for q, a in zip(ASKED, REPLIED, strict=True)
    ]
    pq.write_table(pa.Table.from_pylist(rows), path)


def conversations(path: Path) -> None:
    rows = [
        {"Id": str(i), "Conversations": [{"role": "user", "content": q}, {"role": "assistant", "content": a}]}
        for i, (q, a) in enumerate(zip(ASKED, REPLIED, strict=True))
    ]
    pq.write_table(pa.Table.from_pylist(rows), path)


def chain_of(spec: Path) -> CausalLMChain:
    (chain,) = hm.load_spec(spec).chains.values()
    assert isinstance(chain, CausalLMChain)
    return chain


def sound(spec: Path, tmp_path: Path) -> None:
    """The doctor finds nothing that would keep the run from starting, and no count of rows that spoils figures."""
    found = hm.doctor(spec, out=tmp_path / "no-such-folder")
    assert not found.is_fatal, [f.what for f in found.findings if f.is_fatal]
    wrong = {"prompts-unanswered", "one-row-a-prompt", "few-rows", "one-seed", "no-neutral", "no-control", "truncated"}
    # A model of random weights may not end: what it would be told is no matter of the numbers that were written.
    assert not {f.code for f in found.findings if f.severity == "warning"} & (wrong - {"truncated"})


@pytest.mark.parametrize(
    ("name", "write", "guess"),
    [
        ("chats.jsonl", messages, None),
        ("alpaca_data.json", alpaca, "the prompt is the instruction"),
        ("faq.csv", questions, "the prompt is the question"),
        ("faq.csv", strange, "the prompt is the column 'Frage', the completion is the column 'Antwort'"),
        ("faq.parquet", columns, "the prompt is the column 'Frage', the completion is the column 'Antwort'"),
        ("chats.parquet", conversations, "the messages is the column 'Conversations'"),
    ],
)
def test_a_truth_of_texts(
    name: str, write: Callable[[Path], None], guess: str | None, models: Path, tmp_path: Path
) -> None:
    write(tmp_path / name)
    out = tmp_path / "spec.yaml"
    draft = begin([str(tmp_path / name), str(models / "large")], out=out)
    assert draft.purpose == "text"
    sound(out, tmp_path)
    chain = chain_of(out)
    assert chain.truth.text is not None
    assert chain.truth.text.chat
    assert chain.truth.max_new_tokens == 8  # three tokens an answer, rounded up
    assert (chain.data.train, chain.data.validate_) == (14, 1)  # half of 30 prompts are kept for judging
    assert any("the truth is the answers of the file" in g for g in guesses_of(draft))
    assert any(guess in g for g in guesses_of(draft)) if guess else "is the column" not in draft.text
    assert f"{N} answers to {N} prompts" in draft.text


def test_a_folder_with_prompts_and_two_models(models: Path, tmp_path: Path) -> None:
    (tmp_path / "prompts.jsonl").write_text("\n".join(json.dumps({"prompt": q}) for q in ASKED))
    for name in ("small", "large"):
        (tmp_path / name).symlink_to(models / name)
    draft = begin([str(tmp_path)], out=tmp_path / "spec.yaml")
    assert draft.purpose == "model"
    sound(draft.place, tmp_path)
    chain = chain_of(draft.place)
    assert chain.truth.source == str(tmp_path / "large")
    assert chain.teacher == "truth"
    assert chain.student.model_dump()["init"]["source"] == str(tmp_path / "small")
    assert chain.truth.evaluate == 0.5
    assert "data" in chain.resample  # or the direct student's rows are one draw for all seeds
    assert any("is the larger of the two" in g for g in guesses_of(draft))
    assert "taken as prompts alone: " in draft.text


def test_the_same_model_twice_is_no_larger_one(models: Path, tmp_path: Path) -> None:
    alpaca(tmp_path / "answers.json")
    large, again = str(models / "large"), f"{models}/small/../large"
    for purpose, comes_to in (("text", "begins as its own teacher"), ("model", "nothing to learn")):
        draft = begin([large, again, str(tmp_path / "answers.json")], purpose, tmp_path / f"{purpose}.yaml")
        (said,) = (g for g in guesses_of(draft) if "named twice" in g)
        assert said.startswith(f"the same model is named twice, {large}: the student ")
        assert comes_to in said
        assert "larger of the two" not in draft.text
        sound(draft.place, tmp_path)
    (tmp_path / "copy").symlink_to(models / "large")  # the same by its place, not by its name
    CausalLM(make_llama(layers=4, seed=5), make_tokenizer(64)).save(tmp_path / "twin")
    draft = begin([str(tmp_path / "copy"), str(tmp_path / "twin")], out=tmp_path / "twin.yaml")
    assert f"guess: {tmp_path}/copy is as large as {tmp_path}/twin and named first" in draft.text


def test_a_base_model_and_documents(models: Path, tmp_path: Path) -> None:
    """Without a chat template prompts are asked as they are; documents are texts, or prompts to go on with."""
    CausalLM(make_llama(), make_tokenizer(64, template=None)).save(tmp_path / "base")
    (tmp_path / "prompts.jsonl").write_text("\n".join(json.dumps({"prompt": q}) for q in ASKED[:6]))
    draft = begin([str(tmp_path / "base"), str(tmp_path / "prompts.jsonl")], out=tmp_path / "spec.yaml")
    sound(draft.place, tmp_path)
    assert chain_of(draft.place).truth.evaluate is None
    for guess in ("without a chat template", "too few to keep"):
        assert any(guess in g for g in guesses_of(draft))
    (tmp_path / "documents.jsonl").write_text("\n".join(json.dumps({"text": q}) for q in ASKED))
    given = [str(tmp_path / "documents.jsonl"), str(models / "large")]
    for purpose in ("text", "model"):
        draft = begin(given, purpose, tmp_path / f"{purpose}.yaml")
        sound(draft.place, tmp_path)
        assert f"documents.jsonl: {N} {'prompts' if purpose == 'model' else 'whole texts'}\n" in draft.text


def test_two_tokenizers_take_texts(models: Path, tmp_path: Path) -> None:
    CausalLM(make_llama(vocab=48, layers=1), make_tokenizer(48)).save(tmp_path / "other")
    messages(tmp_path / "chats.jsonl")
    given = [str(models / "large"), str(tmp_path / "other")]
    with pytest.raises(InputError, match="two tokenizers"):
        begin(given, out=tmp_path / "spec.yaml")
    draft = begin([*given, str(tmp_path / "chats.jsonl")], out=tmp_path / "spec.yaml")
    sound(draft.place, tmp_path)
    assert chain_of(draft.place).truth.source == str(tmp_path / "other")


@pytest.mark.parametrize("kind", ["checkpoint", "gguf"])
def test_a_model_alone(kind: str, models: Path, tmp_path: Path) -> None:
    source = models / "large" if kind == "checkpoint" else write_gguf(tmp_path / "tiny.gguf")
    draft = begin([str(source)], out=tmp_path / "spec.yaml")
    sound(draft.place, tmp_path)
    chain = chain_of(draft.place)
    assert chain.truth.prompts is None
    assert chain.student.model_dump()["init"]["layers"] == ((0, 3) if kind == "checkpoint" else (0,))
    assert any("no prompts were named" in g for g in guesses_of(draft))


def test_what_is_not_at_hand_is_guessed_without_torch(tmp_path: Path) -> None:
    questions(tmp_path / "faq.csv")
    code = (
        "import sys; sys.modules['torch'] = sys.modules['transformers'] = None\n"
        "from hydrometer.cli import main; sys.argv[1:] = ['init', 'faq.csv']; main()"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert "guess    no model was named; smollm2-135m-instruct comes with" in done.stdout
    assert "price    not known: " in done.stdout
    chain = chain_of(tmp_path / "spec.yaml")
    assert chain.teacher.model_dump()["source"] == "smollm2-135m-instruct"  # type: ignore[union-attr]
    assert chain.student.model_dump()["init"]["layers"][::14] == (0, 29)


def test_a_run_has_the_name_that_is_given_and_a_price(models: Path, tmp_path: Path) -> None:
    (tmp_path / "prompts.jsonl").write_text("\n".join(json.dumps({"prompt": q}) for q in ASKED))
    given, out = [str(tmp_path / "prompts.jsonl"), str(models / "large")], tmp_path / "spec.yaml"
    done = CliRunner().invoke(app, ["init", *given, "--out", str(out), "--name", "trial-1"])
    assert done.exit_code == 0, done.output
    assert hm.load_spec(out).name == "trial-1"
    price, after = done.output.splitlines()[-2:]
    total = hm.plan(out).total["hours"]
    assert isinstance(total, float)
    assert price.startswith(f"price    {total * 60:.3g} min" if total * 60 >= 1 else f"price    {total * 3600:.2g} s")
    assert price.endswith(f"on this machine; `hydrometer plan {out}` says of what")
    assert after == f"next     hydrometer doctor {out}"
    assert "of one seed `advise` never decides" in out.read_text()
    begin(given, out=tmp_path / "mine.yaml")
    assert hm.load_spec(tmp_path / "mine.yaml").name == "mine"
    with pytest.raises(SpecError, match=r"--name: a name is 1 to 64 of the characters"):
        begin(given, out=tmp_path / "other.yaml", name="two words")
    with pytest.raises(InputError, match="only a specification has a name"):
        begin(given, "callback", tmp_path / "callback.py", "trial-1")
    assert not (tmp_path / "other.yaml").exists()


def test_the_command_line_of_judge_judges(models: Path, tmp_path: Path) -> None:
    (tmp_path / "prompts.jsonl").write_text("\n".join(json.dumps({"prompt": q}) for q in ASKED[:4]))
    given = [str(tmp_path / "prompts.jsonl"), str(models / "small"), str(models / "large")]
    draft = begin(given, "judge", tmp_path / "judge.sh")
    (line,) = [s for s in draft.text.replace("\\\n", "").splitlines() if s.startswith("hydrometer ")]
    words = line.split()
    assert words[words.index("--truth") + 1] == str(models / "large")
    done = CliRunner().invoke(app, [*words[1:], "--out", str(tmp_path / "out"), "--n", "4", "--max-new-tokens", "4"])
    assert done.exit_code == 0, done.output
    messages(tmp_path / "chats.jsonl")
    texts = begin([str(tmp_path / "chats.jsonl"), str(models / "small")], "judge", tmp_path / "texts.sh").text
    assert f"--truth-text {tmp_path / 'chats.jsonl'}" in texts
    assert "--reference" not in texts


def test_the_callback_takes_what_is_written(models: Path, tmp_path: Path) -> None:
    messages(tmp_path / "chats.jsonl")
    draft = begin([str(tmp_path / "chats.jsonl"), str(models / "large")], "callback", tmp_path / "callback.py")
    made: dict[str, object] = {}
    exec(compile(draft.text, "callback.py", "exec"), made)
    plane = made["plane"]
    assert isinstance(plane, PlaneCallback)
    assert (plane.truth, plane.prompts) == (str(models / "large"), str(tmp_path / "chats.jsonl"))


def test_nothing_is_overwritten_and_bad_input_is_refused(models: Path, tmp_path: Path) -> None:
    out = tmp_path / "spec.yaml"
    out.write_text("mine")
    with pytest.raises(InputError, match=r"there already.*--out"):
        begin([str(models / "large")], out=out)
    assert out.read_text() == "mine"
    out.unlink()
    (tmp_path / "numbers.csv").write_text("a,b\n1,2\n")
    with pytest.raises(DataError, match="no column messages, conversations, prompt"):
        begin([str(tmp_path / "numbers.csv")], out=out)
    with pytest.raises(InputError, match="more than two models"):
        begin([str(models / n) for n in ("small", "large", "small")], out=out)
    with pytest.raises(InputError, match="a truth of texts needs a table with answers"):
        begin([str(models / "large")], "text", out)
    with pytest.raises(InputError, match="no such model"):
        begin(["no such file"], out=out)
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match="holds no model and no table"):
        begin([str(tmp_path / "empty")], out=out)
    assert not out.exists()


@pytest.mark.parametrize(("prompts", "share"), [(20, 0.5), (60, 0.5), (100, 0.3), (150, 0.2), (1000, 0.2)])
def test_few_prompts_keep_more_for_judging(prompts: int, share: float, models: Path, tmp_path: Path) -> None:
    lines = [json.dumps({"prompt": f"Question {i}?"}) for i in range(prompts)]
    (tmp_path / "prompts.jsonl").write_text("\n".join(lines))
    out = tmp_path / "spec.yaml"
    begin([str(tmp_path / "prompts.jsonl"), str(models / "large")], out=out)
    chain = chain_of(out)
    assert chain.truth.evaluate == share
    kept = round(share * prompts)
    assert chain.data.evaluate % kept == 0  # equally many rows a prompt
    assert chain.data.train % (prompts - kept) == 0
