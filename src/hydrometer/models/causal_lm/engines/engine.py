"""The protocol of drawing engines. Imports without torch.

An engine draws token ids; the scorer of the requested law computes their log-probabilities (`rescore`). An engine must
honour a sampling order exactly; its own log-probabilities are evidence of that.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal, Protocol, TypeVar

from pydantic import BeforeValidator, ConfigDict, Field

from hydrometer.core.errors import SpecError
from hydrometer.core.spec import Selectivity, Strict

__all__ = [
    "MOST_LOG_PROB",
    "Answer",
    "Drawable",
    "DrawnChain",
    "Engine",
    "EngineSettings",
    "LogProbsAre",
    "Order",
    "Place",
    "Session",
    "as_tuple",
    "opened",
    "own_settings",
    "refuse_other_law",
    "refuse_other_laws",
    "release",
    "selectivities_drawn",
]

SettingsT = TypeVar("SettingsT", bound="EngineSettings")
Drawable = Literal["truth", "teacher", "assistants"]
LogProbsAre = Literal["selected", "unselected"]
LEAST_TEMPERATURE = 0.01  # vLLM raises a lower one to this
MOST_LOG_PROB = 3.4e38
"""Nats; bound on the size of a float32 network's log-probabilities, whose squares can still be summed."""


class DrawnChain(Protocol):
    """The part of a `CausalLMChain` that an engine reads."""

    @property
    def teacher(self) -> object:
        """Its specification, or "truth"."""
        ...

    @property
    def assistants(self) -> Sequence[object]:
        """Levels between teacher and student."""
        ...

    @property
    def selectivity(self) -> tuple[Selectivity, ...]:
        """Selectivities of the training rows."""
        ...


def as_tuple(value: object) -> object:
    """Return a list of YAML as the tuple that a frozen field holds, anything else as it is."""
    return tuple(value) if isinstance(value, list) else value


class EngineSettings(Strict):
    """Settings common to all engines.

    Parameters
    ----------
    for : models whose training rows it draws: `truth`, `teacher`, `assistants`; None for all that the engine can.
    """

    model_config: ClassVar[ConfigDict] = ConfigDict(serialize_by_alias=True)
    places: ClassVar[frozenset[str]] = frozenset()
    """Settings of place and speed: not part of a draw's identity, free to change during a run."""
    can: ClassVar[tuple[Drawable, ...]] = ("truth", "teacher", "assistants")

    for_: Annotated[tuple[Drawable, ...], BeforeValidator(as_tuple)] | None = Field(
        default=None, alias="for", min_length=1
    )

    @property
    def roles(self) -> tuple[Drawable, ...]:
        """Models whose rows it draws."""
        return self.can if self.for_ is None else self.for_

    def draws(self, role: str) -> bool:
        """Whether it draws the training rows of the model in that role."""
        return ("assistants" if role.startswith("assistant_") else role) in self.roles

    def identity(self) -> dict[str, object]:
        """Return the settings that drawn rows may depend on, as JSON."""
        kept = self.model_dump(mode="json", by_alias=True, exclude_none=True)
        return {k: v for k, v in kept.items() if k not in self.places}


@dataclass(frozen=True, slots=True)
class Order:
    """Rows to draw.

    Attributes
    ----------
    prompts : (n,) token ids that each row answers.
    seeds : (n,) 31-bit seeds, one a row.
    selectivity : token selectivity, or None.
    stop_ids : E; a row ends with the first of them, which is part of it.
    max_new_tokens : L; a row is cut there.
    vocab_size : V; an id from V on does not exist.
    padded : whether the network has output rows beyond V.
    """

    prompts: tuple[tuple[int, ...], ...]
    seeds: tuple[int, ...]
    selectivity: Selectivity | None
    stop_ids: tuple[int, ...]
    max_new_tokens: int
    vocab_size: int
    padded: bool

    @property
    def sampling(self) -> dict[str, float | int]:
        """All four settings under vLLM's names, also neutral ones, so that an engine's defaults never apply."""
        s = self.selectivity or Selectivity(temperature=1)
        return {
            "temperature": 1.0 if s.temperature is None else s.temperature,
            "top_k": s.top_k or 0,
            "top_p": 1.0 if s.top_p is None else s.top_p,
            "min_p": s.min_p or 0.0,
        }


@dataclass(frozen=True, slots=True)
class Answer:
    """One row as an engine drew it.

    Attributes
    ----------
    ids : token ids, the stop token included.
    log_probs : the engine's log-probability of each, nats.
    """

    ids: tuple[int, ...]
    log_probs: tuple[float, ...]


@dataclass(frozen=True, slots=True)
class Place:
    """Location of the model, for engines that load it themselves.

    Attributes
    ----------
    path, revision : folder or hub id that `from_pretrained` opens; None where the weights are in no folder of their
        own (an adapter).
    dtype : arithmetic, "bfloat16" or "float32".
    longest : tokens of the longest prompt and answer.
    vocab_size : V.
    """

    path: str | None
    revision: str | None
    dtype: str
    longest: int
    vocab_size: int


