"""Run folders from somebody else: read, mended and reported on without leaving them."""

from __future__ import annotations

import csv
import hashlib
import io
import json
import os
import pickle
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from rich.console import Console

from hostile.strategies import JUNK, TEXTS
from hydrometer.core.errors import FolderError, HydrometerError, StoreError
from hydrometer.core.findings import note
from hydrometer.core.io.arrays import map_array, open_arrays
from hydrometer.core.io.files import file_digest
from hydrometer.core.io.locking import hold
from hydrometer.models.rows.kept_laws import load_kept
from hydrometer.models.rows.sequences import load_sequences
from hydrometer.report import build_report, summary_table
from hydrometer.report.read_results import read_run
from hydrometer.run.api import run
from hydrometer.run.graph.adopted import read_adopted
from hydrometer.run.graph.reopen import _recorded
from hydrometer.run.preflight import diagnosis
from hydrometer.run.results.user_scores import read_scores
from hydrometer.stages.judge_files import load_law_on_truth, load_metrics
from hydrometer.stages.map_point import load_map
from hydrometer.stages.picture import load_picture
from hydrometer.stages.statistics.summary import load_released
from hydrometer.store.artifacts import ArtifactStore, content_key
from hydrometer.store.records import RunFolder, load_results

KEY = content_key("x")


@pytest.fixture
def store(tmp_path: Path) -> ArtifactStore:
    store = ArtifactStore(tmp_path / "artifacts")
    with store.write("draw", KEY, {}) as (folder, _):
        (folder / "a.txt").write_text("a")
    return ArtifactStore(store.root)


@pytest.fixture
def precious(tmp_path: Path) -> Path:
    folder = tmp_path / "precious"
    folder.mkdir()
    (folder / "kept.txt").write_text("kept")
    return folder


@pytest.fixture(scope="session")
def results(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    out = tmp_path_factory.mktemp("hostile-run")
    small = [
        "seeds=2",
        "chains.markov.data.train=50",
        "chains.markov.data.evaluate=50",
        "chains.markov.data.distill=50",
    ]
    return run("markov", out=out, overrides=[*small, "chains.markov.selectivity=[{temperature: 1}]"]).results


# artifacts -----------------------------------------------------------------------------------------------------------


def test_a_damaged_artifact_that_is_a_link_loses_the_link_alone(store: ArtifactStore, precious: Path) -> None:
    link = store.path("draw", KEY).with_name(f"fit-{KEY}")
    link.symlink_to(precious)
    assert not store.has("fit", KEY)
    assert not link.is_symlink()
    assert (precious / "kept.txt").read_text() == "kept"


def test_a_whole_artifact_that_is_a_link_is_none(store: ArtifactStore) -> None:
    real = store.path("draw", KEY).rename(store.root / "elsewhere")
    store.path("draw", KEY).symlink_to(real)
    assert not store.has("draw", KEY)
    assert (real / "a.txt").read_text() == "a"


@pytest.mark.parametrize("name", ["../../precious/kept.txt", "ABSOLUTE", "", ".", "a\0b", "link.txt"])
def test_files_of_an_artifact_lie_in_it(name: str, store: ArtifactStore, precious: Path) -> None:
    folder, target = store.path("draw", KEY), precious / "kept.txt"
    (folder / "link.txt").symlink_to(target)

    def listed(file: str) -> bool:
        meta = {"stage": "draw", "key": KEY, "files": {file: {"bytes": 4, "sha256": file_digest(target)}}}
        meta["checksum"] = hashlib.sha256(json.dumps(meta, sort_keys=True).encode()).hexdigest()
        (folder / "meta.json").write_text(json.dumps(meta))
        return ArtifactStore(store.root).has("draw", KEY)

    (folder / "a.txt").write_text("kept")
    assert listed("a.txt")
    assert not listed(str(target) if name == "ABSOLUTE" else name)
    assert target.read_text() == "kept"


def test_what_a_killed_run_left_is_swept_and_what_it_links_to_is_not(store: ArtifactStore, precious: Path) -> None:
    (store.root / ".tmp-link").symlink_to(precious)
    (store.root / ".tmp-folder").mkdir()
    (store.root / ".tmp-folder" / "inner").symlink_to(precious)
    store.sweep()
    assert not list(store.root.glob(".tmp-*"))
    assert (precious / "kept.txt").read_text() == "kept"


@pytest.mark.parametrize("part", ["specs", "records", "exhibits", "artifacts", "scores", "adopted", "figures"])
def test_parts_of_a_run_folder_are_no_links(part: str, tmp_path: Path, precious: Path, line_of: Any) -> None:
    (tmp_path / "run" / "specs").mkdir(parents=True)
    if part == "specs":
        (tmp_path / "run" / "specs").rmdir()
    (tmp_path / "run" / part).symlink_to(precious)
    with pytest.raises(FolderError) as caught:
        RunFolder(tmp_path / "run")
    assert "is a link" in line_of(caught.value)


def test_the_lock_does_not_truncate_what_it_links_to(tmp_path: Path, precious: Path) -> None:
    (tmp_path / ".lock").symlink_to(precious / "kept.txt")
    with pytest.raises(FolderError, match="lock"), hold(tmp_path):
        pass
    assert (precious / "kept.txt").read_text() == "kept"


# arrays --------------------------------------------------------------------------------------------------------------


class _Payload:
    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.mark,)


