"""Judge: a law's figures against the truth, with the rows that paired comparisons need."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np

from hydrometer.core.arguments import of_type, whole
from hydrometer.core.array_types import Floats
from hydrometer.core.errors import InputError
from hydrometer.core.io.yaml_io import artifact_json
from hydrometer.core.spec import Selectivity
from hydrometer.core.statistics.controls import Controls
from hydrometer.core.statistics.estimate import Estimate, Figures
from hydrometer.core.statistics.estimators import mean_estimate
from hydrometer.core.statistics.sampling_design import Strata
from hydrometer.metrics.frontiers.densities import curves, density_metrics
from hydrometer.metrics.likelihood import Scores, likelihood_metrics
from hydrometer.metrics.modes import capacity_gap, mode_metrics
from hydrometer.metrics.text import drawn_metrics, text_metrics
from hydrometer.models.base import Law, Samples
from hydrometer.models.choosing.best_of_n import ChosenLaw, candidates_of
from hydrometer.models.rows.sequences import Sequences
from hydrometer.stages.artifact_loader import ArtifactLoader
from hydrometer.stages.judge_best_of_n import chosen_estimates, chosen_figures, unscored_estimates
from hydrometer.stages.judge_files import load_truth_on_law, write_chosen, write_metrics, write_rows
from hydrometer.stages.nodes import JudgeNode, ReleasedNode, ShowNode
from hydrometer.stages.score import Columns, columns_of, load_columns, scores_from

if TYPE_CHECKING:
    from hydrometer.core.spec import ChainSpec

__all__ = [
    "exact_figures",
    "figures",
    "from_teacher",
    "judge",
    "judge_laws",
    "judged_exactly",
    "released",
    "rounding_bias",
    "scored_figures",
    "scores_of",
    "sequence_figures",
    "show",
]


KEPT_ROWS = 1024  # of cheap families: enough for the variance of a paired difference
SHOWN_STORED = 256  # stored rows that are opened for an exhibit at most
_CURVES = "curves.json"


def scores_of(
    truth: Law,
    law: Law,
    truth_rows: Samples,
    law_rows: Samples,
    *,
    truth_on_truth: Floats | None = None,
    law_on_law: Floats | None = None,
) -> Scores:
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
    x = columns_of(truth, law, truth_rows, again=True, own=truth_on_truth)
    same = law is truth and law_rows is truth_rows
    return scores_from(truth_rows, law_rows, x, None if same else columns_of(law, truth, law_rows, own=law_on_law))


def figures(s: Scores, truth: Law, law: Law) -> dict[str, Estimate]:
    """All figures of one judged law."""
    return _figures(s, mode_metrics(truth, law), exact=truth.score_kind == law.score_kind == "exact")


def _figures(s: Scores, modes: dict[str, Estimate], *, exact: bool) -> dict[str, Estimate]:
    out = likelihood_metrics(s) | modes
    if isinstance(s.law_rows, Sequences):
        out |= sequence_figures(s.law_rows, s.law_on_law, s.law_controls)
    return out | density_metrics(s, out) if exact else out


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


def judge_laws(truth: Law, law: Law, *, n: int | None = None, seed: int = 0) -> Figures:
    """Draw `n` rows of each law and return every figure of the second against the first.

    Parameters
    ----------
    truth, law : laws over the same outcomes.
    n : rows drawn of each; there is no default, for the error of every figure hangs on it.
    seed : root seed; rows are of the streams ``evaluate/truth`` and ``evaluate/law``.

    Returns
    -------
    Figures : a dict of `Estimate` by metric name, nats per row, with ``_per_token`` companions for sequences. Theory,
    eqs. 5 to 10. Of a law that chooses among candidates only what can be said without its probabilities
    (`stages.judge_best_of_n`).

    Raises
    ------
    InputError : n is missing or no whole number of at least 1, or one of the two is no law.
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

    n = whole(n, "n, the rows drawn of each law,", 1, fix="for example n=20_000")
    for name, given in (("truth", truth), ("law", law)):
        if isinstance(given, type) or not all(hasattr(given, m) for m in ("sample", "log_prob", "select")):
            fix = "for example a Mixture, a Markov or a CausalLaw"
            raise InputError(f"{name} is no law: it lacks sample, log_prob or select", got=given, fix=fix)
    root = Stream(seed)
    if isinstance(law, ChosenLaw):
        return Figures(chosen_figures(truth, law, law.sample(n, seed=root.child("evaluate", "law")))[0])
    truth_rows = truth.sample(n, seed=root.child("evaluate", "truth"))
    law_rows = law.sample(n, seed=root.child("evaluate", "law"))
    return Figures(figures(scores_of(truth, law, truth_rows, law_rows), truth, law))


