"""What every family promises, tested over all of them: a new family is added to `LAWS` and gets the laws for free."""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import hydrometer as hm
from hydrometer.core.rng import Stream
from hydrometer.models.base import Law
from hydrometer.models.families import BUILT_IN, families


def mixture_law() -> Law:
    return hm.Mixture([0.6, 0.3, 0.1], [[0, 0], [2, 1], [-1, 3]], [0.3, 0.2, 0.5], covariance_type="spherical")


def causal_law() -> Law:
    torch = pytest.importorskip("torch")
    torch.set_num_threads(1)
    from tiny import make_llama, make_tokenizer

    lm = hm.CausalLM(make_llama(vocab=24, layers=2), make_tokenizer(24))
    return lm.law(["w3 w4", "w5", "w6 w7 w8"], max_new_tokens=5, block_rows=64)


LAWS: dict[str, tuple[Callable[[], Law], hm.Selectivity, hm.Selectivity]] = {
    "mixture": (mixture_law, hm.Selectivity(weight_power=1), hm.Selectivity(weight_power=4)),
    "causal_lm": (causal_law, hm.Selectivity(temperature=1.0), hm.Selectivity(temperature=0.5, top_p=0.9)),
}


@pytest.fixture(params=list(LAWS))
def case(request: pytest.FixtureRequest) -> tuple[str, Law, hm.Selectivity, hm.Selectivity]:
    make, neutral, cold = LAWS[request.param]
    return request.param, make(), neutral, cold


def rows(samples: Any) -> list[tuple[float, ...]]:
    if isinstance(samples, hm.Sequences):
        return [(float(samples.prompt_index[i]), *samples.row(i).tolist()) for i in range(len(samples))]
    return [tuple(r) for r in samples.x.tolist()]


def test_every_family_is_tested_here() -> None:
    assert {f.name for f in BUILT_IN} == set(LAWS)


def test_rows_are_equal_whatever_the_call_that_asks_for_them(case: Any) -> None:
    _, law, _, cold = case
    for one in (law, law.select(cold)):
        whole = one.sample(150, seed=Stream(3, ("x",)))
        part = one.sample(70, seed=Stream(3, ("x",)), start=33)  # across two blocks of 64
        assert rows(whole)[33:103] == rows(part)
        assert (whole.log_prob[33:103] == part.log_prob).all()
        assert rows(one.sample(150, seed=Stream(4, ("x",)))) != rows(whole)


def test_recorded_log_probability_is_the_score(case: Any) -> None:
    _, law, _, cold = case
    for one in (law, law.select(cold)):
        x = one.sample(64, seed=1)
        assert np.isfinite(x.log_prob).all()
        assert one.log_prob(x) == pytest.approx(x.log_prob, abs=1e-4)
        assert one.log_prob(x).dtype == np.float64


def test_a_neutral_selectivity_is_the_same_law(case: Any) -> None:
    _, law, neutral, _ = case
    x = law.sample(32, seed=2)
    assert law.select(neutral).log_prob(x) == pytest.approx(law.log_prob(x), abs=1e-9)


def test_a_cold_law_has_less_entropy_and_is_normalised(case: Any) -> None:
    """E_p[q/p] = 1 on the support of q: importance sampling checks normalisation, at 5 standard errors."""
    _, law, _, cold = case
    selected = law.select(cold)
    x = law.sample(2000, seed=5)
    ratio = np.exp(selected.log_prob(x) - law.log_prob(x))
    assert abs(ratio.mean() - 1) < 5 * ratio.std() / math.sqrt(len(ratio))
    y = selected.sample(2000, seed=6)
    h_cold, h = -selected.log_prob(y), -law.log_prob(x)
    assert h_cold.mean() + 5 * math.hypot(h_cold.std(), h.std()) / math.sqrt(2000) < h.mean()


def test_a_law_survives_its_folder(case: Any, tmp_path: Path) -> None:
    name, law, _, _ = case
    family = families()[name]
    spec = _chain(name)
    family.save_law(law, tmp_path)
    back = family.load_law(tmp_path, spec, "float32" if name == "causal_lm" else "float64")
    x = law.sample(16, seed=8)
    assert rows(back.sample(16, seed=8)) == rows(x)
    assert (back.log_prob(x) == law.log_prob(x)).all()


def test_rows_survive_their_folder_and_join_in_order(case: Any, tmp_path: Path) -> None:
    name, law, _, _ = case
    family = families()[name]
    folders = [tmp_path / "a", tmp_path / "b"]
    for i, folder in enumerate(folders):
        folder.mkdir()
        family.save_samples(law.sample(8, seed=9, start=8 * i), folder)
    x = family.load_samples(folders, 13)
    whole = law.sample(13, seed=9)
    assert rows(x) == rows(whole)
    assert (x.log_prob == whole.log_prob).all()
    assert rows(family.take(whole, 5)) == rows(whole)[:5]


def _chain(name: str) -> Any:
    from chains import lm_chain, mixture_spec

    raw = mixture_spec()["chains"]["m"] if name == "mixture" else lm_chain("nowhere", block_rows=64)
    return families()[name].chain_spec.model_validate(raw)
