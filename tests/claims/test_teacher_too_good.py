"""Students of teachers by enumeration of all strings, and the choice that is held out."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest

from hydrometer.claims.measures import teacher_too_good
from hydrometer.claims.measures.teacher_too_good import Mixtures, World, held_out, measure, student_of
from hydrometer.claims.worlds import mixture_entropy
from hydrometer.core.errors import InputError
from hydrometer.core.rng import Stream
from hydrometer.core.spec import Selectivity
from hydrometer.metrics.exact import judge_exact
from hydrometer.models.markov.law import Markov
from hydrometer.models.markov.spec import MarkovTruth
from hydrometer.models.mixture.spec import MixtureWorld

V, L = 3, 4


def _strings() -> list[tuple[int, ...]]:
    out = []
    for n in range(1, L + 1):
        for body in product(range(1, V), repeat=n - 1):
            out += [(*body, last) for last in range(V) if last == 0 or n == L]
    return out


def _mass(law: Markov, row: tuple[int, ...]) -> float:
    """Probability of a string, from the table's own digits."""
    padded, p = (V,) * law.order + row, 1.0
    for t, v in enumerate(row):
        context = 0
        for x in padded[t : t + law.order]:
            context = context * (V + 1) + x
        p *= float(np.exp(law.log_table[context, v]))
    return p


@pytest.mark.parametrize("temperature", [1.0, 0.6])
@pytest.mark.parametrize("order", [0, 1])
def test_students_are_as_enumerated(order: int, temperature: float) -> None:
    truth = MarkovTruth(order=2, vocabulary=V, max_new_tokens=L, end=0.2, seed=0).law()
    teacher = MarkovTruth(order=2, vocabulary=V, max_new_tokens=L, end=0.2, seed=1).law()
    teacher = teacher.select(Selectivity(temperature=temperature))
    rows = _strings()
    p, t = (np.array([_mass(law, r) for r in rows]) for law in (truth, teacher))
    assert p.sum() == pytest.approx(1, abs=1e-12)
    counts = np.zeros((V + 1, V))
    for r, m in zip(rows, t, strict=True):
        for before, v in zip((V, *r), r, strict=False):
            counts[before if order else 0, v] += m
    table = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1e-300)
    q = np.array([np.prod([table[b if order else 0, v] for b, v in zip((V, *r), r, strict=False)]) for r in rows])
    found = judge_exact(truth, student_of(teacher, order), strings=0)
    assert found["kl_truth_student"].value == pytest.approx(p @ np.log(p / q), rel=1e-9)
    assert found["kl_student_truth"].value == pytest.approx(q @ np.log(q / p), rel=1e-9)


def test_students_of_mixtures_are_in_closed_form() -> None:
    truth = MixtureWorld(n_components=3, n_features=1)
    mixtures = Mixtures(truth=truth, student=1, teachers=(1, 3), rows=(200,), powers=(1.0,), distill=50_000)
    found = teacher_too_good._mixtures(mixtures, range(2))
    for w in range(2):
        law = truth.model_copy(update={"seed": w}).law()
        x = law.sample(200, seed=Stream(w).child("teacher-too-good", "mixtures", "200")).x
        mean, variance = (
            x.mean(),
            x.var() + 0.01,
        )  # a mixture of one, and its student, up to 50,000 points and twice 0.01
        of_law, spread = (float(m[0].item()) for m in law.moments())
        kl = -mixture_entropy(law) + 0.5 * (np.log(2 * np.pi * variance) + (spread + (of_law - mean) ** 2) / variance)
        assert found.own[w, 0, 0] == pytest.approx(kl, rel=1e-4)
        assert found.students["kl_truth_student"][w, 0, 0, 0] == pytest.approx(kl, abs=0.01)
        assert abs(found.own[w, 0, 1] - kl) > 0.1  # another teacher would be told apart


def test_the_choice_is_held_out() -> None:
    # Even worlds choose the second column, odd ones would choose the first.
    values = np.array([[3.0, 1.0, 2.0], [0.0, 5.0, 2.0], [3.0, 1.0, 2.0], [0.0, 4.0, 3.0]])
    best, gap = held_out(values)
    assert best == 1
    assert gap.tolist() == [-3.0, -1.0]
    with pytest.raises(InputError, match="four worlds"):
        held_out(values[:3])


def test_a_small_world_repeats() -> None:
    truth = MixtureWorld(n_components=3, n_features=1)
    mixtures = Mixtures(truth=truth, student=1, teachers=(1, 2, 3), rows=(100,), powers=(1.0,), distill=100)
    chains = {"order": 2, "vocabulary": 3, "max_new_tokens": 3, "teachers": (0, 1, 2), "rows": (50,)}
    world = World(**chains, temperatures=(1.0, 0.6), mixtures=mixtures)
    a, b = (measure(world, range(4)) for _ in range(2))
    assert a == b
    assert len(a.checks) == 4 + 2
    gap = a.checks[-1].estimate.value
    other = measure(world.model_copy(update={"mixtures": mixtures.model_copy(update={"rows": (400,)})}), range(4))
    assert other.checks[-1].estimate.value != gap
    assert other.checks[:4] == a.checks[:4]
