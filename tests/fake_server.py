"""A completions server on this machine that draws truthfully from a tiny model, as vLLM would, or misbehaves."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import numpy as np
import torch

from hydrometer.models.causal_lm.inference.model import CausalLM

Change = Callable[[dict[str, Any], dict[str, Any]], Any]  # (answer, request) -> what is sent: JSON, or bytes


def log_softmax(z: np.ndarray) -> np.ndarray:
    return z - np.logaddexp.reduce(z)


def processed(z: np.ndarray, asked: dict[str, Any]) -> np.ndarray:
    """vLLM's order: temperature, min_p, top_k, top_p. Written anew, with sorting: nothing of ours selects here."""
    x = log_softmax(z / asked["temperature"])
    if asked.get("min_p"):
        x = np.where(x >= x.max() + np.log(asked["min_p"]), x, -np.inf)
    if asked.get("top_k"):
        x = np.where(x >= np.sort(x)[-asked["top_k"] :][0], x, -np.inf)
    if asked.get("top_p", 1.0) < 1:
        order = np.argsort(-x)
        p = np.exp(log_softmax(x))[order]
        drop = order[np.cumsum(p) - p >= asked["top_p"]]
        x[drop] = -np.inf
    return log_softmax(x)


class Fake:
    """What the server knows and counts.

    mode: log-probabilities "raw" or "processed". change: the answer before it is sent. law: sampling fields that the
    server sets by itself. failures, away: POST and GET requests that are answered 503 first. code, location: instead of
    every answer. said: to every GET.
    """

    def __init__(self, lm: CausalLM, **options: Any) -> None:
        self.lm = lm
        self.mode: str = options.pop("mode", "processed")
        self.change: Change | None = options.pop("change", None)
        self.law: dict[str, Any] = options.pop("law", {})
        self.failures: int = options.pop("failures", 0)
        self.away: int = options.pop("away", 0)
        self.said: Any = options.pop("said", None)
        self.code: int = options.pop("code", 200)
        self.location: str = options.pop("location", "")
        self.seed: Callable[[int], int] = options.pop("seed", int)
        self.room: int = options.pop("room", 128)
        assert not options
        self.asked: list[dict[str, Any]] = []
        self.keys: set[str | None] = set()
        self._logits: dict[tuple[int, ...], np.ndarray] = {}
        self._lock = threading.Lock()

    @torch.inference_mode()
    def logits(self, ids: tuple[int, ...]) -> np.ndarray:
        with self._lock:
            if ids not in self._logits:
                states = self.lm.network.body(torch.tensor([ids]))[0, -1:]
                self._logits[ids] = self.lm.network.logits(states)[0, : self.lm.vocab_size].double().numpy()
            return self._logits[ids]

    def complete(self, asked: dict[str, Any]) -> dict[str, Any]:
        with self._lock:
            self.asked.append(asked)
        asked = {**asked, **self.law}
        rng = np.random.default_rng(self.seed(asked["seed"]))
        prompt, ids, told = tuple(asked["prompt"]), [], []
        top: list[dict[str, float]] = []
        while len(ids) < asked["max_tokens"]:
            z = self.logits((*prompt, *ids))
            log_p = processed(z, asked)
            token = int(rng.choice(len(z), p=np.exp(log_p)))
            known = log_softmax(z) if self.mode == "raw" else log_p
            told.append(float(known[token]))
            chosen = np.argsort(-known, kind="stable")[: asked["logprobs"]]
            top.append({f"token_id:{i}": float(known[i]) for i in chosen if known[i] > -np.inf})
            ids.append(token)
            if token in asked.get("stop_token_ids", ()):
                break
        return {
            "choices": [{
                "index": 0, "text": "", "prompt_token_ids": list(prompt), "token_ids": ids,
                "finish_reason": "length" if len(ids) == asked["max_tokens"] else "stop",
                "logprobs": {"tokens": [f"token_id:{i}" for i in ids], "token_logprobs": told, "top_logprobs": top},
            }],
        }  # fmt: skip


class _Handler(BaseHTTPRequestHandler):
    fake: Fake
    protocol_version = "HTTP/1.0"

    def log_message(self, format: str, *args: Any) -> None:
        pass

    def send(self, body: Any, code: int = 200) -> None:
        raw = body if isinstance(body, bytes) else json.dumps(body).encode()
        self.send_response(code)
        if self.fake.location:
            self.send_header("Location", self.fake.location)
        self.send_header("Content-Length", str(len(raw)))
        self.end_headers()
        self.wfile.write(raw)

    def do_GET(self) -> None:
        if self.fake.code != 200:
            return self.send({"error": "no"}, self.fake.code)
        if self.fake.away > 0:
            self.fake.away -= 1
            return self.send({"error": "busy"}, 503)
        if self.fake.said is not None:
            return self.send(self.fake.said)
        if self.path == "/version":
            return self.send({"version": "0.0.fake"})
        return self.send({"data": [{"id": "tiny", "max_model_len": self.fake.room}]})

    def do_POST(self) -> None:
        asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.fake.keys.add(self.headers["Authorization"])
        if self.fake.failures > 0:
            self.fake.failures -= 1
            return self.send({"error": "busy"}, 503)
        found: Any = self.fake.complete(asked)
        if self.fake.change is not None and "stop_token_ids" in asked:
            found = self.fake.change(found, asked)
        return self.send(found)


@contextmanager
def serving(lm: CausalLM, **options: Any) -> Iterator[tuple[str, Fake]]:
    fake = Fake(lm, **options)
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (_Handler,), {"fake": fake}))
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}", fake
    finally:
        server.shutdown()
        server.server_close()
