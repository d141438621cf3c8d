"""Precision, recall, entropies and both KLs, from four columns of log-probabilities.

    precision          E_{y ~ q} log p*(y)  =  -H(q)  - KL(q || p*)
    recall             E_{x ~ p*} log q(x)  =  -H(p*) - KL(p* || q)

q is the judged law, p* the truth. Source: Cha and Cho (2025), section 2; docs, Theory. Rows of truth are the same for
every judged law, so recalls are paired by row; rows of a judged law are its own.
Not to be confused with the set-based precision and recall of Sajjadi et al. (2018), which are frontiers.

Shapes: N truth rows, M rows of the judged law.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from hydrometer.core.array_types import Floats
from hydrometer.core.statistics.controls import Combination, Controls
from hydrometer.core.statistics.estimate import Estimate
from hydrometer.core.statistics.estimators import mean_estimate, ratio_estimate, share_estimate, wilson_se
from hydrometer.core.statistics.sampling_design import Clusters, Strata
from hydrometer.models.base import Samples

__all__ = ["Scores", "likelihood_metrics", "mean_on"]


@dataclass(frozen=True, slots=True)
class Scores:
    """Log-probabilities, nats.

    Attributes
    ----------
    truth_rows, law_rows : the draws of the truth (N rows) and of the judged law (M rows).
    truth_on_truth : (N,) log p* of truth rows.
    law_on_truth : (N,) log q of truth rows; -inf where q cannot say the row.
    truth_on_law : (M,) log p* of the law's rows.
    law_on_law : (M,) log q of the law's rows.
    truth_controls, law_controls : control variates of figures over the truth's rows and over the law's, or None.
    truth_first, law_first : log p* and log q of the first 1, 2, 4, ... tokens, (N, K) each, the last column of whole
        rows (`metrics.frontiers.prefixes.first_tokens`), of the truth's rows and of the law's; or None.
    """

    truth_rows: Samples
    law_rows: Samples
    truth_on_truth: Floats
    law_on_truth: Floats
    truth_on_law: Floats
    law_on_law: Floats
    truth_controls: Controls | None = None
    law_controls: Controls | None = None
    truth_first: tuple[Floats, Floats] | None = None
    law_first: tuple[Floats, Floats] | None = None


def likelihood_metrics(s: Scores) -> dict[str, Estimate]:
    """All likelihood figures of one judged law.

    Returns
    -------
    dict of `Estimate` by metric name, nats per row; with ``_per_token`` companions (ratio of sums) for sequences.
    """
    p, q = s.truth_controls, s.law_controls
    columns: dict[str, tuple[Floats, Samples, Controls | None, Combination]] = {
        "precision": (s.truth_on_law, s.law_rows, q, (0.0, 1.0)),
        "recall": (s.law_on_truth, s.truth_rows, p, (0.0, 1.0)),
        "entropy": (-s.law_on_law, s.law_rows, q, (-1.0, 0.0)),
        "entropy_truth": (-s.truth_on_truth, s.truth_rows, p, (-1.0, 0.0)),
        "kl_student_truth": (s.law_on_law - s.truth_on_law, s.law_rows, q, (1.0, -1.0)),
    }
    out = {name: mean_estimate(values, "nats", rows.strata, c, of) for name, (values, rows, c, of) in columns.items()}
    if s.truth_rows.lengths is not None:
        for name, (values, rows, c, _) in columns.items():
            out[f"{name}_per_token"] = ratio_estimate(values, _lengths(rows), "nats/token", rows.strata, c)
    _kl_truth(s, p, out)
    _support(s, out)
    return out


def _kl_truth(s: Scores, controls: Controls | None, out: dict[str, Estimate]) -> None:
    """KL(p* || q): plus infinity where q misses a row of the truth; then without a value, the rows counted."""
    missed = int(np.isneginf(s.law_on_truth).sum())
    per_token = s.truth_rows.lengths is not None
    if missed:
        n = len(s.truth_rows)
        out["kl_truth_student"] = Estimate(None, None, None, n, missed, "mc", "nats")
        if per_token:
            out["kl_truth_student_per_token"] = Estimate(None, None, None, n, missed, "mc", "nats/token")
        return
    gap = s.truth_on_truth - s.law_on_truth
    out["kl_truth_student"] = mean_estimate(gap, "nats", s.truth_rows.strata, controls, (1.0, -1.0))
    if per_token:
        out["kl_truth_student_per_token"] = ratio_estimate(
            gap, _lengths(s.truth_rows), "nats/token", s.truth_rows.strata, controls
        )


def _support(s: Scores, out: dict[str, Estimate]) -> None:
    """Recall's finite companion on the rows the law can say, and the truth's mass on the others."""
    can_say = np.isfinite(s.law_on_truth)
    n, k = int(can_say.size), int(can_say.sum())
    strata = s.truth_rows.strata
    # Where every row can be said, that is recall itself, with its control variates.
    out["recall_on_support"] = out["recall"] if k == n else mean_on(can_say, s.law_on_truth, None, "nats", strata)
    if s.truth_rows.lengths is not None:
        lengths = _lengths(s.truth_rows)
        out["recall_on_support_per_token"] = (
            out["recall_per_token"] if k == n else mean_on(can_say, s.law_on_truth, lengths, "nats/token", strata)
        )
    if isinstance(strata, Clusters):
        out["truth_mass_outside_support"] = share_estimate((~can_say).astype(np.float64), strata)
        return
    share = 1 - k / n
    se = wilson_se(share, n)
    out["truth_mass_outside_support"] = Estimate(share, se, se, n, 0, "mc", "probability")


def mean_on(kept: NDArray[np.bool_], values: Floats, per: Floats | None, unit: str, strata: Strata | None) -> Estimate:
    """Mean over some of the rows, or ratio of their sums.

    Where strata are fixed, how many rows of each are among the kept is chance, and moves the mean where strata differ:
    its error is that of a ratio of sums over all rows (Cochran 1977, section 6.3).

    Parameters
    ----------
    kept : (N,) which rows.
    values : (N,) finite where kept.
    per : (N,) what the sum is divided by, or None for a plain mean.
    """
    k = int(kept.sum())
    if isinstance(strata, np.ndarray) and 2 <= k < kept.size:
        whole = np.ones(kept.size) if per is None else per
        found = ratio_estimate(np.where(kept, values, 0.0), np.where(kept, whole, 0.0), unit, strata)
        return replace(found, n=k, df=None if found.df is None else min(found.df, k - 1.0))
    part = None if strata is None else strata[kept]
    if per is None:
        return mean_estimate(values[kept], unit, part)
    return ratio_estimate(values[kept], per[kept], unit, part)


def _lengths(rows: Samples) -> Floats:
    if rows.lengths is None:
        raise ValueError("rows without lengths have no per-token figures")
    return rows.lengths.astype(np.float64)
