"""What a family, or a law of it, may offer besides its contract; asked for with isinstance."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from hydrometer.core.findings import Finding
from hydrometer.core.rng import Stream
from hydrometer.core.spec import Strict
from hydrometer.core.statistics.sampling_design import PromptsAre
from hydrometer.models.base import Family, Law, Precision, Samples

if TYPE_CHECKING:
    from hydrometer.core.spec import ChainSpec

__all__ = [
    "AsksParts",
    "Baseline",
    "ChecksInputs",
    "CompactRows",
    "DrawsUnscored",
    "Embeds",
    "GivenModels",
    "KeepsTruth",
    "KnowsItsRows",
    "MapPoint",
    "Maps",
    "RendersPrompts",
    "TextScores",
    "TextTruth",
    "TextTruths",
    "Threaded",
    "TrainsElsewhere",
    "given_models",
]


@runtime_checkable
class Embeds(Protocol):
    """A law whose model can place outcomes in a space of its own: an optional capability, for pictures."""

    def embed(self, x: Samples) -> NDArray[np.float32]:
        """Return one vector a row, (N, D); equal rows have equal vectors."""
        ...

    def texts(self, x: Samples) -> tuple[list[str], list[str]]:
        """Return the rows' prompts and answers as text for people."""
        ...


@runtime_checkable
class ChecksInputs(Protocol):
    """A family that is dear to open: an optional capability.

    `Family.check` may open what it needs; this is asked first, of all chains.
    """

    def check_inputs(self, chain: ChainSpec) -> None:
        """Refuse files and sources that cannot be used, by names and headers alone. Raises InputError."""
        ...


@runtime_checkable
class KeepsTruth(Protocol):
    """A family whose truths are numbers of a specification: an optional capability, so that others can compute them."""

    def save_truth(self, chain: ChainSpec, folder: Path) -> None:
        """Write a chain's truth as a fit is written; nothing where it is not a law of this family's own kind."""
        ...


@runtime_checkable
class Threaded(Protocol):
    """A family whose bits depend on the threads of the process: an optional capability.

    Its `numerics` have "threads", and "device" where work may be elsewhere than on the processor: "cuda", or "auto",
    which takes cuda where there is one.
    """

    def prepare(self, chain: ChainSpec) -> None:
        """Set this process's threads to those of the chain. Called before every stage."""
        ...


@runtime_checkable
class CompactRows(Protocol):
    """A family with a compact form of stored rows for its fits: what a `Family` may offer besides.

    Its `fit` takes them as `FitRequest.data` where it takes what `load_samples` gives, with the same result.
    """

    def load_training_rows(self, folders: list[Path], n: int, scratch: Path) -> Samples:
        """Open the first n rows of the blocks that `save_samples` wrote, in the order given.

        `scratch` is a folder on whose disk they may lie, in a file without a name that goes with the process.
        """
        ...


@dataclass(frozen=True, slots=True)
class MapPoint:
    """One point of a map: its values by axis, and the chain that they make."""

    values: dict[str, float]
    chain: ChainSpec

    @property
    def slug(self) -> str:
        """For names; never parsed back."""
        return "-".join(f"{axis}{value:g}" for axis, value in self.values.items())


@runtime_checkable
class Maps(Protocol):
    """A family whose chains may be maps: a grid of chains, over all seeds at once."""

    def is_map(self, chain: ChainSpec) -> bool:
        """Whether a chain is one."""
        ...

    def map_seeds(self, chain: ChainSpec, seeds: tuple[int, ...]) -> tuple[int, ...]:
        """Return a chain's own seeds, where it has some in place of the run's."""
        ...

    def points(self, chain: ChainSpec) -> tuple[MapPoint, ...]:
        """Return all points of a map, the last axis fastest."""
        ...

    def fit_all(self, rows: Sequence[Samples], level: Strict, streams: Sequence[Stream]) -> Sequence[Law]:
        """Fit each of several data sets of one size as `fit` would alone, as one batch."""
        ...


@runtime_checkable
class TrainsElsewhere(Protocol):
    """A family whose models may be trained elsewhere, on rows that a run exported, and come back into the run."""

    def identify(self, source: str, base: str | None = None) -> Mapping[str, str]:
        """Return what a model is, by content; `base` is the model under an adapter. Raises ModelError."""
        ...

    def adopt(self, chain: ChainSpec, source: str, base: str | None = None) -> Law:
        """Open a model as an unselected law over the truth's outcomes. Raises ModelError, LawMismatchError."""
        ...


@dataclass(frozen=True, slots=True, eq=False)
class TextScores:
    """One law's scores of texts, each in the law's canonical tokenisation.

    Attributes
    ----------
    log_prob : (N,) nats.
    tokens : (N,) of the law's own tokenizer, the stop token included.
    n_bytes : (N,) of UTF-8.
    round_trip : (N,) 1.0 where the law's tokenizer gives the text back.
    spans : (N,) 1.0 where it has no boundary between prompt and text.
    """

    log_prob: NDArray[np.float64]
    tokens: NDArray[np.float64]
    n_bytes: NDArray[np.float64]
    round_trip: NDArray[np.float64]
    spans: NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class TextTruth:
    """Texts in the place of a truth.

    Attributes
    ----------
    train, validate, evaluate : how many of them are trained on, choose an epoch, and are judged on.
    identity, judged : what those that are trained on, and those that are judged on, are by content.
    by_teacher : whether precision is measured under the teacher; else under the model that the truth opens.
    are : what intervals are for.
    """

    train: int
    validate: int
    evaluate: int
    identity: Mapping[str, object]
    judged: str
    by_teacher: bool
    are: PromptsAre


