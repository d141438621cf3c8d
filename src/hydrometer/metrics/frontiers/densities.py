"""Figures of two exact densities beyond likelihoods: frontiers, typicality, collapse, curves."""

from __future__ import annotations

import numpy as np

from hydrometer.core.statistics.estimate import Estimate
from hydrometer.metrics.collapse import collapse_metrics
from hydrometer.metrics.frontiers.curves import divergence_curve, frontier_metrics, prd_curve
from hydrometer.metrics.frontiers.prefixes import prefix_metrics, prefixes
from hydrometer.metrics.frontiers.typicality import typicality_metrics
from hydrometer.metrics.likelihood import Scores
from hydrometer.metrics.pooled import Pooled, pool_scores

__all__ = ["curves", "density_metrics"]


def density_metrics(s: Scores, likelihood: dict[str, Estimate]) -> dict[str, Estimate]:
    """All density figures of one judged law: frontier, typicality, prefixes, collapse.

    Parameters
    ----------
    s : log-probabilities of both laws' rows, exact.
    likelihood : its figures so far; collapse rests on both entropies.
    """
    rows = pool_scores(s)
    out = frontier_metrics(rows) | typicality_metrics(rows, np.concatenate([s.truth_on_truth, s.truth_on_law]))
    out |= prefix_metrics(s)
    return out | collapse_metrics(likelihood | out, sequences=s.truth_rows.lengths is not None)


def curves(s: Scores) -> dict[str, object]:
    """Frontiers for drawing: of whole rows, and of the first m tokens where these were scored.

    Returns
    -------
    JSON-able: ``whole``, and ``first`` by m as text, each with ``prd`` (lists slope, alpha, beta, alpha_se, beta_se)
    and ``divergence`` (lists w, x, y); and n, the rows of the smaller sample.
    """
    rows = pool_scores(s)
    return {
        "n": rows.n,
        "whole": _curve(rows),
        "first": {str(m): _curve(part) for m, part, _ in prefixes(s)},
    }


def _curve(rows: Pooled) -> dict[str, object]:
    return {"prd": prd_curve(rows), "divergence": divergence_curve(rows)}
