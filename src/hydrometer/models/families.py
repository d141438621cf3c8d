"""The closed union of families, and the specification of a run, which is made of their chains.

A new family is one folder and one line in `BUILT_IN`. A third party's family arrives through the entry-point group
`hydrometer.families`, whose entries are objects of type `models.base.Family`.
"""

from __future__ import annotations

from functools import cache
from importlib.metadata import entry_points
from pathlib import Path
from typing import Annotated, Any, cast

from pydantic import BeforeValidator, Field, PrivateAttr, SerializeAsAny, ValidationError, field_validator
from pydantic_core import PydanticCustomError

from hydrometer.core.dashboards import Dashboard
from hydrometer.core.errors import SpecError, brief, one_line
from hydrometer.core.io.yaml_io import explain, is_array, is_object, nearest
from hydrometer.core.spec import MAX_SEED, MAX_SEEDS, ChainSpec, Name, Strict, as_tuple
from hydrometer.models.base import Family
from hydrometer.models.causal_lm.family import CAUSAL_LM
from hydrometer.models.diffusion.family import DIFFUSION
from hydrometer.models.markov.family import MARKOV
from hydrometer.models.mixture.family import MIXTURE

__all__ = ["RunSpec", "families", "family_of", "missing_methods", "parse_run_spec"]

BUILT_IN: tuple[Family, ...] = (MIXTURE, MARKOV, DIFFUSION, CAUSAL_LM)
_BUILT_IN_NAMES = frozenset(f.name for f in BUILT_IN)


@cache
def _installed() -> tuple[dict[str, Family], dict[str, str]]:
    """Families of entry points, and why an entry point is none: a broken one must not keep the rest from working."""
    found: dict[str, Family] = {}
    broken: dict[str, str] = {}
    for point in entry_points(group="hydrometer.families"):
        try:
            family: Family = point.load()
        except Exception as e:
            broken[point.name] = f"{type(e).__name__}: {e}"
            continue
        if missing := missing_methods(family):
            broken[point.name] = "it lacks " + ", ".join(missing)
        elif family.name != point.name:
            broken[point.name] = f"its entry point is {point.name!r}, its name {family.name!r}"
        else:
            found[point.name] = family
    return found, broken


@cache
def families() -> dict[str, Family]:
    """All families by name: the built-in ones, then those of installed entry points, which cannot replace them."""
    return {f.name: f for f in BUILT_IN} | {n: f for n, f in _installed()[0].items() if n not in _BUILT_IN_NAMES}


def missing_methods(family: object) -> list[str]:
    """Return what an object lacks to be a `Family`.

    Examples
    --------
    >>> missing_methods(families()["mixture"])
    []
    """
    return [name for name in vars(Family) if not name.startswith("_") and not hasattr(family, name)]


def family_of(chain: ChainSpec) -> Family:
    """Return the family a chain is of."""
    return families()[chain.family]


def _seeds(value: object) -> object:
    if is_array(value) and len(value) > MAX_SEEDS:
        raise PydanticCustomError("seeds", "seeds must be a number from 1 to {n}, or a list", {"n": MAX_SEEDS})
    if isinstance(value, int) and not isinstance(value, bool):
        if not 1 <= value <= MAX_SEEDS:
            raise PydanticCustomError("seeds", "seeds must be a number from 1 to {n}, or a list", {"n": MAX_SEEDS})
        return tuple(range(value))
    return as_tuple(value)


def _names(value: object) -> object:
    return (value,) if isinstance(value, str) else as_tuple(value)


class RunSpec(Strict):
    """One run: a name, seeds, and one or more chains.

    Attributes
    ----------
    name : of the experiment; a folder holds one.
    known : codes of the doctor's warnings that the description tells of; they are notes then. None is fatal.
    seeds : a count n for seeds 0 .. n-1, or a list.
    chains : by name.
    report_to : what shows the run and its fits while they go on. It changes no figure, and is not kept.
    """

    name: Name
    description: str = ""
    known: Annotated[tuple[Name, ...] | None, Field(max_length=64), BeforeValidator(as_tuple)] = None
    seeds: Annotated[tuple[int, ...], BeforeValidator(_seeds)] = Field(default=(0,), min_length=1)
    chains: dict[Name, SerializeAsAny[ChainSpec]] = Field(min_length=1)
    report_to: Annotated[tuple[Dashboard, ...], BeforeValidator(_names)] = Field(default=(), exclude=True)
    _base: Path | None = PrivateAttr(default=None)

    def model_post_init(self, context: Any, /) -> None:
        """Keep the folder that relative file names refer to; it is no part of what the specification says."""
        if is_object(context) and isinstance(base := context.get("base"), Path):
            self._base = base

    @property
    def base(self) -> Path | None:
        """The folder that relative file names refer to, where it is known."""
        return self._base

    @field_validator("seeds")
    @classmethod
    def _distinct(cls, value: tuple[int, ...]) -> tuple[int, ...]:
        if len(set(value)) != len(value) or min(value) < 0 or max(value) > MAX_SEED:
            raise PydanticCustomError("seeds", "seeds must be distinct, not negative and below 2^63")
        return value


def parse_run_spec(data: dict[str, object], origin: str, base: Path | None = None) -> RunSpec:
    """Validate a specification.

    Parameters
    ----------
    data : the parsed YAML.
    origin : where it came from, for messages.
    base : folder that relative file names inside it refer to.

    Raises
    ------
    SpecError : one line, naming the key and, for a misspelt one, the nearest known key.
    """
    fields = dict(data)
    chains: dict[str, ChainSpec] = {}
    raw = fields.get("chains")
    for name, body in cast("dict[Any, Any]", raw if isinstance(raw, dict) else {}).items():
        where = one_line(f"{origin}: chains.{name if isinstance(name, str) else brief(name)}", 200)
        if not is_object(body):
            raise SpecError(f"{where} must be a mapping", got=body)
        kind = body.get("family")
        if kind is None:
            raise SpecError(f"{where}: family: this key is missing", fix="known: " + ", ".join(families()))
        if isinstance(kind, str) and kind in _installed()[1] and kind not in families():
            why = _installed()[1][kind]
            raise SpecError(f"{where}: the installed family {kind!r} cannot be used: {why}", fix="mend or remove it")
        if not isinstance(kind, str) or kind not in families():
            raise SpecError(
                f"{where}: unknown family",
                got=kind,
                fix=nearest(kind if isinstance(kind, str) else "", list(families())),
            )
        try:
            chains[name] = families()[kind].chain_spec.model_validate(body, context={"base": base or Path.cwd()})
        except ValidationError as e:
            raise explain(e, where, body) from None
    if isinstance(raw, dict):
        fields["chains"] = chains
    try:
        return RunSpec.model_validate(fields, context={"base": base or Path.cwd()})
    except ValidationError as e:
        raise explain(e, origin, fields) from None
