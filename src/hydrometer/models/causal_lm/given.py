"""Models judged as they are, as a chain of the run's graph: what each is asked, how it is opened, texts under it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import InstanceOf

from hydrometer.core.errors import InputError, ModelError
from hydrometer.core.findings import Finding
from hydrometer.core.rng import Stream
from hydrometer.core.spec import ChainSpec, Resample, Selectivities
from hydrometer.core.watching import doing
from hydrometer.models.base import Footprint, Law, Level, Precision, Samples
from hydrometer.models.capabilities import TextScores, TextTruth
from hydrometer.models.causal_lm.data.parts import Part
from hydrometer.models.causal_lm.data.prompts import Prompts
from hydrometer.models.causal_lm.family import CausalLMFamily
from hydrometer.models.causal_lm.loading import load
from hydrometer.models.causal_lm.loading.libraries import numerics
from hydrometer.models.causal_lm.opening import outline_of
from hydrometer.models.causal_lm.text_rows import answer_texts, score_drawn, score_held_out
from hydrometer.models.causal_lm.texts_and_given import as_law, as_sequences

if TYPE_CHECKING:
    from hydrometer.models.causal_lm.engines.served_model import Served
    from hydrometer.models.causal_lm.inference.law import CausalLaw
    from hydrometer.models.causal_lm.inference.served_law import ServedLaw

__all__ = ["GIVEN", "GivenModel", "GivenModelsFamily", "JudgedModels", "threads"]


@dataclass(frozen=True, slots=True, eq=False)
class GivenModel:
    """A model before its weights are opened, and what it is asked.

    Attributes
    ----------
    label : its short name.
    source, base : as the caller named it, and the model under its adapter.
    served : where it is served, or None for one that is opened.
    identity : what it is, by content.
    size : parameters, roughly.
    prompts, stop_ids, max_new_tokens : what it answers, where its answers end, where they are cut.
    """

    label: str
    source: str
    base: str | None
    identity: Mapping[str, str]
    size: float
    prompts: Prompts
    stop_ids: tuple[int, ...]
    max_new_tokens: int
    served: Served | None = None

    @property
    def role(self) -> str:
        """Its name in the graph."""
        return f"model {self.label}"

    @property
    def law(self) -> Mapping[str, object]:
        """Everything that its law depends on."""
        return {
            "model": dict(self.identity),
            "prompts": self.prompts.digest,
            "stop_ids": list(self.stop_ids),
            "max_new_tokens": self.max_new_tokens,
        }


class JudgedModels(ChainSpec):
    """A chain without fits: its models are drawn from and scored as they are.

    Attributes
    ----------
    models : the truth or the reference first, where there is one.
    held_out : texts in the place of a truth.
    rows, block_rows : answers drawn from every model, and how many of them together.
    threads, dtype, device : the arithmetic.
    """

    family: Literal["causal_lm"] = "causal_lm"  # pyright: ignore[reportIncompatibleVariableOverride]  (frozen)
    selectivity: Selectivities = ()
    decoding: Selectivities | None = ()
    resample: tuple[Resample, ...] = ()
    models: tuple[InstanceOf[GivenModel], ...]
    held_out: InstanceOf[Part] | None = None
    rows: int
    block_rows: int
    threads: int
    dtype: Literal["float32", "bfloat16"]
    device: str

    def model(self, role: str) -> GivenModel:
        """Return a model by its name in the graph."""
        return next(m for m in self.models if m.role == role)


class GivenModelsFamily(CausalLMFamily):
    """Causal language models as they are: a family of `models.capabilities.GivenModels`."""

    chain_spec: type[ChainSpec] = JudgedModels

    def levels(self, chain: ChainSpec) -> tuple[Level, ...]:
        """None: nothing is fitted."""
        return ()

    def sizes(self, chain: ChainSpec) -> Mapping[str, int]:
        """Answers drawn from every model."""
        return {"evaluate": _judged(chain).rows}

    def check(self, chain: ChainSpec) -> None:
        """Nothing: models and prompts were found before the chain was made."""

    def examine(self, chain: ChainSpec) -> Sequence[Finding]:
        """Nothing beyond the notes of the question."""
        return ()

    def numerics(self, chain: ChainSpec) -> Mapping[str, object]:
        """Versions, threads, processor class, device and dtype."""
        c = _judged(chain)
        return {**numerics(c.threads, c.device), "dtype": c.dtype}

    def prepare(self, chain: ChainSpec) -> None:
        """Set torch's threads to the chain's."""
        import torch

        torch.set_num_threads(_judged(chain).threads)

    def block_rows(self, chain: ChainSpec) -> int:
        """Rows drawn together."""
        return _judged(chain).block_rows

    def precision(self, chain: ChainSpec, purpose: Literal["train", "judge"]) -> Precision:
        """The one arithmetic."""
        return _judged(chain).dtype

    def truth_identity(self, chain: ChainSpec) -> Mapping[str, object]:
        """The first model's law."""
        return _judged(chain).models[0].law

    def truth(self, chain: ChainSpec, precision: Precision) -> CausalLaw | ServedLaw:
        """Open the first model."""
        return self.open_given(chain, _judged(chain).models[0].role, precision)

    def describe_truth(self, chain: ChainSpec) -> str:
        """Name the first model for what it is."""
        return _resolve(_judged(chain).models[0]).description

    def draw_identity(self, chain: ChainSpec, role: str, purpose: Literal["train", "judge"]) -> Mapping[str, object]:
        """The native sampler alone draws."""
        return {}

    def draw_block(
        self,
        chain: ChainSpec,
        law: Law,
        role: str,
        purpose: Literal["train", "judge"],
        n: int,
        *,
        stream: Stream,
        start: int,
    ) -> tuple[Samples, Mapping[str, object]]:
        """Draw a block natively, or by the server."""
        from hydrometer.models.causal_lm.inference.served_law import ServedLaw

        if isinstance(law, ServedLaw):
            return law.draw_block(n, stream=stream, start=start)
        return as_law(law).sample_block(n, stream=stream, start=start), {}

    def cost(self, chain: ChainSpec, stage: Literal["draw", "fit", "judge"], role: str, rows: int) -> float:
        """Operations of a stage, every answer as long as it may be."""
        m = _judged(chain).model(role)
        return 2.0 * m.size * rows * m.max_new_tokens

    def footprint(self, chain: ChainSpec, stage: Literal["draw", "fit", "judge"], role: str, rows: int) -> Footprint:
        """Rows or columns on disk; weights in memory."""
        from hydrometer.models.causal_lm.cost.memory import row_bytes

        c = _judged(chain)
        m = c.model(role)
        weights = int(m.size) * (4 if c.dtype == "float32" else 2)
        on_cpu = c.device == "cpu"
        if stage == "draw":
            return Footprint(10 * rows, row_bytes(rows, m.max_new_tokens), weights if on_cpu else 0)
        both = weights + int(c.models[0].size) * (4 if c.dtype == "float32" else 2)
        return Footprint(16 * rows, 8 * (6 + 2 * m.max_new_tokens.bit_length()) * rows, both if on_cpu else 0)

    def asked(self, chain: ChainSpec, law: Law, purpose: Literal["train", "judge"]) -> Law:
        """Return the law as it is: there is one set of prompts."""
        return law

    def text_truth(self, chain: ChainSpec) -> TextTruth | None:
        """None: held-out texts are judged on, and nothing is trained."""
        return None

    def given_roles(self, chain: ChainSpec) -> tuple[str, ...]:
        """Every model."""
        return tuple(m.role for m in _judged(chain).models)

    def given_identity(self, chain: ChainSpec, role: str) -> Mapping[str, object]:
        """Return what a model is, by content."""
        return _judged(chain).model(role).identity

    def judges_texts(self, chain: ChainSpec) -> bool:
        """Never: the question plans its scores of texts itself."""
        return False

    def unscored_roles(self, chain: ChainSpec) -> frozenset[str]:
        """Served models: they draw under a selectivity, and score without one alone."""
        return frozenset(m.role for m in _judged(chain).models if m.served is not None)

    def open_given(self, chain: ChainSpec, role: str, precision: Precision) -> CausalLaw | ServedLaw:
        """Open a model under its chain's prompts. Raises ModelError, InputError."""
        from hydrometer.models.causal_lm.inference.law import CausalLaw
        from hydrometer.models.causal_lm.inference.model import CausalLM
        from hydrometer.models.causal_lm.inference.served_law import ServedLaw, ServedLM

        c = _judged(chain)
        if precision == "float64":
            raise InputError("a causal LM runs in float32 or bfloat16", got=precision)
        m = c.model(role)
        if m.served is not None:
            there = ServedLM(m.served.served, outline_of(_resolve(m)), c.device)
            return ServedLaw(there, m.prompts, m.stop_ids, m.max_new_tokens, None, c.block_rows)
        doing(f"opening the weights of {m.source}")
        lm = CausalLM.open(_resolve(m), dtype=precision, device=c.device)
        lm.frozen = True  # drawn from and scored, never trained
        return CausalLaw(lm, m.prompts, m.stop_ids, m.max_new_tokens, None, c.block_rows)

    def score_texts(self, chain: ChainSpec, law: Law, texts: Samples | range, role: str) -> TextScores:
        """Score texts in the law's canonical tokenisation. Raises StageError, DataError."""
        c = _judged(chain)
        if isinstance(texts, range):
            if c.held_out is None:
                raise InputError("the chain has no held-out texts")
            return score_held_out(as_law(law), c.held_out, texts)
        writer = c.model(role)
        return score_drawn(as_law(law), as_sequences(texts), writer.prompts, outline_of(_resolve(writer)).tokenizer)

    def answers(self, chain: ChainSpec, role: str, rows: Samples) -> tuple[list[str], list[str]]:
        """Return the rows' prompts and answers as text."""
        m = _judged(chain).model(role)
        return answer_texts(as_sequences(rows), m.prompts, outline_of(_resolve(m)).tokenizer)

    def held_out_strata(self, chain: ChainSpec) -> NDArray[np.int64] | None:
        """Return which prompt each held-out text answers; None where all follow one."""
        held_out = _judged(chain).held_out
        return None if held_out is None else held_out.strata


GIVEN = GivenModelsFamily()


def threads() -> int:
    """Return torch's threads as they are set."""
    import torch

    return torch.get_num_threads()


def _resolve(m: GivenModel) -> load.Resolved:
    """Find a model again. Raises ModelError where it is another by now."""
    from hydrometer.models.causal_lm.inference.served_source import find_source

    found = find_source(m.served or m.source, base=m.base)
    if dict(found.identity) != dict(m.identity):
        raise ModelError("the model has changed since it was found", got=m.source, fix="judge it again")
    return found


def _judged(chain: ChainSpec) -> JudgedModels:
    if not isinstance(chain, JudgedModels):
        raise InputError("not a chain of given models", got=type(chain).__name__)
    return chain