def judge(node: JudgeNode, bench: ArtifactLoader, folder: Path) -> dict[str, object]:
    """Judge one cell and write its metrics and rows into `folder`.

    Where rows were scored block by block (`stages.score`) no model is opened; elsewhere rows are drawn and scored here.
    """
    scored = node.truth_scores or node.law_scores
    return _judge_scored(node, bench, folder) if scored else _judge_here(node, bench, folder)


def _judge_scored(node: JudgeNode, bench: ArtifactLoader, folder: Path) -> dict[str, object]:
    rows = bench.texts(node.context, node.law_rows)
    x, y = (
        load_columns([bench.store.path("score", k) for k in keys]) if keys else None
        for keys in (node.truth_scores, node.law_scores)
    )
    if x is None:
        return _judge_chosen(node, of_type(Sequences, rows), of_type(Columns, y), folder)
    truth_rows = rows if y is None else bench.outline(node.context, node.truth_rows)
    s = scores_from(truth_rows, rows, x, y)
    write_metrics(scored_figures(s, x, y), folder)
    write_rows(s, len(truth_rows), folder)
    if y is not None and x.exact and y.exact:
        (folder / _CURVES).write_text(json.dumps(curves(s)))
    return {"rows": len(rows)}


def scored_figures(s: Scores, x: Columns, y: Columns | None) -> dict[str, Estimate]:
    """Return all figures of rows that were scored block by block.

    Parameters
    ----------
    x, y : the columns that `s` was made of: of the truth's rows, and of the law's, None where the law is the truth.
    """
    exact = x.exact and (y is None or y.exact)
    return _figures(s, {}, exact=exact) | _bias(s, x, x if y is None else y)


def _judge_chosen(node: JudgeNode, rows: Sequences, y: Columns, folder: Path) -> dict[str, object]:
    """Judge what chooses among candidates, or is selected elsewhere; it leaves no column for the truth's rows."""
    choice = of_type(Selectivity, node.decoding)
    rows = of_type(Sequences, y.counted(rows))
    if choice.chooses:
        metrics = chosen_estimates(rows, y.other, y.own, choice.best_of or 1, accepts=choice.accept is not None)
    else:
        metrics = unscored_estimates(rows, y.other, y.own)
    if y.other_exact is not None:
        metrics["precision_bias"] = rounding_bias(y.other, y.other_exact, rows.strata, 1.0)
    write_chosen(metrics, y.other, folder)
    return {"rows": len(rows)}


def _judge_here(node: JudgeNode, bench: ArtifactLoader, folder: Path) -> dict[str, object]:
    """Judge a cell of a cheap family.

    Its rows were drawn just now by the arithmetic that would score them: the recorded log-probability is the score.
    """
    precision = node.context.family.precision(node.context.spec, "judge")
    truth = bench.judged_against(node, precision)
    is_truth = node.law == node.truth and node.decoding is None
    truth_rows = bench.rows(node.context, node.truth_rows)
    law_rows = truth_rows if is_truth else bench.rows(node.context, node.law_rows)
    law = truth if is_truth else bench.law(node.context, node.law, precision, node.decoding)
    if isinstance(law, ChosenLaw):
        rows = of_type(Sequences, law_rows)
        write_chosen(*chosen_figures(truth, law, rows, under_base=rows.log_prob), folder)
        return {"rows": len(rows)}
    s = scores_of(truth, law, truth_rows, law_rows, truth_on_truth=truth_rows.log_prob, law_on_law=law_rows.log_prob)
    write_metrics(exact_figures(truth, law) if judged_exactly(node.context.spec) else figures(s, truth, law), folder)
    write_rows(s, KEPT_ROWS, folder)
    return {"rows": len(law_rows)}


