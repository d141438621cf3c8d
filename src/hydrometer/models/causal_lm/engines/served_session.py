"""The session with a served model, whatever serves it."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from functools import cache
from typing import Protocol

from hydrometer.models.causal_lm.engines.client import Refusal
from hydrometer.models.causal_lm.engines.engine import Answer, LogProbsAre, Order
from hydrometer.models.causal_lm.engines.openai import served_facts
from hydrometer.models.causal_lm.engines.prompt_scores import VllmSession, refused
from hydrometer.models.causal_lm.engines.served_model import ServedModel
from hydrometer.models.causal_lm.engines.sglang import SGLangSession, sglang_facts

__all__ = ["ServedSession", "forget_sessions", "opened_session"]


class ServedSession(Protocol):
    """A server that serves the model, as it was found."""

    @property
    def facts(self) -> Mapping[str, object]:
        """Facts for records: its version, and the kind of its log-probabilities."""
        ...

    @property
    def room(self) -> int | None:
        """Tokens of prompt and answer that it takes at most, where it says so."""
        ...

    def draw(self, order: Order) -> tuple[Sequence[Answer], LogProbsAre]:
        """Draw rows. Raises StageError."""
        ...

    def score(self, rows: Sequence[tuple[Sequence[int], Sequence[int]]]) -> list[tuple[float, ...]]:
        """Return the log-probability of every token of answers to prompts, nats, -inf included. Raises StageError."""
        ...


@cache
def _session(settings: str) -> ServedSession:
    model = ServedModel.model_validate(json.loads(settings))
    server = model.server(patience=model.patience)
    try:
        if model.api == "sglang":
            return SGLangSession(model, server, sglang_facts(server))
        return VllmSession(model, server, served_facts(server, model.model, 1))
    except Refusal as e:
        raise refused(e, server, model.model) from None


def opened_session(model: ServedModel) -> ServedSession:
    """Return the session with a served model, opened at the first call. Raises StageError where it is not served."""
    return _session(json.dumps(model.model_dump(mode="json")))


def forget_sessions() -> None:
    """Ask servers anew, as for what they serve by now."""
    _session.cache_clear()
