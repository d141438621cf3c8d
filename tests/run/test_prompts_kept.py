"""Prompts belong to a run: what a chat template writes another day changes nothing of it."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")

import hydrometer as hm  # noqa: E402
from chains import lm_spec, without_timings, write_spec  # noqa: E402
from hydrometer.core.errors import FolderError, InputError  # noqa: E402
from hydrometer.models.causal_lm.data import parts  # noqa: E402
from hydrometer.models.causal_lm.data import prompts as prompts_module  # noqa: E402
from hydrometer.models.causal_lm.data.templates import render_chat  # noqa: E402
from hydrometer.models.causal_lm.inference.model import CausalLM  # noqa: E402
from hydrometer.run.graph.join import with_prompts  # noqa: E402
from hydrometer.run.judging.judging import judge_models  # noqa: E402
from hydrometer.store.records import RunFolder  # noqa: E402
from tiny import TEMPLATE, make_llama, make_tokenizer  # noqa: E402

DATED = "<bos> w{{ strftime_now('%d') | int + 3 }} " + TEMPLATE

Day = Callable[[int], None]


@pytest.fixture
def day(monkeypatch: pytest.MonkeyPatch) -> Day:
    """Set the day of the month that templates see, in what stands for another process: one renders once."""

    def set_to(number: int) -> None:
        parts._read_already.clear()
        at = f"2026-07-{number:02}T12:00:00"
        monkeypatch.setattr(prompts_module, "render_chat", lambda *a, **k: render_chat(*a, **({"at": at} | k)))

    return set_to


@pytest.fixture
def spec(tmp_path: Path) -> Path:
    CausalLM(make_llama(), make_tokenizer(64, DATED)).save(tmp_path / "model")
    asked(tmp_path, "w3", "w5")
    truth = {"source": str(tmp_path / "model"), "max_new_tokens": 4, "prompts": {"file": "prompts.jsonl", "chat": True}}
    return write_spec(lm_spec(tmp_path / "model", seeds=2, truth=truth), tmp_path)


def asked(folder: Path, *words: str) -> None:
    rows = [{"messages": [{"role": "user", "content": w}]} for w in words]
    (folder / "prompts.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))


def first_prompt(folder: Path) -> list[int]:
    (kept,) = (folder / "prompts").glob("*.json")
    return json.loads(kept.read_text())["prompt_ids"][0]


@pytest.mark.campaign
def test_a_run_goes_on_under_the_prompts_of_its_first_day(spec: Path, tmp_path: Path, day: Day) -> None:
    out = tmp_path / "run"
    day(1)
    began = hm.run(spec, out=out)
    tokenizer = make_tokenizer(64, DATED)
    words = tokenizer.convert_ids_to_tokens(first_prompt(out))
    assert words == "<bos> w4 <bos> user w3 <eos> <bos> assistant".split()
    day(2)
    again = hm.run(spec, out=out)
    assert not again.outcome.computed
    assert without_timings(again.results) == without_timings(began.results)
    settings = ["chains.lm.selectivity=[{temperature: 1.0}, {temperature: 0.6}, {temperature: 0.3}]"]
    more = hm.run(spec, out=out, overrides=settings)
    assert more.outcome.computed["draw"]
    assert not more.failed_cells
    assert {c["id"] for c in began.results["cells"]} < {c["id"] for c in more.results["cells"]}
    assert words == tokenizer.convert_ids_to_tokens(first_prompt(out))
    found = hm.doctor(spec, out=out, overrides=settings)
    assert not found.is_fatal
    assert "template-varies" in {f.code for f in found.findings}
    assert hm.advise(out).data["candidates"]


def test_rows_leave_and_models_are_judged_under_them(spec: Path, tmp_path: Path, day: Day) -> None:
    out = tmp_path / "run"
    day(1)
    hm.run(spec, out=out, overrides=["seeds=1"])
    prompt = first_prompt(out)
    day(2)
    for form in ("prompt-completion", "messages", "text"):
        done = hm.export(out, to=tmp_path / f"{form}.jsonl", format=form, selectivity="temperature=1.0")
        rows = [json.loads(line) for line in done.path.read_text().splitlines()]
        assert rows[0]["prompt_ids"] == prompt
    assert rows[0]["text"].startswith("<bos> w4")
    fit = next((out / "artifacts").glob("fit-*"))
    found = judge_models([fit], truth=tmp_path / "model", answers_per_prompt=2, max_new_tokens=2, out=tmp_path / "j")
    assert not found.failed_cells
    truth = hm.CausalLM.from_pretrained(fit).law(["w3"])
    assert json.loads((fit / "law.json").read_text())["prompts_written"][0].startswith("<bos> w4")
    assert truth.n_prompts == 1


def test_another_source_is_another_experiment(spec: Path, tmp_path: Path, day: Day) -> None:
    out = tmp_path / "run"
    day(1)
    hm.run(spec, out=out, overrides=["seeds=1"], until="draw")
    asked(tmp_path, "w3", "w6")
    with pytest.raises(FolderError, match="another experiment"):
        hm.run(spec, out=out, overrides=["seeds=1"])
    with pytest.raises(InputError, match="not what it was"):
        hm.export(out, to=tmp_path / "rows.jsonl", selectivity="temperature=1.0")
    asked(tmp_path, "w3", "w5")
    model = tmp_path / "model" / "chat_template.jinja"
    model.write_text(model.read_text() + " ")
    with pytest.raises(FolderError, match="another experiment"):
        hm.run(spec, out=out, overrides=["seeds=1"])


def test_a_folder_of_before_goes_on_where_its_template_is_constant(spec: Path, tmp_path: Path, day: Day) -> None:
    """Without kept prompts they are rendered again: the same day that gives the same."""
    out = tmp_path / "run"
    day(1)
    hm.run(spec, out=out, overrides=["seeds=1"], until="draw")
    shutil.rmtree(out / "prompts")
    day(2)
    with pytest.raises(FolderError, match="another experiment"):
        hm.run(spec, out=out, overrides=["seeds=1"], until="draw")
    day(1)
    assert not hm.run(spec, out=out, overrides=["seeds=1"], until="draw").outcome.computed
    assert first_prompt(out)  # kept from now on


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"prompt_ids": [[3]]}', '{"source": 3, "prompt_ids": "x"}'])
def test_kept_prompts_that_cannot_be_read_are_one_line(spec: Path, tmp_path: Path, day: Day, content: str) -> None:
    out = tmp_path / "run"
    day(1)
    hm.run(spec, out=out, overrides=["seeds=1"], until="draw")
    (kept,) = (out / "prompts").iterdir()
    kept.write_text(content)
    with pytest.raises(FolderError, match="prompts") as caught:
        hm.run(spec, out=out, overrides=["seeds=1"], until="draw")
    assert "\n" not in str(caught.value)


def test_prompts_that_were_changed_are_not_the_runs(spec: Path, tmp_path: Path, day: Day) -> None:
    out = tmp_path / "run"
    day(1)
    hm.run(spec, out=out, overrides=["seeds=1"], until="draw")
    (kept,) = (out / "prompts").iterdir()
    body: dict[str, Any] = json.loads(kept.read_text())
    body["prompt_ids"][0][1] += 1
    kept.write_text(json.dumps(body))
    with pytest.raises(FolderError, match="another experiment"):
        hm.run(spec, out=out, overrides=["seeds=1"], until="draw")


def test_a_fresh_run_renders_once(spec: Path, tmp_path: Path, day: Day) -> None:
    """Midnight between two plans of one call changes nothing; nor does it in another process, which gets a copy."""
    import pickle

    from hydrometer.models.families import family_of

    day(1)
    bound = with_prompts(hm.load_spec(spec), RunFolder(tmp_path / "run"))
    day(2)
    for chain in (bound.chains["lm"], pickle.loads(pickle.dumps(bound)).chains["lm"]):
        assert family_of(chain).rendered(chain)["prompts_written"][0].startswith("<bos> w4")
    unbound = hm.load_spec(spec).chains["lm"]
    assert family_of(unbound).rendered(unbound)["prompts_written"][0].startswith("<bos> w5")
    assert bound == with_prompts(bound, RunFolder(tmp_path / "run"))


def test_a_judgement_goes_on_under_the_prompts_of_its_first_day(spec: Path, tmp_path: Path, day: Day) -> None:
    options: dict[str, Any] = {
        "truth": tmp_path / "model", "prompts": tmp_path / "prompts.jsonl", "answers_per_prompt": 2,
        "max_new_tokens": 2, "out": tmp_path / "judged",
    }  # fmt: skip
    day(1)
    first = judge_models([tmp_path / "model"], **options)
    day(2)
    again = judge_models([tmp_path / "model"], **options)
    assert not again.outcome.computed
    assert first.results["cells"] == again.results["cells"]
    assert judge_models([tmp_path / "model"], **options | {"out": tmp_path / "new"}).outcome.computed
    (kept,) = (tmp_path / "judged" / "prompts").iterdir()
    kept.write_text("{}")
    with pytest.raises(FolderError, match="prompts cannot be read"):
        judge_models([tmp_path / "model"], **options)
