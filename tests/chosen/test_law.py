"""Best of n and rejection on a chain whose strings can all be enumerated, so that the chosen law is known exactly."""

import itertools
import math
from typing import Any

import numpy as np
import pytest
from scipy.stats import chisquare

import hydrometer as hm
from hydrometer.core.errors import InputError, LawMismatchError, SpecError, StageError
from hydrometer.core.rng import Stream
from hydrometer.metrics.candidate_figures import best_of_bound, chosen_metrics
from hydrometer.models.choosing import best_of_n
from hydrometer.models.choosing.best_of_n import ChosenLaw, candidates_of
from hydrometer.models.choosing.rankers import BUILT_IN, scorer
from hydrometer.models.markov.law import END, Markov
from hydrometer.models.rows.sequences import Sequences

V, LONGEST = 3, 4


def chain(seed: int, order: int = 1) -> Markov:
    p = Stream(seed).child("test").uniforms(0, (V + 1) ** order, V) ** 2
    return Markov(np.log(p / p.sum(axis=1, keepdims=True)), order=order, max_new_tokens=LONGEST)


def every() -> Sequences:
    """All sequences of the stopped process, in float64 recorded under no law yet."""
    out = [[*body, END] for n in range(LONGEST) for body in itertools.product(range(1, V), repeat=n)]
    out += [list(s) for s in itertools.product(range(1, V), repeat=LONGEST)]
    ids = np.zeros((len(out), LONGEST), np.int64)
    for i, s in enumerate(out):
        ids[i, : len(s)] = s
    lengths = np.array([len(s) for s in out])
    stopped = np.array([s[-1] == END for s in out])
    return Sequences(((),), np.zeros(len(out), np.int64), ids, lengths, stopped, np.zeros(len(out)))


ALL = every()
LAW, TRUTH = chain(1), chain(2)


def setting(**fields: Any) -> hm.Selectivity:
    return hm.Selectivity.model_validate(fields)


def scores(s: hm.Selectivity, name: str) -> np.ndarray:
    """Scores of all strings, written out once more."""
    base = LAW if s.candidates is None else LAW.select(s.candidates)
    log_p = base.log_prob(ALL)
    table = {
        "log_prob": log_p, "log_prob_per_token": log_p / ALL.lengths, "log_prob_unselected": LAW.log_prob(ALL),
        "length": ALL.lengths.astype(float), "stopped": ALL.stopped.astype(float),
        "truth_log_prob": TRUTH.log_prob(ALL),
    }  # fmt: skip
    assert set(table) == set(BUILT_IN)
    return -table[name[1:]] if name.startswith("-") else table[name]


def exact(s: hm.Selectivity) -> tuple[np.ndarray, np.ndarray, float]:
    """Probabilities of the chosen law and of the candidates' law, (strings,), and the acceptance rate.

    The class of strings with score c wins with F(c)^n - F(c-)^n, F the distribution of an accepted candidate's score.
    Ties go to the first drawn, whose law within the class is the candidates' own.
    """
    base = LAW if s.candidates is None else LAW.select(s.candidates)
    p = np.exp(base.log_prob(ALL))
    ok = np.ones(p.size, bool)
    if s.accept is not None:
        found = scores(s, s.accept.by)
        ok = (found >= (-math.inf if s.accept.min is None else s.accept.min)) & (
            found <= (math.inf if s.accept.max is None else s.accept.max)
        )
    rate = float(p[ok].sum())
    kept = np.where(ok, p, 0) / rate
    if (s.best_of or 1) == 1:
        return kept, p, rate
    assert s.rank_by is not None
    rank = np.round(scores(s, s.rank_by), 12)
    below = np.array([kept[rank < r].sum() for r in rank])
    level = np.array([kept[rank == r].sum() for r in rank])
    win = (below + level) ** s.best_of - below**s.best_of
    return np.divide(kept * win, level, out=np.zeros_like(p), where=kept > 0), p, rate


