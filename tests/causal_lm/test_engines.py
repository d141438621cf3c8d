"""Engines: the law that a served model draws, and everything under which its figures would be wrong."""

from __future__ import annotations

import asyncio
import time
from importlib.metadata import EntryPoint
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy import stats

torch = pytest.importorskip("torch")

import hydrometer as hm  # noqa: E402
from chains import write_spec  # noqa: E402
from fake_server import serving  # noqa: E402
from hydrometer.core.errors import (  # noqa: E402
    HydrometerError,
    InputError,
    MissingDependencyError,
    SpecError,
    StageError,
)
from hydrometer.core.rng import Stream  # noqa: E402
from hydrometer.core.spec import Selectivity  # noqa: E402
from hydrometer.models.causal_lm.engines import engine, openai, registry  # noqa: E402
from hydrometer.models.causal_lm.engines import vllm as vllm_engine  # noqa: E402
from hydrometer.models.causal_lm.engines.client import Refusal, Server, server_base  # noqa: E402
from hydrometer.models.causal_lm.engines.engine import Answer, EngineSettings, Place  # noqa: E402
from hydrometer.models.causal_lm.engines.openai import OPENAI, OpenAISettings  # noqa: E402
from hydrometer.models.causal_lm.engines.vllm import VLLM, VllmSettings  # noqa: E402
from hydrometer.models.causal_lm.inference.draw_block import draw_by_engine  # noqa: E402
from hydrometer.models.causal_lm.inference.law import CausalLaw  # noqa: E402
from hydrometer.models.causal_lm.inference.model import CausalLM  # noqa: E402
from hydrometer.models.causal_lm.inference.rescore import rescore  # noqa: E402
from hydrometer.models.causal_lm.spec import CausalLMChain  # noqa: E402
from naive import all_strings, as_sequences  # noqa: E402
from tiny import make_llama, make_tokenizer  # noqa: E402


@pytest.fixture(autouse=True)
def _closed():
    yield
    engine.release()


def settings(url: str, **more: Any) -> OpenAISettings:
    return OpenAISettings.model_validate({"base_url": url, "model": "tiny", "concurrency": 2, "timeout": 20, **more})


def draw(law: CausalLaw, url: str, n: int = 64, seed: int = 3, **more: Any):
    return draw_by_engine(law, OPENAI, settings(url, **more), dtype="float32", n=n, stream=Stream(seed), start=0)


def p_value(law: CausalLaw, x: Any) -> float:
    strings = all_strings(law)
    index = {s: i for i, s in enumerate(strings)}
    counts = np.bincount([index[tuple(x.row(i).tolist())] for i in range(len(x))], minlength=len(strings))
    expected = len(x) * np.exp(law.log_prob(as_sequences(law, strings)))
    assert not counts[expected == 0].any()
    common = expected >= 5
    observed, wanted = counts[common], expected[common]
    if expected[~common].sum() > 0:
        observed, wanted = np.append(observed, counts[~common].sum()), np.append(wanted, expected[~common].sum())
    return float(stats.chisquare(observed, wanted * observed.sum() / wanted.sum()).pvalue)


@pytest.mark.parametrize("mode", ["raw", "processed"])
@pytest.mark.parametrize(
    "s", [None, Selectivity(temperature=0.7, top_p=0.8), Selectivity(temperature=1.4, top_k=5, min_p=0.05)], ids=str
)
def test_a_served_models_rows_follow_the_enumerated_law(small: CausalLM, s: Selectivity | None, mode: str) -> None:
    law = small.law(None, max_new_tokens=2, selectivity=s)
    with serving(small, mode=mode) as (url, fake):
        x, facts = draw(law, url + "/v1/", n=1200)
    assert p_value(law, x) > 1e-4
    np.testing.assert_allclose(x.log_prob, law.log_prob(x), atol=1e-9)  # the scorer's, to the bit but for batches
    own = law.score_steps(x)
    np.testing.assert_allclose(x.token_log_prob, own.selected, atol=1e-6)
    np.testing.assert_allclose(x.token_log_prob_unselected, own.unselected, atol=1e-6)
    told = facts["engine"]
    assert told["version"] == "0.0.fake"
    assert told["log_probs"] == mode
    assert abs(told["gap"]["value"]) < 1e-5
    assert told["gap"]["max"] < 1e-4
    assert abs(told["surprise"]["value"]) < 5 * told["surprise"]["se"]
    sent = [a for a in fake.asked if "stop_token_ids" in a]
    assert sorted(a["seed"] for a in sent) == sorted(Stream(3).child("engine", str(i)).integer() for i in range(1200))
    for a in sent[:3]:  # every setting is sent, whatever the server's own defaults are
        assert a["prompt"] == list(law.prompts.ids[0])
        assert (a["repetition_penalty"], a["ignore_eos"], a["min_tokens"], a["n"]) == (1.0, True, 0, 1)
        assert {"temperature", "top_k", "top_p", "min_p"} <= set(a)