@dataclass(frozen=True, slots=True)
class Baseline:
    """A student that is fitted to a text, beside the direct one.

    Attributes
    ----------
    name, level : what it is called, and how it is fitted.
    train, validate : how many texts are trained on, and choose an epoch.
    identity : what the texts, and a model that it starts from, are by content.
    """

    name: str
    level: Strict
    train: int
    validate: int
    identity: Mapping[str, object]


@runtime_checkable
class AsksParts(Protocol):
    """A family whose models may be judged on other prompts than they are trained on: an optional capability."""

    def asked(self, chain: ChainSpec, law: Law, purpose: Literal["train", "judge"]) -> Law:
        """Return the law, asked the prompts of a purpose."""
        ...

    def judged_on_training(self, chain: ChainSpec) -> ChainSpec | None:
        """Return the chain judged on prompts that all its models are trained on; None where it asks for no such."""
        ...

    def count_parts(self, chain: ChainSpec) -> Mapping[str, int]:
        """Count the prompts of training and of judging, and their rows (docs, Schema); nothing of a single prompt."""
        ...

    def examine_parts(self, chain: ChainSpec) -> Sequence[Finding]:
        """Say that models are judged on the prompts that they are trained on, where there are several."""
        ...

    def asked_identity(self, chain: ChainSpec) -> Mapping[str, object]:
        """Return what rows for judging answer, where the key of the truth does not say it."""
        ...


@runtime_checkable
class TextTruths(Protocol):
    """A family whose truth may be texts: an optional capability."""

    def text_truth(self, chain: ChainSpec) -> TextTruth | None:
        """Return what stands in the place of a truth; None where the truth is a law."""
        ...

    def baselines(self, chain: ChainSpec) -> Sequence[Baseline]:
        """Return the students that are fitted to texts of their own. Raises DataError."""
        ...

    def training_texts(
        self, chain: ChainSpec, which: Literal["train", "validate"], baseline: str | None = None
    ) -> Samples:
        """Return texts as rows to learn from, or to choose an epoch by; their log-probability is not known.

        The truth's, or those of the baseline that is named.
        """
        ...


@runtime_checkable
class GivenModels(Protocol):
    """A family whose chains name models to judge as they are: an optional capability.

    `role` is the name of a model in its chain.
    """

    def given_roles(self, chain: ChainSpec) -> tuple[str, ...]:
        """Return the roles of a chain's models that are taken as they are."""
        ...

    def given_identity(self, chain: ChainSpec, role: str) -> Mapping[str, object]:
        """Return what a model is, by content."""
        ...

    def judges_texts(self, chain: ChainSpec) -> bool:
        """Whether a given model of another vocabulary is among a chain's, so that all are compared on texts."""
        ...

    def open_given(self, chain: ChainSpec, role: str, precision: Precision) -> Law:
        """Open a model as a law. Raises ModelError."""
        ...

    def score_texts(self, chain: ChainSpec, law: Law, texts: Samples | range, role: str) -> TextScores:
        """Score texts under `law`: those of rows that the model `role` drew, or a range of the held-out texts.

        Raises StageError, DataError.
        """
        ...

    def answers(self, chain: ChainSpec, role: str, rows: Samples) -> tuple[list[str], list[str]]:
        """Return prompts and answers of rows that a model drew, as text; no weights are opened."""
        ...

    def held_out_strata(self, chain: ChainSpec) -> NDArray[np.int64] | None:
        """Return which prompt each held-out text answers, (N,); None where they are whole documents."""
        ...


@runtime_checkable
class KnowsItsRows(Protocol):
    """A law of a model that may be exchanged for another while it is asked: an optional capability."""

    def score_own(self, x: Samples) -> NDArray[np.float64]:
        """Score rows that it drew, (N,) nats. Raises StageError where they bear other log-probabilities."""
        ...


@runtime_checkable
class DrawsUnscored(Protocol):
    """A family with models that draw under a selectivity, and score without one alone: an optional capability."""

    def unscored_roles(self, chain: ChainSpec) -> frozenset[str]:
        """Return the roles of a chain's models that are so."""
        ...


def given_models(family: Family) -> GivenModels:
    """Return a family with the capability `GivenModels`. Raises TypeError."""
    if not isinstance(family, GivenModels):
        raise TypeError(f"{family.name} has no models that are judged as they are")
    return family


@runtime_checkable
class RendersPrompts(Protocol):
    """A family whose prompts are rendered by a program, which may write something else another day."""

    def rendered(self, chain: ChainSpec) -> Mapping[str, object]:
        """Return the chain's prompts as they are rendered, JSON-able. Raises InputError."""
        ...

    def with_rendered(self, chain: ChainSpec, kept: Mapping[str, object]) -> ChainSpec:
        """Return the chain with prompts as they were rendered earlier, which hold while their source is the same.

        Raises InputError.
        """
        ...
