"""Chains against enumeration: every string of a small world, one by one."""

import itertools
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy.stats import chisquare

import hydrometer as hm
from chains import write_spec
from hydrometer.core.errors import DataError, InputError, LawMismatchError, SpecError
from hydrometer.core.rng import Stream
from hydrometer.core.statistics.estimate import Estimate
from hydrometer.metrics.chains import cross, length_law
from hydrometer.models.markov.family import MARKOV
from hydrometer.models.markov.law import END, Markov, contexts
from hydrometer.models.markov.spec import MarkovTruth
from hydrometer.models.rows.sequences import Sequences
from hydrometer.run.graph.plan import plan_run
from hydrometer.stages.artifact_loader import ArtifactLoader
from hydrometer.store.artifacts import ArtifactStore

V, LONGEST = 3, 4
SETTINGS = [
    hm.Selectivity(temperature=0.5),
    hm.Selectivity(top_k=2),
    hm.Selectivity(top_p=0.7),
    hm.Selectivity(min_p=0.4),
    hm.Selectivity(temperature=0.8, top_k=2, top_p=0.95, min_p=0.01),
    hm.Selectivity(sequence_power=2.0),
    hm.Selectivity(sequence_power=0.5),
]


def chain(order: int, seed: int = 0, *, holes: bool = False) -> Markov:
    rows = (V + 1) ** order
    p = Stream(seed).child("test").uniforms(0, rows, V) ** 2
    if holes:
        p[np.arange(rows), np.arange(rows) % V] = 0.0
    with np.errstate(divide="ignore"):
        return Markov(np.log(p / p.sum(axis=1, keepdims=True)), order=order, max_new_tokens=LONGEST)


def strings() -> list[list[int]]:
    """All sequences of the stopped process."""
    out: list[list[int]] = []
    for n in range(1, LONGEST + 1):
        for body in itertools.product(range(1, V), repeat=n - 1):
            out.append([*body, END])
    out += [list(s) for s in itertools.product(range(1, V), repeat=LONGEST)]
    return out


def rows_of(lists: list[list[int]]) -> Sequences:
    n = len(lists)
    ids = np.zeros((n, LONGEST), np.int64)
    for i, s in enumerate(lists):
        ids[i, : len(s)] = s
    lengths = np.array([len(s) for s in lists])
    zeros = np.zeros(n, np.int64)
    return Sequences(((),), zeros, ids, lengths, ids[np.arange(n), lengths - 1] == END, zeros.astype(float))


ALL = rows_of(strings())


def naive_log_prob(law: Markov, s: list[int]) -> float:
    """Read the table one context at a time."""
    total = 0.0
    for t, v in enumerate(s):
        index = 0
        for back in range(law.order, 0, -1):
            index = index * (V + 1) + (s[t - back] if t >= back else V)
        total += float(law.log_table[index, v])
    return total


@pytest.mark.parametrize("order", [0, 1, 2, 3])
def test_scores_are_the_tables_and_sum_to_one(order: int) -> None:
    law = chain(order)
    found = law.log_prob(ALL)
    assert found == pytest.approx([naive_log_prob(law, s) for s in strings()], rel=1e-12)
    assert np.exp(found).sum() == pytest.approx(1, abs=1e-12)


def naive_row(row: np.ndarray, s: hm.Selectivity) -> np.ndarray:
    x = row / (s.temperature or 1)
    kept = np.ones(V, bool)
    if s.top_k:
        kept &= x >= np.sort(x)[-s.top_k]
    p = np.where(kept, np.exp(x), 0)
    p /= p.sum()
    if s.top_p:
        order = np.argsort(-p)
        nucleus = order[: int(np.searchsorted(np.cumsum(p[order]), s.top_p) + 1)]
        p = np.where(np.isin(np.arange(V), nucleus), p, 0)
    if s.min_p:
        p = np.where(p >= s.min_p * p.max(), p, 0)
    return p / p.sum()


