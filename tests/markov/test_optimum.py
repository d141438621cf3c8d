"""Exact optima of objectives against gradient descent in torch, and against what they must be."""

from __future__ import annotations

from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import hydrometer as hm
from chains import write_spec
from hydrometer.core.distillation import Objective
from hydrometer.core.errors import FitError, SpecError
from hydrometer.core.rng import Stream
from hydrometer.models.families import families
from hydrometer.models.markov.by_multiplier import least_generalised
from hydrometer.models.markov.law import END, Markov, contexts
from hydrometer.models.markov.optimum import KINDS, fit_objective
from hydrometer.models.markov.spec import MarkovChain
from hydrometer.models.objectives import Divergence, PolicyGradient, divergence_of
from hydrometer.models.rows.sequences import Sequences
from hydrometer.run.graph.plan import plan_run

V, LONGEST = 4, 5
KEEPS_ALL = [hm.Selectivity(temperature=1), hm.Selectivity(temperature=0.4), hm.Selectivity(sequence_power=2)]
DROPS = [hm.Selectivity(top_k=2), hm.Selectivity(top_p=0.6)]
MIXES = ["jsd(weight=0.3, mle=0.3)", "kl_student_teacher(mle=0.2)", "kl_teacher_student(mle=0.5)",
         "skew_kl_teacher_student(mle=0.2)", "skew_kl_student_teacher(weight=0.4, mle=0.2)", "generalised_kl(mle=0.3)",
         "total_variation(mle=0.2)", "kl_teacher_student(mle=0.3, temperature=3)",
         "kl_teacher_student(mle=0.7, temperature=0.5)"]  # fmt: skip
HOT = ["jsd(temperature=2)", "kl_student_teacher(temperature=2)", "skew_kl_teacher_student(temperature=0.5)",
       "generalised_kl(temperature=2)"]  # fmt: skip
HELD = ["skew_kl_student_teacher_detached", "adaptive_kl"]  # a gradient, of no value


def of(written: str) -> Divergence:
    d = divergence_of(Objective.from_json(written))
    assert isinstance(d, Divergence)
    return d


def chain(order: int, seed: int, longest: int = LONGEST) -> Markov:
    p = Stream(seed).child("test").uniforms(0, (V + 1) ** order, V) ** 3
    return Markov(np.log(p / p.sum(axis=1, keepdims=True)), order=order, max_new_tokens=longest)


def visits(source: Markov, teacher: Markov, order: int, whole: Markov | None = None) -> tuple[Any, Any, Any, Any]:
    """Walk all prefixes one by one: their probability, the teacher's law, the source's, and the student's context.

    Of a teacher that drops ids the law is that of `whole`, where it is given, at those that it keeps.
    """
    found = []

    def at(table: Markov, said: list[int], t: int) -> np.ndarray:
        context = 0
        for i in range(table.order, 0, -1):
            context = context * (V + 1) + (said[-i] if len(said) >= i else V)
        return np.exp(table.step_table(t)[context])

    def walk(said: list[int], chance: float) -> None:
        t = len(said)
        own = at(source, said, t)
        context = 0
        for i in range(order, 0, -1):
            context = context * (V + 1) + (said[-i] if t >= i else V)
        p = at(teacher, said, t)
        found.append((chance, p if whole is None else np.where(p > 0, at(whole, said, t), 0.0), own, context))
        if t + 1 < LONGEST:
            for v in range(V):
                if v != END and own[v] > 0:
                    walk([*said, v], chance * own[v])

    walk([], 1.0)
    return tuple(np.array(x) for x in zip(*found, strict=True))


