"""Language models distilled by several objectives, on the teacher's and the truth's rows, in one run."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import jsonschema
import pytest

import hydrometer as hm
from chains import lm_spec, write_spec
from hydrometer.core.errors import SpecError
from hydrometer.models.causal_lm.family import CAUSAL_LM
from hydrometer.report import advice_sentences
from hydrometer.report.read_results import parse
from hydrometer.report.tables.advice_table import advice_table
from hydrometer.report.tables.model_tables import group_table
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
    states, heads = ("states", "teacher"), ("heads", "teacher")
    given = data.distill + data.validate_
    assert found == {
        ("mle", "truth"): {},
        ("mle", "teacher"): {},
        ("jsd", "teacher"): {states: given, heads: steps[data.distill] * batch + held_out},
        ("jsd", "student"): {draw: own, teacher: own},
        ("jsd", "teacher(student=0.5)"): {draw: half, teacher: half, states: given, heads: half},
    }


def test_a_warm_start_goes_on_from_the_direct_student_of_the_same_seed(
    tmp_path: Path, tiny_models: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    starts: list[dict[str, torch.Tensor]] = []

    def spied(*given: Any) -> Any:
        lm = init_model(*given)
        if given[4] is not None:
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


BUDGETS = {"loss": ["mle", "jsd"], "prefixes": ["teacher", "truth", "student"], "selectivity": [{"temperature": 1}]}
SIZES = {"train": 64, "validate": 16, "distill": 96, "evaluate": 48}


def fits(tmp_path: Path, model: Path, budget: str, epochs: int = 3) -> dict[tuple[str, str], FitNode]:
    spec = spec_of(model, budget=budget, data=SIZES, **BUDGETS)
    spec["chains"]["lm"]["student"]["training"] |= {"num_train_epochs": epochs}
    nodes = plan_run(hm.load_spec(write_spec(spec, tmp_path))).nodes.values()
    return {(n.loss, n.prefix_source): n for n in nodes if isinstance(n, FitNode) and n.distillation is not None}


def test_ways_are_planned_at_the_budget_of_maximum_likelihood(tmp_path: Path, tiny_models: dict[str, Path]) -> None:
    found = {b: fits(tmp_path, tiny_models["llama"], b) for b in ("epochs", "steps", "tokens", "compute")}
    usual = 3 * 96 // 16
    steps = {b: {w: CAUSAL_LM.steps(n.level, n.data.n)[1] for w, n in nodes.items()} for b, nodes in found.items()}
    assert steps["epochs"] == {("mle", "teacher"): usual, ("jsd", "teacher"): usual} | {
        ("jsd", source): 3 * 64 // 16 for source in ("truth", "student")
    }
    assert set(steps["steps"].values()) == {usual}
    for budget, nodes in found.items():  # what takes that anyway is the same fit
        assert nodes["mle", "teacher"].key == found["epochs"]["mle", "teacher"].key
        assert (nodes["jsd", "teacher"].key == found["epochs"]["jsd", "teacher"].key) == (budget != "compute")
    rows = found["tokens"]["mle", "teacher"].data
    assert {w: n.usual for w, n in found["tokens"].items()} == {
        ("mle", "teacher"): None, ("jsd", "teacher"): None, ("jsd", "truth"): rows, ("jsd", "student"): rows,
    }  # fmt: skip
    assert steps["compute"]["mle", "teacher"] == usual > steps["compute"]["jsd", "teacher"]
    assert steps["compute"]["jsd", "teacher"] > steps["compute"]["jsd", "student"] >= 1


def test_compute_that_pays_for_no_step_is_one_line(tmp_path: Path, tiny_models: dict[str, Path]) -> None:
    spec = spec_of(tiny_models["llama"], budget="compute", data=SIZES | {"distill": 1}, **BUDGETS)
    with pytest.raises(SpecError, match="does not pay for one step") as e:
        plan_run(hm.load_spec(write_spec(spec, tmp_path)))
    assert "\n" not in str(e.value)


def test_results_say_what_each_fit_took(tmp_path: Path, tiny_models: dict[str, Path]) -> None:
    found = run(spec_of(tiny_models["llama"], budget="tokens", data=SIZES, **BUDGETS), tmp_path)
    assert not found.failed_cells
    jsonschema.validate(found.results, json.loads((ROOT / "docs" / "results.schema.json").read_text()))
    cells = {(c["loss"], c["prefix_source"]): c for c in found.results["cells"] if c["training"] == "distilled"}
    took = {way: c["fit"] for way, c in cells.items() if "fit" in c}
    usual = took["mle", "teacher"]
    assert (usual["steps"], usual["tokens_drawn"]) == (6, 0)
    for way in (("jsd", "truth"), ("jsd", "student")):
        assert usual["tokens"] <= took[way]["tokens"] < usual["tokens"] + 16 * 6  # a batch more at most
    assert took["jsd", "student"]["tokens_drawn"] > took["jsd", "student"]["tokens"]
    assert all(f["seconds"] > 0 for f in took.values())
    read = parse(found.results)
    table = group_table(read, read.chains["lm"])
    row = next(r for r in table.rows if r[0] == "distilled at temperature 1 by jsd on rows of the student")
    said = dict(zip(table.head, row, strict=True))
    assert said["fit: steps"] == str(took["jsd", "student"]["steps"])
    assert said["fit: tokens"] == str(took["jsd", "student"]["tokens"])

    chosen = hm.advise(found.folder, hm.Need(max_recall_loss=100), fresh=False).data
    costs = {(c.get("loss", "mle"), c.get("prefix_source", "teacher")): c["cost"] for c in chosen["candidates"]}
    drawn = {w: (c["teacher_rows"], c.get("own_rows", 0)) for w, c in costs.items() if w in took}
    assert drawn == {  # rows and held-out rows of the teacher; batches and, once, held-out rows of the student
        ("mle", "teacher"): (96 + 16, 0), ("jsd", "teacher"): (96 + 16, 0), ("jsd", "truth"): (0, 0),
        ("jsd", "student"): (0, 4 * 16 + 16),
    }  # fmt: skip
    assert costs["jsd", "student"]["own_tokens"] == took["jsd", "student"]["tokens_drawn"]
    words = " ".join(
        advice_sentences(
            {
                **chosen,
                "leader": next(
                    c["id"] for c in chosen["candidates"] if c.get("prefix_source") == "student" and not c["decoding"]
                ),
            }
        )
    )
    assert "the student distilled at temperature 1 by jsd on rows of the student" in words
    assert f"it draws {took['jsd', 'student']['tokens_drawn']:,} tokens itself" in words
    said = [line for c in advice_table(chosen).rows for line in c]
    assert "0 + 80 own" in said
    assert "distilled τ=1 by jsd on rows of the student" in said


def test_compute_pays_for_so_many_steps_and_no_more(tmp_path: Path, tiny_models: dict[str, Path]) -> None:
    nodes = fits(tmp_path, tiny_models["llama"], "compute")
    budget = nodes["mle", "teacher"].work(CAUSAL_LM, 6.0).flops
    for way in (("jsd", "teacher"), ("jsd", "truth"), ("jsd", "student")):
        node = nodes[way]
        steps = CAUSAL_LM.steps(node.level, node.data.n)[1]
        more = CAUSAL_LM.at_steps(node.context.spec, "student", steps + 1)
        one_more = replace(node, context=replace(node.context, spec=more), level=CAUSAL_LM.levels(more)[-1])
        assert node.work(CAUSAL_LM, 6.0).flops <= budget < one_more.work(CAUSAL_LM, 6.0).flops


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
        ({"budget": "seconds"}, "budget"),
        ({"student": {"init": "above", "training": {"metric_for_best_model": "jds"}}}, "did you mean 'jsd'"),
        ({"student": {"init": "above", "training": {"metric_for_best_model": "policy_gradient_token"}}}, "no value"),
    ],
)
def test_one_line(tmp_path: Path, tiny_models: dict[str, Path], chain: dict[str, Any], said: str) -> None:
    with pytest.raises(SpecError, match=said) as e:
        run(spec_of(tiny_models["llama"], **chain), tmp_path)
    assert "\n" not in str(e.value)
