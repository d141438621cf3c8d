"""Probe which law a serving engine's log-probabilities are of, over HTTP at two temperatures.

`models.causal_lm.engines.temperature_probe` tells the laws apart; engines that draw use it too.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from hydrometer.core.errors import InputError, one_line
from hydrometer.core.findings import Finding, fatal, note, warning
from hydrometer.models.causal_lm.engines.client import Refusal, Server, server_base
from hydrometer.models.causal_lm.engines.temperature_probe import COLD, log_prob_kind, top_log_probs

__all__ = ["examine_server"]

_PROMPT = "The"


def examine_server(url: str, *, model: str | None = None, timeout: float = 60.0) -> list[Finding]:
    """Ask an OpenAI-compatible server for next-token log-probabilities at temperatures 1 and 0.5, and compare.

    Parameters
    ----------
    url : of the server, with or without ``/v1``.
    model : its name for the model; None takes the first that it lists.
    timeout : seconds to wait for each answer.

    Returns
    -------
    One finding that names the law of the log-probabilities.

    Raises
    ------
    InputError : no such server, or it returns no log-probabilities.
    """
    server = Server(server_base(url), timeout)
    try:
        name = model or _first_model(server)
        warm, cold = (top_log_probs(server.ask, name, _PROMPT, t) for t in (1.0, COLD))
    except Refusal as e:
        raise InputError(e.what, got=e.got, fix=e.fix) from None
    return [_verdict(warm, cold, _version(server))]


def _verdict(warm: Mapping[str, float], cold: Mapping[str, float], engine: str) -> Finding:
    """Compare the server's answers at temperature 1 and at a lower one."""
    kind, ratio = log_prob_kind(warm, cold)
    if kind == "logits":
        return fatal(
            "served-logits",
            f"{engine} returns logits where log-probabilities are asked for",
            "they are not normalised, so no entropy or divergence can be made of them",
            "serve with --logprobs-mode processed_logprobs, or raw_logprobs",
        )
    if kind == "flat":
        return warning(
            "served-undecided",
            f"{engine} returns too few different log-probabilities to tell at which temperature they are",
            "what its recorded log-probabilities are of is not known",
            "score the rows again here before using them",
        )
    if kind == "raw":
        return warning(
            "served-raw",
            f"{engine} returns log-probabilities of the law without its selectivity (raw)",
            "at another temperature than 1, or with top_p, top_k or min_p, the mean of these is a cross-entropy, not "
            "the entropy of what was drawn, and truncation does not show",
            "serve with --logprobs-mode processed_logprobs where rows are drawn selectively, or score them again here",
        )
    if kind == "processed":
        return note(
            "served-processed",
            f"{engine} returns log-probabilities of the law that it draws from (processed)",
            "these are what a row's recorded log-probability means here; those without the selectivity are not at hand",
            "nothing",
        )
    return warning(
        "served-undecided",
        f"{engine}'s log-probabilities change with temperature by a factor of {ratio:.2f}, where 1 or {1 / COLD:g} "
        "is expected",
        "what its recorded log-probabilities are of is not known: it may apply penalties or a truncation of its own",
        "switch off the server's default sampling parameters, or score the rows again here",
    )


def _first_model(server: Server) -> str:
    answer = server.ask("/v1/models")
    try:
        return str(answer["data"][0]["id"])
    except (KeyError, IndexError, TypeError):
        raise Refusal("the server lists no model", answer, "check that it has finished loading") from None


def _version(server: Server) -> str:
    """Return the engine's name; vLLM reports its version, others may not."""
    try:
        answer: Any = server.ask("/version")
        return f"vLLM {one_line(str(answer['version']), 40)}"
    except (Refusal, KeyError, TypeError):
        return "the server"
