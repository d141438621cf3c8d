"""From figures to a verdict: what a claim says of each figure, whether it is so, and what follows for the claim.

A claim is a set of checks: figures that it says lie above or below a bound, each under a condition of the world. All of
them are looked at together, so each interval is at level 1 - 0.05 / checks (Bonferroni): the chance that a claim with
true checks is refused, or one with false checks confirmed, is 5 % at most.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike

from hydrometer.claims.claim_chart import Chart
from hydrometer.core.errors import InputError
from hydrometer.core.statistics.estimate import Estimate

__all__ = [
    "LEVEL",
    "Check",
    "Checked",
    "Measured",
    "Said",
    "Verdict",
    "checked",
    "in_words",
    "over_worlds",
    "verdict_of",
]

LEVEL = 0.95
Said = Literal["as claimed", "against the claim", "undecided"]
Verdict = Literal["holds", "holds only where", "does not hold", "undecided"]


@dataclass(frozen=True, slots=True)
class Check:
    """One figure, and where the claim says that it lies.

    Attributes
    ----------
    condition : of the world, in words: "student of order 1". Checks of one condition stand or fall together.
    figure : what is measured, in words, with its unit: "recall, distilled at 0.5 minus at 1, nats".
    estimate : with its standard error; a figure without error has se 0.
    says : "above" or "below": where the claim puts it, seen from `bound`.
    bound : as a rule 0.
    """

    condition: str
    figure: str
    estimate: Estimate
    says: str
    bound: float = 0.0

    def __post_init__(self) -> None:
        if self.says not in ("above", "below") or not math.isfinite(self.bound):
            raise InputError("a check says above or below a finite bound", got=(self.says, self.bound))


@dataclass(frozen=True, slots=True)
class Checked:
    """A check with what came of it.

    Attributes
    ----------
    interval : of the estimate, at the level that the number of checks asks for; None where it has no error.
    found : whether the figure lies where the claim says.
    """

    check: Check
    interval: tuple[float, float] | None
    found: Said

    @property
    def measured(self) -> str:
        """The figure with its interval, in words: ``0.355 (0.175 to 0.535)``."""
        e = self.check.estimate
        if e.value is None:
            return "not finite"
        ends = "" if self.interval is None or not e.se else " ({:.3g} to {:.3g})".format(*self.interval)
        return f"{e.value:.3g}{ends}"

    def to_json(self) -> dict[str, Any]:
        """Return the check's fields beside what came of it."""
        c = self.check
        said = {"condition": c.condition, "figure": c.figure, "says": c.says, "bound": c.bound}
        return {
            **said,
            "estimate": c.estimate.to_json(),
            "interval": self.interval,
            "measured": self.measured,
            "found": self.found,
        }


@dataclass(frozen=True, slots=True)
class Measured:
    """What a measure returns.

    Attributes
    ----------
    checks : what the claim says of figures; at least one.
    charts : what is drawn, left to right, in whole rows of three or one row of fewer.
    notes : sentences on what else was seen, with figures: what the checks do not say.
    """

    checks: tuple[Check, ...]
    charts: tuple[Chart, ...]
    notes: tuple[str, ...] = ()


def over_worlds(values: ArrayLike, unit: str = "nats") -> Estimate:
    """Mean of a figure over independent worlds (or seeds), with the standard error of that mean.

    Parameters
    ----------
    values : (W,) one number a world, each exact or with independent errors; finite.

    Raises
    ------
    InputError : fewer than two worlds, or a number that is not finite.

    Examples
    --------
    >>> e = over_worlds([1.0, 2.0, 3.0])
    >>> (e.value, round(e.se, 4), e.n)
    (2.0, 0.5774, 3)
    """
    x = np.asarray(values, np.float64)
    if x.ndim != 1 or len(x) < 2 or not np.isfinite(x).all():
        raise InputError("a mean over worlds needs two finite numbers or more", got=x.tolist())
    return Estimate(float(x.mean()), float(x.std(ddof=1) / math.sqrt(len(x))), 0.0, len(x), unit=unit)


def in_words(e: Estimate) -> str:
    """Return a figure with its 95 % interval, as ``0.355 (0.175 to 0.535)``.

    Examples
    --------
    >>> in_words(over_worlds([1.0, 2.0, 3.0]))
    '2 (-0.484 to 4.48)'
    """
    ends = e.interval()
    return f"{e.value:.3g}" if ends is None else f"{e.value:.3g} ({ends[0]:.3g} to {ends[1]:.3g})"


def checked(checks: Sequence[Check]) -> tuple[Checked, ...]:
    """Compare each figure's interval with its bound, all at once.

    Examples
    --------
    >>> checked([Check("any", "recall", over_worlds([1.0, 1.1, 0.9]), "above")])[0].found
    'as claimed'
    """
    level = 1 - (1 - LEVEL) / max(len(checks), 1)
    return tuple(_checked(c, level) for c in checks)


def _checked(c: Check, level: float) -> Checked:
    value, interval = c.estimate.value, c.estimate.interval(level)
    if value is None:
        return Checked(c, None, "undecided")
    low, high = interval if interval is not None else (value, value)
    above, below = low > c.bound, high < c.bound
    if not (above or below):
        return Checked(c, interval, "undecided")
    return Checked(c, interval, "as claimed" if above == (c.says == "above") else "against the claim")


def verdict_of(found: Sequence[Checked]) -> tuple[Verdict, tuple[str, ...]]:
    """Return what follows for the claim, and the conditions under which it holds.

    A condition holds where all of its checks are as claimed, and fails where one is against the claim. A claim holds
    where all conditions do; it does not hold where one fails and none holds; it holds only where some do and others
    fail; and it is undecided else.
    """
    conditions = dict.fromkeys(c.check.condition for c in found)
    said = {name: [c.found for c in found if c.check.condition == name] for name in conditions}
    holding = tuple(name for name, s in said.items() if all(x == "as claimed" for x in s))
    failing = [name for name, s in said.items() if "against the claim" in s]
    if found and len(holding) == len(conditions):
        return "holds", holding
    if failing:
        return ("holds only where", holding) if holding else ("does not hold", ())
    return "undecided", holding
