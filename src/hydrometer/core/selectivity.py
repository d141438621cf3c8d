"""Selectivities: how a law is sharpened, tilted or chosen from before it is drawn from."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Annotated, Any, LiteralString, Self

from pydantic import AfterValidator, Field, ValidationError, ValidationInfo, field_validator, model_validator
from pydantic_core import PydanticCustomError

from hydrometer.core.errors import SpecError
from hydrometer.core.io.yaml_io import explain, parse_yaml
from hydrometer.core.strict import Name, Strict, check_name
from hydrometer.core.tilt import Tilt

__all__ = ["Accept", "Selectivity", "parse_selectivity"]


class Accept(Strict):
    """Which candidates rejection keeps: those whose score lies between two bounds, both included.

    Parameters
    ----------
    by : name of a score (docs, Best of n and rejection).
    min, max : bounds; at least one of them.
    tries : most candidates drawn for each one kept; a row that needs more fails. It is no part of the law, so two
        rules that differ in it alone are equal.

    Examples
    --------
    >>> Accept(by="length", max=20, tries=50) == Accept(by="length", max=20)
    True
    """

    by: Name
    min: float | None = None
    max: float | None = None
    tries: int = Field(default=1000, ge=1, le=1_000_000)

    @model_validator(mode="after")
    def _bounded(self) -> Self:
        bounds = [b for b in (self.min, self.max) if b is not None]
        if not bounds or not all(math.isfinite(b) for b in bounds) or bounds != sorted(bounds):
            raise PydanticCustomError("range", "accept needs a finite min, max, or both, min not above max")
        return self

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Accept) and self._region == other._region

    def __hash__(self) -> int:
        return hash(self._region)

    @property
    def _region(self) -> tuple[str, float | None, float | None]:
        return self.by, self.min, self.max

    def to_json(self) -> dict[str, float | str]:
        """Return the score and the bounds that are set."""
        return self.model_dump(exclude_none=True, exclude={"tries"})

    @property
    def label(self) -> str:
        """For people: ``3 <= length <= 20``."""
        low = "" if self.min is None else f"{self.min:g} <= "
        return low + self.by + ("" if self.max is None else f" <= {self.max:g}")


def _rank(value: str) -> str:
    check_name(value.removeprefix("-"))
    return value


_RANGES: dict[str, tuple[Callable[[float], bool], LiteralString]] = {
    "temperature": (
        lambda v: 0 < v < math.inf,
        "temperature must be a finite number above 0 (1 changes nothing, 0.3 shows the trend)",
    ),
    "top_k": (lambda v: 1 <= v < 2**31, "top_k must be at least 1, and below 2^31"),
    "top_p": (lambda v: 0 < v <= 1, "top_p must lie in (0, 1] (1 keeps every token)"),
    "min_p": (lambda v: 0 <= v <= 1, "min_p must lie in [0, 1] (0 keeps every token)"),
    "weight_power": (
        lambda v: v >= 1,
        "weight_power (beta) must be at least 1 (1 keeps the weights, .inf keeps the heaviest)",
    ),
    "sequence_power": (
        lambda v: 0 < v < math.inf,
        "sequence_power must be a finite number above 0 (1 changes nothing)",
    ),
}


class Selectivity(Strict):
    """How a law is sharpened before it is drawn from: the knob on the teacher.

    Either token selectivities, applied in the order temperature, top_k, top_p, min_p to every next-token law, as
    transformers does (vLLM applies min_p before top_k and top_p), or `weight_power`, applied to the weights of a
    mixture, ``a_k(beta) ~ a_k ** beta``, or `sequence_power`, applied to whole sequences of an n-gram chain.

    `tilt` tilts the law that these make towards a reward (`core.tilt`).

    `accept` and `best_of` choose among whole rows drawn from the law that the other fields make: the first `best_of`
    candidates that `accept` keeps, and of them the one with the highest score. Such a law is drawn from, but has no
    log-probability.

    A family takes the fields under which its laws can be normalised, and says what they mean there: without tokens,
    `temperature` may be that of a latent variable.

    Parameters
    ----------
    temperature : > 0; 1 changes nothing.
    top_k : >= 1; keep the k likeliest tokens, ties kept.
    top_p : in (0, 1]; keep the smallest set of likeliest tokens of at least this mass, ties kept.
    min_p : in [0, 1]; keep tokens of at least this share of the likeliest token's probability.
    weight_power : >= 1, may be infinite: uniform over the heaviest components.
    sequence_power : > 0; ``p(y) ** s`` normalised over all sequences, where a family can do that exactly.
    tilt : a reward r and a strength b; ``p(x) exp(r(x) / b) / Z``, where a family can do that exactly.
    best_of : >= 1, candidates of which the best is kept; 1 changes nothing.
    rank_by : name of the score that tells the best; a minus sign before it prefers low scores. With `best_of` only.
    accept : which candidates count at all.

    Examples
    --------
    >>> Selectivity(temperature=0.8, top_p=0.95).label
    'temperature 0.8, top_p 0.95'
    >>> Selectivity(weight_power=1).is_neutral
    True
    >>> Selectivity(temperature=0.8, best_of=4, rank_by="-length").label
    'temperature 0.8, best of 4 by -length'
    """

    temperature: float | None = None
    top_k: int | None = None
    top_p: float | None = None
    min_p: float | None = None
    weight_power: float | None = None
    sequence_power: float | None = None
    tilt: Tilt | None = None
    best_of: int | None = Field(default=None, ge=1, le=100_000)
    rank_by: Annotated[str, AfterValidator(_rank)] | None = None
    accept: Accept | None = None

    @field_validator(*_RANGES)
    @classmethod
    def _in_range(cls, v: float | None, about: ValidationInfo) -> float | None:
        holds, said = _RANGES[str(about.field_name)]
        if v is not None and not holds(v):
            raise PydanticCustomError("range", said)
        return v

    @model_validator(mode="after")
    def _one_kind(self) -> Self:
        if not self.model_dump(exclude_none=True):
            raise PydanticCustomError(
                "empty",
                "a selectivity needs one of temperature, top_k, top_p, min_p, weight_power, sequence_power, tilt, "
                "best_of, accept",
            )
        if (self.best_of is None) != (self.rank_by is None):
            raise PydanticCustomError("rank", "best_of and rank_by go together: best_of 4, rank_by log_prob")
        kinds = (self.weight_power is not None, self.sequence_power is not None, self.is_token)
        if sum(kinds) > 1:
            raise PydanticCustomError(
                "kinds", "weight_power or sequence_power cannot be combined with another selectivity"
            )
        return self

    @property
    def is_token(self) -> bool:
        """Whether any token selectivity is set."""
        return any(v is not None for v in (self.temperature, self.top_k, self.top_p, self.min_p))

    @property
    def is_neutral(self) -> bool:
        """Whether it changes nothing."""
        return (
            self.temperature in (None, 1)
            and self.top_k is None
            and self.top_p in (None, 1)
            and self.min_p in (None, 0)
            and self.weight_power in (None, 1)
            and self.sequence_power in (None, 1)
            and self.tilt is None
            and not self.chooses
        )

    @property
    def chooses(self) -> bool:
        """Whether rows are chosen among candidates, so that the law has no log-probability."""
        return self.best_of not in (None, 1) or self.accept is not None

    @property
    def candidates(self) -> Selectivity | None:
        """The part that makes the candidates' law, or None where that is the unselected law."""
        return self._only(*self._numbers, "tilt")

    @property
    def untilted(self) -> Selectivity | None:
        """The part that makes the law which `tilt` tilts, or None where that is the unselected law."""
        return self._only(*self._numbers)

    def _only(self, *names: str) -> Selectivity | None:
        fields: dict[str, Any] = {k: v for k in names if (v := getattr(self, k)) is not None}
        return Selectivity(**fields) if fields else None

    @property
    def _numbers(self) -> dict[str, Any]:
        return self.model_dump(exclude_none=True, exclude={"tilt", "best_of", "rank_by", "accept"})

    def to_json(self) -> dict[str, Any]:
        """Return the set fields; infinity as the string "inf"."""
        out: dict[str, Any] = {k: "inf" if v == math.inf else v for k, v in self._numbers.items()}
        if self.tilt is not None:
            out["tilt"] = self.tilt.to_json()
        if self.best_of is not None:
            out |= {"best_of": self.best_of, "rank_by": self.rank_by}
        return out if self.accept is None else out | {"accept": self.accept.to_json()}

    @property
    def label(self) -> str:
        """For people: ``temperature 0.8, top_p 0.95``."""
        parts = [f"{k} {v:g}" for k, v in self._numbers.items()]
        parts += [] if self.tilt is None else [self.tilt.label]
        parts += [] if self.best_of is None else [f"best of {self.best_of} by {self.rank_by}"]
        parts += [] if self.accept is None else [f"accept {self.accept.label}"]
        return ", ".join(parts)

    @property
    def slug(self) -> str:
        """For file names; never parsed back."""
        parts = [k.replace("_", "") + repr(v) for k, v in self._numbers.items()]
        parts += [] if self.tilt is None else [self.tilt.slug]
        parts += [] if self.best_of is None else [f"bestof{self.best_of}-by-{self.rank_by}"]
        if self.accept is not None:
            parts.append("accept" + "".join(f"-{k}-{v}" for k, v in self.accept.to_json().items()))
        return "_".join(parts)


