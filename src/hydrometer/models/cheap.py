"""Families whose rows are cheap to draw, with the answers that most of them give alike.

A `CheapFamily` is a chain's type, a law's type and a fit; everything else has a default that may be overridden. A
`Density` is a law over R^d by three methods, a `CheapChain` a specification with counts of rows.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, Self, cast

import numpy as np
from pydantic import BeforeValidator, Field, SerializerFunctionWrapHandler, model_serializer, model_validator
from pydantic_core import PydanticCustomError

from hydrometer.core.array_types import Floats
from hydrometer.core.errors import DataError, InputError, LawMismatchError, one_line
from hydrometer.core.findings import Finding
from hydrometer.core.rng import Stream, as_stream
from hydrometer.core.spec import MAX_ROWS, ChainSpec, Resample, Selectivity, Strict, as_tuple
from hydrometer.models.array_files import load_arrays, load_rows, save_arrays, take_rows
from hydrometer.models.base import (
    FitRequest,
    Fitted,
    Footprint,
    Law,
    Level,
    Precision,
    Samples,
    ScoreKind,
    chain_levels,
)
from hydrometer.models.finite_selectivity import refuse_choice
from hydrometer.models.rows.points import Points
from hydrometer.models.rows.sequences import Sequences, load_sequences, save_sequences

__all__ = ["EVERYTHING", "ChainWithTarget", "CheapChain", "CheapFamily", "Density", "RowCounts", "points_of"]

Stage = Literal["draw", "fit", "judge"]
EVERYTHING: tuple[Resample, ...] = ("data", "teacher", "distill", "student", "evaluate")
_ROWS_FILE = "rows.parquet"


class RowCounts(Strict):
    """Rows per stream."""

    train: int = Field(default=1000, ge=1, le=MAX_ROWS)
    distill: int = Field(default=1000, ge=1, le=MAX_ROWS)
    evaluate: int = Field(default=4000, ge=2, le=MAX_ROWS)


class ChainWithTarget(ChainSpec):
    """A chain whose models may be judged against the truth as a selectivity makes it, such as a tilt.

    Attributes
    ----------
    target : what models are judged against; None for the truth as it is. Fits read rows of the truth as it is.
    """

    target: Selectivity | None = None

    @model_serializer(mode="wrap")
    def _said(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Omit defaults, so that specifications from before these fields stay what they are."""
        body: dict[str, Any] = handler(self)
        return {k: v for k, v in body.items() if k not in self._omitted}

    @property
    def _omitted(self) -> set[str]:
        return {"target"} if self.target is None else set()

    @model_validator(mode="after")
    def _scored(self) -> Self:
        if self.target is not None and self.target.chooses:
            what = "what models are judged against has log-probabilities, which best_of and accept have not"
            raise PydanticCustomError("target", what)
        if self.target is not None and getattr(self, "teacher", None) == "truth":
            what = "a target needs a teacher of its own: the truth's figures are the target's, not the teacher's"
            raise PydanticCustomError("target", what)
        return self

    @property
    def settings(self) -> tuple[Selectivity, ...]:
        """All selectivities that are named: of the teacher, of decoded students, and of the target."""
        target = () if self.target is None else (self.target,)
        return (*self.selectivity, *(self.decoding or ()), *target)


class CheapChain(ChainWithTarget):
    """A chain with counts of rows, of which a new seed redraws everything.

    A subclass adds `truth`, which has a method ``law()``, `teacher` and `student`, and `assistants` where it has some.
    """

    data: RowCounts = RowCounts()
    resample: Annotated[tuple[Resample, ...], Field(max_length=5), BeforeValidator(as_tuple)] = EVERYTHING


def points_of(x: Samples | Floats, n_features: int | None = None) -> Floats:
    """Return points (N, d) float64.

    Raises
    ------
    DataError : other rows, another d than `n_features`, NaN.

    Examples
    --------
    >>> points_of(np.ones((3, 2)), 2).shape
    (3, 2)
    """
    found = np.asarray(x.x if isinstance(x, Points) else x)
    if found.ndim != 2 or found.dtype.kind not in "biuf" or found.shape[1] != (n_features or found.shape[1]):
        raise DataError(f"points must be numbers of shape (N, {n_features or 'd'})", got=(found.dtype, found.shape))
    if np.isnan(found).any():
        raise DataError("points must not be NaN", got=f"{int(np.isnan(found).any(axis=1).sum())} rows", fix="drop them")
    return found.astype(np.float64, copy=False)


