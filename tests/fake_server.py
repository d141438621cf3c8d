"""A completions server on this machine that draws truthfully from a tiny model, as vLLM would, or misbehaves."""

from __future__ import annotations

import json
import socket
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
    every answer. said: to every GET. scores: whether prompts are scored. die_after: POST requests after which every
    connection is dropped unanswered, as by a server that was killed, until it is `revived`.
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
        self.scores: bool = options.pop("scores", True)
        self.die_after: int | None = options.pop("die_after", None)
        assert not options
        self.died = 0
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

    def revived(self) -> None:
        self.die_after = None

    @property
    def is_dead(self) -> bool:
        with self._lock:
            dead = self.die_after is not None and len(self.asked) >= self.die_after
            self.died += dead
            return dead

    @torch.inference_mode()
    def said_of(self, ids: list[int]) -> np.ndarray:
        """(T, V) log-probabilities of the id after each position, by transformers' own forward."""
        with self._lock:
            logits = self.lm.model(torch.tensor([ids])).logits[0, :, : self.lm.vocab_size].double().numpy()
        return np.stack([log_softmax(z) for z in logits])

    def score(self, asked: dict[str, Any]) -> dict[str, Any]:
        """vLLM's `prompt_logprobs`: the prompt's own ids and the likeliest, at temperature 1 whatever is asked."""
        with self._lock:
            self.asked.append(asked)
        ids, n = asked["prompt"], asked["prompt_logprobs"]
        if asked["max_tokens"] < 1 or len(ids) + asked["max_tokens"] > self.room or asked["stream"] or asked["echo"]:
            return {"error": "bad request"}
        known = self.said_of(ids)
        told: list[dict[str, Any] | None] = [None]
        for at, token in enumerate(ids[1:]):
            shown = dict.fromkeys([token, *np.argsort(-known[at], kind="stable")[:n].tolist()])
            told.append({str(i): {"logprob": float(known[at, i]), "rank": 1, "decoded_token": "x"} for i in shown})
        own = {"prompt_token_ids": ids, "prompt_logprobs": told if self.scores else None}
        return {"choices": [{"index": 0, "text": "", "token_ids": [0], "logprobs": None, **own}]}

    def generate(self, asked: dict[str, Any]) -> dict[str, Any]:
        """SGLang's `/generate`."""
        known = {"input_ids", "sampling_params", "return_logprob", "top_logprobs_num", "stream", "logprob_start_len"}
        s, prompt, top = dict(asked["sampling_params"]), asked["input_ids"], asked["top_logprobs_num"]
        n = s["max_new_tokens"]
        if s.get("ignore_eos"):  # as SGLang does
            s["stop_token_ids"] = []
        if set(asked) - known or asked["return_logprob"] is not True or len(prompt) + n > self.room:
            return {"error": {"message": "bad request"}}
        meta: dict[str, Any] = {"id": "x", "prompt_tokens": len(prompt), "finish_reason": {"type": "length"}}
        if "logprob_start_len" in asked:
            with self._lock:
                self.asked.append(asked)
            at, log_p = asked["logprob_start_len"], self.said_of(prompt)
            own = [[None, prompt[at], None]]
            own += [[float(log_p[t - 1, prompt[t]]), prompt[t], None] for t in range(at + 1, len(prompt))]
            if self.scores:
                meta["input_token_logprobs"] = own
                meta["input_top_logprobs"] = [None, *(
                    [[float(log_p[t - 1, i]), int(i), None] for i in np.argsort(-log_p[t - 1])[:top]]
                    for t in range(at + 1, len(prompt))
                )]  # fmt: skip
        if n:
            if s["top_k"] < 1:
                s["top_k"] = 0
            as_vllm = {
                **s, "prompt": prompt, "max_tokens": n, "seed": s.get("sampling_seed", 0), "logprobs": top,
                "min_p": s.get("min_p", 0.0),
            }  # fmt: skip
            (choice,) = self.complete(as_vllm)["choices"]
            told = choice["logprobs"]
            meta["output_token_logprobs"] = [
                [v, i, None] for v, i in zip(told["token_logprobs"], choice["token_ids"], strict=True)
            ]
            meta["output_top_logprobs"] = [
                [[v, int(k.removeprefix("token_id:")), None] for k, v in at.items()] for at in told["top_logprobs"]
            ]
            return {"text": "", "output_ids": choice["token_ids"], "meta_info": meta}
        return {"text": "", "output_ids": [], "meta_info": meta}

    def complete(self, asked: dict[str, Any]) -> dict[str, Any]:
        if "prompt_logprobs" in asked:
            return self.score(asked)
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

    def close_connection_unanswered(self) -> None:
        self.close_connection = True
        self.connection.shutdown(socket.SHUT_RDWR)

    def do_GET(self) -> None:
        if self.fake.is_dead:
            return self.close_connection_unanswered()
        if self.fake.code != 200:
            return self.send({"error": "no"}, self.fake.code)
        if self.fake.away > 0:
            self.fake.away -= 1
            return self.send({"error": "busy"}, 503)
        if self.fake.said is not None:
            return self.send(self.fake.said)
        if self.path == "/get_server_info":
            return self.send({"version": "0.0.fake", "max_req_input_len": self.fake.room})
        if self.path == "/version":
            return self.send({"version": "0.0.fake"})
        return self.send({"data": [{"id": "tiny", "max_model_len": self.fake.room}]})

    def do_POST(self) -> None:
        asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.fake.keys.add(self.headers["Authorization"])
        if self.fake.failures > 0:
            self.fake.failures -= 1
            return self.send({"error": "busy"}, 503)
        if self.fake.is_dead:
            return self.close_connection_unanswered()
        found: Any = self.fake.generate(asked) if self.path == "/generate" else self.fake.complete(asked)
        if self.fake.change is not None and ("stop_token_ids" in asked or "prompt_logprobs" in asked):
            found = self.fake.change(found, asked)
        return self.send(found)


class _Server(ThreadingHTTPServer):
    request_queue_size = 128

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A connection that the client, or a dead server, dropped is no error of a test."""


@contextmanager
def serving(lm: CausalLM, **options: Any) -> Iterator[tuple[str, Fake]]:
    fake = Fake(lm, **options)
    server = _Server(("127.0.0.1", 0), type("Handler", (_Handler,), {"fake": fake}))
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}", fake
    finally:
        server.shutdown()
        server.server_close()