def test_rows_answer_their_own_prompts_from_any_start(small: CausalLM) -> None:
    law = small.law(["w3", "w4 w5", "w6"], max_new_tokens=3)
    with serving(small) as (url, fake):
        x, _ = draw_by_engine(law, OPENAI, settings(url), dtype="float32", n=7, stream=Stream(1), start=5)
        again, _ = draw_by_engine(law, OPENAI, settings(url), dtype="float32", n=3, stream=Stream(1), start=9)
    assert x.prompt_index.tolist() == [i % 3 for i in range(5, 12)]
    # this server honours seeds, so equal rows of the stream are equal
    assert [x.row(i).tolist() for i in (4, 5, 6)] == [again.row(i).tolist() for i in range(3)]
    assert len({a["seed"] for a in fake.asked}) == 7 + 1  # rows 9 to 11 twice with one seed; the probe's


def _choice(**fields: Any):
    return lambda answer, asked: {"choices": [answer["choices"][0] | fields]}


def _without(name: str):
    return lambda answer, asked: {"choices": [{k: v for k, v in answer["choices"][0].items() if k != name}]}


def _stop_early(answer: Any, asked: Any) -> Any:
    """One ordinary token and the end, as a stop string makes it."""
    ids = [next(i for i in range(3, 8) if i not in asked["stop_token_ids"])]
    return _choice(token_ids=ids, logprobs={"token_logprobs": [-1.0]})(answer, asked)


HOSTILE: dict[str, tuple[dict[str, Any], str]] = {
    "no token ids": ({"change": _without("token_ids")}, "does not return token ids"),
    "no prompt ids": ({"change": _without("prompt_token_ids")}, "does not return token ids"),
    "special tokens added": (
        {"change": lambda a, q: _choice(prompt_token_ids=[0, *q["prompt"]])(a, q)}, "another prompt",
    ),
    "truncated prompt": ({"change": _choice(prompt_token_ids=[])}, "another prompt"),
    "id beyond the tokenizer": (
        {"change": _choice(token_ids=[8], logprobs={"token_logprobs": [-1.0]})}, "no id of the tokenizer",
    ),
    "negative id": ({"change": _choice(token_ids=[-1])}, "no id of the tokenizer"),
    "boolean id": ({"change": _choice(token_ids=[True])}, "no id of the tokenizer"),
    "huge id": ({"change": _choice(token_ids=[10**40])}, "no id of the tokenizer"),
    "no tokens": ({"change": _choice(token_ids=[])}, "not of 1 to 2 tokens"),
    "too many tokens": ({"change": _choice(token_ids=[3, 3, 3])}, "not of 1 to 2 tokens"),
    "two choices": ({"change": lambda a, q: {"choices": a["choices"] * 2}}, "exactly one choice"),
    "no choices": ({"change": lambda a, q: {"choices": []}}, "exactly one choice"),
    "a list": ({"change": lambda a, q: []}, "exactly one choice"),
    "no log-probabilities": ({"change": _choice(logprobs=None)}, "log-probability for every token"),
    "NaN": ({"change": lambda a, q: _nan(a)}, "no log-probability"),
    "infinite": ({"change": lambda a, q: _nan(a, -np.inf)}, "no log-probability"),
    "above zero": ({"change": lambda a, q: _nan(a, 0.5)}, "no log-probability"),
    "below float32": ({"change": lambda a, q: _nan(a, -1e200)}, "no log-probability"),
    "huge integer": ({"change": lambda a, q: _nan(a, -(10**400))}, "no log-probability"),
    "text for a number": ({"change": lambda a, q: _nan(a, "-1")}, "no log-probability"),
    "not JSON": ({"change": lambda a, q: b"<html>"}, "no JSON"),
    "nested too deep": ({"change": lambda a, q: b"[" * 60_000}, "no JSON"),
    "endless": ({"change": lambda a, q: b" " * 200_000}, "longer than"),
    "another model": ({}, "does not serve that model"),
    "redirect": ({"code": 307, "location": "http://127.0.0.1:1/v1"}, "redirects"),
    "forbidden": ({"code": 403}, "answers 403"),
    "no room": ({"room": 2}, "max_model_len"),
    "goes on after a stop": (
        {"change": _choice(token_ids=[1, 3], logprobs={"token_logprobs": [-1.0, -1.0]})}, "after a stop token",
    ),
    "stop string": ({"change": _stop_early}, "neither a stop token nor L"),
    "one seed for all": ({"seed": lambda s: 5}, "no chance"),
    "ignores top_p": ({"law": {"top_p": 1.0}, "mode": "raw"}, "drops, by more than rounding explains"),
}  # fmt: skip


