"""Students of teachers by enumeration of all strings, and the choice that is held out."""

from __future__ import annotations

from itertools import product
from pathlib import Path

import numpy as np
import pytest
import torch

from hydrometer.claims.measures import teacher_too_good
from hydrometer.claims.measures.teacher_too_good import Mixtures, Tokens, World, held_out, measure, student_of
from hydrometer.claims.next_tokens import drawn, token_worlds
from hydrometer.claims.worlds import mixture_entropy
from hydrometer.core.errors import InputError, SpecError
from hydrometer.core.rng import Stream
from hydrometer.core.spec import Selectivity
from hydrometer.metrics.exact import judge_exact
from hydrometer.models.markov.law import Markov
from hydrometer.models.markov.spec import MarkovTruth
from hydrometer.models.mixture.spec import MixtureWorld
from tiny import make_llama, make_tokenizer

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


def _regression(states: np.ndarray, counts: np.ndarray, penalty: float) -> np.ndarray:
    """By autograd in float64."""
    x, n = torch.tensor(states), torch.tensor(counts)
    w = torch.zeros(x.shape[1], n.shape[1], dtype=torch.float64, requires_grad=True)
    search = torch.optim.LBFGS(
        [w], max_iter=2000, tolerance_grad=1e-9, tolerance_change=0, line_search_fn="strong_wolfe"
    )

    def loss() -> torch.Tensor:
        search.zero_grad()
        value = penalty / 2 * (w * w).sum() - (n * (x @ w).log_softmax(1)).sum()
        value.backward()
        return value

    search.step(loss)
    return (x @ w).softmax(1).detach().numpy()


def test_students_of_next_tokens_are_as_autograd_finds_them(tmp_path: Path) -> None:
    make_llama(vocab=24, seed=3).save_pretrained(tmp_path)
    make_tokenizer(24).save_pretrained(tmp_path)
    sizes = {"prompts": 4, "longest": 60, "max_new_tokens": 9, "positions": 6, "worlds": 2, "ids": 6, "directions": 4}
    settings = {"layers": (1, 2), "student": 1, "rows": (50, 200), "temperatures": (1.0, 0.5), "distill": 100}
    world = Tokens(source=str(tmp_path), **sizes, **settings, narrow=2, penalty=0.5)
    wide, narrow = teacher_too_good._tokens(world, 3)
    assert [f.students["kl_truth_student"].shape for f in (wide, narrow)] == [(2, 2, 2, 2), (2, 1, 1, 2)]
    stream = Stream(3).child("teacher-too-good", "tokens")
    contexts = list(token_worlds(world, stream.child("answers")))[1]
    p = np.exp(contexts.log_p)
    for found, directions, i, j, temperature in ((wide, 4, 1, 1, 0.5), (narrow, 2, 0, 0, 1.0)):
        one, two = (np.column_stack([s[:, :directions], s[:, -1]]) for s in contexts.states)
        teacher = _regression(two, drawn(contexts.log_p, 200, stream.child("1", "200")), 0.5)
        cold = teacher ** (1 / temperature)
        cold /= cold.sum(1, keepdims=True)
        student = _regression(one, cold * 100 / len(cold), 0.5)
        kl = [(a * np.log(a / b)).sum() / len(p) for a, b in ((p, teacher), (p, student), (student, p))]
        mine = [found.own[1, i, 1], *(found.students[f][1, i, j, 1] for f in ("kl_truth_student", "kl_student_truth"))]
        np.testing.assert_allclose(mine, kl, rtol=2e-3)
        assert abs(mine[0] - mine[1]) > 0.02 * mine[0]  # another would be told apart
    with pytest.raises(SpecError, match="the student's number of layers is one of layers"):
        Tokens(layers=(1, 2), student=3)


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