def _npz(path: Path, content: bytes, kind: int = zipfile.ZIP_STORED) -> None:
    with zipfile.ZipFile(path, "w", kind) as archive:
        archive.writestr("a.npy", content)


def _npy(shape: tuple[int, ...], dtype: str, data: bytes) -> bytes:
    out = io.BytesIO()
    np.lib.format.write_array_header_1_0(out, {"descr": dtype, "fortran_order": False, "shape": shape})
    return out.getvalue() + data


def _headed(text: str) -> bytes:
    """An array of eight bytes under a header of somebody's own."""
    return b"\x93NUMPY\x01\x00" + len(text).to_bytes(2, "little") + text.encode() + bytes(8)


def test_arrays_hold_numbers_as_many_as_their_file(tmp_path: Path, line_of: Any) -> None:
    objects = np.empty(1, object)
    objects[0] = _Payload(tmp_path / "ran")
    np.savez(tmp_path / "objects.npz", a=objects)
    np.savez_compressed(tmp_path / "packed.npz", a=np.zeros(10**6))
    _npz(tmp_path / "huge.npz", _npy((2**40, 2**20), "<f8", b"12345678"))
    _npz(tmp_path / "negative.npz", _npy((-1,), "<f8", b"12345678"))
    _npz(tmp_path / "negative-twice.npz", _npy((-1, -1), "<f8", b"12345678"))
    _npz(tmp_path / "endless.npz", _npy((0, 2**70), "<f8", b""))
    _npz(tmp_path / "cut.npz", _headed("{'descr': '<f8', 'fortran_order': False, 'shape': (1,"))
    _npz(tmp_path / "deep.npz", _headed("-" * 9000 + "1"))
    _npz(tmp_path / "tuple.npz", _headed("{'descr': ('<f8',), 'fortran_order': False, 'shape': (1,)}"))
    np.savez(tmp_path / "other.npz", b=np.arange(3))
    _npz(tmp_path / "empty.npz", b"")
    _npz(tmp_path / "pickle.npz", pickle.dumps(_Payload(tmp_path / "ran")))
    (tmp_path / "text.npz").write_text("no archive")
    (tmp_path / "bare.npz").write_bytes(_npy((1,), "|O", pickle.dumps(_Payload(tmp_path / "ran"))))
    for file in sorted(tmp_path.glob("*.npz")):
        with pytest.raises(StoreError) as caught, open_arrays(file) as arrays:
            arrays["a"]
        line_of(caught.value)
    assert not (tmp_path / "ran").exists()
    np.savez(tmp_path / "sound.npz", a=np.arange(6.0).reshape(2, 3), b=np.array(True), c=np.empty((0, 3)))
    with open_arrays(tmp_path / "sound.npz") as arrays:
        assert arrays["a"].tolist() == [[0, 1, 2], [3, 4, 5]]
        assert arrays["c"].shape == (0, 3)


