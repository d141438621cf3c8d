"""What every family promises, tested over all of them: the built-in ones, and those installed from outside."""

import re
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from pydantic import ValidationError

import hydrometer as hm
from chains import MIXTURE, lm_chain
from hydrometer.core.errors import InputError
from hydrometer.models.diffusion.spherical import ddim, noise_levels
from hydrometer.models.families import BUILT_IN, families
from hydrometer.testing import (
    CHECKS,
    Check,
    ContractCase,
    ContractError,
    check_a_cold_law_is_normalised_and_has_less_entropy,
    check_a_neutral_selectivity_changes_nothing,
    check_an_examination_repeats_itself,
    check_recorded_log_prob_is_the_score,
    check_rows_do_not_depend_on_the_call,
    check_the_family_is_whole,
    installed_cases,
)


def mixture_case(folder: Path) -> ContractCase:
    law = hm.Mixture([0.6, 0.3, 0.1], [[0, 0], [2, 1], [-1, 3]], [0.3, 0.2, 0.5], covariance_type="spherical")
    return _case(MIXTURE, law, hm.Selectivity(weight_power=1), hm.Selectivity(weight_power=4))


def causal_case(folder: Path) -> ContractCase:
    torch = pytest.importorskip("torch")
    torch.set_num_threads(1)
    from tiny import make_llama, make_tokenizer

    lm = hm.CausalLM(make_llama(vocab=24, layers=3), make_tokenizer(24))
    law = lm.law(["w3 w4", "w5", "w6 w7 w8"], max_new_tokens=5, block_rows=64)
    lm.save(folder / "truth")
    chain = lm_chain(folder / "truth", block_rows=64)
    return _case(chain, law, hm.Selectivity(temperature=1.0), hm.Selectivity(temperature=0.5, top_p=0.9))


def markov_case(folder: Path) -> ContractCase:
    chain = {
        "family": "markov", "truth": {"order": 2, "vocabulary": 5, "max_new_tokens": 6}, "teacher": {"order": 1},
        "student": {"order": 1}, "data": {"train": 200, "distill": 200, "evaluate": 200},
        "selectivity": [{"temperature": 1}, {"temperature": 0.5}],
    }  # fmt: skip
    law = families()["markov"].truth(families()["markov"].chain_spec.model_validate(chain), "float64")
    return _case(chain, law, hm.Selectivity(temperature=1), hm.Selectivity(temperature=0.5))


def diffusion_case(folder: Path) -> ContractCase:
    chain = {
        "family": "diffusion", "truth": {"means": [[0, 0], [2, 1], [-1, 3]], "covariances": [0.3, 0.2, 0.5],
        "weights": [0.6, 0.3, 0.1]}, "teacher": {"steps": 12}, "student": {"steps": 2, "n_components": 2},
        "loss": ["mle", "regression"], "data": {"train": 200, "distill": 200, "evaluate": 200},
        "selectivity": [{"temperature": 1}, {"temperature": 0.5}],
    }  # fmt: skip
    spec: Any = families()["diffusion"].chain_spec.model_validate(chain)
    law = ddim(spec.truth.law(), noise_levels(12, 20.0, 0.02, 7.0))
    return _case(chain, law, hm.Selectivity(temperature=1), hm.Selectivity(temperature=0.5))


def _case(chain: dict[str, Any], law: hm.Law, neutral: hm.Selectivity, cold: hm.Selectivity) -> ContractCase:
    family = families()[chain["family"]]
    return ContractCase(family, law, neutral, cold, family.chain_spec.model_validate(chain))


CASES: dict[str, Callable[[Path], ContractCase]] = {
    "mixture": mixture_case,
    "markov": markov_case,
    "diffusion": diffusion_case,
    "causal_lm": causal_case,
}
CASES |= {name: lambda _, make=make: make() for name, make in installed_cases().items()}


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], ContractCase]:
    return cache(lambda name: CASES[name](tmp_path_factory.mktemp(name)))


def test_every_family_is_tested_here() -> None:
    assert set(families()) == set(CASES)
    assert {f.name for f in BUILT_IN} | {"flow"} <= set(CASES), "the family in tests/outside_family is not installed"


@pytest.mark.parametrize("check", CHECKS, ids=lambda c: c.__name__)
@pytest.mark.parametrize("name", CASES)
def test_contract(name: str, check: Check, made: Callable[[str], ContractCase], tmp_path: Path) -> None:
    check(made(name), tmp_path)


TILTS = {
    "mixture": {"reward": {"bump": {"center": [0, 0], "width": 1, "height": 3}}, "strength": 1},
    "markov": {"reward": "-length", "strength": 1},
}
"""Tilts that lower the entropy, as the contract's cold setting does; others raise it."""


@pytest.mark.parametrize("check", CHECKS, ids=lambda c: c.__name__)
@pytest.mark.parametrize("name", TILTS)
def test_contract_of_a_tilt(name: str, check: Check, made: Callable[[str], ContractCase], tmp_path: Path) -> None:
    check(replace(made(name), cold=hm.Selectivity.model_validate({"tilt": TILTS[name]})), tmp_path)


