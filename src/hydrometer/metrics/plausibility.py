"""Implausible figures: findings about the judgement, not about the models.

Each says that rows and law do not agree: too few rows, a law that was misread, or a defect. Every run and every
judgement is checked.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import replace

from hydrometer.core.findings import Finding, warning
from hydrometer.core.statistics.estimate import Estimate

__all__ = ["implausible"]

_DISAGREE = 5.0  # standard errors; of millions of figures one by chance
_NAMED = 3


def implausible(chain: str, cells: Mapping[str, Mapping[str, Estimate]]) -> list[Finding]:
    """Check the figures of one chain.

    Parameters
    ----------
    cells : figures by cell, under the name by which people know it.

    Returns
    -------
    At most one finding of each code of `core.findings.FIGURE_CODES`, with how many figures it is about and the first.
    """
    below = [(c, k) for c, k, e in _each(cells) if k.startswith("kl_") and _is_below_zero(e)]
    apart = [(c, f"{k} ({e.value:.3g} and {e.plain:.3g})") for c, k, e in _each(cells) if _disagrees(e)]
    out: list[Finding] = []
    if below:
        what = f"{_count(below)} with an interval wholly below zero: {_listed(below)}"
        why = "a KL divergence is never negative: rows do not stand for their law, or are not of it"
        out.append(warning("kl-below-zero", what, why, "judge with more rows; if it stays, report it as a defect"))
    if apart:
        far = f"differ by more than {_DISAGREE:g} standard errors"
        what = f"{_count(apart)} whose estimate with control variates and plain mean {far}: {_listed(apart)}"
        why = "both are of the same rows, which miss, or have too much of, something whose probability is known; the "
        why += "interval of neither can be trusted"
        fix = "judge with more rows (data.evaluate) until the two agree; results hold both, as value and plain"
        out.append(warning("controls-disagree", what, why, fix))
    return [replace(f, chain=chain) for f in out]


def _each(cells: Mapping[str, Mapping[str, Estimate]]) -> Iterable[tuple[str, str, Estimate]]:
    return ((c, k, e) for c, metrics in cells.items() for k, e in metrics.items())


def _is_below_zero(e: Estimate) -> bool:
    interval = e.interval()
    return interval is not None and e.se != 0 and interval[1] < 0


def _disagrees(e: Estimate) -> bool:
    """Whether adjusted and plain mean differ by more than what was explained can vary."""
    if e.value is None or e.plain is None or e.plain_se is None or e.se is None:
        return False
    # What is explained is uncorrelated with what is left, so that the variances add up. Where next to nothing is, the
    # difference is that of fitted coefficients: a fifth of the plain error at most, with thirty rows a coefficient.
    explained = math.sqrt(max(e.plain_se**2 - e.se**2, 0.04 * e.plain_se**2))
    return abs(e.value - e.plain) > _DISAGREE * max(explained, 1e-9 * (1 + abs(e.value)))


def _count(found: list[tuple[str, str]]) -> str:
    return "1 figure" if len(found) == 1 else f"{len(found)} figures"


def _listed(found: list[tuple[str, str]]) -> str:
    named = ", ".join(f"{metric} of {cell}" for cell, metric in found[:_NAMED])
    return named + (f" and {len(found) - _NAMED} more" if len(found) > _NAMED else "")
