"""Answers as points against all answers there are: a small model's, enumerated with transformers and numpy."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch

from hydrometer.claims.claim_verdict import over_worlds
from hydrometer.claims.embedded_answers import AnswerSets, AnswerWorld, answer_sets, pseudo_values, shared_mass
from hydrometer.claims.mauve import mauve, mauve_of_rows
from hydrometer.claims.measures.sample_metrics import World, measure, neighbour_figures
from hydrometer.core.errors import InputError, SpecError
from hydrometer.core.rng import Stream
from hydrometer.core.statistics.estimate import Estimate
from hydrometer.models.causal_lm.data.prompts import read_prompts
from hydrometer.models.causal_lm.inference.model import CausalLM
from hydrometer.models.causal_lm.truth_spec import PromptsFile
from hydrometer.recipes import __file__ as recipes
from tiny import make_llama, make_tokenizer

V, STOP, WIDTH, STREAM = 16, 1, 32, Stream(0).child("nearest-neighbours", "answers")


@dataclass(frozen=True, slots=True)
class Outcomes:
    """All answers of two tokens, or of one that ends: (M,) log p and log q, prompts among them, and (M, D) embedded."""

    log_p: np.ndarray
    log_q: np.ndarray
    states: np.ndarray


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> AnswerWorld:
    folder = tmp_path_factory.mktemp("model")
    make_llama(vocab=V, seed=3).save_pretrained(folder)
    make_tokenizer(V).save_pretrained(folder)
    return AnswerWorld(
        source=str(folder), prompts=3, longest=60, max_new_tokens=2, temperature=0.5, sets=8, points=(24, 144),
        directions=(2, 3),
    )  # fmt: skip


@pytest.fixture(scope="module")
def sets(world: AnswerWorld) -> AnswerSets:
    return answer_sets(world, STREAM.child("drawn"))


@pytest.fixture(scope="module")
def outcomes(world: AnswerWorld) -> Outcomes:
    file = PromptsFile(file=str(Path(recipes).with_name("user-instructions.jsonl")), chat=True)
    every = read_prompts(file, CausalLM.from_pretrained(world.source).tokenizer)
    network = make_llama(vocab=V, seed=3).eval()
    log_p, log_q, states = [], [], []
    for prompt in [ids for ids in every.ids if len(ids) <= world.longest][: world.prompts]:
        pairs = torch.cartesian_prod(torch.arange(V), torch.arange(V))
        asked = torch.cat([torch.tensor(prompt).repeat(V * V, 1), pairs], dim=1)
        with torch.no_grad():
            out = network(asked, output_hidden_states=True, use_cache=False)
        logits, last = out.logits[:, -3:-1].double(), out.hidden_states[-1][:, -2:].double().numpy()
        ended = (pairs[:, 0] == STOP).numpy()
        kept = ~ended | (pairs[:, 1] == 0).numpy()  # an answer that ends has one token
        for temperature, column in ((1.0, log_p), (world.temperature, log_q)):
            both = (logits / temperature).log_softmax(-1).gather(2, pairs[:, :, None])[:, :, 0].numpy()
            column.append(np.where(ended, both[:, 0], both.sum(1))[kept] - np.log(world.prompts))
        states.append(np.where(ended[:, None], last[:, 0], last.mean(1))[kept])
    found = Outcomes(*(np.concatenate(x) for x in (log_p, log_q, states)))
    assert np.exp(found.log_p).sum() == pytest.approx(1)
    assert np.exp(found.log_q).sum() == pytest.approx(1)
    return found


def test_every_point_is_an_answer_with_its_probabilities(sets: AnswerSets, outcomes: Outcomes) -> None:
    for points, gaps in ((sets.real, sets.of_real), (sets.colder, sets.of_colder)):
        away = np.linalg.norm(points.reshape(-1, 1, WIDTH) - outcomes.states, axis=2)
        nearest = away.argmin(axis=1)
        assert away.min(axis=1).max() < 1e-4
        np.testing.assert_allclose(gaps.ravel(), (outcomes.log_p - outcomes.log_q)[nearest], atol=1e-4)


def test_answers_are_drawn_from_the_laws_each_for_itself(sets: AnswerSets, outcomes: Outcomes) -> None:
    for points, log in ((sets.real, outcomes.log_p), (sets.again, outcomes.log_p), (sets.colder, outcomes.log_q)):
        mean = np.exp(log) @ outcomes.states
        spread = np.sqrt(np.exp(log) @ np.square(outcomes.states - mean))
        z = (points.mean(axis=(0, 1)) - mean) / spread * np.sqrt(points[..., 0].size)
        assert np.abs(z).max() < 4.5
        assert np.square(z).mean() > 0.05
        each = (points.mean(axis=1) - mean) / spread * np.sqrt(points.shape[1])  # sets spread as independent points do
        assert 0.5 < np.square(each).mean() < 1.7
    assert not np.array_equal(sets.real, sets.again)


def test_figures_of_the_laws_are_those_of_enumeration(sets: AnswerSets, outcomes: Outcomes) -> None:
    p, q = np.exp(outcomes.log_p), np.exp(outcomes.log_q)
    for figure, exact in ((shared_mass, np.minimum(p, q).sum()), (mauve_of_rows, mauve(p, q))):
        found = over_worlds(sets.own(figure))
        assert abs(found.value - exact) < 4 * found.se  # type: ignore[operator]
        assert 4 * found.se < 1 - exact  # type: ignore[operator]
    alike = [1 - float(x @ np.power(1 - x, sets.of_real.size - 1)) for x in (p, q)]
    assert sets.alike == pytest.approx(alike, abs=0.05)
    assert alike[1] - alike[0] > 0.01


def test_mauve_of_rows_that_stand_as_their_laws_is_mauve() -> None:
    p, q = np.array([2, 1, 1, 0]) / 4, np.array([1, 1, 1, 1]) / 4
    with np.errstate(divide="ignore"):
        gap = np.log(p / q)
    assert mauve_of_rows(gap[[0, 0, 1, 2]], gap) == pytest.approx(mauve(p, q), rel=1e-12)


def test_pseudo_values_take_their_means_bias_away() -> None:
    x = np.random.default_rng(0).normal(1.0, 1.0, (5, 3))
    found = pseudo_values(lambda a, _: float(a.mean()) ** 2, x, x)
    by_set = x.mean(axis=1)  # of a square, the mean of the products of different sets
    assert found.mean() == pytest.approx((by_set.sum() ** 2 - np.square(by_set).sum()) / 20)


def test_checks_are_figures_of_sets_less_the_laws_own(world: AnswerWorld, sets: AnswerSets) -> None:
    asked = World(dimensions=(1,), points=(10, 20), neighbours=(2, 4), per_cluster=5, language_model=world)
    measured = measure(asked, range(2))
    found = {(c.condition, c.figure): c for c in measured.checks if "answers" in c.condition}
    assert {c.condition.rpartition(", ")[2] for c in found.values()} == {"2 dimensions", f"{WIDTH} dimensions"}
    assert len(found) == 2 * 9

    def check(laws: str, start: str) -> Estimate:
        where = f"{laws}, {WIDTH} dimensions"
        return next(c.estimate for (w, f), c in found.items() if w == where and f.startswith(start))

    def figures(generated: np.ndarray, n: int) -> np.ndarray:
        def both(real: np.ndarray, other: np.ndarray) -> float:
            x = neighbour_figures(real, other, (2,))[2]
            return (x["precision"] + x["recall"]) / 2

        parts = zip(*(x.reshape(-1, n, WIDTH) for x in (sets.real, generated)), strict=True)
        return np.array([both(*part) for part in parts]).reshape(world.sets, -1).mean(axis=1)

    def same(found: Estimate, values: np.ndarray) -> None:
        expected = over_worlds(values, "probability")
        assert (found.value, found.se, found.n) == pytest.approx((expected.value, expected.se, world.sets), rel=1e-9)

    apart = "answers at temperatures 1 and 0.5"
    same(
        check("answers of equal laws", "the same less half"),
        figures(sets.again, 144) - 1 - (figures(sets.again, 24) - 1) / 2,
    )
    same(check(apart, "the same less alpha(1)"), figures(sets.colder, 144) - sets.own(shared_mass))
    one = check(f"MAUVE of {apart}", "MAUVE, less").value
    note = next(n for n in measured.notes if "at 144 points and 28 clusters" in n and apart in n)
    mean = float(note.rpartition(f"{WIDTH}: ")[2].rstrip("."))
    assert one == pytest.approx(mean - sets.own(mauve_of_rows).mean(), abs=1e-3)


def test_worlds_that_make_no_sense_are_refused(world: AnswerWorld) -> None:
    for points in ((32, 32), (32, 80), (1, 4)):
        with pytest.raises(SpecError, match="whole parts"):
            AnswerWorld(points=points)
    with pytest.raises(SpecError, match="a number or more"):
        AnswerWorld(directions=(2, 0))
    with pytest.raises(InputError, match=rf"fewer numbers; got \[99\]; {WIDTH} or fewer"):
        answer_sets(world.model_copy(update={"directions": (99,)}), STREAM)
    with pytest.raises(SpecError, match="neighbours are fewer than a language model's points; got 24"):
        measure(World(neighbours=(3, 24), language_model=world), range(2))
