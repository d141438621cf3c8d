"""Draws from a served model: OpenAI's completions API with vLLM's additional fields.

Prompts are sent as token ids, one request a row, with all sampling settings explicit, so that no chat template and no
default of a generation config applies. An answer must contain its token ids, the prompt's, and log-probabilities; all
are validated.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any, ClassVar, TypeVar

from pydantic import Field, field_validator
from pydantic_core import PydanticCustomError

from hydrometer.core.errors import InputError, MissingDependencyError, StageError, one_line
from hydrometer.core.spec import Strict
from hydrometer.models.causal_lm.engines.client import Refusal, Server, server_base
from hydrometer.models.causal_lm.engines.engine import (
    MOST_LOG_PROB,
    Answer,
    Drawable,
    DrawnChain,
    EngineSettings,
    LogProbsAre,
    Order,
    Place,
    own_settings,
    refuse_other_laws,
)
from hydrometer.models.causal_lm.engines.temperature_probe import COLD, log_prob_kind, top_log_probs

__all__ = [
    "BYTES_A_TOKEN",
    "OPENAI",
    "OpenAISession",
    "OpenAISettings",
    "ServerSettings",
    "check_ids",
    "failed",
    "log_probs_told",
    "served_facts",
]

AskedT = TypeVar("AskedT")
AnswerT = TypeVar("AnswerT")

BYTES_A_TOKEN = 2048  # upper bound of an answer's id, log-probability and text
_POSITIVE = 1e-3  # nats by which rounding may lift a log-probability above 0
_VLLM = "serve the truth with vLLM 0.11 or later"
ENGINE = "engine openai"


class ServerSettings(Strict):
    """Where a model is served, and how it is asked.

    Parameters
    ----------
    base_url : of the server, with or without ``/v1``.
    model : its name there.
    api_key_env : environment variable with the server's key. Its name begins with HYDROMETER_, so that a specification
        from elsewhere cannot send other secrets to its server.
    timeout : seconds for a whole answer.
    concurrency : concurrent requests.
    """

    base_url: str
    model: str = Field(min_length=1, max_length=512)
    api_key_env: str | None = None
    timeout: float = Field(default=600.0, gt=0, le=86_400)
    concurrency: int = Field(default=32, ge=1, le=1024)

    @field_validator("base_url")
    @classmethod
    def _is_url(cls, value: str) -> str:
        try:
            server_base(value)
        except InputError as e:
            raise PydanticCustomError("secret", "{why}", {"why": str(e)}) from None
        return value

    @field_validator("api_key_env")
    @classmethod
    def _is_ours(cls, value: str | None) -> str | None:
        if value is not None and not re.fullmatch(r"HYDROMETER_[A-Z0-9_]{1,100}", value):
            raise PydanticCustomError("secret", "the key's variable is named HYDROMETER_ and capitals, digits or _")
        return value

    def server(self, *, patience: float = 0.0) -> Server:
        """Return the server, with its key. Raises MissingDependencyError."""
        key = None
        if self.api_key_env is not None:
            key = os.environ.get(self.api_key_env)
            if not key or not key.isascii() or not key.isprintable():
                fix = "set it to the server's key before the run"
                raise MissingDependencyError("engine openai: no key in the environment", got=self.api_key_env, fix=fix)
        return Server(server_base(self.base_url), self.timeout, key, patience)


class OpenAISettings(ServerSettings, EngineSettings):
    """A served model that draws: the truth, and so a teacher that is the truth."""

    places: ClassVar[frozenset[str]] = frozenset({"base_url", "api_key_env", "timeout", "concurrency", "for"})
    can: ClassVar[tuple[Drawable, ...]] = ("truth",)


class _OpenAI:
    name = "openai"
    settings: type[EngineSettings] = OpenAISettings

    def check(self, settings: EngineSettings, chain: DrawnChain) -> None:
        """Refuse laws that it does not draw exactly; the server is contacted when rows are drawn."""
        refuse_other_laws(settings, chain, self.name)

    def identity(self, settings: EngineSettings) -> Mapping[str, object]:
        """Return the model's name: a key must not depend on whether the server is up."""
        return settings.identity()

    def open(self, settings: EngineSettings, place: Place) -> OpenAISession:
        """Check what the server serves. Raises StageError."""
        s = own_settings(settings, OpenAISettings)
        server = s.server()
        try:
            return OpenAISession(s, server, served_facts(server, s.model, place.longest))
        except Refusal as e:
            raise failed(e, server, ENGINE) from None


