"""A student's setting, exported for TRL's trainers, trained by the example, and adopted with its objective said."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

import hydrometer as hm
from chains import lm_spec, write_spec
from hydrometer.core.errors import InputError

torch = pytest.importorskip("torch")
for needed in ("trl", "datasets"):
    if not __import__("importlib.util").util.find_spec(needed):
        pytest.skip(f"{needed} is not installed", allow_module_level=True)

from examples.test_train_elsewhere import call  # noqa: E402
from hydrometer.models.causal_lm.inference.model import CausalLM  # noqa: E402
from tiny import make_llama, make_tokenizer  # noqa: E402

EXAMPLE = Path(__file__).parents[2] / "examples" / "distil_elsewhere.py"
WAYS = {
    "gkd": "temperature=0.6,loss=jsd(weight=0.3),prefix_source=teacher(student=0.5)",
    "distillation": "temperature=0.6,loss=kl_student_teacher,prefix_source=student",
}


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> hm.RunResult:
    home = tmp_path_factory.mktemp("distil")
    CausalLM(make_llama(tie_word_embeddings=True), make_tokenizer(64)).save(home / "truth")
    spec = lm_spec(home / "truth", loss=["jsd(weight=0.3)", "kl_student_teacher", "jsd(temperature=2)"])
    training = {"max_steps": 2, "per_device_train_batch_size": 8, "learning_rate": 0.003, "bf16": False}
    spec["chains"]["lm"] |= {"prefixes": ["teacher(student=0.5)", "student"], "selectivity": [{"temperature": 0.6}]}
    spec["chains"]["lm"]["student"] = {"init": {"layers_of": "above", "layers": [0]}, "training": training}
    return hm.run(write_spec(spec, home), out=home / "run")


@pytest.mark.parametrize("trainer", WAYS)
def test_a_run_and_trl_in_one_setting_meet_on_one_plane(run: hm.RunResult, tmp_path: Path, trainer: Any) -> None:
    way = WAYS[trainer]
    done = hm.export(run.folder, to=tmp_path / "work", selectivity=way, trainer=trainer)
    setting = json.loads((tmp_path / "work" / "setting.json").read_text())
    assert setting["selectivity"] == way
    told = setting["arguments"]
    assert (told["beta"], told["max_steps"], told["learning_rate"]) == ({"gkd": 0.3}.get(trainer, 1.0), 2, 0.003)
    assert told.get("lmbda", 1.0) == (0.5 if trainer == "gkd" else 1.0)
    log = json.loads(call([str(EXAMPLE), str(tmp_path / "work"), "--cpu"], tmp_path).splitlines()[-1])
    assert log[-1]["step"] == 2
    rows = pq.read_table(done.path).to_pylist()
    assert len(rows) == 32
    if trainer == "gkd":  # drawn from the very law that the teacher's folder holds
        from transformers import AutoModelForCausalLM

        teacher = AutoModelForCausalLM.from_pretrained(tmp_path / "work" / "teacher").eval()
        for row in rows[:4]:
            with torch.no_grad():
                log_p = teacher(torch.tensor([row["input_ids"]])).logits[0, :-1].log_softmax(-1)
            ids = torch.tensor(row["completion_ids"])
            found = log_p[len(row["prompt_ids"]) - 1 :].gather(-1, ids[:, None])[:, 0].tolist()
            assert found == pytest.approx(row["token_log_prob"], abs=1e-4)
    adopted = hm.adopt(run.folder, model=tmp_path / "work" / "trained", name=f"trl-{trainer}", selectivity=way)
    cells = {c["id"]: c for c in adopted.run.results["cells"]}
    (name,) = [c for c in adopted.cells if "decoded" not in c]
    loss, source = (part.partition("=")[2] for part in way.split(",", 2)[1:])
    assert (cells[name]["loss"], cells[name]["prefix_source"]) == (loss, source)
    start = hm.adopt(run.folder, model=tmp_path / "work" / "student", name="start", selectivity=way)
    before = next(c for c in start.run.results["cells"] if c["id"] in start.cells)
    ours = [c for c in cells.values() if (c["loss"], c["prefix_source"]) == (loss, source) and "origin" not in c]
    native = next(c for c in ours if c["decoding"] is None)
    moved = [c["metrics"]["precision"]["value"] for c in (before, cells[name], native)]
    assert len(set(moved)) == 3


@pytest.mark.parametrize(
    ("way", "trainer", "said"),
    [
        ("temperature=0.6,loss=jsd(temperature=2.0),prefix_source=student", "gkd", "temperature of the loss"),
        (WAYS["gkd"], "distillation", "other rows than the student's own"),
        (None, "gkd", "needs a student"),
        ("temperature=0.6", "gkd", "several methods"),
    ],
)
def test_one_line(run: hm.RunResult, tmp_path: Path, way: str | None, trainer: Any, said: str) -> None:
    with pytest.raises(InputError, match=said) as e:
        hm.export(run.folder, to=tmp_path / "work", selectivity=way, trainer=trainer)
    assert "\n" not in str(e.value)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("changes", "way", "said"),
    [
        ({"teacher_law": ["top_k(k=4)"]}, "temperature=0.6,teacher_law=top_k(k=4)", "kept part of a teacher's law"),
        ({"prefixes": ["truth"], "budget": "tokens"}, "temperature=0.6,prefix_source=truth", "no fit by its tokens"),
    ],
)
def test_what_trl_has_no_word_for(tmp_path: Path, changes: dict[str, Any], way: str, said: str) -> None:
    CausalLM(make_llama(tie_word_embeddings=True), make_tokenizer(64)).save(tmp_path / "truth")
    spec = lm_spec(tmp_path / "truth", loss=["jsd(weight=0.3)"], selectivity=[{"temperature": 0.6}], **changes)
    spec["chains"]["lm"]["data"]["distill"] = 48
    run = hm.run(write_spec(spec, tmp_path), out=tmp_path / "run")
    with pytest.raises(InputError, match=said) as e:
        hm.export(run.folder, to=tmp_path / "work", selectivity=way, trainer="gkd")
    assert "\n" not in str(e.value)
    assert not (tmp_path / "work").exists()
