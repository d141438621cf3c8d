"""How a claim is specified: its words, its world and its seeds, in a recipe under ``recipes/claims``."""

from __future__ import annotations

from collections.abc import Sequence
from importlib import import_module
from importlib.resources import files
from typing import TYPE_CHECKING, Annotated, Any, Protocol, cast

from pydantic import BeforeValidator, Field, ValidationError

from hydrometer.core.errors import SpecError
from hydrometer.core.io.yaml_io import apply_overrides, explain, nearest, parse_yaml
from hydrometer.core.spec import Name, Strict, as_tuple

if TYPE_CHECKING:
    from hydrometer.claims.claim_verdict import Measured

__all__ = ["ClaimSpec", "Measure", "claim_of", "claims", "load_claim", "measure_of"]

_PREFIX = "claims/"
_SHIPPED = files("hydrometer.recipes").joinpath("claims")


class ClaimSpec(Strict):
    """A claim: what the field says, who says it, and the world in which it is measured.

    Attributes
    ----------
    name : of the claim, and with ``_`` for ``-`` of the module of `claims.measures` that measures it.
    says : the claim, in one sentence.
    sources : who says it: title, arXiv number or address.
    reported : what they report: figures, and where they stand.
    in_runs : what runs of `docs/results` found of the same: figures as they stand there, and links from `docs/claims`.
    advice : what a practitioner should do, given what is measured here.
    minutes : on two cores, at most; of three or fewer `make claims` measures it again.
    seeds : worlds, or draws of one; the verdict's error bars are over them.
    world : the parameters of the measure.
    """

    name: Name
    says: str = Field(min_length=1)
    sources: Annotated[tuple[str, ...], BeforeValidator(as_tuple)] = Field(min_length=1)
    reported: str = Field(min_length=1)
    in_runs: str = ""
    advice: str = Field(min_length=1)
    minutes: float = Field(default=3.0, gt=0)
    seeds: int = Field(ge=2, le=10_000)
    world: dict[str, Any] = Field(default_factory=dict)


class Measure(Protocol):
    """What a module of `claims.measures` offers."""

    World: type[Strict]
    """Parameters of the world, with defaults."""

    def measure(self, world: Any, seeds: Sequence[int]) -> Measured:
        """Measure the claim. Equal arguments give equal figures."""
        ...


def claim_of(recipe: str) -> str | None:
    """Return the claim that ``claims/NAME`` names; None for another recipe, and for a file.

    Examples
    --------
    >>> claim_of("claims/heating"), claim_of("quickstart"), claim_of("claims/mine.yaml")
    ('heating', None, None)
    """
    is_file = recipe.endswith((".yaml", ".yml"))
    return recipe.removeprefix(_PREFIX) if recipe.startswith(_PREFIX) and not is_file else None


def claims() -> dict[str, str]:
    """Return the claims: name to what each says."""
    names = sorted(e.name for e in _SHIPPED.iterdir() if e.name.endswith(".yaml"))
    bodies = {n.removesuffix(".yaml"): parse_yaml(_SHIPPED.joinpath(n).read_bytes(), n) for n in names}
    return {name: " ".join(str(body.get("says", "")).split()) for name, body in bodies.items()}


def load_claim(name: str, overrides: Sequence[str] = ()) -> ClaimSpec:
    """Read a claim by name, and apply ``a.b=VALUE`` overrides to its seeds and its world.

    Raises
    ------
    SpecError : an unknown claim or key.
    """
    known = claims()
    if name not in known:
        raise SpecError("unknown claim", got=name, fix=nearest(name, list(known)))
    data = apply_overrides(parse_yaml(_SHIPPED.joinpath(f"{name}.yaml").read_bytes(), name), list(overrides))
    try:
        return ClaimSpec.model_validate(data)
    except ValidationError as e:
        raise explain(e, name, data) from None


def measure_of(spec: ClaimSpec) -> tuple[Measure, Strict]:
    """Return the module that measures a claim, and its world. Raises SpecError."""
    module = cast("Measure", import_module(f"hydrometer.claims.measures.{spec.name.replace('-', '_')}"))
    try:
        return module, module.World.model_validate(spec.world)
    except ValidationError as e:
        raise explain(e, f"{spec.name}: world", spec.world) from None
