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

from dataclasses import dataclass, replace
from functools import lru_cache

import numpy as np

from hydrometer.core.array_types import Floats
from hydrometer.core.statistics.estimate import Estimate
from hydrometer.metrics.pooled import Pooled, PooledReference, Settled

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
    {'prd_alpha_two': 0.0, 'total_variation': 1.0}
    """
    slopes = np.array(list(SLOPES.values()))
    alpha = _alpha(rows, slopes)
    of_alpha = rows.shares(alpha, np.minimum(1.0, slopes))
    of_beta = rows.shares(alpha.scaled(1 / slopes), np.minimum(1.0, 1 / slopes))
    apart = rows.shares(alpha.scaled(-np.ones(slopes.size), 1.0))
    out = {f"prd_alpha_{name}": e for name, e in zip(SLOPES, of_alpha, strict=True)}
    out |= {f"prd_beta_{name}": e for name, e in zip(SLOPES, of_beta, strict=True)}
    out["total_variation"] = apart[list(SLOPES).index("one")]
    return out | {"divergence_area": rows.shares(_area(rows))[0]}


def _alpha(rows: Pooled, slopes: Floats) -> Settled:
    h = np.minimum(rows.b, slopes[:, None] * rows.a)
    known = rows.reference
    there = None if known is None else np.minimum(known.b, slopes[:, None] * known.a)
    return rows.settle(h.mean(axis=1), h, there)


@dataclass(frozen=True, slots=True, eq=False)
class _Mixtures:
    """Per row ``b log b``, ``a log a``, and log r_w / m (J, n); a, b relative to the pooled rows' law m."""

    a: Floats
    b: Floats
    own_q: Floats
    own_p: Floats
    log_r: Floats

    @staticmethod
    def of(rows: Pooled | PooledReference) -> _Mixtures:
        from scipy.special import xlogy  # pyright: ignore[reportUnknownVariableType]

        log_r = np.multiply.outer(WEIGHTS, rows.a - rows.b)
        log_r += rows.b
        np.log(log_r, out=log_r)
        own_q, own_p = (np.asarray(xlogy(x, x), np.float64) for x in (rows.b, rows.a))
        return _Mixtures(rows.a, rows.b, own_q, own_p, log_r)

    def sums(self, weight: Floats) -> tuple[Floats, Floats]:
        """Weighted sums of ``b log(b / r)`` and of ``a log(a / r)``, (J,) each."""
        # Not by BLAS, whose long products add by thread: the last digit would be that of the machine.
        q = float(np.einsum("n,n->", self.own_q, weight)) - np.einsum("jn,n->j", self.log_r, self.b * weight)
        p = float(np.einsum("n,n->", self.own_p, weight)) - np.einsum("jn,n->j", self.log_r, self.a * weight)
        return q, p

    def influence(self, by_q: Floats, by_p: Floats) -> Floats:
        """What each row adds to a function of the divergences with these derivatives, (n,)."""
        q = by_q.sum() * self.own_q - self.b * np.einsum("j,jn->n", by_q, self.log_r)
        return q + by_p.sum() * self.own_p - self.a * np.einsum("j,jn->n", by_p, self.log_r)


def _divergences(rows: Pooled, found: _Mixtures, there: _Mixtures | None) -> tuple[Floats, Floats]:
    """KL(q || r_w) and KL(p* || r_w), (J,) each, nats, under the control variate."""
    on_rows, on_reference = rows.weights()
    q, p = found.sums(on_rows)
    if there is not None and on_reference is not None:
        more_q, more_p = there.sums(on_reference)
        q, p = q + more_q, p + more_p
    return np.maximum(q, 0.0), np.maximum(p, 0.0)


def area_of(kl_q: Floats, kl_p: Floats) -> tuple[float, Floats, Floats]:
    """Area under the divergence curve, and its gradient.

    Parameters
    ----------
    kl_q, kl_p : (J,) KL(q || r_w) and KL(p* || r_w) at rising weights w, as `WEIGHTS`, nats.

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


def _area(rows: Pooled) -> Settled:
    """Area with its error by the delta method."""
    found = _Mixtures.of(rows)
    there = _there(rows)
    area, by_q, by_p = area_of(*_divergences(rows, found, there))
    known = None if there is None else there.influence(by_q, by_p)[None]
    of = rows.settle(np.zeros(1), found.influence(by_q, by_p)[None], known)
    return replace(of, value=np.array([area]))


def _there(rows: Pooled) -> _Mixtures | None:
    return None if rows.reference is None else _mixtures(rows.reference)


@lru_cache(maxsize=2)  # the area, then its curve
def _mixtures(known: PooledReference) -> _Mixtures:
    return _Mixtures.of(known)


def prd_curve(rows: Pooled, points: int = 33) -> dict[str, list[float]]:
    """The PRD frontier at slopes ``tan`` of evenly spaced angles, for drawing.

    Returns
    -------
    dict of lists of equal length: slope; alpha, beta; alpha_se, beta_se.
    """
    slopes = np.tan(np.pi / 2 * np.arange(1, points + 1, dtype=np.float64) / (points + 1))
    found = _alpha(rows, slopes)
    value, se = np.clip(found.value, 0.0, np.minimum(1.0, slopes)), found.se
    columns = {
        "slope": slopes,
        "alpha": value,
        "beta": value / slopes,
        "alpha_se": se,
        "beta_se": se / slopes,
    }
    return {name: np.round(column, 6).tolist() for name, column in columns.items()}


def divergence_curve(rows: Pooled) -> dict[str, list[float]]:
    """The divergence curve at `WEIGHTS`, for drawing: lists w, x = exp(-C KL(q || r_w)), y = exp(-C KL(p* || r_w))."""
    kl_q, kl_p = _divergences(rows, _Mixtures.of(rows), _there(rows))
    columns = {"w": WEIGHTS, "x": np.exp(-SCALE * kl_q), "y": np.exp(-SCALE * kl_p)}
    return {name: np.round(column, 6).tolist() for name, column in columns.items()}
