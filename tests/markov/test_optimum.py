"""Exact optima of objectives against gradient descent in torch, and against what they must be."""

from __future__ import annotations

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
from hydrometer.models.markov.law import END, Markov
from hydrometer.models.markov.optimum import KINDS, fit_objective
from hydrometer.models.markov.spec import MarkovChain
from hydrometer.models.objectives import Divergence, divergence_of
from hydrometer.run.graph.plan import plan_run

V, LONGEST = 4, 5
KEEPS_ALL = [hm.Selectivity(temperature=1), hm.Selectivity(temperature=0.4), hm.Selectivity(sequence_power=2)]
DROPS = [hm.Selectivity(top_k=2), hm.Selectivity(top_p=0.6)]
MIXES = ["jsd(weight=0.3, mle=0.3)", "kl_student_teacher(mle=0.2)", "kl_teacher_student(mle=0.5)",
         "skew_kl_teacher_student(mle=0.2)", "skew_kl_student_teacher(weight=0.4, mle=0.2)"]  # fmt: skip
HOT = ["jsd(temperature=2)", "kl_student_teacher(temperature=2)", "skew_kl_teacher_student(temperature=0.5)"]


def of(written: str) -> Divergence:
    d = divergence_of(Objective.from_json(written))
    assert d is not None
    return d


def chain(order: int, seed: int, longest: int = LONGEST) -> Markov:
    p = Stream(seed).child("test").uniforms(0, (V + 1) ** order, V) ** 3
    return Markov(np.log(p / p.sum(axis=1, keepdims=True)), order=order, max_new_tokens=longest)


def visits(source: Markov, teacher: Markov, order: int) -> tuple[Any, Any, Any, Any]:
    """Walk all prefixes one by one: their probability, the teacher's law, the source's, and the student's context."""
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
        found.append((chance, at(teacher, said, t), own, context))
        if t + 1 < LONGEST:
            for v in range(V):
                if v != END and own[v] > 0:
                    walk([*said, v], chance * own[v])

    walk([], 1.0)
    return tuple(np.array(x) for x in zip(*found, strict=True))


def value(torch: Any, d: Divergence, log_q: Any, met: tuple[Any, Any, Any, Any]) -> Any:
    """The papers' formulas, in expectation over the prefixes."""
    weight, p, own, context = (torch.as_tensor(x) for x in met)
    p = p ** (1 / d.temperature)
    p = p / p.sum(-1, keepdim=True)
    q, w = (log_q / d.temperature).softmax(-1)[context], d.weight

    def kl(a: Any, b: Any) -> Any:
        return torch.where(a > 0, a * (torch.where(a > 0, a, 1.0).log() - torch.where(a > 0, b, 1.0).log()), 0.0).sum(
            -1
        )

    m = w * p + (1 - w) * q
    found = {
        "kl_teacher_student": lambda: kl(p, q),
        "kl_student_teacher": lambda: kl(q, p),
        "jsd": lambda: w * kl(p, m) + (1 - w) * kl(q, m),
        "jsd_scaled": lambda: (w * kl(p, m) + (1 - w) * kl(q, m)) / (w * (1 - w)),
        "skew_kl_teacher_student": lambda: kl(p, m),
        "skew_kl_student_teacher": lambda: kl(q, (1 - w) * p + w * q),
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


EVERY = [(k, s) for k in KINDS for s in KEEPS_ALL + (DROPS if k != "kl_student_teacher" else [])]
EVERY += [(k, s) for k in MIXES + HOT for s in KEEPS_ALL[:2]]
OFTEN = [("jsd", DROPS[0]), ("skew_kl_teacher_student", DROPS[1]), ("skew_kl_student_teacher", KEEPS_ALL[1]),
         ("kl_student_teacher", KEEPS_ALL[2]), ("total_variation", KEEPS_ALL[1]), (MIXES[0], KEEPS_ALL[1])]  # fmt: skip


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
    met = visits(on, teacher, 1)
    found = fit_objective(teacher, on, d, 1).model
    with np.errstate(invalid="ignore"):
        mine = float(value(torch, d, torch.as_tensor(np.maximum(found.log_table, -700.0)), met))
    # From a start of its own, and from beside the optimum: total variation has corners where descent stops early.
    beside = np.maximum(found.log_table, -20.0) + 0.01 * Stream(3).uniforms(0, V + 1, V)
    others = [descended(torch, d, x, met) for x in (0.1 * Stream(4).uniforms(0, V + 1, V), beside)]
    assert mine <= min(others) + 1e-9
    # L-BFGS creeps towards ids of probability 0, and stops at corners.
    assert min(others) <= mine + (1e-2 if d.kind == "total_variation" else 1e-6 if s in KEEPS_ALL else 1e-4)


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
    assert fitted.info["fixed_points"] == (2 if written == "kl_student_teacher" else 1)


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
        ({"loss": ["total_variation(mle=0.1)"]}, "no exact optimum of this mix"),
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
    losses = ["mle", "kl_teacher_student", "kl_student_teacher", "jsd(weight=0.3)"]
    chain = spec(loss=losses, prefixes=["teacher", "truth", "student"])
    result = hm.run(write_spec(chain, tmp_path), out=tmp_path / "out")
    assert not result.failed_cells
    cells = {c["id"]: c for c in result.results["cells"]}
    names = [c for c in cells if c.startswith("m.student.distilled") and "decoded" not in c]
    assert len(names) == 2 * 2 * (1 + 3 * 3)  # seeds, selectivities; mle on the teacher's rows alone

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
    assert len(ways) == 4 * (1 + 4 * 3)
    assert {d.prefixes.name for d in ways} == {"teacher", "truth", "student"}
