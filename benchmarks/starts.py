"""Effect of the better of two k-means starts, against scikit-learn's single one, on the paper's mixture.

    python benchmarks/starts.py

SETS sets of 100 points; a teacher of four components is fitted to each by `fit_mixture` and by scikit-learn, with
STARTS draws of the start each; it is sharpened at β = 50, a student of one component is fitted to 1,000 of its points,
and its recall is exact. Differences are of means over starts, their standard errors over sets. Half a minute.
"""

from __future__ import annotations

import warnings

import numpy as np
from hydrometer import Mixture, Selectivity, fit_mixture
from hydrometer.core.rng import Stream
from hydrometer.metrics.exact import expected_log_prob
from sklearn.mixture import GaussianMixture

SETS, STARTS = 300, 10
MEANS = [[-1, 1], [0, 1], [1, 1], [-1, 0], [1, 0], [-1, -1], [0, -1], [1, -1]]
TRUTH = Mixture(np.full(8, 1 / 8), MEANS, np.full(8, 0.025), covariance_type="spherical")


def recall(teachers: list[Mixture], roots: list[Stream], turn: int) -> np.ndarray:
    sharp = [t.select(Selectivity(weight_power=50)) for t in teachers]
    streams = [r.child("distill", str(turn)) for r in roots]
    rows = np.stack([t.sample(1000, seed=s).x for t, s in zip(sharp, streams, strict=True)])
    students = fit_mixture(rows, 1, covariance_type="diag").model
    return np.array([expected_log_prob(TRUTH, q)[0] for q in students])


def said(name: str, ours: np.ndarray, theirs: np.ndarray) -> None:
    d = ours.mean(axis=0) - theirs.mean(axis=0)
    print(f"{name}: {ours.mean():.3f} and {theirs.mean():.3f}, difference {d.mean():.3f} +- "
          f"{d.std(ddof=1) / SETS**0.5:.3f}", flush=True)  # fmt: skip


def main() -> None:
    warnings.filterwarnings("ignore", category=UserWarning)  # scikit-learn's of convergence
    roots = [Stream(s) for s in range(SETS)]
    rows = np.stack([TRUTH.sample(100, seed=r.child("train", "truth")).x for r in roots])
    for n_init, starts in ((1, STARTS), (10, 1)):
        found: list[list[np.ndarray]] = [[], [], [], []]
        for turn in range(starts):
            fit = fit_mixture(rows, 4, covariance_type="diag", n_init=n_init, seed=1000 + turn)
            theirs = [
                GaussianMixture(4, covariance_type="diag", n_init=n_init, random_state=1000 * turn + i).fit(x)
                for i, x in enumerate(rows)
            ]
            found[0].append(recall(list(fit.model), roots, turn))
            found[1].append(recall([Mixture.from_sklearn(m) for m in theirs], roots, turn))
            found[2].append(fit.info.log_likelihood)
            found[3].append(np.array([m.score(x) for m, x in zip(theirs, rows, strict=True)]))
        ours, others, likelihood, other_likelihood = (np.array(f) for f in found)
        said(f"n_init {n_init}, recall at beta 50", ours, others)
        said(f"n_init {n_init}, log-likelihood a point", likelihood, other_likelihood)


if __name__ == "__main__":
    main()