def test_a_language_model_refuses_a_tilt_and_names_what_is_near(tmp_path: Path) -> None:
    case = causal_case(tmp_path)
    tilt = {"tilt": {"reward": "length", "strength": 1}}
    with pytest.raises(InputError, match="best_of: N with rank_by") as caught:
        case.law.select(hm.Selectivity.model_validate(tilt | {"temperature": 0.8}))
    assert "\n" not in str(caught.value)
    for setting in (tilt, tilt | {"temperature": 0.8}, tilt | {"best_of": 2, "rank_by": "length"}):
        body = case.chain.model_dump(mode="json", exclude_none=True) | {"selectivity": [setting]}
        with pytest.raises(ValidationError, match="best_of: N with rank_by"):
            case.family.chain_spec.model_validate(body)


KNOWN = {
    "benchmarks": {"causal_lm"},  # a card is examined on language models
    "claims": {"causal_lm", "diffusion", "markov", "mixture"},  # worlds that claims are measured in
    "run": {"causal_lm"},  # judging, exporting and adopting are of language models
    "metrics": {"markov", "mixture"},  # exact figures
    "cli": {"causal_lm"},  # `init` drafts of tables of prompts and answers, and of models, which no other family has
    "integrations": {"causal_lm"},  # the callback measures the network that transformers trains, which no run holds
}
"""Families that a room knows by name, and why."""


def test_a_family_is_known_in_its_folder_and_where_the_union_is_closed() -> None:
    source = Path(hm.__file__).parent
    found: dict[str, set[str]] = {}
    for path in source.rglob("*.py"):
        place = path.relative_to(source).parts
        own = place[1] if place[0] == "models" else ""
        named = set(re.findall(r"hydrometer\.models\.(mixture|markov|diffusion|causal_lm)\b", path.read_text("utf-8")))
        if len(place) > 1 and own not in (*named, "families.py"):
            found.setdefault(place[0], set()).update(named)
    assert {room: families for room, families in found.items() if families} == KNOWN


class Wrong:
    """A law that breaks one promise."""

    def __init__(self, law: Any, promise: str) -> None:
        self.law, self.promise = law, promise

    def __getattr__(self, name: str) -> Any:
        return getattr(self.law, name)

    def sample(self, n: int, *, seed: Any = 0, start: int = 0) -> Any:
        if self.promise == "rows":  # numbers every call's rows from 0
            return self.law.sample(n, seed=seed)
        x = self.law.sample(n, seed=seed, start=start)
        return hm.Points(x.x, x.log_prob + 0.001) if self.promise == "recorded" else x

    def select(self, s: hm.Selectivity) -> Any:
        chosen = Wrong(self.law.select(s), self.promise)
        if self.promise == "neutral":
            chosen.law = self.law.select(hm.Selectivity(weight_power=1.01))
        return chosen

    def log_prob(self, x: Any) -> Any:
        cold = not np.allclose(self.law.weights, [0.6, 0.3, 0.1])
        return self.law.log_prob(x) + (0.5 if self.promise == "normalised" and cold else 0)


BREAKS = {
    "rows": check_rows_do_not_depend_on_the_call,
    "recorded": check_recorded_log_prob_is_the_score,
    "neutral": check_a_neutral_selectivity_changes_nothing,
    "normalised": check_a_cold_law_is_normalised_and_has_less_entropy,
}


@pytest.mark.parametrize("promise", BREAKS)
def test_a_broken_promise_is_found(promise: str, tmp_path: Path) -> None:
    right = mixture_case(tmp_path)
    wrong = ContractCase(right.family, Wrong(right.law, promise), right.neutral, right.cold, right.chain)
    with pytest.raises(ContractError):
        BREAKS[promise](wrong, tmp_path)
    BREAKS[promise](right, tmp_path)


def test_a_family_that_lacks_a_method_is_found(tmp_path: Path) -> None:
    right = mixture_case(tmp_path)
    half: Any = SimpleNamespace(name="half", fit=right.family.fit)
    with pytest.raises(ContractError, match="load_law"):
        check_the_family_is_whole(ContractCase(half, right.law, right.neutral, right.cold, right.chain), tmp_path)


@pytest.mark.parametrize(
    "findings",
    [
        [[], [hm.Finding("x", "note", "what", "why", "fix")]],
        [[hm.Finding("x", "note", "what", "why", "fix", "its-own-name")]] * 2,
        [[hm.Finding("x", "note", "two\nlines", "why", "fix")]] * 2,
    ],
    ids=["changing", "named", "two lines"],
)
def test_an_examination_that_breaks_its_promise_is_found(tmp_path: Path, findings: list[list[hm.Finding]]) -> None:
    right = mixture_case(tmp_path)
    calls = iter(findings)
    family: Any = SimpleNamespace(
        examine=lambda _: next(calls), levels=right.family.levels, footprint=right.family.footprint
    )
    with pytest.raises(ContractError):
        check_an_examination_repeats_itself(
            ContractCase(family, right.law, right.neutral, right.cold, right.chain), tmp_path
        )
    check_an_examination_repeats_itself(right, tmp_path)
