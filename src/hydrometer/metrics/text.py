"""Descriptive figures of sequences beside the likelihoods: length, how they end, how much they repeat.

Shapes: N rows, M n-grams in all of them, G different ones.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from hydrometer.core.array_types import Ints
from hydrometer.core.statistics.controls import Controls
from hydrometer.core.statistics.estimate import Estimate
from hydrometer.core.statistics.estimators import mean_estimate, ratio_estimate, share_estimate
from hydrometer.core.statistics.sampling_design import Clusters
from hydrometer.models.rows.sequences import Sequences

__all__ = ["drawn_metrics", "text_metrics"]


def text_metrics(rows: Sequences, controls: Controls | None = None) -> dict[str, Estimate]:
    """Length, end rate, repetition and distinct n-grams.

    Parameters
    ----------
    controls : control variates of the rows; the length takes them, as the per-token figures do.

    Returns
    -------
    dict of `Estimate`:
        length : tokens a row, the stop token included.
        eos_rate : share of rows that ended with a stop token rather than at max_new_tokens.
        repetition : share of a row's 4-grams that occurred earlier in the row; rows under 4 tokens count 0.
        distinct_1, distinct_2, distinct_3 : distinct n-grams over all n-grams of the sample (Li et al. 2016). They fall
            with its size: compare equal numbers of rows only, and lengths beside them.
    """
    strata = rows.strata
    repetition = np.array([_repetition(rows.row(i).tolist()) for i in range(len(rows))])
    return {
        "length": mean_estimate(rows.lengths.astype(np.float64), "tokens", strata, controls),
        "eos_rate": share_estimate(rows.stopped.astype(np.float64), strata),
        "repetition": mean_estimate(repetition, "share", strata),
        **{f"distinct_{n}": _distinct(rows, n) for n in (1, 2, 3)},
    }


def drawn_metrics(rows: Sequences, scored: NDArray[np.float64]) -> dict[str, Estimate]:
    """How well the sampler's record agrees with the scorer, and how often an edge was too near to call.

    Parameters
    ----------
    scored : (N,) log-probability of the rows under the law that drew them, nats.
    """
    out = {"recorded_minus_scored": mean_estimate(rows.log_prob - scored, "nats", rows.strata)}
    if rows.near_edge is not None:
        near, lengths = rows.near_edge.astype(np.float64), rows.lengths.astype(np.float64)
        out["near_edge_share"] = ratio_estimate(near, lengths, "share", rows.strata)
    return out


def _repetition(ids: list[int]) -> float:
    grams = [tuple(ids[i : i + 4]) for i in range(len(ids) - 3)]
    return 1 - len(set(grams)) / len(grams) if grams else 0.0


def _distinct(rows: Sequences, n: int) -> Estimate:
    """Ratio with its delete-one-row jackknife error, within strata (Shao and Tu 1995, section 6.2).

    Its variance is too large rather than too small (Efron and Stein 1981): the error is 1.0 to 1.15 times the true one
    for texts of chains, about twice where nearly every n-gram that there is was drawn.
    """
    row_M, gram_M = _numbered_grams(rows, n)
    drawn, strata, df = len(rows), rows.strata, None
    total, count = int(gram_M.size), drawn
    if isinstance(strata, Clusters):  # a cluster is left out at a time, as if its rows were one
        _, of = np.unique(strata.labels, return_inverse=True)
        row_M, count, strata = of[row_M], strata.count, None
        df = float(count - 1)
    if total == 0:
        return Estimate(None, None, None, drawn, 0, "mc", "share")
    whole_G: Ints = np.bincount(gram_M)
    distinct = int(whole_G.size)
    value = distinct / total
    if count < 2:
        return Estimate(value, None, None, drawn, 0, "mc", "share")
    pair, times = np.unique(row_M * distinct + gram_M, return_counts=True)
    alone = pair[times == whole_G[pair % distinct]]  # (row, n-gram) where no other row has that n-gram
    own = np.bincount(alone // distinct, minlength=count)
    size = np.bincount(row_M, minlength=count)
    left = np.where(total > size, (distinct - own) / np.maximum(total - size, 1), value)
    se = math.sqrt(_jackknife_variance(left, strata))
    return Estimate(value, se, se, drawn, 0, "mc", "share", df)


def _numbered_grams(rows: Sequences, n: int) -> tuple[Ints, Ints]:
    """Row and number of each of the M n-grams of all rows; equal n-grams have equal numbers, 0 to G - 1."""
    width = max(rows.ids.shape[1] - n + 1, 0)
    at: Ints = np.arange(n, width + n, dtype=np.int64)
    whole: NDArray[np.bool_] = np.less_equal(at, rows.lengths[:, None])
    row_M, at_M = np.nonzero(whole)
    gram_M: Ints = np.zeros(row_M.size, np.int64)
    base = int(rows.ids.max(initial=0)) + 1
    for k in range(n):
        # Numbered anew after each id, so that no product overflows: below M * base.
        _, gram_M = np.unique(gram_M * base + rows.ids[row_M, at_M + k], return_inverse=True)
    return row_M, gram_M


def _jackknife_variance(left: NDArray[np.float64], strata: Ints | None) -> float:
    """Sum over strata of (n - 1) / n times the squared deviations of the delete-one values from their stratum's mean.

    As everywhere, a stratum of one row says nothing of its own spread; then all rows count as one sample.
    """
    labels = np.zeros(left.size, np.int64) if strata is None else strata
    parts = [left[labels == j] for j in np.unique(labels)]
    if min(p.size for p in parts) < 2:
        parts = [left]
    return float(sum((p.size - 1) / p.size * np.square(p - p.mean()).sum() for p in parts))
