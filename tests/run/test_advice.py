"""The decision, through simulated runs whose best setting is known; its parts against closed forms."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass, replace

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.special import ndtr, stdtrit

from hydrometer.core.errors import InputError
from hydrometer.core.rng import Stream
from hydrometer.core.statistics.estimators import mean_variance
from hydrometer.core.statistics.sampling_design import Clusters
from hydrometer.core.statistics.seeds import crossed_variance
from hydrometer.stages.statistics.covariance import Arm, Design, Joint, row_covariance
from hydrometer.stages.statistics.decision import ERROR, Need, Problem, confirmed, decide, left_out

Floats = NDArray[np.float64]

RUNS = 200
# Between seeds, nats per token. Decodings of one model share its luck; cold students are the steadiest.
SPREAD = {"direct": 0.05, "distilled 1": 0.08, "distilled 0.8": 0.06, "distilled 0.6": 0.03}
DECODED = {"direct at 0.8": "direct", "direct at 0.6": "direct"}
OWN, ROW, ROW_ARM, ROW_SEED = 0.9, 0.8, 0.3, 0.2  # standard deviations of rows: a law's own; the truth's; interactions

CLEAR = {
    "direct": (-5.2, -5.1), "direct at 0.8": (-4.3, -5.6), "direct at 0.6": (-3.2, -6.6),
    "distilled 1": (-5.4, -5.3), "distilled 0.8": (-3.9, -5.35), "distilled 0.6": (-3.0, -6.2),
}  # fmt: skip
NEED = Need(max_recall_loss=0.3)


@dataclass(frozen=True)
class World:
    """Expected (precision, recall) of every candidate, nats per token; seeds, and rows behind a figure."""

    figures: dict[str, tuple[float, float]]
    seeds: int = 3
    rows: int = 64

    @property
    def design(self) -> Design:
        return Design(self.rows, rows_shared=True)

    def luck(self, rng: np.random.Generator) -> dict[str, Floats]:
        """What seeds do to each model's precision and recall, (S, 2)."""
        return {m: rng.normal(0, sd, (self.seeds, 2)) * (1, 0.5) for m, sd in SPREAD.items()}

    def arms(self, rng: np.random.Generator, luck: dict[str, Floats]) -> list[Arm]:
        """Judge all candidates: rows of the truth are shared by all of them and by all seeds."""
        s, n = self.seeds, self.rows
        row = rng.normal(0, ROW, n)
        out: list[Arm] = []
        for name, (precision, recall) in self.figures.items():
            moved = luck[DECODED.get(name, name)]
            table = recall + moved[:, 1:] + row + rng.normal(0, ROW_ARM, n) + rng.normal(0, ROW_SEED, (s, n))
            drawn = precision + moved[:, 0] + rng.normal(0, OWN / math.sqrt(n), s)
            own = np.column_stack([np.full(s, OWN**2 / n), np.zeros(s)])
            cost = 1.0 if name.startswith("distilled") else 0.0
            out.append(Arm(name, np.column_stack([drawn, table.mean(axis=1)]), own, table, cost=cost))
        return out


def answers(world: World, need: Need = NEED, baseline: str = "distilled 1", runs: int = RUNS) -> Counter[str]:
    """What the verb would answer in each of many runs: the candidate it names, or why it names none."""
    rng = np.random.default_rng(20260801)
    names = list(world.figures)
    found: Counter[str] = Counter()
    for _ in range(runs):
        luck = world.luck(rng)
        d = decide(world.arms(rng, luck), world.design, need, names.index(baseline))
        answer = names[d.leader] if d.status == "decided" else d.reason or d.status
        if d.status == "decided":  # the same models on fresh rows, as the verb judges them
            chosen = dict.fromkeys([d.leader, names.index(baseline), *([] if d.runner_up is None else [d.runner_up])])
            again = world.arms(rng, luck)
            problem = Problem([again[g] for g in chosen], world.design, need, list(chosen).index(names.index(baseline)))
            rival = None if d.runner_up is None else list(chosen).index(d.runner_up)
            if not confirmed(problem, list(chosen).index(d.leader), rival):
                answer = "unconfirmed"
        found[answer] += 1
    return found


