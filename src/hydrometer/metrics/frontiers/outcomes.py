"""Frontiers without Monte Carlo, from a list of outcomes with their masses under both laws: oracles of the estimates.

A pair of n-gram chains is enumerated; a pair of mixtures is laid on the nodes of a quadrature. Where there are more
strings than are to be enumerated, the likeliest are, and the rest is known by whole prefixes f, with masses P_f and
Q_f. Then

    0 <= integral over f of min(q, l p) <= min(Q_f, l P_f)
    Q_f log(Q_f / R_f) <= integral over f of q log(q / r) <= -Q_f log(1 - w),      r = w p + (1 - w) q

the first since a minimum of sums is at least the sum of minima, the second by the log-sum inequality and r >= (1 - w)
q. So every figure has a lower and an upper bound that hold for certain; they meet where nothing is left.

Shapes: K outcomes, F unexpanded prefixes, J weights of `metrics.frontiers.curves`.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from hydrometer.core.array_types import Floats, Ints
from hydrometer.core.statistics.estimate import Estimate
from hydrometer.metrics.frontiers.curves import SLOPES, WEIGHTS, area_of, prd_names
from hydrometer.metrics.frontiers.typicality import LEVELS, TIE, roc
from hydrometer.models.markov.law import END, Markov

__all__ = ["Outcomes", "chain_outcomes", "outcome_frontiers", "outcome_metrics"]

_MET = 1e-12  # bounds closer than this are one figure


@dataclass(frozen=True, slots=True, eq=False)
class Outcomes:
    """Masses of outcomes under truth and law.

    Attributes
    ----------
    p, q : (K,) masses of single outcomes.
    log_p : (K,) log p* of each, nats (the density's, for points).
    rest_p, rest_q : (F,) masses of what was not enumerated, in parts.
    """

    p: Floats
    q: Floats
    log_p: Floats
    rest_p: Floats
    rest_q: Floats


def outcome_metrics(x: Outcomes) -> dict[str, Estimate]:
    """Return the figures of `frontier_metrics` and `typicality_metrics`, method "exact".

    Returns
    -------
    dict of `Estimate` by name, as `outcome_frontiers`. Typicality is left out where its threshold lies among what was
    not enumerated.
    """
    return outcome_frontiers(x) | _typicality(x)


def outcome_frontiers(x: Outcomes) -> dict[str, Estimate]:
    """Return the figures of `frontier_metrics`; where bounds do not meet, ``..._lower`` and ``..._upper`` instead."""
    low: dict[str, float] = {}
    high: dict[str, float] = {}
    for name, slope in SLOPES.items():
        low[name] = float(np.minimum(x.q, slope * x.p).sum())
        high[name] = min(low[name] + float(np.minimum(x.rest_q, slope * x.rest_p).sum()), 1.0, slope)
    bounds = {k: (v, prd_names(high)[k]) for k, v in prd_names(low).items()}
    bounds["divergence_area"] = _area(x)
    out: dict[str, Estimate] = {}
    for name, pair in bounds.items():
        a, b = min(pair), max(pair)
        if b - a <= _MET:
            out[name] = _exact(a)
        else:
            out |= {f"{name}_lower": _exact(a), f"{name}_upper": _exact(b)}
    return out


def _exact(value: float) -> Estimate:
    return Estimate(min(max(value, 0.0), 1.0), 0.0, 0.0, 0, 0, "exact", "probability")


def _divergence(own: Floats, other: Floats, share: Floats) -> Floats:
    """``sum own log(own / r)``, r = share * other + (1 - share) * own, (J,)."""
    kept = own > 0
    own, other = own[kept], other[kept]
    log_own = np.log(own)
    return np.array([float(own @ (log_own - np.log(s * other + (1 - s) * own))) for s in share])


def _area(x: Outcomes) -> tuple[float, float]:
    """Bounds of the area: it falls in every divergence."""
    kl_q, kl_p = _divergence(x.q, x.p, WEIGHTS), _divergence(x.p, x.q, 1 - WEIGHTS)
    least_q, least_p = _divergence(x.rest_q, x.rest_p, WEIGHTS), _divergence(x.rest_p, x.rest_q, 1 - WEIGHTS)
    most_q, most_p = -x.rest_q.sum() * np.log1p(-WEIGHTS), -x.rest_p.sum() * np.log(WEIGHTS)
    return area_of(kl_q + most_q, kl_p + most_p)[0], area_of(kl_q + least_q, kl_p + least_p)[0]


def _typicality(x: Outcomes) -> dict[str, Estimate]:
    left = x.rest_p[x.rest_p > 0]
    # No string is likelier than a prefix of it, so above the likeliest prefix left all is known.
    known = x.log_p > (np.log(left.max()) if left.size else -np.inf)
    if not left.size:
        known[:] = True
    order = np.flatnonzero(known)[np.argsort(-x.log_p[known])]
    if not order.size:
        return {}
    p, q = x.p[order], x.q[order]
    above_p, above_q, _ = roc(x.log_p[order], p, q, TIE)
    above_p, above_q = above_p * float(p.sum()), above_q * float(q.sum())
    return {
        f"typicality_{name}": _exact(float(np.interp(np.array([level]), above_p, above_q)[0]))
        for name, level in LEVELS.items()
        if level <= above_p[-1] + _MET
    }


@dataclass(slots=True)
class _Parts:
    pieces: list[tuple[Floats, Floats]]

    def add(self, log_p: Floats, log_q: Floats) -> None:
        self.pieces.append((log_p, log_q))

    def joined(self, *more: tuple[Floats, Floats]) -> tuple[Floats, Floats]:
        every = [*self.pieces, *more]
        return np.concatenate([a for a, _ in every]), np.concatenate([b for _, b in every])


def chain_outcomes(p: Markov, q: Markov, most: int) -> Iterator[tuple[int, Outcomes]]:
    """Enumerate two chains together.

    Parameters
    ----------
    p, q : chains over the same ids and lengths.
    most : strings enumerated at most. Where there are more, those whose prefixes are heavy under both laws.

    Yields
    ------
    m, and the outcomes of the first m tokens, for m = 1, 2, 4, ... and last for whole strings, m = max_new_tokens.

    Raises
    ------
    LawMismatchError : other vocabulary or max_new_tokens.
    """
    p.compatible(q)
    steps, v = p.max_new_tokens, p.vocabulary
    total = sum((v - 1.0) ** t for t in range(steps)) + (v - 1.0) ** steps
    cap = None if total <= most else max(most // (steps * v), 1)
    done, left = _Parts([]), _Parts([])
    at_p, at_q = np.array([p.start]), np.array([q.start])
    log_p, log_q = np.zeros(1), np.zeros(1)
    for t in range(steps):
        next_p = log_p[:, None] + p.step_table(t)[at_p]
        next_q = log_q[:, None] + q.step_table(t)[at_q]
        done.add(next_p[:, END], next_q[:, END])
        ids: Ints = np.delete(np.arange(v, dtype=np.int64), END)
        log_p, log_q = next_p[:, ids].ravel(), next_q[:, ids].ravel()
        at_p, at_q = p.follow(at_p[:, None], ids).ravel(), q.follow(at_q[:, None], ids).ravel()
        kept = np.isfinite(log_p) | np.isfinite(log_q)
        if cap is not None and t + 1 < steps and np.count_nonzero(kept) > cap:
            both = np.where(kept, np.minimum(log_p, log_q), -np.inf)
            chosen = np.zeros(kept.size, np.bool_)
            chosen[np.argpartition(-both, cap)[:cap]] = True
            left.add(log_p[kept & ~chosen], log_q[kept & ~chosen])
            kept &= chosen
        log_p, log_q, at_p, at_q = log_p[kept], log_q[kept], at_p[kept], at_q[kept]
        m = t + 1
        if m == steps or m & (m - 1) == 0:
            yield m, _outcomes(done.joined((log_p, log_q)), left.joined((np.empty(0), np.empty(0))))


def _outcomes(done: tuple[Floats, Floats], left: tuple[Floats, Floats]) -> Outcomes:
    return Outcomes(np.exp(done[0]), np.exp(done[1]), done[0], np.exp(left[0]), np.exp(left[1]))
