"""The exact tilt of chains and its share of rare rows, against enumeration of all rows; and where the order matters."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest

from hydrometer.claims.claim_verdict import over_worlds
from hydrometer.claims.light_component import LightWorld
from hydrometer.claims.measures.align_first import Run, World, measure, rare_share, with_rare_id
from hydrometer.claims.worlds import exact_figures
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


def test_settings_change_one_thing_each() -> None:
    settings = World().settings()
    base = settings.pop("base")
    assert all(sum(a != b for a, b in zip(s, base, strict=True)) == 1 for s in settings.values())
    assert {i for s in settings.values() for i, (a, b) in enumerate(zip(s, base, strict=True)) if a != b} == set(
        range(6)
    )


SMALL = {"order": 1, "teacher": 1, "students": (1,), "vocabulary": 4, "max_new_tokens": 6, "train": 30_000}
ONE = {"strengths": (0.2,), "temperatures": (1.0,)}


def test_the_order_is_nothing_where_a_student_of_many_rows_can_be_the_target() -> None:
    world = World(**SMALL, **ONE, rarities=(0.1,), rows=(30_000,), drawn=(20_000,))
    run, setting = Run(world, 0), world.settings()["base"]
    truth = with_rare_id(world.truth(1, 0), 0.1)
    reward = np.zeros((6, 4))
    reward[0, -1] = 1.0
    unaligned = exact_figures(truth.tilted(reward, 0.2), truth, ("kl_truth_student",))["kl_truth_student"]
    for way, left in (("exact tilt", 0.005), ("policy gradient", 0.005), ("DPO", 0.05)):
        for order, end in run.ends(setting, way).items():
            assert end.kl_target_student < left * unaligned, (way, order)
            assert end.reward == pytest.approx(1, abs=0.05), (way, order)


def test_where_the_students_rows_hold_no_rare_one_samples_align_the_teacher_alone() -> None:
    world = World(**SMALL, **ONE, rarities=(0.01,), rows=(20,), drawn=(10_000,), smoothing=1e-4)
    run, setting = Run(world, 1), world.settings()["base"]
    ends = {way: run.ends(setting, way) for way in ("exact tilt", "policy gradient", "DPO")}
    for way, end in ends.items():
        assert end["last"].rare_rows == 0
        assert end["first"].reward > 0.4, way
        assert end["last"].reward < 0.01, way
    trace = ends["exact tilt"]["last"].reward  # what smoothing left, which only a tilt sees
    assert trace > 50 * max(ends["policy gradient"]["last"].reward, ends["DPO"]["last"].reward)


def test_a_gap_is_paired() -> None:
    world = World(**SMALL, **ONE, rarities=(0.1,), rows=(50, 500), drawn=(1000,), light=LightWorld(train=2000))
    measured = measure(world, range(3))
    run = [Run(world, seed).ends(world.settings()["500 rows"], "policy gradient") for seed in range(3)]
    wanted = over_worlds([x["first"].recall - x["last"].recall for x in run])
    (found,) = (c for c in measured.checks if c.condition == "recall, 500 rows" and "policy" in c.figure)
    assert (found.estimate.value, found.estimate.se) == (wanted.value, wanted.se)
    assert len(measured.checks) == 2 * 2 * 2 + 5 * 3