@pytest.mark.parametrize("s", SETTINGS, ids=lambda s: s.slug)
@pytest.mark.parametrize("order", [0, 2])
def test_a_selected_chain_is_the_enumerated_law(s: hm.Selectivity, order: int) -> None:
    law = chain(order, 3)
    found = np.exp(law.select(s).log_prob(ALL))
    assert found.sum() == pytest.approx(1, abs=1e-12)
    if s.sequence_power is not None:
        powered = np.exp(s.sequence_power * law.log_prob(ALL))
        assert found == pytest.approx(powered / powered.sum(), rel=1e-10)
    else:
        table = np.array([naive_row(row, s) for row in law.log_table])
        with np.errstate(divide="ignore"):
            naive = Markov(np.log(table), order=order, max_new_tokens=LONGEST)
        assert found == pytest.approx(np.exp(naive.log_prob(ALL)), abs=1e-12)


def test_neutral_settings_return_the_law_itself() -> None:
    law = chain(1)
    assert law.select(hm.Selectivity(sequence_power=1)) is law
    assert law.select(hm.Selectivity(temperature=1)) is law
    with pytest.raises(InputError, match="sequence_power"):
        law.select(hm.Selectivity(weight_power=2))


@pytest.mark.parametrize("s", [None, *SETTINGS], ids=lambda s: "plain" if s is None else s.slug)
def test_draws_follow_the_enumerated_law(s: hm.Selectivity | None) -> None:
    law = chain(2, 5) if s is None else chain(2, 5).select(s)
    n = 50_000
    x = law.sample(n, seed=1)
    place = {tuple(v): i for i, v in enumerate(strings())}
    counts = np.bincount([place[tuple(x.row(i).tolist())] for i in range(n)], minlength=len(place))
    expected = np.exp(law.log_prob(ALL)) * n
    assert counts[expected == 0].sum() == 0
    rare = expected < 5
    pooled = [np.append(c[~rare], c[rare].sum()) for c in (counts, expected)]
    keep = pooled[1] > 0
    assert chisquare(pooled[0][keep], pooled[1][keep] * n / pooled[1][keep].sum()).pvalue > 1e-4
    assert x.log_prob == pytest.approx(law.log_prob(x), rel=1e-12)
    part = law.sample(100, seed=1, start=50)
    assert all((part.row(i) == x.row(50 + i)).all() for i in range(100))


@pytest.mark.parametrize("orders", [(0, 2), (2, 0), (1, 1), (2, 3)])
@pytest.mark.parametrize("s", [None, *SETTINGS], ids=lambda s: "plain" if s is None else s.slug)
def test_dynamic_programming_is_enumeration(orders: tuple[int, int], s: hm.Selectivity | None) -> None:
    truth, law = chain(orders[0], 1), chain(orders[1], 2, holes=s is None)
    law = law if s is None else law.select(s)
    log_p, log_q = truth.log_prob(ALL), law.log_prob(ALL)
    p, q = np.exp(log_p), np.exp(log_q)
    found = hm.judge_exact(truth, law)
    can = np.isfinite(log_q)
    whole = bool(can.all())
    length = ALL.lengths
    expected: dict[str, float | None] = {
        "precision": float(q[can] @ log_p[can]),
        "entropy": -float(q[can] @ log_q[can]),
        "entropy_truth": -float(p @ log_p),
        "kl_student_truth": float(q[can] @ (log_q - log_p)[can]),
        "precision_per_token": float(q[can] @ log_p[can]) / float(q @ length),
        "recall": float(p @ log_q) if whole else None,
        "kl_truth_student": float(p @ (log_p - log_q)) if whole else None,
        "recall_on_support": float(p[can] @ log_q[can] / p[can].sum()),
        "recall_on_support_per_token": float(p[can] @ log_q[can] / (p[can] @ length[can])),
        "truth_mass_outside_support": float(p[~can].sum()),
        "length": float(q @ length),
        "eos_rate": float(q @ ALL.stopped),
    }
    for name, value in expected.items():
        assert found[name].value == (None if value is None else pytest.approx(value, rel=1e-9, abs=1e-12)), name
        assert found[name].method == "exact"
    assert length_law(law)[0] == pytest.approx([float(q[length == n].sum()) for n in range(1, LONGEST + 1)], abs=1e-12)


