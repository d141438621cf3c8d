from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from hydrometer.core.errors import HydrometerError


def one_line(error: HydrometerError) -> str:
    """The message, which must be one printable line of bounded length."""
    line = str(error)
    assert line.isprintable()
    assert len(line) <= 1000
    return line


@pytest.fixture(scope="module", autouse=True)
def nobody_is_asked() -> Iterator[None]:
    """An id of no model is looked up on no hub: without a network that takes its client half a minute."""
    with pytest.MonkeyPatch.context() as patch:
        with suppress(ModuleNotFoundError):
            patch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
        yield


@pytest.fixture
def injected() -> Callable[[str, str, int], None]:
    """Note in the campaign's log, where there is one, how often something was injected and what came of it."""

    def note(fault: str, outcome: str, times: int) -> None:
        if target := os.environ.get("FAULTS_LOG"):
            seen = {"fault": fault, "outcome": outcome, "again": None, "lost": None, "times": times}
            with open(target, "a") as f:
                f.write(json.dumps(seen) + "\n")

    return note


@pytest.fixture(scope="session")
def line_of() -> Any:
    return one_line


@pytest.fixture(scope="session")
def deep_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A language model as small as can be, of as many layers as the shipped recipes name."""
    pytest.importorskip("torch")
    from hydrometer.models.causal_lm.inference.model import CausalLM
    from tiny import make_llama, make_tokenizer

    folder = tmp_path_factory.mktemp("hostile") / "tiny"
    network = make_llama(layers=30, hidden_size=8, intermediate_size=8, num_attention_heads=2, num_key_value_heads=2)
    CausalLM(network, make_tokenizer(64)).save(folder)
    return folder
