"""Language models distilled by several objectives, on the teacher's and the truth's rows, in one run."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

import hydrometer as hm
from chains import lm_spec, write_spec
from hydrometer.core.errors import SpecError

pytest.importorskip("torch")


def spec_of(model: Path, **chain: Any) -> dict[str, Any]:
    spec = lm_spec(model)
    spec["chains"]["lm"] |= chain
    return spec


def run(spec: dict[str, Any], tmp_path: Path) -> hm.RunResult:
    return hm.run(write_spec(spec, tmp_path), out=tmp_path / "out")


def test_a_run_has_a_student_of_each_and_is_extended_by_more(tmp_path: Path, tiny_models: dict[str, Path]) -> None:
    first = run(spec_of(tiny_models["llama"]), tmp_path)
    methods = {"loss": ["mle", "jsd", "kl_student_teacher"], "prefixes": ["teacher", "truth"]}
    more = run(spec_of(tiny_models["llama"], **methods), tmp_path)
    assert not more.failed_cells
    cells = {c["id"]: c for c in more.results["cells"]}
    for cell in first.results["cells"]:  # what was there stays what it was
        assert cells[cell["id"]]["metrics"] == cell["metrics"]
    distilled = {c["group"]: c for c in cells.values() if c["training"] == "distilled" and c["decoding"] is None}
    said = {(c["loss"], c["prefix_source"], c["selectivity"]["temperature"]) for c in distilled.values()}
    sources = {("mle", "teacher"), ("jsd", "teacher"), ("jsd", "truth")}
    sources |= {("kl_student_teacher", "teacher"), ("kl_student_teacher", "truth")}
    assert said == {(loss, rows, t) for loss, rows in sources for t in (1.0, 0.6)}
    precisions = {name: c["metrics"]["precision"]["value"] for name, c in distilled.items()}
    assert len(set(precisions.values())) == len(precisions)
    for cell in distilled.values():
        info = json.loads((tmp_path / "out" / "artifacts" / cell["artifacts"]["fit"] / "meta.json").read_text())
        assert ("objective" in json.dumps(info)) == (cell["loss"] != "mle")
    assert run(spec_of(tiny_models["llama"], **methods), tmp_path).results["cells"] == more.results["cells"]


@pytest.mark.parametrize(
    ("chain", "said"),
    [
        ({"loss": ["jds"]}, "did you mean 'jsd'"),
        ({"loss": ["jsd(weight=2)"]}, "between 0 and 1"),
        ({"loss": ["kl_student_teacher"], "selectivity": [{"top_k": 5}]}, "drops tokens"),
        ({"prefixes": ["truth"]}, "direct student"),
        ({"loss": ["jsd"], "prefixes": ["student"]}, "prefixes"),
    ],
)
def test_one_line(tmp_path: Path, tiny_models: dict[str, Path], chain: dict[str, Any], said: str) -> None:
    with pytest.raises(SpecError, match=said) as e:
        run(spec_of(tiny_models["llama"], **chain), tmp_path)
    assert "\n" not in str(e.value)
