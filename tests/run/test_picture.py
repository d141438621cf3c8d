"""A chain's picture through a whole run: what is drawn, what is computed again, what is refused."""

from __future__ import annotations

import json
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import hydrometer as hm
from chains import lm_spec, without_timings, write_spec
from hydrometer.core.errors import MissingDependencyError, SpecError, StageError
from hydrometer.metrics import projection
from hydrometer.metrics.embeddings import mixing, spread_ratio
from hydrometer.stages import picture as stage

pytest.importorskip("torch")

CELLS = [
    "lm.truth", "lm.teacher", "lm.student.direct.seed0", "lm.student.distilled-temperature1.0.seed0",
    "lm.student.distilled-temperature0.6.seed0", "lm.student.direct.decoded-temperature0.6.seed0",
]  # fmt: skip


def run(spec: dict[str, Any], folder: Path, out: str = "out") -> hm.RunResult:
    return hm.run(write_spec(spec, folder), out=folder / out)


def shown(folder: Path, out: str = "out") -> dict[str, Any]:
    return json.loads((folder / out / "exhibits" / "lm.picture.json").read_text())


@pytest.mark.campaign
def test_a_finished_run_is_given_its_picture(tmp_path: Path, tiny_models: dict[str, Path]) -> None:
    source = tiny_models["llama"]
    before = run(lm_spec(source, seeds=2), tmp_path)
    assert not (tmp_path / "out" / "exhibits" / "lm.picture.json").exists()
    after = run(lm_spec(source, seeds=2, picture="pca"), tmp_path)
    assert dict(after.outcome.computed) == {"embed": 6, "picture": 1}
    for key in ("cells", "contrasts", "summary"):
        assert after.results[key] == before.results[key]

    exhibit = shown(tmp_path)
    assert [m["cell"] for m in exhibit["models"]] == CELLS
    assert (exhibit["rows"], exhibit["dimensions"], exhibit["method"]) == (48, 32, "pca")
    assert 0 < sum(exhibit["explained"]) <= 1
    store = tmp_path / "out" / "artifacts"
    embedded = [np.load(f)["embedding"] for f in sorted(store.glob("embed-*/embedding.npz"))]
    truth, cold = exhibit["models"][0], exhibit["models"][4]
    assert "spread_ratio" not in truth
    values = [(spread_ratio(b, a).value, mixing(b, a).value) for a in embedded for b in embedded if a is not b]
    assert (cold["spread_ratio"]["value"], cold["mixing"]["value"]) in values
    assert cold["mixing"]["se"] > 0
    for model in exhibit["models"]:
        assert len(model["x"]) == len(model["y"]) == len(model["words"]) == 48

    # the specification without a picture keeps it, and so does one with another setting, which computes its own alone
    again = run(lm_spec(source, seeds=2), tmp_path)
    assert not again.outcome.computed
    assert shown(tmp_path) == exhibit
    more = run(lm_spec(source, selectivity=[{"temperature": t} for t in (1.0, 0.8, 0.6)]), tmp_path)
    assert (more.outcome.computed["embed"], more.outcome.computed["picture"]) == (2, 1)
    assert len(shown(tmp_path)["models"]) == 8

    page = hm.build_report([tmp_path / "out"]).read_text()
    assert "Where the answers lie" in page
    assert "not densities" in page
    for kind in ("svg", "png", "pdf"):
        assert (tmp_path / "out" / "figures" / f"lm-picture.{kind}").stat().st_size > 1000


def test_without_the_extra_nothing_is_begun(
    tmp_path: Path, tiny_models: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    installed = metadata.version

    def version(name: str) -> str:
        if name == "umap-learn":
            raise metadata.PackageNotFoundError(name)
        return installed(name)

    monkeypatch.setattr(projection.metadata, "version", version)
    with pytest.raises(MissingDependencyError, match="umap-learn") as caught:
        run(lm_spec(tiny_models["llama"], picture="umap"), tmp_path)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "out").exists()
    with pytest.raises(SpecError, match="picture"):
        run(lm_spec(tiny_models["llama"], picture="tsne"), tmp_path)


@pytest.mark.campaign
def test_a_picture_that_fails_costs_no_figure_and_equal_runs_have_equal_pictures(
    tmp_path: Path, tiny_models: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: object, **__: object) -> None:
        raise StageError("the plane is <b>full</b>")

    spec = lm_spec(tiny_models["gpt2"], picture="pca")
    monkeypatch.setattr(stage, "project", broken)
    result = run(spec, tmp_path)
    assert not result.failed_cells
    assert (shown(tmp_path)["status"], shown(tmp_path)["reason"]) == ("failed", "the plane is <b>full</b>")
    page = hm.build_report([tmp_path / "out"]).read_text()
    assert "There is no picture: the plane is &lt;b&gt;full&lt;/b&gt;" in page
    assert "lm-picture" not in page
    monkeypatch.undo()
    # a failed stage is tried again
    assert dict(run(spec, tmp_path).outcome.computed) == {"picture": 1}
    assert shown(tmp_path)["status"] == "ok"
    other = run(spec, tmp_path, "other")
    assert shown(tmp_path, "other") == shown(tmp_path)
    assert without_timings(other.results) == without_timings(result.results)
