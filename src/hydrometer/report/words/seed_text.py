"""Caveats of means over seeds: two peaks, few and skewed seeds, and outcomes that no seed has shown."""

from __future__ import annotations

from hydrometer.core.statistics.seeds import SURE
from hydrometer.report.typed_results import Chain, Group, Run
from hydrometer.report.wording import among, model

__all__ = ["seed_words"]

_MOST_NAMED = 4
_SELDOM = 0.05


def seed_words(run: Run, chain: Chain) -> list[str]:
    """Write the caveats of a chain's means over seeds; none of one seed."""
    if chain.seeds < 2:
        return []
    groups = run.of_chain(chain.name)
    out: list[str] = []
    peaks = _marked(groups, "two_peaks", named=not chain.points)
    if peaks:
        out.append(
            f"Two peaks over seeds: {peaks}. Such a mean may be a value that hardly any run has; read the median, "
            "the quartiles and the cells."
        )
    few = _marked(groups, "few_seeds", named=not chain.points)
    if chain.seeds < SURE:
        out.append(
            f"{chain.seeds} seeds are few: where outcomes over seeds are skewed or have two peaks, which so few cannot "
            "show, 95 % intervals cover less often than 95 %."
        )
    elif few:
        out.append(
            f"Few seeds for so skewed a spread: {few}. Their 95 % intervals reach farther to that side, and still "
            "cover less often than 95 %."
        )
    unseen = max((g.unseen for g in groups if g.unseen is not None), default=0.0)
    if unseen > _SELDOM:
        out.append(
            f"{chain.seeds} seeds: an outcome that up to {unseen:.0%} of all trainings have may by chance (one time in "
            "twenty) be in none of these; where it lies far off, no interval made of these seeds covers the mean. Only "
            f"more seeds show rarer outcomes: twice as many would bring {unseen:.0%} down to "
            f"{1 - (1 - unseen) ** 0.5:.0%}."
        )
    return out


def _marked(groups: list[Group], mark: str, *, named: bool) -> str:
    """Name the figures that have a mark, ``recall of direct and truth; entropy of direct``, or count them."""
    found = {
        metric: [g for g in groups if (f := g.metrics.get(metric)) is not None and getattr(f, mark)]
        for metric in ("precision", "recall", "entropy")
    }
    if not named:
        counts = [f"{len(marked)} of {len(groups)} {metric} means" for metric, marked in found.items() if marked]
        return among(counts)
    parts: list[str] = []
    for metric, marked in found.items():
        more = len(marked) - _MOST_NAMED
        names = [model(g) for g in marked[:_MOST_NAMED]] + ([f"{more} more"] if more > 0 else [])
        parts += [f"{metric} of {among(names)}"] if marked else []
    return "; ".join(parts)
