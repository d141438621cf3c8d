"""vLLM itself, offline and served, against the enumerated law and the native sampler. Run by `make engines`.

The interpreter that has vLLM is named by HYDROMETER_VLLM_PYTHON; without it these tests fail, since asking for them is
the only way to run them.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import signal
import socket
import subprocess
import time
import urllib.request
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy import stats

torch = pytest.importorskip("torch")

import hydrometer as hm  # noqa: E402
from chains import lm_spec, write_spec  # noqa: E402
from hydrometer.core.rng import Stream  # noqa: E402
from hydrometer.core.spec import Selectivity  # noqa: E402
from hydrometer.models.base import FitRequest  # noqa: E402
from hydrometer.models.causal_lm.engines import engine  # noqa: E402
from hydrometer.models.causal_lm.engines.engine import Engine, EngineSettings  # noqa: E402
from hydrometer.models.causal_lm.engines.openai import OPENAI, OpenAISettings  # noqa: E402
from hydrometer.models.causal_lm.engines.served_model import Served, ServedModel  # noqa: E402
from hydrometer.models.causal_lm.engines.vllm import PYTHON, VLLM, VllmSettings  # noqa: E402
from hydrometer.models.causal_lm.family import CAUSAL_LM  # noqa: E402
from hydrometer.models.causal_lm.inference.draw_block import draw_by_engine  # noqa: E402
from hydrometer.models.causal_lm.inference.law import CausalLaw  # noqa: E402
from hydrometer.models.causal_lm.inference.model import CausalLM  # noqa: E402
from hydrometer.models.causal_lm.inference.served_law import ServedLaw, ServedLM  # noqa: E402
from hydrometer.models.causal_lm.inference.served_source import ServedSource, find_source, served_outline  # noqa: E402
from hydrometer.models.causal_lm.level_spec import LevelSpec  # noqa: E402
from hydrometer.models.causal_lm.spec import CausalLMChain, FromSource, Training  # noqa: E402
from hydrometer.models.causal_lm.training.trainer import fit  # noqa: E402
from naive import all_strings, as_sequences  # noqa: E402
from tiny import make_llama, make_tokenizer  # noqa: E402

pytestmark = [pytest.mark.engines, pytest.mark.timeout(1200)]

SETTINGS = [
    None,
    Selectivity(temperature=0.7, top_p=0.8),
    Selectivity(temperature=1.3, min_p=0.1),
    Selectivity(temperature=0.9, top_k=4, top_p=0.9),
]
N = 3000


@pytest.fixture(scope="module", autouse=True)
def _vllm() -> Iterator[None]:
    if not os.environ.get(PYTHON):
        pytest.fail(f"set {PYTHON} to the interpreter of an environment with vLLM, or run make engines")
    yield
    engine.release()


def _model(root: Path, rows: int, **generation: Any) -> CausalLM:
    """Eight ids, `rows` rows of the output matrix, heads as wide as vLLM's attention wants them."""
    network = make_llama(
        vocab=rows, layers=2, seed=5, hidden_size=64, num_attention_heads=2, num_key_value_heads=1,
        initializer_range=0.3,
    )  # fmt: skip
    CausalLM(network, make_tokenizer(8)).save(root)
    if generation:
        (root / "generation_config.json").write_text(json.dumps({"eos_token_id": 1} | generation))
    return CausalLM.from_pretrained(root)


def follows_the_law(lm: CausalLM, engine: Engine, settings: EngineSettings, s: Selectivity | None) -> dict[str, Any]:
    """Compare short rows with the enumerated law, in frequencies and in mean log-probability; return the facts."""
    law = lm.law(["w3", "w4 w5"], max_new_tokens=2, selectivity=s)
    x, facts = draw_by_engine(law, engine, settings, dtype="float32", n=N, stream=Stream(7), start=0)
    for prompt in (0, 1):
        mine = x.take(np.flatnonzero(x.prompt_index == prompt))
        one = lm.law(law.prompts.texts[prompt], max_new_tokens=2, selectivity=s)
        strings = all_strings(one)
        log_p = one.log_prob(as_sequences(one, strings))
        p = np.exp(log_p)
        index = {v: i for i, v in enumerate(strings)}
        counts = np.bincount([index[tuple(mine.row(i).tolist())] for i in range(len(mine))], minlength=len(p))
        assert not counts[p == 0].any()
        common = len(mine) * p >= 5
        observed, wanted = counts[common], len(mine) * p[common]
        if p[~common].sum() > 0:
            observed, wanted = (
                np.append(observed, counts[~common].sum()),
                np.append(wanted, len(mine) * p[~common].sum()),
            )
        value = stats.chisquare(observed, wanted * observed.sum() / wanted.sum()).pvalue
        exact = float((p[p > 0] * log_p[p > 0]).sum())
        spread = float(np.sqrt((p[p > 0] * (log_p[p > 0] - exact) ** 2).sum() / len(mine)))
        z = (float(mine.log_prob.mean()) - exact) / spread
        print(f"{engine.name} {'' if s is None else s.label} prompt {prompt}: p {value:.3f}, mean log p z {z:.2f}")
        assert value > 1e-4
        assert abs(z) < 4
        native = one.sample(len(mine), seed=11)
        error = np.hypot(native.log_prob.std(), mine.log_prob.std()) / len(mine) ** 0.5
        assert abs(native.log_prob.mean() - mine.log_prob.mean()) < 4 * error
    told = facts["engine"]
    print(json.dumps(told))
    assert isinstance(told, dict)
    assert abs(told["gap"]["value"]) < 1e-5
    assert told["edge_tokens"] == 0
    return told