def value(torch: Any, d: Divergence, log_q: Any, met: tuple[Any, Any, Any, Any]) -> Any:
    """The papers' formulas, in expectation over the prefixes."""
    weight, p, own, context = (torch.as_tensor(x) for x in met)
    if d.kind != "generalised_kl":
        p = p ** (1 / d.temperature)
        p = p / p.sum(-1, keepdim=True)
    q, w = (log_q / d.temperature).softmax(-1)[context], d.weight

    def kl(a: Any, b: Any) -> Any:
        return torch.where(a > 0, a * (torch.where(a > 0, a, 1.0).log() - torch.where(a > 0, b, 1.0).log()), 0.0).sum(
            -1
        )

    def adaptive() -> Any:
        gap, falling = (p - q).abs().detach(), p.sort(-1, descending=True).values
        last = (falling.cumsum(-1) < w * (1 - 1e-12)).sum(-1, keepdim=True)
        head = p >= falling.gather(-1, last)
        h = (gap * head).sum(-1) / gap.sum(-1)
        return h * kl(p, q) + (1 - h) * kl(q, p)

    m = w * p + (1 - w) * q
    found = {
        "kl_teacher_student": lambda: kl(p, q),
        "kl_student_teacher": lambda: kl(q, p),
        "jsd": lambda: w * kl(p, m) + (1 - w) * kl(q, m),
        "jsd_scaled": lambda: (w * kl(p, m) + (1 - w) * kl(q, m)) / (w * (1 - w)),
        "skew_kl_teacher_student": lambda: kl(p, m),
        "skew_kl_student_teacher": lambda: kl(q, (1 - w) * p + w * q),
        "skew_kl_student_teacher_detached": lambda: kl(q, ((1 - w) * p + w * q).detach()),
        "adaptive_kl": adaptive,
        "generalised_kl": lambda: torch.where(p > 0, p * (torch.where(p > 0, p, 1.0).log() - q.log()) - p + q, 0.0).sum(
            -1
        ),
        "total_variation": lambda: (p - q).abs().sum(-1) / 2,
    }[d.kind]()
    likelihood = (own * log_q.log_softmax(-1)[context]).sum(-1)
    return (weight * ((1 - d.mle) * d.temperature**2 * found - d.mle * likelihood)).sum()


def descended(torch: Any, d: Divergence, start: np.ndarray, met: Any) -> float:
    """The least value that L-BFGS finds on logits, in float64."""
    logits = torch.tensor(start).requires_grad_()
    step = torch.optim.LBFGS([logits], max_iter=500, history_size=50, line_search_fn="strong_wolfe",
                             tolerance_grad=1e-12, tolerance_change=1e-15)  # fmt: skip

    def closure() -> Any:
        step.zero_grad()
        found = value(torch, d, logits, met)
        found.backward()
        return found

    step.step(closure)
    return float(value(torch, d, logits.detach(), met))


EVERY = [(k, s) for k in KINDS if k not in HELD for s in KEEPS_ALL + (DROPS if k != "kl_student_teacher" else [])]
EVERY += [(k, s) for k in MIXES + HOT for s in KEEPS_ALL[:2]]
OFTEN = [("jsd", DROPS[0]), ("skew_kl_teacher_student", DROPS[1]), ("skew_kl_student_teacher", KEEPS_ALL[1]),
         ("kl_student_teacher", KEEPS_ALL[2]), ("total_variation", KEEPS_ALL[1]), (MIXES[0], KEEPS_ALL[1]),
         ("generalised_kl", DROPS[0]), ("generalised_kl", DROPS[1]),
         *((x, KEEPS_ALL[1]) for x in (*MIXES[-4:], HOT[-1]))]  # fmt: skip


@pytest.mark.parametrize("source", ["teacher", "truth"])
@pytest.mark.parametrize(
    ("written", "s"),
    [pytest.param(*c, marks=[] if c in OFTEN else pytest.mark.campaign) for c in EVERY],
    ids=lambda x: x if isinstance(x, str) else x.slug,
)
def test_no_descent_finds_a_lower_value(written: str, s: hm.Selectivity, source: str) -> None:
    torch = pytest.importorskip("torch")
    d, teacher, truth = of(written), chain(2, 1).select(s), chain(3, 2)
    on = teacher if source == "teacher" else truth
    drops = s in DROPS
    undropped = chain(2, 1) if drops else teacher
    heated = undropped.select(hm.Selectivity(temperature=d.temperature))
    met = visits(on, teacher, 1, heated if d.kind == "generalised_kl" else None)
    found = fit_objective(teacher, on, d, 1, undropped=undropped).model
    with np.errstate(invalid="ignore"):
        mine = float(value(torch, d, torch.as_tensor(np.maximum(found.log_table, -700.0)), met))
    # From a start of its own, and from beside the optimum: total variation has corners where descent stops early.
    beside = np.maximum(found.log_table, -20.0) + 0.01 * Stream(3).uniforms(0, V + 1, V)
    others = [descended(torch, d, x, met) for x in (0.1 * Stream(4).uniforms(0, V + 1, V), beside)]
    assert mine <= min(others) + 1e-9
    # L-BFGS creeps towards ids of probability 0, and stops at corners.
    assert min(others) <= mine + (1e-2 if d.kind == "total_variation" else 1e-6 if s in KEEPS_ALL else 1e-4)


