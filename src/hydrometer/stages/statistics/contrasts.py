"""Compare: combinations of groups of cells, with the errors they share.

A figure of a combination ``sum_j c_j m(group_j)`` has two sources of error: seeds, which redraw data and fits, and
Monte Carlo rows. Rows of the truth are shared by all cells, and, where the run says so, by all seeds; then the variance
is that of a crossed design (`core.statistics.seeds`). Rows of a judged law are its own. See docs, Uncertainty.

Shapes: S seeds, N truth rows.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from hydrometer.core.array_types import Floats
from hydrometer.core.statistics.estimate import Contrast
from hydrometer.core.statistics.estimators import linearised, mean_variance, row_freedom
from hydrometer.core.statistics.sampling_design import Clusters, Strata
from hydrometer.core.statistics.seeds import crossed_variance, welch_satterthwaite
from hydrometer.stages.statistics.groups import Figure, Group, Judged, Terms, over_seeds, seeds_of

__all__ = ["ROW_METRICS", "apart", "combine", "contrast", "group_figure"]

ROW_METRICS = ("recall", "recall_on_support", "kl_truth_student", "entropy_truth")
"""Figures that are means over rows of the truth, which all cells share."""
BY_BYTES = "recall_per_byte"
"""Likewise, where the truth's rows are scored as texts."""


def combine(terms: Terms, metric: str, *, slope: float = 0.0) -> Figure:
    """Return ``sum_j c_j m_j`` with its error, plus `slope` times the same combination of entropies.

    The slope serves comparisons at matched entropy: it is the derivative by which an error in the entropies moves the
    matching point (delta method). The combination of entropies itself is zero there by construction.
    """
    seeds = seeds_of(terms)
    if not seeds:
        return Figure(None, None, None)
    base = metric.removesuffix("_per_token")
    by_rows = base in ROW_METRICS or (metric == BY_BYTES and all(g.at(s).texts() for _, g in terms for s in seeds))
    n_neg_inf = sum(g.at(s).metrics[metric].n_neg_inf for _, g in terms for s in seeds if metric in g.at(s).metrics)
    if base == "recall_on_support" and any(g.at(s).metrics["recall"].n_neg_inf for _, g in terms for s in seeds):
        return _on_common_support(terms, seeds, slope, metric)
    values: list[float] = []
    for s in seeds:
        estimates = [g.at(s).metrics.get(metric) for _, g in terms]
        if any(e is None or e.value is None for e in estimates):
            return Figure(None, None, None, None, n_neg_inf, "row" if by_rows else "seed")
        total = sum(c * (e.value or 0.0) for (c, _), e in zip(terms, estimates, strict=True) if e is not None)
        if slope:
            total += slope * sum(c * (g.at(s).metrics["entropy"].value or 0.0) for c, g in terms)
        values.append(total)
    if by_rows and not all(g.at(s).metrics[metric].method == "exact" for _, g in terms for s in seeds):
        return _by_rows(terms, seeds, metric, values, slope)
    return _by_seed(terms, seeds, metric, values, slope)


def _own_variance(terms: Terms, seed: int | None, metric: str, slope: float, *, shared: bool | None = None) -> float:
    """Monte Carlo variance from rows of the judged laws' own. `shared` picks cells that serve all seeds, or others."""
    total = 0.0
    for c, g in terms:
        if shared is not None and (None in g.by_seed) != shared:
            continue
        m = g.at(seed).metrics
        variance = (m[metric].se_mc or 0.0) ** 2 if metric in m and metric not in _ROW_NAMES else 0.0
        if slope:
            spread = (m["entropy"].se_mc or 0.0) ** 2
            cross = 0.0
            under = "reference" if metric.endswith("_reference") else "truth"
            kl, precision = f"kl_student_{under}", "precision" if under == "truth" else "precision_reference"
            if metric == precision and kl not in m:  # of texts: the covariance is not known, so the largest there is
                cross = math.copysign(math.sqrt(variance * spread), slope)
            elif metric in (kl, precision):
                # precision = -H - KL on the same rows, so the three variances give the covariance of H with KL.
                h, k, p = ((m[x].se_mc or 0.0) ** 2 for x in ("entropy", kl, precision))
                with_kl = (p - h - k) / 2
                cross = with_kl if metric == kl else -h - with_kl
            variance += slope**2 * spread + 2 * slope * cross
        total += c * c * max(variance, 0.0)
    return total


_OTHER_ROW_MEANS = ("truth_mass_outside_support", "recall_bias")
_ROW_NAMES = frozenset(ROW_METRICS) | {f"{m}_per_token" for m in ROW_METRICS}
_BOTH_ROWS = ("prd_", "total_variation", "divergence_area", "typicality_", "entropy_kept", "effective_volume")


