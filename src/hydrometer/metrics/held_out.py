"""Figures of existing models: on held-out text, against a reference, and across tokenizers.

Where two models share a vocabulary, figures are of token ids, as everywhere (`metrics.likelihood`). Where they do not,
a text is scored in each model's canonical tokenisation and figures are nats per byte of the text; these are lower
bounds (`models.causal_lm.inference.retokenize`), have the method "canonical" and names that end in ``_per_byte``.

    precision_reference   E_{y ~ q} log r(y)      r a named reference model, which is not the truth
    recall                E_{x ~ text} log q(x)

Shapes: N rows of text, M rows of the judged law.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from hydrometer.core.array_types import Floats
from hydrometer.core.statistics.controls import Combination, Controls
from hydrometer.core.statistics.estimate import Contrast, Estimate, t_interval
from hydrometer.core.statistics.estimators import (
    linearised,
    mean_estimate,
    mean_variance,
    ratio_estimate,
    row_freedom,
    share_estimate,
)
from hydrometer.core.statistics.sampling_design import Clusters, Strata
from hydrometer.core.statistics.seeds import welch_satterthwaite
from hydrometer.metrics.likelihood import mean_on

__all__ = ["Column", "Compared", "contrast", "share_outside"]


@dataclass(frozen=True, slots=True, eq=False)
class Column:
    """The rows of which one figure is the mean, or the ratio of sums.

    Attributes
    ----------
    values : (N,) nats; infinite values are counted.
    per : (N,) what the sum is divided by, tokens or bytes; None for a plain mean over rows.
    unit : of the figure.
    strata : see `core.statistics.sampling_design`.
    shared : whether all models were scored on these same rows, so that a difference is taken row by row.
    canonical : whether the rows are texts in canonical tokenisation.
    controls, of : control variates of the rows, and what they have to know of `values`, or None.
    """

    values: Floats
    per: Floats | None
    unit: str
    strata: Strata | None
    shared: bool = False
    canonical: bool = False
    controls: Controls | None = None
    of: Combination | None = None

    def estimate(self) -> Estimate:
        """Return the figure with its error."""
        if self.per is None:
            found = mean_estimate(self.values, self.unit, self.strata, self.controls, self.of)
        else:
            found = ratio_estimate(self.values, self.per, self.unit, self.strata, self.controls)
        return replace(found, method="canonical") if self.canonical else found

    def rows(self) -> Floats | None:
        """(N,) values whose plain mean is the figure, ratios linearised; None where a value is infinite."""
        if not np.isfinite(self.values).all():
            return None
        if self.per is None:
            return self.values if self.controls is None else self.controls.adjust(self.values, self.of)
        return linearised(self.values, self.per)


@dataclass(frozen=True, slots=True, eq=False)
class Compared:
    """A figure by which models are compared, with its `Column.rows`."""

    estimate: Estimate
    rows: Floats | None
    strata: Strata | None
    shared: bool


def share_outside(c: Column) -> dict[str, Estimate]:
    """Recall's finite companion on the rows with a score, and the share of those without.

    Parameters
    ----------
    c : the column of `recall`, per row.
    """
    said = np.isfinite(c.values)
    kept = mean_on(said, c.values, c.per, c.unit, c.strata)
    outside = share_estimate((~said).astype(np.float64), c.strata)
    method = "canonical" if c.canonical else "mc"
    return {
        "recall_on_support": replace(kept, method=method),
        "truth_mass_outside_support": replace(outside, method=method),
    }


def contrast(a_id: str, b_id: str, metric: str, a: Compared, b: Compared) -> Contrast:
    """``a - b`` of one figure between two models.

    On shared rows the difference is taken row by row. Otherwise the models' draws are independent given the prompts:
    where these are fixed the variances add; where they are a sample, both models answered the same prompts, and the
    difference is taken prompt by prompt.
    """
    first, second = a.estimate, b.estimate
    pairing = "row" if a.shared and b.shared else "seed"
    if first.value is None or second.value is None or a.rows is None or b.rows is None:
        return Contrast(a_id, b_id, metric, None, None, None, None, pairing)
    value = first.value - second.value
    if pairing == "row":
        rows = a.rows - b.rows
        variance, df = mean_variance(rows, a.strata), row_freedom(rows.size, a.strata)
    elif isinstance(a.strata, Clusters) and isinstance(b.strata, Clusters):
        pairing = "prompt"
        by_prompt = a.strata.collapse(a.rows) - b.strata.collapse(b.rows)
        variance, df = mean_variance(by_prompt), max(by_prompt.size - 1, 1)
    else:
        parts = [mean_variance(c.rows, c.strata) for c in (a, b) if c.rows is not None]
        variance, df = sum(parts), welch_satterthwaite(parts, [first.freedom, second.freedom])
    if not np.isfinite(variance):
        return Contrast(a_id, b_id, metric, value, None, None, None, pairing)
    se = float(np.sqrt(variance))
    return Contrast(a_id, b_id, metric, value, se, df, t_interval(value, se, df), pairing)
