"""Collapse: a law that gains precision by losing variety.

Precision rewards a law for staying where the truth is likeliest, and most of all a point mass there. A law is called
collapsed where two things are shown at 95 % each:

    its rows are too typical of the truth:       P_0.5 > 1/2      (`frontiers.typicality`)
    it has lost its variety, sequences:          H(q) < H(p*) / 2
                             points:             H(q) < H(p*) - log 20

For sequences entropy has a zero, reached by a law that always says the same, so the share kept is a measure, whatever
the length: under one half, the law has fewer effective outcomes, exp H, than the square root of the truth's. A
density's entropy has none, and depends on the unit of length; its difference does not: exp(H(q) - H(p*)) is the
volume the law fills by that of the truth, and one twentieth is what 95 % of the truth being out of reach comes to.
Both limits are conventions. A cooled law, at temperature 0.8 say, is too typical without having lost its variety; a
bad law may have lost it elsewhere, which precision shows. Neither is called collapsed.

In the midst of a training a law is compared with itself: it collapses where it has lost half of the entropy that it had
at an earlier evaluation, and is shown to lie further from the truth than then, KL(p* || q). A fit that narrows a wide
law down to the truth loses entropy too, but comes nearer.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from hydrometer.core.statistics.estimate import Estimate, t_interval
from hydrometer.core.statistics.seeds import welch_satterthwaite

__all__ = ["LEAST_KEPT", "LEAST_VOLUME", "collapse_metrics", "is_collapsing"]

LEAST_KEPT = 0.5
LEAST_VOLUME = 0.05


def collapse_metrics(figures: dict[str, Estimate], *, sequences: bool) -> dict[str, Estimate]:
    """Return what a law kept of the truth's variety, and whether it collapsed.

    Parameters
    ----------
    figures : of one judged law: entropy, entropy_truth, typicality_50.
    sequences : whether outcomes are sequences rather than points.

    Returns
    -------
    dict of `Estimate`; empty where a figure is missing:
        entropy_kept : sequences, H(q) / H(p*).
        effective_volume : points, exp(H(q) - H(p*)).
        collapsed : 1 where both are shown, else 0. It is a decision and has no error of its own.

    Examples
    --------
    >>> def known(x: float) -> Estimate:
    ...     return Estimate(x, 0.0, 0.0, 0, 0, "exact", "nats")
    >>> cold = {"entropy": known(-3.0), "entropy_truth": known(1.2), "typicality_50": known(0.97)}
    >>> {name: round(e.value, 3) for name, e in collapse_metrics(cold, sequences=False).items()}
    {'effective_volume': 0.015, 'collapsed': 1.0}
    """
    own, true, typical = (figures.get(k) for k in ("entropy", "entropy_truth", "typicality_50"))
    if own is None or true is None or typical is None:
        return {}
    if own.value is None or true.value is None or own.se is None or true.se is None:
        return {}
    n, method = min(own.n, true.n), own.method
    share = LEAST_KEPT if sequences else 1.0
    limit = 0.0 if sequences else math.log(LEAST_VOLUME)
    parts = [own.se**2, (share * true.se) ** 2]
    df = welch_satterthwaite(parts, [_df(own), _df(true)])
    gap = t_interval(own.value - share * true.value, math.sqrt(sum(parts)), df)
    interval = typical.interval()
    collapsed = gap[1] < limit and interval is not None and interval[0] > 0.5
    out: dict[str, Estimate] = {}
    if not sequences:
        volume = math.exp(min(own.value - true.value, 700.0))
        se = volume * math.sqrt(sum(parts))
        out["effective_volume"] = Estimate(volume, se, se, n, 0, method, "share", df if n else None)
    elif true.value > 0:
        kept = own.value / true.value
        se = math.hypot(own.se, kept * true.se) / true.value
        out["entropy_kept"] = Estimate(kept, se, se, n, 0, method, "share", df if n else None)
    error = 0.0 if method == "exact" else None
    out["collapsed"] = Estimate(float(collapsed), error, error, n, 0, method, "flag")
    return out


def is_collapsing(
    entropy: Sequence[Estimate], divergence: Sequence[Estimate], *, flagged: bool = False, level: float = 0.01
) -> bool:
    """Whether the last of a training's evaluations shows a collapse, beside any of those before it.

    Both halves are one-sided tests, so a pair of evaluations of which either half does not hold is taken for a collapse
    with probability 6 / (pi^2 k^3) `level` at most, k the number of pairs of the last evaluation. Over all pairs of a
    training, however long, that is `level` (Bonferroni). Once flagged, a law stays so while its figures, without their
    errors, say the same of any pair: the errors of a law of few outcomes are themselves uncertain.

    Parameters
    ----------
    entropy, divergence : of a law of sequences, and of the truth from it, at each evaluation, in order.
    flagged : whether the evaluation before showed a collapse.
    level : of a false alarm in the whole training.

    Examples
    --------
    >>> def known(*values: float) -> list[Estimate]:
    ...     return [Estimate(x, 0.1, 0.1, 64, 0, "mc", "nats") for x in values]
    >>> is_collapsing(known(20.0, 9.0, 4.0), known(5.0, 4.0, 9.0))
    True
    >>> is_collapsing(known(20.0, 9.0, 4.0), known(5.0, 4.0, 3.0))  # narrower, and nearer
    False
    """
    if len(entropy) < 2:
        return False
    *earlier, last = zip(entropy, divergence, strict=True)
    pair = 0.5 if flagged else level * 6 / (math.pi**2 * len(earlier) ** 3)
    return any(
        _difference(last[0], before[0], LEAST_KEPT, pair)[1] < 0 < _difference(last[1], before[1], 1.0, pair)[0]
        for before in earlier
    )


def _difference(a: Estimate, b: Estimate, share: float, tail: float) -> tuple[float, float]:
    """Bounds of `a` minus a share of `b`, each exceeded with that probability; none where either has no error."""
    if a.value is None or b.value is None or a.se is None or b.se is None:
        return -math.inf, math.inf
    return t_interval(a.value - share * b.value, math.hypot(a.se, share * b.se), min(_df(a), _df(b)), 1 - 2 * tail)


def _df(e: Estimate) -> float:
    return e.df if e.df is not None else max(e.n - 1, 1)