def named(found: Counter[str], *right: str) -> tuple[float, float]:
    """Shares of runs in which a right, and a wrong, candidate was named."""
    total = sum(found.values())
    wrong = sum(n for k, n in found.items() if k in CLEAR and k not in right)
    return sum(found[k] for k in right) / total, wrong / total


# 200 simulated runs each -----------------------------------------------------------------------------------------


def test_a_clear_winner_is_named() -> None:
    right, wrong = named(answers(World(CLEAR, seeds=5, rows=128)), "distilled 0.8")
    assert wrong <= ERROR
    assert right >= 0.75  # 0.95 by Student's t; what five seeds seem skewed by chance costs the rest
    right, wrong = named(answers(World(CLEAR, seeds=3, rows=128)), "distilled 0.8")  # t with 2 degrees of freedom
    assert wrong <= ERROR
    assert right >= 0.3


TIES = {
    "two": CLEAR | {"direct at 0.8": (-3.9, -5.35)},
    "within the margin": CLEAR | {"direct at 0.8": (-3.91, -5.35)},
    "all": dict.fromkeys(CLEAR, (-4.0, -5.3)),
    "both at the constraint's limit": CLEAR | {"direct at 0.8": (-3.9, -5.6), "distilled 0.8": (-3.9, -5.6)},
}


@pytest.mark.parametrize("seeds", [3, 6])
@pytest.mark.parametrize("tie", TIES)
def test_a_tie_is_undecided(tie: str, seeds: int) -> None:
    found = answers(World(TIES[tie], seeds=seeds))
    assert sum(found[k] for k in CLEAR) <= ERROR * RUNS, found


@pytest.mark.parametrize(
    "need", [Need(weight=0.5, margin=0.0), Need(min_precision_gain=0.5)], ids=["utility", "recall"]
)
def test_a_tie_is_undecided_whatever_is_maximised(need: Need) -> None:
    found = answers(World(dict.fromkeys(CLEAR, (-4.0, -5.3)) | {"distilled 1": (-5.0, -5.3)}, seeds=4), need)
    assert sum(found[k] for k in CLEAR) <= 2 * ERROR * RUNS, found


def test_too_little_data_is_undecided() -> None:
    little = World(CLEAR | {"direct at 0.8": (-4.05, -5.35)}, seeds=2, rows=32)
    right, wrong = named(answers(little), "distilled 0.8")
    assert wrong <= ERROR
    assert right <= 0.1
    assert answers(replace(little, seeds=1), runs=20) == {"one_seed": 20}


@pytest.mark.parametrize("distilled", [(-3.9, -5.3), (-4.4, -5.4)], ids=["equal", "worse"])
def test_where_decoding_is_as_good_distilling_is_not_recommended(distilled: tuple[float, float]) -> None:
    world = World(CLEAR | {"direct at 0.8": (-3.9, -5.3), "distilled 0.8": distilled}, seeds=5)
    right, wrong = named(answers(world), "direct at 0.8")
    assert wrong <= ERROR
    if distilled[0] < -4:
        assert right >= 0.65  # as above, for a smaller lead


def test_an_infeasible_front_runner_is_rarely_named() -> None:
    """The best objective breaks the constraint by nothing at all: the hardest case for naming it."""
    world = World(CLEAR | {"distilled 0.6": (-3.0, -5.6001)}, seeds=6)
    _, wrong = named(answers(world), "distilled 0.8")
    assert wrong <= ERROR


# the parts ---------------------------------------------------------------------------------------------------------


def one_run(world: World, seed: int = 3) -> list[Arm]:
    rng = np.random.default_rng(seed)
    return world.arms(rng, world.luck(rng))