def judged_exactly(chain: ChainSpec) -> bool:
    """Whether a chain asks for figures without Monte Carlo error."""
    return getattr(chain, "exact", False) is True


def exact_figures(truth: Law, law: Law) -> dict[str, Estimate]:
    """All figures of one judged law without Monte Carlo error, where its kind has them."""
    from hydrometer.metrics.exact import judge_exact

    return judge_exact(cast("Any", truth), cast("Any", law))


def show(node: ShowNode, bench: ArtifactLoader, folder: Path) -> dict[str, object]:
    """Write a judged cell's exhibit; an empty one where the family has nothing to show."""
    judged, context = node.judged, node.context
    precision = context.family.precision(context.spec, "judge")
    truth = bench.judged_against(judged, precision)
    is_truth = judged.law == judged.truth and judged.decoding is None
    judged_law = truth if is_truth else bench.law(context, judged.law, precision, judged.decoding)
    law = cast("Law", candidates_of(judged_law))
    truth_on_law = load_truth_on_law(bench.store.path("judge", judged.key))
    rows = bench.head(context, judged.law_rows, SHOWN_STORED)
    shown = context.family.exhibit(context.spec, truth, law, rows, truth_on_law)
    found = _curves(judged, bench, truth, law, rows)
    if found is not None:
        shown = {**(shown or {"kind": "curves", "version": 1}), "curves": found}
    (folder / "exhibit.json").write_text(json.dumps(shown))
    return {}


def _curves(judged: JudgeNode, bench: ArtifactLoader, truth: Law, law: Law, rows: Samples) -> dict[str, object] | None:
    """Frontiers of a judged law: as kept where scoring is dear, else made again; None for the truth itself."""
    if judged.context.family.keeps_draws:
        kept = bench.store.path("judge", judged.key) / _CURVES
        return artifact_json(kept, dict) if kept.is_file() else None
    is_truth = judged.law == judged.truth and judged.decoding is None
    if is_truth or not truth.score_kind == law.score_kind == "exact":
        return None
    truth_rows = bench.rows(judged.context, judged.truth_rows)
    scores = scores_of(truth, law, truth_rows, rows, truth_on_truth=truth_rows.log_prob, law_on_law=rows.log_prob)
    return curves(scores)


def _bias(s: Scores, x: Columns, y: Columns) -> dict[str, Estimate]:
    """What judging in bfloat16 adds to precision, recall and entropy: the first rows once more in float32."""
    if x.other_exact is None or y.own_exact is None or y.other_exact is None:
        return {}
    gaps = {
        "precision_bias": (s.truth_on_law, y.other_exact, s.law_rows.strata, 1.0),
        "recall_bias": (s.law_on_truth, x.other_exact, s.truth_rows.strata, 1.0),
        "entropy_bias": (s.law_on_law, y.own_exact, s.law_rows.strata, -1.0),
    }
    return {name: rounding_bias(*of) for name, of in gaps.items()}


def rounding_bias(column: Floats, right: Floats, strata: Strata | None, sign: float) -> Estimate:
    """Return the mean of what rounding added to the first scores of a column."""
    rounded = column[: len(right)]
    both = np.isfinite(rounded) & np.isfinite(right)  # at a nucleus' edge rounding may move a row in or out
    kept = None if strata is None else strata[: len(right)][both]
    return mean_estimate(sign * (rounded[both] - right[both]), "nats", kept)


def released(node: ReleasedNode, bench: ArtifactLoader, folder: Path) -> dict[str, object]:
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