@pytest.mark.parametrize(
    ("written", "own"),
    [*product([*HELD, "jsd(weight=0.3)", "generalised_kl"], [0.0, 0.3, 1.0]), ("adaptive_kl(head=0.8)", 0.3),
     ("adaptive_kl(temperature=2)", 0.3), ("adaptive_kl(mle=0.3)", 0.0), ("adaptive_kl(head=0.999)", 0.0)],
)  # fmt: skip
def test_the_gradient_vanishes_with_what_is_held_in_it(written: str, own: float) -> None:
    """On the tokens of enumerated rows, `own` of them the student's."""
    torch = pytest.importorskip("torch")
    d, teacher, truth = of(written), chain(2, 1).select(KEEPS_ALL[1]), chain(3, 2)
    heated = teacher.select(hm.Selectivity(temperature=d.temperature)) if d.kind == "generalised_kl" else None
    fitted = fit_objective(teacher, None if own == 1 else truth, d, 1, own=own % 1).model

    def slope(at: Markov) -> float:
        logits = torch.tensor(at.log_table).requires_grad_()
        parts = [(s, visits(on, teacher, 1, heated)) for s, on in ((1 - own, truth), (own, at)) if s]
        sum(s * value(torch, d, logits, met) / met[0].sum() for s, met in parts).backward()
        return float(logits.grad.abs().max())

    assert slope(fitted) < 1e-9
    assert slope(fit_objective(teacher, truth, d, 1, own=0.6).model) > 1e-5


def test_a_detached_skew_is_a_jsd_and_unbroken_ones_are_not() -> None:
    teacher = chain(2, 1).select(KEEPS_ALL[1])
    jsd = fit_objective(teacher, teacher, of("jsd(weight=0.9)"), 1).model.log_table
    for written, gap in (("skew_kl_student_teacher_detached", 0), ("skew_kl_student_teacher", 1)):
        found = fit_objective(teacher, teacher, of(written), 1).model.log_table
        assert (np.abs(found - jsd).max() > 1e-9) == gap


@pytest.mark.parametrize("written", ["policy_gradient_token", "policy_gradient_reward_to_go(baseline=1)"])
@pytest.mark.parametrize("s", KEEPS_ALL, ids=lambda s: s.slug)
def test_where_a_policy_gradient_ends_its_expectation_vanishes(written: str, s: hm.Selectivity) -> None:
    """Summed over every row that the student can say."""
    torch = pytest.importorskip("torch")
    teacher = chain(2, 1).select(s)
    d = divergence_of(Objective.from_json(written))
    assert isinstance(d, PolicyGradient)
    fitted = fit_objective(teacher, None, d, 1)
    x = every_row()
    contexts_of = contexts(x.ids, 1, V)

    def expected(q: Markov, to_go: bool) -> tuple[float, float]:
        """The KL of the rows' laws, and the largest entry of the gradient."""
        logits = torch.tensor(q.log_table).requires_grad_()
        within = torch.as_tensor(x.within)
        log_q = torch.where(within, logits.log_softmax(-1)[torch.as_tensor(contexts_of), torch.as_tensor(x.ids)], 0.0)
        reward = torch.as_tensor(teacher.token_log_prob(x)) - log_q.detach()
        advantage = reward.flip(1).cumsum(1).flip(1) if to_go else reward
        chance = log_q.detach().sum(1).exp()
        assert float(chance.sum()) == pytest.approx(1, abs=1e-12)
        (-(chance[:, None] * advantage * log_q).sum()).backward()
        return -float((chance * reward.sum(1)).sum()), float(logits.grad.abs().max())

    kl, slope = expected(fitted.model, d.to_go)
    assert slope < 1e-8
    assert expected(fitted.model, not d.to_go)[1] > 1e-2
    if d.to_go:
        assert kl == pytest.approx(fitted.info["value"], abs=1e-10)
        token = fit_objective(teacher, None, PolicyGradient(False), 1).model
        assert kl < expected(token, True)[0] - 1e-2