def test_mapped_arrays_are_numbers_that_their_file_holds(tmp_path: Path, line_of: Any) -> None:
    files = {
        "objects": _npy((1,), "|O", pickle.dumps(_Payload(tmp_path / "ran"))),
        "long": _npy((2**40,), "<f8", b"\0" * 8),
        "negative": _npy((-1,), "<f8", b"\0" * 8),
        "dates": _npy((1,), "<M8[s]", b"\0" * 8),
        "text": b"no array",
        "empty": b"",
    }
    for name, raw in files.items():
        (tmp_path / f"{name}.npy").write_bytes(raw)
        with pytest.raises(StoreError) as caught:
            map_array(tmp_path / f"{name}.npy")
        line_of(caught.value)
    assert not (tmp_path / "ran").exists()
    np.save(tmp_path / "sound.npy", np.arange(6.0).reshape(2, 3))
    assert map_array(tmp_path / "sound.npy").tolist() == [[0, 1, 2], [3, 4, 5]]


def test_kept_laws_are_of_unsigned_ids_and_float32(tmp_path: Path, line_of: Any) -> None:
    sound = {
        "ids": np.zeros((3, 2), np.uint8), "rest": np.zeros(3, np.float32), "log_p": np.zeros((3, 2), np.float32),
        "whole_at": np.array([0, 2]), "whole": np.zeros((2, 5), np.float32),
    }  # fmt: skip
    wrong: list[dict[str, Any]] = [
        {"ids": np.full((3, 2), -130)}, {"ids": np.full((3, 2), np.nan)}, {"ids": np.zeros(3, np.uint8)},
        {"rest": np.zeros(3)}, {"log_p": np.zeros((3, 2), np.int64)}, {"log_p": np.zeros((3, 1), np.float32)},
        {"whole_at": np.array([0, 3])}, {"whole_at": np.array([-1, 0])}, {"whole_at": np.array([0])},
        {"whole_at": None},
    ]  # fmt: skip
    for i, changed in enumerate([{}, *wrong]):
        (folder := tmp_path / f"{i}").mkdir()
        for name, array in (sound | changed).items():
            if array is not None:
                np.save(folder / f"{name}.npy", array)
        if not changed:
            assert load_kept(folder).whole_at is not None
            continue
        with pytest.raises(StoreError) as caught:
            load_kept(folder)
        line_of(caught.value)


def test_no_module_reads_pickles_or_unbounded_yaml() -> None:
    import hydrometer

    for file in Path(hydrometer.__file__).parent.rglob("*.py"):
        source = file.read_text("utf-8")
        if file.name in (
            "arithmetic.py",
            "rank.py",
            "ranks.py",
            "task_payload.py",
        ):  # said to this program's own processes
            source = source.replace("import pickle", "", 1)
        for word in (
            "import pickle",
            "torch.load",
            "allow_pickle=True",
            "trust_remote_code=True",
            "yaml.load",
            "safe_load(",
        ):
            assert word not in source, f"{file}: {word}"
        assert "np.load(" not in source or file.name == "arrays.py", file


# figures, rows and findings of artifacts ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    "text",
    [
        "", "[" * 100_000, "[]", "9" * 5000, '{"groups": ["a"], "figures": [1], "direct": 1, "precision": 1}',
        '{"groups": 1, "direct": {}, "precision": {"value": [], "se": 0, "se_mc": 0, "n": 1}}',
        '{"groups": [1, 2], "figures": [["a", "mc", "b"]], "precision": {"value": 0, "se": 0, "se_mc": 0, "n": "1"}}',
    ],
)  # fmt: skip
def test_figures_that_no_stage_wrote(text: str, tmp_path: Path, line_of: Any) -> None:
    for name in ("metrics", "released", "figures"):
        (tmp_path / f"{name}.json").write_text(text)
    np.savez(tmp_path / "figures.npz", **{f: np.ones((1, 1, 1)) for f in ("value", "se", "se_mc", "n", "n_neg_inf")})
    for read in (load_metrics, load_released, load_map):
        with pytest.raises(StoreError) as caught:
            read(tmp_path)
        line_of(caught.value)


