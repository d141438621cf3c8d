import contextlib
import hashlib
import json
import os
import pickle
import socket
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest

from hydrometer.core.errors import FolderError, StoreError, UnreachableError
from hydrometer.core.io.files import mark
from hydrometer.store import artifacts
from hydrometer.store.artifacts import META, ArtifactStore
from hydrometer.store.remote import RemoteArtifacts, open_store

KEY = "0" * 32


def put(store: ArtifactStore, key: str = KEY, text: str = "hello") -> None:
    with store.write("draw", key, {"inputs": []}) as (folder, info):
        (folder / "x.txt").write_text(text)
        (folder / "deep").mkdir()
        (folder / "deep" / "y.bin").write_bytes(b"0123456789")
        info["rows"] = 1


@pytest.fixture
def store(bucket: str) -> RemoteArtifacts:
    found = open_store(f"s3://{bucket}/run/artifacts")
    assert isinstance(found, RemoteArtifacts)
    return found


def again(store: RemoteArtifacts) -> RemoteArtifacts:
    found = pickle.loads(pickle.dumps(store))
    assert found is not store
    return found


def test_what_one_machine_wrote_another_reads(store: RemoteArtifacts, elsewhere: Any) -> None:
    assert not store.has("draw", KEY)
    put(store)
    assert store.has("draw", KEY)
    elsewhere()
    other = again(store)
    assert other.root != store.root
    assert other.has("draw", KEY)
    assert other.meta("draw", KEY)["info"] == {"rows": 1}
    assert not list(other.root.iterdir())  # its facts alone were asked for
    folder = other.path("draw", KEY)
    assert (folder / "x.txt").read_text() == "hello"
    assert (folder / "deep" / "y.bin").read_bytes() == b"0123456789"
    with pytest.raises(StoreError, match="not whole"):
        other.path("draw", "1" * 32)
    with pytest.raises(StoreError, match="not in"):
        other.meta("draw", "1" * 32)


def test_nothing_remains_of_a_body_that_raises(store: RemoteArtifacts, objects: Any) -> None:
    def fail_half_way() -> None:
        with store.write("draw", KEY, {}) as (folder, _):
            (folder / "x").write_text("half")
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail_half_way()
    assert objects() == {}
    assert not store.has("draw", KEY)
    assert not store.restore("draw", KEY)


def test_requests_of_an_artifact(store: RemoteArtifacts, proxy: Any, elsewhere: Any) -> None:
    """Writing puts each file once, meta.json among them; has costs a listing; reading gets each file once."""
    store.absent([])
    proxy.seen.clear()
    put(store)
    assert proxy.seen == {"PUT": 3}
    for i in range(1, 12):
        put(store, f"{i:032x}", f"{i}")
    elsewhere()
    other = again(store)
    proxy.seen.clear()
    assert not other.absent([("draw", f"{i:032x}") for i in range(12)])
    assert proxy.seen == {"GET": 1}
    for i in range(12):
        assert other.has("draw", f"{i:032x}")
    assert proxy.seen == {"GET": 1}
    other.path("draw", KEY)
    assert proxy.seen == {"GET": 4}
    other.path("draw", KEY)
    assert proxy.seen == {"GET": 4}


def test_one_by_one_turns_into_one_listing(store: RemoteArtifacts, proxy: Any, elsewhere: Any) -> None:
    for i in range(12):
        put(store, f"{i:032x}")
    elsewhere()
    other = again(store)
    proxy.seen.clear()
    assert all(other.has("draw", f"{i:032x}") for i in range(12))
    assert proxy.seen == {"GET": 9}
    # What a writer elsewhere finished since is seen at once.
    put(again(store), "f" * 32)
    assert other.has("draw", "f" * 32)


def sealed(meta: dict[str, Any]) -> bytes:
    """A meta.json of somebody who knows how its checksum is made."""
    body = {k: v for k, v in meta.items() if k != "checksum"}
    return json.dumps(
        {**body, "checksum": hashlib.sha256(json.dumps(body, sort_keys=True).encode()).hexdigest()}
    ).encode()


