import json
import socket
import subprocess
from datetime import UTC, datetime
from typing import Any

import pytest

from hydrometer.core.errors import FolderError
from hydrometer.store import remote_lock
from hydrometer.store.records import RunFolder
from hydrometer.store.remote_lock import Lease, hold_remote
from hydrometer.store.storage_uri import Url


@pytest.fixture
def url(bucket: str) -> Url:
    return Url("s3", bucket, "run")


def strange(s3: Any, url: Url, **changes: Any) -> None:
    """A lock of a process on another machine."""
    body = {"host": "far", "pid": 1, "began": "then", "process": "other-boot pid:[1] 1 1", "token": "x", "beat": 1}
    s3.put_object(Bucket=url.bucket, Key="run/.lock", Body=json.dumps(body | changes).encode())


def test_one_holder_at_a_time(url: Url, objects: Any) -> None:
    with hold_remote(url):
        assert list(objects()) == ["run/.lock"]
        with pytest.raises(FolderError, match=socket.gethostname()) as refused, hold_remote(url):
            pass
        assert "silent_s" in str(refused.value)
        assert list(objects()) == ["run/.lock"]
    assert objects() == {}
    with hold_remote(url):
        pass


def test_a_holder_elsewhere_is_waited_for(s3: Any, url: Url) -> None:
    strange(s3, url)
    with pytest.raises(FolderError, match=r"another run is using s3://.*far"), hold_remote(url):
        pass