@pytest.mark.parametrize("text", ["", "[" * 100_000, "[]", "9" * 5000])
def test_pictures_that_no_stage_wrote(text: str, tmp_path: Path, line_of: Any) -> None:
    (tmp_path / "picture.json").write_text(text)
    with pytest.raises(StoreError) as caught:
        load_picture(tmp_path)
    line_of(caught.value)


def test_columns_that_no_stage_wrote(tmp_path: Path, line_of: Any) -> None:
    for columns in ({}, {"law_on_truth": np.zeros((2, 2))}, {"law_on_truth": np.arange(2)}):
        np.savez(tmp_path / "rows.npz", **columns)
        with pytest.raises(StoreError) as caught:
            load_law_on_truth(tmp_path)
        line_of(caught.value)


@pytest.mark.parametrize(
    "change",
    [
        {"ids": [1, 2]}, {"ids": [["a"], ["b"]]}, {"prompt": [0, 1]}, {"prompt": [-1, 0]},
        {"prompt": ["a", "b"]}, {"log_prob": ["a", "b"]}, {"log_prob": [[1.0], [2.0]]}, {"near_edge": ["a", "b"]},
    ],
)  # fmt: skip
def test_rows_that_no_stage_wrote(change: dict[str, Any], tmp_path: Path, line_of: Any) -> None:
    rows = {"prompt": [0, 0], "ids": [[1], [2]], "finish_reason": ["stop", "length"], "log_prob": [-1.0, -2.0]}
    pq.write_table(pa.table({"ids": [[5]]}), tmp_path / "rows.prompts.parquet")
    pq.write_table(pa.table(rows), tmp_path / "rows.parquet")
    assert load_sequences(tmp_path / "rows.parquet").ids.tolist() == [[1], [2]]
    pq.write_table(pa.table(rows | change), tmp_path / "rows.parquet")
    with pytest.raises(StoreError) as caught:
        load_sequences(tmp_path / "rows.parquet")
    line_of(caught.value)


def test_findings_that_were_altered_are_found_again(tmp_path: Path) -> None:
    """Read as they are, they would be kept once more, with a checksum that fits."""
    store = ArtifactStore(tmp_path)
    diagnosis.keep(store, diagnosis.Diagnosis((), (), {KEY: (note("code", "what", "why", "fix"),)}))
    assert diagnosis._kept(tmp_path, KEY) == (note("code", "what", "why", "fix"),)
    file = store.path(diagnosis.STAGE, KEY) / "findings.json"
    file.write_text(file.read_text().replace('"why":"why"', '"why":"who"'))
    assert diagnosis._kept(tmp_path, KEY) is None
    assert file.is_file()


# books ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "text", ["a: &a [*a]", "[" * 5000, "!!python/object/apply:os.system [id]", "- 1", "\x00", "a: 0x" + "f" * 999]
)
def test_accepted_specifications_and_adopted_entries(text: str, tmp_path: Path, line_of: Any) -> None:
    for part in ("specs", "adopted"):
        (tmp_path / part).mkdir()
        (tmp_path / part / "x.yaml").write_text(text)
    folder = RunFolder(tmp_path)
    for read in (folder.accepted, lambda: read_adopted(folder)):
        with pytest.raises(FolderError) as caught:
            read()
        assert "x.yaml" in line_of(caught.value)


FIGURE = {"value": 1.0, "se": None, "se_mc": None, "n": 1, "n_neg_inf": 0, "method": "mc", "unit": "score", "df": None}


