"""Judge: a law's figures against the truth, with the rows that paired comparisons need."""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from hydrometer.core.errors import StageError
from hydrometer.core.estimate import Controls, Estimate, mean_estimate
from hydrometer.metrics.densities import curves, density_metrics
from hydrometer.metrics.likelihood import Scores, likelihood_metrics
from hydrometer.metrics.modes import capacity_gap, mode_metrics
from hydrometer.metrics.text import drawn_metrics, text_metrics
from hydrometer.models.base import Controlled, Law, Samples
from hydrometer.models.chosen import ChosenLaw, candidates_of
from hydrometer.models.mixture.law import Mixture
from hydrometer.models.sequences import Sequences
from hydrometer.stages.bench import Bench
from hydrometer.stages.chosen import chosen_figures
from hydrometer.stages.nodes import JudgeNode, ReleasedNode, ShowNode

__all__ = [
    "figures",
    "from_teacher",
    "judge",
    "judge_laws",
    "load_adjusted",
    "load_law_on_truth",
    "load_metrics",
    "released",
    "scores_of",
    "sequence_figures",
    "show",
]

Floats = NDArray[np.float64]

KEPT_ROWS = 1024  # of cheap families: enough for the variance of a paired difference
SHOWN_ROWS = 16  # rows of a law that an exhibit may show with their log-probability under the truth
_CURVES = "curves.json"
BIAS_ROWS = 64  # rescored in float32 where a run is judged in bfloat16


def scores_of(
    truth: Law, law: Law, truth_rows: Samples, law_rows: Samples, *, truth_on_truth: Floats | None = None,
    law_on_law: Floats | None = None,
) -> Scores:  # fmt: skip
    """Score both sets of rows under both laws; what is known already is not scored again.

    Laws that know expectations along their rows give control variates besides (`models.base.Controlled`).

    Parameters
    ----------
    truth_rows, law_rows : drawn by the two laws themselves, in the arithmetic that scores them here.

    Raises
    ------
    StageError : NaN, or a row that its own law cannot say.
    """
    truth.compatible(law)
    same = law is truth and law_rows is truth_rows
    if isinstance(truth, Controlled) and isinstance(law, Controlled):
        x = truth.score_beside(truth_rows, law, again=True)
        y = x if same else law.score_beside(law_rows, truth)
        on_truth, on_law = Controls.of(x.controls, truth_rows.strata), Controls.of(y.controls, law_rows.strata)
        s = Scores(truth_rows, law_rows, x.own, x.other, y.other, y.own, on_truth, on_law)
        if not same and x.own_steps is not None and x.other_steps is not None:
            s = replace(s, truth_steps=(x.own_steps, x.other_steps))
        if not same and y.own_steps is not None and y.other_steps is not None:
            s = replace(s, law_steps=(y.other_steps, y.own_steps))
        return _finite(s)
    own = truth.log_prob(truth_rows) if truth_on_truth is None else truth_on_truth
    if same:
        s = Scores(truth_rows, law_rows, own, own, own, own)
    else:
        theirs = law.log_prob(law_rows) if law_on_law is None else law_on_law
        s = Scores(truth_rows, law_rows, own, law.log_prob(truth_rows), truth.log_prob(law_rows), theirs)
    return _finite(s)


def _finite(s: Scores) -> Scores:
    for name in ("truth_on_truth", "law_on_truth", "truth_on_law", "law_on_law"):
        column: Floats = getattr(s, name)
        if np.isnan(column).any() or np.isposinf(column).any():
            raise StageError(f"scores {name} hold NaN or +inf", fix="the model diverged: lower its learning rate")
    return s


def figures(s: Scores, truth: Law, law: Law) -> dict[str, Estimate]:
    """All figures of one judged law."""
    out = likelihood_metrics(s)
    if isinstance(truth, Mixture) and isinstance(law, Mixture):
        out |= mode_metrics(truth, law)
    if isinstance(s.law_rows, Sequences):
        out |= sequence_figures(s.law_rows, s.law_on_law, s.law_controls)
    if truth.score_kind == law.score_kind == "exact":
        out |= density_metrics(s, out)
    return out


def sequence_figures(rows: Sequences, scored: Floats | None, controls: Controls | None = None) -> dict[str, Estimate]:
    """What a law's own sequences look like, and, where they were `scored` (M,), how far sampler and scorer differ."""
    out = text_metrics(rows, controls)
    if scored is not None:
        out |= drawn_metrics(rows, scored)
    return out


def from_teacher(teacher: dict[str, Estimate], student: dict[str, Estimate]) -> dict[str, Estimate]:
    """Return the figures that a distilled student has from its (selected) teacher's."""
    out = {"entropy_teacher": teacher["entropy"]} if "entropy" in teacher else {}  # what chooses has none
    gap = capacity_gap(teacher, student)
    return out if gap is None else out | {"capacity_gap": gap}


