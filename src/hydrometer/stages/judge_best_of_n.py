"""Judge a law that chooses rows among candidates: what can be said without its probabilities."""

from __future__ import annotations

import numpy as np

from hydrometer.core.array_types import Floats
from hydrometer.core.errors import StageError
from hydrometer.core.statistics.estimate import Estimate
from hydrometer.core.statistics.estimators import mean_estimate, ratio_estimate
from hydrometer.metrics.candidate_figures import chosen_metrics
from hydrometer.metrics.text import drawn_metrics, text_metrics
from hydrometer.models.base import Law
from hydrometer.models.choosing.best_of_n import ChosenLaw
from hydrometer.models.rows.sequences import Sequences

__all__ = ["chosen_estimates", "chosen_figures", "unscored_estimates"]


def chosen_figures(
    truth: Law, law: ChosenLaw, rows: Sequences, *, under_base: Floats | None = None
) -> tuple[dict[str, Estimate], Floats]:
    """Return the figures of a law that chooses, and the truth's log-probability of its rows, (N,).

    Parameters
    ----------
    truth : p*.
    rows : drawn from `law`.
    under_base : (N,) log-probability of the rows under the candidates' law, nats, where it is known.

    Returns
    -------
    dict of `Estimate` : precision, `entropy_bound` (the mean of minus the candidates' log-probability, which the
        entropy cannot exceed), each also per token; cost and divergence (`chosen_metrics`); texts.

    Raises
    ------
    LawMismatchError : the truth is of other outcomes. StageError : NaN.
    """
    law.compatible(truth)
    on_truth = truth.log_prob(rows)
    on_base = law.base.log_prob(rows) if under_base is None else under_base
    return chosen_estimates(rows, on_truth, on_base, law.best_of, accepts=law.accept is not None), on_truth


def chosen_estimates(
    rows: Sequences, on_truth: Floats, on_base: Floats, best_of: int, *, accepts: bool
) -> dict[str, Estimate]:
    """Return the figures of rows that were chosen, from what is known of each.

    Parameters
    ----------
    on_truth, on_base : (N,) log-probability under p* and under the candidates' law, nats.
    best_of : candidates that each row is the best of.
    accepts : whether candidates are rejected besides.

    Raises
    ------
    StageError : NaN, or rows that do not know how many candidates they took.
    """
    if rows.draws is None:
        raise StageError("rows of a law that chooses lack the number of their candidates", fix="draw them again")
    out = unscored_estimates(rows, on_truth, on_base)
    return out | chosen_metrics(rows.draws, best_of, rows.strata, accept=accepts)


def unscored_estimates(rows: Sequences, on_truth: Floats, on_base: Floats) -> dict[str, Estimate]:
    """Return the figures of rows whose own law has no log-probability.

    Parameters
    ----------
    on_truth, on_base : (N,) log-probability under p* and under the law that they were chosen or selected from, nats.

    Raises
    ------
    StageError : NaN.
    """
    for name, column in (("truth_on_law", on_truth), ("candidates_on_law", on_base)):
        if np.isnan(column).any() or np.isposinf(column).any():
            raise StageError(f"scores {name} hold NaN or +inf", fix="the model diverged: lower its learning rate")
    out: dict[str, Estimate] = {}
    lengths = rows.lengths.astype(np.float64)
    for name, column in (("precision", on_truth), ("entropy_bound", -on_base)):
        out[name] = mean_estimate(column, "nats", rows.strata)
        out[f"{name}_per_token"] = ratio_estimate(column, lengths, "nats/token", rows.strata)
    return out | text_metrics(rows) | drawn_metrics(rows, on_base)
