"""Folders of earlier releases: the present one reads them, goes on with them, or says in one line why not."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import jsonschema
import pytest

import hydrometer as hm
from chains import without_timings
from hydrometer.core.statistics.estimate import Estimate
from hydrometer.report import verdict
from hydrometer.report.read_results import read_run
from hydrometer.stages.nodes import VERSIONS
from migration.kept import KEPT, NEEDS_TORCH, Kept, unpack

SCHEMA = json.loads((Path(__file__).parents[2] / "docs" / "results.schema.json").read_text())


def figures(results: dict[str, Any]) -> dict[tuple[str, str], object]:
    return {(c["id"], name): m["value"] for c in results["cells"] for name, m in c["metrics"].items()}


def test_every_schema_there_was_is_kept() -> None:
    from hydrometer.store.migrate import SCHEMA as present

    assert {int(name.removeprefix("schema").split("-")[0]) for name in KEPT} == set(range(1, present + 1))


@pytest.mark.smoke
def test_results_are_read_as_the_present_release_writes_them(kept: Kept) -> None:
    found = hm.load_results(kept.run)
    jsonschema.validate(found, SCHEMA)
    assert isinstance(found["summary"]["findings"], list)
    for cell in found["cells"]:
        for metric in cell["metrics"].values():
            assert set(metric) == set(SCHEMA["$defs"]["metric"]["properties"])
            Estimate.from_json(metric)
    assert figures(found) == figures(kept.written)  # nothing is made up or lost
    assert (kept.run / "results.json").read_bytes() == json.dumps(kept.written, indent=1).encode() + b"\n"


def test_it_is_told_in_words(kept: Kept) -> None:
    run = read_run(kept.run)
    assert list(run.chains) == list(kept.written["summary"]["chains"])
    assert len(run.cells) == len(kept.written["cells"])
    said = verdict(hm.load_results(kept.run))
    assert all(len(sentences) >= 2 for sentences in said.values())
    assert said == verdict(kept.written)  # the report migrates by itself


def test_a_page_is_made_of_the_oldest(tmp_path: Path) -> None:
    old = unpack("schema1-mixture", tmp_path)
    page = hm.build_report([old.run]).read_text("utf-8")
    assert all(c["group"].split(".")[0] in page for c in old.written["cells"])
    assert page.count("<svg") > 1


def test_advice_on_what_older_stages_judged_asks_for_the_run_again(tmp_path: Path) -> None:
    old = unpack("schema1-mixture", tmp_path)
    with pytest.raises(hm.FolderError, match="run it again"):
        hm.advise([old.run], fresh=False)
    hm.run(old.spec, out=old.run)
    assert len(hm.advise([old.run], fresh=False).data["candidates"]) == 3


def test_running_it_again_gives_what_a_new_folder_gives(kept: Kept) -> None:
    """Artifacts of stages that have changed since are not read."""
    if kept.name in NEEDS_TORCH:
        pytest.importorskip("torch")
    before = {p.name for p in (kept.run / "artifacts").iterdir()}
    again = hm.run(kept.spec, out=kept.run)
    fresh = hm.run(kept.spec, out=kept.run.parent / "fresh")
    assert without_timings(again.results) == without_timings(fresh.results)
    changed = {s for s, v in VERSIONS.items() if kept.made["stages"].get(s) != v}
    assert not changed & set(again.outcome.reused)
    assert before <= {p.name for p in (kept.run / "artifacts").iterdir()}


def test_it_can_be_extended_by_a_seed(tmp_path: Path) -> None:
    old = unpack("schema1-mixture", tmp_path)
    before = {c["id"] for c in old.written["cells"]}
    result = hm.run(old.spec, out=old.run, overrides=["seeds=3"])
    assert {c["seed"] for c in result.results["cells"]} == {0, 1, 2}
    assert not result.failed_cells
    assert before < {c["id"] for c in result.results["cells"]}


def test_rows_of_an_older_language_model_run_are_exported_once_it_is_run_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("torch")
    monkeypatch.chdir(tmp_path)
    old = unpack("schema1-engine", tmp_path)
    hm.run(old.spec, out=old.run, until="draw")
    exported = hm.export(old.run, to=tmp_path / "rows.jsonl", format="text")
    assert exported.rows == len((tmp_path / "rows.jsonl").read_text().splitlines()) == 16
