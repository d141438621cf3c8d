"""A server that returns log-probabilities as vLLM does, raw or processed, on this machine."""

import json
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import numpy as np
import pytest

from hydrometer.core.errors import InputError
from hydrometer.run.preflight.doctor import examine_server

LOGITS = np.array([2.0, 1.3, 0.9, -0.4, -1.0, -2.2, -3.0])
Mode = Callable[[float], np.ndarray]


def log_softmax(z: np.ndarray) -> np.ndarray:
    return z - np.log(np.exp(z).sum())


MODES: dict[str, Mode] = {
    "raw": lambda t: log_softmax(LOGITS),
    "processed": lambda t: log_softmax(LOGITS / t),
    "logits": lambda t: LOGITS + 3,
    "penalised": lambda t: log_softmax(LOGITS / t**2.5),
    "flat": lambda t: log_softmax(np.zeros(7)),
    # The server's own top_k of 2: vLLM writes -9999 for minus infinity.
    "cut": lambda t: np.concatenate([log_softmax(LOGITS[:2] / t), np.full(5, -9999.0)]),
    "none": lambda t: np.full(7, -np.inf),
}


class Handler(BaseHTTPRequestHandler):
    mode = "raw"
    vllm = True

    def log_message(self, format: str, *args: Any) -> None:
        pass

    def answer(self, body: Any, code: int = 200) -> None:
        raw = json.dumps(body).encode() if not isinstance(body, bytes) else body
        self.send_response(code)
        self.send_header("Content-Length", str(len(raw)))
        self.end_headers()
        self.wfile.write(raw)

    def do_GET(self) -> None:
        if self.path == "/version" and self.vllm:
            self.answer({"version": "0.11.0"})
        elif self.path == "/v1/models":
            self.answer({"data": [] if self.mode == "empty" else [{"id": "tiny"}]})
        else:
            self.answer({"error": "not found"}, 404)

    def do_POST(self) -> None:
        asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        assert asked["model"] == "tiny"
        if self.mode == "junk":
            return self.answer(b"<html>" * 100)
        values = MODES[self.mode](asked["temperature"])
        chosen = np.argsort(-values, kind="stable")[: asked["logprobs"]]
        top = {f"t{i}": float(values[i]) for i in chosen}
        self.answer({"choices": [{"text": "t0", "logprobs": {"top_logprobs": [top]}}]})


@pytest.fixture
def server() -> Iterator[Callable[..., str]]:
    started: list[ThreadingHTTPServer] = []

    def start(mode: str, vllm: bool = True) -> str:
        kind = type("Mode", (Handler,), {"mode": mode, "vllm": vllm})
        one = ThreadingHTTPServer(("127.0.0.1", 0), kind)
        started.append(one)
        threading.Thread(target=one.serve_forever, args=(0.01,), daemon=True).start()
        return f"http://127.0.0.1:{one.server_address[1]}"

    yield start
    for one in started:
        one.shutdown()
        one.server_close()


@pytest.mark.parametrize(
    ("mode", "code", "severity"),
    [
        ("raw", "served-raw", "warning"),
        ("processed", "served-processed", "note"),
        ("logits", "served-logits", "fatal"),
        ("penalised", "served-undecided", "warning"),
        ("flat", "served-undecided", "warning"),
        ("cut", "served-processed", "note"),
    ],
)
def test_which_law_a_servers_log_probabilities_are_of(
    server: Callable[..., str], mode: str, code: str, severity: str
) -> None:
    (found,) = examine_server(server(mode))
    assert (found.code, found.severity) == (code, severity)
    assert "vLLM 0.11.0" in found.what
    (again,) = examine_server(server(mode, vllm=False) + "/v1/", model="tiny")
    assert again.code == code
    assert "the server" in again.what


@pytest.mark.parametrize(
    ("mode", "says"),
    [("none", "no log-probabilities"), ("junk", "cannot be asked"), ("empty", "lists no model")],
)
def test_a_server_that_says_nothing_useful_is_one_line(server: Callable[..., str], mode: str, says: str) -> None:
    with pytest.raises(InputError, match=says) as caught:
        examine_server(server(mode))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("url", ["file:///etc/passwd", "localhost:8000", "http://", "http://127.0.0.1:1"])
def test_what_is_no_server_is_refused(url: str) -> None:
    with pytest.raises(InputError):
        examine_server(url, timeout=2)


def test_the_command_asks_a_server(server: Callable[..., str], command: Any) -> None:
    code, out, _ = command("doctor", "--engine-url", server("raw"), "--json")
    assert code == 0
    assert [f["code"] for f in json.loads(out)["findings"]] == ["served-raw"]
    assert command("doctor", "--engine-url", server("logits"))[0] == 2
    code, _, err = command("doctor")
    assert code == 2
    assert "a recipe" in err
