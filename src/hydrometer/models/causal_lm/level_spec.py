"""Specification of what is fitted: a level, where its weights start, and a baseline. Imports without torch."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Annotated, Any, Literal, Self

from pydantic import BeforeValidator, Discriminator, Field, Tag, model_validator
from pydantic_core import PydanticCustomError

from hydrometer.core.errors import InputError
from hydrometer.core.spec import Name, Strict
from hydrometer.models.causal_lm.engines.engine import as_tuple
from hydrometer.models.causal_lm.training_spec import Training
from hydrometer.models.causal_lm.truth_spec import BaselineText, FromSource, as_file

__all__ = ["Baseline", "FromLayers", "Init", "LevelSpec", "level_spec", "tagged"]

MAX_LAYERS = 4096


class FromLayers(Strict):
    """Start from decoder layers of another level, with its embeddings, final norm and head."""

    layers_of: Literal["truth", "above"]
    layers: Annotated[tuple[Annotated[int, Field(ge=0)], ...], BeforeValidator(as_tuple)] = Field(
        min_length=1, max_length=MAX_LAYERS
    )


def tagged(other: type, tag: str) -> Callable[[object], str | None]:
    """Return what tells a name, a source, and a third kind of value apart, given as objects or as mappings."""

    def kind(value: object) -> str | None:
        match value:
            case str():
                return "<name>"
            case FromSource():
                return "<source>"
            case Mapping():
                return "<source>" if "source" in value else tag
            case _:
                return tag if isinstance(value, other) else None

    return kind


_NO_INIT = "init is scratch, truth, above, {layers_of: truth|above, layers: [...]} or {source: PATH}"
Init = Annotated[
    Annotated[Literal["scratch", "truth", "above"], Tag("<name>")]
    | Annotated[FromLayers, Tag("<layers>")]
    | Annotated[FromSource, Tag("<source>")],
    Discriminator(tagged(FromLayers, "<layers>"), custom_error_type="init", custom_error_message=_NO_INIT),
]


class LevelSpec(Strict):
    """One fitted level.

    Parameters
    ----------
    init : where the weights start. For a direct fit the level above is the truth.
    architecture : fields of the truth's config to override, for `init: scratch`.
    training : how it is fitted.
    """

    init: Init = "scratch"
    architecture: dict[str, Any] = Field(default_factory=dict)
    training: Training = Training()

    @property
    def starts_above(self) -> bool:
        """Whether the weights are those of the level above."""
        return self.init == "above" or (isinstance(self.init, FromLayers) and self.init.layers_of == "above")

    @model_validator(mode="after")
    def _architecture_of_scratch(self) -> Self:
        if self.init == "scratch" and not self.architecture:
            raise PydanticCustomError(
                "architecture",
                "init scratch needs an architecture, for example {num_hidden_layers: 2, hidden_size: 128}",
            )
        if self.init != "scratch" and self.architecture:
            raise PydanticCustomError(
                "architecture", "an architecture goes with init scratch only; weights bring theirs"
            )
        return self

    @model_validator(mode="after")
    def _adapters_over_weights(self) -> Self:
        if self.init == "scratch" and self.training.lora is not None:
            raise PydanticCustomError("lora", "lora adapts a model that exists: give init, for example {source: PATH}")
        return self


class Baseline(Strict):
    """A student that is fitted to a text of one's own, beside the direct and the distilled ones.

    Parameters
    ----------
    name : of its cells.
    text : what it is fitted to. Rows whose prompts models are judged on are left out.
    init, architecture, training : as of a level; the student's own where they are not given.
    """

    name: Name
    text: Annotated[BaselineText, BeforeValidator(as_file)]
    init: Init | None = None
    architecture: dict[str, Any] = Field(default_factory=dict)
    training: Training | None = None

    @model_validator(mode="after")
    def _architecture_of_scratch(self) -> Self:
        if (self.init == "scratch") != bool(self.architecture):
            raise PydanticCustomError("architecture", "a baseline's architecture goes with its own init scratch only")
        return self

    def level(self, student: LevelSpec) -> LevelSpec:
        """Return how it is fitted, where `student` says what it does not say itself."""
        training = self.training or student.training
        if self.init is None:
            return student.model_copy(update={"training": training})
        return LevelSpec(init=self.init, architecture=self.architecture, training=training)


def level_spec(spec: Strict) -> LevelSpec:
    """Return a level's parameters as this family's. Raises InputError."""
    if not isinstance(spec, LevelSpec):
        raise InputError("a causal LM is fitted from a LevelSpec", got=type(spec).__name__)
    return spec
