"""Data of equal distance against enumeration and sums; students of them against closed forms."""

from __future__ import annotations

import math
import re
from itertools import product

import numpy as np
import pytest
from scipy.special import log_softmax

from hydrometer.claims.claim_spec import load_claim, measure_of
from hydrometer.claims.measures import equal_kl_data
from hydrometer.claims.measures.equal_kl_data import (
    Tokens,
    World,
    best_of_kl,
    best_tokens,
    colder,
    colder_tokens,
    kept_tokens,
    measure,
)
from hydrometer.claims.next_tokens import Contexts, at_temperature
from hydrometer.core.errors import InputError, SpecError
from hydrometer.core.rng import Stream
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


def laws(seed: int, contexts: int = 6, ids: int = 4) -> np.ndarray:
    return np.asarray(log_softmax(1.5 * np.random.default_rng(seed).standard_normal((contexts, ids)), axis=1))


def kl(log_q: np.ndarray, log_p: np.ndarray) -> float:
    """Of tables that weigh alike, nats a row."""
    q, p = np.exp(log_q) / len(log_q), np.exp(log_p) / len(log_p)
    return float(sum(a * math.log(a / b) for a, b in zip(q.flat, p.flat, strict=True) if a > 0))


@pytest.mark.parametrize("n", [2, 5])
def test_the_best_of_n_tokens_by_enumerating_draws(n: int) -> None:
    log_p = np.log([[0.1, 0.4, 0.1, 0.4], [0.05, 0.15, 0.3, 0.5]])  # ties in one context, among the chosen at random
    for found, p in zip(np.exp(best_tokens(log_p, n)), np.exp(log_p), strict=True):
        expected = np.zeros(4)
        for draws in product(range(4), repeat=n):
            winners = [v for v in draws if p[v] == max(p[list(draws)])]
            for v in winners:
                expected[v] += p[list(draws)].prod() / len(winners)
        np.testing.assert_allclose(found, expected, rtol=1e-12)


def test_the_best_of_many_has_finite_logarithms() -> None:
    found = best_tokens(np.asarray(log_softmax([[0.0, -80.0, -90.0]], axis=1)), 64)
    np.testing.assert_allclose(found[0, 1:], [64 * -80.0, 64 * -90.0], rtol=1e-4)  # F(v)^n, F(v) about p(v)


@pytest.mark.parametrize("distance", [0.1, 0.413, 1.0])
def test_all_three_are_as_far_as_was_asked(distance: float) -> None:
    log_p = laws(1)
    temperature = colder_tokens(log_p, 0.1)
    assert 0 < temperature < 1
    assert kl(at_temperature(log_p, temperature), log_p) == pytest.approx(0.1, abs=1e-5)
    kept = kept_tokens(log_p, distance)
    assert kl(kept, log_p) == pytest.approx(distance, abs=1e-9)
    assert np.exp(kept).sum() / len(log_p) == pytest.approx(1, abs=1e-12)
    # A threshold: whatever is likelier than the row that is kept by lot is kept alike, and nothing below.
    share = np.exp(kept - log_p).ravel()[np.argsort(-log_p, axis=None)]
    whole = int((share > share[0] * (1 - 1e-12)).sum())
    assert 0 < share[whole] < share[0]
    assert not share[whole + 1 :].any()


def test_a_threshold_above_all_rows_is_refused() -> None:
    with pytest.raises(InputError, match=r"no threshold is so far from the teacher; got .KL 9.; lower best_of"):
        kept_tokens(laws(1), 9.0)


