"""The parts that every specification is made of: chains, their selectivities, and limits on both.

What a family's own chain looks like is written in that family's folder; `models.families` closes the union.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Literal

from pydantic import AfterValidator, BeforeValidator, Field
from pydantic_core import PydanticCustomError

from hydrometer.core.selectivity import Accept, Selectivity, parse_selectivity
from hydrometer.core.strict import Name, Strict, as_tuple, as_tuples
from hydrometer.core.tilt import Tilt

__all__ = [
    "MAX_ROWS",
    "MAX_SEED",
    "Accept",
    "ChainSpec",
    "Name",
    "Resample",
    "Selectivity",
    "Strict",
    "Tilt",
    "as_tuple",
    "as_tuples",
    "parse_selectivity",
]

MAX_SEEDS = 100_000
MAX_SEED = 2**63 - 1
MAX_SETTINGS = 1000
MAX_ROWS = 10**12
MAX_LEVELS = 64


def _distinct(values: tuple[Selectivity, ...]) -> tuple[Selectivity, ...]:
    for i, v in enumerate(values):
        if v in values[:i]:
            raise PydanticCustomError("repeat", "the selectivity {s} is listed twice", {"s": v.label})
    return values


def _settings(value: object) -> object:
    if isinstance(value, Mapping):
        raise PydanticCustomError(
            "list", "a list of settings is needed, such as [{temperature: 1.0}, {temperature: 0.7}]"
        )
    return as_tuple(value)


Selectivities = Annotated[
    tuple[Selectivity, ...], Field(max_length=MAX_SETTINGS), BeforeValidator(_settings), AfterValidator(_distinct)
]
_OF_A_RUN = ("name", "description", "known", "seeds", "chains", "report_to")
Resample = Literal["data", "teacher", "distill", "student", "evaluate"]


class ChainSpec(Strict):
    """What all families' chains have in common.

    Attributes
    ----------
    family : which family the chain is of.
    selectivity : settings of the teacher, one distilled student each.
    decoding : settings at which the direct student and the one distilled from the unselected teacher are decoded,
        the control. None takes the selectivities that change something.
    loss : training objectives.
    resample : what a new seed redraws. What is not named here is drawn once and shared by all seeds.
    """

    family: str
    selectivity: Selectivities = Field(min_length=1)
    decoding: Selectivities | None = None
    loss: Annotated[tuple[Literal["mle"], ...], Field(max_length=1), BeforeValidator(as_tuple)] = ("mle",)
    resample: Annotated[tuple[Resample, ...], Field(max_length=5), BeforeValidator(as_tuple)] = ("distill", "student")

    @classmethod
    def _hint(cls, key: str, known: list[str]) -> str:
        return "it belongs at the top, beside chains" if key in _OF_A_RUN else super()._hint(key, known)

    @property
    def controls(self) -> tuple[Selectivity, ...]:
        """Settings of the decoding control."""
        if self.decoding is not None:
            return self.decoding
        return tuple(s for s in self.selectivity if not s.is_neutral)

    @property
    def undecoded(self) -> tuple[str, str] | None:
        """Why decoding changes nothing about the student, and what to do about it; None where it changes something."""
        return None
