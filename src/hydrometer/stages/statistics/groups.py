"""Judged cells, groups of them over seeds, and figures with what seeds share of their error.

A group is a cell without its seed. Shapes: S seeds, N truth rows.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from hydrometer.core.array_types import Floats
from hydrometer.core.statistics.estimate import Estimate
from hydrometer.core.statistics.sampling_design import Strata
from hydrometer.core.statistics.seeds import skew_of_mean, skewed_interval, welch_satterthwaite

__all__ = ["Figure", "Group", "Judged", "Terms", "TruthRows", "over_seeds", "seeds_of"]


@dataclass(frozen=True, slots=True)
class TruthRows:
    """The truth's rows that cells of one seed (or of all) were judged on.

    Attributes
    ----------
    log_prob : (N,) log p*, nats.
    lengths : (N,) tokens, or None.
    strata : (N,) or None.
    n : rows behind the figures; N may be fewer where only some were kept.
    """

    log_prob: Floats
    lengths: Floats | None
    strata: Strata | None
    n: int


@dataclass(frozen=True, slots=True)
class Judged:
    """One judged cell: its figures, and how to get what they are means of.

    Attributes
    ----------
    law_on_truth : log q of the truth's rows, (N,).
    truth_rows : those rows.
    adjusted : log q, log p* and lengths of those rows as control variates adjusted them for this cell, or None.
    clustered : whether its rows answer a sample of prompts, the same in all cells and seeds.
    texts : log q of the truth's rows as texts, and their bytes, where they were scored so.
    """

    metrics: dict[str, Estimate]
    law_on_truth: Callable[[], Floats]
    truth_rows: Callable[[], TruthRows]
    adjusted: Callable[[], tuple[Floats, Floats, Floats | None] | None] = lambda: None
    clustered: Callable[[], bool] = lambda: False
    texts: Callable[[], tuple[Floats, Floats] | None] = lambda: None


@dataclass(frozen=True, slots=True)
class Group:
    """Cells that differ in their seed alone.

    Attributes
    ----------
    by_seed : judged cells; the single key None where one cell serves all seeds.
    rows_shared : whether all seeds were judged on the same rows of the truth.
    """

    id: str
    by_seed: dict[int | None, Judged]
    rows_shared: bool

    @property
    def metrics(self) -> dict[str, Estimate]:
        """Every metric that some cell has, with the first cell's estimate."""
        out: dict[str, Estimate] = {}
        for judged in self.by_seed.values():
            out = {**judged.metrics, **out}
        return out

    def at(self, seed: int | None) -> Judged:
        """Return the cell that stands for `seed`."""
        return self.by_seed[None] if None in self.by_seed else self.by_seed[seed]


@dataclass(frozen=True, slots=True)
class Shared:
    """What seeds share of a variance: it does not average out over them, and does not show between them.

    Attributes
    ----------
    floor : the least that the whole variance can be.
    parts, freedom : the variance by which degrees of freedom are counted, and how many it has.
    """

    variance: float
    floor: float
    parts: float
    freedom: float

    def beside(self, other: Shared) -> Shared:
        """Return that of a difference of two figures with independent rows."""
        parts = self.parts + other.parts
        freedom = welch_satterthwaite([self.parts, other.parts], [self.freedom, other.freedom])
        return Shared(self.variance + other.variance, self.floor + other.floor, parts, freedom)


@dataclass(frozen=True, slots=True)
class Figure:
    """A value with its error, `se_mc` its part from rows, and the skewness that seeds give it (`seeds`).

    Attributes
    ----------
    shared : what several seeds share of its variance; None where it is not a mean over seeds.
    """

    value: float | None
    se: float | None
    df: float | None
    se_mc: float | None = None
    n_neg_inf: int = 0
    pairing: str = "seed"
    skew: float = 0.0
    shared: Shared | None = None

    @property
    def ci95(self) -> tuple[float, float] | None:
        """The 95 % interval: Student's t, reaching farther on the side to which seeds are skewed."""
        if self.value is None or self.se is None or self.df is None:
            return None
        return skewed_interval(self.value, self.se, self.df, self.skew)


def over_seeds(
    values: Floats,
    shared: float,
    freedom: float,
    *,
    se_mc: float | None = None,
    floor: float = 0.0,
    parts: float | None = None,
    pairing: str = "seed",
) -> Figure:
    """Return the mean over seeds with its error: what lies between them, and what they share.

    Parameters
    ----------
    values : (S,), S >= 2.
    shared : variance that does not average out over seeds, and does not show between them.
    freedom : its degrees of freedom.
    floor : the least that the variance can be.
    parts : the shared part by which degrees of freedom are counted, where that is another.
    """
    s = values.size
    between = float(np.var(values, ddof=1)) / s
    total = max(between + shared, floor)
    parts = shared if parts is None else parts
    df = welch_satterthwaite([between, parts], [s - 1, freedom])
    skew = skew_of_mean(values, between / total) if total > 0 else 0.0
    mean = float(np.mean(values))
    rest = Shared(shared, floor, parts, freedom)
    return Figure(mean, math.sqrt(total), df, se_mc, pairing=pairing, skew=skew, shared=rest)


Terms = Sequence[tuple[float, Group]]


def seeds_of(terms: Terms) -> list[int | None]:
    """Seeds that all seeded groups of a combination have; [None] where none is seeded."""
    seeded = [g.by_seed for _, g in terms if None not in g.by_seed]
    if not seeded:
        return [None]
    common = [s for s in seeded[0] if all(s in by_seed for by_seed in seeded)]
    return sorted(common, key=lambda s: -1 if s is None else s)