def judge_laws(truth: Law, law: Law, *, n: int, seed: int = 0) -> dict[str, Estimate]:
    """Draw `n` rows of each law and return every figure of the second against the first.

    Parameters
    ----------
    truth, law : laws over the same outcomes.
    n : rows drawn of each.
    seed : root seed; rows are of the streams ``evaluate/truth`` and ``evaluate/law``.

    Returns
    -------
    dict of `Estimate` by metric name, nats per row, with ``_per_token`` companions for sequences. Theory, eqs. 5 to 10.
    Of a law that chooses among candidates only what can be said without its probabilities (`stages.chosen`).

    Raises
    ------
    LawMismatchError : the laws differ in vocabulary, prompts, stop set, max_new_tokens, or dimension.

    Examples
    --------
    >>> from hydrometer import Mixture, judge
    >>> p, q = (Mixture([1.0], [[m]], [1.0], covariance_type="spherical") for m in (0.0, 1.0))
    >>> kl = judge(p, q, n=20_000)["kl_student_truth"]  # exactly 1/2
    >>> abs(kl.value - 0.5) < 5 * kl.se
    True
    """
    from hydrometer.core.rng import Stream

    root = Stream(seed)
    if isinstance(law, ChosenLaw):
        return chosen_figures(truth, law, law.sample(n, seed=root.child("evaluate", "law")))[0]
    truth_rows = truth.sample(n, seed=root.child("evaluate", "truth"))
    law_rows = law.sample(n, seed=root.child("evaluate", "law"))
    return figures(scores_of(truth, law, truth_rows, law_rows), truth, law)


def judge(node: JudgeNode, bench: Bench, folder: Path) -> dict[str, object]:
    """Judge one cell and write its metrics and rows into `folder`."""
    family, chain = node.context.family, node.context.spec
    precision = family.precision(chain, "judge")
    truth = bench.law(node.context, node.truth, precision)
    is_truth = node.law == node.truth and node.decoding is None
    truth_rows = bench.rows(node.context, node.truth_rows)
    law_rows = truth_rows if is_truth else bench.rows(node.context, node.law_rows)
    law = truth if is_truth else bench.law(node.context, node.law, precision, node.decoding)
    if isinstance(law, ChosenLaw):
        return _judge_chosen(node, bench, truth, law, cast("Sequences", law_rows), folder)
    if family.keeps_draws:
        path = None if node.truth_judge is None else bench.store.path("judge", node.truth_judge)
        s = scores_of(
            truth, law, truth_rows, law_rows, truth_on_truth=None if path is None else load_law_on_truth(path)
        )
    else:  # drawn just now by the arithmetic that would score them: the recorded log-probability is the score
        s = scores_of(
            truth, law, truth_rows, law_rows, truth_on_truth=truth_rows.log_prob, law_on_law=law_rows.log_prob
        )
    metrics = figures(s, truth, law)
    if precision == "bfloat16":
        metrics |= _bias(node, bench, s)
    _write_metrics(metrics, folder)
    kept = s.law_on_truth if family.keeps_draws else s.law_on_truth[:KEPT_ROWS]
    columns: dict[str, Any] = {"law_on_truth": kept, "truth_on_law": s.truth_on_law[:SHOWN_ROWS]}
    np.savez(folder / "rows.npz", **columns, **_adjusted(s, len(kept)))
    if family.keeps_draws and not is_truth and truth.score_kind == law.score_kind == "exact":
        (folder / _CURVES).write_text(json.dumps(curves(s)))
    return {"rows": len(law_rows)}


def _adjusted(s: Scores, n: int) -> dict[str, Any]:
    """Rows of the truth as the cell's figures hold them, where they are adjusted by control variates."""
    controls = s.truth_controls
    if controls is None or not np.isfinite(s.law_on_truth).all():
        return {}
    out: dict[str, Any] = {
        "adjusted_law": controls.adjust(s.law_on_truth)[:n],
        "adjusted_truth": controls.adjust(s.truth_on_truth)[:n],
    }
    lengths = s.truth_rows.lengths
    return out if lengths is None else out | {"adjusted_lengths": controls.adjust(lengths.astype(np.float64))[:n]}


def _judge_chosen(
    node: JudgeNode, bench: Bench, truth: Law, law: ChosenLaw, rows: Sequences, folder: Path
) -> dict[str, object]:
    """Judge what chooses among candidates; it leaves no column for the truth's rows."""
    family, context = node.context.family, node.context
    known = None if family.keeps_draws else rows.log_prob
    metrics, on_truth = chosen_figures(truth, law, rows, under_base=known)
    if family.precision(context.spec, "judge") == "bfloat16":
        exact = bench.law(context, node.truth, "float32")
        metrics["precision_bias"] = _rounding(on_truth, exact, family.take(rows, BIAS_ROWS), 1.0)
    _write_metrics(metrics, folder)
    np.savez(folder / "rows.npz", truth_on_law=on_truth[:SHOWN_ROWS])
    return {"rows": len(rows)}


def _write_metrics(metrics: dict[str, Estimate], folder: Path) -> None:
    (folder / "metrics.json").write_text(json.dumps({k: asdict(v) for k, v in metrics.items()}))


