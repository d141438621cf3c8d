"""Frontiers of sequences by prefix length.

At full length the log ratio of two laws grows with every token, and frontiers collapse into their corner whatever the
laws. So they are also given for the law of the first m tokens, m = 1, 2, 4, ...: each law's own marginal of whole
sequences, cut after m tokens or at the end, whichever comes first. Both laws score whole prefixes from the start; no
figure is conditional on a prefix. An average of per-token curves would be conditional: it mixes the prefixes of
whoever drew the rows with the next-token laws of both, and is the frontier of no pair of laws unless one prefix law
is named.

Per-token log-probabilities come from the pass that scores the rows (`models.base.PairedScores`). Theory, eq. 19.

Shapes: N truth rows, M rows of the law, T tokens, K prefix lengths.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from hydrometer.core.array_types import Floats
from hydrometer.core.statistics.estimate import Estimate
from hydrometer.metrics.frontiers.curves import frontier_metrics
from hydrometer.metrics.frontiers.typicality import typicality_metrics
from hydrometer.metrics.likelihood import Scores
from hydrometer.metrics.pooled import Pooled, pool

__all__ = ["PREFIX_METRICS", "first_tokens", "prefix_metrics", "prefixes"]

PREFIX_METRICS = ("total_variation", "prd_alpha_two", "prd_beta_half", "divergence_area", "typicality_50")


def first_tokens(steps: Floats) -> Floats:
    """Log-probability of each row's first m tokens, m = 1, 2, 4, ..., and of the whole row.

    Parameters
    ----------
    steps : (N, T) by token, nats; 0 beyond a row's length.

    Returns
    -------
    (N, K) : a column for each m below T, and one of the whole row. All that prefixes need is K = 1 + ceil(log2 T)
        columns, and unlike (N, T) they can be kept in float64 for any number of rows.

    Examples
    --------
    >>> first_tokens(np.log([[0.5, 0.5, 0.5, 0.5, 0.5]])).round(3).tolist()
    [[-0.693, -1.386, -2.773, -3.466]]
    """
    sums = np.cumsum(steps, axis=1)
    at: list[int] = []
    while 1 << len(at) < steps.shape[1]:
        at.append((1 << len(at)) - 1)
    return sums[:, [*at, -1]]


def prefixes(s: Scores) -> Iterator[tuple[int, Pooled, Floats]]:
    """Pool the rows of both laws by their first m tokens, m = 1, 2, 4, ... below the longest row.

    Yields
    ------
    m, the pooled rows, and log p* of each row's prefix, (N + M,) nats. Nothing where prefixes were not scored.
    """
    if s.truth_first is None or s.law_first is None:
        return
    columns = (*s.truth_first, *s.law_first)
    truth, law = s.truth_rows.strata, s.law_rows.strata
    for k in range(max(c.shape[1] for c in columns) - 1):
        # The last column of shorter rows is of whole rows, which every longer prefix is.
        p_x, q_x, p_y, q_y = (c[:, min(k, c.shape[1] - 1)] for c in columns)
        yield 1 << k, pool(q_x - p_x, q_y - p_y, truth, law), np.concatenate([p_x, p_y])


def prefix_metrics(s: Scores) -> dict[str, Estimate]:
    """`PREFIX_METRICS` of the law of the first m tokens, each named ``..._first_m``."""
    out: dict[str, Estimate] = {}
    for m, rows, log_p in prefixes(s):
        found = frontier_metrics(rows) | typicality_metrics(rows, log_p)
        out |= {f"{name}_first_{m}": found[name] for name in PREFIX_METRICS}
    return out