def every_row() -> Sequences:
    """All rows of at most LONGEST ids."""
    ended, open_ = [], [[]]
    for _ in range(LONGEST):
        ended += [[*r, END] for r in open_]
        open_ = [[*r, v] for r in open_ for v in range(1, V)]
    rows = [*ended, *open_]
    lengths = np.array([len(r) for r in rows])
    ids = np.zeros((len(rows), LONGEST), np.int64)
    for i, r in enumerate(rows):
        ids[i, : len(r)] = r
    n = len(rows)
    return Sequences(((),), np.zeros(n, np.int64), ids, lengths, ids[np.arange(n), lengths - 1] == END, np.zeros(n))


@pytest.mark.parametrize("order", [0, 1])
@pytest.mark.parametrize("s", KEEPS_ALL, ids=lambda s: s.slug)
def test_no_other_chain_of_that_order_is_nearer_to_the_teachers_rows(s: hm.Selectivity, order: int) -> None:
    """SciPy's descent from many starts, by finite differences, on the KL summed over every row."""
    from scipy.optimize import minimize

    rows = every_row()

    teacher = chain(2, 1).select(s)
    log_p = teacher.log_prob(rows)
    found = fit_objective(teacher, None, PolicyGradient(True), order)

    def kl(logits: np.ndarray) -> float:
        z = logits.reshape(-1, V)
        q = Markov(z - np.logaddexp.reduce(z, axis=1, keepdims=True), order=order, max_new_tokens=LONGEST)
        log_q = q.log_prob(rows)
        return float(np.exp(log_q) @ (log_q - log_p))

    mine = kl(found.model.log_table)
    assert mine == pytest.approx(found.info["value"], abs=1e-12)
    starts = 3 * Stream(5).uniforms(0, 6, ((V + 1) ** order) * V) - 1.5
    others = [minimize(kl, x, method="L-BFGS-B", options={"maxiter": 200}).fun for x in starts]
    assert mine - 1e-9 <= min(others) <= mine + 1e-2


def test_the_rows_law_never_says_what_the_teacher_never_says() -> None:
    """A teacher that never says 2 after 1: a student of order 0 leaves out one of the two."""
    table = np.array([[0.2, 0.4, 0.3, 0.1], [0.2, 0.4, 0.0, 0.4], [0.3, 0.3, 0.3, 0.1], [0.1, 0.2, 0.3, 0.4]])
    with np.errstate(divide="ignore"):
        teacher = Markov(np.log([*table, [0.1, 0.3, 0.3, 0.3]]), order=1, max_new_tokens=LONGEST)
    found = fit_objective(teacher, None, PolicyGradient(True), 0)
    q = np.exp(found.model.log_table[0])
    assert q[2] == 0
    assert (q[[0, 1, 3]] > 0.05).all()
    x = every_row()
    log_q, log_p = found.model.log_prob(x), teacher.log_prob(x)
    said = log_q > -np.inf
    assert np.exp(log_q[said]) @ (log_q[said] - log_p[said]) == pytest.approx(found.info["value"], abs=1e-12)


def test_smoothing_adds_uniform_prefixes_to_the_rows_law() -> None:
    """Without a prefix that the student does not tell apart, and with much smoothing, it is the token's optimum."""
    teacher = chain(1, 1)
    found = fit_objective(teacher, None, PolicyGradient(True), 1, 0.5)
    log_q = found.model.log_table
    penalty = 0.5 * V * (np.exp(log_q) * (log_q + np.log(V))).sum()
    value_ = hm.judge_exact(teacher, found.model, strings=0)["kl_student_truth"].value + penalty
    assert value_ == pytest.approx(found.info["value"], abs=1e-10)
    for step in Stream(6).uniforms(0, 20, log_q.size):
        z = log_q + 0.05 * (step.reshape(log_q.shape) - 0.5)
        z -= np.logaddexp.reduce(z, axis=1, keepdims=True)
        q = Markov(z, order=1, max_new_tokens=LONGEST)
        more = hm.judge_exact(teacher, q, strings=0)["kl_student_truth"].value
        assert more + 0.5 * V * (np.exp(z) * (z + np.log(V))).sum() > value_


