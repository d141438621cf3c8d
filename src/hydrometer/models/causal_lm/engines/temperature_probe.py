"""Determine which law a server's log-probabilities are of, by asking at two temperatures.

    raw        log softmax(z)_t                whatever the temperature: the law without its selectivity
    processed  log softmax(z / tau)_t          the law that the token was drawn from

vLLM calls the choice `logprobs_mode`; its default is raw. Of the log-probabilities that a server returns, the
difference of two tokens' does not depend on the normaliser: at temperature tau it is that of temperature 1 for a raw
server, and 1/tau times that for one that processes.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

from hydrometer.models.causal_lm.engines.client import Refusal

__all__ = ["COLD", "DROPPED", "TOP", "LogProbKind", "finite_log_probs", "log_prob_kind", "top_log_probs"]

TOP = 5
COLD = 0.5
_SAME = 0.02  # nats by which a server's repeated answer may differ: bfloat16 networks in other batches
_TELLS = 0.2  # nats that two tokens must differ by for the ratio to tell
DROPPED = -9999.0  # vLLM's answer for minus infinity: an id that its top_k, top_p or min_p dropped

LogProbKind = Literal["raw", "processed", "logits", "flat", "other"]


def top_log_probs(
    ask: Callable[[str, Mapping[str, object]], Any], model: str, prompt: str | Sequence[int], temperature: float
) -> dict[str, float]:
    """Request the log-probabilities of the likeliest next tokens, by token. Raises Refusal."""
    body: dict[str, object] = {
        "model": model,
        "prompt": prompt,
        "max_tokens": 1,
        "temperature": temperature,
        "top_p": 1.0,
        "logprobs": TOP,
        "seed": 0,
    }
    if not isinstance(prompt, str):  # ids come from a drawing engine: no default of the server may apply
        body |= {"prompt": list(prompt), "top_k": 0, "min_p": 0.0, "return_tokens_as_token_ids": True}
    answer = ask("/v1/completions", body)
    try:
        top = answer["choices"][0]["logprobs"]["top_logprobs"][0]
        found = {str(k): float(v) for k, v in top.items()}
    except (KeyError, IndexError, TypeError, ValueError, AttributeError, OverflowError):
        found = {}
    return finite_log_probs(found, answer)


def finite_log_probs(found: Mapping[str, float], answer: object) -> dict[str, float]:
    """Return the finite ones of a server's log-probabilities, by token. Raises Refusal where it has none."""
    finite = {k: v for k, v in found.items() if math.isfinite(v) and v > DROPPED}
    if not finite:
        fix = "serve it with log-probabilities, at least 5"
        raise Refusal("the server returns no log-probabilities", answer, fix)
    return finite


def log_prob_kind(warm: Mapping[str, float], cold: Mapping[str, float]) -> tuple[LogProbKind, float]:
    """Compare a server's log-probabilities at temperature 1 and at `COLD`.

    Returns
    -------
    kind : raw, processed, logits (not normalised), flat (too few different ones to tell) or other.
    ratio : of differences, cold over warm; nan if not needed.
    """
    if sum(math.exp(min(v, 0.0)) for v in warm.values()) > 1.01 or max(warm.values()) > _SAME:
        return "logits", math.nan
    both = sorted(set(warm) & set(cold), key=lambda t: warm[t])
    spread = warm[both[-1]] - warm[both[0]] if len(both) >= 2 else 0.0
    if spread < _TELLS:
        return "flat", math.nan
    ratio = (cold[both[-1]] - cold[both[0]]) / spread
    if abs(ratio - 1) * spread <= max(_SAME, 0.05 * spread):
        return "raw", ratio
    if abs(ratio - 1 / COLD) * spread <= max(_SAME, 0.05 * spread / COLD):
        return "processed", ratio
    return "other", ratio
