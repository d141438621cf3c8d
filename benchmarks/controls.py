"""Gain of control variates on the cells of a run: variance ratios at equal draws and at equal seconds.

    hydrometer run quickstart --out runs/quickstart
    python benchmarks/controls.py runs/quickstart

Each judged cell is scored twice from the run's artifacts: as it is judged, and plainly, by three calls of `log_prob`
(the truth's own of its rows is known then). A ratio below 1 is a gain; its standard error is the delta method's over
rows. Seconds are medians of REPETITIONS in turn.
"""

from __future__ import annotations

import _peers  # first: it pins the threads

import json
import statistics
import sys
import time
from pathlib import Path

import numpy as np
import torch
from hydrometer.core.statistics.estimators import mean_variance
from hydrometer.metrics.likelihood import Scores
from hydrometer.models.families import parse_run_spec
from hydrometer.run.graph.plan import plan_run
from hydrometer.stages.artifact_loader import ArtifactLoader
from hydrometer.stages.judge import scores_of
from hydrometer.stages.nodes import JudgeNode
from hydrometer.store.artifacts import ArtifactStore
from hydrometer.store.records import load_results

REPETITIONS = 3
COLUMNS = {
    "precision": lambda s: (s.truth_on_law, s.law_controls, s.law_rows),
    "entropy": lambda s: (s.law_on_law, s.law_controls, s.law_rows),
    "kl_student_truth": lambda s: (s.law_on_law - s.truth_on_law, s.law_controls, s.law_rows),
    "recall": lambda s: (s.law_on_truth, s.truth_controls, s.truth_rows),
    "kl_truth_student": lambda s: (s.truth_on_truth - s.law_on_truth, s.truth_controls, s.truth_rows),
}


def ratio(plain: np.ndarray, adjusted: np.ndarray, inflation: float, strata: np.ndarray | None) -> tuple[float, float]:
    """Variance of the adjusted mean over the plain one's, and the ratio's standard error."""
    of = inflation**2 * mean_variance(adjusted, strata) / mean_variance(plain, strata)

    def shares(v: np.ndarray) -> np.ndarray:
        means = np.full(v.shape, v.mean())
        if strata is not None:
            for k in np.unique(strata):
                means[strata == k] = v[strata == k].mean()
        squares = (v - means) ** 2
        return squares / squares.mean()

    return of, of * float(np.std(shares(adjusted) - shares(plain)) / np.sqrt(len(plain)))


def main() -> None:
    folder = Path(sys.argv[1])
    torch.set_num_threads(_peers.THREADS)
    plan = plan_run(parse_run_spec(load_results(folder)["specs"][0], "specs"))
    bench = ArtifactLoader(ArtifactStore(folder / "artifacts"))
    out: dict[str, dict[str, object]] = {}
    for cell in plan.cells:
        node = plan.nodes[cell.judge]
        if not isinstance(node, JudgeNode) or cell.seed not in (None, 0):
            continue
        context = node.context
        precision = context.family.precision(context.spec, "judge")
        truth = bench.law(context, node.truth, precision)
        law = bench.law(context, node.law, precision, node.decoding)
        if law is truth:
            continue
        x, y = bench.rows(context, node.truth_rows), bench.rows(context, node.law_rows)
        known = truth.log_prob(x)
        seconds: dict[str, list[float]] = {"controlled": [], "plain": []}
        for _ in range(REPETITIONS):
            start = time.perf_counter()
            s = scores_of(truth, law, x, y)
            seconds["controlled"].append(time.perf_counter() - start)
            start = time.perf_counter()
            Scores(x, y, known, law.log_prob(x), truth.log_prob(y), law.log_prob(y))
            seconds["plain"].append(time.perf_counter() - start)
        slower = statistics.median(seconds["controlled"]) / statistics.median(seconds["plain"])
        found: dict[str, object] = {"seconds_ratio": slower}
        for name, column in COLUMNS.items():
            v, controls, rows = column(s)
            if controls is None or not np.isfinite(v).all():
                continue
            r, se = ratio(v, controls.adjust(v), controls.inflation, rows.strata)
            found[name] = {"equal_draws": r, "se": se, "equal_seconds": r * slower}
        out[cell.id] = found
        figures = "  ".join(
            f"{name} {f['equal_draws']:.3f} +- {f['se']:.3f} ({f['equal_seconds']:.3f})"
            for name, f in found.items()
            if isinstance(f, dict)
        )
        print(f"{cell.id}: seconds {slower:.2f}  {figures}", flush=True)
    print(json.dumps(out))


main()
