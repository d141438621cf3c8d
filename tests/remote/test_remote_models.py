"""Language models, whose artifacts are large: export, scores, adoption and judging at URLs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

import hydrometer as hm
from chains import lm_chain, without_timings, write_spec

pytest.importorskip("torch")


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from hydrometer.models.causal_lm.inference.model import CausalLM
    from tiny import make_llama, make_tokenizer

    home = tmp_path_factory.mktemp("model") / "llama"
    CausalLM(make_llama(), make_tokenizer(64)).save(home)
    return home


def test_every_verb_on_a_run_elsewhere(model: Path, bucket: str, tmp_path: Path, elsewhere: Any, objects: Any) -> None:
    chain = lm_chain(model, selectivity=[{"temperature": 0.6}], teacher="truth", decoding=[])
    spec = write_spec({"name": "tiny-lm", "seeds": 1, "chains": {"lm": chain}}, tmp_path)
    place = f"s3://{bucket}/run"
    local, remote = hm.run(spec, out=tmp_path / "local"), hm.run(spec, out=place)
    assert without_timings(local.results) == without_timings(remote.results)
    elsewhere()
    for folder, to in ((tmp_path / "local", "local.jsonl"), (remote.folder, "remote.jsonl")):
        hm.export(folder, to=tmp_path / to, selectivity="temperature=0.6")
    assert (tmp_path / "local.jsonl").read_bytes() == (tmp_path / "remote.jsonl").read_bytes()

    adopted = hm.adopt(place, model=str(model), name="itself", selectivity="temperature=0.6")
    assert not adopted.run.failed_cells
    assert len(objects("run/adopted/")) == 1
    (cell,) = (c for c in adopted.cells if ".decoded-" not in c)
    rows = "\n".join(json.dumps({"cell": cell, "row": i, "taste": i / 48}) for i in range(48))
    (tmp_path / "scores.jsonl").write_text(rows)
    hm.add_scores(place, file=tmp_path / "scores.jsonl")
    elsewhere()
    again = hm.run(spec, out=place)
    assert not again.outcome.computed
    found = {c["id"]: c["metrics"] for c in hm.load_results(place)["cells"]}
    assert found[cell]["user_taste"]["value"] == pytest.approx(sum(range(48)) / 48 / 48)
    # The truth's own weights under another name are the truth.
    assert found[cell]["kl_student_truth"]["value"] == pytest.approx(0, abs=1e-6)


def test_judging_resumes_elsewhere(
    model: Path, bucket: str, s3: Any, objects: Any, tmp_path: Path, elsewhere: Any
) -> None:
    from hydrometer.run.judging.judging import judge_models

    (tmp_path / "prompts.jsonl").write_text('{"text": "w3"}\n{"text": "w4 w5"}\n')
    asked: dict[str, Any] = {
        "truth": model, "prompts": tmp_path / "prompts.jsonl", "answers_per_prompt": 4, "max_new_tokens": 3,
    }  # fmt: skip
    local = judge_models([model], out=tmp_path / "local", **asked)
    remote = judge_models([model], out=f"s3://{bucket}/judged", **asked)
    assert local.results["cells"][1]["metrics"] == remote.results["cells"][1]["metrics"]
    (figures, *_) = (o for o in objects("judged/artifacts/judge-") if o.endswith("metrics.json"))
    s3.put_object(Bucket=bucket, Key=figures, Body=bytes(objects(figures)[figures]))
    elsewhere()
    again = judge_models([model], out=f"s3://{bucket}/judged", **asked)
    assert dict(again.outcome.computed) == {"judge": 1}  # the one that was altered
    assert again.results["cells"][1]["metrics"] == remote.results["cells"][1]["metrics"]
