"""The distance of the best of n, and the temperature of equal distance, against enumeration."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest

from hydrometer.claims.measures.equal_kl_data import best_of_kl, colder
from hydrometer.core.spec import Selectivity
from hydrometer.models.markov.law import Markov
from hydrometer.models.markov.spec import MarkovTruth


def test_best_of_n_of_a_law_with_ties() -> None:
    # Four outcomes of equal probability with scores 0, 1, 1, 2: the best of two, by enumerating pairs; ties at random.
    scores = np.array([0.0, 1.0, 1.0, 2.0])
    chosen = np.zeros(4)
    for i, j in product(range(4), repeat=2):
        winners = [k for k in (i, j) if scores[k] == max(scores[i], scores[j])]
        for k in winners:
            chosen[k] += 1 / 16 / len(winners)
    expected = float((chosen * np.log(chosen / 0.25)).sum())
    assert best_of_kl(scores, 2) == pytest.approx(expected, rel=1e-12)


def test_the_colder_law_is_as_far_as_was_asked() -> None:
    teacher = MarkovTruth(order=1, vocabulary=3, max_new_tokens=3, end=0.3, seed=2).law()
    cold = teacher.select(Selectivity(temperature=colder(teacher, 0.2)))
    total = 0.0
    for row in [r for n in (1, 2, 3) for r in product(range(3), repeat=n)]:
        if 0 in row[:-1] or (row[-1] != 0 and len(row) < 3):
            continue
        a, b = (log_of(law, row) for law in (cold, teacher))
        total += float(np.exp(a) * (a - b))
    assert total == pytest.approx(0.2, abs=1e-5)


def log_of(law: Markov, row: tuple[int, ...]) -> float:
    out, context = 0.0, law.start
    for t, v in enumerate(row):
        out += float(law.step_table(t)[context, v])
        context = int(law.follow(np.array(context), np.array(v)))
    return out
