"""Runs and judgements whose truth, teacher or reference is served, against the same models opened here."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")

import jsonschema  # noqa: E402

import hydrometer as hm  # noqa: E402
from chains import without_timings, write_spec  # noqa: E402
from fake_server import Fake, serving  # noqa: E402
from hydrometer.core.errors import InputError  # noqa: E402
from hydrometer.models.causal_lm.engines.client import Server  # noqa: E402
from hydrometer.models.causal_lm.inference.model import CausalLM  # noqa: E402
from hydrometer.models.causal_lm.inference.served_law import forget_sessions  # noqa: E402
from hydrometer.report import build_report  # noqa: E402
from hydrometer.run.judging.judging import judge_models  # noqa: E402
from tiny import make_llama, make_tokenizer  # noqa: E402

SCHEMA = json.loads((Path(__file__).parents[2] / "docs" / "results.schema.json").read_text())
TRAINING = {"num_train_epochs": 1, "per_device_train_batch_size": 8, "learning_rate": 0.003, "bf16": False}


@pytest.fixture(scope="module")
def lm() -> CausalLM:
    return CausalLM(make_llama(seed=0), make_tokenizer(64))


@pytest.fixture(scope="module")
def models(lm: CausalLM, tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("models")
    lm.save(root / "teacher")
    lm.tokenizer.save_pretrained(root / "tokenizer")
    CausalLM(make_llama(seed=5, layers=1), make_tokenizer(64)).save(root / "small")
    rng = np.random.default_rng(3)
    rows = [
        {"prompt": f"w{3 + i}", "completion": " ".join(f"w{j}" for j in rng.integers(3, 20, 1 + k))}
        for i in range(12)
        for k in range(2)
    ]
    (root / "texts.jsonl").write_text("\n".join(json.dumps(r) for r in rows))
    (root / "prompts.jsonl").write_text("\n".join(json.dumps({"prompt": f"w{3 + i}"}) for i in range(4)))
    return root


@pytest.fixture(autouse=True)
def _no_session() -> Iterator[None]:
    forget_sessions()
    yield
    forget_sessions()


def source(models: Path, url: str, **more: Any) -> dict[str, Any]:
    at = {"base_url": url, "model": "tiny", "tokenizer": str(models / "tokenizer"), "patience": 0, "concurrency": 4}
    return {"served": {**at, **more}}


def spec_of(folder: Path, models: Path, truth: dict[str, Any], **chain: Any) -> Path:
    body: dict[str, Any] = {
        "family": "causal_lm", "truth": {"max_new_tokens": 5, "stop": [1], **truth},
        "student": {"init": {"source": str(models / "small")}, "training": TRAINING},
        "data": {"train": 8, "validate": 4, "distill": 8, "evaluate": 8}, "threads": 1, "block_rows": 8,
        "selectivity": [{"temperature": 1.0}, {"temperature": 0.5}], "draw_dtype": "float32", **chain,
    }  # fmt: skip
    folder.mkdir(parents=True, exist_ok=True)
    return write_spec({"name": "tiny", "seeds": 1, "chains": {"lm": body}}, folder)


def metrics_of(results: dict[str, Any]) -> dict[str, dict[str, Any]]:
    jsonschema.validate(results, SCHEMA)
    assert not [c["reason"] for c in results["cells"] if c["status"] == "failed"]
    return {c["id"]: c["metrics"] for c in results["cells"]}


def revive(fake: Fake) -> None:
    while fake.died < 2:
        time.sleep(0.01)
    fake.revived()


@pytest.fixture
def _short_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Server.ask_patiently, "__kwdefaults__", {"sleep": lambda seconds: time.sleep(seconds / 20)})


@pytest.mark.usefixtures("_short_pauses")
@pytest.mark.parametrize("api", ["vllm", "sglang"])
def test_a_chain_whose_truth_is_served_and_its_teacher(tmp_path: Path, models: Path, lm: CausalLM, api: str) -> None:
    """Killed twice in the midst, on another port in the end: the same records as without."""
    prompts = {"prompts": {"file": str(models / "prompts.jsonl")}}
    with serving(lm) as (url, fake):
        path = spec_of(tmp_path / "a", models, {"source": source(models, url, api=api), **prompts}, teacher="truth")
        findings = {f.code: f for f in hm.doctor(path).findings}
        assert "tiny, served at" in findings["served-model"].what
        assert not fake.asked  # neither a check nor a plan asks the server
        whole = hm.run(path, out=tmp_path / "whole")
    cells = metrics_of(whole.results)
    n = len(fake.asked)
    selected = cells["lm.truth.decoded-temperature0.5"]
    assert {"precision", "entropy_bound", "length"} <= set(selected)
    assert not {"recall", "entropy", "kl_student_truth"} & set(selected)
    (cell,) = [c for c in whole.results["cells"] if c["id"] == "lm.truth.decoded-temperature0.5"]
    assert "a served model draws under a selectivity" in cell["absent"]
    assert {"precision", "recall", "entropy", "kl_student_truth"} <= set(cells["lm.student.direct.seed0"])
    assert "served" in whole.results["summary"]["chains"]["lm"]["truth"]
    page = build_report([tmp_path / "whole"]).read_text(encoding="utf-8")
    assert "tiny, served" in page
    for dies in (n // 4, 3 * n // 4) if api == "vllm" else ():  # of both kinds in test_served_law
        out = tmp_path / f"killed-{dies}"
        with serving(lm, die_after=dies) as (url, fake):
            waker = threading.Thread(target=revive, args=(fake,))
            waker.start()
            patient = {"source": source(models, url, api=api, patience=60), **prompts}
            found = hm.run(spec_of(tmp_path / f"b{dies}", models, patient, teacher="truth"), out=out)
            waker.join()
            assert fake.died >= 2
        assert figures(found.results) == figures(whole.results)
    with serving(lm) as (url, fake):  # elsewhere: nothing is drawn or scored again
        path = spec_of(tmp_path / "c", models, {"source": source(models, url, api=api), **prompts}, teacher="truth")
        again = hm.run(path, out=tmp_path / "whole")
    assert not again.outcome.computed
    assert not fake.asked


def figures(results: dict[str, Any]) -> Any:
    """Records without how long they took."""
    found = json.loads(without_timings(results))
    return [{k: c[k] for k in ("id", "status", "metrics", "artifacts")} for c in found["cells"]]


def close(a: dict[str, Any], b: dict[str, Any], names: set[str], errors: float = 4.0) -> None:
    """Figures of a served and of an opened model agree, by other draws, within standard errors."""
    for name in names:
        spread = float(np.hypot(a[name]["se"], b[name]["se"]))
        assert abs(a[name]["value"] - b[name]["value"]) < errors * spread + 1e-4, name


def test_a_served_teacher_beside_texts(tmp_path: Path, models: Path, lm: CausalLM) -> None:
    """Recall of the teacher over the held-out texts is that of the same model opened, to 1e-4 nats a token."""
    text = {"text": {"file": str(models / "texts.jsonl"), "chat": False}}
    with serving(lm) as (url, _):
        path = spec_of(tmp_path, models, text, teacher={"source": source(models, url)})
        found = hm.run(path, out=tmp_path / "served")
    cells = metrics_of(found.results)
    opened = spec_of(tmp_path / "o", models, text, teacher={"source": str(models / "teacher")})
    same = metrics_of(hm.run(opened, out=tmp_path / "opened").results)
    for name in ("recall", "recall_per_byte"):
        assert cells["lm.teacher"][name]["value"] == pytest.approx(same["lm.teacher"][name]["value"], abs=1e-4)
        assert cells["lm.teacher"][name]["se"] == pytest.approx(same["lm.teacher"][name]["se"], rel=1e-3)
    close(cells["lm.teacher"], same["lm.teacher"], {"entropy", "precision_reference"})
    assert cells["lm.teacher"]["kl_student_reference"]["value"] == 0
    selected = cells["lm.teacher.decoded-temperature0.5"]
    assert {"precision_reference", "entropy_bound"} <= set(selected)
    assert not {"recall", "entropy", "kl_student_reference"} & set(selected)
    close(selected, same["lm.teacher.decoded-temperature0.5"], {"precision_reference", "length"})
    # A direct student learns from the texts alone: it is one model, judged under the same teacher twice.
    for name in ("recall", "entropy"):
        direct = [c["lm.student.direct.seed0"][name] for c in (cells, same)]
        assert direct[0]["value"] == pytest.approx(direct[1]["value"], abs=4 * direct[0]["se"])
    pairs = {(c["a"], c["b"], c["metric"]) for c in found.results["contrasts"]}
    assert ("lm.student.distilled-temperature0.5", "lm.student.direct", "precision_reference") in pairs
    build_report([tmp_path / "served"])


def yaml_of(folder: Path, models: Path, url: str, **more: Any) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "big.yaml"
    path.write_text(json.dumps(source(models, url, **more)))
    return path


def test_judge_under_a_served_truth(tmp_path: Path, models: Path, lm: CausalLM) -> None:
    """As under the same model opened: given rows to 1e-4 nats, drawn ones within 4 standard errors."""
    asked = {"prompts": models / "prompts.jsonl", "chat": False, "answers_per_prompt": 20, "max_new_tokens": 4}
    opened = judge_models([models / "small"], truth=models / "teacher", out=tmp_path / "opened", **asked)
    with serving(lm) as (url, _):
        name = yaml_of(tmp_path, models, url)
        served = judge_models([models / "small", name], truth=name, out=tmp_path / "served", **asked)
    cells = {c["id"]: c["metrics"] for c in served.results["cells"]}
    same = {c["id"]: c["metrics"] for c in opened.results["cells"]}
    student = cells["judge.student.small"]
    close(student, same["judge.student.small"], {"precision", "recall", "entropy", "kl_student_truth"})
    # The student's own rows are the same draws: their mean under the truth is plain, without control variates.
    assert student["length"]["n"] == same["judge.student.small"]["length"]["n"]
    itself = cells["judge.student.big-2"]
    assert itself["kl_student_truth"]["value"] == pytest.approx(0, abs=1e-4)
    assert any("served at" in note for note in served.results["summary"]["chains"]["judge"]["judged"]["notes"])


def test_judge_under_a_served_reference(tmp_path: Path, models: Path, lm: CausalLM) -> None:
    asked = {"truth_text": models / "texts.jsonl", "chat": False, "answers_per_prompt": 2, "max_new_tokens": 4}
    with serving(lm) as (url, _):
        found = judge_models(
            [models / "teacher"], reference=yaml_of(tmp_path, models, url), out=tmp_path / "out", **asked
        )
    cells = {c["id"]: c["metrics"] for c in found.results["cells"]}
    model, reference = cells["judge.student.teacher"], cells["judge.reference.big"]
    assert model["recall"]["value"] == pytest.approx(reference["recall"]["value"], abs=1e-4)
    assert model["kl_student_reference"]["value"] == pytest.approx(0, abs=1e-4)


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "layers of it": ({"student": {"init": {"layers_of": "truth", "layers": [0]}}}, "neither layers nor"),
    "its weights": ({"student": {"init": "above"}}, "neither layers nor"),
    "its config": ({"student": {"init": "scratch", "architecture": {"num_hidden_layers": 1}}}, "neither layers nor"),
    "an engine": ({"engine": {"openai": {"base_url": "http://a", "model": "b"}}}, "draws by itself"),
    "a choice": ({"selectivity": [{"best_of": 2, "rank_by": "length"}]}, "does not choose among candidates"),
    "a picture": ({"picture": "pca"}, "hidden states"),
    "a start": ({"student": {"init": {"source": {"served": {}}}}}, "has no weights here to start from"),
    "training it": ({"teacher": {"source": {"served": {}}, "training": {}}}, "has no weights here to start from"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_a_served_truth_cannot_give_is_one_line(tmp_path: Path, models: Path, case: str) -> None:
    changes, message = REFUSED[case]
    truth = {"source": source(models, "http://127.0.0.1:9")}
    path = spec_of(tmp_path, models, truth, **{"teacher": "truth", **changes})
    with pytest.raises(InputError, match=message) as caught:
        hm.run(path, out=tmp_path / "out")
    assert "\n" not in str(caught.value)


def test_bad_names_of_served_models_are_one_line(tmp_path: Path, models: Path) -> None:
    for body, message in (
        ({"served": {"base_url": "http://a", "model": "b"}}, "tokenizer"),
        ({"served": {"base_url": "ftp://a", "model": "b", "tokenizer": "c"}}, "not the URL"),
        ({"other": 1}, "served"),
    ):
        (tmp_path / "x.yaml").write_text(json.dumps(body))
        with pytest.raises(InputError, match=message):
            judge_models([models / "small"], truth=tmp_path / "x.yaml", out=tmp_path / "out")
    name = yaml_of(tmp_path, models, "http://127.0.0.1:9")
    with pytest.raises(InputError, match="scores rows as it is alone"):
        judge_models(
            [name], truth=models / "teacher", decodings=[hm.Selectivity(temperature=0.5)], out=tmp_path / "out"
        )
