"""Tilted chains against enumeration: every row of a small world, its probability, Z and divergence."""

import itertools
import math
from typing import Any

import numpy as np
import pytest

import hydrometer as hm
from hydrometer.core.errors import InputError, SpecError
from hydrometer.core.rng import Stream
from hydrometer.models.base import FitRequest
from hydrometer.models.families import parse_run_spec
from hydrometer.models.markov.family import MARKOV
from hydrometer.models.markov.law import END, Markov
from hydrometer.models.markov.spec import MarkovLevel, MarkovTruth
from hydrometer.models.rows.sequences import Sequences

V, LONGEST = 4, 5


def every_row() -> Sequences:
    rows = [[*body, END] for n in range(LONGEST) for body in itertools.product(range(1, V), repeat=n)]
    rows += [list(body) for body in itertools.product(range(1, V), repeat=LONGEST)]
    ids, n = np.zeros((len(rows), LONGEST), np.int64), len(rows)
    for i, row in enumerate(rows):
        ids[i, : len(row)] = row
    lengths = np.array([len(row) for row in rows])
    return Sequences(((),), np.zeros(n, np.int64), ids, lengths, ids[np.arange(n), lengths - 1] == END, np.zeros(n))


ALL = every_row()
REWARDS: dict[str, tuple[object, Any]] = {  # as a specification writes it, and of one row
    "length": ("length", len),
    "-length": ("-length", lambda row: -len(row)),
    "tokens": ({"tokens": {2: 1.5, 0: -0.75}}, lambda row: 1.5 * row.count(2) - 0.75 * row.count(0)),
    "stopped": ({"tokens": {0: 1}}, lambda row: float(row[-1] == 0)),
    "starts_with": ({"starts_with": 3}, lambda row: float(row[0] == 3)),
    "empty": ({"starts_with": 0}, lambda row: float(row[0] == 0)),
}
FIRST = {
    "alone": {}, "temperature": {"temperature": 0.6}, "dropping": {"temperature": 1.3, "top_k": 3, "min_p": 0.05},
    "powered": {"sequence_power": 1.7}, "neutral": {"temperature": 1},
}  # fmt: skip


def chain(order: int) -> Markov:
    return MarkovTruth(order=order, vocabulary=V, max_new_tokens=LONGEST, end=0.2, seed=order).law()


def tilted(reward: object, strength: float, **others: Any) -> hm.Selectivity:
    return hm.Selectivity.model_validate({"tilt": {"reward": reward, "strength": strength}, **others})


@pytest.mark.parametrize("strength", [0.4, 3.0])
@pytest.mark.parametrize("order", [0, 2])
@pytest.mark.parametrize("first", FIRST)
@pytest.mark.parametrize("name", REWARDS)
def test_a_tilted_chain_is_the_enumerated_law(name: str, first: str, order: int, strength: float) -> None:
    written, of_row = REWARDS[name]
    law = chain(order)
    base = law if first == "alone" else law.select(hm.Selectivity(**FIRST[first]))
    log_p = base.log_prob(ALL)
    reward = np.array([of_row(ALL.row(i).tolist()) for i in range(len(ALL))], float)
    whole = log_p + reward / strength
    log_z = float(np.logaddexp.reduce(whole))
    found = law.select(tilted(written, strength, **FIRST[first]))
    log_q = found.log_prob(ALL)
    can = np.isfinite(log_p)
    assert (np.isfinite(log_q) == can).all()
    np.testing.assert_allclose(log_q[can], whole[can] - log_z, rtol=0, atol=1e-12)
    q = np.exp(log_q[can])
    kl = float(q @ (log_q[can] - log_p[can]))
    assert kl == pytest.approx(float(q @ reward[can]) / strength - log_z, abs=1e-12)  # KL(q, p) = E_q r / b - log Z
    judged = hm.judge_exact(base, found)["kl_student_truth"].value
    assert judged == pytest.approx(kl, abs=1e-11)


def test_the_tilt_has_the_largest_reward_less_divergence() -> None:
    law, strength = chain(1), 0.7
    reward = np.array([REWARDS["tokens"][1](ALL.row(i).tolist()) for i in range(len(ALL))])
    log_p = law.log_prob(ALL)

    def aim(other: Markov) -> float:
        log_q = other.log_prob(ALL)
        return float(np.exp(log_q) @ (reward - strength * (log_q - log_p)))

    best = aim(law.select(tilted(REWARDS["tokens"][0], strength)))
    for others in ([tilted(REWARDS["tokens"][0], b) for b in (0.6, 0.8)], [hm.Selectivity(temperature=0.9)]):
        assert all(aim(law.select(s)) < best - 1e-6 for s in others)


