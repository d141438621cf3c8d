"""A model served by SGLang, asked by its own `/generate`: prompts of ids in, ids with log-probabilities out."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from hydrometer.core.errors import one_line
from hydrometer.models.causal_lm.engines.client import Refusal, Server
from hydrometer.models.causal_lm.engines.engine import Answer, Order
from hydrometer.models.causal_lm.engines.openai import BYTES_A_TOKEN, check_ids, log_probs_told
from hydrometer.models.causal_lm.engines.prompt_scores import (
    Likeliest,
    Row,
    VllmSession,
    likeliest_of,
    refuse_unnormalised,
    scores_told,
)
from hydrometer.models.causal_lm.engines.temperature_probe import TOP, finite_log_probs

__all__ = ["SGLangSession", "sglang_facts"]

_FIX = "serve it with SGLang 0.5 or later"


def sglang_facts(server: Server) -> dict[str, object]:
    """Return the server's version and its context length, as far as it tells them. Raises Refusal where it is away."""
    try:
        told = server.ask_patiently("/get_server_info")
    except Refusal as e:
        if e.again:
            raise
        return {"version": "not told"}
    known: dict[str, Any] = told if isinstance(told, dict) else {}
    room = known.get("max_req_input_len")
    version = one_line(server.masked(str(known.get("version", "not told"))), 40)
    return {"version": version, **({"room": room} if isinstance(room, int) else {})}


class SGLangSession(VllmSession):
    """SGLang, by its own requests."""

    def _top(self, prompt: Sequence[int], temperature: float) -> dict[str, float]:
        body = _request(prompt, {"max_new_tokens": 1, "temperature": temperature, "top_p": 1.0, "top_k": -1}, TOP)
        told = self._generated(body, len(prompt))
        likeliest = told.get("output_top_logprobs")
        if not isinstance(likeliest, list) or len(likeliest) != 1 or not isinstance(likeliest[0], list):
            raise Refusal("the server returns no log-probabilities", told, _FIX)
        pairs = _pairs(likeliest[0])
        return finite_log_probs({str(i): v for v, i in pairs}, told)

    def _row(self, order: Order, i: int) -> Answer:
        sampling = order.sampling
        body = _request(
            order.prompts[i],
            {
                **sampling,
                "top_k": sampling["top_k"] or -1,
                "max_new_tokens": order.max_new_tokens,
                "min_new_tokens": 0,
                "stop_token_ids": list(order.stop_ids),
                "ignore_eos": True,
                "n": 1,
                "presence_penalty": 0.0,
                "frequency_penalty": 0.0,
                "repetition_penalty": 1.0,
                "sampling_seed": order.seeds[i],
            },
        )
        told = self._generated(body, len(order.prompts[i]), order.max_new_tokens)
        drawn = told.get("output_token_logprobs")
        if not isinstance(drawn, list):
            raise Refusal("the server returns no log-probabilities of what it draws", told, _FIX)
        pairs = _pairs(drawn)  # with ignore_eos SGLang heeds no stop ids either: a row ends at its first, here
        end = next((k for k, (_, t) in enumerate(pairs, 1) if t in order.stop_ids), len(pairs))
        pairs = pairs[:end]
        ids = [i for _, i in pairs]
        check_ids(list(order.prompts[i]), ids, order, i)
        return Answer(tuple(ids), log_probs_told([v for v, _ in pairs]))

    def _scored(self, row: Row, n_top: int = 0) -> tuple[tuple[float, ...], list[Likeliest]]:
        prompt, answer = row
        body = _request([*prompt, *answer], {"max_new_tokens": 0, "temperature": 1.0}, n_top)
        body["logprob_start_len"] = len(prompt) - 1  # the first one told has no value: of what follows it, it has
        told = self._generated(body, len(prompt) + len(answer))
        scored = told.get("input_token_logprobs")
        if not isinstance(scored, list) or len(scored) != len(answer) + 1:
            what = "the server returns no log-probabilities of the prompt (input_token_logprobs)"
            raise Refusal(what, scored if scored is None else f"{scored}"[:200], _FIX)
        pairs = _pairs(scored[1:])
        if [i for _, i in pairs] != list(answer):
            what = "the server scores other ids than it was sent"
            raise Refusal(what, [i for _, i in pairs], "serve the model of that tokenizer")
        tops: list[Likeliest] = []
        if n_top:
            likeliest = told.get("input_top_logprobs")
            if not isinstance(likeliest, list) or len(likeliest) != len(scored):
                raise Refusal("the server returns no likeliest ids of the prompt", likeliest, _FIX)
            for position in likeliest[1:]:
                refuse_unnormalised([v for v, _ in _pairs(position)])
                tops.append(likeliest_of(_pairs(position), n_top))
        return scores_told([v for v, _ in pairs]), tops

    def _generated(self, body: dict[str, object], prompt: int, answer: int = 1) -> dict[str, Any]:
        """Send a request, and return what is told of its tokens. Raises Refusal."""
        n_top: Any = body.get("top_logprobs_num", 0)
        most = 65_536 + (1 + n_top) * BYTES_A_TOKEN * (prompt + answer)
        found = self._server.ask_patiently("/generate", body, most)
        told = found.get("meta_info") if isinstance(found, dict) else None
        if not isinstance(told, dict):
            raise Refusal("the server's answer is not SGLang's", found, "check the URL, or leave out api: sglang")
        if told.get("prompt_tokens", prompt) != prompt:
            what = "the server answers another prompt than the one it was sent (special tokens added, or cut short)"
            raise Refusal(what, told["prompt_tokens"], "serve it so that prompts of token ids are taken as they are")
        return told


def _request(ids: Sequence[int], sampling: dict[str, object], n_top: int = 0) -> dict[str, object]:
    return {
        "input_ids": list(ids),
        "sampling_params": {"skip_special_tokens": False, "no_stop_trim": True, **sampling},
        "return_logprob": True,
        "top_logprobs_num": n_top,
        "stream": False,
    }


def _pairs(told: Any) -> list[tuple[Any, int]]:
    """Return log-probability and id of SGLang's triples. Raises Refusal."""
    out: list[tuple[Any, int]] = []
    for entry in told if isinstance(told, list) else [None]:
        match entry:
            case [value, int(i), *_] if not isinstance(i, bool):
                out.append((value, i))
            case _:
                raise Refusal("the server's log-probabilities are not SGLang's", entry, _FIX)
    return out