class Session(Protocol):
    """An opened engine."""

    @property
    def facts(self) -> Mapping[str, object]:
        """Facts for records, such as its version. JSON-able."""
        ...

    def draw(self, order: Order) -> tuple[Sequence[Answer], LogProbsAre]:
        """Draw, and return which law the log-probabilities are of. Raises StageError."""
        ...

    def close(self) -> None:
        """Release all resources."""
        ...


class Engine(Protocol):
    """A drawing engine. Third parties announce one as an entry point of the group `hydrometer.engines`.

    Attributes
    ----------
    name : the word in a specification.
    settings : type of its settings there.
    """

    @property
    def name(self) -> str:
        """The word in a specification."""
        ...

    @property
    def settings(self) -> type[EngineSettings]:
        """Type of its settings."""
        ...

    def check(self, settings: EngineSettings, chain: DrawnChain) -> None:
        """Refuse what it cannot draw exactly. Raises InputError. Nothing is opened."""
        ...

    def identity(self, settings: EngineSettings) -> Mapping[str, object]:
        """Return the part of a draw's key: settings without places, and versions known without opening the engine."""
        ...

    def open(self, settings: EngineSettings, place: Place) -> Session:
        """Open it. Raises StageError or InputError."""
        ...


def own_settings(settings: EngineSettings, kind: type[SettingsT]) -> SettingsT:
    """Return settings as an engine's own. Raises SpecError."""
    if not isinstance(settings, kind):
        raise SpecError(f"the engine's settings must be {kind.__name__}", got=type(settings).__name__)
    return settings


def selectivities_drawn(settings: EngineSettings, chain: DrawnChain) -> tuple[Selectivity, ...]:
    """Return the selectivities at which this engine would draw."""
    above = "truth" if chain.teacher == "truth" else "teacher"
    parents = (above, *(f"assistant_{i}" for i in range(1, len(chain.assistants) + 1)))
    return chain.selectivity if any(settings.draws(p) for p in parents) else ()


def refuse_other_laws(settings: EngineSettings, chain: DrawnChain, name: str) -> None:
    """Refuse settings under which vLLM's sampler, and its followers, draw from another law than ours.

    Raises
    ------
    SpecError : rows chosen among candidates; min_p beside top_p, which vLLM applies first and we last; a temperature
        that vLLM raises; a role that the engine cannot draw or the chain does not have.
    """
    native = "use engine: native, or another setting"
    if "teacher" in (settings.for_ or ()) and chain.teacher == "truth":
        raise SpecError(f"engine {name}: the teacher is the truth", got=list(settings.roles), fix="write for: [truth]")
    if "assistants" in (settings.for_ or ()) and not chain.assistants:
        raise SpecError(f"engine {name}: the chain has no assistants", got=list(settings.roles), fix="leave them out")
    for role in settings.roles:
        if role not in settings.can:
            fix = f"write for: [{', '.join(settings.can)}]"
            raise SpecError(f"engine {name} cannot draw from the {role}", got=list(settings.roles), fix=fix)
    for s in selectivities_drawn(settings, chain):
        refuse_other_law(s, f"engine {name}", native)


def refuse_other_law(s: Selectivity, who: str, fix: str) -> None:
    """Refuse a selectivity under which vLLM's sampler, and its followers, draw from another law than ours.

    Raises
    ------
    SpecError : `who` cannot draw from it; `fix` is what to do.
    """
    if s.chooses:
        raise SpecError(f"{who} does not choose among candidates", got=s.label, fix=fix)
    if s.min_p and s.top_p not in (None, 1):
        what = f"{who} applies min_p before top_p; this package applies it last, which is another law"
        raise SpecError(what, got=s.label, fix=fix)
    if s.temperature is not None and s.temperature < LEAST_TEMPERATURE:
        what = f"{who} draws no colder than temperature {LEAST_TEMPERATURE:g}"
        raise SpecError(what, got=s.label, fix=fix)


@dataclass(slots=True)
class _Open:
    slot: str | None = None
    session: Session | None = None


_OPEN = _Open()


def opened(engine: Engine, settings: EngineSettings, place: Place, weights: object) -> Session:
    """Return the session of an engine with a model; another open session is closed.

    Parameters
    ----------
    weights : JSON-able identity of the model by content.
    """
    slot = json.dumps([engine.name, settings.model_dump(mode="json"), repr(place), weights])
    if _OPEN.session is None or _OPEN.slot != slot:
        release()
        _OPEN.session, _OPEN.slot = engine.open(settings, place), slot
    return _OPEN.session


def release() -> None:
    """Close the open engine, if any."""
    session, _OPEN.slot, _OPEN.session = _OPEN.session, None, None
    if session is not None:
        session.close()