def _nan(answer: Any, value: Any = float("nan")) -> Any:
    n = len(answer["choices"][0]["token_ids"])
    return _choice(logprobs={"token_logprobs": [value] * n})(answer, {})


@pytest.mark.parametrize("name", HOSTILE)
def test_what_would_make_figures_wrong_fails_in_one_line(small: CausalLM, name: str) -> None:
    options, says = HOSTILE[name]
    law = small.law(None, max_new_tokens=2, selectivity=Selectivity(temperature=1.3, top_p=0.7))
    began = time.monotonic()
    with serving(small, **options) as (url, _), pytest.raises(StageError, match=says) as caught:
        draw(law, url, n=400, **({"model": "other"} if name == "another model" else {}))
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 1000
    assert time.monotonic() - began < 20


@pytest.mark.parametrize(("temperature", "says"), [(0.4, "likelier"), (3.0, "less likely"), (1.0, None)])
def test_a_sampler_of_another_temperature_is_seen_though_its_raw_log_probabilities_are_right(
    small: CausalLM, temperature: float, says: str | None
) -> None:
    law = small.law(None, max_new_tokens=8)
    with serving(small, mode="raw", law={"temperature": temperature}) as (url, _):
        if says is None:
            draw(law, url, n=150)
            return
        with pytest.raises(StageError, match=f"does not draw from the law .* {says} than"):
            draw(law, url, n=150)


@pytest.mark.parametrize("n", [1, 2, 5])
def test_few_rows_of_a_cold_law_are_no_alarm(small: CausalLM, n: int) -> None:
    """Tokens that are nearly sure spread too little to tell their own error: chance must be given its due."""
    law = small.law(None, max_new_tokens=8, selectivity=Selectivity(temperature=0.15))
    for seed in range(4):
        with serving(small) as (url, _):
            draw(law, url, n=n, seed=seed)


def test_another_models_log_probabilities_are_not_this_ones(small: CausalLM) -> None:
    other = CausalLM(make_llama(vocab=8, layers=2, seed=6), make_tokenizer(8))
    with serving(other) as (url, _), pytest.raises(StageError, match="not the model's: another model") as caught:
        draw(small.law(None, max_new_tokens=4), url, n=64)
    assert "nats/token" in str(caught.value)


def test_a_busy_server_is_asked_again_and_a_dead_one_given_up(small: CausalLM, monkeypatch: pytest.MonkeyPatch) -> None:
    slept: list[float] = []
    monkeypatch.setattr(Server.ask_patiently, "__kwdefaults__", {"sleep": slept.append})
    law = small.law(None, max_new_tokens=2)
    with serving(small) as (url, fake):
        draw(law, url, n=2)
        fake.failures = 3
        x, _ = draw(law, url, n=1)
        assert len(x) == 1
        assert slept == [0.5, 1.0, 2.0]
        fake.failures = 1000
        with pytest.raises(StageError, match="answers 503"):
            draw(law, url, n=1)
        assert slept == [0.5, 1.0, 2.0, 0.5, 1.0, 2.0, 4.0]
    with pytest.raises(StageError, match="cannot be asked"):
        draw(law, url, n=1)


