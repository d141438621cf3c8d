"""The chain of steps itself: order, purity, and what a newer release's file says to an older reader."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest

import hydrometer as hm
from hydrometer.core.errors import FolderError
from hydrometer.store import migrate as module
from hydrometer.store.migrate import SCHEMA, STEPS, migrate

OLD: dict[str, Any] = {
    "schema": 1, "name": "x", "cells": [{"id": "c", "status": "ok", "metrics": {"recall": {"value": -1.0}}}],
    "summary": {"groups": {}, "chains": {}},
}  # fmt: skip


GAINED = dict.fromkeys(("ci95", "df", "plain", "plain_se", "caution"))


def test_what_schema_1_gained_is_added_and_nothing_else() -> None:
    before = copy.deepcopy(OLD)
    found = migrate(OLD)
    assert before == OLD
    expected = copy.deepcopy(OLD)
    expected["summary"]["findings"] = []
    expected["cells"][0]["metrics"]["recall"] |= GAINED
    assert found == expected
    assert migrate(found) == found


def test_groups_gain_what_is_said_of_their_seeds() -> None:
    old = copy.deepcopy(OLD)
    old["summary"]["groups"] = {"g": {"seeds": 3, "metrics": {"recall": {"value": -1.0}}}}
    before = copy.deepcopy(old)
    group = migrate(old)["summary"]["groups"]["g"]
    assert old == before
    spread = dict.fromkeys(("median", "q25", "q75", "two_peaks", "few_seeds"))
    assert group == {"seeds": 3, "unseen": None, "metrics": {"recall": {"value": -1.0, **spread}}}
    new = copy.deepcopy(old)
    new["summary"]["groups"]["g"]["metrics"]["recall"] |= {"median": -0.5, "two_peaks": True}
    assert migrate(new)["summary"]["groups"]["g"]["metrics"]["recall"]["median"] == -0.5
    damaged = {"schema": 1, "summary": {"groups": {"g": 3, "h": {"metrics": [4]}}}}
    assert migrate(damaged)["summary"]["groups"]["g"] == 3


def test_what_is_there_stays() -> None:
    new = copy.deepcopy(OLD)
    new["summary"]["findings"] = [{"code": "x"}]
    new["cells"][0]["metrics"]["recall"] |= {**GAINED, "df": 7.5, "plain": -1.1}
    assert migrate(new) == new


def test_steps_run_from_the_file_s_schema_to_the_present_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two schemas to come: one renames a field, the next splits it."""

    def renamed(results: dict[str, Any]) -> dict[str, Any]:
        assert results["schema"] == SCHEMA + 1
        out = {k: v for k, v in results.items() if k != "name"}
        return {**out, "title": results["name"]}

    def to_next(results: dict[str, Any]) -> dict[str, Any]:
        assert results["summary"]["findings"] == []  # the earlier step has been
        return results

    def last(results: dict[str, Any]) -> dict[str, Any]:
        assert results["schema"] == SCHEMA + 2
        return {**results, "short": results["title"][:1]}

    first = STEPS[-1]
    steps = (*STEPS[:-1], lambda r: to_next(first(r)), renamed, last)
    monkeypatch.setattr(module, "STEPS", steps)
    monkeypatch.setattr(module, "SCHEMA", len(steps))
    found = migrate(OLD)
    assert (found["schema"], found["title"], found["short"], "name" in found) == (SCHEMA + 2, "x", "x", False)
    middle = migrate({"schema": SCHEMA + 1, "name": "y", "summary": {}})
    assert (middle["schema"], middle["short"]) == (SCHEMA + 2, "y")
    assert OLD["schema"] == 1


@pytest.mark.parametrize(
    ("wrote", "fix"),
    [
        ("99.1.0", "pip install 'hydrometer>=99.1.0'"),
        ("99.1.0rc2", "pip install 'hydrometer>=99.1.0rc2'"),
        (hm.__version__, f"pip install 'hydrometer>{hm.__version__}'"),
        ("0.0.1", f"pip install 'hydrometer>{hm.__version__}'"),
        ("9.9.9'; rm -rf /; '", f"pip install 'hydrometer>{hm.__version__}'"),
        (["9.9.9"], f"pip install 'hydrometer>{hm.__version__}'"),
        ("9" * 5000 + ".1.1", f"pip install 'hydrometer>{hm.__version__}'"),
        (None, f"pip install 'hydrometer>{hm.__version__}'"),
    ],
)
def test_a_newer_schema_names_what_to_install(tmp_path: Path, wrote: object, fix: str) -> None:
    (tmp_path / "results.json").write_text(json.dumps({"schema": SCHEMA + 1, "versions": {"hydrometer": wrote}}))
    for read in (hm.load_results, lambda f: hm.build_report([f])):
        with pytest.raises(FolderError) as e:
            read(tmp_path)
        assert str(e.value).endswith(fix)
        assert f"schema {SCHEMA + 1}" in str(e.value)
        assert "\n" not in str(e.value)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["results.json"]


@pytest.mark.parametrize(
    "value", [None, [], "1", {}, {"schema": "1"}, {"schema": True}, {"schema": 0}, {"schema": 1.0}]
)
def test_what_has_no_schema_is_refused(value: object) -> None:
    with pytest.raises(FolderError, match="no schema"):
        migrate(value)


@pytest.mark.parametrize(
    "part",
    [
        {"summary": 3},
        {"cells": {}},
        {"cells": [3, {"metrics": 4}, {"metrics": {"a": 5}}]},
        {"summary": {"findings": 1}},
    ],
)
def test_parts_of_another_type_are_left_to_their_readers(part: dict[str, Any]) -> None:
    assert migrate({"schema": 1, **part}) == {"schema": 1, **part}