SETTINGS = [
    setting(best_of=2, rank_by="log_prob"),
    setting(best_of=4, rank_by="-length"),
    setting(best_of=3, rank_by="log_prob_per_token", temperature=0.7),
    setting(best_of=3, rank_by="log_prob_unselected", temperature=1.5),
    setting(best_of=16, rank_by="truth_log_prob"),
    setting(best_of=2, rank_by="length", sequence_power=0.5),
    setting(accept={"by": "length", "min": 2, "max": 3}),
    setting(accept={"by": "stopped", "min": 1}, temperature=0.8),
    setting(accept={"by": "truth_log_prob", "min": -3.0}),
    setting(accept={"by": "length", "max": 3}, best_of=3, rank_by="truth_log_prob"),
]
IDS = [s.slug for s in SETTINGS]


def choose(s: hm.Selectivity) -> ChosenLaw:
    law = hm.choose(LAW, s, truth=TRUTH)
    assert isinstance(law, ChosenLaw)
    return law


def counts(x: Sequences) -> np.ndarray:
    place = {tuple(ALL.row(i).tolist()): i for i in range(len(ALL))}
    return np.bincount([place[tuple(x.row(i).tolist())] for i in range(len(x))], minlength=len(ALL))


@pytest.mark.parametrize("s", SETTINGS, ids=IDS)
def test_draws_follow_the_enumerated_law(s: hm.Selectivity) -> None:
    n = 20_000
    x = choose(s).sample(n, seed=1)
    b, _, _ = exact(s)
    assert b.sum() == pytest.approx(1, abs=1e-9)
    found, expected = counts(x), b * n
    assert found[expected == 0].sum() == 0
    rare = expected < 5
    pooled = [np.append(c[~rare], c[rare].sum()) for c in (found, expected)]
    keep = pooled[1] > 0
    assert chisquare(pooled[0][keep], pooled[1][keep] * n / pooled[1][keep].sum()).pvalue > 1e-4
    base: Any = candidates_of(choose(s))
    assert x.log_prob == pytest.approx(base.log_prob(x), rel=1e-9)  # recorded under the candidates' law


@pytest.mark.parametrize("s", SETTINGS, ids=IDS)
def test_figures_are_the_enumerated_ones(s: hm.Selectivity) -> None:
    b, p, rate = exact(s)
    on = b > 0
    n = s.best_of or 1
    found = hm.judge(TRUTH, choose(s), n=8000, seed=3)
    divergence = float(b[on] @ np.log(b[on] / p[on]))
    assert divergence <= -math.log(rate) + best_of_bound(n) + 1e-12
    wanted = {
        "precision": float(b @ TRUTH.log_prob(ALL)),
        "precision_per_token": float(b @ TRUTH.log_prob(ALL)) / float(b @ ALL.lengths),
        "entropy_bound": -float(b[on] @ np.log(p[on])),
        "length": float(b @ ALL.lengths),
        "eos_rate": float(b @ ALL.stopped),
        "draws_per_row": n / rate,
    }
    if s.accept is not None:
        wanted["acceptance_rate"] = rate
        name = "kl_chosen_candidates" if n == 1 else "kl_chosen_candidates_bound"
        wanted[name] = -math.log(rate) + best_of_bound(n)
        if n == 1:
            assert wanted[name] == pytest.approx(divergence, abs=1e-12)
    else:
        bound = found["kl_chosen_candidates_bound"]
        assert (bound.method, bound.se, bound.value) == ("exact", 0.0, pytest.approx(best_of_bound(n)))
        assert "acceptance_rate" not in found
    for name, value in wanted.items():
        e = found[name]
        assert e.value is not None
        assert e.se is not None
        assert abs(e.value - value) <= max(4.5 * e.se, 1e-9), (name, e, value)
    assert wanted["entropy_bound"] >= -float(b[on] @ np.log(b[on])) - 1e-12
    assert not {"recall", "entropy", "kl_student_truth", "kl_truth_student", "entropy_truth"} & set(found)


def test_the_bound_is_reached_where_scores_hardly_tie() -> None:
    """A fine score of many equal strings is nearly continuous: then the bound is the divergence."""
    m, n = 20_000, 5
    b = (np.arange(1, m + 1) ** n - np.arange(m) ** n) / m**n
    assert float(b @ np.log(b * m)) == pytest.approx(best_of_bound(n), abs=1e-3)


