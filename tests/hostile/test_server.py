"""A server that means harm, behind --engine-url: bounded in time and bytes, and led nowhere else."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Callable, Generator
from contextlib import contextmanager
from typing import Any

import pytest

from hydrometer.core.errors import InputError
from hydrometer.run.preflight.doctor import examine_server

HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n"


@contextmanager
def _server(speak: Callable[[socket.socket], None]) -> Generator[tuple[str, list[int]]]:
    """Serve on a free port; counts connections."""
    asked: list[int] = []
    with socket.create_server(("127.0.0.1", 0)) as listening:
        port = listening.getsockname()[1]

        def one(peer: socket.socket) -> None:
            with peer:
                try:
                    peer.recv(65536)
                    speak(peer)
                except OSError:  # the client went away
                    pass

        def serve() -> None:
            while True:
                try:
                    peer, _ = listening.accept()
                except OSError:
                    return
                asked.append(1)
                threading.Thread(target=one, args=(peer,), daemon=True).start()

        threading.Thread(target=serve, daemon=True).start()
        yield f"http://127.0.0.1:{port}", asked
        listening.shutdown(socket.SHUT_RDWR)


def _drip(peer: socket.socket) -> None:
    peer.sendall(HEAD + b"Content-Length: 1000000\r\n\r\n")
    for _ in range(600):
        peer.sendall(b" ")
        time.sleep(0.1)


def _continue(peer: socket.socket) -> None:
    for _ in range(600):
        peer.sendall(b"HTTP/1.1 100 Continue\r\n\r\n")
        time.sleep(0.1)


def _flood(peer: socket.socket) -> None:
    peer.sendall(HEAD + b"\r\n")
    for _ in range(200):
        peer.sendall(b"[" * 1_000_000)


def _body(raw: bytes) -> Callable[[socket.socket], None]:
    return lambda peer: peer.sendall(HEAD + b"Content-Length: %d\r\n\r\n" % len(raw) + raw)


@pytest.mark.parametrize(
    ("speak", "said"),
    [
        (_drip, "no whole answer"),
        (_continue, "no whole answer"),
        (_flood, "longer than 4000000 bytes"),
        (_body(b"[" * 100_000), "cannot be asked"),
        (_body(b"no json"), "cannot be asked"),
        (_body(b"\xff\xfe\x1b[31m"), "cannot be asked"),
        (_body(b'{"data": [' + b"9" * 5000 + b"]}"), "cannot be asked"),
        (_body(b'{"data": ["\\u001b[31m\\u202e"]}'), "lists no model"),
        (lambda peer: peer.sendall(b"HTTP/1.1 200 OK\r\n" + b"a: b\r\n" * 50_000 + b"\r\n{}"), "cannot be asked"),
        (lambda peer: peer.sendall(b"HTTP/1.1 200 OK\r\na: " + b"b" * 10**6 + b"\r\n\r\n{}"), "cannot be asked"),
        (lambda peer: peer.sendall(b"\x1b[31m\r\n\r\n"), "cannot be asked"),
        (lambda peer: None, "cannot be asked"),
    ],
)
def test_a_server_is_bounded(speak: Any, said: str, line_of: Any) -> None:
    began = time.monotonic()
    with _server(speak) as (url, _), pytest.raises(InputError) as caught:
        examine_server(url, timeout=1.0)
    assert said in line_of(caught.value)
    assert time.monotonic() - began < 30


@pytest.mark.parametrize("scheme", ["OTHER", "file:///etc/passwd", "ftp://127.0.0.1/x"])
def test_no_redirection_is_followed(scheme: str, line_of: Any) -> None:
    with _server(_body(b'{"data": [{"id": "m"}]}')) as (other, asked):
        target = other if scheme == "OTHER" else scheme
        answer = b"HTTP/1.1 302 Found\r\nLocation: %s\r\nContent-Length: 0\r\n\r\n" % target.encode()
        with _server(lambda peer: peer.sendall(answer)) as (url, _), pytest.raises(InputError) as caught:
            examine_server(url, timeout=10.0)
        assert "redirects, which is not followed" in line_of(caught.value)
        assert not asked


@pytest.mark.parametrize("url", ["file:///etc/passwd", "ftp://x", "http://", "http://[", "x", "http://a\nb", ""])
def test_what_is_no_server(url: str, line_of: Any) -> None:
    with pytest.raises(InputError) as caught:
        examine_server(url, timeout=1.0)
    line_of(caught.value)
