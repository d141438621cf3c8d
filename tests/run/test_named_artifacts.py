"""Cells name the artifacts and the truth behind them, and a run the hashes of its specifications."""

from __future__ import annotations

import json
from pathlib import Path

import jsonschema
import numpy as np

import hydrometer as hm
from chains import lm_spec, mixture_spec, write_spec

SCHEMA = json.loads((Path(__file__).parents[2] / "docs" / "results.schema.json").read_text())
CHAIN = {
    "family": "markov", "truth": {"order": 2, "vocabulary": 5, "max_new_tokens": 6}, "teacher": {"order": 1},
    "student": {"order": 0}, "data": {"train": 200, "distill": 500, "evaluate": 800},
    "selectivity": [{"temperature": 1.0}],
}  # fmt: skip


def test_cells_lead_to_what_they_are_made_of(tmp_path: Path) -> None:
    spec = mixture_spec(2)
    spec["chains"]["k"] = CHAIN
    out = tmp_path / "out"
    results = hm.run(write_spec(spec, tmp_path), out=out).results
    jsonschema.validate(results, SCHEMA)
    assert results["spec_hashes"] == [p.stem for p in sorted((out / "specs").glob("*.yaml"))]
    for cell in results["cells"]:
        made = cell["artifacts"]
        assert json.loads((out / "records" / f"{cell['id']}.json").read_text())["artifacts"] == made
        assert (out / "artifacts" / made["judge"] / "metrics.json").is_file()
        assert (made["fit"] is None) == (cell["role"] == "truth")
        if made["fit"]:
            assert (out / "artifacts" / made["fit"] / "meta.json").is_file()
        assert len(made["truth"]) == 1
        assert made["draws"] == made["scores"] == {"own": [], "truth": []}
    files = {name for c in results["cells"] for name in c["artifacts"]["truth"]}
    assert files == {f"truths/{p.name}" for p in (out / "truths").iterdir()}
    assert len(files) == 2  # once a chain, for all seeds
    (path,) = (out / "truths").glob("*.mixture.json")
    kept, given = json.loads(path.read_text()), spec["chains"]["m"]["truth"]
    assert kept["means"] == np.asarray(given["means"], float).tolist()
    page = hm.build_report([out]).read_text("utf-8")
    assert results["spec_hashes"][0] in page[page.index('id="provenance"') :]


def test_a_deleted_or_altered_truth_is_written_again_as_it_was(tmp_path: Path) -> None:
    path, out = write_spec(mixture_spec(1), tmp_path), tmp_path / "out"
    first = hm.run(path, out=out).results
    (kept,) = (out / "truths").iterdir()
    before = kept.read_bytes()
    for spoil in (kept.unlink, lambda: kept.write_bytes(before[:-9])):
        spoil()
        assert hm.run(path, out=out).results["cells"] == first["cells"]
        assert kept.read_bytes() == before


def test_cells_of_a_map_name_their_point(tmp_path: Path) -> None:
    out = tmp_path / "out"
    results = hm.run(write_spec(mixture_spec(2, grid={"student": [1, 2]}), tmp_path), out=out).results
    jsonschema.validate(results, SCHEMA)
    named = {c["artifacts"]["map"] for c in results["cells"]}
    assert named == {p.name for p in (out / "artifacts").glob("map-*")}
    assert not (out / "truths").exists()


def test_cells_of_language_models_name_rows_and_scores(tmp_path: Path, tiny_models: dict[str, Path]) -> None:
    out = tmp_path / "out"
    results = hm.run(write_spec(lm_spec(tiny_models["llama"]), tmp_path), out=out).results
    jsonschema.validate(results, SCHEMA)
    for cell in results["cells"]:
        made = cell["artifacts"]
        named = [made["judge"], *filter(None, [made["fit"]])]
        named += [n for kind in ("draws", "scores") for side in ("own", "truth") for n in made[kind][side]]
        assert all((out / "artifacts" / n / "meta.json").is_file() for n in named)
        assert made["draws"]["own"]
        assert made["draws"]["truth"]
        assert made["scores"]["truth"]
        assert bool(made["scores"]["own"]) == (cell["role"] != "truth")
        assert made["truth"] == []
