"""Scores of given rows by a server's log-probabilities of prompts, and draws beside them: vLLM's completions.

Prompt and answer are sent as one prompt of token ids, and what comes back of every id of the answer is
``log p(x_t | prompt, x_<t)`` at temperature 1, whatever the server says of ids that it draws.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from hydrometer.models.causal_lm.engines.client import Refusal
from hydrometer.models.causal_lm.engines.openai import BYTES_A_TOKEN, OpenAISession, failed, log_probs_told
from hydrometer.models.causal_lm.engines.temperature_probe import DROPPED

__all__ = ["VllmSession", "refuse_unnormalised", "scores_told"]

NORMALISED_OVER = 5  # likeliest ids of a position, whose probabilities must not exceed 1 together


class VllmSession(OpenAISession):
    """vLLM, by its completions API."""

    _is_normalised = False

    @property
    def _who(self) -> str:
        return f"served model {self._settings.model}"

    def score(self, rows: Sequence[tuple[Sequence[int], Sequence[int]]]) -> list[tuple[float, ...]]:
        """Score one row a request, concurrently. Raises StageError."""
        try:
            if rows and not self._is_normalised:
                self._scored(rows[0], NORMALISED_OVER)
                self._is_normalised = True
            return self._concurrently(self._scored, rows)
        except Refusal as e:
            raise failed(e, self._server, self._who) from None

    def _scored(self, row: tuple[Sequence[int], Sequence[int]], n_top: int = 0) -> tuple[float, ...]:
        """Score one row; with `n_top` refuse a server that does not normalise. Raises Refusal."""
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
        return _own_log_probs(ids, told, len(prompt), normalised=n_top > 0)


_VLLM = "serve it with vLLM 0.11 or later, and prompt_logprobs not switched off"


def _own_log_probs(ids: list[int], told: list[Any], first: int, *, normalised: bool) -> tuple[float, ...]:
    """Return what was told of the ids from `first` on. Raises Refusal."""
    out: list[float] = []
    for at in range(first, len(ids)):
        entry = told[at]
        own = entry.get(str(ids[at])) if isinstance(entry, dict) else None
        if not isinstance(own, dict) or "logprob" not in own:
            what = f"the server says nothing of id {ids[at]} of the prompt that it was sent"
            raise Refusal(what, entry, "serve the model of that tokenizer, and take prompts of ids as they are")
        if normalised:
            refuse_unnormalised([v.get("logprob") if isinstance(v, dict) else None for v in entry.values()])
        out.append(own["logprob"])
    return scores_told(out)


def refuse_unnormalised(values: Sequence[object]) -> None:
    """Refuse values of one position's likeliest ids whose probabilities exceed 1 together. Raises Refusal."""
    if math.fsum(math.exp(min(v, 1.0)) for v in log_probs_told(values)) > 1.01:
        fix = "serve with --logprobs-mode processed_logprobs, or raw_logprobs"
        raise Refusal("the server's log-probabilities of prompts are not normalised", list(values), fix)


def scores_told(values: Sequence[object]) -> tuple[float, ...]:
    """Return scores, nats; what stands for minus infinity is that. Raises Refusal."""
    return tuple(-math.inf if v <= DROPPED else min(v, 0.0) for v in log_probs_told(values))
