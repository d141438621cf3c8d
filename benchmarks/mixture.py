"""Fitting mixtures: ours against scikit-learn's GaussianMixture, batches under joblib on all cores, and one large fit.

Checked first: the mean log-likelihood per point of our fits is that of scikit-learn's within 1e-3, or better; for the
large fit, from the same start, that it is the same to 1e-6.
"""

from __future__ import annotations

import _peers  # first: it pins the threads

import json
import sys
import time
import warnings
from typing import Any

import hydrometer as hm
import numpy as np
from hydrometer.models.mixture.spec import MixtureWorld
from joblib import Parallel, delayed, parallel_config
from sklearn.exceptions import ConvergenceWarning
from sklearn.mixture import GaussianMixture

PAPER = [[-1, 1], [0, 1], [1, 1], [-1, 0], [1, 0], [-1, -1], [0, -1], [1, -1]]
LARGE_ITERATIONS = 20


def peer_fit(x: np.ndarray, k: int, kind: str, seed: int) -> float:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        fitted = GaussianMixture(k, covariance_type=kind, random_state=seed).fit(x)
    return float(fitted.score(x))


def batch(name: str, b: int, n: int, d: int, k: int, kind: Any, truth: hm.Mixture, repeats: int) -> dict[str, object]:
    x = truth.sample(b * n, seed=0).x.reshape(b, n, d)
    hm.fit_mixture(x[:2], k, covariance_type=kind)  # compiled
    ours = hm.fit_mixture(x, k, covariance_type=kind, seed=1).info.log_likelihood

    def peer() -> list[float]:
        # One thread in each of joblib's processes: else scikit-learn's own threads fight for the same cores.
        with parallel_config("loky", n_jobs=_peers.THREADS, inner_max_num_threads=1):
            return Parallel()(delayed(peer_fit)(x[i], k, kind, i) for i in range(b))

    theirs = np.array(peer())
    print(f"  check, mean log-likelihood a point: ours {ours.mean():.5f}, scikit-learn {theirs.mean():.5f}")
    assert ours.mean() > theirs.mean() - 1e-3, (ours.mean(), theirs.mean())
    works = {
        "hydrometer": _peers.timed(lambda: hm.fit_mixture(x, k, covariance_type=kind, seed=1), b),
        "scikit-learn, joblib": _peers.timed(peer, b),
    }  # fmt: skip
    return _peers.report(name, _peers.in_turn(works, repeats), "fits/s")


def start_of(x: np.ndarray, k: int, kind: str) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    d = x.shape[1]
    precisions = {"diag": np.ones((k, d)) / x.var(axis=0), "full": np.tile(np.diag(1 / x.var(axis=0)), (k, 1, 1))}
    return {
        "weights_init": np.full(k, 1 / k), "means_init": x[rng.choice(len(x), k, replace=False)],
        "precisions_init": precisions[kind],
    }  # fmt: skip


def large(kind: str, who: str) -> dict[str, float]:
    """One large fit in this process: seconds, peak memory above the data, likelihood."""
    x = MixtureWorld(n_components=32, n_features=16, separation=3.0, weight_ratio=8).law().sample(1_000_000, seed=0).x
    start = start_of(x, 32, kind)
    options: dict[str, Any] = {"covariance_type": kind, "tol": 0.0, "max_iter": LARGE_ITERATIONS, **start}
    if who == "hydrometer":  # compile on a data set that is large enough for the same path
        hm.fit_mixture(x[:70_000], 32, **{**options, "max_iter": 1})
    with _peers.Peak() as peak, warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        begin = time.perf_counter()
        if who == "hydrometer":
            fit = hm.fit_mixture(x, 32, **options)
            seconds, likelihood = time.perf_counter() - begin, float(fit.info.log_likelihood[0])
        else:
            fitted = GaussianMixture(32, **options).fit(x)
            seconds, likelihood = time.perf_counter() - begin, float("nan")
    if who != "hydrometer":
        likelihood = float(fitted.score(x))
    return {"seconds": seconds, "peak_mb": peak.mb, "log_likelihood": likelihood}


def main() -> None:
    if len(sys.argv) > 1 and sys.argv[1] == "--child":
        print("RESULT " + json.dumps(large(sys.argv[2], sys.argv[3])))
        return
    args = _peers.arguments(__doc__ or "")
    results: list[dict[str, object]] = []
    if args.only in "small":
        truth = hm.Mixture(np.full(8, 1 / 8), PAPER, np.full(8, 0.025), covariance_type="spherical")
        name = "1,000 fits of 100 x 2, 4 components, diag"
        results.append(batch(name, 1000, 100, 2, 4, "diag", truth, args.repeats))
    if args.only in "medium":
        truth = MixtureWorld(n_components=8, n_features=8, separation=3.0, weight_ratio=4).law()
        name = "200 fits of 2,000 x 8, 8 components, full"
        results.append(batch(name, 200, 2000, 8, 8, "full", truth, args.repeats))
    for kind in ("diag", "full"):
        if args.only not in f"large {kind}":
            continue
        found: dict[str, list[dict[str, float]]] = {"hydrometer": [], "scikit-learn": []}
        for _ in range(args.repeats):
            for who, runs in found.items():
                out = _peers.child("mixture.py", "--child", kind, who)
                runs.append(json.loads(next(x for x in out.splitlines() if x.startswith("RESULT "))[7:]))
        ours, theirs = (runs[0]["log_likelihood"] for runs in found.values())
        print(f"  check, log-likelihood a point after {LARGE_ITERATIONS} iterations: {ours:.9f} and {theirs:.9f}")
        assert abs(ours - theirs) < 1e-6, (ours, theirs)
        rates = {who: [LARGE_ITERATIONS / r["seconds"] for r in runs] for who, runs in found.items()}
        title = f"one fit of 1,000,000 x 16, 32 components, {kind}, {LARGE_ITERATIONS} iterations"
        report = _peers.report(title, rates, "iterations/s")
        report["peak_mb"] = {who: float(np.median([r["peak_mb"] for r in runs])) for who, runs in found.items()}
        print(f"  peak above the data, MB: {report['peak_mb']}")
        results.append(report)
    _peers.finish(results, args.json)


if __name__ == "__main__":
    main()
