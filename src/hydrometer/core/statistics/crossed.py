"""Variance of means over seeds and rows that are crossed, and the degrees of freedom of a sum."""

from __future__ import annotations

import numpy as np

from hydrometer.core.statistics.estimate import Floats, centred
from hydrometer.core.statistics.sampling_design import Clusters, Strata

__all__ = ["crossed_variance", "welch_satterthwaite"]


def crossed_variance(table: Floats, strata: Strata | None = None) -> tuple[float, float, float, float]:
    """Variance of the grand mean of seeds crossed with shared rows.

    Model: ``y[s, i] = mu + seed_s + row_i + interaction``; all seeds are judged on the same rows (two-way random
    effects without replication, Searle, Casella and McCulloch 1992, section 4.3). The variance of the grand mean is
    ``(MS_seed + MS_row - MS_interaction) / (S N)``, never below its larger one-way part.

    Parameters
    ----------
    table : (S, N), S >= 2, N >= 2
    strata : (N,), `Clusters` (seeds are then crossed with clusters), or None

    Returns
    -------
    (variance, df, seed part, row part) : the parts are the one-way variances of the mean, MS_seed / (S N) and
    MS_row / (S N); df by Satterthwaite.
    """
    if isinstance(strata, Clusters):
        table, strata = strata.collapse(table), None
    s, n = table.shape
    seed_means = table.mean(axis=1)
    seed_part = float(seed_means.var(ddof=1)) / s
    row_means = table.mean(axis=0)
    row_residual, lost = centred(row_means, strata)
    row_part = float(np.square(row_residual).sum()) / n**2
    interaction = table - seed_means[:, None] - row_means[None, :] + row_means.mean()
    interaction_residual, _ = centred(interaction, strata)
    both_part = float((interaction_residual**2).sum()) / (s - 1) / n / (s * n)
    variance = max(seed_part + row_part - both_part, seed_part, row_part)
    df = welch_satterthwaite([seed_part, row_part], [s - 1, max(n - lost, 1)])
    return variance, df, seed_part, row_part


def welch_satterthwaite(parts: list[float], dfs: list[float]) -> float:
    """Degrees of freedom of a sum of independent variance estimates (Satterthwaite 1946)."""
    total = sum(parts)
    weight = sum(p * p / d for p, d in zip(parts, dfs, strict=True) if p > 0)
    return total * total / weight if weight > 0 else max(dfs)
