"""Tiny random models, saved as local folders once a session."""

from __future__ import annotations

from pathlib import Path

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")

from hydrometer.models.causal_lm.inference.model import CausalLM  # noqa: E402
from tiny import make_gpt2, make_llama, make_qwen2, make_tokenizer  # noqa: E402


@pytest.fixture(autouse=True)
def _one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def llama() -> CausalLM:
    return CausalLM(make_llama(), make_tokenizer(64))


@pytest.fixture(scope="session")
def small() -> CausalLM:
    """Eight ids, so that all strings can be enumerated."""
    return CausalLM(make_llama(vocab=8, layers=2, seed=5), make_tokenizer(8))


@pytest.fixture(scope="session", params=["llama", "gpt2", "gpt2-untied", "qwen2-padded"])
def any_lm(request: pytest.FixtureRequest, llama: CausalLM) -> CausalLM:
    match request.param:
        case "llama":
            return llama
        case "gpt2":
            return CausalLM(make_gpt2(tied=True), make_tokenizer(64))
        case "gpt2-untied":
            return CausalLM(make_gpt2(tied=False), make_tokenizer(64))
        case _:
            return CausalLM(make_qwen2(), make_tokenizer(64))


@pytest.fixture(scope="session")
def llama_folder(llama: CausalLM, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models") / "tiny-llama"
    llama.save(folder)
    return folder
