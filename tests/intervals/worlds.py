"""Worlds in which every figure is known, and how often 95 % intervals hold it.

Thousands of samples are drawn at once; the library's own functions make the figures of each.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import numpy as np

import hydrometer as hm
from hydrometer.core.statistics.controls import Controls
from hydrometer.metrics.frontiers.densities import density_metrics
from hydrometer.metrics.likelihood import Scores, likelihood_metrics
from hydrometer.models.rows.points import Points
from hydrometer.models.rows.sequences import Sequences

NAMES = (
    "precision", "recall", "entropy", "entropy_truth", "kl_student_truth", "kl_truth_student", "total_variation",
    "prd_alpha_half", "prd_alpha_one", "prd_alpha_two", "prd_beta_half", "prd_beta_two", "divergence_area",
    "typicality_50", "typicality_90",
)  # fmt: skip


def line() -> tuple[hm.Mixture, hm.Mixture]:
    """A teacher of two modes, and a student of one."""
    p = hm.Mixture([0.6, 0.4], [[-1.0], [1.5]], [0.8, 0.4], covariance_type="spherical")
    return p, hm.Mixture([1.0], [[0.2]], [1.6], covariance_type="spherical")


def plane() -> tuple[hm.Mixture, hm.Mixture]:
    """Three modes in the plane, and two wider ones."""
    p = hm.Mixture([0.5, 0.3, 0.2], [[-1, 0], [1, 0], [0, 1.5]], [0.3] * 3, covariance_type="spherical")
    return p, hm.Mixture([0.6, 0.4], [[-0.6, 0.4], [0.9, 0.3]], [[0.6, 0.7], [0.4, 0.8]], covariance_type="diag")


def chains() -> tuple[hm.Markov, hm.Markov]:
    """An order-2 chain over five ids of at most eight tokens, and the order-1 chain fitted to its rows."""
    rng = np.random.default_rng(12)
    table = np.concatenate([np.full((36, 1), 0.2), 0.8 * rng.dirichlet(np.ones(4), size=36)], axis=1)
    p = hm.Markov(np.log(table), order=2, max_new_tokens=8)
    rows = p.sample(4000, seed=1)
    return p, hm.fit_markov(rows, 1, smoothing=0.5, vocabulary=5, max_new_tokens=8).model


WORLDS: dict[str, Callable[[], tuple[Any, Any]]] = {"line": line, "plane": plane, "chains": chains}


@cache
def exact(world: str) -> dict[str, float]:
    p, q = WORLDS[world]()
    return {k: e.value for k, e in hm.judge_exact(p, q).items() if e.value is not None}


def _part(x: Any, rows: slice) -> Any:
    return x.take(rows) if isinstance(x, Sequences) else Points(x.x[rows], x.log_prob[rows])


def coverage(world: str, n: int, replications: int, seed: int) -> dict[str, float]:
    """Return, by figure, the share of replications whose 95 % interval holds the exact value."""
    p, q = WORLDS[world]()
    known = exact(world)
    root = hm.Stream(seed)
    x = p.sample(replications * n, seed=root.child("test", "truth"))
    y = q.sample(replications * n, seed=root.child("test", "law"))
    of_p, of_q = p.score_beside(x, q), q.score_beside(y, p)
    hits = dict.fromkeys(NAMES, 0)
    for r in range(replications):
        here = slice(r * n, (r + 1) * n)
        columns = (of_p.own[here], of_p.other[here], of_q.other[here], of_q.own[here])
        controls = (Controls.of(x.controls[here], None, x.reference) for x in (of_p, of_q))
        s = Scores(_part(x, here), _part(y, here), *columns, *controls)
        found = likelihood_metrics(s)
        found |= density_metrics(s, found)
        for name in NAMES:
            interval = found[name].interval()
            assert interval is not None
            hits[name] += interval[0] <= known[name] <= interval[1]
    return {name: hit / replications for name, hit in hits.items()}