@pytest.mark.parametrize("written", [k for k in KINDS if k != "total_variation"])
def test_on_its_own_prefixes_a_student_stays_where_it_is(written: str) -> None:
    """The gradient of the objective on enumerated prefixes of that student is zero."""
    torch = pytest.importorskip("torch")
    d, teacher = of(written), chain(2, 1).select(KEEPS_ALL[1])
    fitted = fit_objective(teacher, None, d, 1)
    logits = torch.tensor(fitted.model.log_table).requires_grad_()
    value(torch, d, logits, visits(fitted.model, teacher, 1)).backward()
    assert float(logits.grad.abs().max()) < 1e-9
    elsewhere = fit_objective(teacher, teacher, d, 1).model
    assert np.abs(np.exp(elsewhere.log_table) - np.exp(fitted.model.log_table)).max() > 1e-3
    assert fitted.info["fixed_points"] == (2 if written in ("kl_student_teacher", "adaptive_kl") else 1)


def test_under_sharp_teachers_the_search_is_damped() -> None:
    """Plain rounds go round in circles here; the fixed point that is found is one of theirs, too."""
    u = Stream(14).uniforms(0, 16, 3) ** 6 + 1e-6
    teacher = Markov(np.log(u / u.sum(axis=1, keepdims=True)), order=2, max_new_tokens=6)
    d = of("kl_student_teacher")
    found = fit_objective(teacher, None, d, 1).model
    again = fit_objective(teacher, found, d, 1).model
    assert np.abs(np.exp(again.log_table) - np.exp(found.log_table)).max() < 1e-10


@pytest.mark.parametrize("drops", [{"top_k": 2}, {"top_p": 0.6}])
def test_a_teacher_that_drops_ids_needs_no_temperature(tmp_path: Path, drops: dict[str, float]) -> None:
    chain_ = {
        "family": "markov", "truth": {"order": 2, "vocabulary": 4, "max_new_tokens": 5}, "teacher": {"order": 2},
        "student": {"order": 1, "smoothing": 0.1}, "data": {"train": 60, "distill": 60, "evaluate": 60},
        "loss": ["jsd", "kl_teacher_student", "generalised_kl"], "selectivity": [drops],
    }  # fmt: skip
    path = write_spec({"name": "drops", "seeds": 1, "chains": {"m": chain_}}, tmp_path)
    assert hm.run(path, out=tmp_path / "run").failed_cells == []


def test_an_id_below_rounding_takes_what_is_left() -> None:
    w, p = np.array([[0.9], [0.1]]), np.array([[[0.5, 0.5, 0.0]], [[1.0, 0.0, 1e-20]]])
    q = least_generalised(w, p, np.zeros((1, 3)))
    assert q.sum() == pytest.approx(1.0, abs=1e-12)
    assert 0 < q[0, 2] < 1e-19
    one, other = np.array([1.0, 0.9]) - np.array([0.55, 0.45]) / q[0, :2]  # the multiplier, of either id
    assert one == pytest.approx(other, abs=1e-12)


def test_a_second_fixed_point_is_where_another_start_leads() -> None:
    teacher, d = chain(2, 1).select(KEEPS_ALL[1]), of("kl_student_teacher")
    q = Markov(np.full((V + 1, V), -np.log(V)), order=1, max_new_tokens=LONGEST)
    for _ in range(300):
        q = fit_objective(teacher, q, d, 1).model
    still = fit_objective(teacher, q, d, 1).model
    assert np.abs(np.exp(still.log_table) - np.exp(q.log_table)).max() < 1e-9
    first = fit_objective(teacher, None, d, 1).model
    assert np.abs(np.exp(first.log_table) - np.exp(q.log_table)).max() > 1e-3