@pytest.mark.parametrize("busy", [{"away": 3}, {"failures": 3}], ids=["listing", "probe"])
def test_a_server_that_is_busy_at_first_is_asked_again(
    small: CausalLM, monkeypatch: pytest.MonkeyPatch, busy: dict[str, int]
) -> None:
    slept: list[float] = []
    monkeypatch.setattr(Server.ask_patiently, "__kwdefaults__", {"sleep": slept.append})
    with serving(small, **busy) as (url, _):
        draw(small.law(None, max_new_tokens=2), url, n=1)
    assert slept == [0.5, 1.0, 2.0]


def test_an_answer_that_is_late_is_not_asked_for_again(small: CausalLM, monkeypatch: pytest.MonkeyPatch) -> None:
    """A server that draws afresh, asked until its answer comes in time, would give the short answers alone."""
    slept: list[float] = []
    monkeypatch.setattr(Server.ask_patiently, "__kwdefaults__", {"sleep": slept.append})
    law, other = small.law(None, max_new_tokens=8), count()

    def slow(answer: Any, asked: Any) -> Any:
        time.sleep(0.0 if len(answer["choices"][0]["token_ids"]) == 1 else 1.0)
        return answer

    with (
        serving(small, change=slow, seed=lambda s: next(other)) as (url, _),
        pytest.raises(StageError, match="raise timeout"),
    ):
        draw(law, url, n=16, timeout=0.5)
    with serving(small, code=504) as (url, _), pytest.raises(StageError, match="answers 504"):
        draw(law, url, n=1)
    assert not slept


