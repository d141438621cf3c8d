"""The campaign's world, and its log: what was injected, how often, what came of it, and what work was lost."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from chains import write_spec
from faulty import World, everything, run, start

pytest.importorskip("torch")

Observe = Callable[..., None]
_OBSERVED: list[dict[str, object]] = []


@pytest.fixture
def observe() -> Observe:
    """Note one injected fault, what came of it, and where measured: finished stages that had to be made again, and
    stages under way that were lost."""

    def note(fault: str, outcome: str, *, again: int | None = None, lost: int | None = None) -> None:
        assert not again
        _OBSERVED.append({"fault": fault, "outcome": outcome, "again": again, "lost": lost})

    return note


def pytest_sessionfinish() -> None:
    target = os.environ.get("FAULTS_LOG")
    if target and _OBSERVED:
        with open(target, "a") as f:
            f.write("".join(json.dumps(x) + "\n" for x in _OBSERVED))  # at once: two workers end at the same time


def _undisturbed(spec: Path) -> World:
    start(["--version"], spec.parent / "logs-warm").end()  # the fork server imports once, which is no part of a run
    began = time.monotonic()
    ended = run(spec, spec.parent / "undisturbed")
    assert ended.code == 0, ended.err
    return World(spec, spec.parent / "undisturbed", time.monotonic() - began)


@pytest.fixture(scope="session")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    """Every kind of stage."""
    from hydrometer.models.causal_lm.inference.model import CausalLM
    from tiny import make_llama, make_tokenizer

    root = tmp_path_factory.mktemp("world")
    CausalLM(make_llama(), make_tokenizer(64)).save(root / "llama")
    return _undisturbed(write_spec(everything(root / "llama"), root))


@pytest.fixture(scope="session")
def small(tmp_path_factory: pytest.TempPathFactory) -> World:
    """Without language models."""
    root = tmp_path_factory.mktemp("small")
    return _undisturbed(write_spec(everything(None), root))
