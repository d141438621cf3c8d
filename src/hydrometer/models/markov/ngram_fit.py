"""Chains from counts."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from hydrometer.core.arguments import number, whole
from hydrometer.core.errors import DataError, FitError
from hydrometer.models.markov.law import END, Markov, contexts, refuse_large
from hydrometer.models.rows.sequences import Sequences

__all__ = ["MarkovFit", "fit_markov"]


@dataclass(frozen=True, slots=True)
class MarkovFit:
    """What `fit_markov` returns.

    Attributes
    ----------
    model : the chain.
    info : ``log_likelihood`` a row, nats; ``contexts_seen``; ``tokens``.
    """

    model: Markov
    info: dict[str, float]


def fit_markov(
    tokens: Sequences | Sequence[Sequence[int]],
    order: int,
    *,
    smoothing: float = 0.0,
    vocabulary: int | None = None,
    max_new_tokens: int | None = None,
) -> MarkovFit:
    """Fit a chain by counts: ``p(v | c) = (count(c, v) + smoothing) / (count(c) + smoothing V)``.

    With smoothing 0 that is maximum likelihood. A context that was never seen is uniform.

    Parameters
    ----------
    tokens : rows of ids; each ends with its first 0, the end of sequence, or is as long as the longest.
    order : m >= 0
    smoothing : >= 0, added to every count.
    vocabulary, max_new_tokens : V and L; by default the largest id plus one, and the longest row.

    Raises
    ------
    DataError : rows that do not end as they should, ids out of range.
    InputError : settings out of range.

    Examples
    --------
    >>> fit = fit_markov([[1, 1, 0], [2, 0]], order=1, smoothing=0.0)
    >>> fit.model.order, fit.model.vocabulary, fit.info["tokens"]
    (1, 3, 5.0)
    """
    whole(order, "order")
    number(smoothing, "smoothing")
    for name, value in (("vocabulary", vocabulary), ("max_new_tokens", max_new_tokens)):
        if value is not None:
            whole(value, name, 1)
    x = tokens if isinstance(tokens, Sequences) else _rows(tokens)
    within = x.within
    v = int(x.ids[within].max(initial=0)) + 1 if vocabulary is None else vocabulary
    longest = x.ids.shape[1] if max_new_tokens is None else max_new_tokens
    refuse_large((v + 1) ** order * v, "the table has", "lower order or vocabulary")
    if (x.ids[within] >= v).any() or (x.ids[within] < 0).any():
        raise DataError(f"ids must lie from 0 to {v - 1}", got=int(x.ids[within].max()))
    context = contexts(x.ids, order, v)[within]
    counts = np.bincount(context * v + x.ids[within], minlength=(v + 1) ** order * v).reshape(-1, v).astype(np.float64)
    total = counts.sum(axis=1, keepdims=True) + smoothing * v
    with np.errstate(divide="ignore", invalid="ignore"):
        seen_log: NDArray[np.float64] = np.asarray(np.log((counts + smoothing) / total), np.float64)
    log_table = np.where(total > 0, seen_log, -math.log(v))
    model = Markov(log_table, order=order, max_new_tokens=longest)
    log_likelihood = float(model.log_prob(x).mean())
    if not np.isfinite(log_likelihood):
        raise FitError("the chain cannot say its own rows", got=log_likelihood)
    seen = float((counts.sum(axis=1) > 0).sum())
    return MarkovFit(model, {"log_likelihood": log_likelihood, "contexts_seen": seen, "tokens": float(within.sum())})


def _rows(rows: Sequence[Sequence[int]]) -> Sequences:
    """Pad lists of ids."""
    if not rows or any(len(r) == 0 for r in rows):
        raise DataError("need at least one row, each with at least one id", got=len(rows))
    lengths = np.array([len(r) for r in rows], np.int64)
    ids = np.zeros((len(rows), int(lengths.max())), np.int64)
    for i, row in enumerate(rows):
        try:
            ids[i, : len(row)] = row
        except (TypeError, ValueError):
            raise DataError("rows hold whole numbers, the ids of tokens", got=row) from None
    n = len(rows)
    return Sequences(((),), np.zeros(n, np.int64), ids, lengths, ids[np.arange(n), lengths - 1] == END, np.zeros(n))
