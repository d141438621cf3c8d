"""The figures of `heating`, against sums over all rows, counts by hand, and a minimum found by descent."""

from __future__ import annotations

import itertools
import math
from collections import Counter, defaultdict

import numpy as np
import pytest
from scipy.optimize import minimize
from scipy.special import log_softmax, rel_entr, softmax

from hydrometer.claims.measures.heating import World, measure
from hydrometer.core.errors import SpecError
from hydrometer.core.rng import Stream
from hydrometer.models.markov.spec import MarkovTruth

V, L, N, SMOOTHING = 3, 4, 60, 0.3
WORLD = World(
    order=3, teacher=2, students=(1,), train=(N,), cold=0.5, hot=(1.5,), path=(), vocabulary=V, max_new_tokens=L,
    losses=("kl_teacher_student on truth", "jsd(weight=0.3)"), smoothing=SMOOTHING,
)  # fmt: skip
Law = dict[tuple[int, ...], np.ndarray]  # next-id log-law after every prefix

PREFIXES = [p for n in range(L) for p in itertools.product(range(1, V), repeat=n)]
ROWS = [p for p in itertools.product(range(1, V), repeat=L)] + [(*p, 0) for p in PREFIXES]


def log_prob(law: Law, row: tuple[int, ...]) -> float:
    return sum(law[row[:t]][v] for t, v in enumerate(row))


def mean(of: Law, under: Law) -> float:
    return sum(math.exp(log_prob(under, row)) * log_prob(of, row) for row in ROWS)


def heated(law: Law, t: float) -> Law:
    return {p: log_softmax(x / t) for p, x in law.items()}


def fitted(teacher: Law, source: Law, jsd: float | None = None) -> Law:
    """The student whose last id is all it sees."""
    met = defaultdict(list)
    for p in PREFIXES:
        met[p[-1:]].append((math.exp(log_prob(source, p)), np.exp(teacher[p])))
    best = {}
    for context, pairs in met.items():
        w, laws = np.array([x for x, _ in pairs]), np.array([x for _, x in pairs])
        best[context] = np.log(w @ laws / w.sum())
        if jsd is not None:

            def value(z: np.ndarray, w: np.ndarray = w, laws: np.ndarray = laws, a: float = jsd) -> float:
                q = softmax(z)
                m = a * laws + (1 - a) * q
                return float(w / w.sum() @ (a * rel_entr(laws, m) + (1 - a) * rel_entr(q, m)).sum(axis=1))

            best[context] = log_softmax(minimize(value, best[context], method="BFGS", options={"gtol": 1e-10}).x)
    return {p: best[p[-1:]] for p in PREFIXES}


def expected(seed: int) -> list[float]:
    chain = MarkovTruth(
        order=3, vocabulary=V, max_new_tokens=L, end=WORLD.end, concentration=WORLD.concentration, seed=seed
    ).law()
    table = chain.log_table if chain.log_table.ndim == 3 else np.repeat(chain.log_table[None], L, axis=0)

    def context(p: tuple[int, ...]) -> int:
        out = 0
        for v in (V, V, V, *p)[-3:]:
            out = out * (V + 1) + v
        return out

    truth = {p: table[len(p), context(p)] for p in PREFIXES}
    rows = chain.sample(N, seed=Stream(seed).child("heating").child(str(N)))
    counts: Counter[tuple[tuple[int, ...], int]] = Counter()
    for ids, length in zip(rows.ids.tolist(), rows.lengths.tolist(), strict=True):
        for t in range(length):
            counts[tuple(([V, V, *ids])[t : t + 2]), ids[t]] += 1
    seen = {p: np.array([counts[(V, V, *p)[-2:], v] for v in range(V)]) + SMOOTHING for p in PREFIXES}
    teacher = {p: np.log(c / c.sum()) for p, c in seen.items()}
    plain = fitted(teacher, teacher)
    base = {"precision": mean(truth, plain), "recall": mean(plain, truth)}
    out, recalls = [], [base["recall"]]
    for way in ("teacher", "student"):
        at = {
            t: fitted(heated(teacher, t), heated(teacher, t)) if way == "teacher" else heated(plain, t)
            for t in (0.5, 1.5)
        }
        out += [mean(truth, at[0.5]) - base["precision"], mean(at[1.5], truth) - base["recall"]]
        recalls.append(mean(at[1.5], truth))
    losses = fitted(teacher, truth), fitted(teacher, teacher, 0.3)
    return [*out, max(mean(x, truth) for x in losses) - max(recalls)]


def test_figures_are_sums_over_all_rows() -> None:
    by_hand = np.array([expected(seed) for seed in range(3)])
    checks = measure(WORLD, range(3)).checks
    assert [c.figure.split(",")[0] for c in checks] == ["precision", "recall"] * 2 + ["recall"]
    assert [c.says for c in checks] == ["above", "below"] * 2 + ["above"]
    assert [c.estimate.value for c in checks] == pytest.approx(by_hand.mean(axis=0), abs=2e-7)
    assert [c.estimate.se for c in checks] == pytest.approx(by_hand.std(axis=0, ddof=1) / math.sqrt(3), abs=2e-7)
    assert np.abs(by_hand).min() > 1e-4  # no figure is too small to tell


def test_what_is_no_heat_or_loss_is_refused() -> None:
    with pytest.raises(SpecError, match="above 1"):
        measure(WORLD.model_copy(update={"hot": (0.9,)}), range(2))
    with pytest.raises(SpecError, match="divergence"):
        measure(WORLD.model_copy(update={"losses": ("mle",)}), range(2))
