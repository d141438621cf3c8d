"""Wrong arguments of public functions: one line that says what, what was got, and the fix where there is one."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import hydrometer as hm

MIXTURE = hm.Mixture([0.5, 0.5], [[0.0, 0.0], [3.0, 0.0]], [1.0, 1.0], covariance_type="spherical")
CHAIN = hm.Markov(np.log(np.full((1, 3), 1 / 3)), order=0, max_new_tokens=5)
DRAWN = MIXTURE.sample(20).x
WRONG: dict[str, Callable[[], Any]] = {
    "weight_power (beta) must be at least 1": lambda: hm.Selectivity(weight_power=0.5),
    "temperature must be a finite number above 0": lambda: hm.Selectivity(temperature=math.nan),
    "unknown key 'temp'; did you mean 'temperature'?": lambda: hm.Selectivity(temp=1),
    "a selectivity needs one of": lambda: hm.Selectivity(),
    "takes its fields by name; got 0.8": lambda: hm.Selectivity(0.8),
    "n, the number of rows, must be a whole number of at least 0; got -1": lambda: MIXTURE.sample(-1),
    "at least 0; got 2.5": lambda: CHAIN.sample(2.5),
    "at least 0; got nan": lambda: MIXTURE.sample(math.nan),
    "start, the first row,": lambda: CHAIN.sample(1, start=-1),
    "seed must be a whole number; got 'a'": lambda: MIXTURE.sample(1, seed="a"),
    "seed must be a whole number; got 1.5": lambda: hm.Stream(1.5),
    "at least 1; got None; for example n=20_000": lambda: hm.judge(MIXTURE, MIXTURE),
    "at least 1; got 0;": lambda: hm.judge(MIXTURE, MIXTURE, n=0),
    "at least 1; got True;": lambda: hm.judge(MIXTURE, MIXTURE, n=True),
    "law is no law": lambda: hm.judge(MIXTURE, 3, n=5),
    "truth is no law": lambda: hm.judge("big", MIXTURE, n=5),
    "selected by is no Selectivity; got 0.8": lambda: MIXTURE.select(0.8),
    "selected by is no Selectivity; got None": lambda: CHAIN.select(None),
    "selected by is no Selectivity; got 'x'": lambda: hm.choose(CHAIN, "x"),
    "n_components must be a whole number; got 1.5": lambda: hm.fit_mixture(DRAWN, 1.5),
    "max_iter must be a whole number of at least 1": lambda: hm.fit_mixture(DRAWN, 1, max_iter="a"),
    "tol must be a number of at least 0; got nan": lambda: hm.fit_mixture(DRAWN, 1, tol=math.nan),
    "reg_covar must be a finite number of at least 0": lambda: hm.fit_mixture(DRAWN, 1, reg_covar=math.inf),
    "order must be a whole number of at least 0": lambda: hm.fit_markov([[1, 0]], order=-1),
    "smoothing must be a finite number": lambda: hm.fit_markov([[1, 0]], order=1, smoothing=math.nan),
    "the ids of tokens; got ['a']": lambda: hm.fit_markov([["a"]], order=1),
    "max_recall_loss, in nats, must be": lambda: hm.Need(max_recall_loss="a"),
    "per token or per sequence; got 'word'": lambda: hm.Need(weight=0.3, per="word"),
    "need is no Need; got 0.1": lambda: hm.advise("run", 0.1),
    "a recipe's name or a YAML file; got 3": lambda: hm.run(3),
    "overrides are a list of PATH=VALUE": lambda: hm.load_spec("markov", "seeds=2"),
    "until is": lambda: hm.run("markov", until="fit"),
    "a place is a path or a URL; got 3": lambda: hm.run("markov", out=3),
    "a place is a path or a URL; got 4": lambda: hm.build_report(4),
}


@pytest.mark.parametrize("said", WRONG)
def test_it_is_one_line(said: str) -> None:
    with pytest.raises(hm.InputError) as caught:
        WRONG[said]()
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


def test_numbers_of_other_libraries_are_numbers() -> None:
    assert len(MIXTURE.sample(np.int64(3), seed=np.int32(1))) == 3
    assert (MIXTURE.sample(2, seed=np.int64(1)).x == MIXTURE.sample(2, seed=1).x).all()
    assert hm.Need(max_recall_loss=np.float32(0.5)).objective == "precision"
    assert hm.fit_mixture(DRAWN, np.int64(1), tol=np.float32(0.1)).model.n_components == 1


def test_a_key_is_named_without_the_names_of_alternatives() -> None:
    chain = {
        "family": "mixture", "truth": {"means": [[0, 0]] * 50, "covariances": 1.0}, "teacher": {"n_components": "a"},
        "student": {"n_components": 9000}, "selectivity": [{"weight_power": 1}],
    }  # fmt: skip
    with pytest.raises(hm.SpecError, match=r"chains.m: teacher.n_components: .*got 'a'$"):
        parse(chain)
    with pytest.raises(hm.SpecError, match=r"n_components is 9000, more than the 100 points.* or raise data$"):
        parse({**chain, "teacher": {"n_components": 2}})


def parse(chain: dict[str, Any]) -> None:
    from hydrometer.models.families import parse_run_spec

    parse_run_spec({"name": "x", "chains": {"m": chain}}, "x.yaml")


def test_a_family_refuses_what_is_not_its_own() -> None:
    from hydrometer.core.arguments import of_type
    from hydrometer.models.families import families

    assert of_type(hm.Mixture, MIXTURE) is MIXTURE
    with pytest.raises(hm.InputError, match=r"not a Markov; got 'Mixture'"):
        of_type(hm.Markov, MIXTURE)
    with pytest.raises(hm.InputError, match=r"not a MarkovChain; got 'MixtureChain'"):
        families()["markov"].examine(families()["mixture"].chain_spec.model_construct())
