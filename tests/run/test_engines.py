"""A run whose training rows a server draws: keys, records, resuming, and a server that fails."""

import json
from pathlib import Path
from typing import Any

import jsonschema
import pytest

import hydrometer as hm
from chains import lm_spec, write_spec
from hydrometer.core.errors import FolderError, SpecError
from hydrometer.core.rng import Stream
from hydrometer.models.families import parse_run_spec
from hydrometer.run.graph.plan import Plan, plan_run
from hydrometer.stages.nodes import DrawNode

pytest.importorskip("torch")

SCHEMA = json.loads((Path(__file__).parents[2] / "docs" / "results.schema.json").read_text())


def spec_of(folder: Path, engine: Any, **changes: Any) -> dict[str, Any]:
    student = {"init": {"layers_of": "truth", "layers": [0]}, "training": {"num_train_epochs": 1, "bf16": False}}
    fields = {"teacher": "truth", "student": student, "engine": engine, "decoding": [], **changes}
    return lm_spec(folder, **fields)


def draws(plan: Plan, purpose: str) -> dict[tuple[str, str, int], str]:
    """Key of every block of the truth's rows by its stream, selectivity and start."""
    return {
        ("/".join(n.stream.path), "" if n.selectivity is None else n.selectivity.label, n.start): n.key
        for n in plan.nodes.values()
        if isinstance(n, DrawNode) and n.law.kind == "truth" and n.purpose == purpose
    }


def planned(folder: Path, engine: Any, **changes: Any) -> Plan:
    return plan_run(parse_run_spec(spec_of(folder, engine, **changes), "spec"))


def test_an_engine_names_its_own_rows_and_no_others(tiny_models: dict[str, Path]) -> None:
    folder = tiny_models["llama"]
    one = {"openai": {"base_url": "http://127.0.0.1:1", "model": "tiny"}}
    native, served = planned(folder, "native"), planned(folder, one)
    assert draws(native, "judge") == draws(served, "judge")
    assert draws(native, "train").keys() == draws(served, "train").keys()
    assert not set(draws(native, "train").values()) & set(draws(served, "train").values())
    # where it is and how fast is no part of a key, what it serves is
    elsewhere = {"openai": {**one["openai"], "base_url": "http://127.0.0.1:2", "concurrency": 1, "for": ["truth"]}}
    assert planned(folder, elsewhere).nodes.keys() == served.nodes.keys()
    other = draws(planned(folder, {"openai": {**one["openai"], "model": "other"}}), "train")
    assert not set(other.values()) & set(draws(served, "train").values())


def test_keys_of_native_draws_are_those_of_before(tiny_models: dict[str, Path], monkeypatch: Any) -> None:
    """A specification that does not name an engine gives the keys that it gave when there was none."""
    from hydrometer.run.graph import stage_graph as module

    folder = tiny_models["llama"]
    now = [planned(folder, e).nodes.keys() for e in (None, "native", {"native": {}})]
    monkeypatch.setattr(module, "draw_identity", lambda *_: {})
    assert all(keys == planned(folder, None).nodes.keys() for keys in now)


def test_a_served_truth_leaves_a_fitted_teachers_rows_native(tiny_models: dict[str, Path]) -> None:
    one = {"openai": {"base_url": "http://127.0.0.1:1", "model": "tiny"}}
    fitted: dict[str, Any] = {"teacher": {"init": "truth", "training": {"num_train_epochs": 1, "bf16": False}}}
    (chain,) = planned(tiny_models["llama"], one, **fitted).chains.values()
    family: Any = chain.context.family
    assert family.draw_identity(chain.context.spec, "teacher", "train") == {}
    assert family.draw_identity(chain.context.spec, "truth", "judge") == {}
    assert family.draw_identity(chain.context.spec, "truth", "train") == {"engine": {"name": "openai", "model": "tiny"}}


def test_a_run_with_a_served_truth_is_kept_resumed_and_recorded(tmp_path: Path, tiny_models: dict[str, Path]) -> None:
    from fake_server import serving
    from hydrometer.models.causal_lm.inference.model import CausalLM

    folder = tiny_models["llama"]
    with serving(CausalLM.from_pretrained(folder)) as (url, fake):
        spec = spec_of(folder, {"openai": {"base_url": url, "model": "tiny", "concurrency": 2}})
        result = hm.run(write_spec(spec, tmp_path), out=tmp_path / "out")
    assert not result.failed_cells
    jsonschema.validate(result.results, SCHEMA)
    found = result.results["summary"]["chains"]["lm"]["engine"]
    # one entry a law: the truth as it is (train, validate, distill and validate at temperature 1), and at 0.6
    assert [(e["role"], e["selectivity"], e["rows"]) for e in found] == [
        ("truth", None, 32 + 16 + 32 + 16), ("truth", {"temperature": 0.6}, 32 + 16),
    ]  # fmt: skip
    for e in found:
        assert e["name"] == "openai"
        assert e["versions"] == ["0.0.fake"]
        assert abs(e["gap"]["value"]) < 1e-5
        assert abs(e["surprise"]["value"]) < 6 * e["surprise"]["se"]
        assert e["edge_tokens"] == 0
    sent = [a["seed"] for a in fake.asked if "stop_token_ids" in a]
    assert len(sent) == 144
    assert Stream(0, ("shared", "train", "truth", "engine", "0")).integer() in sent
    # the server is gone; another address is no other experiment, and nothing is drawn again
    spec["chains"]["lm"]["engine"]["openai"]["base_url"] = "http://127.0.0.1:1"
    again = hm.run(write_spec(spec, tmp_path), out=tmp_path / "out")
    assert not again.outcome.computed
    assert not again.failed_cells
    spec["chains"]["lm"]["engine"]["openai"]["model"] = "other"
    with pytest.raises((SpecError, FolderError), match="engine"):
        hm.run(write_spec(spec, tmp_path), out=tmp_path / "out")


def test_a_server_that_is_away_fails_its_cells_and_no_others(
    tmp_path: Path, tiny_models: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    from hydrometer.models.causal_lm.engines.client import Server

    monkeypatch.setattr(Server.ask_patiently, "__kwdefaults__", {"sleep": lambda s: None})
    spec = spec_of(tiny_models["llama"], {"openai": {"base_url": "http://127.0.0.1:1", "model": "tiny"}})
    result = hm.run(write_spec(spec, tmp_path), out=tmp_path / "out")
    cells = {c["group"]: c for c in result.results["cells"]}
    assert cells["lm.truth"]["status"] == "ok"  # evaluation rows are native
    assert cells["lm.student.direct"]["status"] == "failed"
    assert "engine openai: the server cannot be asked" in cells["lm.student.direct"]["reason"]
    assert "engine" not in result.results["summary"]["chains"]["lm"]


def test_what_an_engine_draws_otherwise_is_refused_before_the_run(
    command: Any, tmp_path: Path, tiny_models: dict[str, Path]
) -> None:
    engine = {"openai": {"base_url": "http://127.0.0.1:1", "model": "tiny"}}
    spec = spec_of(tiny_models["llama"], engine, selectivity=[{"top_p": 0.9, "min_p": 0.1}])
    code, _, err = command("run", str(write_spec(spec, tmp_path)), "--out", str(tmp_path / "out"))
    assert code == 2
    assert "min_p before top_p" in err
    assert not (tmp_path / "out").exists()
