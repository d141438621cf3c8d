"""An estimate with its standard error, and the figures of one judged law by name."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal

from hydrometer.core.array_types import Floats
from hydrometer.core.shown import html_table

__all__ = [
    "FEW_ROWS",
    "KNOWN_FREEDOM",
    "Caution",
    "Contrast",
    "Estimate",
    "Figures",
    "Method",
    "figures_in_words",
    "interval_words",
    "t_interval",
    "t_quantile",
]

Method = Literal["mc", "cv", "exact", "canonical"]
Caution = Literal["few_rows"]
KNOWN_FREEDOM = 1e6
"""Degrees of freedom of an error that is known: Student's t is the normal law then."""
FEW_ROWS = "few rows or prompts decide it: the error may be larger"
"""What a caution says of a figure."""
_MOST = 0.8  # of the figures of a table: above it a caution is said once


@dataclass(frozen=True, slots=True, repr=False)
class Estimate:
    """One figure of one cell.

    Attributes
    ----------
    value : the figure, or None where it is infinite (see `n_neg_inf`) or undefined.
    se : standard error of `value`, or None where it has none.
    se_mc : the part of `se` that comes from the finite number of draws.
    n : draws behind it.
    n_neg_inf : draws whose log-probability was minus infinity. Where positive, `value` is None: the mean is infinite,
        downwards for log-probabilities, upwards for a KL.
    method : "mc" plain Monte Carlo, "cv" with control variates, "exact", "canonical": Monte Carlo over texts scored in
        their canonical tokenisation, a lower bound on each text's log-probability.
    unit : "nats", "nats/token", "nats/byte", "tokens", "probability", ...
    df : degrees of freedom of the interval, fewer where rows are skewed (`skewed_df`) or come in clusters; None stands
        for n - 1, `KNOWN_FREEDOM` for an error that is known rather than estimated.
    plain, plain_se : where the method is "cv", the plain mean of the same rows and its standard error.
    caution : "few_rows" where fewer than `FEW` rows carry the error (`carried_by`): what decides the figure was hardly
        met, and its interval may not hold; else None.
    """

    value: float | None
    se: float | None
    se_mc: float | None
    n: int
    n_neg_inf: int = 0
    method: Method = "mc"
    unit: str = "nats"
    df: float | None = None
    plain: float | None = None
    plain_se: float | None = None
    caution: Caution | None = None

    @property
    def freedom(self) -> float:
        """Degrees of freedom of the interval: `df`, or n - 1 where rows are independent."""
        return max(self.n - 1, 1) if self.df is None else self.df

    def interval(self, level: float = 0.95) -> tuple[float, float] | None:
        """Return the two-sided interval at `level` by Student's t."""
        if self.value is None or self.se is None:
            return None
        return t_interval(self.value, self.se, self.freedom, level)

    def to_json(self) -> dict[str, Any]:
        """Return the fields, and `ci95`, the interval, beside `se`."""
        return {**asdict(self), "ci95": self.interval()}

    @classmethod
    def from_json(cls, found: Mapping[str, Any]) -> Estimate:
        """Read what `to_json` wrote. Raises TypeError for anything else."""
        return cls(**{k: v for k, v in found.items() if k != "ci95"})

    def __str__(self) -> str:
        return self._words() + (f" ({FEW_ROWS})" if self.caution else "")

    def _words(self) -> str:
        if self.value is None:
            return f"infinite ({self.n_neg_inf} of {self.n} draws)" if self.n_neg_inf else "undefined"
        shown, error = f"{self.value:.4g}", ""
        if self.se == 0 or self.method == "exact":
            error = " (exact)"
        elif self.se is not None and math.isfinite(self.se):
            shown, error = (_with_digits(x, self.se) for x in (self.value, self.se))
            error = f" ± {error}"
        return f"{shown}{error} {self.unit}"

    def __repr__(self) -> str:
        return f"<Estimate {self}>"

    def _repr_html_(self) -> str:
        return html_table(
            ["", ""],
            [["value", str(self)], ["95 % interval", interval_words(self)], ["draws", str(self.n)]],
        )


def _with_digits(value: float, se: float) -> str:
    """Write a value with two digits of its standard error."""
    return f"{value:.{min(max(1 - math.floor(math.log10(se)), 0), 15)}f}"


def interval_words(e: Estimate) -> str:
    """Return the 95 % interval in words; empty where there is none to show."""
    ends = e.interval() if e.se and math.isfinite(e.se) else None
    return "" if ends is None or not e.se else " to ".join(_with_digits(end, e.se) for end in ends)


def figures_in_words(figures: Sequence[Estimate]) -> tuple[str, list[str]]:
    """Return what is said once of figures that are shown together, or an empty string; and each of them in words.

    Where nearly all need a caution it is said once, with their number, and the others are marked.

    Examples
    --------
    >>> few = Estimate(-1.5, 0.1, 0.1, 100, caution="few_rows")
    >>> figures_in_words([few, few])[0]
    'few rows or prompts decide 2 of 2 figures: their errors may be larger'
    """
    few = sum(e.caution is not None for e in figures)
    if few < 2 or few < _MOST * len(figures):
        return "", [str(e) for e in figures]
    others = "" if few == len(figures) else ", not those marked *"
    said = f"few rows or prompts decide {few} of {len(figures)} figures{others}: their errors may be larger"
    return said, [str(replace(e, caution=None)) + ("" if e.caution else " *") for e in figures]


@dataclass(frozen=True, slots=True)
class Contrast:
    """The difference ``a - b`` of one metric between two groups of cells (a group is a cell without its seed)."""

    a: str
    b: str
    metric: str
    value: float | None
    se: float | None
    df: float | None
    ci95: tuple[float, float] | None
    pairing: Literal["row", "seed", "prompt"]


def t_quantile(df: float | Floats, p: float) -> Any:
    """Quantile of Student's t."""
    from scipy.special import stdtrit  # pyright: ignore[reportUnknownVariableType]

    return stdtrit(df, p)


def t_interval(value: float, se: float, df: float, level: float = 0.95) -> tuple[float, float]:
    """Two-sided Student interval."""
    half = float(t_quantile(df, 0.5 + level / 2)) * se
    return value - half, value + half


class Figures(dict[str, Estimate]):
    """`Estimate` by metric name: a dict that shows a line a figure, with its 95 % interval.

    Examples
    --------
    >>> Figures(recall=Estimate(-1.5, 0.1, 0.1, 100))
    recall  -1.50 ± 0.10 nats  -1.70 to -1.30
    """

    def _rows(self) -> tuple[str, list[list[str]]]:
        said, words = figures_in_words(list(self.values()))
        return said, [[n, w, interval_words(e)] for (n, e), w in zip(self.items(), words, strict=True)]

    def __repr__(self) -> str:
        said, rows = self._rows()
        wide = [max((len(r[i]) for r in rows), default=0) for i in (0, 1)]
        lines = [f"{a:{wide[0]}}  {b:{wide[1]}}  {c}".rstrip() for a, b, c in rows]
        return "\n".join([*([said] if said else []), *lines]) or "no figures"

    def _repr_html_(self) -> str:
        said, rows = self._rows()
        return html_table(["figure", "value ± standard error", "95 % interval"], rows, said)
