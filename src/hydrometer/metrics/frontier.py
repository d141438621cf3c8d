"""Frontiers from densities: PRD, total variation, and the divergence curve with its area.

    alpha(l) = E_q [min(1, l p*/q)] = integral min(q, l p*)       beta(l) = E_p*[min(1, q/(l p*))] = alpha(l) / l
    TV       = 1/2 integral |q - p*| = 1 - alpha(1)
    r_w      = w p* + (1 - w) q,   0 < w < 1:   the curve ( exp(-C KL(q || r_w)), exp(-C KL(p* || r_w)) ),  C = 5

alpha is what share of q the truth has room for when its mass counts l-fold, beta what share of the truth q has room for
when its mass counts 1/l-fold: (alpha, beta) at all l > 0 is the precision-recall curve of Sajjadi et al. (2018), there
between histograms of embedded samples, here between the laws themselves. The divergence curve is MAUVE's (Pillutla et
al. 2021) with the same C, from exact densities: nothing is embedded or quantised, so the figures are those of the
laws, and are not comparable with MAUVE scores of texts. `divergence_area` is the area under it, corners (1, 0) and
(0, 1) joined by straight lines, over w = 1/16 .. 15/16; MAUVE takes other weights.

Not to be confused with `precision` and `recall`, expected log-probabilities (`metrics.likelihood`).
Estimation: `metrics.pooled`. Theory, eq. 19.

Shapes: n pooled rows, J weights, L slopes.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.special import xlogy  # pyright: ignore[reportUnknownVariableType]

from hydrometer.core.estimate import Estimate
from hydrometer.metrics.pooled import Pooled

__all__ = [
    "SCALE",
    "SLOPES",
    "WEIGHTS",
    "area_of",
    "divergence_curve",
    "frontier_metrics",
    "prd_curve",
    "prd_names",
]

SCALE = 5.0
SLOPES = {"half": 0.5, "one": 1.0, "two": 2.0}
WEIGHTS = np.arange(1, 16, dtype=np.float64) / 16

Floats = NDArray[np.float64]


def prd_names(alpha: dict[str, float]) -> dict[str, float]:
    """Return all figures that follow from alpha at the slopes `SLOPES`, by name."""
    out = {f"prd_alpha_{name}": value for name, value in alpha.items()}
    out |= {f"prd_beta_{name}": value / SLOPES[name] for name, value in alpha.items()}
    return out | {"total_variation": 1.0 - alpha["one"]}


def frontier_metrics(rows: Pooled) -> dict[str, Estimate]:
    """PRD at three slopes, total variation, and the area under the divergence curve.

    Parameters
    ----------
    rows : the rows of the truth and of the judged law.

    Returns
    -------
    dict of `Estimate`, each between 0 and 1:
        prd_alpha_half, prd_alpha_one, prd_alpha_two : alpha at slopes 1/2, 1, 2.
        prd_beta_half, prd_beta_one, prd_beta_two : beta at the same slopes.
        total_variation : 1 - alpha(1).
        divergence_area : 1 where the laws are equal.

    Examples
    --------
    >>> from hydrometer.metrics.pooled import pool
    >>> apart = pool(np.full(99, -np.inf), np.full(99, np.inf), None, None)
    >>> {k: round(e.value, 3) for k, e in frontier_metrics(apart).items() if k in ("prd_alpha_two", "total_variation")}
    {'total_variation': 1.0, 'prd_alpha_two': 0.0}
    """
    slopes = np.array(list(SLOPES.values()))
    value, se, df = _alpha(rows, slopes)
    out: dict[str, Estimate] = {}
    for name, slope, v, e, f in zip(SLOPES, slopes.tolist(), value.tolist(), se.tolist(), df, strict=True):
        out[f"prd_alpha_{name}"] = rows.share(v, e, f, min(1.0, slope))
        out[f"prd_beta_{name}"] = rows.share(v / slope, e / slope, f, min(1.0, 1.0 / slope))
        if slope == 1.0:
            out["total_variation"] = rows.share(1.0 - v, e, f)
    out["divergence_area"] = rows.share(*_area(rows))
    return out


def _alpha(rows: Pooled, slopes: Floats) -> tuple[Floats, Floats, list[float]]:
    h = np.minimum(rows.b, slopes[:, None] * rows.a)
    return rows.settle(h.mean(axis=1), h)


@dataclass(frozen=True, slots=True, eq=False)
class _Mixtures:
    """Per row ``b log b``, ``a log a``, and log r_w / m (J, n); a, b relative to the pooled rows' law m."""

    own_q: Floats
    own_p: Floats
    log_r: Floats

    @staticmethod
    def of(rows: Pooled) -> _Mixtures:
        log_r = np.multiply.outer(WEIGHTS, rows.a - rows.b)
        log_r += rows.b
        np.log(log_r, out=log_r)
        return _Mixtures(
            np.asarray(xlogy(rows.b, rows.b), np.float64), np.asarray(xlogy(rows.a, rows.a), np.float64), log_r
        )

    def divergences(self, rows: Pooled) -> tuple[Floats, Floats]:
        """KL(q || r_w) and KL(p* || r_w), (J,) each, nats, under the control variate."""
        scaled, spread = rows.control()
        n = rows.a.size
        # Of means: 1/n each row. Of the control: its coefficient times how far the mean of a lies from 1.
        weight = 1.0 / n - scaled * ((float(rows.a.mean()) - 1.0) / spread)
        # Not by BLAS, whose long products add by thread: the last digit would be that of the machine.
        q = float(np.einsum("n,n->", self.own_q, weight)) - np.einsum("jn,n->j", self.log_r, rows.b * weight)
        p = float(np.einsum("n,n->", self.own_p, weight)) - np.einsum("jn,n->j", self.log_r, rows.a * weight)
        return np.maximum(q, 0.0), np.maximum(p, 0.0)


