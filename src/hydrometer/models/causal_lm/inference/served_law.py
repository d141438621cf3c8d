"""The law of what a served model answers: the server draws, and scores given rows by its log-probabilities of prompts.

Nothing of the network is opened here, only its tokenizer. What the server says of given rows is the law at temperature
1. Under a selectivity it draws, and has no log-probability (`score_kind` "none"): rows then bear that of the law
itself. Ids that the network has beyond the tokenizer are part of its law, and are refused where one is drawn.

Shapes: N rows, T tokens.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cache, cached_property
from typing import TYPE_CHECKING

import numpy as np

from hydrometer.core.array_types import Floats, Ints
from hydrometer.core.errors import InputError, StageError
from hydrometer.core.rng import Stream, as_stream
from hydrometer.core.statistics.estimate import Estimate
from hydrometer.core.statistics.estimators import ratio_estimate
from hydrometer.models.base import Samples, ScoreKind
from hydrometer.models.causal_lm.engines.client import Refusal
from hydrometer.models.causal_lm.engines.engine import Order
from hydrometer.models.causal_lm.engines.openai import failed, served_facts
from hydrometer.models.causal_lm.engines.prompt_scores import VllmSession
from hydrometer.models.causal_lm.engines.served_model import ServedModel
from hydrometer.models.causal_lm.engines.sglang import SGLangSession, sglang_facts
from hydrometer.models.causal_lm.inference.draw_block import ROW_STREAM
from hydrometer.models.causal_lm.inference.opened import model_stop_ids, pick_device, vocabulary_hash
from hydrometer.models.causal_lm.inference.outcome_law import Outcomes
from hydrometer.models.causal_lm.inference.rescore import MOST_GAP, drawn_rows, refuse_repeats
from hydrometer.models.rows.sequences import Sequences

if TYPE_CHECKING:
    import torch

    from hydrometer.models.causal_lm.loading.load import Outline

__all__ = ["ServedLM", "ServedLaw", "forget_sessions", "opened_session"]


@cache
def _session(settings: str) -> VllmSession:
    model = ServedModel.model_validate(json.loads(settings))
    server = model.server(patience=model.patience)
    try:
        if model.api == "sglang":
            return SGLangSession(model, server, sglang_facts(server))
        return VllmSession(model, server, served_facts(server, model.model, 1))
    except Refusal as e:
        raise failed(e, server, f"served model {model.model}") from None


def opened_session(model: ServedModel) -> VllmSession:
    """Return the session with a served model, opened at the first call. Raises StageError where it is not served."""
    return _session(json.dumps(model.model_dump(mode="json")))


def forget_sessions() -> None:
    """Ask servers anew, as for what they serve by now."""
    _session.cache_clear()


_ERRORS = 4.0  # standard errors beyond what arithmetic explains


class ServedLM:
    """A served model: its tokenizer here, its network there.

    Parameters
    ----------
    served : where, and by which name.
    outline : tokenizer and stop set.
    device : where models that learn from it are trained.
    """

    def __init__(self, served: ServedModel, outline: Outline, device: str) -> None:
        self.served, self.tokenizer, self._device = served, outline.tokenizer, device
        self.stop_ids = model_stop_ids(outline.generation_config, outline.tokenizer)
        self.vocab_size: int = max(outline.tokenizer.get_vocab().values()) + 1

    @cached_property
    def vocabulary_hash(self) -> str:
        """Hash of every token with its id, and of which are special."""
        return vocabulary_hash(self.tokenizer)

    @property
    def device(self) -> torch.device:
        """Where models that learn from it are trained."""
        return pick_device(self._device)

    @property
    def session(self) -> VllmSession:
        """The server, asked for the first time at the first call. Raises StageError."""
        return opened_session(self.served)


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class ServedLaw(Outcomes):
    """The law of what a served model answers; see `Outcomes` for its parameters."""

    lm: ServedLM  # pyright: ignore[reportIncompatibleVariableOverride]  (frozen)

    @property
    def score_kind(self) -> ScoreKind:
        """Exact, up to the server's rounding; of a selected law there is none."""
        return "exact" if self.selectivity is None else "none"

    @property
    def room(self) -> int | None:
        """Tokens of prompt and answer that the server scores, where it says so. Raises StageError."""
        room = self.lm.session.room
        return None if room is None else room - 1

    @property
    def base(self) -> ServedLaw:
        """The law without its selectivity, under which its rows are scored."""
        return replace(self, selectivity=None)

    def sample(self, n: int, *, seed: int | Stream = 0, start: int = 0) -> Sequences:
        """Draw rows ``start .. start + n`` of the stream. Raises StageError."""
        if n < 1 or start < 0:
            raise InputError("sample needs n >= 1 and start >= 0", got=(n, start))
        return self.sample_block(n, stream=as_stream(seed), start=start)

    def sample_block(self, n: int, *, stream: Stream, start: int) -> Sequences:
        """Draw rows ``start .. start + n`` of the stream. Raises StageError."""
        return self.draw_block(n, stream=stream, start=start)[0]

    def draw_block(self, n: int, *, stream: Stream, start: int) -> tuple[Sequences, Mapping[str, object]]:
        """Draw rows ``start .. start + n`` of the stream, row i with a seed of its own.

        Returns
        -------
        Rows, whose log-probabilities are those of the law without its selectivity; and facts for records: the server's
        version, the kind of its log-probabilities, and how far those of drawing are from those of prompts.

        Raises
        ------
        StageError : the server fails, draws what is no outcome, or scores rows otherwise than it draws them.
        """
        index = np.arange(start, start + n, dtype=np.int64) % self.n_prompts
        session = self._session(self.longest + 1)
        order = Order(
            tuple(self.prompts.ids[int(p)] for p in index),
            tuple(stream.child(ROW_STREAM, str(i)).integer() for i in range(start, start + n)),
            self.selectivity,
            self.stop_ids,
            self.max_new_tokens,
            self.lm.vocab_size,
            padded=False,
        )
        answers, kind = session.draw(order)
        rows = drawn_rows(self, index, answers)
        told = np.zeros(rows.ids.shape)
        told[rows.within] = np.concatenate([a.log_probs for a in answers])
        scored = self.token_log_prob(rows)
        if not np.isfinite(scored[rows.within]).all():
            fix = "serve one model, without a mask on what it scores"
            raise StageError("the server draws ids that it gives no probability", got=self.lm.served.model, fix=fix)
        facts: dict[str, object] = {"name": "served", "model": self.lm.served.model, **session.facts}
        if kind == "unselected" or self.selectivity is None:
            facts["gap"] = _gap(rows, told - scored, self.lm.served.model)
        if kind == "selected":
            refuse_repeats(rows, told.sum(-1))
        single = scored.astype(np.float32)
        selected = self.selectivity is not None
        out = replace(
            rows,
            log_prob=scored.sum(-1),
            token_log_prob=None if selected else single,
            token_log_prob_unselected=single,
        )
        return out, {"served": facts}

    def token_log_prob(self, x: Sequences) -> Floats:
        """Log-probability of each token, (N, T) nats, under the law without its selectivity; zero beyond a row.

        Raises
        ------
        StageError : the server does not score prompts, or fails.
        """
        x = self._answers(x)
        rows = [(self.prompts.ids[int(p)], x.row(i).tolist()) for i, p in enumerate(x.prompt_index)]
        found = self._session(max(len(p) + len(a) for p, a in rows) + 1).score(rows)
        out = np.zeros(x.ids.shape)
        out[x.within] = np.concatenate(found)
        return out

    def likeliest(self, x: Samples, k: int) -> tuple[Ints, Floats]:
        """Return the k likeliest ids in the place of every token, row after row, (M, k), and their log-probabilities.

        Of the law without its selectivity, nats; minus infinity where the server masks an id.

        Raises
        ------
        StageError : the server tells fewer, or ids that the tokenizer does not have, or fails.
        """
        x = self._answers(x)
        rows = [(self.prompts.ids[int(p)], x.row(i).tolist()) for i, p in enumerate(x.prompt_index)]
        told = self._session(max(len(p) + len(a) for p, a in rows) + 1).likeliest(rows, k)
        found = [position for row in told for position in row]
        ids = np.array([[i for i, _ in position] for position in found], np.int64).reshape(-1, k)
        if ids.size and not 0 <= ids.min() <= ids.max() < self.lm.vocab_size:
            what = f"served model {self.lm.served.model}: among its likeliest ids is none of the tokenizer's"
            raise StageError(what, got=int(ids.max()), fix="serve the model of that tokenizer")
        return ids, np.array([[v for _, v in position] for position in found], np.float64).reshape(-1, k)

    def log_prob(self, x: Samples) -> Floats:
        """Log-probability of each row, (N,) float64, nats; minus infinity for impossible rows.

        Raises
        ------
        InputError : the law is selected: the server scores at temperature 1 alone.
        LawMismatchError : the rows answer other prompts. StageError : the server fails.
        """
        if self.selectivity is not None:
            raise InputError(
                "a served model scores given rows at temperature 1 alone",
                got=self.selectivity.label,
                fix="score them under the law without its selectivity",
            )
        x = self._answers(x)
        total = np.full(len(x), -np.inf)
        rows = np.flatnonzero(self.possible(x))
        if rows.size:
            total[rows] = self.token_log_prob(x.take(rows)).sum(-1)
        return total

    def score_own(self, x: Samples) -> Floats:
        """Score rows that this law drew, (N,) nats.

        Raises
        ------
        StageError : the rows bear other log-probabilities: what is served is another model by now.
        """
        x = self._answers(x)
        found = self.log_prob(x)
        _refuse_other_model(x, x.log_prob - found, self.lm.served.model)
        return found

    def _session(self, tokens: int) -> VllmSession:
        """Return the server, if it has room for so many tokens, with the one that a request for scores draws."""
        session = self.lm.session
        if session.room is not None and session.room < tokens:
            what = f"served model {self.lm.served.model}: the server has room for fewer tokens than prompt and answer"
            fix = f"serve it with --max-model-len {tokens} or more"
            raise StageError(what, got=(session.room, tokens), fix=fix)
        return session