def test_vllm_offline_draws_the_law_of_a_padded_vocabulary(tmp_path: Path) -> None:
    lm = _model(tmp_path / "padded", 16, temperature=0.3, top_p=0.5, repetition_penalty=1.5)
    settings = VllmSettings(enforce_eager=True, timeout=900)
    body = {"family": "causal_lm", "truth": {"source": str(tmp_path / "padded")}, "teacher": "truth",
            "student": {"init": "truth"}, "selectivity": [{"temperature": 1}]}  # fmt: skip
    VLLM.check(settings, CausalLMChain.model_validate(body))
    versions = VLLM.identity(settings)["versions"]
    assert isinstance(versions, dict)
    for s in SETTINGS:
        told = follows_the_law(lm, VLLM, settings, s)
        assert told["version"] in versions.values()
    engine.release()


@contextlib.contextmanager
def serving(model: Path, *options: str) -> Iterator[str]:
    """What `vllm serve` runs, on a loopback port."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    # The program `vllm` asks for the metadata of a package of that name, which the builds for the CPU are not.
    command = [os.environ[PYTHON], "-m", "vllm.entrypoints.openai.api_server", "--model", str(model)]
    command += ["--host", "127.0.0.1", "--port", str(port), "--served-model-name", "tiny", "--dtype", "float32"]
    command += ["--max-model-len", "16", "--enforce-eager", *options]
    with model.with_name("log").open("wb") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log, start_new_session=True)
    try:
        ends = time.monotonic() + 900
        while True:
            try:
                with urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=2):
                    break
            except OSError:
                if process.poll() is not None or time.monotonic() > ends:
                    pytest.fail("vllm serve does not start: " + model.with_name("log").read_text()[-3000:])
                time.sleep(1)
        yield f"http://127.0.0.1:{port}"
    finally:
        for number in (signal.SIGTERM, signal.SIGKILL):
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, number)
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(60)


@pytest.fixture
def server(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[tuple[str, CausalLM]]:
    """A server with a generation config that would spoil every draw."""
    lm = _model(tmp_path / "served", 8, temperature=0.3, top_p=0.5, top_k=2, repetition_penalty=1.5)
    with serving(tmp_path / "served", "--logprobs-mode", request.param) as url:
        yield url, lm


def served_law(url: str, name: str, like: CausalLaw, folder: Path) -> ServedLaw:
    """Return the law of a served model, asked as another."""
    like.lm.tokenizer.save_pretrained(folder)
    at = {"base_url": url, "model": name, "tokenizer": str(folder), "concurrency": 16, "timeout": 600}
    model = ServedModel.model_validate(at)
    source = find_source(Served(served=model))
    assert isinstance(source, ServedSource)
    there = ServedLM(model, served_outline(source), "cpu")
    return ServedLaw(there, like.prompts, like.stop_ids, like.max_new_tokens, None, like.block_rows)


@pytest.mark.parametrize("server", ["raw_logprobs", "processed_logprobs"], indirect=True)
def test_vllm_served_draws_the_law_whatever_its_defaults(server: tuple[str, CausalLM]) -> None:
    url, lm = server
    settings = OpenAISettings(base_url=url, model="tiny", concurrency=16, timeout=600)
    kinds = {follows_the_law(lm, OPENAI, settings, s)["log_probs"] for s in SETTINGS}
    assert len(kinds) == 1


@pytest.mark.parametrize("server", ["raw_logprobs", "processed_logprobs"], indirect=True)
def test_vllm_scores_prompts_as_the_network_does(server: tuple[str, CausalLM], tmp_path: Path) -> None:
    """All strings of two prompts, to 1e-4 nats a token; and rows that it draws cold, under the law without it."""
    url, lm = server
    like = lm.law(["w3", "w4 w5"], max_new_tokens=3)
    law = served_law(url, "tiny", like, tmp_path / "tokenizer")
    strings = all_strings(like)
    for prompt in range(2):
        x = replace(as_sequences(like, strings), prompt_index=np.full(len(strings), prompt))
        np.testing.assert_allclose(law.token_log_prob(x), like.score_steps(x).selected, atol=1e-4)
    cold, _ = law.select(Selectivity(temperature=0.5)).draw_block(64, stream=Stream(3), start=0)
    np.testing.assert_allclose(cold.log_prob, like.log_prob(cold), atol=1e-3)


def test_vllm_opens_an_adapter_that_a_fit_saved(tmp_path: Path) -> None:
    """Every next-token law along all strings, to 1e-4 nats, of the adapter's model and of the base beside it.

    They are asked for one token each: with adapters on, vLLM 0.32 for the CPU breaks down over `prompt_logprobs`.
    """
    pytest.importorskip("peft")
    base = _model(tmp_path / "base", 8)
    law = base.law(["w3", "w4 w5"], max_new_tokens=3, block_rows=16)
    training = {"num_train_epochs": 2, "per_device_train_batch_size": 16, "learning_rate": 0.01, "bf16": False}
    training |= {"lora": {"r": 4, "lora_alpha": 16}}
    level = LevelSpec(init=FromSource(source=str(tmp_path / "base")), training=Training.model_validate(training))
    cold = law.select(Selectivity(temperature=0.3))
    rows, held_out = cold.sample(64, seed=3), cold.sample(16, seed=4)
    fitted = fit(FitRequest(rows, held_out, law, None, level, "truth", "mle", Stream(7))).model
    (tmp_path / "fit").mkdir()
    CAUSAL_LM.save_law(fitted, tmp_path / "fit")
    prefixes = [[*p, *s] for p in law.prompts.ids for n in range(3) for s in itertools.product(range(2, 8), repeat=n)]
    with torch.no_grad():
        ours = {
            name: np.array([lm.model(torch.tensor([p])).logits[0, -1, :8].log_softmax(-1).numpy() for p in prefixes])
            for name, lm in (("tiny", base), ("tuned", fitted.lm))
        }
    assert np.abs(ours["tuned"] - ours["tiny"]).max() > 0.1
    adapter = f"tuned={tmp_path / 'fit' / 'adapter'}"
    with serving(tmp_path / "base", "--enable-lora", "--max-lora-rank", "8", "--lora-modules", adapter) as url:
        for name, wanted in ours.items():
            np.testing.assert_allclose([next_law(url, name, p) for p in prefixes], wanted, atol=1e-4)


def next_law(url: str, model: str, prefix: list[int]) -> list[float]:
    """Ask a server for the log-probabilities of all eight ids after a prefix."""
    body = {"model": model, "prompt": prefix, "max_tokens": 1, "temperature": 1.0, "logprobs": 8}
    body |= {"return_tokens_as_token_ids": True, "add_special_tokens": False}
    asked = urllib.request.Request(
        f"{url}/v1/completions", json.dumps(body).encode(), {"Content-Type": "application/json"}
    )
    with urllib.request.urlopen(asked, timeout=600) as answer:
        (told,) = json.load(answer)["choices"][0]["logprobs"]["top_logprobs"]
    return [told[f"token_id:{i}"] for i in range(8)]


def test_a_run_whose_truth_and_fitted_teacher_vllm_draws_from(tmp_path: Path) -> None:
    _model(tmp_path / "truth", 8)
    training = {"num_train_epochs": 1, "per_device_train_batch_size": 16, "bf16": False}
    spec = lm_spec(
        tmp_path / "truth",
        teacher={"init": "truth", "training": training},
        student={"init": {"layers_of": "truth", "layers": [0]}, "training": training},
        selectivity=[{"temperature": 0.8}], decoding=[], engine={"vllm": {"enforce_eager": True, "timeout": 900}},
    )  # fmt: skip
    result = hm.run(write_spec(spec, tmp_path), out=tmp_path / "out")
    assert not result.failed_cells
    found = result.results["summary"]["chains"]["lm"]["engine"]
    assert [(e["role"], e["selectivity"]) for e in found] == [("truth", None), ("teacher", {"temperature": 0.8})]
    print(json.dumps(found))
    assert all(abs(e["gap"]["value"]) < 1e-5 for e in found)
    assert not hm.run(write_spec(spec, tmp_path), out=tmp_path / "out").outcome.computed
