"""Figures of rows chosen among candidates: their cost, and their divergence from the candidates' law.

With acceptance rate a and the best of n, for the chosen law b and the candidates' law p:

    rejection          KL(b || p) = -log a
    best of n          KL(b || p) <= log n - (n - 1) / n,   equal where the score has no ties
    both               KL(b || p) <= -log a + log n - (n - 1) / n

(Beirami et al. 2024; docs, Theory, eqs. 31 to 33.) A row that took D candidates for n accepted ones gives an unbiased
estimate of -log a, ``psi(D) - psi(n)``, psi the digamma function; for n = 1 it is the harmonic number of D - 1 (van
Opheusden, Acerbi and Ma 2020). Its mean over rows is right also where a differs between prompts, which the logarithm of
a pooled rate is not.

Shapes: N rows.
"""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from hydrometer.core.array_types import Ints
from hydrometer.core.statistics.estimate import Estimate
from hydrometer.core.statistics.estimators import mean_estimate, ratio_estimate, wilson_se
from hydrometer.core.statistics.sampling_design import Strata

__all__ = ["best_of_bound", "chosen_metrics"]


def best_of_bound(n: int) -> float:
    """Return the most that KL(best of n || candidates' law) can be, nats: ``log n - (n - 1) / n``.

    Examples
    --------
    >>> round(best_of_bound(4), 3)
    0.636
    """
    return math.log(n) - (n - 1) / n


def chosen_metrics(draws: Ints, best_of: int, strata: Strata | None, *, accept: bool) -> dict[str, Estimate]:
    """Cost of chosen rows, and their divergence from the candidates' law.

    Parameters
    ----------
    draws : (N,) candidates drawn for each row, the last needed one included.
    best_of : n; 1 for rejection alone.
    strata : (N,) prompts, or None.
    accept : whether candidates were rejected at all.

    Returns
    -------
    dict of `Estimate`:
        draws_per_row : candidates a row.
        acceptance_rate : accepted over drawn candidates, with `accept` only.
        kl_chosen_candidates : rejection alone, the divergence itself, nats.
        kl_chosen_candidates_bound : with best of n, the most that it can be, nats; exact without rejection.

    Examples
    --------
    >>> found = chosen_metrics(np.array([1, 3, 1, 2]), 1, None, accept=True)
    >>> round(found["acceptance_rate"].value, 3), round(found["kl_chosen_candidates"].value, 3)
    (0.571, 0.625)
    """
    from scipy.special import digamma  # pyright: ignore[reportUnknownVariableType]

    n = int(draws.size)
    out = {"draws_per_row": mean_estimate(draws.astype(np.float64), "draws", strata)}
    bound = best_of_bound(best_of)
    if not accept:
        return out | {"kl_chosen_candidates_bound": Estimate(bound, 0.0, 0.0, n, 0, "exact", "nats")}
    rate = ratio_estimate(np.full(n, float(best_of)), draws.astype(np.float64), "probability", strata)
    psi: NDArray[np.float64] = np.asarray(digamma(np.append(draws, best_of)), np.float64)
    each = psi[:-1] - psi[-1]
    gap = mean_estimate(each, "nats", strata)
    if rate.value == 1.0:  # nothing was rejected, which a small share of rejections could also give
        se = wilson_se(1.0, n * best_of)
        rate, gap = replace(rate, se=se, se_mc=se), replace(gap, se=se, se_mc=se)
    if gap.value is not None and best_of > 1:
        return out | {"acceptance_rate": rate, "kl_chosen_candidates_bound": replace(gap, value=gap.value + bound)}
    return out | {"acceptance_rate": rate, "kl_chosen_candidates": gap}