def test_a_silent_holder_is_taken_over_by_the_stores_clock(
    s3: Any, url: Url, objects: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """This machine's clock is years behind and does not matter."""
    strange(s3, url)

    class Behind(datetime):
        @classmethod
        def now(cls, tz: Any = None) -> datetime:
            return datetime(1999, 1, 1, tzinfo=UTC)

    monkeypatch.setattr(remote_lock, "datetime", Behind)
    with pytest.raises(FolderError, match="far"), hold_remote(url):
        pass
    monkeypatch.setattr(remote_lock, "DEAD", 0.0)
    with hold_remote(url):
        held = json.loads(s3.get_object(Bucket=url.bucket, Key="run/.lock")["Body"].read())
        assert held["host"] == socket.gethostname()
    assert objects() == {}


def test_a_killed_holder_of_this_machine_is_taken_over_at_once(s3: Any, url: Url, objects: Any) -> None:
    holder = subprocess.Popen(["sleep", "300"])
    try:
        strange(s3, url, host=socket.gethostname(), pid=holder.pid, process=remote_lock._process(holder.pid))
        with pytest.raises(FolderError, match=str(holder.pid)), hold_remote(url):
            pass
    finally:
        holder.kill()
        holder.wait()
    with hold_remote(url):
        pass
    assert objects() == {}


def test_a_run_that_was_taken_over_writes_no_books(
    s3: Any, url: Url, objects: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(remote_lock, "BEAT", 0.05)
    folder = RunFolder(url)
    with folder.hold():
        folder.accept({"name": "x"})
        strange(s3, url)
        lease = folder._lease
        assert lease is not None
        lease._thread.join(60)
        with pytest.raises(FolderError, match="taken over"):
            folder.push()
    assert list(objects()) == ["run/.lock"]  # the other's


def test_a_run_that_slept_finds_out_before_it_writes_books(s3: Any, url: Url, objects: Any) -> None:
    """It goes on where it was, and its next beat is not due for a minute."""
    folder = RunFolder(url)
    with folder.hold():
        folder.accept({"name": "x"})
        strange(s3, url)
        with pytest.raises(FolderError, match="taken over"):
            folder.push()
    assert list(objects()) == ["run/.lock"]  # the other's


def test_what_is_sent_after_the_lock_is_let_go_of_needs_none(url: Url, objects: Any) -> None:
    folder = RunFolder(url)
    with folder.hold():
        folder.accept({"name": "x"})
        folder.push()
    folder.put("records", "a", {"id": "a"})
    folder.push()
    assert list(objects("run/records/")) == ["run/records/a.json"]


def test_beats_go_on(s3: Any, url: Url, monkeypatch: pytest.MonkeyPatch, proxy: Any) -> None:
    """Through a time without a connection, and where an answer was lost: the object is ours with a tag unknown."""
    monkeypatch.setattr(remote_lock, "BEAT", 0.05)

    def beats() -> int:
        return json.loads(s3.get_object(Bucket=url.bucket, Key="run/.lock")["Body"].read())["beat"]

    def wait_for(n: int) -> None:
        pause = remote_lock.threading.Event()
        for _ in range(600):
            if beats() >= n:
                return
            pause.wait(0.05)
        raise AssertionError("the lock does not beat")

    with hold_remote(url) as lease:
        wait_for(4)
        proxy.cut()
        remote_lock.threading.Event().wait(0.2)
        proxy.mend()
        wait_for(beats() + 2)
        lease._tag = '"0123456789abcdef0123456789abcdef"'
        wait_for(beats() + 2)
        lease.check()


def test_two_takers_of_a_dead_lock(s3: Any, url: Url, monkeypatch: pytest.MonkeyPatch) -> None:
    """Both saw it dead; the second one's write fails, for the object is no more what it saw."""
    strange(s3, url)
    monkeypatch.setattr(remote_lock, "DEAD", 0.0)
    first, second = Lease(url), Lease(url)
    original = second._object.now

    def overtaken(token: str) -> datetime:
        first.take()
        return original(token)

    monkeypatch.setattr(second._object, "now", overtaken)
    with pytest.raises(FolderError, match="has just begun"):
        second.take()
    first.check()
    first.release()


def test_a_store_that_ignores_conditions_is_refused(url: Url, objects: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    lease = Lease(url)
    put = lease._object._fs.pipe_file
    monkeypatch.setattr(lease._object._fs, "pipe_file", lambda path, body, mode="overwrite": put(path, body))
    with pytest.raises(FolderError, match=r"ignores conditions.*--cache URL"):
        lease.take()
    assert objects() == {}


def test_a_store_that_ignores_conditions_on_rewriting_is_refused(
    url: Url, objects: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """There a run that was taken over would take its lock back with the next beat, and never hear of it."""
    lease = Lease(url)
    call = lease._object._fs.call_s3
    monkeypatch.setattr(lease._object._fs, "call_s3", lambda *args, IfMatch=None, **rest: call(*args, **rest))
    with pytest.raises(FolderError, match=r"ignores conditions.*--cache URL"):
        lease.take()
    assert objects() == {}


@pytest.mark.parametrize("body", [b"[" * 50_000, b"x" * 200_000, b"[]"])
def test_a_lock_that_is_none_is_waited_for(s3: Any, url: Url, body: bytes) -> None:
    s3.put_object(Bucket=url.bucket, Key="run/.lock", Body=body)
    with pytest.raises(FolderError, match="another run is using"), hold_remote(url):
        pass


def test_a_place_that_holds_something_else_is_refused(s3: Any, url: Url, objects: Any) -> None:
    s3.put_object(Bucket=url.bucket, Key="run/thesis.tex", Body=b"mine")
    with pytest.raises(FolderError, match="holds no run"):
        RunFolder(url)
    assert objects() == {"run/thesis.tex": 4}
    RunFolder(Url("s3", url.bucket, "ru"))  # a neighbour's name begins the same


@pytest.fixture
def elsewhere_lock(monkeypatch: pytest.MonkeyPatch) -> Url:
    """A store of fsspec's that is not S3, for what is not S3's own."""
    import fsspec

    memory = fsspec.filesystem("memory")
    memory.store.clear()
    monkeypatch.setattr(remote_lock, "filesystem", lambda url: memory)
    return Url("gs", "bucket", "run")


def test_through_fsspecs_interface_alone(elsewhere_lock: Url, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(remote_lock, "_tag", lambda info: str(info["created"]))
    monkeypatch.setattr(remote_lock, "_changed", lambda info: info["created"])
    with hold_remote(elsewhere_lock) as lease:
        with pytest.raises(FolderError, match=socket.gethostname()), hold_remote(elsewhere_lock):
            pass
        tag = lease._object.replace(lease._body(), lease._tag)
        assert tag is not None
        assert lease._object.replace(lease._body(), lease._tag) is None
        lease._tag = tag
    with hold_remote(elsewhere_lock):
        pass