def area_of(kl_q: Floats, kl_p: Floats) -> tuple[float, Floats, Floats]:
    """Area under the divergence curve, and its gradient.

    Parameters
    ----------
    kl_q, kl_p : (J,) KL(q || r_w) and KL(p* || r_w) at `WEIGHTS`, nats.

    Returns
    -------
    area, and its derivatives by `kl_q` and `kl_p`, (J,) each.
    """
    x = np.concatenate([[1.0], np.exp(-SCALE * kl_q), [0.0]])
    y = np.concatenate([[0.0], np.exp(-SCALE * kl_p), [1.0]])
    area = float(((x[:-1] - x[1:]) * (y[:-1] + y[1:])).sum()) / 2
    by_q = -SCALE * x[1:-1] * (y[2:] - y[:-2]) / 2
    by_p = -SCALE * y[1:-1] * (x[:-2] - x[2:]) / 2
    return area, by_q, by_p


def _area(rows: Pooled) -> tuple[float, float, float]:
    """Area, its standard error and degrees of freedom, by the delta method."""
    found = _Mixtures.of(rows)
    area, by_q, by_p = area_of(*found.divergences(rows))
    influence = by_q.sum() * found.own_q - rows.b * np.einsum("j,jn->n", by_q, found.log_r)
    influence += by_p.sum() * found.own_p - rows.a * np.einsum("j,jn->n", by_p, found.log_r)
    _, se, df = rows.settle(np.zeros(1), influence[None])
    return area, float(se[0]), df[0]


def prd_curve(rows: Pooled, points: int = 33) -> dict[str, list[float]]:
    """The PRD frontier at slopes ``tan`` of evenly spaced angles, for drawing.

    Returns
    -------
    dict of lists of equal length: slope; alpha, beta; alpha_se, beta_se.
    """
    slopes = np.tan(np.pi / 2 * np.arange(1, points + 1, dtype=np.float64) / (points + 1))
    value, se, _ = _alpha(rows, slopes)
    value = np.clip(value, 0.0, np.minimum(1.0, slopes))
    columns = {
        "slope": slopes, "alpha": value, "beta": value / slopes, "alpha_se": se, "beta_se": se / slopes,
    }  # fmt: skip
    return {name: np.round(column, 6).tolist() for name, column in columns.items()}


def divergence_curve(rows: Pooled) -> dict[str, list[float]]:
    """The divergence curve at `WEIGHTS`, for drawing: lists w, x = exp(-C KL(q || r_w)), y = exp(-C KL(p* || r_w))."""
    kl_q, kl_p = _Mixtures.of(rows).divergences(rows)
    columns = {"w": WEIGHTS, "x": np.exp(-SCALE * kl_q), "y": np.exp(-SCALE * kl_p)}
    return {name: np.round(column, 6).tolist() for name, column in columns.items()}