def test_fits_are_counts() -> None:
    rows = [[1, 2, 0], [1, 1, 1, 2], [2, 0]]
    model = hm.fit_markov(rows, 1, smoothing=0.5, vocabulary=V).model
    start, after_1, after_2 = V, 1, 2
    assert np.exp(model.log_table[start]) == pytest.approx([0.5 / 4.5, 2.5 / 4.5, 1.5 / 4.5])
    assert np.exp(model.log_table[after_1]) == pytest.approx([0.5 / 5.5, 2.5 / 5.5, 2.5 / 5.5])
    assert np.exp(model.log_table[after_2]) == pytest.approx([2.5 / 3.5, 0.5 / 3.5, 0.5 / 3.5])
    plain = hm.fit_markov(rows, 1, vocabulary=V).model
    assert np.exp(plain.log_table[END]) == pytest.approx([1 / 3] * 3)  # never seen
    assert np.isneginf(plain.log_table[after_2, 1])


def test_maximum_likelihood_beats_its_neighbours() -> None:
    x = chain(1, 4).sample(500, seed=2)
    fit = hm.fit_markov(x, 1, vocabulary=V, max_new_tokens=LONGEST)
    rng = np.random.default_rng(0)
    for _ in range(20):
        nudged = fit.model.log_table + 0.05 * rng.standard_normal(fit.model.log_table.shape)
        nudged -= np.log(np.exp(nudged).sum(axis=1, keepdims=True))
        other = Markov(nudged, order=1, max_new_tokens=LONGEST)
        assert other.log_prob(x).mean() < fit.info["log_likelihood"]


@pytest.mark.parametrize(
    ("work", "says"),
    [
        (lambda: hm.fit_markov([[1, 0, 1]], 1), "first end of sequence"),
        (lambda: hm.fit_markov([[1], [1, 0]], 1), "first end of sequence"),
        (lambda: hm.fit_markov([], 1), "at least one row"),
        (lambda: hm.fit_markov([[5, 0]], 1, vocabulary=3), "ids must lie"),
        (lambda: hm.fit_markov([[1, 0]], -1), "order must be a whole number"),
        (lambda: hm.fit_markov([[4000, 0]], 8), "too many entries"),
        (lambda: Markov([[0.0, 0.0]], order=0, max_new_tokens=2), "sum to 1"),
        (lambda: Markov(np.log([[0.5, 0.5]]), order=1, max_new_tokens=2), "needs a table"),
        (lambda: chain(0).compatible(Markov(np.log([[0.5, 0.5]]), order=0, max_new_tokens=4)), "compared with its"),
        (lambda: hm.judge_exact(chain(0), hm.Mixture([1.0], [[0.0]], [1.0], covariance_type="spherical")), "its like"),
    ],
)
def test_nonsense_is_refused(work: Any, says: str) -> None:
    with pytest.raises((DataError, InputError, LawMismatchError), match=says):
        work()


def test_contexts_read_the_newest_id_last() -> None:
    assert contexts(np.array([[1, 2, 1]]), 2, V).tolist() == [[15, 3 * 4 + 1, 1 * 4 + 2]]


def test_a_text_becomes_a_truth(tmp_path: Path) -> None:
    (tmp_path / "lines.txt").write_text("aba\nab\n\nba\n")
    truth = MarkovTruth(order=1, text=str(tmp_path / "lines.txt"), max_new_tokens=5)
    assert truth.symbols() == "ab"
    law = truth.law()
    assert law.vocabulary == 3
    assert np.exp(law.log_table[3]) == pytest.approx([0, 2 / 3, 1 / 3])  # first letters: a, a, b
    spec = {
        "name": "text", "seeds": 1,
        "chains": {"m": {"family": "markov", "truth": {"order": 1, "text": "lines.txt", "smoothing": 0.1},
                         "teacher": {"order": 1}, "student": {"order": 0}, "selectivity": [{"temperature": 1}],
                         "data": {"train": 50, "distill": 50, "evaluate": 50}}},
    }  # fmt: skip
    result = hm.run(write_spec(spec, tmp_path), out=tmp_path / "out")
    assert not result.failed_cells
    rows = hm.load_results(tmp_path / "out")
    assert "lines.txt" in rows["summary"]["chains"]["m"]["truth"]


