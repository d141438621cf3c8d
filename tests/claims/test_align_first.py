"""The exact tilt of chains and its share of rare rows, against enumeration of all rows."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest

from hydrometer.claims.measures.align_first import rare_share, with_rare_id
from hydrometer.core.errors import InputError
from hydrometer.models.markov.law import Markov
from hydrometer.models.markov.spec import MarkovTruth

V, LONGEST = 3, 4


def every_row(law: Markov) -> list[tuple[tuple[int, ...], float]]:
    """All rows with their probabilities."""
    out: list[tuple[tuple[int, ...], float]] = []
    for n in range(1, LONGEST + 1):
        for row in product(range(V), repeat=n):
            if 0 in row[:-1] or (row[-1] != 0 and n < LONGEST):
                continue
            log_p, context = 0.0, law.start
            for t, v in enumerate(row):
                log_p += float(law.step_table(t)[context, v])
                context = int(law.follow(np.array(context), np.array(v)))
            out.append((row, float(np.exp(log_p))))
    return out


@pytest.mark.parametrize("strength", [0.3, 2.0])
def test_tilt_and_share_are_those_of_enumeration(strength: float) -> None:
    drawn = MarkovTruth(order=2, vocabulary=V, max_new_tokens=LONGEST, end=0.3, seed=3).law()
    law = with_rare_id(drawn, 0.05)
    assert sum(p for row, p in every_row(law) if row[0] == V - 1) == pytest.approx(0.05, rel=1e-12)
    reward = np.array([[0.2, -0.5, 1.0], [0.0, 0.3, 0.1], [0.0, 0.0, 0.0], [0.0, 0.0, -2.0]])
    rows = every_row(law)
    assert sum(p for _, p in rows) == pytest.approx(1, abs=1e-12)
    wanted = np.array([p * np.exp(reward[range(len(row)), list(row)].sum() / strength) for row, p in rows])
    wanted /= wanted.sum()
    tilted = law.tilted(reward, strength)
    found = dict(every_row(tilted))
    np.testing.assert_allclose([found[row] for row, _ in rows], wanted, rtol=1e-11)
    share = sum(p for (row, _), p in zip(rows, wanted, strict=True) if row[0] == V - 1)
    assert rare_share(tilted) == pytest.approx(float(share), rel=1e-12)
    every_step = law.tilted(reward[0], strength)
    np.testing.assert_array_equal(every_step.log_table, law.tilted([reward[0]] * LONGEST, strength).log_table)


@pytest.mark.parametrize(
    ("reward", "strength"), [([0.0, 1.0], 1.0), ([0.0, np.nan, 1.0], 1.0), ([0, 0, 1], 0.0), ([0, 0, 1], np.inf)]
)
def test_a_tilt_that_makes_no_sense_is_refused(reward: list[float], strength: float) -> None:
    law = MarkovTruth(order=1, vocabulary=V, max_new_tokens=LONGEST).law()
    with pytest.raises(InputError):
        law.tilted(reward, strength)