def _rests_on_truth_rows(metric: str) -> bool:
    """Whether a figure rests on the truth's rows without being a mean over them; of some it is a part only."""
    return metric in _OTHER_ROW_MEANS or metric.startswith(_BOTH_ROWS)


def _by_seed(terms: Terms, seeds: list[int | None], metric: str, values: list[float], slope: float) -> Figure:
    """Error of figures whose rows are the judged laws' own: cells are independent given their models."""
    freedom = min(g.at(seeds[0]).metrics[metric].freedom for _, g in terms)
    value = float(np.mean(values))
    unknown = any(g.at(s).metrics[metric].se_mc is None for _, g in terms for s in seeds)
    if unknown and (len(seeds) == 1 or any(None in g.by_seed for _, g in terms)):
        return Figure(value, None, None)  # a figure without an error of its own, and no seeds to show one
    if len(seeds) == 1:
        variance = _own_variance(terms, seeds[0], metric, slope)
        se = math.sqrt(variance)
        return Figure(value, se, freedom, se)
    s = len(seeds)
    between = float(np.var(values, ddof=1)) / s
    shared = _own_variance(terms, seeds[0], metric, slope, shared=True)
    own = float(np.mean([_own_variance(terms, seed, metric, slope, shared=False) for seed in seeds]))
    on_one_set = _rests_on_truth_rows(metric) and all(g.rows_shared for _, g in terms)
    if between == 0.0 or on_one_set or _clustered(terms, seeds):
        # One teacher, one set of rows or one sample of prompts behind all seeds: its error does not average out.
        shared, own = shared + own, 0.0
    own /= s
    return over_seeds(np.array(values), shared, freedom, se_mc=math.sqrt(own + shared))


def _clustered(terms: Terms, seeds: list[int | None]) -> bool:
    return any(g.at(seeds[0]).clustered() for _, g in terms)


def _row_values(judged: Judged, metric: str) -> Floats:
    """Per-row contributions whose mean is the figure; ratios linearised."""
    texts = judged.texts() if metric == BY_BYTES else None
    if texts is not None:
        return linearised(*texts)
    base = metric.removesuffix("_per_token")
    found = judged.adjusted()
    if found is None:
        rows = judged.truth_rows()
        found = judged.law_on_truth(), rows.log_prob, rows.lengths
    log_q, log_p, lengths = found
    match base:
        case "recall" | "recall_on_support":
            values = log_q
        case "kl_truth_student":
            values = log_p - log_q
        case _:
            values = -log_p
    if metric == base or lengths is None:
        return values
    return linearised(values, lengths)


def _by_rows(terms: Terms, seeds: list[int | None], metric: str, values: list[float], slope: float) -> Figure:
    """Error of figures over the truth's rows, which all terms share row by row."""
    value = float(np.mean(values))
    shared = all(g.rows_shared for _, g in terms)
    s = len(seeds)
    if s > 1 and not (shared or _clustered(terms, seeds)):
        mc = float(np.mean([(g.at(x).metrics[metric].se_mc or 0.0) ** 2 * c * c for c, g in terms for x in seeds])) / s
        return over_seeds(np.array(values), 0.0, s - 1, se_mc=math.sqrt(mc), pairing="row")
    rows = terms[0][1].at(seeds[0]).truth_rows()
    table = np.stack([sum((c * _row_values(g.at(x), metric) for c, g in terms), np.zeros(1)) for x in seeds])
    strata, freedom = rows.strata, row_freedom(rows.n, rows.strata)
    thinned = table.shape[1] / rows.n  # fewer rows kept than drawn: their variance, at the size drawn
    if isinstance(strata, Clusters):  # seeds may have rows of their own, but answer the same prompts
        table, strata = strata.collapse(table), None
    own = float(np.mean([_own_variance(terms, x, metric, slope) for x in seeds])) if slope else 0.0
    if s == 1:
        alone = terms[0][1].at(seeds[0]).metrics[metric] if len(terms) == 1 and not slope else None
        if alone is not None and alone.se is not None:  # the cell's own error may be known, or of more rows than kept
            se = abs(terms[0][0]) * alone.se
            return Figure(value, se, alone.freedom, se, pairing="row")
        se = math.sqrt(mean_variance(table[0], strata) * thinned + own)
        return Figure(value, se, freedom, se, pairing="row")
    # The between-seed part is of `values`, which hold all rows and the entropies' share; from the table comes the rest.
    variance, _, seed_part, row_part = crossed_variance(table, strata)
    only = None if _clustered(terms, seeds) else True  # all seeds answer one sample of prompts, not only shared cells
    shared_entropies = _own_variance(terms, seeds[0], metric, slope, shared=only) if slope else 0.0
    row_variance = max(variance - seed_part, 0.0) * thinned + shared_entropies
    se_mc, floor = math.sqrt(row_variance + own / s), row_part * thinned
    parts = floor + shared_entropies
    return over_seeds(np.array(values), row_variance, freedom, se_mc=se_mc, floor=floor, parts=parts, pairing="row")


