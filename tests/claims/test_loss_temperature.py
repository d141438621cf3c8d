"""Students and figures of `loss-temperature`, against a plain minimiser and the enumeration of all rows."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from scipy.optimize import minimize  # pyright: ignore[reportUnknownVariableType]

from hydrometer.claims.measures.loss_temperature import World, measure, student_of
from hydrometer.core.rng import Stream
from hydrometer.models.markov.law import END, Markov
from hydrometer.models.markov.ngram_fit import fit_markov
from hydrometer.models.markov.spec import MarkovTruth

WORLD = World(order=2, teacher=1, students=(0,), temperatures=(1.0, 3.0), vocabulary=3, max_new_tokens=4, train=60)


def _worlds(seed: int) -> tuple[Markov, Markov]:
    v, most = WORLD.vocabulary, WORLD.max_new_tokens
    truth = MarkovTruth(
        order=WORLD.order,
        vocabulary=v,
        max_new_tokens=most,
        end=WORLD.end,
        concentration=WORLD.concentration,
        seed=seed,
    ).law()
    rows = truth.sample(WORLD.train, seed=Stream(seed).child("loss-temperature", "train"))
    return truth, fit_markov(rows, WORLD.teacher, smoothing=WORLD.smoothing, vocabulary=v, max_new_tokens=most).model


def _law(m: Markov, row: list[int]) -> np.ndarray:
    """The chain's law of the next id, from the last ids of a row."""
    padded = ([m.vocabulary] * m.order + row)[len(row) :]
    return np.exp(m.log_table[sum(x * (m.vocabulary + 1) ** i for i, x in enumerate(reversed(padded)))])


def _prefixes(m: Markov, row: list[int], chance: float) -> Iterator[tuple[list[int], float]]:
    if len(row) == m.max_new_tokens or (row and row[-1] == END):
        return
    yield row, chance
    for v, p in enumerate(_law(m, row)):
        yield from _prefixes(m, [*row, v], chance * float(p))


def _expected_log(of: Markov, under: Markov) -> float:
    """Mean of the log-probability that `of` gives to rows of `under`."""
    return sum(c * float(_law(under, r) @ np.log(_law(of, r))) for r, c in _prefixes(under, [], 1.0))


def _by_minimiser(teacher: Markov, direction: str, t: float) -> np.ndarray:
    """The student of order 0 of least tempered KL, over its logits."""
    met = list(_prefixes(teacher, [], 1.0))

    def tempered(p: np.ndarray) -> np.ndarray:
        return p ** (1 / t) / (p ** (1 / t)).sum()

    def loss(z: np.ndarray) -> float:
        q = tempered(np.exp(z) / np.exp(z).sum())
        total = 0.0
        for row, chance in met:
            p = tempered(_law(teacher, row))
            a, b = (p, q) if direction == "forward" else (q, p)
            total += chance * float(a @ np.log(a / b))
        return total

    options = {"xatol": 1e-9, "fatol": 1e-14, "maxiter": 4000}
    found: Any = minimize(loss, np.zeros(3), method="Nelder-Mead", options=options)
    z = np.asarray(found.x, np.float64)
    return np.exp(z) / np.exp(z).sum()


@pytest.mark.parametrize("direction", ["forward", "reverse"])
@pytest.mark.parametrize("temperature", [0.5, 1.0, 3.0])
def test_student_is_that_of_a_minimiser(direction: str, temperature: float) -> None:
    _, teacher = _worlds(0)
    found = np.exp(student_of(teacher, direction, temperature, 0).log_table[0])
    np.testing.assert_allclose(found, _by_minimiser(teacher, direction, temperature), atol=1e-5)


def test_figures_are_those_of_all_rows() -> None:
    found = {c.figure: c.estimate.value for c in measure(WORLD, range(2)).checks}
    gaps: dict[tuple[str, float], list[float]] = {}
    for seed in range(2):
        truth, teacher = _worlds(seed)
        for t in (1.0, 3.0):
            a, b = (
                Markov(np.log(_by_minimiser(teacher, d, t))[None], order=0, max_new_tokens=4)
                for d in ("forward", "reverse")
            )
            gaps.setdefault(("precision", t), []).append(_expected_log(truth, a) - _expected_log(truth, b))
            gaps.setdefault(("recall", t), []).append(_expected_log(a, truth) - _expected_log(b, truth))
    for (figure, t), values in gaps.items():
        what = f"{figure}, forward minus reverse, temperature {t:g}, nats"
        assert found[what] == pytest.approx(np.mean(values), abs=1e-4)
    for figure in ("precision", "recall"):
        what = f"{figure}, temperature 3 minus 1, forward's gain less reverse's, nats"
        assert found[what] == pytest.approx(np.mean(gaps[figure, 3.0]) - np.mean(gaps[figure, 1.0]), abs=1e-4)


def test_forward_goes_to_reverse() -> None:
    _, teacher = _worlds(1)
    reverse = student_of(teacher, "reverse", 1.0, 0).log_table
    np.testing.assert_allclose(student_of(teacher, "reverse", 4.0, 0).log_table, reverse, atol=1e-10)
    far = [np.abs(student_of(teacher, "forward", t, 0).log_table - reverse).max() for t in (1.0, 4.0, 1e4)]
    assert far[0] > far[1] > far[2]
    assert far[2] < 1e-3