def _mean(rows: Sequences, off: Floats) -> tuple[Estimate, float]:
    """Mean of differences of rows, per token, and what arithmetic explains of it."""
    gap = ratio_estimate(off, rows.lengths.astype(np.float64), "nats/token", rows.strata)
    return gap, MOST_GAP["bfloat16"] + _ERRORS * (gap.se or 0.0)


def _gap(rows: Sequences, off: Floats, model: str) -> dict[str, object]:
    """Compare a server's log-probabilities of what it draws with those of prompts. Raises StageError."""
    gap, most = _mean(rows, off.sum(-1))
    if gap.value is None or abs(gap.value) > most:
        raise StageError(
            f"served model {model}: its log-probabilities of prompts are not those that it draws by",
            got=f"{gap} where {most:.2g} is allowed",
            fix="serve one model, without penalties or biases, and with prompt_logprobs of the law at temperature 1",
        )
    return {"value": gap.value, "se": gap.se, "max": float(np.abs(off).max(initial=0.0))}


def _refuse_other_model(rows: Sequences, off: Floats, model: str) -> None:
    gap, most = _mean(rows, off)
    if gap.value is None or abs(gap.value) > most:
        raise StageError(
            f"served model {model}: it does not score rows as when it drew them: another model is served by now",
            got=f"{gap} where {most:.2g} is allowed",
            fix="serve the model that the run began with, or give this one another name and another folder",
        )
