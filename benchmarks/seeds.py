"""Coverage of intervals over few seeds, and how often two peaks are marked: the tables of docs/uncertainty.md.

    python benchmarks/seeds.py

Worlds are spreads over seeds with a known mean: textbook ones, mixtures of two normal peaks, and the recall and
precision of the paper's mixture over SEEDS seeds (the truth's eight peaks, a teacher of four components, a student of
one, exact recall). For each number of seeds the programme draws REPETITIONS sets and counts intervals that hold the
mean. The standard error of a coverage is 0.2 %. A minute and a half on one core.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
from hydrometer import Mixture, Selectivity, fit_mixture
from hydrometer.core.rng import Stream
from hydrometer.core.statistics.seeds import few_seeds, skew_of_mean, skewed_interval, unseen
from hydrometer.metrics.exact import expected_log_prob
from hydrometer.stages.statistics.spread import two_peaks

SEEDS = 4000
REPETITIONS = 10_000
MARKED = 2000
SIZES = (5, 10, 30)
Draw = Callable[[np.random.Generator, int], np.ndarray]


def peaks(share: float, apart: float) -> tuple[Draw, float]:
    """Two normal peaks of standard deviation 1; the lower has this share."""

    def draw(rng: np.random.Generator, s: int) -> np.ndarray:
        return rng.normal(size=s) - apart * (rng.random(s) < share)

    return draw, -apart * share


def of(values: np.ndarray) -> tuple[Draw, float]:
    return lambda rng, s: values[rng.integers(0, values.size, s)], float(values.mean())


def paper(train: int, beta: float) -> tuple[np.ndarray, np.ndarray]:
    """Recall, exact, and precision, by 2,000 points, of the paper's distilled students."""
    means = [[-1, 1], [0, 1], [1, 1], [-1, 0], [1, 0], [-1, -1], [0, -1], [1, -1]]
    truth = Mixture(np.full(8, 1 / 8), means, np.full(8, 0.025), covariance_type="spherical")
    roots = [Stream(s) for s in range(SEEDS)]
    rows = np.stack([truth.sample(train, seed=r.child("train", "truth")).x for r in roots])
    teachers = fit_mixture(rows, 4, covariance_type="diag", seed=[r.child("fit", "teacher") for r in roots]).model
    sharp = [t.select(Selectivity(weight_power=beta)) for t in teachers]
    drawn = np.stack([t.sample(1000, seed=r.child("distill", "teacher")).x for t, r in zip(sharp, roots, strict=True)])
    students = fit_mixture(drawn, 1, covariance_type="diag").model
    recall = np.array([expected_log_prob(truth, q)[0] for q in students])
    own = (q.sample(2000, seed=r.child("own")).x for q, r in zip(students, roots, strict=True))
    return recall, np.array([float(truth.log_prob(x).mean()) for x in own])


def worlds() -> dict[str, tuple[Draw, float]]:
    out: dict[str, tuple[Draw, float]] = {
        "normal": (lambda rng, s: rng.normal(size=s), 0.0),
        "uniform": (lambda rng, s: rng.random(s), 0.5),
        "exponential": (lambda rng, s: rng.exponential(size=s), 1.0),
        "lognormal, sigma 1": (lambda rng, s: np.exp(rng.normal(size=s)), math.exp(0.5)),
    }
    for share in (0.5, 0.3, 0.2, 0.1):
        for apart in (5, 12):
            out[f"two peaks {apart} s.d. apart, {share:.0%} low"] = peaks(share, apart)
    for train, beta in ((100, 10), (100, 50), (1000, 50)):
        recall, precision = paper(train, beta)
        out[f"the paper's recall, {train} points, β = {beta}"] = of(recall)
        out[f"the paper's precision, {train} points, β = {beta}"] = of(precision)
    return out


def coverage(draw: Draw, mean: float, s: int) -> list[float]:
    """Shares of Student's and of the skewed interval that hold, the ratio of widths, and the share of few seeds."""
    rng = np.random.default_rng(20261127)
    held = np.zeros(2)
    wide = np.zeros(2)
    few = 0
    for _ in range(REPETITIONS):
        x = draw(rng, s)
        m, se = float(x.mean()), float(x.std(ddof=1)) / math.sqrt(s)
        for i, skew in enumerate((0.0, skew_of_mean(x))):
            low, high = skewed_interval(m, se, s - 1, skew)
            held[i] += low <= mean <= high
            wide[i] += high - low
        few += few_seeds(x) is True
    return [*(held / REPETITIONS), float(wide[1] / wide[0]), few / REPETITIONS]


def marks(draw: Draw, s: int) -> float:
    rng = np.random.default_rng(20261128)
    return sum(two_peaks(np.sort(draw(rng, s))) is True for _ in range(MARKED)) / MARKED


def main() -> None:
    found = worlds()
    heads = [f"{s} seeds: holds (t), width, few" for s in SIZES]
    print("| spread over seeds | " + " | ".join(heads) + " |\n|---" * 1 + "|---" * len(SIZES) + "|")
    for name, (draw, mean) in found.items():
        cells: list[str] = []
        for s in SIZES:
            t, ours, width, few = coverage(draw, mean, s)
            cells.append(f"{100 * ours:.1f} ({100 * t:.1f}), {width:.2f}, {100 * few:.0f} %")
        print(f"| {name} | " + " | ".join(cells) + " |", flush=True)
    print("\nunseen: " + ", ".join(f"{s} seeds {unseen(s):.1%}" for s in SIZES))
    sizes = (*SIZES, 200)
    print("\n| marked as two peaks, % | " + " | ".join(map(str, sizes)) + " |\n|---" + "|---" * len(sizes) + "|")
    for name, (draw, _) in found.items():
        print(f"| {name} | " + " | ".join(f"{100 * marks(draw, s):.1f}" for s in sizes) + " |", flush=True)


if __name__ == "__main__":
    main()