@pytest.mark.parametrize("order", [2, 3])
@pytest.mark.parametrize("source", ["teacher", "truth", "student"])
@pytest.mark.parametrize("written", [*KINDS, "jsd(temperature=2)"])
def test_a_student_that_can_be_its_teacher_is(written: str, source: str, order: int) -> None:
    teacher, truth = chain(2, 1).select(KEEPS_ALL[1]), chain(1, 2)
    on = {"teacher": teacher, "truth": truth, "student": None}[source]
    found = fit_objective(teacher, on, of(written), order).model
    assert hm.judge_exact(teacher, found, strings=0)["kl_truth_student"].value == pytest.approx(0, abs=1e-9)


def test_smoothing_is_the_usual_one() -> None:
    """Of as many drawn rows: counts by `fit_markov`, within their errors, and far from unsmoothed ones."""
    teacher, n, smoothing = chain(1, 1), 200_000, 20_000.0
    counted = hm.fit_markov(teacher.sample(n, seed=1), 1, smoothing=smoothing, vocabulary=V, max_new_tokens=LONGEST)
    found = fit_objective(teacher, teacher, of("kl_teacher_student"), 1, smoothing / n).model
    gap = np.abs(np.exp(found.log_table) - np.exp(counted.model.log_table))
    assert gap.max() < 5 * 0.5 / np.sqrt(4 * smoothing)
    assert np.abs(np.exp(found.log_table) - np.exp(teacher.log_table))[:-1].max() > 0.1


def test_one_direction_covers_and_the_other_seeks() -> None:
    """A teacher over eight ids that says low ids after low ones and high after high; a student of order 0."""
    v = 8
    table = np.full((v + 1, v), 1e-4)
    table[:4, 1:4] = table[v, 1:4] = 0.3
    table[4:8, 4:8] = 0.22
    table[v, 4:8] = 0.2
    table[:, END] = 0.1
    teacher = Markov(np.log(table / table.sum(axis=1, keepdims=True)), order=1, max_new_tokens=12)

    def sides(written: str) -> list[float]:
        q = np.exp(fit_objective(teacher, None, of(written), 0).model.log_table[0])
        return [float(q[1:4].sum()), float(q[4:8].sum())]

    assert min(sides("kl_teacher_student")) > 0.3
    assert max(sides("kl_student_teacher")) > 0.85
    assert min(sides("kl_student_teacher")) < 0.01


def spec(**changes: Any) -> dict[str, Any]:
    body = {"family": "markov", "truth": {"order": 2, "vocabulary": 5, "max_new_tokens": 6}, "teacher": {"order": 2},
            "student": {"order": 1}, "data": {"train": 200, "distill": 300, "evaluate": 400},
            "selectivity": [{"temperature": 1}, {"temperature": 0.6}]}  # fmt: skip
    return {"name": "objectives", "seeds": 2, "chains": {"m": {**body, **changes}}}


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"loss": ["kl_student_techer"]}, "did you mean 'kl_student_teacher'"),
        ({"loss": ["kl_student_teacher"], "selectivity": [{"top_k": 2}]}, "drops tokens"),
        ({"loss": ["jsd"], "selectivity": [{"best_of": 2, "rank_by": "length"}]}, "next-id laws"),
        ({"loss": ["jsd(mle=0.1)"], "prefixes": ["student"]}, "its own rows"),
        ({"loss": ["jsd(mle=0.1, temperature=2)"]}, "no exact optimum of this mix"),
        ({"loss": ["jsd(mle=0.1)"], "prefixes": ["teacher(student=0.5)"]}, "its own rows"),
        ({"loss": ["policy_gradient_reward_to_go(length_normalised=1)"], "prefixes": ["student"]}, "no divergence"),
        ({"loss": ["policy_gradient_token"]}, "the student's alone"),
        ({"loss": ["policy_gradient_token"], "prefixes": ["student"], "selectivity": [{"top_k": 2}]}, "drops tokens"),
        ({"loss": ["jsd"], "prefixes": ["teacher(student=0.5, every=4)"]}, "leave out every"),
        ({"loss": ["jsd", "jsd(weight=0.5)", "jsd"]}, "listed twice"),
        ({"prefixes": ["student"]}, "name (other losses|a loss)"),
        ({"loss": ["jsd"], "prefixes": ["teachers"]}, "prefixes"),
    ],
)
def test_what_has_no_optimum_is_refused(changes: dict[str, Any], says: str, tmp_path: Path) -> None:
    with pytest.raises(SpecError, match=says) as e:
        hm.load_spec(write_spec(spec(**changes), tmp_path))
    assert "\n" not in str(e.value)