@pytest.mark.parametrize(
    ("truth", "says"),
    [
        ({"order": 1}, "give one"),
        ({"order": 1, "vocabulary": 4, "text": "x"}, "give one"),
        ({"order": 8, "vocabulary": 4000}, "too many entries"),
        ({"order": 1, "text": "missing.txt"}, "the text is no file"),
        ({"order": 1, "vocabulry": 4}, "did you mean 'vocabulary'"),
    ],
)
def test_truths_that_make_no_sense_are_refused(truth: dict[str, Any], says: str, tmp_path: Path) -> None:
    spec = {"name": "bad", "chains": {"m": {"family": "markov", "truth": truth, "teacher": {"order": 1},
                                            "student": {"order": 0}, "selectivity": [{"temperature": 1}]}}}  # fmt: skip
    with pytest.raises(SpecError, match=says):
        hm.run(write_spec(spec, tmp_path), out=tmp_path / "out")


@pytest.mark.campaign
def test_every_estimate_of_the_recipe_is_near_the_exact_value(tmp_path: Path) -> None:
    spec = hm.load_spec("markov", ["seeds=3"])
    result = hm.run(spec, out=tmp_path / "out")
    plan, bench = plan_run(spec), ArtifactLoader(ArtifactStore(tmp_path / "out" / "artifacts"))
    cells = {c["id"]: c["metrics"] for c in result.results["cells"]}
    truth = spec.chains["markov"].truth.law()  # type: ignore[attr-defined]
    compared = 0
    for cell in plan.cells:
        node: Any = plan.nodes[cell.judge]
        law: Any = bench.law(node.context, node.law, "float64", node.decoding)
        exact: dict[str, Estimate] = hm.judge_exact(truth, law, strings=100_000)
        for name, e in exact.items():
            if name.endswith(("_lower", "_upper")):
                found = cells[cell.id].get(name[:-6])
                if found is not None and e.value is not None:  # the truth has no prefixes to compare with its own
                    past = e.value - found["value"] if name.endswith("_lower") else found["value"] - e.value
                    assert past <= max(4.5 * found["se"], 1e-9), (cell.id, name, found, e.value)
                continue
            found = cells[cell.id].get(name)
            if found is None:
                assert cell.role == "truth"
                assert "_first_" in name
                continue
            if name == "collapsed":
                assert found["value"] <= (e.value or 0.0), cell.id  # what is shown holds
                continue
            assert (found["value"] is None) == (e.value is None), (cell.id, name)
            if e.value is not None:
                gap = abs(found["value"] - e.value)
                # Between atoms of unlike ratios P_a is bent, and its error is not the normal law's (docs, Frontiers).
                least = 0.01 if name.startswith("typicality") else 1e-9
                assert gap <= max(4.5 * found["se"], least), (cell.id, name, found, e.value)
                compared += 1
    assert compared > 1000
    assert math.isclose(cross(truth, truth).support, 1.0)


def test_a_stored_chain_is_read_by_what_the_documentation_says(tmp_path: Path) -> None:
    """docs, Run directory and schema, markov.npz: with numpy alone."""
    rows = [[1, 2, 0], [2, 2, 1, 1], [1, 0], [2, 1, 2, 0]]
    model = hm.fit_markov(rows, 2, smoothing=0.5, max_new_tokens=4).model
    MARKOV.save_law(model, tmp_path)
    with np.load(tmp_path / "markov.npz") as stored:
        table, shape = stored["log_table"], stored["shape"]
        assert set(stored.files) == {"log_table", "shape"}
    assert (table.dtype, shape.dtype, shape.tolist()) == (np.float64, np.int64, [2, 4])
    c_all, v_all = table.shape
    assert (c_all, v_all) == ((3 + 1) ** 2, 3)
    drawn = model.sample(200, seed=3)
    by_hand = []
    for i in range(200):
        digits, total = [v_all] * 2, 0.0
        for v in drawn.row(i).tolist():
            c = sum(d * (v_all + 1) ** (2 - j) for j, d in enumerate(digits, start=1))
            total += table[c, v]
            assert (c * (v_all + 1) + v) % c_all == digits[1] * (v_all + 1) + v
            digits = [digits[1], v]
        by_hand.append(total)
    assert [v_all] * 2 == [3, 3]
    np.testing.assert_allclose(model.log_prob(drawn), by_hand, rtol=1e-12)
    counts = {1: 2, 2: 2}  # first ids of the rows above
    np.testing.assert_allclose(np.exp(table[c_all - 1]), [(counts.get(v, 0) + 0.5) / 5.5 for v in range(3)])