OPENAI = _OpenAI()


class OpenAISession:
    """A server that serves the model."""

    @property
    def _who(self) -> str:
        return ENGINE

    def __init__(self, settings: ServerSettings, server: Server, facts: dict[str, object]) -> None:
        self._settings, self._server, self._facts = settings, server, facts
        self.room: int | None = room if isinstance(room := facts.pop("room", None), int) else None
        self._kind: LogProbsAre | None = None

    @property
    def facts(self) -> Mapping[str, object]:
        """The server's version, if it reports one, and the kind of its log-probabilities."""
        return self._facts

    def draw(self, order: Order) -> tuple[Sequence[Answer], LogProbsAre]:
        """Draw one row a request, concurrently. Raises StageError."""
        try:
            return self._drawn(order)
        except Refusal as e:
            raise failed(e, self._server, self._who) from None

    def close(self) -> None:
        """Nothing is held."""

    def _drawn(self, order: Order) -> tuple[Sequence[Answer], LogProbsAre]:
        kind = self._log_probs(order)
        return self._concurrently(partial(self._row, order), range(len(order.prompts))), kind

    def _concurrently(self, ask: Callable[[AskedT], AnswerT], of: Iterable[AskedT]) -> list[AnswerT]:
        pool = ThreadPoolExecutor(max_workers=self._settings.concurrency)
        try:
            return list(pool.map(ask, of))
        finally:
            pool.shutdown(cancel_futures=True)

    def _top(self, prompt: Sequence[int], temperature: float) -> dict[str, float]:
        """Request the log-probabilities of the likeliest next tokens. Raises Refusal."""
        return top_log_probs(self._server.ask_patiently, self._settings.model, prompt, temperature)

    def _log_probs(self, order: Order) -> LogProbsAre:
        """Determine once which law the server's log-probabilities are of; a neutral selectivity needs no probe."""
        if self._kind is None:
            warm, cold = (self._top(order.prompts[0], t) for t in (1.0, COLD))
            found, _ = log_prob_kind(warm, cold)
            if found == "logits":
                fix = "serve with --logprobs-mode processed_logprobs"
                raise Refusal("the server returns logits for log-probabilities", self._settings.model, fix)
            if found in ("raw", "processed"):
                self._kind = "unselected" if found == "raw" else "selected"
                self._facts["log_probs"] = found
        if self._kind is not None:
            return self._kind
        if order.selectivity is None or order.selectivity.is_neutral:
            return "selected"
        fix = "switch off penalties and other sampling of the server's own"
        raise Refusal("the server's log-probabilities are neither raw nor processed", self._settings.model, fix)

    def _row(self, order: Order, i: int) -> Answer:
        most = 65_536 + BYTES_A_TOKEN * (order.max_new_tokens + len(order.prompts[i]))
        body: dict[str, object] = {
            "model": self._settings.model,
            "prompt": list(order.prompts[i]),
            "max_tokens": order.max_new_tokens,
            **order.sampling,
            "seed": order.seeds[i],
            "n": 1,
            "logprobs": 0,
            "stream": False,
            "echo": False,
            "stop": [],
            "stop_token_ids": list(order.stop_ids),
            "ignore_eos": True,
            "min_tokens": 0,
            "presence_penalty": 0.0,
            "frequency_penalty": 0.0,
            "repetition_penalty": 1.0,
            "logit_bias": {},
            "add_special_tokens": False,
            "skip_special_tokens": False,
            "return_token_ids": True,
            "return_tokens_as_token_ids": True,
        }
        return _answer(self._server.ask_patiently("/v1/completions", body, most_bytes=most), order, i)