def test_no_proxy_of_the_environment_is_used_and_the_key_stays_out_of_messages(
    small: CausalLM, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:1")
    monkeypatch.delenv("HYDROMETER_TEST_KEY", raising=False)
    law = small.law(None, max_new_tokens=2)
    with serving(small) as (url, fake):
        with pytest.raises(MissingDependencyError, match="no key"):
            draw(law, url, n=1, api_key_env="HYDROMETER_TEST_KEY")
        monkeypatch.setenv("HYDROMETER_TEST_KEY", "sesame")
        _, facts = draw(law, url, n=1, api_key_env="HYDROMETER_TEST_KEY")
        assert "Bearer sesame" in fake.keys
        assert "sesame" not in str(facts)
    server = Server(url, 5.0, "sesame")
    assert "sesame" not in str(server._refused(400, {}, b"bad key sesame", url).got)


def test_a_key_that_a_server_says_back_is_kept_out_of_messages_and_records(
    small: CausalLM, monkeypatch: pytest.MonkeyPatch
) -> None:
    key = "sesame-" + "0123456789" * 60
    monkeypatch.setenv("HYDROMETER_TEST_KEY", key)
    law = small.law(None, max_new_tokens=2)
    headers = {"headers": {"Authorization": f"Bearer {key}", key: 1}}
    for options in ({"said": headers}, {"change": lambda a, q: headers}):
        with serving(small, **options) as (url, _), pytest.raises(StageError, match=r"\*\*\*") as caught:
            draw(law, url, n=1, api_key_env="HYDROMETER_TEST_KEY")
        assert "sesame" not in str(caught.value)
    both = {"data": [{"id": "tiny"}], "version": f"1.0 {key}"}
    with serving(small, said=both) as (url, _):
        _, facts = draw(law, url, n=1, api_key_env="HYDROMETER_TEST_KEY")
    assert facts["engine"]["version"] == "1.0 ***"
    server = Server(url, 5.0, key)
    assert "sesame" not in repr(server)
    for said in (f"no such key: {key}", "x" * 295 + key):  # cut within the key
        assert "sesa" not in str(server._refused(400, {}, said.encode(), url).got)


def test_a_notebooks_loop_is_no_obstacle(small: CausalLM) -> None:
    """Who asks may stand inside a running event loop, in which no other one can be run."""

    async def cell(url: str) -> Any:
        return Server(url, 5.0).ask("/version")

    with serving(small) as (url, _):
        assert asyncio.run(cell(url)) == {"version": "0.0.fake"}


@pytest.mark.parametrize(
    "url", ["ftp://x", "localhost:8000", "http://", "http://u:p@x", "http://x:99999", "http://x?a=1", "http://x y"]
)
def test_what_is_no_base_url_is_refused(url: str) -> None:
    with pytest.raises(InputError):
        server_base(url)


@pytest.mark.parametrize(
    "settings",
    [
        {"base_url": "http://u:sesame@h", "model": "m"},
        {"base_url": "ftp://u:sesame@h", "model": "m"},
        {"base_url": "http://h/v1?api_key=sesame", "model": "m"},
        {"base_url": "http://h", "model": "m", "api_key_env": "sesame"},
    ],
)
def test_a_secret_in_a_wrong_place_is_not_shown(settings: dict[str, str], tmp_path: Path) -> None:
    body = hm.load_spec("instruct").model_dump(mode="json", exclude_none=True)
    body["chains"]["instruct"]["engine"] = {"openai": settings}
    with pytest.raises(SpecError) as e:
        hm.load_spec(write_spec(body, tmp_path))
    assert "sesame" not in str(e.value)


# -- the edge of a kept set --------------------------------------------------------------------------------------------


def _step_law(small: CausalLM, s: Selectivity) -> tuple[CausalLaw, np.ndarray]:
    """A law of one token, and its unselected log-probabilities by id."""
    law = small.law(None, max_new_tokens=1)
    log_p = law.log_prob(as_sequences(law, [(i,) for i in range(8)]))
    return law.select(s), log_p


def test_a_token_at_the_edge_is_scored_as_if_it_were_kept_and_counted(small: CausalLM) -> None:
    _, plain = _step_law(small, Selectivity(top_k=1))
    order = np.argsort(-plain)
    mass = np.cumsum(np.exp(plain[order]))
    law, _ = _step_law(small, Selectivity(top_p=float(mass[2] - 1e-4)))  # keeps three; the fourth is just outside
    kept, fourth = order[:3], int(order[3])
    rng = np.random.default_rng(0)
    p = np.exp(plain[kept])
    ids = [int(i) for i in rng.choice(kept, 400, p=p / p.sum())]

    def judged(token: int):
        told = [float(plain[i] - np.log(p.sum())) for i in ids]
        as_if = float(plain[token] - np.logaddexp(np.log(p.sum()), plain[token]))
        answers = [Answer((i,), (v,)) for i, v in zip([*ids, token], [*told, as_if], strict=True)]
        return rescore(law, np.zeros(401, np.int64), answers, "selected", dtype="float32"), as_if

    found, as_if = judged(fourth)
    assert found.dropped == 1
    assert found.rows.log_prob[-1] == pytest.approx(as_if, abs=1e-5)
    assert found.rows.near_edge is not None
    assert found.rows.near_edge[-1] == 1
    assert law.log_prob(found.rows)[-1] == -np.inf
    with pytest.raises(StageError, match="more than rounding explains"):
        judged(int(order[-1]))


def test_top_k_and_min_p_have_an_edge_too(small: CausalLM) -> None:
    _, plain = _step_law(small, Selectivity(top_k=1))
    order = np.argsort(-plain)
    gap = float(plain[order[2]] - plain[order[3]])
    assert gap > 0.01
    for s in (Selectivity(top_k=3), Selectivity(min_p=float(np.exp(plain[order[3]] - plain[order[0]] + 0.01)))):
        law, _ = _step_law(small, s)
        one = [Answer((int(order[3]),), (-1.0,))]
        with pytest.raises(StageError, match="more than rounding explains"):
            rescore(law, np.zeros(1, np.int64), one, "selected", dtype="float32")


def test_log_probabilities_that_no_network_gives_are_refused_whoever_draws(small: CausalLM) -> None:
    law = small.law(None, max_new_tokens=1)
    answers = [Answer((3,), (-1e200,)), Answer((4,), (-1.1e200,)), Answer((5,), (-1.0,))]
    with pytest.raises(StageError, match="no finite log-probability"):
        rescore(law, np.zeros(3, np.int64), answers, "selected", dtype="float32")


# -- specification -----------------------------------------------------------------------------------------------------


def chain(folder: Path | str = "m", **changes: Any) -> CausalLMChain:
    body: dict[str, Any] = {
        "family": "causal_lm", "truth": {"source": str(folder)}, "teacher": "truth", "student": {"init": "truth"},
        "selectivity": [{"temperature": 1.0}, {"temperature": 0.8}],
    }  # fmt: skip
    return CausalLMChain.model_validate(body | changes)


URL = {"base_url": "http://127.0.0.1:1", "model": "m"}


def test_native_is_no_engine_and_is_not_written_out() -> None:
    plain = chain().model_dump(mode="json", exclude_none=True)
    assert "engine" not in plain
    for native in ("native", None, {"native": {}}):
        assert chain(engine=native).model_dump(mode="json", exclude_none=True) == plain
        assert chain(engine=native).drawing is None


def test_an_engine_is_read_and_written_alike() -> None:
    c = chain(engine={"openai": {**URL, "for": ["truth"]}})
    assert c.drawing is not None
    assert c.drawing[0] is OPENAI
    assert c.drawing[1].roles == ("truth",)
    assert CausalLMChain.model_validate(c.model_dump(mode="json", exclude_none=True)) == c
    assert chain(engine="vllm").drawing == (VLLM, VllmSettings())
    assert VllmSettings().draws("assistant_2")
    assert not OpenAISettings.model_validate(URL).draws("teacher")


@pytest.mark.parametrize(
    ("engine", "says"),
    [
        ("vlm", "vllm"),
        ({"vllm": {}, "openai": URL}, "one name"),
        (3, "one name"),
        ({"openai": {"model": "m"}}, "openai.base_url: this key is missing"),
        ({"openai": {**URL, "base_url": "file:///etc/passwd"}}, "not the URL of a server"),
        ({"openai": {**URL, "repetition_penalty": 1.1}}, "unknown key 'repetition_penalty'"),
        ({"openai": {**URL, "api_key_env": "AWS_SECRET_ACCESS_KEY"}}, "HYDROMETER_"),
        ({"openai": {**URL, "concurrency": 0}}, "openai.concurrency"),
        ({"vllm": {"for": []}}, "vllm.for"),
        ({"vllm": {"for": ["student"]}}, "vllm.for"),
        ({"vllm": {"quantization": "fp8"}}, "unknown key 'quantization'"),
        ({"vllm": {"python": "/bin/sh"}}, "unknown key 'python'"),
        ({"vllm": {"timeout": 1e10}}, "vllm.timeout"),
    ],
)
def test_a_wrong_engine_is_refused_in_one_line(engine: Any, says: str) -> None:
    from hydrometer.models.families import parse_run_spec

    body = chain().model_dump(mode="json", exclude_none=True) | {"engine": engine}
    with pytest.raises(SpecError, match=says) as caught:
        parse_run_spec({"name": "x", "chains": {"lm": body}}, "spec.yaml")
    assert "\n" not in str(caught.value)
    assert "chains.lm: engine" in str(caught.value)


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"selectivity": [{"temperature": 0.8, "top_p": 0.9, "min_p": 0.1}]}, "min_p before top_p"),
        ({"selectivity": [{"temperature": 0.005}]}, "no colder"),
        ({"selectivity": [{"best_of": 4, "rank_by": "log_prob"}]}, "candidates"),
        ({"engine": {"openai": {**URL, "for": ["teacher"]}}}, "the teacher is the truth"),
        (
            {"engine": {"openai": {**URL, "for": ["teacher"]}}, "teacher": {"init": "truth"}},
            "cannot draw from the teacher",
        ),
        ({"engine": {"vllm": {"for": ["assistants"]}}}, "no assistants"),
    ],
)
def test_laws_that_an_engine_draws_otherwise_are_refused_before_anything_runs(
    changes: dict[str, Any], says: str
) -> None:
    c = chain(**({"engine": {"openai": URL}} | changes))
    assert c.drawing is not None
    engine, s = c.drawing
    with pytest.raises(SpecError, match=says):
        engine.check(s, c)
    # the same settings are drawn natively where the engine draws the truth's rows alone
    if "min_p" in says:
        apart = chain(**({"engine": {"openai": URL}} | changes | {"teacher": {"init": "truth"}}))
        engine.check(s, apart)


