"""How laws, rows and figures show themselves."""

from __future__ import annotations

import re

import numpy as np
import pytest

import hydrometer as hm


def laws() -> list[object]:
    rng = np.random.default_rng(0)
    wide = hm.Mixture(np.full(400, 1 / 400), rng.normal(size=(400, 16)), np.ones(400), covariance_type="spherical")
    table = np.log(rng.dirichlet(np.ones(30), size=31**2))
    chain = hm.Markov(table, order=2, max_new_tokens=50)
    batch = hm.fit_mixture(rng.normal(size=(50, 40, 2)), 2)
    best = hm.choose(chain, hm.Selectivity(best_of=4, rank_by="length"))
    return [wide, wide.sample(5000), chain, chain.sample(5000), best, batch, batch.model[0]]


@pytest.mark.parametrize("thing", laws(), ids=lambda x: type(x).__name__)
def test_laws_and_rows_are_a_line(thing: object) -> None:
    shown = repr(thing)
    assert len(shown) < 1200
    assert "\n" not in shown or type(thing).__name__ == "MixtureFit"
    if hasattr(thing, "_repr_html_"):
        assert len(thing._repr_html_()) < 5000
        assert type(thing).__name__ in thing._repr_html_()


def test_figures_are_a_dict_that_shows_a_line_a_figure_with_its_interval() -> None:
    p, q = (hm.Mixture([1.0], [[m]], [1.0], covariance_type="spherical") for m in (0.0, 1.0))
    found = hm.judge(p, q, n=400)
    assert isinstance(found, hm.Figures)
    assert dict(found) == found
    lines = repr(found).splitlines()
    assert [line.split()[0] for line in lines] == [*found]
    shown = re.search(r"^recall +(\S+) ± (\S+) nats +(\S+) to (\S+)$", repr(found), re.MULTILINE)
    assert shown is not None
    recall = found["recall"]
    ends = recall.interval()
    assert ends is not None
    wanted = [recall.value, recall.se, *ends]
    assert [float(x) for x in shown.groups()] == pytest.approx(wanted, abs=10.0 ** -len(shown[2].partition(".")[2]))
    assert repr(recall) == f"<Estimate {recall}>"
    assert shown[3] in recall._repr_html_()
    exact = hm.judge_exact(p, q)
    assert isinstance(exact, hm.Figures)
    assert "kl_student_truth" in repr(exact)
    assert repr(hm.Figures()) == "no figures"


def test_a_caution_that_nearly_all_figures_have_is_said_once() -> None:
    few = hm.Estimate(-1.5, 0.1, 0.1, 100, caution="few_rows")
    sure = hm.Estimate(-2.5, 0.1, 0.1, 100)
    found = hm.Figures({f"m{i}": few for i in range(9)} | {"kl": sure})
    first, *lines = repr(found).splitlines()
    assert first == "few rows or prompts decide 9 of 10 figures, not those marked *: their errors may be larger"
    assert [("*" in line, "few" in line) for line in lines] == [(False, False)] * 9 + [(True, False)]
    assert found._repr_html_().count("few rows") == 1
    half = repr(hm.Figures({"a": few, "b": sure})).splitlines()
    assert [line.count("few rows or prompts decide it") for line in half] == [1, 0]
