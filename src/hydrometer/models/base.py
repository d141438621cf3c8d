"""What can be drawn from, scored and fitted: the contracts every family keeps.

    truth p*  --draw-->  D  --fit-->  teacher p'  --select(s), draw-->  D'_s  --fit-->  student p''_s

A `Law` is a probability law over outcomes: it draws, scores, and can be selected. A `Family` knows how to make laws:
from a specification (the truth), from data (`fit`), and from a folder. Everything else in the package, drawing,
judging, storing, is written against these two alone. What either may offer besides stands in `models.capabilities`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Generic, Literal, Protocol, TypeVar, runtime_checkable

from hydrometer.core.array_types import Floats, Ints
from hydrometer.core.findings import Finding
from hydrometer.core.rng import Stream
from hydrometer.core.statistics.controls import Reference
from hydrometer.core.statistics.sampling_design import Strata

if TYPE_CHECKING:
    from hydrometer.core.distillation import TeacherLaw
    from hydrometer.core.spec import ChainSpec, Selectivity, Strict

__all__ = [
    "Controlled",
    "Family",
    "FitRequest",
    "Fitted",
    "Footprint",
    "KeptLaws",
    "Law",
    "Level",
    "PairedScores",
    "Samples",
    "ScoreKind",
    "Tick",
    "chain_levels",
    "no_progress",
]

ScoreKind = Literal["exact", "lower_bound", "estimate", "none"]
Precision = Literal["float32", "bfloat16", "float64"]

Tick = Callable[[float, float, str], None]
"""Progress: called with (done, total, what) from inside long work."""


def no_progress(done: float, total: float, what: str) -> None:
    """Report nothing."""


@runtime_checkable
class Samples(Protocol):
    """Rows drawn from a law.

    Attributes
    ----------
    log_prob : (N,) log-probability of each row under the law and numerics that drew it, nats.
    lengths : (N,) tokens drawn in each row, or None where outcomes have no length.
    strata : (N,) which prompt each row answers, as `Clusters` where the prompts are a sample; None where there is only
        one.
    """

    @property
    def log_prob(self) -> Floats:
        """(N,) nats."""
        ...

    @property
    def lengths(self) -> Ints | None:
        """(N,) tokens, or None."""
        ...

    @property
    def strata(self) -> Strata | None:
        """(N,) or None."""
        ...

    def __len__(self) -> int: ...


class Law(Protocol):
    """A probability law: what can be drawn from and scored.

    Attributes
    ----------
    score_kind : whether `log_prob` is exact, a lower bound, an estimate, or not to be had ("none": it raises, and the
        law's rows record the log-probability of the law that they were chosen from).
    """

    @property
    def score_kind(self) -> ScoreKind:
        """Exactness of `log_prob`."""
        ...

    def sample(self, n: int, *, seed: int | Stream = 0, start: int = 0) -> Samples:
        """Draw rows ``start .. start + n`` of the stream. Equal rows whatever the call that asks for them."""
        ...

    def log_prob(self, x: Samples) -> Floats:
        """Log-probability (density) of each row, (N,) float64, nats. Minus infinity is an answer."""
        ...

    def select(self, s: Selectivity) -> Law:
        """Return the law sharpened by `s`, normalised."""
        ...

    def compatible(self, other: object) -> None:
        """Refuse a law over other outcomes. Raises LawMismatchError, which says what differs."""
        ...


@dataclass(frozen=True, slots=True, eq=False)
class PairedScores:
    """Rows that a law drew, scored under it and under another, with control variates.

    Attributes
    ----------
    own, other : (N,) log-probability under the law that drew them and under the other, nats; -inf is an answer.
    controls : (N, K) functions of each row whose mean under the law that drew it is exactly zero; finite.
    own_steps, other_steps : sequences, (N, T) the same two by token, 0 beyond a row's length; or None.
    near_edge : (N,) at how many steps rounding could have changed what the law's selectivity keeps, where the scorer
        knows better than the rows' own record; or None.
    as_if_kept : (N,) how many of these are of tokens that the selectivity drops by no more than rounding; or None.
    reference : points that stand for the law, where it knows some; or None.
    """

    own: Floats
    other: Floats
    controls: Floats
    own_steps: Floats | None = None
    other_steps: Floats | None = None
    near_edge: Ints | None = None
    as_if_kept: Ints | None = None
    reference: Reference | None = None


@runtime_checkable
class Controlled(Protocol):
    """A law that knows expectations along its rows: what a `Law` may offer besides, to make estimates sharper."""

    def score_beside(self, x: Samples, other: Law, *, again: bool = False) -> PairedScores:
        """Score rows that this law drew under it and under `other`.

        `again` tells that the same rows will be scored beside further laws, so that what depends on this law alone may
        be kept. Raises LawMismatchError.
        """
        ...


LawT = TypeVar("LawT", covariant=True)


@dataclass(frozen=True, slots=True)
class Fitted(Generic[LawT]):
    """What a fit returns: the model, and JSON-able facts about how the fit went."""

    model: LawT
    info: Mapping[str, object]


@dataclass(frozen=True, slots=True)
class KeptLaws:
    """A teacher's next-token laws as they were kept along rows, which a fit reads in the place of the teacher.

    Attributes
    ----------
    law : what is kept, and in which form an objective sees it.
    data, validate : folders with what is kept along the rows to fit and the held-out ones, block by block.
    """

    law: TeacherLaw
    data: Sequence[Path]
    validate: Sequence[Path]


@dataclass(frozen=True, slots=True)
class FitRequest:
    """Everything a fit may depend on.

    Attributes
    ----------
    data : rows to fit; of families with a compact form of stored rows (`CompactRows`) that, in a run.
    validate : held-out rows of the same law, or None.
    truth : the law of level 0, whose prompts, stop set and layers a level may take over.
    teacher : the unselected law of the level above; None for a direct student, and where nothing of it is needed
        (`StartsAlone`).
    start : the direct student, where a distilled one goes on from its weights; else None.
    level : the level's parameters, of the family's own type.
    prefix_source : where prefixes come from (`core.distillation.Prefixes`): the data's rows, of the ``truth`` or the
        ``teacher``, or of a ``text`` of one's own with its own prompts; a share of steps takes rows that the student
        draws after the data's prompts, under ``student`` all.
    loss : training objective, as a specification names it (`core.distillation.Objective`); its target at every
        position is `teacher` at `selectivity`.
    selectivity : of the teacher, where the objective sees it; None for maximum likelihood, which sees rows alone.
    tokens : the fit ends with the step that reaches so many, in the place of the level's epochs or steps.
    stream : source of all randomness of the fit.
    tick : progress.
    partial : folder that outlives a killed fit, not yet made, for what it needs to go on; None for none.
    kept : what objectives see in the place of the teacher (`KeepsLaws`); None where they see the teacher itself.
    """

    data: Samples
    validate: Samples | None
    truth: Law
    teacher: Law | None
    level: Strict
    prefix_source: str
    loss: str
    stream: Stream
    tick: Tick = no_progress
    partial: Path | None = None
    selectivity: Selectivity | None = None
    start: Law | None = None
    tokens: int | None = None
    kept: KeptLaws | None = None


@dataclass(frozen=True, slots=True)
class Level:
    """One fitted level of a chain: its role's name and the parameters of its fit."""

    role: str
    spec: Strict


@dataclass(frozen=True, slots=True)
class Footprint:
    """Bytes that a stage takes.

    Attributes
    ----------
    disk_least, disk_most : what its artifact keeps: what is certain, and what it may come to.
    memory_least : held at once while it runs, as far as it is certain; what is not known beforehand is left out.
    scratch_most : on disk while it runs, beside its artifact, at most.
    """

    disk_least: int = 0
    disk_most: int = 0
    memory_least: int = 0
    scratch_most: int = 0


def chain_levels(
    teacher: Strict | Literal["truth"], assistants: Sequence[Strict], student: Strict
) -> tuple[Level, ...]:
    """Fitted levels of a chain: teacher, unless it is the truth; assistants; student."""
    above = () if isinstance(teacher, str) else (Level("teacher", teacher),)
    between = tuple(Level(f"assistant_{i}", a) for i, a in enumerate(assistants, start=1))
    return (*above, *between, Level("student", student))


class Family(Protocol):
    """A kind of model. A new family is one folder with one object of this type, and one line in `models.families`.

    Attributes
    ----------
    name : the value of `family:` in a specification.
    chain_spec : the type of its chains.
    keeps_draws : whether draws are dear and stored as artifacts, or cheap and drawn again where they are needed.
    """

    @property
    def name(self) -> str:
        """The word for `family:`."""
        ...

    @property
    def chain_spec(self) -> type[ChainSpec]:
        """The type of its chains."""
        ...

    @property
    def keeps_draws(self) -> bool:
        """Whether draws are stored."""
        ...

    def levels(self, chain: ChainSpec) -> tuple[Level, ...]:
        """Fitted levels below the truth, in order; `teacher: truth` leaves the teacher out."""
        ...

    def sizes(self, chain: ChainSpec) -> Mapping[str, int]:
        """Rows per stream: train, validate, distill, evaluate."""
        ...

    def check(self, chain: ChainSpec) -> None:
        """Refuse what can be known to be wrong before anything is drawn. Raises InputError."""
        ...

    def examine(self, chain: ChainSpec) -> Sequence[Finding]:
        """Look for what would spoil the result: from the chain alone or, where needed, by a small probe of the truth.

        Called for chains that `check` lets pass. Equal chains give equal findings: those of a family that stores its
        draws are kept with its artifacts.
        """
        ...

    def footprint(self, chain: ChainSpec, stage: Literal["draw", "fit", "judge"], role: str, rows: int) -> Footprint:
        """Return the bytes that a stage takes."""
        ...

    def numerics(self, chain: ChainSpec) -> Mapping[str, object]:
        """Return what equal bits depend on besides the inputs: versions, threads, processor class."""
        ...

    def block_rows(self, chain: ChainSpec) -> int:
        """Rows in a block of draws, part of a draw's identity."""
        ...

    def precision(self, chain: ChainSpec, purpose: Literal["train", "judge"]) -> Precision:
        """Return the arithmetic in which rows are drawn for training, and drawn and scored for judging."""
        ...

    def truth_identity(self, chain: ChainSpec) -> Mapping[str, object]:
        """Return what defines the truth's law, by content (hashes of weights, prompts), for keys."""
        ...

    def truth(self, chain: ChainSpec, precision: Precision) -> Law:
        """Make the truth's law."""
        ...

    def fit(self, request: FitRequest) -> Fitted[Law]:
        """Fit a new model; nothing has an unfitted state. Raises FitError."""
        ...

    def save_law(self, law: Law, folder: Path) -> None:
        """Write an unselected law into an existing empty folder."""
        ...

    def load_law(self, folder: Path, chain: ChainSpec, precision: Precision) -> Law:
        """Open what `save_law` wrote."""
        ...

    def save_samples(self, samples: Samples, folder: Path) -> None:
        """Write rows into an existing folder."""
        ...

    def load_samples(self, folders: list[Path], n: int) -> Samples:
        """Open the first n rows of the blocks that `save_samples` wrote, in the order given."""
        ...

    def take(self, samples: Samples, n: int) -> Samples:
        """Return the first n rows."""
        ...

    def exhibit(
        self, chain: ChainSpec, truth: Law, law: Law, samples: Samples, log_prob_truth: Floats
    ) -> Mapping[str, object] | None:
        """Something small and JSON-able for people to look at: sample texts, a density on a grid."""
        ...

    def describe_truth(self, chain: ChainSpec) -> str:
        """Name the truth for what it is, in one line."""
        ...

    def cost(self, chain: ChainSpec, stage: Literal["draw", "fit", "judge"], role: str, rows: int) -> float:
        """Return roughly the seconds of a stage on two cores: for time left, and to weigh stages against each other."""
        ...