def test_equivalent_candidates_leave_the_cheaper() -> None:
    steady = {m: np.zeros((6, 2)) for m in SPREAD}
    small = World(TIES["two"], 6, 2000)
    arms = small.arms(np.random.default_rng(0), steady)
    tight = [replace(a, values=np.array(small.figures[a.id]) + 1e-4 * (a.values - a.values.mean(0))) for a in arms]
    tight = [replace(a, rows=a.values[:, 1:] + 1e-3 * (a.rows - a.rows.mean(axis=1, keepdims=True))) for a in tight]
    d = decide(tight, small.design, NEED, 3)
    assert (d.status, d.reason) == ("undecided", "equivalent")
    assert {tight[g].id for g in d.contenders} == {"direct at 0.8", "distilled 0.8"}
    assert d.cheaper is not None
    assert tight[d.cheaper].id == "direct at 0.8"


def test_nothing_meets_the_need_and_the_nearest_is_told() -> None:
    d = decide(one_run(World(CLEAR, seeds=6)), World(CLEAR).design, Need(min_precision_gain=9), 3)
    assert d.status == "none"
    assert list(CLEAR)[d.leader] == "distilled 0.6"
    assert d.candidates[d.leader].slack["min_precision_gain"].value == pytest.approx(-6.6, abs=0.3)


def test_a_contrast_has_the_error_of_the_crossed_design() -> None:
    """Paired by row and seed, as `core.statistics.estimators` has it for one table of differences."""
    world = World(CLEAR, seeds=4, rows=64)
    arms = one_run(world)
    problem = Problem(arms, world.design, NEED, 3)
    table = arms[4].rows - arms[3].rows
    expected, _, seed_part, _ = crossed_variance(table)
    c = problem.gain(4, 1)
    assert float(c @ problem.joint.between @ c) == pytest.approx(seed_part)
    x = problem.joint.linear(c)
    assert x.value == pytest.approx(table.mean())
    assert x.se == pytest.approx(math.sqrt(expected), rel=0.02)  # a matrix is clipped as a whole
    assert x.se >= math.sqrt(seed_part)
    own = problem.joint.linear(problem.gain(4))
    difference = arms[4].values[:, 0] - arms[3].values[:, 0]
    assert own.se == pytest.approx(difference.std(ddof=1) / 2)
    assert own.df == pytest.approx(3)


def test_prompts_that_are_a_sample_are_behind_all_seeds_and_candidates() -> None:
    """16 prompts of 4 answers: recall is crossed with prompts, and no error of a candidate's own rows averages out."""
    world = World(CLEAR, seeds=3, rows=64)
    rng = np.random.default_rng(6)
    labels = Clusters(np.arange(64) % 16)
    prompts = rng.normal(0, 3, (6, 16))[:, labels.labels]
    arms = [
        replace(a, rows=a.rows + p, values=np.column_stack([a.values[:, 0], (a.rows + p).mean(axis=1)]))
        for a, p in zip(world.arms(rng, world.luck(rng)), prompts, strict=True)
    ]
    for shared in (True, False):  # rows may be each seed's own, prompts are not
        problem = Problem(arms, Design(64, shared, labels), NEED, 3)
        table = labels.collapse(arms[4].rows - arms[3].rows)
        loss = problem.joint.linear(problem.gain(4, 1))
        assert loss.se == pytest.approx(math.sqrt(crossed_variance(table)[0]), rel=0.02)
        assert loss.df < 18
        gain = problem.joint.linear(problem.gain(4))
        between = (arms[4].values[:, 0] - arms[3].values[:, 0]).var(ddof=1) / 3
        assert gain.se == pytest.approx(math.sqrt(between + 2 * OWN**2 / 64))
        plain = Problem(arms, Design(64, shared), NEED, 3)
        assert loss.se > 1.5 * plain.joint.linear(plain.gain(4, 1)).se


def test_row_covariance_generalises_the_stratified_variance() -> None:
    rng = np.random.default_rng(1)
    values, strata = rng.normal(size=(2, 60)), np.arange(60) % 4
    for s in (None, strata):
        found = row_covariance(values, s)
        assert found[0, 0] == pytest.approx(mean_variance(values[0], s))
        together = mean_variance(values[0] + values[1], s)
        assert found.sum() == pytest.approx(together)


