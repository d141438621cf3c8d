"""Figures of a finished run of mixtures against exact ones, cell by cell.

    hydrometer run paper-mixture --out runs/paper-mixture
    python benchmarks/exact_cells.py runs/paper-mixture --chain mixture

Every cell's law is opened again and its figures are computed by quadrature. Printed for each figure: the standard
deviation of (estimate - exact) / standard error over all cells, the largest value, and how many of the 95 % intervals
hold. Seeds draw their own rows, so cells of different seeds are independent.
"""

from __future__ import annotations

import _peers  # first: it pins the threads

import argparse
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import numpy as np
from hydrometer.metrics.exact import expected_log_prob
from hydrometer.models.families import parse_run_spec
from hydrometer.run.graph.plan import plan_run
from hydrometer.stages.artifact_loader import ArtifactLoader
from hydrometer.stages.judge_files import load_metrics
from hydrometer.stages.nodes import JudgeNode
from hydrometer.store.artifacts import ArtifactStore
from hydrometer.store.records import load_results

Z = dict[str, tuple[float, bool]]


def figures(p: object, q: object) -> dict[str, float]:
    """Likelihood figures, by quadrature."""
    out = {
        "precision": expected_log_prob(q, p)[0], "recall": expected_log_prob(p, q)[0],
        "entropy": -expected_log_prob(q, q)[0], "entropy_truth": -expected_log_prob(p, p)[0],
    }  # fmt: skip
    out["kl_student_truth"] = -out["entropy"] - out["precision"]
    out["kl_truth_student"] = -out["entropy_truth"] - out["recall"]
    return out


def judged(folder: Path, chain: str, seeds: tuple[int, ...]) -> list[tuple[str, Z]]:
    """Standardised errors of the cells of some seeds."""
    plan = plan_run(parse_run_spec(load_results(folder)["specs"][0], "specs"))
    store = ArtifactStore(folder / "artifacts")
    bench = ArtifactLoader(store)
    out: list[tuple[str, Z]] = []
    for cell in plan.cells:
        node = plan.nodes[cell.judge]
        if cell.chain != chain or not isinstance(node, JudgeNode) or cell.seed not in seeds:
            continue
        context = node.context
        precision = context.family.precision(context.spec, "judge")
        truth = bench.law(context, node.truth, precision)
        law = bench.law(context, node.law, precision, node.decoding)
        metrics = load_metrics(store.path("judge", node.key))
        found: Z = {}
        for name, right in figures(truth, law).items():
            e = metrics[name]
            if e.value is None or not e.se:
                continue
            low, high = e.interval() or (np.nan, np.nan)
            found[name] = ((e.value - right) / e.se, bool(low <= right <= high))
        out.append((cell.id, found))
    return out


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--chain", default="mixture")
    given = parser.parse_args()
    plan = plan_run(parse_run_spec(load_results(given.folder)["specs"][0], "specs"))
    seeds = sorted({c.seed for c in plan.cells if c.seed is not None})
    parts = [tuple(seeds[i :: 2 * _peers.THREADS]) for i in range(2 * _peers.THREADS)]
    with ProcessPoolExecutor(_peers.THREADS) as pool:
        jobs = [pool.submit(judged, given.folder, given.chain, part) for part in parts if part]
        cells = [c for job in jobs for c in job.result()]
    print(f"{len(cells)} cells of {len(seeds)} seeds")
    for name in ("precision", "recall", "entropy", "entropy_truth", "kl_student_truth", "kl_truth_student"):
        z = [(found[name], cell) for cell, found in cells if name in found]
        values = np.array([a for (a, _), _ in z])
        worst = max(z, key=lambda x: abs(x[0][0]))
        held = np.mean([b for (_, b), _ in z])
        print(
            f"{name:18} deviation {values.std():.3f}  mean {values.mean():+.3f}  held {100 * held:.1f} %  "
            f"worst {worst[0][0]:+.2f} ({worst[1]})  of {len(values)}"
        )


if __name__ == "__main__":
    main()
