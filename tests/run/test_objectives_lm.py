"""Language models distilled by several objectives, on the teacher's and the truth's rows, in one run."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import jsonschema
import pytest

import hydrometer as hm
from chains import lm_spec, write_spec
from hydrometer.core.errors import SpecError
from hydrometer.run.graph.plan import plan_run
from hydrometer.stages.nodes import FitNode

torch = pytest.importorskip("torch")

from safetensors.torch import load_file  # noqa: E402

from hydrometer.models.causal_lm.training import trainer  # noqa: E402
from hydrometer.models.causal_lm.training.initialization import init_model  # noqa: E402

ROOT = Path(__file__).parents[2]
PREFIXES = ["teacher", "truth", "student", "teacher(student=0.5)"]


def spec_of(model: Path, **chain: Any) -> dict[str, Any]:
    spec = lm_spec(model)
    spec["chains"]["lm"] |= chain
    return spec


def run(spec: dict[str, Any], tmp_path: Path) -> hm.RunResult:
    return hm.run(write_spec(spec, tmp_path), out=tmp_path / "out")


def test_a_run_has_a_student_of_each_and_is_extended_by_more(tmp_path: Path, tiny_models: dict[str, Path]) -> None:
    first = run(spec_of(tiny_models["llama"]), tmp_path)
    methods = {"loss": ["mle", "jsd", "policy_gradient_token"], "prefixes": PREFIXES}
    more = run(spec_of(tiny_models["llama"], **methods), tmp_path)
    assert not more.failed_cells
    jsonschema.validate(more.results, json.loads((ROOT / "docs" / "results.schema.json").read_text()))
    cells = {c["id"]: c for c in more.results["cells"]}
    for cell in first.results["cells"]:  # what was there stays what it was
        assert cells[cell["id"]]["metrics"] == cell["metrics"]
    distilled = {c["group"]: c for c in cells.values() if c["training"] == "distilled" and c["decoding"] is None}
    said = {(c["loss"], c["prefix_source"], c["selectivity"]["temperature"]) for c in distilled.values()}
    sources = {("mle", "teacher"), ("jsd", "teacher"), ("jsd", "truth")}
    sources |= {("jsd", "student"), ("jsd", "teacher(student=0.5)"), ("policy_gradient_token", "student")}
    assert said == {(loss, rows, t) for loss, rows in sources for t in (1.0, 0.6)}
    precisions = {name: c["metrics"]["precision"]["value"] for name, c in distilled.items()}
    assert len(set(precisions.values())) == len(precisions)
    for cell in distilled.values():
        info = json.loads((tmp_path / "out" / "artifacts" / cell["artifacts"]["fit"] / "meta.json").read_text())
        assert ("objective" in json.dumps(info)) == (cell["loss"] != "mle")
    assert run(spec_of(tiny_models["llama"], **methods), tmp_path).results["cells"] == more.results["cells"]


def test_a_plan_counts_what_a_student_draws_and_what_its_teacher_runs(
    tmp_path: Path, tiny_models: dict[str, Path]
) -> None:
    more = {"loss": ["mle", "jsd"], "prefixes": ["teacher", "student", "teacher(student=0.5)"]}
    spec = hm.load_spec(write_spec(spec_of(tiny_models["llama"], selectivity=[{"temperature": 1}], **more), tmp_path))
    chain: Any = spec.chains["lm"]
    data, training = chain.data, chain.student.training
    nodes = [n for n in plan_run(spec).nodes.values() if isinstance(n, FitNode) and n.level.role == "student"]
    found = {(n.loss, n.prefix_source): dict((c[:2], c[2]) for c in n.asked().counts[1:]) for n in nodes}
    epochs = training.num_train_epochs
    batch = training.per_device_train_batch_size
    steps = {n: epochs * -(-n // batch) for n in (data.train, data.distill)}
    held_out = data.validate_ * epochs
    own = steps[data.train] * batch + held_out
    half = round(steps[data.distill] * batch / 2) + held_out
    teacher, draw = ("score own", "teacher"), ("draw", "student")
    assert found == {
        ("mle", "truth"): {},
        ("mle", "teacher"): {},
        ("jsd", "teacher"): {teacher: data.distill + data.validate_},
        ("jsd", "student"): {draw: own, teacher: own},
        ("jsd", "teacher(student=0.5)"): {draw: half, teacher: data.distill + data.validate_ + half},
    }


def test_a_warm_start_goes_on_from_the_direct_student_of_the_same_seed(
    tmp_path: Path, tiny_models: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    starts: list[dict[str, torch.Tensor]] = []

    def spied(*given: Any) -> Any:
        lm = init_model(*given)
        if given[3] is not None:
            starts.append({k: v.clone() for k, v in lm.model.state_dict().items()})
        return lm

    monkeypatch.setattr(trainer, "init_model", spied)
    spec = spec_of(tiny_models["llama"], warm_start=True, selectivity=[{"temperature": 1}]) | {"seeds": 2}
    cells = run(spec, tmp_path).results["cells"]
    direct = {
        c["seed"]: load_file(tmp_path / "out" / "artifacts" / c["artifacts"]["fit"] / "model.safetensors")
        for c in cells
        if c["training"] == "direct" and c["decoding"] is None
    }
    assert len(direct) == len(starts) == 2
    for seed, weights in direct.items():
        same = [all(torch.equal(s[k], v) for k, v in weights.items()) for s in starts]
        assert sum(same) == 1, seed
    fits = [n for n in plan_run(hm.load_spec(tmp_path / "spec.yaml")).nodes.values() if isinstance(n, FitNode)]
    for n in fits:
        assert (n.start is None) == (n.distillation is None)
        assert n.start is None or set(n.start.inputs) <= set(n.inputs)


@pytest.mark.parametrize(
    ("chain", "said"),
    [
        ({"loss": ["jds"]}, "did you mean 'jsd'"),
        ({"loss": ["jsd(weight=2)"]}, "between 0 and 1"),
        ({"loss": ["kl_student_teacher"], "selectivity": [{"top_k": 5}]}, "drops tokens"),
        ({"prefixes": ["truth"]}, "direct student"),
        ({"loss": ["jsd"], "prefixes": ["studnet"]}, "did you mean 'student'"),
        ({"loss": ["jsd"], "prefixes": ["teacher(share=0.5)"]}, "no such parameter"),
        ({"prefixes": ["student"]}, "the teacher's rows alone"),
        ({"loss": ["policy_gradient_token"]}, "on the student's alone"),
        ({"loss": ["adaptive_kl"], "selectivity": [{"top_p": 0.5}]}, "drops tokens"),
        (
            {"warm_start": True, "student": {"init": "truth", "training": {"lora": {"target_modules": ["q_proj"]}}}},
            "leave lora out",
        ),
    ],
)
def test_one_line(tmp_path: Path, tiny_models: dict[str, Path], chain: dict[str, Any], said: str) -> None:
    with pytest.raises(SpecError, match=said) as e:
        run(spec_of(tiny_models["llama"], **chain), tmp_path)
    assert "\n" not in str(e.value)