@pytest.mark.parametrize(
    "damage", ["truncate", "flip", "missing", "meta", "meta-list", "info", "other", "endless", "traversal"]
)
def test_damage_is_seen_and_made_again(
    store: RemoteArtifacts, s3: Any, bucket: str, objects: Any, elsewhere: Any, tmp_path: Path, damage: str
) -> None:
    put(store)
    names = {o.rsplit("/", 1)[-1]: o for o in objects("run/artifacts/")}
    meta = json.loads(s3.get_object(Bucket=bucket, Key=names[META])["Body"].read())
    match damage:
        case "truncate":
            s3.put_object(Bucket=bucket, Key=names["y.bin"], Body=b"012345678")
        case "flip":
            s3.put_object(Bucket=bucket, Key=names["y.bin"], Body=b"0123456788")
        case "missing":
            s3.delete_object(Bucket=bucket, Key=names["y.bin"])
        case "meta":
            s3.put_object(Bucket=bucket, Key=names[META], Body=b"{")
        case "meta-list":
            s3.put_object(Bucket=bucket, Key=names[META], Body=b"[]")
        case "info":
            meta["info"]["rows"] = 2
            s3.put_object(Bucket=bucket, Key=names[META], Body=json.dumps(meta).encode())
        case "other":
            s3.put_object(Bucket=bucket, Key=names[META], Body=sealed(meta | {"key": "1" * 32}))
        case "endless":
            meta["files"]["x.txt"]["bytes"] = float("inf")
            s3.put_object(Bucket=bucket, Key=names[META], Body=sealed(meta))
        case _:
            meta["files"]["../../../escaped"] = meta["files"].pop("x.txt")
            s3.put_object(Bucket=bucket, Key=names[META], Body=sealed(meta))
    elsewhere()
    other = again(store)
    lacking = other.absent([("draw", KEY)])
    seen_in_listing = damage in ("truncate", "missing")
    assert bool(lacking) == seen_in_listing
    assert other.damaged([] if lacking else [("draw", KEY)]) == ([] if lacking else [("draw", KEY)])
    assert not other.has("draw", KEY)
    assert not again(store).has("draw", KEY)  # for others, too
    assert not list(tmp_path.rglob("escaped"))
    put(other)
    assert (again(other).path("draw", KEY) / "x.txt").read_text() == "hello"
    other.sweep()
    assert len(objects("run/artifacts/")) == 3


def test_a_copy_that_rots_here_is_brought_again(store: RemoteArtifacts) -> None:
    put(store)
    file = store.path("draw", KEY) / "x.txt"
    file.write_text("jello")
    assert (again(store).path("draw", KEY) / "x.txt").read_text() == "hello"


def test_two_writers_of_one_key_do_not_mix(store: RemoteArtifacts, objects: Any, elsewhere: Any) -> None:
    """Both are whole, every reader takes the same one, and a sweep keeps that one."""
    with store.write("draw", KEY, {"inputs": []}) as (folder, _):
        (folder / "a").write_text("of the first")
        (folder / "b").write_text("of the first")
        elsewhere()
        with (second := again(store)).write("draw", KEY, {"inputs": []}) as (folder, _):
            (folder / "a").write_text("of the second")
            (folder / "b").write_text("of the second")
    assert len(objects("run/artifacts/")) == 6
    read = set[tuple[str, str]]()
    for _ in range(3):
        elsewhere()
        at = again(store).path("draw", KEY)
        read.add(((at / "a").read_text(), (at / "b").read_text()))
    second.sweep()
    assert len(objects("run/artifacts/")) == 3
    elsewhere()
    at = again(store).path("draw", KEY)
    assert read == {((at / "a").read_text(), (at / "b").read_text())}
    assert len(set(read.pop())) == 1