def served_facts(server: Server, model: str, longest: int) -> dict[str, object]:
    """Find the model in the server's list, with room for `longest` tokens; return the server's version."""
    listed = server.ask_patiently("/v1/models")
    try:
        models = {str(m["id"]): m for m in listed["data"]}
    except (KeyError, TypeError):
        raise Refusal("the server lists no models", listed, "check the URL") from None
    if model not in models:
        fix = "known there: " + one_line(", ".join(models) or "none", 120)
        raise Refusal("the server does not serve that model", model, fix)
    room = models[model].get("max_model_len")
    if isinstance(room, int) and room < longest:
        fix = f"serve it with --max-model-len {longest} or more"
        raise Refusal("the server's max_model_len is shorter than prompt and answer", (room, longest), fix)
    try:
        version = one_line(server.masked(str(server.ask_patiently("/version")["version"])), 40)
    except (Refusal, KeyError, TypeError):  # servers other than vLLM need not report it
        version = "not told"
    return {"version": version, **({"room": room} if isinstance(room, int) else {})}


def _answer(found: Any, order: Order, i: int) -> Answer:
    """Validate one answer. Raises Refusal."""
    match found:
        case {"choices": [dict(choice)]}:
            pass
        case _:
            raise Refusal("the server does not give exactly one choice a request", found, "ask it with n = 1: " + _VLLM)
    prompt, ids = choice.get("prompt_token_ids"), choice.get("token_ids")
    if not isinstance(prompt, list) or not isinstance(ids, list):
        raise Refusal("the server does not return token ids (return_token_ids)", sorted(choice), _VLLM)
    check_ids(prompt, ids, order, i)
    return Answer(tuple(ids), _log_probs_of(choice, len(ids)))


def check_ids(prompt: object, ids: Sequence[object], order: Order, i: int) -> None:
    """Refuse another prompt than row i's, and an answer that is none of the tokenizer's. Raises Refusal."""
    if prompt != list(order.prompts[i]):
        what = "the server answers another prompt than the one it was sent (special tokens added, or cut short)"
        raise Refusal(what, prompt, "serve it so that prompts of token ids are taken as they are")
    if strange := [t for t in ids if type(t) is not int or not 0 <= t < order.vocab_size]:
        fix = "serve the truth's own model; engine vllm masks the rows of a padded vocabulary"
        raise Refusal(f"the server draws what is no id of the tokenizer (0 to {order.vocab_size - 1})", strange[0], fix)
    if not 1 <= len(ids) <= order.max_new_tokens:
        what = f"the server draws a row that is not of 1 to {order.max_new_tokens} tokens"
        raise Refusal(what, len(ids), "check its own limits on tokens")


def _log_probs_of(choice: Mapping[str, Any], n: int) -> tuple[float, ...]:
    told = choice.get("logprobs")
    values = told.get("token_logprobs") if isinstance(told, dict) else None
    if not isinstance(values, list) or len(values) != n:
        raise Refusal("the server does not return a log-probability for every token", told, _VLLM)
    return log_probs_told(values)


def log_probs_told(values: Iterable[Any]) -> tuple[float, ...]:
    """Return a server's log-probabilities, nats. Raises Refusal for what can be none."""
    out: list[float] = []
    for v in values:
        if type(v) not in (int, float) or not -MOST_LOG_PROB <= v <= _POSITIVE:
            raise Refusal("the server returns what is no log-probability", v, "serve it without raw_logits")
        out.append(float(v))
    return tuple(out)


def failed(e: Refusal, server: Server, who: str) -> StageError:
    """Return a refusal as the error of a stage, in one line."""
    return StageError(f"{who}: {server.masked(e.what)}", got=server.masked(e.got), fix=server.masked(e.fix))
