"""An artifact of another version of its stage is never read, and never removed by a run."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import pytest

import hydrometer as hm
from chains import mixture_spec, without_names, write_spec
from hydrometer.run.graph import stage_graph
from hydrometer.stages import nodes


def forge(artifact: Path) -> None:
    """Give a judge artifact another precision, and checksums to match: a reader would take it."""
    path = artifact / "metrics.json"
    body = json.loads(path.read_bytes())
    body["precision"]["value"] = 999.0
    path.write_text(json.dumps(body))
    meta: dict[str, Any] = json.loads((artifact / "meta.json").read_bytes())
    meta["files"]["metrics.json"] = {
        "bytes": path.stat().st_size, "sha256": hashlib.sha256(path.read_bytes()).hexdigest(),
    }  # fmt: skip
    del meta["checksum"]
    meta["checksum"] = hashlib.sha256(json.dumps(meta, sort_keys=True).encode()).hexdigest()
    (artifact / "meta.json").write_text(json.dumps(meta))


def precisions(results: dict[str, Any]) -> set[float]:
    return {c["metrics"]["precision"]["value"] for c in results["cells"]}


def test_a_raised_version_computes_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    spec = write_spec(mixture_spec(1), tmp_path)
    first = hm.run(spec, out=tmp_path / "out")
    artifacts = tmp_path / "out" / "artifacts"
    judged = sorted(artifacts.glob("judge-*"))
    for artifact in judged:
        forge(artifact)
    assert precisions(hm.run(spec, out=tmp_path / "out").results) == {999.0}  # of this version: it is what it says

    monkeypatch.setitem(nodes.VERSIONS, "judge", nodes.VERSIONS["judge"] + 1)
    assert stage_graph.VERSIONS is nodes.VERSIONS
    again = hm.run(spec, out=tmp_path / "out")
    assert again.outcome.computed["judge"] == len(judged)
    assert again.outcome.reused["judge"] == 0
    assert again.outcome.computed["fit"] == 0
    assert without_names(again.results) == without_names(first.results)
    assert all(a.is_dir() for a in judged)
