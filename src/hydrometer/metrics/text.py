"""What sequences look like: length, how they end, how much they repeat. For people's eyes beside the likelihoods.

Shapes: N rows.
"""

from __future__ import annotations

import math
from collections import Counter
from itertools import pairwise

import numpy as np

from hydrometer.core.clusters import Clusters
from hydrometer.core.estimate import Controls, Estimate, mean_estimate, share_estimate
from hydrometer.models.sequences import Sequences

__all__ = ["text_metrics"]


def text_metrics(rows: Sequences, controls: Controls | None = None) -> dict[str, Estimate]:
    """Length, end rate, repetition and distinct bigrams.

    Parameters
    ----------
    controls : control variates of the rows; the length takes them, as the per-token figures do.

    Returns
    -------
    dict of `Estimate`:
        length : tokens a row, the stop token included.
        eos_rate : share of rows that ended with a stop token rather than at max_new_tokens.
        repetition : share of a row's 4-grams that occurred earlier in the row; rows under 4 tokens count 0.
        distinct_2 : distinct bigrams over all bigrams of the sample (Li et al. 2016). It falls with sample size:
            compare equal numbers of rows only.
    """
    strata = rows.strata
    repetition = np.array([_repetition(rows.row(i).tolist()) for i in range(len(rows))])
    return {
        "length": mean_estimate(rows.lengths.astype(np.float64), "tokens", strata, controls),
        "eos_rate": share_estimate(rows.stopped.astype(np.float64), strata),
        "repetition": mean_estimate(repetition, "share", strata),
        "distinct_2": _distinct_2(rows),
    }


def _repetition(ids: list[int]) -> float:
    grams = [tuple(ids[i : i + 4]) for i in range(len(ids) - 3)]
    return 1 - len(set(grams)) / len(grams) if grams else 0.0


def _distinct_2(rows: Sequences) -> Estimate:
    """Ratio with its delete-one jackknife error (Efron and Stein 1981): one row, or one cluster of rows, at a time."""
    per_row = [Counter(pairwise(r)) for r in (rows.row(i).tolist() for i in range(len(rows)))]
    drawn, clustered = len(per_row), isinstance(rows.strata, Clusters)
    if isinstance(rows.strata, Clusters):
        joined: dict[int, Counter[tuple[int, int]]] = {}
        for label, counts in zip(rows.strata.labels.tolist(), per_row, strict=True):
            joined.setdefault(label, Counter()).update(counts)
        per_row = list(joined.values())
    whole: Counter[tuple[int, int]] = Counter()
    for c in per_row:
        whole.update(c)
    total, n = whole.total(), len(per_row)
    if total == 0:
        return Estimate(None, None, None, drawn, 0, "mc", "share")
    value = len(whole) / total
    if n < 2:
        return Estimate(value, None, None, drawn, 0, "mc", "share")
    own = np.array([sum(1 for g, k in c.items() if whole[g] == k) for c in per_row])
    size = np.array([c.total() for c in per_row])
    left = np.where(total > size, (len(whole) - own) / np.maximum(total - size, 1), value)
    se = math.sqrt((n - 1) / n * float(((left - left.mean()) ** 2).sum()))
    return Estimate(value, se, se, drawn, 0, "mc", "share", float(n - 1) if clustered else None)