def test_two_processes_send_what_is_left_over(
    store: RemoteArtifacts, proxy: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One is faster and takes the files from under the other."""
    proxy.cut()
    with pytest.raises(UnreachableError):
        put(store)
    proxy.mend()
    first, second = again(store), again(store)
    put_file = first._fs.put_file

    def overtaken(here: str, there: str) -> None:
        monkeypatch.setattr(first._fs, "put_file", put_file)
        assert second.restore("draw", KEY)
        put_file(here, there)

    monkeypatch.setattr(first._fs, "put_file", overtaken)
    assert first.restore("draw", KEY)
    assert first.has("draw", KEY)
    assert (first.path("draw", KEY) / "x.txt").read_text() == "hello"


@pytest.mark.parametrize("passed", [0, 1, 2])
def test_what_did_not_arrive_is_absent_and_sent_later(
    store: RemoteArtifacts, proxy: Any, objects: Any, elsewhere: Any, passed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The connection goes with `passed` of three objects sent; meta.json is the third."""
    store.absent([])
    proxy.seen.clear()
    proxy.after = ("PUT", passed)
    with pytest.raises(UnreachableError, match="does not answer"):
        put(store)
    proxy.mend()
    assert len(objects()) <= passed
    home = os.environ["HYDROMETER_CACHE"]
    elsewhere()
    assert not again(store).has("draw", KEY)
    assert not again(store).restore("draw", KEY)
    monkeypatch.setenv("HYDROMETER_CACHE", home)
    here = again(store)
    assert here.absent([("draw", KEY)]) == [("draw", KEY)]
    assert here.restore("draw", KEY)
    here.sweep()
    assert len(objects()) == 3
    elsewhere()
    assert (again(store).path("draw", KEY) / "x.txt").read_text() == "hello"


def test_the_copies_are_bounded(store: RemoteArtifacts, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HYDROMETER_CACHE_BYTES", "100000")
    small = again(store)
    old = time.time() - 7200
    for i in range(10):
        with small.write("draw", f"{i:032x}", {}) as (folder, _):
            (folder / "x").write_bytes(bytes(20_000))
        os.utime(small.root / f"draw-{i:032x}", (old + i, old + i))
    with small.write("draw", "a" * 32, {}) as (folder, _):
        (folder / "x").write_bytes(b"")
    kept = sorted(p.name for p in small.root.iterdir())
    assert 3 <= len(kept) <= 5
    assert kept[-1] == "draw-" + "a" * 32
    assert f"draw-{9:032x}" in kept
    assert (small.path("draw", "0" * 32) / "x").stat().st_size == 20_000  # brought again


def test_what_is_in_use_is_not_removed(store: RemoteArtifacts, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HYDROMETER_CACHE_BYTES", "1")
    small = again(store)
    for i in range(3):
        put(small, f"{i:032x}")
    assert len(list(small.root.iterdir())) == 3


def test_refusals_are_one_line(s3: Any, bucket: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    missing = open_store("s3://there-is-no-such-bucket-here/x")
    with pytest.raises(FolderError, match="make the bucket first"):
        missing.has("draw", KEY)
    with pytest.raises(FolderError, match="make the bucket first"):
        put(missing)
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    for name in ("AWS_SHARED_CREDENTIALS_FILE", "AWS_CONFIG_FILE"):
        monkeypatch.setenv(name, str(tmp_path / "none"))
    import s3fs

    s3fs.S3FileSystem.clear_instance_cache()
    with pytest.raises(FolderError, match="check the credentials"):
        open_store(f"s3://{bucket}/x").has("draw", KEY)


@pytest.mark.parametrize("damage", [b"{", b"{}", b"[" * 50_000])
def test_facts_that_are_damaged_are_made_again(
    store: RemoteArtifacts, s3: Any, bucket: str, objects: Any, elsewhere: Any, damage: bytes
) -> None:
    """They may be all that is asked of an artifact; others that are asked for with it are none the worse."""
    put(store)
    put(store, "1" * 32)
    (meta,) = (o for o in objects(f"run/artifacts/draw-{KEY}") if o.endswith(META))
    s3.put_object(Bucket=bucket, Key=meta, Body=damage)
    elsewhere()
    other = again(store)
    assert not other.absent([("draw", KEY), ("draw", "1" * 32)])
    assert other.meta("draw", "1" * 32)["info"] == {"rows": 1}
    with pytest.raises(StoreError, match="run it again"):
        other.meta("draw", KEY)
    assert again(store).absent([("draw", KEY), ("draw", "1" * 32)]) == [("draw", KEY)]


def test_a_copy_that_rots_here_is_not_taken_for_what_is_made_again(
    store: RemoteArtifacts, s3: Any, bucket: str, objects: Any
) -> None:
    put(store)
    (store.path("draw", KEY) / "x.txt").write_text("jello")
    for name in objects():
        s3.delete_object(Bucket=bucket, Key=name)
    later = again(store)
    assert later.absent([("draw", KEY)])
    put(later)
    assert (later.path("draw", KEY) / "x.txt").read_text() == "hello"


def test_what_has_been_sent_is_not_sent_again(store: RemoteArtifacts, s3: Any, bucket: str, objects: Any) -> None:
    put(store)
    for name in objects():
        s3.delete_object(Bucket=bucket, Key=name)
    assert not store.restore("draw", KEY)


def test_what_others_sent_meanwhile_is_a_copy_here(
    store: RemoteArtifacts, proxy: Any, elsewhere: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    proxy.cut()
    with pytest.raises(UnreachableError):
        put(store)
    proxy.mend()
    home = os.environ["HYDROMETER_CACHE"]
    elsewhere()
    put(again(store))
    monkeypatch.setenv("HYDROMETER_CACHE", home)
    here = again(store)
    here.sweep()
    assert not list(Path(home).glob("remote/*/unsent/*"))
    assert (here.root / f"draw-{KEY}" / "x.txt").read_text() == "hello"


def test_a_sweep_leaves_what_is_in_the_making_on_this_machine(store: RemoteArtifacts) -> None:
    """A run with another folder may name this place as its cache; the lock does not keep it out."""
    other = subprocess.Popen(["sleep", "60"])
    begun = store.root.parent / "unsent" / f".tmp-fit-{KEY}-{other.pid}@{mark().partition('@')[2]}"
    try:
        begun.mkdir()
        store.sweep()
        assert begun.is_dir()
    finally:
        other.kill()
        other.wait()
    store.sweep(shared=True)
    assert not begun.exists()


def test_room_is_made_at_once(store: RemoteArtifacts, monkeypatch: pytest.MonkeyPatch) -> None:
    """No reader meets half of a copy that is being removed."""
    monkeypatch.setenv("HYDROMETER_CACHE_BYTES", "1")
    put(store)
    os.utime(store.root / f"draw-{KEY}", (0, 0))
    removed = list[Path]()
    monkeypatch.setattr(artifacts, "remove", removed.append)
    again(store)._copies.trim()
    assert [p.name.startswith(".tmp-") for p in removed] == [True]
    assert not (store.root / f"draw-{KEY}").exists()


def test_what_breaks_off_on_the_way_is_asked_for_again(
    store: RemoteArtifacts, proxy: Any, elsewhere: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The connection goes once, in the middle of a body."""
    content = os.urandom(3_000_000)
    with store.write("draw", KEY, {}) as (folder, _):
        (folder / "x").write_bytes(content)
    elsewhere()
    other = again(store)
    pump, seen = proxy._pump, [0]

    def breaking(source: Any, sink: Any, asks: bool) -> None:
        if asks:
            pump(source, sink, asks)
            return
        with contextlib.suppress(OSError):
            while data := source.recv(65536):
                before, seen[0] = seen[0], seen[0] + len(data)
                if before <= 1_000_000 < seen[0]:
                    break
                sink.sendall(data)
        for s in (source, sink):
            with contextlib.suppress(OSError):
                s.shutdown(socket.SHUT_RDWR)

    proxy.cut()  # connections that are open are not broken by the new rule
    monkeypatch.setattr(proxy, "_pump", breaking)
    proxy.mend()
    assert (other.path("draw", KEY) / "x").read_bytes() == content
    assert seen[0] > 4_000_000 - 65536