@settings(derandomize=True, database=None, deadline=None, suppress_health_check=list(HealthCheck))
@given(key=st.sampled_from([*FIGURE, "more"]), value=JUNK, name=TEXTS)
def test_scores_files(key: str, value: Any, name: str, tmp_path: Path, line_of: Any) -> None:
    (tmp_path / "specs").mkdir(exist_ok=True)
    (tmp_path / "scores").mkdir(exist_ok=True)
    item = {"figure": FIGURE | {key: value}, "rows": None, "source": "x"}
    try:
        text = json.dumps({"cell": "c", "metrics": {name: item, "user_x": item}})
    except ValueError:  # more digits than are written out
        return
    (tmp_path / "scores" / "c.json").write_text(text)
    try:
        found = read_scores(RunFolder(tmp_path))["c"].metrics
    except FolderError as e:
        line_of(e)
    else:
        assert all(n[0].isalpha() for n in found)


@pytest.mark.parametrize("text", ["[" * 100_000, "{", "[]", '{"schema": 2}', "\x00", "9" * 5000, '{"schema": 1'])
def test_results_that_are_none(text: str, tmp_path: Path, line_of: Any) -> None:
    (tmp_path / "results.json").write_text(text)
    for read in (load_results, read_run):
        with pytest.raises(HydrometerError) as caught:
            read(tmp_path)
        line_of(caught.value)


@pytest.mark.parametrize(
    "body",
    [
        {}, {"summary": 1, "cells": []}, {"summary": {}, "cells": [1]}, {"summary": {"findings": 0}, "cells": []},
        {"summary": {}, "cells": 5}, {"summary": {}, "cells": [{"id": []}]}, {"summary": {}, "cells": [{"id": "a"}]},
    ],
)  # fmt: skip
def test_results_that_cannot_be_gone_on_with(body: dict[str, Any], tmp_path: Path, line_of: Any) -> None:
    (tmp_path / "specs").mkdir()
    (tmp_path / "results.json").write_text(json.dumps({"schema": 1, **body}))
    with pytest.raises(FolderError) as caught:
        _recorded(RunFolder(tmp_path))
    line_of(caught.value)