def test_students_of_next_tokens_are_closed_forms(monkeypatch: pytest.MonkeyPatch) -> None:
    # A law on a constant alone learns frequencies, one with a direction for each context everything; the teacher is the
    # former.
    truths = [0.4 * laws(w, contexts=30) for w in (1, 2, 3)]
    truths = [np.asarray(log_softmax(x, axis=1)) for x in truths]
    each = [Contexts(p, tuple("abcd"), (np.ones((len(p), 1)), np.eye(len(p)))) for p in truths]
    monkeypatch.setattr(equal_kl_data, "token_worlds", lambda *_: iter(each))
    monkeypatch.setattr("hydrometer.claims.next_tokens._SLOPE", 1e-7)
    asked = Tokens(layers=(0, 1), teacher=0, best_of=(4, 3), distill=400_000, train=4_000_000, penalty=1e-3)
    world = World(students=(1,), train=50, distill=50, probe=1000, language_model=asked)
    measured = measure(world, range(2))
    found, notes = {c.condition: c.estimate for c in measured.checks}, measured.notes

    def frequencies(x: np.ndarray) -> np.ndarray:
        with np.errstate(divide="ignore"):
            return np.log(np.exp(x).mean(0))[None].repeat(len(x), 0)

    def expected(way: str, n: int, figure: str, *, whole: bool = False, own: bool = True) -> float:
        out = []
        for p in truths:
            teacher = p if own else frequencies(p)
            best = best_tokens(teacher, n)
            distance = kl(best, teacher)
            cold = at_temperature(teacher, colder_tokens(teacher, distance))
            data = [best if way == "best of n" else kept_tokens(teacher, distance), cold]
            if not whole:
                data = [frequencies(x) for x in data]
            kls = [kl(x, p) if figure == "KL(student, truth)" else kl(p, x) for x in data]
            out.append(kls[0] - kls[1])
        return float(np.mean(out))

    small = "next tokens, student of 0 layers"
    for figure in ("KL(student, truth)", "KL(truth, student)"):
        for way in ("best of n", "rejection"):
            name = f"{figure}, {way}, {small}"
            assert found[name].value == pytest.approx(expected(way, 4, figure), abs=1e-4)
            assert found[f"{name}, n = 3"].value == pytest.approx(expected(way, 3, figure), abs=1e-4)
            rows = found[f"{name}, 400000 rows"].value
            assert rows == pytest.approx(expected(way, 4, figure), abs=0.02)
            assert abs(rows - found[name].value) > 1e-6  # drawn
            if figure == "KL(student, truth)":  # of one law in all contexts some ids are hardly kept
                value = expected(way, 4, figure, own=False)
                assert found[f"{name}, fitted teacher"].value == pytest.approx(value, abs=0.01)
        value = expected("best of n", 4, figure, whole=True)  # the penalty lifts the rarest tokens of the data
        assert found[f"{figure}, best of n, next tokens, student of 1 layers"].value == pytest.approx(
            value, rel=0.06, abs=1e-3
        )
    assert len(found) == 4 + 20
    distance = np.mean([kl(best_tokens(p, 3), p) for p in truths])
    temperature = np.mean([colder_tokens(p, kl(best_tokens(p, 3), p)) for p in truths])
    said = [note for note in notes if note.startswith("Next tokens, best of 3, teacher the model itself: ")]
    assert f" {distance:.3g} nats a token" in said[0]
    assert f"temperature {temperature:.2g};" in said[0]


def test_chains_alone_tell_how_long_the_rows_are() -> None:
    world = World(students=(1,), train=200, distill=1000, probe=20_000)
    found = measure(world, range(2))
    assert len(found.checks) == 4
    said = next(note for note in found.notes if note.startswith("Mean length"))
    lengths = {
        name: float(value) for name, value in re.findall(r"(colder|best of n|rejection|as drawn) ([\d.]+\d)", said)
    }
    expected = []
    for seed in range(2):
        truth = world.truth(world.order, seed)
        rows = truth.sample(world.train, seed=Stream(seed).child("equal-kl-data", "train"))
        expected.append(world.fitted(rows, world.teacher).sample(50_000, seed=9).lengths.mean())
    assert lengths["as drawn"] == pytest.approx(np.mean(expected), rel=0.03)
    assert lengths["best of n"] < 0.6 * lengths["colder"]


def test_a_teacher_of_layers_that_nobody_has_is_refused() -> None:
    with pytest.raises(SpecError, match="teacher's number of layers is one of layers") as e:
        measure_of(load_claim("equal-kl-data", ["world.language_model.teacher=12"]))
    assert "\n" not in str(e.value)
