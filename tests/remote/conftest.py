"""An S3 server of its own (moto, on a free port of the loopback), and a proxy before it that can be cut."""

from __future__ import annotations

import contextlib
import logging
import secrets
import socket
import threading
from collections import Counter
from collections.abc import Generator, Iterator
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("s3fs")
server = pytest.importorskip("moto.server")


class Proxy:
    """Passes bytes on to a port. `cut` closes what is open and refuses what comes, until `mend`.

    `after` cuts by itself once that many requests of a method have been passed on.
    """

    def __init__(self, target: int) -> None:
        self.target, self.open, self.up = target, set[socket.socket](), True
        self.seen: Counter[str] = Counter()
        self.after: tuple[str, int] | None = None
        self.guard = threading.Lock()
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.port = self.listener.getsockname()[1]
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self.listener.accept()
            except OSError:
                return
            if not self.up:
                client.close()
                continue
            upstream = socket.create_connection(("127.0.0.1", self.target))
            with self.guard:
                self.open |= {client, upstream}
            threading.Thread(target=self._pump, args=(client, upstream, True), daemon=True).start()
            threading.Thread(target=self._pump, args=(upstream, client, False), daemon=True).start()

    def _pump(self, source: socket.socket, sink: socket.socket, asks: bool) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(65536):
                if asks and data.split(b" ", 1)[0] in (b"GET", b"PUT", b"HEAD", b"DELETE", b"POST"):
                    method = data.split(b" ", 1)[0].decode()
                    if self.after == (method, self.seen[method]):
                        self.cut()
                        return
                    self.seen[method] += 1
                sink.sendall(data)
        for s in (source, sink):
            with contextlib.suppress(OSError):
                s.shutdown(socket.SHUT_RDWR)
            s.close()
            with self.guard:
                self.open.discard(s)

    def cut(self) -> None:
        self.up = False
        with self.guard:
            found = list(self.open)
        for s in found:
            with contextlib.suppress(OSError):
                s.shutdown(socket.SHUT_RDWR)

    def mend(self) -> None:
        self.after, self.up = None, True

    def close(self) -> None:
        self.listener.close()
        self.cut()


@pytest.fixture(scope="session")
def moto_port() -> Generator[int]:
    logging.getLogger("werkzeug").setLevel(logging.WARNING)
    running = server.ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    running.start()
    yield running.get_host_and_port()[1]
    running.stop()


@pytest.fixture
def proxy(moto_port: int) -> Iterator[Proxy]:
    found = Proxy(moto_port)
    yield found
    found.close()


@pytest.fixture
def s3(proxy: Proxy, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Any:
    """The bucket's own client, straight to the server; the package goes through the proxy."""
    for name, value in {
        "AWS_ENDPOINT_URL_S3": f"http://127.0.0.1:{proxy.port}",
        "AWS_ACCESS_KEY_ID": "testing",
        "AWS_SECRET_ACCESS_KEY": "testing",
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_MAX_ATTEMPTS": "2",
        "AWS_EC2_METADATA_DISABLED": "true",
        "HYDROMETER_CACHE": str(tmp_path / "cache"),
    }.items():
        monkeypatch.setenv(name, value)
    import boto3
    import s3fs

    s3fs.S3FileSystem.clear_instance_cache()  # its clients know the last test's port
    client = boto3.client("s3", endpoint_url=f"http://127.0.0.1:{proxy.target}")
    yield client
    client.close()


@pytest.fixture
def bucket(s3: Any) -> str:
    name = f"b{secrets.token_hex(6)}"
    s3.create_bucket(Bucket=name)
    return name


@pytest.fixture
def objects(s3: Any, bucket: str) -> Any:
    """A function: the bucket's objects below a prefix, name -> size."""

    def listed(prefix: str = "") -> dict[str, int]:
        pages = s3.get_paginator("list_objects_v2").paginate(Bucket=bucket, Prefix=prefix)
        return {o["Key"]: o["Size"] for page in pages for o in page.get("Contents", [])}

    return listed


@pytest.fixture
def elsewhere(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Any:
    """A function that makes this process another machine: one without copies."""

    def move() -> None:
        monkeypatch.setenv("HYDROMETER_CACHE", str(tmp_path / f"cache-{secrets.token_hex(4)}"))

    return move