@pytest.mark.parametrize("s", SETTINGS, ids=IDS)
def test_rows_do_not_depend_on_the_call_or_the_batch(s: hm.Selectivity, monkeypatch: pytest.MonkeyPatch) -> None:
    law = choose(s)
    whole = law.sample(300, seed=Stream(5, ("x",)))
    for together in (4096, 64, 7, 1):
        monkeypatch.setattr(best_of_n, "_ROWS_TOGETHER", together)
        part = law.sample(90, seed=Stream(5, ("x",)), start=110)
        assert part.draws is not None
        assert whole.draws is not None
        assert (part.draws == whole.draws[110:200]).all()
        assert (part.log_prob == whole.log_prob[110:200]).all()
        assert [part.row(i).tolist() for i in range(90)] == [whole.row(110 + i).tolist() for i in range(90)]


def test_ties_go_to_the_first_drawn() -> None:
    s = setting(best_of=8, rank_by="stopped", accept={"by": "stopped", "min": 1, "max": 1})
    alone = setting(accept={"by": "stopped", "min": 1})
    x, first = choose(s).sample(500, seed=2), choose(alone).sample(500, seed=2)
    assert [x.row(i).tolist() for i in range(500)] == [first.row(i).tolist() for i in range(500)]


def test_more_candidates_hold_those_of_fewer() -> None:
    few, many = (choose(setting(best_of=n, rank_by="truth_log_prob")).sample(400, seed=4) for n in (2, 8))
    assert (TRUTH.log_prob(many) >= TRUTH.log_prob(few)).all()


def test_tries_are_counted_row_by_row() -> None:
    """A row whose first accepted candidate is number D passes with D tries and fails with one less, in any call."""
    free = setting(accept={"by": "length", "min": 4})
    draws = choose(free).sample(40, seed=6).draws
    assert draws is not None
    most = int(draws.max())
    assert most > 3

    def tried(tries: int) -> ChosenLaw:
        return choose(setting(accept={"by": "length", "min": 4, "tries": tries}))

    assert (tried(most).sample(40, seed=6).draws == draws).all()
    late = int(draws.argmax())
    for start, n in ((0, 40), (late, 1)):
        with pytest.raises(StageError, match=rf"row {late}: none of {most - 1} candidates") as caught:
            tried(most - 1).sample(n, seed=6, start=start)
        assert "\n" not in str(caught.value)


def test_what_is_never_accepted_fails_soon(monkeypatch: pytest.MonkeyPatch) -> None:
    drawn = 0
    plain = Markov.draw

    def counted(self: Markov, uniforms: Any, prompt_index: Any) -> Sequences:
        nonlocal drawn
        drawn += len(uniforms)
        return plain(self, uniforms, prompt_index)

    monkeypatch.setattr(Markov, "draw", counted)
    with pytest.raises(StageError, match="row 0: none of 1000"):
        choose(setting(accept={"by": "length", "min": LONGEST + 1})).sample(4096)
    assert drawn < 3 * 4096


def test_rejections_divergence_is_unbiased_over_prompts_of_unequal_rates() -> None:
    rates, n = np.array([0.05, 0.9]), 40_000
    prompt = np.arange(n) % 2
    u = Stream(7).child("geometric").uniforms(0, n, 3)
    draws = np.ceil(np.log(u) / np.log1p(-rates[prompt])[:, None]).astype(np.int64)
    one = chosen_metrics(draws[:, 0], 1, prompt, accept=True)
    e, right = one["kl_chosen_candidates"], float(-np.log(rates).mean())
    assert e.value is not None
    assert e.se is not None
    assert abs(e.value - right) < 4.5 * e.se
    pooled = one["acceptance_rate"].value
    assert pooled is not None
    assert abs(-math.log(pooled) - right) > 20 * e.se  # the logarithm of the pooled rate is another figure
    three = chosen_metrics(draws.sum(axis=1), 3, prompt, accept=True)["kl_chosen_candidates_bound"]
    assert three.value is not None
    assert three.se is not None
    assert abs(three.value - right - best_of_bound(3)) < 4.5 * three.se


