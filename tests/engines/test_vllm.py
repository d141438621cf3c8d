"""vLLM itself, offline and served, against the enumerated law and the native sampler. Run by `make engines`.

The interpreter that has vLLM is named by HYDROMETER_VLLM_PYTHON; without it these tests fail, since asking for them is
the only way to run them.
"""

from __future__ import annotations

import contextlib
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
from hydrometer.models.causal_lm.engines import sessions  # noqa: E402
from hydrometer.models.causal_lm.engines.engine import Engine, EngineSettings  # noqa: E402
from hydrometer.models.causal_lm.engines.openai import OPENAI, OpenAISettings  # noqa: E402
from hydrometer.models.causal_lm.engines.served_model import Served, ServedModel  # noqa: E402
from hydrometer.models.causal_lm.engines.vllm import PYTHON, VLLM, VllmSettings  # noqa: E402
from hydrometer.models.causal_lm.inference.draw_block import draw_by_engine  # noqa: E402
from hydrometer.models.causal_lm.inference.model import CausalLM  # noqa: E402
from hydrometer.models.causal_lm.inference.served_law import ServedLaw, ServedLM  # noqa: E402
from hydrometer.models.causal_lm.inference.served_source import ServedSource, find_source, served_outline  # noqa: E402
from hydrometer.models.causal_lm.spec import CausalLMChain  # noqa: E402
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
    sessions.release()


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
    sessions.release()


@pytest.fixture
def server(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[tuple[str, CausalLM]]:
    """What `vllm serve` runs, on a loopback port, with a generation config that would spoil every draw."""
    lm = _model(tmp_path / "served", 8, temperature=0.3, top_p=0.5, top_k=2, repetition_penalty=1.5)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    # The program `vllm` asks for the metadata of a package of that name, which the builds for the CPU are not.
    command = [os.environ[PYTHON], "-m", "vllm.entrypoints.openai.api_server", "--model", str(tmp_path / "served")]
    command += ["--host", "127.0.0.1", "--port", str(port), "--served-model-name", "tiny", "--dtype", "float32"]
    command += ["--max-model-len", "16", "--enforce-eager", "--logprobs-mode", request.param]
    with (tmp_path / "log").open("wb") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log, start_new_session=True)
    try:
        ends = time.monotonic() + 900
        while True:
            try:
                with urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=2):
                    break
            except OSError:
                if process.poll() is not None or time.monotonic() > ends:
                    pytest.fail("vllm serve does not start: " + (tmp_path / "log").read_text()[-3000:])
                time.sleep(1)
        yield f"http://127.0.0.1:{port}", lm
    finally:
        for number in (signal.SIGTERM, signal.SIGKILL):
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, number)
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(60)


@pytest.mark.parametrize("server", ["raw_logprobs", "processed_logprobs"], indirect=True)
def test_vllm_served_draws_the_law_whatever_its_defaults(server: tuple[str, CausalLM]) -> None:
    url, lm = server
    settings = OpenAISettings(base_url=url, model="tiny", concurrency=16, timeout=120)
    kinds = {follows_the_law(lm, OPENAI, settings, s)["log_probs"] for s in SETTINGS}
    assert len(kinds) == 1


@pytest.mark.parametrize("server", ["raw_logprobs", "processed_logprobs"], indirect=True)
def test_vllm_scores_prompts_as_the_network_does(server: tuple[str, CausalLM], tmp_path: Path) -> None:
    """All strings of two prompts, to 1e-4 nats a token; and rows that it draws cold, under the law without it."""
    url, lm = server
    lm.tokenizer.save_pretrained(tmp_path / "tokenizer")
    at = {"base_url": url, "model": "tiny", "tokenizer": str(tmp_path / "tokenizer"), "concurrency": 16, "timeout": 120}
    model = ServedModel.model_validate(at)
    source = find_source(Served(served=model))
    assert isinstance(source, ServedSource)
    like = lm.law(["w3", "w4 w5"], max_new_tokens=3)
    there = ServedLM(model, served_outline(source), "cpu")
    law = ServedLaw(there, like.prompts, like.stop_ids, like.max_new_tokens, None, like.block_rows)
    strings = all_strings(like)
    for prompt in range(2):
        x = replace(as_sequences(like, strings), prompt_index=np.full(len(strings), prompt))
        np.testing.assert_allclose(law.token_log_prob(x), like.score_steps(x).selected, atol=1e-4)
    cold, _ = law.select(Selectivity(temperature=0.5)).draw_block(64, stream=Stream(3), start=0)
    np.testing.assert_allclose(cold.log_prob, like.log_prob(cold), atol=1e-3)


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
