import json
import multiprocessing
import os
import shutil
import subprocess

import numpy as np
import pytest

from hydrometer.core.errors import FolderError, SpecError, StoreError
from hydrometer.core.io.files import mark, write_atomic
from hydrometer.core.io.locking import hold
from hydrometer.store.artifacts import ArtifactStore, content_key
from hydrometer.store.records import RunFolder, load_results, plain


def put(store: ArtifactStore, key: str = "k", text: str = "hello") -> None:
    with store.write("draw", key, {"inputs": []}) as (folder, info):
        (folder / "x.txt").write_text(text)
        (folder / "deep").mkdir()
        (folder / "deep" / "y.bin").write_bytes(os.urandom(100))
        info["rows"] = 1


def test_an_artifact_appears_whole_or_not_at_all(tmp_path) -> None:
    store = ArtifactStore(tmp_path)

    def fail_half_way() -> None:
        with store.write("draw", "k", {}) as (folder, _):
            (folder / "x").write_text("half")
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail_half_way()
    assert not store.has("draw", "k")
    assert list(tmp_path.iterdir()) == []
    put(store)
    assert store.has("draw", "k")
    assert store.meta("draw", "k")["info"] == {"rows": 1}


@pytest.mark.parametrize("damage", ["truncate", "flip", "missing", "meta", "meta-gone", "meta-list"])
def test_damage_is_seen_and_removed(tmp_path, damage: str) -> None:
    put(ArtifactStore(tmp_path))
    file, meta = tmp_path / "draw-k" / "deep" / "y.bin", tmp_path / "draw-k" / "meta.json"
    raw = file.read_bytes()
    match damage:
        case "truncate":
            file.write_bytes(raw[:-1])
        case "flip":
            file.write_bytes(raw[:-1] + bytes([raw[-1] ^ 1]))
        case "missing":
            file.unlink()
        case "meta":
            meta.write_text("{")
        case "meta-list":
            meta.write_text("[]")
        case _:
            meta.unlink()
    store = ArtifactStore(tmp_path)
    assert not store.has("draw", "k")
    assert not (tmp_path / "draw-k").exists()
    put(store)
    assert ArtifactStore(tmp_path).has("draw", "k")


def test_an_artifact_under_another_name_is_not_taken(tmp_path) -> None:
    put(ArtifactStore(tmp_path))
    shutil.copytree(tmp_path / "draw-k", tmp_path / "draw-other")
    assert not ArtifactStore(tmp_path).has("draw", "other")


def test_leftovers_are_swept(tmp_path) -> None:
    (tmp_path / ".tmp-fit-abc-123").mkdir()
    (tmp_path / ".tmp-fit-abc-123" / "x").write_text("")
    ArtifactStore(tmp_path).sweep()
    assert list(tmp_path.iterdir()) == []


def test_a_sweep_leaves_what_a_living_process_works_on(tmp_path) -> None:
    """A run with another folder may name this one as its cache; the folder's lock does not keep it out."""
    other = subprocess.Popen(["sleep", "60"])
    begun = tmp_path / f".tmp-fit-abc-{other.pid}@{mark().partition('@')[2]}"
    mine = tmp_path / f".tmp-fit-abc-{mark()}"  # of an earlier process of this number: a sweep comes before all work
    try:
        begun.mkdir()
        mine.mkdir()
        ArtifactStore(tmp_path).sweep()
        assert list(tmp_path.iterdir()) == [begun]
    finally:
        other.kill()
        other.wait()
    ArtifactStore(tmp_path).sweep()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("change", [{"seconds": None}, {"seconds": "long"}, {"info": []}])
def test_facts_are_what_a_stage_writes(tmp_path, change: dict[str, object]) -> None:
    put(ArtifactStore(tmp_path))
    meta = tmp_path / "draw-k" / "meta.json"
    meta.write_text(json.dumps(json.loads(meta.read_bytes()) | change))
    with pytest.raises(StoreError, match="no readable"):
        ArtifactStore(tmp_path).meta("draw", "k")


def test_a_specification_that_could_not_be_read_again_is_not_kept(tmp_path) -> None:
    folder = RunFolder(tmp_path / "run")
    folder.create()
    with pytest.raises(SpecError, match="defaults written out"):
        folder.accept({"spec": 2**300})
    assert folder.accepted() == []


def test_keys_do_not_depend_on_order_and_do_on_content() -> None:
    assert content_key({"a": 1, "b": [1.5]}) == content_key({"b": [1.5], "a": 1})
    assert content_key({"a": 1}) != content_key({"a": 2})
    assert content_key({"a": 0.1}) != content_key({"a": 0.1 + 2**-53})


def _hold_and_wait(folder, ready, go) -> None:
    with hold(folder):
        ready.set()
        go.wait(20)


def test_a_second_run_is_told_who_holds_the_folder(tmp_path) -> None:
    context = multiprocessing.get_context("spawn")
    ready, go = context.Event(), context.Event()
    other = context.Process(target=_hold_and_wait, args=(tmp_path, ready, go))
    other.start()
    try:
        assert ready.wait(20)
        with pytest.raises(FolderError, match=str(other.pid)), hold(tmp_path):
            pass
    finally:
        go.set()
        other.join(20)
    with hold(tmp_path):
        pass


def test_a_file_or_foreign_folder_is_refused(tmp_path) -> None:
    (tmp_path / "file").write_text("mine")
    with pytest.raises(FolderError, match="is a file"):
        RunFolder(tmp_path / "file")
    with pytest.raises(FolderError, match="holds no run"):
        RunFolder(tmp_path)
    assert (tmp_path / "file").read_text() == "mine"


def test_records_hold_no_nan_and_write_infinity_as_a_string() -> None:
    assert plain({"a": np.float64("inf"), "b": (1, np.int64(2))}) == {"a": "inf", "b": [1, 2]}
    with pytest.raises(StoreError):
        plain({"a": float("nan")})


def test_write_atomic_leaves_the_old_file_where_it_cannot_write(tmp_path) -> None:
    write_atomic(tmp_path / "a", "old")
    with pytest.raises(FolderError):
        write_atomic(tmp_path / "missing" / "a", "new")
    assert (tmp_path / "a").read_text() == "old"
    assert [p.name for p in tmp_path.iterdir()] == ["a"]


@pytest.mark.parametrize("text", [None, "{", "[]", json.dumps({"schema": 99})])
def test_results_of_another_kind_are_refused(tmp_path, text: str | None) -> None:
    if text is not None:
        (tmp_path / "results.json").write_text(text)
    with pytest.raises(FolderError):
        load_results(tmp_path)
