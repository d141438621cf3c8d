"""Measure a claim, and write what was found: figures, verdict, picture, and a page of words."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from dataclasses import dataclass
from inspect import cleandoc
from pathlib import Path
from typing import Any

from threadpoolctl import threadpool_limits

from hydrometer._version import __version__
from hydrometer.claims.claim_chart import Chart, draw_claim
from hydrometer.claims.claim_spec import ClaimSpec, load_claim, measure_of
from hydrometer.claims.claim_verdict import LEVEL, Checked, Verdict, checked, verdict_of
from hydrometer.claims.model_world import ModelWorld
from hydrometer.core.io.files import write_atomic
from hydrometer.core.spec import Strict

__all__ = ["ClaimResult", "about", "run_claim"]

_NAMED = 3


@dataclass(frozen=True, slots=True)
class ClaimResult:
    """A measured claim.

    Attributes
    ----------
    folder : with what `write` writes.
    spec : what was measured.
    world : all of its parameters. how : what the measure says of itself.
    verdict : what follows, at 95 % for all checks together.
    holding : conditions under which the claim holds.
    checks : figures, with what came of each.
    charts, notes : of the measure.
    seconds : that it took.
    """

    folder: Path
    spec: ClaimSpec
    world: Strict
    how: str
    verdict: Verdict
    holding: tuple[str, ...]
    checks: tuple[Checked, ...]
    charts: tuple[Chart, ...]
    notes: tuple[str, ...]
    seconds: float

    @property
    def sentence(self) -> str:
        """The verdict in words, with the conditions where it has some; with their number where they are many."""
        if self.verdict != "holds only where":
            return self.verdict
        if len(self.holding) <= _NAMED:
            return f"{self.verdict}: {'; '.join(self.holding)}"
        return f"{self.verdict}: {len(self.holding)} of {len({c.check.condition for c in self.checks})} conditions"

    def to_json(self) -> dict[str, Any]:
        """Return everything that was found."""
        return {
            "claim": self.spec.model_dump(mode="json"),
            "verdict": self.verdict,
            "holding": list(self.holding),
            "words": self.sentence,
            "level": LEVEL,
            "how": cleandoc(self.how),
            "world": self.world.model_dump(mode="json"),
            "about_world": about(self.world),
            "checks": [c.to_json() for c in self.checks],
            "charts": [c.to_json() for c in self.charts],
            "notes": list(self.notes),
            "seconds": round(self.seconds, 1),
            "version": __version__,
        }

    def write(self) -> None:
        """Write claim.json, and the picture as SVG and PNG, into the folder, which is made where it is missing."""
        self.folder.mkdir(parents=True, exist_ok=True)
        write_atomic(self.folder / "claim.json", json.dumps(self.to_json(), indent=1) + "\n")
        for kind in ("svg", "png"):
            write_atomic(self.folder / f"{self.spec.name}.{kind}", draw_claim(self.charts, kind))


def _worlds(world: Strict) -> list[Strict]:
    """A world, and the worlds among its parameters."""
    return [world, *(value for _, value in world if isinstance(value, Strict))]


def about(world: Strict) -> str:
    """Return the docstrings of a world, of the worlds among its parameters, and of what these extend, each once."""
    kinds = [
        kind for w in _worlds(world) for kind in type(w).__mro__ if issubclass(kind, Strict) and kind is not Strict
    ]
    return "\n\n".join(dict.fromkeys(cleandoc(kind.__doc__ or "") for kind in kinds))


def run_claim(name: str, *, out: str | Path | None = None, overrides: Sequence[str] = ()) -> ClaimResult:
    """Measure a claim of the gallery, and write the result.

    Parameters
    ----------
    name : of the claim (`claims`).
    out : folder; ``runs/claims/NAME`` by default.
    overrides : ``seeds=20``, ``world.order=2``: as ``--set``.

    Raises
    ------
    SpecError : an unknown claim or key, or a world that makes no sense.
    MissingDependencyError, ModelError : a world's language model, or what runs it, is not there.
    """
    spec = load_claim(name, overrides)
    module, world = measure_of(spec)
    for w in _worlds(world):
        if isinstance(w, ModelWorld):
            w.check()
    began = time.perf_counter()
    with threadpool_limits(1, "blas"):  # products are small: of two threads each waits for the other, ten times as long
        found = module.measure(world, range(spec.seeds))
    checks = checked(found.checks)
    verdict, holding = verdict_of(checks)
    took = time.perf_counter() - began
    folder = Path(out) if out is not None else Path("runs") / "claims" / name
    result = ClaimResult(
        folder, spec, world, module.__doc__ or "", verdict, holding, checks, found.charts, found.notes, took
    )
    result.write()
    return result
