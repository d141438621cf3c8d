"""Scores of given rows by a server's log-probabilities of prompts, and draws beside them: vLLM's completions.

Prompt and answer are sent as one prompt of token ids, and what comes back of every id of the answer is
``log p(x_t | prompt, x_<t)`` at temperature 1, whatever the server says of ids that it draws.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import partial
from typing import Any

from hydrometer.models.causal_lm.engines.client import Refusal
from hydrometer.models.causal_lm.engines.openai import BYTES_A_TOKEN, OpenAISession, failed, log_probs_told
from hydrometer.models.causal_lm.engines.temperature_probe import DROPPED

__all__ = ["Likeliest", "Row", "VllmSession", "likeliest_of", "refuse_unnormalised", "scores_told"]

Row = tuple[Sequence[int], Sequence[int]]
"""Ids of a prompt, and of an answer."""
Likeliest = list[tuple[int, float]]
"""Ids of a position with their log-probabilities, nats, the likeliest first."""

NORMALISED_OVER = 5  # likeliest ids of a position, whose probabilities must not exceed 1 together


class VllmSession(OpenAISession):
    """vLLM, by its completions API."""

    _is_normalised = False

    @property
    def _who(self) -> str:
        return f"served model {self._settings.model}"

    def score(self, rows: Sequence[Row]) -> list[tuple[float, ...]]:
        """Score one row a request, concurrently. Raises StageError."""
        try:
            if rows and not self._is_normalised:
                self._scored(rows[0], NORMALISED_OVER)
                self._is_normalised = True
            return [own for own, _ in self._concurrently(self._scored, rows)]
        except Refusal as e:
            raise failed(e, self._server, self._who) from None

    def likeliest(self, rows: Sequence[Row], k: int) -> list[list[Likeliest]]:
        """Return the k likeliest ids at every token of answers, one row a request, concurrently. Raises StageError."""
        try:
            found = [top for _, top in self._concurrently(partial(self._scored, n_top=k), rows)]
            for position in (p for row in found for p in row):
                if len(position) < k:
                    fix = f"serve it with --max-logprobs {k} or more, or keep fewer ids"
                    raise Refusal(f"the server tells fewer than {k} likeliest ids of a position", len(position), fix)
        except Refusal as e:
            raise failed(e, self._server, self._who) from None
        return found

    def _scored(self, row: Row, n_top: int = 0) -> tuple[tuple[float, ...], list[Likeliest]]:
        """Score one row; with `n_top` also its likeliest ids, and refuse a server that does not normalise.

        Raises Refusal.
        """
        prompt, answer = row
        ids = [*prompt, *answer]
        body: dict[str, object] = {
            "model": self._settings.model,
            "prompt": ids,
            "max_tokens": 1,
            "temperature": 1.0,
            "top_p": 1.0,
            "top_k": 0,
            "min_p": 0.0,
            "seed": 0,
            "n": 1,
            "stream": False,
            "echo": False,
            "repetition_penalty": 1.0,
            "prompt_logprobs": n_top,
            "add_special_tokens": False,
            "return_token_ids": True,
        }
        most = 65_536 + (1 + n_top) * BYTES_A_TOKEN * len(ids)
        found = self._server.ask_patiently("/v1/completions", body, most)
        match found:
            case {"choices": [dict(choice)]}:
                pass
            case _:
                raise Refusal("the server does not give exactly one choice a request", found, _VLLM)
        if choice.get("prompt_token_ids", ids) != ids:
            what = "the server scores another prompt than the one it was sent (special tokens added, or cut short)"
            raise Refusal(what, choice.get("prompt_token_ids"), "serve it so that prompts of ids are taken as they are")
        told = choice.get("prompt_logprobs")
        if not isinstance(told, list) or len(told) != len(ids):
            got = told if told is None else f"{len(told)} for {len(ids)} tokens" if isinstance(told, list) else told
            raise Refusal("the server returns no log-probabilities of the prompt (prompt_logprobs)", got, _VLLM)
        return _told(ids, told, len(prompt), n_top)


_VLLM = "serve it with vLLM 0.11 or later, and prompt_logprobs not switched off"


def _told(ids: list[int], told: list[Any], first: int, n_top: int) -> tuple[tuple[float, ...], list[Likeliest]]:
    """Return what was told of the ids from `first` on, and of the likeliest ids in their place. Raises Refusal."""
    out: list[float] = []
    tops: list[Likeliest] = []
    for at in range(first, len(ids)):
        entry = told[at]
        own = entry.get(str(ids[at])) if isinstance(entry, dict) else None
        if not isinstance(own, dict) or "logprob" not in own:
            what = f"the server says nothing of id {ids[at]} of the prompt that it was sent"
            raise Refusal(what, entry, "serve the model of that tokenizer, and take prompts of ids as they are")
        if n_top:
            found = {i: v.get("logprob") if isinstance(v, dict) else None for i, v in entry.items()}
            refuse_unnormalised(list(found.values()))
            tops.append(likeliest_of([(v, i) for i, v in found.items()], n_top))
        out.append(own["logprob"])
    return scores_told(out), tops


def likeliest_of(told: Sequence[tuple[Any, Any]], k: int) -> Likeliest:
    """Return the k likeliest of log-probabilities with ids, ties by the lower id. Raises Refusal."""
    values = scores_told([v for v, _ in told])
    try:
        ids = [int(i) for _, i in told]
    except (TypeError, ValueError):
        raise Refusal("the server names what is no id among the likeliest", told[0][1], _VLLM) from None
    return sorted(zip(ids, values, strict=True), key=lambda x: (-x[1], x[0]))[:k]


def refuse_unnormalised(values: Sequence[object]) -> None:
    """Refuse values of one position's likeliest ids whose probabilities exceed 1 together. Raises Refusal."""
    if math.fsum(math.exp(min(v, 1.0)) for v in log_probs_told(values)) > 1.01:
        fix = "serve with --logprobs-mode processed_logprobs, or raw_logprobs"
        raise Refusal("the server's log-probabilities of prompts are not normalised", list(values), fix)


def scores_told(values: Sequence[object]) -> tuple[float, ...]:
    """Return scores, nats; what stands for minus infinity is that. Raises Refusal."""
    return tuple(-math.inf if v <= DROPPED else min(v, 0.0) for v in log_probs_told(values))
