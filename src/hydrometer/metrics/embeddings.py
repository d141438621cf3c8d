"""Figures with errors, in the whole space, for the two claims that a picture of embedded rows suggests.

Beside the truth's, a student's answers may look less varied (`spread_ratio`),
or may cluster among themselves instead of mixing with the truth's (`mixing`). Neither is read off a projection.

Shapes: N rows, D dimensions. Rows i of two models answer the same prompt (stratum).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from hydrometer.core.array_types import Ints
from hydrometer.core.statistics.estimate import Estimate, t_interval
from hydrometer.core.statistics.estimators import mean_estimate
from hydrometer.core.statistics.seeds import welch_satterthwaite

__all__ = ["Ratio", "mixing", "spread", "spread_ratio"]

Embedding = NDArray[np.float32]

GROUP_ROWS = 16


@dataclass(frozen=True, slots=True)
class Ratio:
    """A ratio of two figures: value, standard error, and 95 % interval on the logarithmic scale; None if undefined."""

    value: float | None
    se: float | None
    ci95: tuple[float, float] | None


def spread(rows: Embedding, strata: Ints | None = None) -> Estimate:
    """Mean squared distance of answers from the mean answer to their prompt, the trace of the covariance there.

    Parameters
    ----------
    rows : (N, D)
    strata : (N,) which prompt each row answers; None, or a prompt with a single row, makes one stratum of all rows.

    Returns
    -------
    Estimate, unbiased, in squared units of the space; its error is that of a mean of the rows' squared distances, which
    is right to first order in 1/N. Undefined for a single row.

    Examples
    --------
    >>> spread(np.array([[0.0, 0.0], [2.0, 0.0], [0.0, 2.0], [2.0, 2.0]], np.float32)).value.__round__(3)
    2.667
    """
    unit = "squared distance"
    n = len(rows)
    label = np.zeros(n, np.int64) if strata is None else np.unique(strata, return_inverse=True)[1]
    counts = np.bincount(label)
    if n < 2:
        return Estimate(None, None, None, n, unit=unit)
    if counts.min() < 2:
        label, counts, strata = np.zeros(n, np.int64), np.array([n]), None
    sums = np.zeros((len(counts), rows.shape[1]))
    np.add.at(sums, label, rows.astype(np.float64))
    off = rows - (sums / counts[:, None])[label]
    return mean_estimate(np.square(off).sum(axis=1) * (counts / (counts - 1.0))[label], unit, strata)


def spread_ratio(model: Embedding, truth: Embedding, strata: Ints | None = None) -> Ratio:
    """Spread of a model's answers over that of the truth's: 1 if as varied, below if they keep to a part.

    Error and interval by the delta method on the logarithm, the two sets of rows independent; degrees of freedom by
    Satterthwaite.
    """
    a, b = spread(model, strata), spread(truth, strata)
    if a.value is None or b.value is None or b.value == 0:
        return Ratio(None, None, None)
    ratio = a.value / b.value
    if a.value == 0 or a.se is None or b.se is None:  # all answers are equal: the rows give no error
        return Ratio(ratio, None, None)
    parts = [(a.se / a.value) ** 2, (b.se / b.value) ** 2]
    se = math.sqrt(sum(parts))
    low, high = t_interval(math.log(ratio), se, welch_satterthwaite(parts, [a.n - 1, b.n - 1]))
    return Ratio(ratio, ratio * se, (math.exp(low), math.exp(high)))


def mixing(model: Embedding, truth: Embedding, strata: Ints | None = None) -> Estimate:
    """Share of a model's answers whose nearest other answer, the model's and the truth's pooled, is the truth's.

    Rows are divided into groups of 16 to 31, of the same prompt as far as possible. Within a group a row of the model
    looks for its nearest neighbour among the model's other rows and the truth's rows but the one of its own number, so
    that both offer equally many of each prompt: the expectation is 1/2 if the two laws are one, whatever the space and
    the number of rows. It falls to 0 where the model's answers lie nearer to each other than to the truth's, in
    clusters or elsewhere, and rises above 1/2 where they are scattered about the truth's. Ties count half. Compare
    Schilling (1986), whose test pools both directions, which cancel where one law is narrower than the other.

    Parameters
    ----------
    model, truth : (N, D). strata : (N,) which prompt rows i answer.

    Returns
    -------
    Estimate, unit "share". Groups share no rows, so its error is that of a mean of groups; `n` counts them. No error
    below two groups.
    """
    n = len(model)
    order = np.arange(n) if strata is None else np.argsort(strata, kind="stable")
    groups = np.array_split(order, max(1, n // GROUP_ROWS))
    shares = np.array([_mixing(model[g], truth[g]) for g in groups])
    # A group within one prompt differs from one of another prompt by design, not by chance.
    pure = strata is not None and all(len(np.unique(strata[g])) == 1 for g in groups)
    of_group = np.array([strata[g[0]] for g in groups]) if pure and strata is not None else None
    return mean_estimate(shares, "share", of_group)


def _mixing(model: Embedding, truth: Embedding) -> float:
    if len(model) < 2:
        return 0.5
    own, theirs = (np.square(model[:, None].astype(np.float64) - other[None]).sum(-1) for other in (model, truth))
    np.fill_diagonal(own, np.inf)
    np.fill_diagonal(theirs, np.inf)
    a, b = own.min(axis=1), theirs.min(axis=1)
    return float(((b < a) + 0.5 * (b == a)).mean())
