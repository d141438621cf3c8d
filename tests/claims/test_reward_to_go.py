"""Both expected gradients against sums over every row that the student can say, and the ends against those."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest

from hydrometer.claims.measures.reward_to_go import World, expected_gradients, measure
from hydrometer.core.errors import SpecError
from hydrometer.models.markov.law import Markov
from hydrometer.models.markov.spec import MarkovTruth

V, LONGEST = 3, 3


def _chain(order: int, seed: int) -> Markov:
    return MarkovTruth(order=order, vocabulary=V, max_new_tokens=LONGEST, end=0.3, concentration=2.0, seed=seed).law()


def _rows() -> list[tuple[int, ...]]:
    every = [r for n in range(1, LONGEST + 1) for r in product(range(V), repeat=n)]
    return [r for r in every if 0 not in r[:-1] and (r[-1] == 0 or len(r) == LONGEST)]


def _tokens(law: Markov, table: np.ndarray, row: tuple[int, ...]) -> list[tuple[int, int, float]]:
    """Context, id and log-probability of every token, by hand."""
    out, past = [], [V] * law.order
    for v in row:
        context = 0
        for digit in past[len(past) - law.order :]:
            context = context * (V + 1) + digit
        out.append((context, v, float(table[context, v])))
        past.append(v)
    return out


def _kl(teacher: Markov, like: Markov, logits: np.ndarray) -> float:
    table = logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))
    total = 0.0
    for row in _rows():
        log_q = sum(x for _, _, x in _tokens(like, table, row))
        total += np.exp(log_q) * (log_q - sum(x for _, _, x in _tokens(teacher, teacher.log_table, row)))
    return total


@pytest.mark.parametrize("order", [0, 1, 2])
def test_gradients_are_those_of_every_row(order: int) -> None:
    teacher, student = _chain(2, 1), _chain(order, 5)
    token, rows = expected_gradients(teacher, student)
    z, h = student.log_table, 1e-5
    slope = np.zeros_like(z)
    for at in np.ndindex(z.shape):
        step = np.zeros_like(z)
        step[at] = h
        slope[at] = (_kl(teacher, student, z + step) - _kl(teacher, student, z - step)) / (2 * h)
    np.testing.assert_allclose(rows, slope, atol=1e-8)
    score = np.zeros_like(z)  # each token's own reward times the slope of its log-probability
    for row in _rows():
        mine, theirs = _tokens(student, z, row), _tokens(teacher, teacher.log_table, row)
        chance = np.exp(sum(x for _, _, x in mine))
        for (context, v, log_q), (_, _, log_p) in zip(mine, theirs, strict=True):
            score[context] += chance * (log_q - log_p) * ((np.arange(V) == v) - np.exp(z[context]))
    np.testing.assert_allclose(token, score, atol=1e-12)
    assert np.abs(token - rows).max() > 1e-3


def test_a_small_world_is_measured() -> None:
    world = World(pairs=("2-2", "2-1"), vocabulary=3, max_new_tokens=4, train=20)
    found = {c.condition: c.estimate.value or 0.0 for c in measure(world, range(3)).checks}
    assert abs(found["the end, teacher of order 2, student of order 2"]) < 1e-8
    assert found["the end, teacher of order 2, student of order 1"] > 0
    assert found["the gradient, teacher of order 2, student of order 2"] > 0


def test_a_pair_is_two_orders() -> None:
    with pytest.raises(SpecError, match="two orders"):
        World(pairs=("2",)).orders()
