"""How a chain of n-gram models is specified. See docs, Specification."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path
from typing import Annotated, Literal, Self

import numpy as np
from pydantic import BeforeValidator, Field, ValidationInfo, field_validator, model_validator
from pydantic_core import PydanticCustomError

from hydrometer.core.distillation import Objective, Prefixes, distillations_of
from hydrometer.core.errors import DataError, HydrometerError, SpecError
from hydrometer.core.io.yaml_io import is_object
from hydrometer.core.rng import Stream
from hydrometer.core.spec import MAX_LEVELS, MAX_ROWS, MAX_SEED, Resample, Strict, as_tuples
from hydrometer.models.cheap import EVERYTHING, ChainWithTarget
from hydrometer.models.markov.law import END, MOST_ENTRIES, Markov
from hydrometer.models.markov.ngram_fit import fit_markov
from hydrometer.models.markov.optimum import refuse_inexact
from hydrometer.models.markov.rewards import in_nats, reward_table
from hydrometer.models.objectives import Divergence, check_prefixes, divergence_of, drops, refuse_infinite

__all__ = ["MarkovChain", "MarkovData", "MarkovLevel", "MarkovTruth"]

_MOST_TEXT = 50_000_000
_LETTERS = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789"


class MarkovTruth(Strict):
    """The truth: a chain drawn from a seed, or counted in a text file, one sequence a line.

    Attributes
    ----------
    order : m.
    max_new_tokens : L.
    vocabulary : of a drawn chain, V with the end of sequence. Its rows are Dirichlet.
    concentration : of the Dirichlet; small ones make the chain predictable.
    end : probability of the end of sequence at every step of a drawn chain.
    seed : of a drawn chain.
    text : a UTF-8 file; ids are its characters, most frequent first.
    smoothing : added to the counts of a text.
    """

    order: int = Field(ge=0, le=8)
    max_new_tokens: int = Field(default=16, ge=1, le=4096)
    vocabulary: int | None = Field(default=None, ge=2, le=4096)
    concentration: float = Field(default=0.5, gt=0, lt=1e6)
    end: float = Field(default=0.1, gt=0, lt=1)
    seed: int = Field(default=0, ge=0, le=MAX_SEED)
    text: str | None = None
    smoothing: float = Field(default=0.0, ge=0, lt=1e6)

    @model_validator(mode="after")
    def _one_source(self) -> Self:
        if (self.vocabulary is None) == (self.text is None):
            raise PydanticCustomError("truth", "a truth is drawn (vocabulary) or counted in a file (text): give one")
        if self.vocabulary is not None and (self.vocabulary + 1) ** self.order * self.vocabulary > MOST_ENTRIES:
            raise PydanticCustomError("size", "the truth's table has too many entries; lower order or vocabulary")
        return self

    def law(self) -> Markov:
        """Build the chain. Raises DataError."""
        if self.text is not None:
            return _counted(self.text, self.order, self.max_new_tokens, self.smoothing)[0]
        return _drawn(self)

    def symbols(self) -> str:
        """What ids 1, 2, ... are written as."""
        if self.text is not None:
            return _counted(self.text, self.order, self.max_new_tokens, self.smoothing)[1]
        return "".join(_LETTERS[i] if i < len(_LETTERS) else chr(0x4E00 + i) for i in range((self.vocabulary or 2) - 1))


def _drawn(truth: MarkovTruth) -> Markov:
    from scipy.special import gammaincinv  # pyright: ignore[reportUnknownVariableType]

    v = truth.vocabulary or 2
    rows = (v + 1) ** truth.order
    u = Stream(truth.seed).child("chain").uniforms(0, rows, v - 1)
    gamma = np.maximum(np.asarray(gammaincinv(truth.concentration, u), np.float64), 1e-300)
    others = np.log(gamma) - np.log(gamma.sum(axis=1, keepdims=True)) + np.log1p(-truth.end)
    log_table = np.concatenate([np.full((rows, 1), np.log(truth.end)), others], axis=1)
    return Markov(log_table, order=truth.order, max_new_tokens=truth.max_new_tokens)


@lru_cache(maxsize=4)
def _counted(path: str, order: int, max_new_tokens: int, smoothing: float) -> tuple[Markov, str]:
    file = Path(path)
    try:
        if not file.is_file():
            raise DataError("the text is no file", got=file.name, fix="give a UTF-8 file")
        if file.stat().st_size > _MOST_TEXT:
            raise DataError(f"the text is larger than {_MOST_TEXT // 1_000_000} MB", got=file.name)
        lines = [x for x in file.read_text("utf-8").splitlines() if x.strip()]
    except (OSError, ValueError) as e:  # not UTF-8, or a name with NUL
        raise DataError(f"the text cannot be read: {e}", got=file.name, fix="give a UTF-8 file") from None
    if not lines:
        raise DataError("the text has no lines", got=file.name)
    values, counts = np.unique(np.array(list("".join(lines))), return_counts=True)
    symbols = "".join(values[np.argsort(-counts, kind="stable")])
    ids = {c: i + 1 for i, c in enumerate(symbols)}
    rows = [[*(ids[c] for c in line[:max_new_tokens]), END][:max_new_tokens] for line in lines]
    model = fit_markov(
        rows, order, smoothing=smoothing, vocabulary=len(symbols) + 1, max_new_tokens=max_new_tokens
    ).model
    return model, symbols


class MarkovLevel(Strict):
    """A fitted level: counts with additive smoothing."""

    order: int = Field(ge=0, le=8)
    smoothing: float = Field(default=0.01, ge=0, lt=1e6)


class MarkovData(Strict):
    """Rows per stream."""

    train: int = Field(default=1000, ge=1, le=MAX_ROWS)
    distill: int = Field(default=4000, ge=1, le=MAX_ROWS)
    evaluate: int = Field(default=4000, ge=2, le=MAX_ROWS)


class MarkovChain(ChainWithTarget):
    """truth -> teacher -> student, all n-gram chains.

    `loss` names objectives, each with every selectivity (see `models.objectives`; their exact optima, `optimum`), and
    `prefixes` whose rows they are taken on: the teacher's, the truth's, the student's own, or some of these.
    """

    family: Literal["markov"]  # pyright: ignore[reportIncompatibleVariableOverride]  (frozen: no one can assign)
    truth: MarkovTruth
    teacher: MarkovLevel | Literal["truth"]
    assistants: Annotated[tuple[MarkovLevel, ...], Field(max_length=MAX_LEVELS), BeforeValidator(as_tuples)] = ()
    student: MarkovLevel
    loss: Annotated[tuple[str, ...], Field(min_length=1, max_length=MAX_LEVELS), BeforeValidator(as_tuples)] = ("mle",)  # pyright: ignore[reportIncompatibleVariableOverride]  (frozen)
    prefixes: Annotated[tuple[str, ...], Field(min_length=1, max_length=MAX_LEVELS), BeforeValidator(as_tuples)] = (
        "teacher",
    )
    data: MarkovData = MarkovData()
    resample: Annotated[tuple[Resample, ...], Field(max_length=5), BeforeValidator(as_tuples)] = EVERYTHING

    @property
    def _omitted(self) -> set[str]:
        return super()._omitted | ({"prefixes"} if self.prefixes == ("teacher",) else set())

    @field_validator("prefixes")
    @classmethod
    def _known_prefixes(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        try:
            found = [check_prefixes(v) for v in value]
            for p in found:
                if "every" in dict(p.parameters):
                    what = "a chain's student has its own prefixes' probabilities, and draws no rows every few steps"
                    raise SpecError(what, got=p.to_json(), fix="leave out every")
        except SpecError as e:
            raise PydanticCustomError("prefixes", "{problem}", {"problem": str(e)}) from None
        return tuple(p.to_json() for p in found)

    @model_validator(mode="after")
    def _solvable(self) -> Self:
        try:
            for o in map(Objective.from_json, self.loss):
                refuse_inexact(o)
                d = divergence_of(o)
                if d is None:
                    continue
                for s in self.selectivity:
                    refuse_infinite(o, s)
                    if s.chooses:
                        raise SpecError(
                            f"{o.name} needs the teacher's next-id laws, which choosing has not", got=s.label
                        )
                    if o.name == "generalised_kl" and s.tilt is not None and drops(s):
                        what = "generalised_kl sees the teacher before it drops ids, which a tilt comes after"
                        raise SpecError(what, got=s.label, fix="tilt without top_k, top_p and min_p")
                own = any(Prefixes.from_json(p).own for p in self.prefixes)
                if isinstance(d, Divergence) and d.mle > 0 and own:
                    raise SpecError("maximum likelihood on its own rows teaches a student nothing", got=o.to_json())
            distillations_of(self)
        except SpecError as e:
            raise PydanticCustomError("loss", "{problem}", {"problem": str(e)}) from None
        if self.loss == ("mle",) and self.prefixes != ("teacher",):
            what = "mle is taken on the teacher's rows; the truth's make the direct student: name other losses"
            raise PydanticCustomError("prefixes", what)
        return self

    @field_validator("truth", mode="before")
    @classmethod
    def _beside(cls, value: object, info: ValidationInfo) -> object:
        """Read a relative file name from the specification's folder."""
        base = info.context.get("base") if is_object(info.context) else None
        if not is_object(value):
            return value
        text = value.get("text")
        return value | {"text": str(base / text)} if isinstance(text, str) and isinstance(base, Path) else value

    @field_validator("teacher", mode="before")
    @classmethod
    def _teacher(cls, value: object) -> object:
        if isinstance(value, str) and value != "truth":
            raise PydanticCustomError("teacher", "teacher is a mapping with order, or the word truth")
        return value

    @model_validator(mode="after")
    def _sane(self) -> Self:
        try:
            v = self.truth.law().vocabulary
        except HydrometerError as e:
            raise PydanticCustomError("truth", "{m}", {"m": str(e)}) from None
        for s in self.settings:
            if s.weight_power is not None:
                what = "a chain is selected by token selectivities, sequence_power or tilt, not by {s}"
                raise PydanticCustomError("kind", what, {"s": s.label})
            if s.tilt is not None:
                try:
                    in_nats(reward_table(s.tilt, v, self.truth.max_new_tokens), s.tilt.strength)
                except HydrometerError as e:
                    raise PydanticCustomError("tilt", "{m}", {"m": str(e)}) from None
        levels = (self.student, *self.assistants, *(() if self.teacher == "truth" else (self.teacher,)))
        if any((v + 1) ** x.order * v > MOST_ENTRIES for x in levels):
            raise PydanticCustomError("size", "a level's table has too many entries; lower its order")
        return self