def test_one_model_behind_all_seeds_keeps_its_own_error() -> None:
    world = World(CLEAR, seeds=4)
    arms = one_run(world)
    teacher = replace(arms[0], values=np.tile(arms[0].values[:1], (4, 1)), one_cell=True)
    joint = Joint([teacher, arms[3]], world.design)
    c = np.array([1.0, 0.0, -1.0, 0.0])
    between = arms[3].values[:, 0].var(ddof=1) / 4
    assert joint.linear(c).se == pytest.approx(math.sqrt(between + OWN**2 / world.rows))


def test_posterior_draws_have_the_spread_of_the_t_interval() -> None:
    world = World(CLEAR, seeds=4)
    problem = Problem(one_run(world), world.design, NEED, 3)
    c = problem.objective(4) - problem.objective(1)
    x = problem.joint.linear(c)
    draws = problem.joint.draws(20_000, Stream(5)) @ c
    for q in (0.05, 0.25, 0.75, 0.95):
        exact = x.value + float(stdtrit(x.df, q)) * x.se
        assert abs((draws < exact).mean() - q) < 5 * math.sqrt(q * (1 - q) / 20_000)


def test_p_best_of_two_is_the_posterior_of_their_difference() -> None:
    figures = {"direct": (-4.0, -5.0), "distilled 1": (-4.05, -5.0)}
    world = World(figures, seeds=5)
    problem = Problem(one_run(world), world.design, Need(weight=0.99), 1)
    lead = problem.lead(0, 1)
    exact = float(np.interp(lead.value / lead.se, *t_cdf(lead.df)))
    p = problem.p_best()
    assert p.sum() == pytest.approx(1)
    assert abs(p[0] - exact) < 5 * math.sqrt(exact * (1 - exact) / 4000)


def t_cdf(df: float) -> tuple[Floats, Floats]:
    q = np.linspace(1e-4, 1 - 1e-4, 9999)
    return np.asarray(stdtrit(df, q)), q


def test_the_seeds_asked_for_do_decide() -> None:
    """With as many seeds as it says, a gap that is as estimated is shown about one time in two."""
    level, gap, sd = 0.025, 0.2, 0.1
    rng = np.random.default_rng(4)
    values = np.zeros((5, 2, 2))
    noise = rng.normal(size=5)
    values[:, 0, 0] = gap + sd * (noise - noise.mean()) / noise.std(ddof=1)
    rows = np.zeros((5, 50))
    arms = [Arm(str(g), values[:, g], np.zeros((5, 2)), rows) for g in range(2)]
    seeds, more_rows, _ = Joint(arms, Design(50, rows_shared=True)).needed(np.array([1.0, 0, -1, 0]), gap, level)
    exact = next(s for s in range(2, 99) if gap > float(stdtrit(s - 1, 1 - level)) * sd / math.sqrt(s))
    assert exact == 4
    assert seeds == 5  # never fewer than there are
    assert more_rows == 50
    far, *_ = Joint(arms, Design(50, rows_shared=True)).needed(np.array([1.0, 0, -1, 0]), gap / 4, level)
    assert far == next(s for s in range(2, 99) if gap / 4 > float(stdtrit(s - 1, 1 - level)) * sd / math.sqrt(s))


def test_rows_help_where_rows_are_what_is_uncertain() -> None:
    """No luck of seeds: all that lies between them is the error of each student's own rows."""
    n, gap, level = 100, 0.05, 0.025
    own = OWN**2 / n
    signs = math.sqrt(own * 3 / 4) * np.array([[1, 1], [-1, 1], [1, -1], [-1, -1]])  # variance over seeds: own
    arms = [
        Arm(str(g), np.column_stack([signs[:, g], np.zeros(4)]), np.tile([own, 0.0], (4, 1)), np.zeros((4, n)))
        for g in range(2)
    ]
    joint = Joint(arms, Design(n, rows_shared=True))
    c = np.array([1.0, 0.0, -1.0, 0.0])
    _, rows, _ = joint.needed(c, gap, level)
    half = float(stdtrit(3, 1 - level)) * math.sqrt(2 * own / 4)
    assert rows == math.ceil(n * (half / gap) ** 2)