def show(node: ShowNode, bench: Bench, folder: Path) -> dict[str, object]:
    """Write a judged cell's exhibit; an empty one where the family has nothing to show."""
    judged, context = node.judged, node.context
    precision = context.family.precision(context.spec, "judge")
    truth = bench.law(context, judged.truth, precision)
    law = cast("Law", candidates_of(bench.law(context, judged.law, precision, judged.decoding)))
    rows = bench.rows(context, judged.law_rows)
    with np.load(bench.store.path("judge", judged.key) / "rows.npz") as archive:
        truth_on_law: Floats = archive["truth_on_law"]
    shown = context.family.exhibit(context.spec, truth, law, rows, truth_on_law)
    found = _curves(judged, bench, truth, law, rows)
    if found is not None:
        shown = {**(shown or {"kind": "curves", "version": 1}), "curves": found}
    (folder / "exhibit.json").write_text(json.dumps(shown))
    return {}


def _curves(judged: JudgeNode, bench: Bench, truth: Law, law: Law, rows: Samples) -> dict[str, object] | None:
    """Frontiers of a judged law: as kept where scoring is dear, else made again; None for the truth itself."""
    if judged.context.family.keeps_draws:
        kept = bench.store.path("judge", judged.key) / _CURVES
        return json.loads(kept.read_bytes()) if kept.is_file() else None
    is_truth = judged.law == judged.truth and judged.decoding is None
    if is_truth or not truth.score_kind == law.score_kind == "exact":
        return None
    truth_rows = bench.rows(judged.context, judged.truth_rows)
    scores = scores_of(truth, law, truth_rows, rows, truth_on_truth=truth_rows.log_prob, law_on_law=rows.log_prob)
    return curves(scores)


def _bias(node: JudgeNode, bench: Bench, s: Scores) -> dict[str, Estimate]:
    """What judging in bfloat16 adds to precision, recall and entropy: a float32 subsample rescored."""
    family = node.context.family
    truth = bench.law(node.context, node.truth, "float32")
    law = bench.law(node.context, node.law, "float32", node.decoding)
    ours, theirs = family.take(s.law_rows, BIAS_ROWS), family.take(s.truth_rows, BIAS_ROWS)
    gaps = {
        "precision_bias": (s.truth_on_law, truth, ours, 1.0),
        "recall_bias": (s.law_on_truth, law, theirs, 1.0),
        "entropy_bias": (s.law_on_law, law, ours, -1.0),
    }
    return {name: _rounding(column, exact, rows, sign) for name, (column, exact, rows, sign) in gaps.items()}


def _rounding(column: Floats, exact: Law, rows: Samples, sign: float) -> Estimate:
    """Mean of what rounding added to the first scores of a column."""
    rounded, right = column[: len(rows)], exact.log_prob(rows)
    both = np.isfinite(rounded) & np.isfinite(right)  # at a nucleus' edge rounding may move a row in or out
    strata = None if rows.strata is None else rows.strata[both]
    return mean_estimate(sign * (rounded[both] - right[both]), "nats", strata)


def load_metrics(folder: Path) -> dict[str, Estimate]:
    """Read what `judge` wrote."""
    return {k: Estimate(**v) for k, v in json.loads((folder / "metrics.json").read_bytes()).items()}


def load_law_on_truth(folder: Path) -> Floats:
    """Read log q of the truth's rows, (N,) or the first `KEPT_ROWS` of a cheap family's."""
    with np.load(folder / "rows.npz") as archive:
        return archive["law_on_truth"]


def load_adjusted(folder: Path) -> tuple[Floats, Floats, Floats | None] | None:
    """Read log q, log p* and lengths of the truth's rows as control variates adjusted them for this cell, or None."""
    with np.load(folder / "rows.npz") as archive:
        if "adjusted_law" not in archive:
            return None
        lengths: Floats | None = archive["adjusted_lengths"] if "adjusted_lengths" in archive else None
        return archive["adjusted_law"], archive["adjusted_truth"], lengths


def released(node: ReleasedNode, bench: Bench, folder: Path) -> dict[str, object]:
    """Write the figures as the paper's notebook defines them.

    Its precision scores a student's draws under the *sharpened teacher*; its recall scores the training points. They
    are kept beside the right ones so that the printed figures can be compared (docs, The paper).
    """
    family, chain = node.context.family, node.context.spec
    precision = family.precision(chain, "judge")
    teacher = bench.law(node.context, node.teacher, precision, node.selectivity)
    train = bench.rows(node.context, node.train)
    out: dict[str, dict[str, float]] = {}
    for training, rows in node.students:
        student = bench.law(node.context, rows.law, precision)
        out[training] = {
            "precision_as_released": float(teacher.log_prob(bench.rows(node.context, rows)).mean()),
            "recall_as_released": float(student.log_prob(train).mean()),
        }
    (folder / "released.json").write_text(json.dumps(out))
    return {}
