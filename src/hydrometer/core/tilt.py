"""Tilting a law towards a reward: p(x) exp(r(x) / b) / Z, which is what aligning a model aims at.

Of all laws q it has the largest E_q[r] - b KL(q, p). A reward has one of a few forms, for each of which some family has
its tilt exactly (docs, Laws).
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping
from typing import Annotated, Any, Literal, Self, cast

from pydantic import (
    AfterValidator,
    BeforeValidator,
    Discriminator,
    Field,
    PlainSerializer,
    Tag,
    WithJsonSchema,
    field_validator,
    model_validator,
)
from pydantic_core import PydanticCustomError

from hydrometer.core.io.yaml_io import is_object
from hydrometer.core.strict import Strict, as_tuple

__all__ = ["Bump", "Quadratic", "Reward", "Tilt"]

_LONGEST_SLUG = 60
_MOST_IDS = 4096
Id = Annotated[int, Field(ge=0, lt=2**31)]
Finite = Annotated[float, Field(allow_inf_nan=False)]
Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]


def _pairs(value: object) -> object:
    if not isinstance(value, Mapping | tuple):
        raise PydanticCustomError("mapping", "a mapping of ids to values is needed, such as {3: 1.0}")
    return (
        tuple(cast("Mapping[object, object]", value).items()) if isinstance(value, Mapping) else cast("object", value)
    )


def _values(pairs: tuple[tuple[int, float], ...]) -> tuple[tuple[int, float], ...]:
    if len({i for i, _ in pairs}) < len(pairs):
        raise PydanticCustomError("twice", "an id has two values; keep one of them")
    if any(v == 0 for _, v in pairs):
        raise PydanticCustomError("zero", "a value of 0 changes nothing; leave its id out")
    return tuple(sorted(pairs))


def _by_id(pairs: tuple[tuple[int, float], ...]) -> dict[str, float]:
    return {str(i): v for i, v in pairs}


Tokens = Annotated[
    tuple[tuple[Id, Finite], ...],
    Field(min_length=1, max_length=_MOST_IDS),
    BeforeValidator(_pairs),
    AfterValidator(_values),
    PlainSerializer(_by_id),
    WithJsonSchema({"type": "object", "minProperties": 1, "additionalProperties": {"type": "number"}}),
]


class _Place(Strict):
    """A point, and how far about it a reward reaches."""

    center: Annotated[tuple[Finite, ...], Field(min_length=1, max_length=1024), BeforeValidator(as_tuple)]
    width: Annotated[Positive | tuple[Positive, ...], BeforeValidator(as_tuple)]

    @model_validator(mode="after")
    def _alike(self) -> Self:
        if isinstance(self.width, tuple) and len(self.width) != len(self.center):
            raise PydanticCustomError("width", "width is one number, or as many as center has")
        return self

    @property
    def _said(self) -> str:
        widths = self.width if isinstance(self.width, tuple) else (self.width,)
        center, width = (",".join(f"{v:g}" for v in values) for values in (self.center, widths))
        return f"at ({center}) of width {width if len(widths) == 1 else f'({width})'}"


class Quadratic(_Place):
    """``r(x) = -sum_i (x_i - c_i)^2 / (2 w_i^2)``: the nearer the better.

    Parameters
    ----------
    center : c, (d,).
    width : w > 0, one for all dimensions or (d,).
    """

    @property
    def label(self) -> str:
        """For people."""
        return f"quadratic {self._said}"


class Bump(_Place):
    """``r(x) = h exp(-sum_i (x_i - c_i)^2 / (2 w_i^2))``: a region, and nothing far from it.

    Parameters
    ----------
    center : c, (d,).
    width : w > 0, one for all dimensions or (d,).
    height : h > 0, the reward at the centre.
    """

    height: Positive

    @property
    def label(self) -> str:
        """For people."""
        return f"bump {self._said} and height {self.height:g}"


class Reward(Strict):
    """What a tilt favours: exactly one of these.

    Parameters
    ----------
    tokens : value of each id; a row's reward is their sum over its ids, the end of sequence (0) among them.
    starts_with : an id; a row that starts with it has reward 1, others 0.
    quadratic, bump : of points.

    Examples
    --------
    >>> Reward(tokens={3: 1, 0: -2}).label
    'tokens 0=-2 3=1'
    """

    tokens: Tokens | None = None
    starts_with: Id | None = None
    quadratic: Quadratic | None = None
    bump: Bump | None = None

    @classmethod
    def _hint(cls, key: str, known: list[str]) -> str:
        if key == "contains":
            return (
                "no n-gram holds whether an id has occurred; tokens: {ID: 1} counts it, starts_with: ID reads the first"
            )
        return super()._hint(key, known)

    @model_validator(mode="after")
    def _one(self) -> Self:
        if len(self.to_json()) != 1:
            raise PydanticCustomError(
                "reward", "a reward is length, -length, or one of tokens, starts_with, quadratic, bump"
            )
        return self

    def to_json(self) -> dict[str, Any]:
        """Return the one form that is set, under its name."""
        return self.model_dump(mode="json", exclude_none=True)

    @property
    def label(self) -> str:
        """For people; without commas."""
        if self.tokens is not None:
            return "tokens " + " ".join(f"{i}={v:g}" for i, v in self.tokens)
        place = self.quadratic or self.bump
        return f"starts with {self.starts_with}" if place is None else place.label


def _kind(value: object) -> str:
    return "name" if isinstance(value, str) else "form"


class Tilt(Strict):
    """A law tilted towards a reward, ``p(x) exp(r(x) / b) / Z``.

    Parameters
    ----------
    reward : r. ``length`` of a sequence, its end included, ``-length``, or one of `Reward`.
    strength : b > 0, in units of the reward a nat. Small ones tilt more.

    Examples
    --------
    >>> Tilt(reward="-length", strength=2).label
    'tilt (-length, b=2)'
    >>> Tilt.model_validate({"reward": {"starts_with": 3}, "strength": 0.5}).to_json()
    {'reward': {'starts_with': 3}, 'strength': 0.5}
    """

    reward: Annotated[
        Annotated[Literal["length", "-length"], Tag("name")] | Annotated[Reward, Tag("form")], Discriminator(_kind)
    ]
    strength: float

    @field_validator("strength")
    @classmethod
    def _above_zero(cls, v: float) -> float:
        if not 0 < v < math.inf:
            raise PydanticCustomError("range", "the strength b of a tilt must be a finite number above 0")
        return v

    def to_json(self) -> dict[str, Any]:
        """Return reward and strength."""
        reward = self.reward if isinstance(self.reward, str) else self.reward.to_json()
        return {"reward": reward, "strength": self.strength}

    @property
    def by(self) -> str:
        """The reward, for people."""
        return self.reward if isinstance(self.reward, str) else self.reward.label

    @property
    def label(self) -> str:
        """For people: ``tilt (-length, b=2)``."""
        return f"tilt ({self.by}, b={self.strength:g})"

    @property
    def slug(self) -> str:
        """For file names; never parsed back. A long reward is named by a hash."""
        said = self.to_json()["reward"]
        parts = _flat(said) if is_object(said) else [str(said)]
        reward = "-".join(parts)
        if len(reward) > _LONGEST_SLUG:
            digest = hashlib.sha256(json.dumps(said, sort_keys=True).encode()).hexdigest()
            reward = f"{parts[0]}-{digest[:12]}"
        return f"tilt-{reward}-b{self.strength!r}".replace("_", "")


def _flat(value: object) -> list[str]:
    """Keys and values of nested mappings and lists, in order."""
    if is_object(value):
        return [part for k, v in value.items() for part in (k, *_flat(v))]
    if isinstance(value, list):
        return [part for v in cast("list[object]", value) for part in _flat(v)]
    return [str(value)]