def test_where_neither_seeds_nor_rows_suffice_both_together_do() -> None:
    """Rows that all seeds share keep a floor under seeds, and the luck of seeds one under rows."""
    n, s, level = 100, 4, 0.05 / 3
    noise = np.array([0.03, -0.01, -0.04, 0.02])
    rows = np.random.default_rng(3).normal(0, 1.0, (2, 1, n))
    arms: list[Arm] = []
    for g, sign in enumerate((1, -1)):
        table = np.repeat(rows[g] - rows[g].mean(), s, axis=0) - 4.0 + 0.05 * g + sign * noise[:, None]
        arms.append(Arm(str(g), np.column_stack([table.mean(axis=1)] * 2), np.zeros((s, 2)), table))
    need = Need(min_precision_gain=0.0, margin=0.0)
    d = decide([replace(a, values=a.values - [5.0 * (1 - g), 0]) for g, a in enumerate(arms)], Design(n, True), need, 0)
    assert (d.status, d.leader) == ("undecided", 1)
    assert d.more is not None
    assert (d.more.seeds, d.more.rows) == (None, None)
    together = d.more.together
    assert together is not None
    # The closed form: both parts of the variance shrink alike, Welch's degrees of freedom grow with them.
    between = float(np.var(2 * noise, ddof=1)) / s
    shared = float(np.square(rows[0] - rows[0].mean() - rows[1] + rows[1].mean()).sum()) / n / (n - 1)

    def half(seeds: int) -> float:
        a, b = between * s / seeds, shared * s / seeds
        df = (a + b) ** 2 / (a * a / (seeds - 1) + b * b / (n * seeds / s - 1))
        return float(stdtrit(df, 1 - level)) * math.sqrt(a + b)

    assert together == {"seeds": (seeds := next(x for x in range(s, 1000) if half(x) < 0.05)), "rows": n * seeds // s}


def test_left_out_seeds_undo_the_winners_curse() -> None:
    """All candidates are equal: the winner's own figure is too good, that of a left-out seed is not."""
    world = World(dict.fromkeys(CLEAR, (-4.0, -5.3)), seeds=4)
    rng = np.random.default_rng(9)
    chosen, left = [], []
    for _ in range(RUNS):
        arms = world.arms(rng, world.luck(rng))
        d = decide(arms, world.design, Need(weight=0.9), 0)
        chosen.append(d.candidates[d.leader].gain.value)
        found = left_out(arms, world.design, Need(weight=0.9), 0)
        assert found is not None
        left.append(found[0].value)
    assert np.mean(chosen) > 5 * np.std(chosen) / math.sqrt(RUNS)
    assert abs(np.mean(left)) < 4 * np.std(left) / math.sqrt(RUNS)


def test_known_tail_of_the_level() -> None:
    assert Need(max_recall_loss=0.1).level == pytest.approx(ERROR / 3)
    assert Need(weight=0.5).level == pytest.approx(float(ndtr(-1.959964)), abs=1e-6)


@pytest.mark.parametrize(
    ("need", "says"),
    [
        ({"max_recall_loss": -0.1}, "max_recall_loss, in nats, must be"),
        ({"max_recall_loss": math.nan}, "max_recall_loss, in nats, must be"),
        ({"min_precision_gain": math.inf}, "min_precision_gain, in nats, must be"),
        ({"weight": 1.5}, "between 0"),
        ({"weight": 1.0}, "ignores recall"),
        ({"score": "user_json"}, "belong together"),
        ({"min_score": 0.5}, "belong together"),
        ({"score": "user_json", "min_score": math.nan}, "min_score must be"),
        ({"margin": -1.0}, "margin, in nats, must be"),
    ],
)
def test_contradictory_needs_are_refused(need: dict[str, float], says: str) -> None:
    with pytest.raises(InputError, match=says) as caught:
        Need(**need)
    assert "\n" not in str(caught.value)