class Density(ABC):
    """A law over R^d: how uniforms become points, the log density of points, and what sharpening makes of it.

    A subclass is a frozen dataclass of arrays and numbers, which is how `CheapFamily` stores it. `selected_by` names
    the fields of a `Selectivity` that it takes, one at a time or together; all others are refused. `block_rows` is set
    where the last bits of a row depend on how many are computed beside it, as in a matrix product: then `points` and
    `log_density` get blocks of so many rows.
    """

    selected_by: ClassVar[tuple[str, ...]] = ()
    block_rows: ClassVar[int | None] = None
    score_kind: ScoreKind = "exact"

    @property
    def n_features(self) -> int:
        """The dimension d: what makes densities comparable."""
        return 1

    @abstractmethod
    def points(self, uniforms: Floats) -> Floats:
        """Return one point of each row of uniforms in (0, 1): (N, d) to (N, d)."""

    @abstractmethod
    def log_density(self, x: Floats) -> Floats:
        """Return the log density of points (N, d), (N,) nats; minus infinity is an answer."""

    @abstractmethod
    def sharpened(self, s: Selectivity) -> Self:
        """Return the normalised law at a setting that changes something."""

    def sample(self, n: int, *, seed: int | Stream = 0, start: int = 0) -> Points:
        """Draw rows ``start .. start + n`` of the stream."""
        before = start % (self.block_rows or 1)  # rows of the first block that were not asked for
        uniforms = as_stream(seed).uniforms(start - before, before + n, self.n_features)
        x = self._by_blocks(self.points, uniforms)
        return Points(x[before:], self._by_blocks(self.log_density, x)[before:])

    def log_prob(self, x: Samples | Floats) -> Floats:
        """Log density of each point, (N,) nats. Raises DataError."""
        return self._by_blocks(self.log_density, points_of(x, self.n_features))

    def _by_blocks(self, f: Callable[[Floats], Floats], rows: Floats) -> Floats:
        if self.block_rows is None:
            return f(rows)
        size, filler = self.block_rows, rows[-1:] if len(rows) else np.full((1, rows.shape[1]), 0.5)
        count = max(-(-len(rows) // size), 1)
        filled = np.concatenate([rows, np.repeat(filler, count * size - len(rows), axis=0)])
        return np.concatenate([f(filled[i * size : (i + 1) * size]) for i in range(count)])[: len(rows)]

    def select(self, s: Selectivity) -> Self:
        """Return the law sharpened by `s`. Raises InputError."""
        self.refuse(s)
        return self if s.is_neutral else self.sharpened(s)

    @classmethod
    def refuse(cls, s: Selectivity) -> None:
        """Refuse a setting that is not of `selected_by`. Raises InputError."""
        refuse_choice(s)
        if not set(s.to_json()) <= set(cls.selected_by):
            fix = f"use {', '.join(cls.selected_by) or 'none'}"
            raise InputError(f"{cls.__name__} is not selected by this", got=s.label, fix=fix)

    def compatible(self, other: object) -> None:
        """Refuse a law over other outcomes: a density over R^d says d as `n_features`. Raises LawMismatchError."""
        theirs = getattr(other, "n_features", type(other).__name__)
        if theirs != self.n_features:
            what = f"a density over {self.n_features} dimensions is compared with its like"
            raise LawMismatchError(what, got=theirs)


def against(chain: ChainSpec) -> str:
    """Return what to add to a truth's description: what models are judged against, where that is not the truth."""
    target = chain.target if isinstance(chain, ChainWithTarget) else None
    return "" if target is None else f"; models are judged against its {target.label}"


class CheapFamily(ABC):
    """A family whose rows are drawn again where they are needed; a subclass says what it is and how it is fitted.

    Attributes
    ----------
    name, chain_spec : as in `Family`.
    law_type : a frozen dataclass of arrays and numbers; not needed by a family that stores laws itself.
    rows_type : `Points`, `Sequences`, or a frozen dataclass of arrays with one entry a row.
    libraries : whose versions equal bits depend on; of installed distributions.
    files : a number to raise when the arithmetic or the files change.
    seconds : of a stage, roughly.
    """

    name: str
    chain_spec: type[ChainSpec]
    law_type: type[Any]
    rows_type: type[Any] = Points
    keeps_draws: bool = False
    libraries: tuple[str, ...] = ("numpy",)
    files: int = 1
    seconds: Mapping[Stage, float] = {"draw": 5e-6, "fit": 0.015, "judge": 0.03}

    @abstractmethod
    def fit(self, request: FitRequest) -> Fitted[Law]:
        """Fit a new model. Raises FitError."""

    def levels(self, chain: ChainSpec) -> tuple[Level, ...]:
        """Teacher, unless it is the truth; assistants, where the chain has some; student."""
        c: Any = chain
        return chain_levels(c.teacher, getattr(c, "assistants", ()), c.student)

    def sizes(self, chain: ChainSpec) -> Mapping[str, int]:
        """Rows per stream, as the chain's `data` counts them; no held-out rows where it names none."""
        return {"validate": 0} | cast("Any", chain).data.model_dump(by_alias=True)

    def check(self, chain: ChainSpec) -> None:
        """Refuse what a `Density` is not selected by, and a target where draws are stored. Raises InputError."""
        target = chain.target if isinstance(chain, ChainWithTarget) else None
        if target is not None and self.keeps_draws:
            raise InputError(f"{self.name} stores its draws and is judged against the truth alone", got=target.label)
        kind = getattr(self, "law_type", object)
        if issubclass(kind, Density):
            for s in (*chain.selectivity, *(chain.decoding or ()), *(() if target is None else (target,))):
                kind.refuse(s)

    def examine(self, chain: ChainSpec) -> Sequence[Finding]:
        """Find nothing."""
        return ()

    def footprint(self, chain: ChainSpec, stage: Stage, role: str, rows: int) -> Footprint:
        """Points are held in memory, float64, with their log-probabilities; of other rows nothing is certain."""
        d = getattr(self.truth(chain, "float64"), "n_features", None)
        return Footprint(memory_least=8 * rows * (d + 1) if isinstance(d, int) else 0)

    def numerics(self, chain: ChainSpec) -> Mapping[str, object]:
        """Versions of what computes."""
        return {"files": self.files, **{name: metadata.version(name) for name in self.libraries}}

    def block_rows(self, chain: ChainSpec) -> int:
        """Draws are not stored; one block holds any draw."""
        return 1 << 20

    def precision(self, chain: ChainSpec, purpose: Literal["train", "judge"]) -> Precision:
        """Always float64."""
        return "float64"

    def truth_identity(self, chain: ChainSpec) -> Mapping[str, object]:
        """The truth as it is specified."""
        return cast("Any", chain).truth.model_dump(mode="json")

    def truth(self, chain: ChainSpec, precision: Precision) -> Law:
        """Make the truth: what its specification's ``law()`` returns."""
        return cast("Any", chain).truth.law()

    def save_law(self, law: Law, folder: Path) -> None:
        """Write the law's fields."""
        save_arrays(law, folder)

    def save_truth(self, chain: ChainSpec, folder: Path) -> None:
        """Write the truth as a fit is written, where it is of `law_type`."""
        truth = self.truth(chain, self.precision(chain, "judge"))
        if isinstance(truth, getattr(self, "law_type", ())):
            self.save_law(truth, folder)

    def load_law(self, folder: Path, chain: ChainSpec, precision: Precision) -> Law:
        """Open what `save_law` wrote. Raises StoreError."""
        return load_arrays(self.law_type, folder)

    def save_samples(self, samples: Samples, folder: Path) -> None:
        """Write rows: sequences as Parquet, others as arrays."""
        if isinstance(samples, Sequences):
            save_sequences(samples, folder / _ROWS_FILE)
        else:
            save_arrays(samples, folder)

    def load_samples(self, folders: list[Path], n: int) -> Samples:
        """Open the first n rows of blocks. Raises StoreError."""
        if self.rows_type is Sequences:
            return Sequences.concatenate([load_sequences(f / _ROWS_FILE) for f in folders]).take(slice(0, n))
        return load_rows(self.rows_type, folders, n)

    def take(self, samples: Samples, n: int) -> Samples:
        """Return the first n rows."""
        return samples.take(slice(0, n)) if isinstance(samples, Sequences) else take_rows(samples, n)

    def exhibit(
        self, chain: ChainSpec, truth: Law, law: Law, samples: Samples, log_prob_truth: Floats
    ) -> Mapping[str, object] | None:
        """Show nothing."""
        return None

    def describe_truth(self, chain: ChainSpec) -> str:
        """Name the family and the truth's parameters."""
        fields = cast("Any", chain).truth.model_dump(mode="json", exclude_none=True)
        return one_line(f"{self.name}: " + ", ".join(f"{k} {v}" for k, v in fields.items()), 120) + against(chain)

    def cost(self, chain: ChainSpec, stage: Stage, role: str, rows: int) -> float:
        """Seconds on one core, roughly."""
        return self.seconds[stage]