def test_teachers_without_a_common_id_are_infinitely_far() -> None:
    apart = np.array([[1, 0, 0], [0, 1, 0], [0, 0, 1], [0.2, 0.4, 0.4]])
    with np.errstate(divide="ignore"):
        teacher = Markov(np.log(apart), order=1, max_new_tokens=4)
    with pytest.raises(FitError, match="infinite for every student"):
        fit_objective(teacher, teacher, of("kl_student_teacher"), 0)


def test_a_chain_has_a_student_of_every_objective_and_source(tmp_path: Path) -> None:
    losses = ["mle", "kl_teacher_student", "kl_student_teacher", "jsd(weight=0.3)", "policy_gradient_reward_to_go"]
    chain = spec(loss=losses, prefixes=["teacher", "truth", "student", "truth(student=0.5)"])
    result = hm.run(write_spec(chain, tmp_path), out=tmp_path / "out")
    assert not result.failed_cells
    cells = {c["id"]: c for c in result.results["cells"]}
    names = [c for c in cells if c.startswith("m.student.distilled") and "decoded" not in c]
    # Seeds, selectivities; mle on the teacher's rows alone, a policy gradient on the student's.
    assert len(names) == 2 * 2 * (1 + 3 * 4 + 1)

    def kl(way: str) -> float:
        return cells[f"m.student.distilled-temperature0.6{way}.seed0"]["metrics"]["entropy"]["value"]

    assert kl(".kl_student_teacher") < kl(".jsd-weight0.3") < kl(".kl_teacher_student")
    assert cells["m.student.distilled-temperature1.0.jsd-weight0.3.on-student.seed1"]["prefix_source"] == "student"


def test_what_is_at_its_default_has_the_keys_that_it_had(tmp_path: Path) -> None:
    plain, named = (plan_run(hm.load_spec(write_spec(spec(**c), tmp_path))) for c in ({}, {"prefixes": ["teacher"]}))
    assert set(plain.nodes) == set(named.nodes)
    more = plan_run(hm.load_spec(write_spec(spec(loss=["mle", "jsd"], prefixes=["teacher", "student"]), tmp_path)))
    assert set(plain.nodes) < set(more.nodes)
    assert "prefixes" not in hm.load_spec(write_spec(spec(), tmp_path)).chains["m"].model_dump()


def test_a_plan_counts_what_exact_optima_take() -> None:
    family, kind = families()["markov"], MarkovChain
    plain, more, own, large = (
        kind.model_validate({**spec()["chains"]["m"], **changes})
        for changes in (
            {},
            {"loss": ["mle", "jsd"]},
            {"loss": ["mle", "jsd"], "prefixes": ["student", "teacher"]},
            {"loss": ["mle", "jsd"], "teacher": {"order": 4}},
        )
    )
    seconds = [family.cost(c, "fit", "student", 300) for c in (plain, more, own, large)]
    assert seconds[0] < seconds[1] < seconds[2]
    assert (seconds[3] - seconds[0]) / (seconds[1] - seconds[0]) == pytest.approx(6**2)
    assert len({family.cost(c, "fit", "teacher", 300) for c in (plain, more, own, large)}) == 1
    memory = [family.footprint(c, "fit", "student", 300).memory_least for c in (plain, large)]
    assert memory[1] - memory[0] == 40 * 6**4 * 5


def test_the_recipe_has_every_way_at_every_temperature() -> None:
    plan = plan_run(hm.load_spec("objectives-exact"))
    ways = {c.distillation for c in plan.cells if c.role == "student" and c.distillation is not None}
    assert len(ways) == 4 * (1 + 4 * 3 + 1)
    assert {d.prefixes.name for d in ways} == {"teacher", "truth", "student"}