def test_rates_have_an_error_where_nothing_was_rejected() -> None:
    found = chosen_metrics(np.ones(50, np.int64), 1, None, accept=True)
    assert (found["acceptance_rate"].value, found["kl_chosen_candidates"].value) == (1.0, 0.0)
    assert all((found[k].se or 0) > 0.01 for k in ("acceptance_rate", "kl_chosen_candidates"))


def test_a_choice_has_no_probabilities_and_says_so() -> None:
    law = choose(SETTINGS[0])
    assert law.score_kind == "none"
    with pytest.raises(InputError, match="no log-probability"):
        law.log_prob(ALL)
    with pytest.raises(InputError, match="chosen already"):
        law.select(setting(temperature=0.5))
    law.compatible(LAW)
    law.compatible(law)
    with pytest.raises(LawMismatchError):
        law.compatible(object())


def test_without_a_choice_choose_is_select() -> None:
    assert hm.choose(LAW, setting(best_of=1, rank_by="length")) is LAW
    cold = hm.choose(LAW, setting(temperature=0.5, best_of=1, rank_by="length"))
    assert isinstance(cold, Markov)
    assert (cold.log_table == LAW.select(setting(temperature=0.5)).log_table).all()


@pytest.mark.parametrize(
    ("work", "error", "says"),
    [
        (lambda: LAW.select(SETTINGS[0]), InputError, r"use hydrometer\.choose"),
        (
            lambda: hm.Mixture([1.0], [[0.0]], [1.0], covariance_type="spherical").select(
                setting(weight_power=2, best_of=2, rank_by="log_prob")
            ),
            InputError, r"use hydrometer\.choose",
        ),
        (lambda: hm.choose(LAW, SETTINGS[4]), InputError, "needs the truth"),
        (lambda: hm.choose(LAW, setting(best_of=2, rank_by="lenght")), SpecError, "did you mean 'length'"),
        (lambda: choose(SETTINGS[0]).sample(0), InputError, "n >= 1"),
        (lambda: hm.judge_exact(TRUTH, choose(SETTINGS[0])), LawMismatchError, "its like"),  # type: ignore[arg-type]
        (lambda: hm.judge(choose(SETTINGS[0]), LAW, n=10), InputError, "no log-probability"),
        (
            lambda: hm.choose(hm.Mixture([1.0], [[0.0]], [1.0], covariance_type="spherical"), SETTINGS[0]),
            InputError, "choose among sequences",
        ),
    ],
)  # fmt: skip
def test_nonsense_is_refused(work: Any, error: type[Exception], says: str) -> None:
    with pytest.raises(error, match=says) as caught:
        work()
    assert "\n" not in str(caught.value)


def words(x: Sequences) -> tuple[list[str], list[str]]:
    return ["ask"] * len(x), ["".join("ab"[v - 1] for v in x.row(i) if v) for i in range(len(x))]


def test_an_installed_score_ranks_by_texts() -> None:
    """`count_b` of the package in tests/outside_family is announced by its entry point."""
    x = hm.choose(LAW, setting(best_of=4, rank_by="count_b"), texts=words).sample(2000, seed=8)
    same = LAW.sample(2000, seed=8)
    gain = np.mean([a.count("b") for a in words(x)[1]]) - np.mean([a.count("b") for a in words(same)[1]])
    assert gain > 0.3
    with pytest.raises(InputError, match="needs the rows' texts"):
        hm.choose(LAW, setting(best_of=4, rank_by="count_b"))


@pytest.mark.parametrize(("name", "says"), [("broken_score", "division by zero"), ("nan_score", "NaN")])
def test_an_installed_score_that_fails_is_one_line(name: str, says: str) -> None:
    score = scorer(name, unselected=LAW, truth=None, texts=words)
    with pytest.raises(StageError, match=says) as caught:
        score(ALL)
    assert "\n" not in str(caught.value)
    with pytest.raises(SpecError, match="cannot be imported"):
        scorer("missing_score", unselected=LAW, truth=None, texts=words)