def test_places_are_no_part_of_a_draws_identity_and_the_model_is() -> None:
    def key(**more: Any):
        c = chain(engine={"openai": URL | more})
        assert c.drawing is not None
        return c.drawing[0].identity(c.drawing[1])

    assert key() == key(base_url="http://other:9", concurrency=3, timeout=5.0)
    assert key() != key(model="n")


def test_vllm_is_looked_for_where_the_environment_says(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for interpreter, says in ((str(tmp_path / "none"), "not a Python interpreter"), ("/bin/true", "not a Python")):
        monkeypatch.setenv(vllm_engine.PYTHON, interpreter)
        with pytest.raises(MissingDependencyError, match=says):
            VLLM.check(VllmSettings(), chain(engine="vllm"))


def _worker(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, body: str) -> None:
    """A vLLM that is a module of a few lines, in a worker process that is the real one."""
    (tmp_path / "vllm.py").write_text(body)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.delenv(vllm_engine.PYTHON, raising=False)


FAKE_VLLM = """
import json, sys
__version__ = "9"
print("chatter on the standard output")
class SamplingParams:
    def __init__(self, **fields): self.fields = fields
class P: logprob = -1.0
class Out: pass
class LLM:
    def __init__(self, **fields):
        if fields["model"] == "broken": raise RuntimeError("out of memory")
        if fields["model"] == "dies": sys.exit(3)
        if fields["model"] == "hangs":
            import time; time.sleep(60)
    def generate(self, prompts, params, use_tqdm):
        outs = []
        for prompt, param in zip(prompts, params):
            one, out = Out(), Out()
            one.token_ids, one.logprobs = [param.fields["seed"], 1], [{param.fields["seed"]: P}, {1: P}]
            out.prompt_token_ids, out.outputs = prompt["prompt_token_ids"], [one]
            outs.append(out)
        return outs
"""


def test_the_worker_answers_and_what_goes_wrong_in_it_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from hydrometer.models.causal_lm.engines.engine import Order

    _worker(tmp_path, monkeypatch, FAKE_VLLM)
    session = VLLM.open(VllmSettings(timeout=60), Place("m", None, "float32", 8, 8))
    assert session.facts["version"] == "9"
    rows, kind = session.draw(Order(((0,), (0, 3)), (4, 5), None, (1,), 4, 8, False))
    assert [r.ids for r in rows] == [(4, 1), (5, 1)]
    assert kind == "selected"
    session.close()
    session.close()
    with pytest.raises(SpecError, match="adapter"):
        VLLM.open(VllmSettings(), Place(None, None, "float32", 8, 8))
    for model, says, timeout in (("broken", "out of memory", 60.0), ("dies", "ended", 60.0), ("hangs", "within", 3.0)):
        with pytest.raises(StageError, match=says) as caught:
            VLLM.open(VllmSettings(timeout=timeout), Place(model, None, "float32", 8, 8))
        assert "\n" not in str(caught.value)


# -- third parties -----------------------------------------------------------------------------------------------------


class Shout:
    """An engine of another package."""

    name = "shout"

    class settings(EngineSettings):
        loud: bool = False

    def check(self, settings: Any, chain: Any) -> None: ...
    def identity(self, settings: Any) -> Any: ...
    def open(self, settings: Any, place: Any) -> Any: ...


SHOUT = Shout()
LACKING = object()


def test_an_installed_package_brings_an_engine(monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    module = sys.modules[Shout.__module__]
    monkeypatch.setitem(sys.modules, "shouting", module)
    points = {n: EntryPoint(n, f"shouting:{v}", "hydrometer.engines") for n, v in
              {"shout": "SHOUT", "lacking": "LACKING", "gone": "GONE"}.items()}  # fmt: skip
    monkeypatch.setattr(registry, "_installed", lambda: points)
    registry.engine_named.cache_clear()
    try:
        c = chain(engine={"shout": {"loud": True}})
        assert c.drawing == (SHOUT, Shout.settings(loud=True))
        assert c.model_dump(mode="json", exclude_none=True)["engine"] == {"shout": {"loud": True}}
        for name, says in (
            ("lacking", "it lacks name, settings"),
            ("gone", "GONE"),
            ("nowhere", "no engine 'nowhere'"),
        ):
            with pytest.raises(ValueError, match=says):
                chain(engine=name)
    finally:
        registry.engine_named.cache_clear()


def test_an_answer_too_deep_to_be_shown_is_still_one_line() -> None:
    deep: Any = []
    for _ in range(100_000):
        deep = [deep]
    refusal = Refusal("what", deep, "fix")
    assert "nested too deep" in str(openai.failed(refusal, Server("http://x", 1.0, "a key"), "engine"))
    while deep:  # freed from outside, or the interpreter's stack would be
        deep = deep[0]


def test_refusals_are_errors_of_the_package() -> None:
    assert issubclass(type(openai.failed(Refusal("a", 1, "b"), Server("http://x", 1.0), "engine")), HydrometerError)