def parse_selectivity(text: str, option: str = "--selectivity") -> Selectivity:
    """Read ``temperature=0.8,top_p=0.95``; a value may be a mapping, ``tilt={reward: length, strength: 2}``.

    Parameters
    ----------
    option : of the command line, for messages.

    Raises
    ------
    SpecError : anything else.

    Examples
    --------
    >>> parse_selectivity("temperature=0.8, top_p=0.95").label
    'temperature 0.8, top_p 0.95'
    """
    fields: dict[str, object] = {}
    for part in _outside_brackets(text):
        key, equals, value = (p.strip() for p in part.partition("="))
        if not equals or not key or key in fields:
            fix = "for example temperature=0.8,top_p=0.95"
            raise SpecError(f"{option} takes NAME=VALUE,NAME=VALUE, each name once", got=text, fix=fix)
        fields[key] = parse_yaml(f"value: {value}", option)["value"]
    try:
        return Selectivity.model_validate(fields)
    except ValidationError as e:
        raise explain(e, option, fields) from None


def _outside_brackets(text: str) -> list[str]:
    """Split at commas that no bracket holds."""
    parts, depth = [""], 0
    for c in text:
        depth += (c in "{[") - (c in "]}")
        if c == "," and depth == 0:
            parts.append("")
        else:
            parts[-1] += c
    return parts