def _paths(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [path, *(p for k, v in inner for p in _paths(v, (*path, k)))]


@settings(
    max_examples=60,
    derandomize=True,
    database=None,
    deadline=None,
    suppress_health_check=list(HealthCheck),
    phases=[Phase.generate],
)
@given(data=st.data())
def test_results_of_somebody_else_are_shown_or_refused(
    data: st.DataObject, results: dict[str, Any], line_of: Any
) -> None:
    body = json.loads(json.dumps(results))
    for _ in range(data.draw(st.integers(1, 4))):
        path = data.draw(st.sampled_from([p for p in _paths(body) if p]))
        here = body
        for part in path[:-1]:
            here = here[part]
        here[path[-1]] = data.draw(JUNK)
    out = io.StringIO()
    try:
        Console(file=out, width=100).print(summary_table(body))
    except HydrometerError as e:
        line_of(e)
    assert all(c == "\n" or c.isprintable() for c in out.getvalue())


def test_markup_and_escapes_of_a_run_do_not_reach_page_or_terminal(results: dict[str, Any], tmp_path: Path) -> None:
    evil = "</script><script>alert(1)</script>\x1b[31m\u202e<img src=x onerror=alert(1)>"

    def poison(value: Any, key: str = "") -> Any:
        if isinstance(value, dict):
            return {k: poison(v, k) for k, v in value.items()}
        if isinstance(value, list):
            return [poison(v, key) for v in value]
        shown = ("reason", "truth", "name", "python", "description", "unit", "why", "what")
        return evil if isinstance(value, str) and key in shown else value

    (tmp_path / "results.json").write_text(json.dumps(poison(results)))
    page = build_report([tmp_path]).read_text("utf-8")
    assert "<script>alert" not in page
    assert "<img" not in page
    assert "\x1b" not in page
    assert "\u202e" not in page
    assert "alert(1)" in page  # it was shown, as text


def test_no_field_of_the_table_of_results_begins_a_formula(results: dict[str, Any], tmp_path: Path) -> None:
    folder = RunFolder(tmp_path / "run")
    folder.create()
    folder.write_results(results)
    for line in (tmp_path / "run" / "results.csv").read_text().splitlines():
        for field in line.split(","):
            is_number = field.lstrip("-").replace(".", "").replace("e-", "").isdecimal()
            assert is_number or not field.strip('"').startswith(("=", "+", "-", "@", "\t"))


# pipes, links and numbers without end --------------------------------------------------------------------------------


def test_pipes_and_devices_in_a_run_folder_are_not_waited_for(tmp_path: Path, line_of: Any) -> None:
    for part in ("specs", "adopted", "scores"):
        (tmp_path / part).mkdir()
    books = RunFolder(tmp_path)
    for read, name in (
        (lambda: load_results(tmp_path), "results.json"), (lambda: read_run(tmp_path), "results.json"),
        (books.accepted, "specs/x.yaml"), (lambda: read_adopted(books), "adopted/x.yaml"),
        (lambda: read_scores(books), "scores/x.json"),
    ):  # fmt: skip
        path = tmp_path / name
        for make in (os.mkfifo, lambda p: Path(p).symlink_to("/dev/zero")):
            make(path)
            with pytest.raises(FolderError) as caught:
                read()
            assert "no plain file" in line_of(caught.value)
            path.unlink()


def test_an_artifact_with_a_pipe_in_it_is_none(store: ArtifactStore) -> None:
    for name in ("meta.json", "a.txt"):
        with store.write("fit", KEY, {}) as (folder, _):
            (folder / "a.txt").write_text("")
        (store.path("fit", KEY) / name).unlink()
        os.mkfifo(store.path("fit", KEY) / name)
        assert not ArtifactStore(store.root).has("fit", KEY)


def test_a_pipe_in_the_place_of_a_record_is_written_over(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path / "run")
    folder.create()
    os.mkfifo(tmp_path / "run" / "records" / "a.json")
    folder.put("records", "a", {"id": "a"})
    assert json.loads((tmp_path / "run" / "records" / "a.json").read_text()) == {"id": "a"}


def test_figures_are_not_written_through_a_link(results: dict[str, Any], tmp_path: Path, line_of: Any) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "precious").mkdir()
    (tmp_path / "run" / "results.json").write_text(json.dumps(results))
    (tmp_path / "run" / "figures").symlink_to(tmp_path / "precious")
    with pytest.raises(FolderError) as caught:
        build_report([tmp_path / "run"])
    assert "figures in the run's folder is a link" in line_of(caught.value)
    assert not list((tmp_path / "precious").iterdir())


def test_numbers_and_depths_that_nothing_holds(results: dict[str, Any], tmp_path: Path) -> None:
    body = json.loads(json.dumps(results))
    body["cells"][0]["seed"], body["cells"][1]["seed"] = "inf", 10**400
    body["summary"]["groups"]["markov.truth"]["metrics"]["entropy"] |= {"value": 10**400, "se": 10**400}
    deep: Any = {}
    for _ in range(450):
        deep = {"a": deep}
    body["specs"] = [deep]
    (tmp_path / "results.json").write_text(json.dumps(body))
    (tmp_path / "exhibits").mkdir()
    for cell in body["cells"]:
        (tmp_path / "exhibits" / f"{cell['id']}.json").symlink_to(f"{cell['id']}.json")
    body["cells"][0]["id"], body["cells"][1]["id"] = "x" * 5000, "\ud800"
    (tmp_path / "results.json").write_text(json.dumps(body))
    page = build_report([tmp_path]).read_text("utf-8")
    assert "nested too deeply to be shown" in page


def test_a_unit_is_no_formula(results: dict[str, Any], tmp_path: Path) -> None:
    folder = RunFolder(tmp_path / "run")
    folder.create()
    body = json.loads(json.dumps(results))
    for metric in body["cells"][0]["metrics"].values():
        metric |= {"unit": "=HYPERLINK(1)", "value": -1.5, "se": "-inf"}
    folder.write_results(body)
    rows = list(csv.DictReader((tmp_path / "run" / "results.csv").read_text().splitlines()))
    assert {(r["unit"], r["value"], r["se"]) for r in rows[: len(body["cells"][0]["metrics"])]} == {
        ("'=HYPERLINK(1)", "-1.5", "-inf")
    }
