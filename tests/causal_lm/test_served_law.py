"""The law of a served model: draws and scores by a server, against the same network opened."""

from __future__ import annotations

import threading
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy import stats

torch = pytest.importorskip("torch")

from fake_server import serving  # noqa: E402
from hydrometer.core.errors import HydrometerError, InputError, LawMismatchError, StageError  # noqa: E402
from hydrometer.core.rng import Stream  # noqa: E402
from hydrometer.core.spec import Selectivity  # noqa: E402
from hydrometer.models.base import Controlled  # noqa: E402
from hydrometer.models.causal_lm.engines.client import Server  # noqa: E402
from hydrometer.models.causal_lm.engines.served_model import Served, ServedModel  # noqa: E402
from hydrometer.models.causal_lm.inference.law import CausalLaw  # noqa: E402
from hydrometer.models.causal_lm.inference.model import CausalLM  # noqa: E402
from hydrometer.models.causal_lm.inference.served_law import ServedLaw, ServedLM  # noqa: E402
from hydrometer.models.causal_lm.inference.served_source import ServedSource, find_source, served_outline  # noqa: E402
from naive import all_strings, as_sequences  # noqa: E402
from tiny import make_llama  # noqa: E402

APIS = ("vllm", "sglang")


@pytest.fixture(scope="module")
def tokenizer(small: CausalLM, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tokenizer alone, in a folder without config and weights."""
    folder = tmp_path_factory.mktemp("tokenizer")
    small.tokenizer.save_pretrained(folder)
    return folder


def served(like: CausalLaw, url: str, tokenizer: Path, **more: Any) -> ServedLaw:
    settings = {"base_url": url, "model": "tiny", "tokenizer": str(tokenizer), "concurrency": 2, "timeout": 20}
    model = ServedModel.model_validate({**settings, "patience": 0, **more})
    source = find_source(Served(served=model))
    assert isinstance(source, ServedSource)
    lm = ServedLM(model, served_outline(source), "cpu")
    return ServedLaw(lm, like.prompts, like.stop_ids, like.max_new_tokens, None, like.block_rows)


@pytest.mark.parametrize("api", APIS)
def test_served_scores_are_those_of_the_network(small: CausalLM, tokenizer: Path, api: str) -> None:
    """All strings of three prompts: every score to 1e-4 nats a token, and their probabilities add up to 1."""
    like = small.law(["w3", "w4 w5", "w6"], max_new_tokens=2)
    with serving(small) as (url, fake):
        law = served(like, url, tokenizer, api=api)
        for prompt in range(3):
            x = replace(as_sequences(like, all_strings(like)), prompt_index=np.full(len(all_strings(like)), prompt))
            own = law.token_log_prob(x)
            np.testing.assert_allclose(own, like.score_steps(x).selected, atol=1e-4)
            assert np.exp(law.log_prob(x)).sum() == pytest.approx(1, abs=1e-5)
    assert fake.asked
    assert law.score_kind == "exact"
    assert not isinstance(law, Controlled)
    law.compatible(like)
    like.compatible(law)
    with pytest.raises(LawMismatchError, match="differ in their prompts"):
        like.compatible(served(small.law("w3"), url, tokenizer))


def test_impossible_rows_have_no_probability(small: CausalLM, tokenizer: Path) -> None:
    like = small.law("w3", max_new_tokens=3)
    x = like.sample(6, seed=1)
    wrong = replace(x, lengths=x.lengths.clip(max=1), ids=np.where(x.ids == 1, 3, x.ids))
    with serving(small) as (url, fake):
        assert np.isneginf(served(like, url, tokenizer).log_prob(wrong)).all()
        assert not fake.asked


@pytest.mark.parametrize("api", APIS)
@pytest.mark.parametrize("mode", ["raw", "processed"])
@pytest.mark.parametrize("s", [None, Selectivity(temperature=0.6)], ids=["as it is", "0.6"])
def test_draws_follow_the_law(small: CausalLM, tokenizer: Path, api: str, mode: str, s: Selectivity | None) -> None:
    like = small.law(None, max_new_tokens=2)
    with serving(small, mode=mode) as (url, _):
        law = served(like, url, tokenizer, api=api)
        law = law if s is None else law.select(s)
        x, facts = law.draw_block(150, stream=Stream(4), start=0)
        again = law.sample(5, seed=Stream(4), start=7)
    np.testing.assert_allclose(x.log_prob, like.log_prob(x), atol=2e-4)  # without the selectivity
    assert [again.row(i).tolist() for i in range(5)] == [x.row(i).tolist() for i in range(7, 12)]
    wanted = like if s is None else like.select(s)
    strings = all_strings(like)
    index = {string: i for i, string in enumerate(strings)}
    counts = np.bincount([index[tuple(x.row(i).tolist())] for i in range(len(x))], minlength=len(strings))
    expected = len(x) * np.exp(wanted.log_prob(as_sequences(like, strings)))
    common = expected >= 5
    found, of = np.append(counts[common], counts[~common].sum()), np.append(expected[common], expected[~common].sum())
    assert stats.chisquare(found, of * found.sum() / of.sum()).pvalue > 1e-4
    told: Any = facts["served"]
    assert told["version"] == "0.0.fake"
    assert told["log_probs"] == mode
    if s is None or mode == "raw":
        assert abs(told["gap"]["value"]) < 1e-4
    else:
        assert "gap" not in told
        with pytest.raises(InputError, match="at temperature 1 alone"):
            law.log_prob(x)


def _prompt_choice(**fields: Any):
    return lambda a, q: {"choices": [a["choices"][0] | fields]} if "prompt_logprobs" in q else a


def _shifted(by: float):
    def change(a: Any, q: Any) -> Any:
        for entry in (a["choices"][0]["prompt_logprobs"] or ()) if "prompt_logprobs" in q else ():
            for told in (entry or {}).values():
                told["logprob"] += by
        return a

    return change


def _other_id(a: Any, q: Any) -> Any:
    if "prompt_logprobs" in q:
        a["choices"][0]["prompt_logprobs"][-1] = {"999": {"logprob": -1.0}}
    return a


HOSTILE: dict[str, tuple[dict[str, Any], str]] = {
    "switched off": ({"scores": False}, "returns no log-probabilities of the prompt"),
    "too few": ({"change": _prompt_choice(prompt_logprobs=[None])}, "returns no log-probabilities of the prompt"),
    "another prompt": ({"change": _prompt_choice(prompt_token_ids=[0, 1])}, "scores another prompt"),
    "another tokenization": ({"change": _other_id}, "says nothing of id"),
    "not normalised": ({"change": _shifted(0.5)}, "not normalised|no log-probability"),
    "of another model": ({"change": _shifted(-0.5)}, "not those that it draws by"),
    "two choices": ({"change": lambda a, q: {"choices": a["choices"] * 2}}, "exactly one choice"),
    "no room": ({"room": 4}, "room for fewer tokens"),
}


@pytest.mark.parametrize("case", HOSTILE)
def test_what_would_make_scores_wrong_is_one_line(small: CausalLM, tokenizer: Path, case: str) -> None:
    options, message = HOSTILE[case]
    like = small.law("w3", max_new_tokens=3)
    with serving(small, **options) as (url, _), pytest.raises(StageError, match=message) as caught:
        served(like, url, tokenizer).sample(32, seed=2)
    assert "\n" not in str(caught.value)


def test_sglang_without_scores_is_one_line(small: CausalLM, tokenizer: Path) -> None:
    like = small.law("w3", max_new_tokens=3)
    with serving(small, scores=False) as (url, _), pytest.raises(StageError, match="input_token_logprobs"):
        served(like, url, tokenizer, api="sglang").log_prob(like.sample(4, seed=2))


@pytest.fixture
def _short_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Server.ask_patiently, "__kwdefaults__", {"sleep": lambda seconds: time.sleep(seconds / 20)})


@pytest.mark.usefixtures("_short_pauses")
@pytest.mark.parametrize("api", APIS)
@pytest.mark.parametrize("dies", [5, 45])  # in the midst of drawing, and of scoring
def test_a_server_that_goes_away_and_comes_back_costs_time_alone(
    small: CausalLM, tokenizer: Path, api: str, dies: int
) -> None:
    like = small.law(["w3", "w4"], max_new_tokens=3)
    with serving(small) as (url, _):
        whole = served(like, url, tokenizer, api=api).sample(32, seed=3)
    with serving(small, die_after=dies) as (url, fake):
        waker = threading.Thread(target=_revive, args=(fake,))
        waker.start()
        x = served(like, url, tokenizer, api=api, patience=60).sample(32, seed=3)
        waker.join()
    assert fake.died >= 2
    np.testing.assert_array_equal(x.ids, whole.ids)
    np.testing.assert_array_equal(x.log_prob, whole.log_prob)
    with serving(small, die_after=dies) as (url, _), pytest.raises(StageError, match="cannot be asked"):
        _impatient(served(like, url, tokenizer, api=api))


def _revive(fake: Any) -> None:
    while fake.died < 2:
        time.sleep(0.01)
    fake.revived()


def _impatient(law: ServedLaw) -> None:
    law.sample(32, seed=3)


def test_another_model_under_one_name_is_found_out(small: CausalLM, tokenizer: Path) -> None:
    like = small.law(["w3", "w4"], max_new_tokens=3)
    other = CausalLM(make_llama(vocab=8, layers=2, seed=6), small.tokenizer)
    with serving(small) as (url, _):
        law = served(like, url, tokenizer)
        x = law.sample(32, seed=3)
        np.testing.assert_allclose(law.score_own(x), x.log_prob, atol=1e-4)
        cold = law.select(Selectivity(temperature=0.5)).sample(32, seed=3)
    with serving(other) as (url, _):
        for rows in (x, cold):
            with pytest.raises(StageError, match="another model is served by now"):
                served(like, url, tokenizer).score_own(rows)


def test_what_a_served_model_is(small: CausalLM, tokenizer: Path, tmp_path: Path) -> None:
    """Its name and its tokenizer; not where it is served, nor weights that lie beside the tokenizer."""

    def of(folder: Path, model: str = "tiny", url: str = "http://a:1") -> dict[str, str]:
        at = {"base_url": url, "model": model, "tokenizer": str(folder)}
        return dict(find_source(Served(served=ServedModel.model_validate(at))).identity)

    small.tokenizer.save_pretrained(tmp_path / "other")
    assert of(tokenizer) == of(tokenizer, url="https://b:2") == of(tmp_path / "other")
    assert of(tokenizer) != of(tokenizer, model="other")
    (tmp_path / "other" / "model.safetensors").write_bytes(b"never read")
    assert of(tmp_path / "other") == of(tokenizer)
    with pytest.raises(HydrometerError, match="holds no tokenizer"):
        of(tmp_path)