def test_rows_are_drawn_from_the_tilt() -> None:
    law, n = chain(2), 40_000
    found = law.select(tilted({"starts_with": 3}, 0.5, temperature=0.8))
    x = found.sample(n, seed=Stream(5))
    p = np.exp(found.log_prob(ALL))
    for value, of_rows in ((ALL.ids[:, 0] == 3, x.ids[:, 0] == 3), (ALL.lengths, x.lengths)):
        mean = float(p @ value)
        error = math.sqrt(float(p @ np.square(value)) - mean**2) / math.sqrt(n)
        assert abs(of_rows.mean() - mean) < 4 * error
    np.testing.assert_allclose(x.log_prob, found.log_prob(x), rtol=1e-12)


def test_the_best_of_candidates_is_chosen_from_the_tilt() -> None:
    law = chain(1)
    s = tilted("-length", 0.5, best_of=4, rank_by="length")
    longest = hm.choose(law, s).sample(4000, seed=Stream(1))
    base = law.select(tilted("-length", 0.5))
    p = np.bincount(ALL.lengths, np.exp(base.log_prob(ALL)), minlength=LONGEST + 1)
    below = np.cumsum(p) ** 4  # the longest of four
    mean = float(np.diff(below) @ np.arange(1, LONGEST + 1))
    assert abs(longest.lengths.mean() - mean) < 4 * longest.lengths.std() / math.sqrt(4000)


@pytest.mark.parametrize(
    ("reward", "strength", "says"),
    [
        ({"quadratic": {"center": [0], "width": 1}}, 1, "use length, -length, tokens or starts_with"),
        ({"starts_with": 4}, 1, "names an id of the 4"),
        ({"tokens": {1: 1, 9: 1}}, 1, "names an id of the 4"),
        ("length", 1e-5, "at most 100000 nats of a row"),
        ({"tokens": {1: 1e300}}, 1e-300, "at most 100000 nats of a row"),
    ],
)
def test_what_a_chain_cannot_be_tilted_by_is_refused(reward: object, strength: float, says: str) -> None:
    s = tilted(reward, strength)
    with pytest.raises(InputError, match=says):
        chain(1).select(s)
    body = {
        "family": "markov", "truth": {"order": 1, "vocabulary": V, "max_new_tokens": LONGEST}, "teacher": {"order": 1},
        "student": {"order": 0}, "selectivity": [{"temperature": 1}],
    }  # fmt: skip
    for name in ("selectivity", "decoding", "target"):
        value = s.to_json() if name == "target" else [s.to_json()]
        with pytest.raises(SpecError, match=says) as caught:
            parse_run_spec({"name": "x", "chains": {"x": body | {name: value}}}, "here")
        assert "\n" not in str(caught.value)


def test_generalised_kl_refuses_a_tilt_of_what_drops_ids() -> None:
    body = {
        "family": "markov", "truth": {"order": 1, "vocabulary": V, "max_new_tokens": LONGEST}, "teacher": {"order": 1},
        "student": {"order": 0}, "loss": ["generalised_kl"],
    }  # fmt: skip
    given = [tilted("length", 1.0, top_k=2).to_json()]
    with pytest.raises(SpecError, match="before it drops ids"):
        parse_run_spec({"name": "x", "chains": {"x": body | {"selectivity": given}}}, "here")
    given[0].pop("top_k")
    parse_run_spec({"name": "x", "chains": {"x": body | {"selectivity": given}}}, "here")


@pytest.mark.parametrize("loss", ["kl_teacher_student", "kl_student_teacher", "generalised_kl"])
def test_objectives_see_the_tilted_teacher(loss: str) -> None:
    """A reward for the first id changes the start's context alone: a student of its order has it whole."""
    teacher, s = chain(1), tilted({"starts_with": 3}, 0.5)
    data = teacher.sample(200, seed=Stream(0))
    level = MarkovLevel(order=1, smoothing=0)
    request = FitRequest(data, None, teacher, teacher, level, "teacher", loss, Stream(1), selectivity=s)
    found, wanted = MARKOV.fit(request).model.log_prob(ALL), teacher.select(s).log_prob(ALL)
    assert np.abs(wanted - teacher.log_prob(ALL)).max() > 0.5
    np.testing.assert_allclose(found, wanted, atol=1e-8)
