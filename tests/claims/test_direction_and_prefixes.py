"""The students of the claim are the least of their losses: against a search over every free logit."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest
from scipy.optimize import minimize

from hydrometer.claims.measures.direction_and_prefixes import World, students_of
from hydrometer.models.markov.law import Markov
from hydrometer.models.markov.spec import MarkovTruth

V, LONGEST = 3, 3


def prefix_weights(p: Markov) -> dict[tuple[int, ...], float]:
    """Probability of each prefix that has not ended, by enumeration."""
    out: dict[tuple[int, ...], float] = {}
    for t in range(LONGEST):
        for prefix in product(range(1, V), repeat=t):
            weight, context = 1.0, p.start
            for i, v in enumerate(prefix):
                weight *= float(np.exp(p.step_table(i)[context, v]))
                context = int(p.follow(np.array(context), np.array(v)))
            out[prefix] = weight
    return out


def context_of(prefix: tuple[int, ...], law: Markov) -> int:
    context = law.start
    for v in prefix:
        context = int(law.follow(np.array(context), np.array(v)))
    return context


@pytest.mark.parametrize("direction", ["forward", "reverse"])
def test_a_student_on_the_teachers_prefixes_is_the_least(direction: str) -> None:
    teacher = MarkovTruth(order=2, vocabulary=V, max_new_tokens=LONGEST, end=0.3, seed=5).law()
    world = World(vocabulary=V, max_new_tokens=LONGEST, least=0.0)
    student = students_of(world, teacher, 1)[direction, "teacher"]
    weights = prefix_weights(teacher)

    def loss(logits: np.ndarray) -> float:
        table = logits.reshape(V + 1, V)
        log_q = table - np.log(np.exp(table).sum(1, keepdims=True))
        total = 0.0
        for prefix, w in weights.items():
            p, q = teacher.step_table(0)[context_of(prefix, teacher)], log_q[context_of(prefix, student)]
            a, b = (p, q) if direction == "forward" else (q, p)
            total += w * float((np.exp(a) * (a - b)).sum())
        return total

    best = minimize(loss, np.zeros((V + 1) * V), method="BFGS", options={"gtol": 1e-9})
    met = [context_of(prefix, student) for prefix in weights]
    log_q = best.x.reshape(V + 1, V)
    log_q = log_q - np.log(np.exp(log_q).sum(1, keepdims=True))
    np.testing.assert_allclose(student.log_table[sorted(set(met))], log_q[sorted(set(met))], atol=1e-5)