def _on_common_support(terms: Terms, seeds: list[int | None], slope: float, metric: str) -> Figure:
    """Recall over the rows that every law of the combination can say; for one group, over those it can say."""
    values: list[float] = []
    variances: list[float] = []
    freedom = 1.0
    for s in seeds:
        columns = [(c, g.at(s).law_on_truth()) for c, g in terms]
        rows = terms[0][1].at(s).truth_rows()
        kept = np.logical_and.reduce([np.isfinite(v) for _, v in columns])
        strata = None if rows.strata is None else rows.strata[kept]
        if kept.sum() < 2 or (isinstance(strata, Clusters) and strata.count < 2):
            return Figure(None, None, None, pairing="row")
        y = sum((c * v[kept] for c, v in columns), np.zeros(1))
        if metric.endswith("_per_token") and rows.lengths is not None:
            y = linearised(y, rows.lengths[kept])
        n, value = y.size, float(y.mean())
        known = terms[0][1].at(s).metrics[metric].value if len(terms) == 1 else None
        if known is not None:  # a cell's own figure is of all rows drawn, not only of those kept
            n, value = int(n * rows.n / kept.size), terms[0][0] * known
        matching = slope * sum(c * (g.at(s).metrics["entropy"].value or 0.0) for c, g in terms)
        values.append(value + matching)
        variances.append(_variance_on(kept, y, rows.strata) * y.size / n)
        freedom = row_freedom(n, strata)
    count = len(seeds)
    own = float(np.mean([_own_variance(terms, s, "recall", slope) for s in seeds])) if slope else 0.0
    mc = float(np.mean(variances)) + own
    if count == 1:
        return Figure(values[0], math.sqrt(mc), freedom, math.sqrt(mc), pairing="row")
    shared = mc if all(g.rows_shared for _, g in terms) or _clustered(terms, seeds) else 0.0
    return over_seeds(np.array(values), shared, freedom, se_mc=math.sqrt(mc), pairing="row")


def _variance_on(kept: NDArray[np.bool_], y: Floats, strata: Strata | None) -> float:
    """Variance of the mean of the kept rows `y`; `metrics.likelihood.mean_on` says what strata do to it."""
    if not isinstance(strata, np.ndarray) or kept.all():
        return mean_variance(y, None if strata is None else strata[kept])
    away = np.zeros(kept.size)
    away[kept] = (y - y.mean()) * (kept.size / y.size)
    return mean_variance(away, strata)


def apart(a: Terms, b: Terms, metric: str) -> Figure:
    """Return the combination `a` minus the combination `b` of the same models, judged on independent rows.

    What lies between seeds is that of the difference, for a seed's models are the same in both; what rows add is of
    each by itself.
    """
    one, two = combine(a, metric), combine(b, metric)
    seeds = seeds_of(a)
    if one.value is None or two.value is None or seeds != seeds_of(b):
        return Figure(None, None, None, pairing=one.pairing)
    value = one.value - two.value
    if one.se is None or two.se is None or one.df is None or two.df is None:
        return Figure(value, None, None, pairing=one.pairing)
    if one.shared is None or two.shared is None:  # one seed, or one cell for all of them
        df = welch_satterthwaite([one.se**2, two.se**2], [one.df, two.df])
        se = math.hypot(one.se, two.se)
        return Figure(value, se, df, se, pairing=one.pairing)
    both = one.shared.beside(two.shared)
    values = np.array([_at_seed(a, s, metric) - _at_seed(b, s, metric) for s in seeds])
    se_mc = math.hypot(one.se_mc or 0.0, two.se_mc or 0.0)
    floor, parts = both.floor, both.parts
    return over_seeds(values, both.variance, both.freedom, se_mc=se_mc, floor=floor, parts=parts, pairing=one.pairing)


def _at_seed(terms: Terms, seed: int | None, metric: str) -> float:
    return sum(c * (g.at(seed).metrics[metric].value or 0.0) for c, g in terms)


def group_figure(group: Group, metric: str) -> Figure:
    """A group's mean over its seeds, with total error."""
    return combine([(1.0, group)], metric)


def contrast(a: Group, b: Group, metric: str) -> Contrast:
    """``a - b``."""
    figure = combine([(1.0, a), (-1.0, b)], metric)
    return as_contrast(a.id, b.id, metric, figure)


def as_contrast(a: str, b: str, metric: str, f: Figure) -> Contrast:
    """Name a figure as the difference of `a` and `b`."""
    return Contrast(a, b, metric, f.value, f.se, f.df, f.ci95, "row" if f.pairing == "row" else "seed")
