"""Typicality: how much of a law lies where the truth's own likelier rows lie.

    t_a = the (1 - a) quantile of log p*(X), X ~ p*            P_a = Pr_q[ log p*(Y) >= t_a ]

A law equal to the truth has P_a = a. Above: too typical, the mark of cooling. Below: rows that the truth would hardly
write. Where log p* has atoms, the one at t_a counts with the share of its mass that the truth needs to reach a,

    P_a = Pr_q[ log p* > t_a ] + g Pr_q[ log p* = t_a ],     a = Pr_p*[ log p* > t_a ] + g Pr_p*[ log p* = t_a ],

so that P_a(p*) = a for every law. P_a against a is the ROC curve of log p* between the truth and the law.

The threshold is estimated too. With R = dP/da, the share of q per share of p* at the threshold,

    P^ - P = mean over rows of  b (1[log p* >= t] - P) - R a (1[log p* >= t] - a)  + smaller terms,

the two parts being q's own error and Bahadur's (1966) of the quantile. For R stands the root mean square of what P_a
moves over the threshold's own normal error, by that error: P_a may be bent there, and no density is estimated in nats.

Estimation: `metrics.pooled`. Theory, eq. 20. Shapes: n pooled rows, K distinct values of log p*.
"""

from __future__ import annotations

import math
from functools import cache

import numpy as np
from numpy.typing import NDArray

from hydrometer.core.array_types import Floats
from hydrometer.core.statistics.estimate import Estimate
from hydrometer.metrics.pooled import Pooled, PooledReference, Settled

__all__ = ["LEVELS", "TIE", "roc", "typicality_metrics"]

TIE = 1e-9  # nats; values of log p* closer than this are one
LEVELS = {"50": 0.5, "90": 0.9}
_LEAST_WIDTH = 0.01


@cache
def _nodes() -> NDArray[np.float64]:
    """Return the middles of 16 equal shares of a standard normal."""
    from scipy.special import ndtri

    return np.asarray(ndtri((np.arange(16) + 0.5) / 16), np.float64)


def roc(log_p: Floats, a: Floats, b: Floats, tie: float) -> tuple[Floats, Floats, NDArray[np.int64]]:
    """Mass of the truth and of the law above each distinct value of log p*, likeliest first.

    Parameters
    ----------
    log_p : (n,) nats, falling. a, b : (n,) masses of the truth and of the law, to any scale.
    tie : values closer than this are one.

    Returns
    -------
    (K + 1,) and (K + 1,), from 0 to 1; (n,) which value a row has.
    """
    with np.errstate(invalid="ignore"):  # rows the truth cannot say: -inf less -inf
        new = np.concatenate([[False], ~(log_p[:-1] - log_p[1:] <= tie) & (log_p[:-1] != log_p[1:])])
    group = np.cumsum(new)
    above = [np.concatenate([[0.0], np.cumsum(np.bincount(group, weights=w))]) for w in (a, b)]
    return above[0] / above[0][-1], above[1] / above[1][-1], group


def typicality_metrics(rows: Pooled, log_p: Floats) -> dict[str, Estimate]:
    """`typicality_50` and `typicality_90`: P_a at a = 0.5 and 0.9, with the threshold's own error.

    Parameters
    ----------
    rows : the rows of the truth and of the judged law.
    log_p : (n,) log p* of each, nats; -inf where the truth cannot say a row.

    Examples
    --------
    >>> from hydrometer.metrics.pooled import pool
    >>> log_p = -np.arange(100.0)
    >>> same = pool(np.zeros(50), np.zeros(50), None, None)
    >>> round(typicality_metrics(same, log_p)["typicality_90"].value, 12)
    0.9
    """
    order = np.argsort(-log_p)  # rows that tie share one group, whatever their order
    a, b = rows.a[order], rows.b[order]
    above_p, above_q, group = roc(log_p[order], a, b, TIE)
    back = np.empty_like(order)
    back[order] = np.arange(order.size)
    out: dict[str, Estimate] = {}
    for name, level in LEVELS.items():
        k = int(np.clip(np.searchsorted(above_p, level, side="left") - 1, 0, above_p.size - 2))
        mass = above_p[k + 1] - above_p[k]
        g = float((level - above_p[k]) / mass) if mass > 0 else 1.0
        value = float(above_q[k] + g * (above_q[k + 1] - above_q[k]))
        inside = np.where(group < k, 1.0, np.where(group == k, g, 0.0))[back]
        threshold = rows.a * (inside - level)
        if rows.reference is not None:
            at = float(log_p[order][np.searchsorted(group, k)])
            found = _by_reference(rows.reference, at, level, value)
        else:
            # Without the control variate: where P_a is bent, it is the plain threshold that lies on one side or the
            # other. Nor for the figure: a coefficient fitted to one slope would shift it by the wrong amount.
            err = math.sqrt(float(np.square(rows.errors(threshold)).sum())) / threshold.size
            slope = _slope(above_p, above_q, level, err, value)
            found = rows.settle_plainly(value, rows.b * (inside - value) - slope * threshold)
        out[f"typicality_{name}"] = rows.shares(found)[0]
    return out


def _slope(above_p: Floats, above_q: Floats, level: float, err: float, value: float) -> float:
    """R: the root mean square of what P_a moves over the threshold's own normal error, by that error."""
    moved = np.interp(level + err * _nodes(), above_p, above_q) - value
    return math.sqrt(float(np.square(moved).mean())) / err if err > 0 else 0.0


def _by_reference(known: PooledReference, at: float, level: float, value: float) -> Settled:
    """P_a with its error, its threshold at `at` nats, from points that represent both laws."""
    order = np.argsort(-known.log_p)
    mass = known.mass[order]
    above_p, above_q, _ = roc(known.log_p[order], known.a[order] * mass, known.b[order] * mass, TIE)
    inside = (known.log_p >= at).astype(np.float64)
    threshold = known.a * (inside - level)
    # Over a hundredth of the truth's mass at least: nearer together, the points' own spacing would be read as a slope.
    err = max(float(known.errors(threshold)), _LEAST_WIDTH)
    slope = _slope(above_p, above_q, level, err, float(np.interp(level, above_p, above_q)))
    return known.settled(np.array([value]), (known.b * (inside - value) - slope * threshold)[None])
