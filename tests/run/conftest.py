from __future__ import annotations

import signal
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

Command = Callable[..., tuple[int, str, str]]


@pytest.fixture(scope="session")
def tiny_models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Local folders of tiny random models: Llama, GPT-2 with tied and untied head, Qwen with a padded vocabulary."""
    pytest.importorskip("torch")
    from transformers import AutoTokenizer

    from hydrometer.models.causal_lm.inference.model import CausalLM
    from tiny import make_gpt2, make_llama, make_qwen2, make_tokenizer

    root = tmp_path_factory.mktemp("tiny-models")
    made = {
        "llama": make_llama(), "gpt2": make_gpt2(tied=True), "gpt2-untied": make_gpt2(tied=False),
        "qwen2-padded": make_qwen2(),
    }  # fmt: skip
    for name, model in made.items():
        CausalLM(model, make_tokenizer(64)).save(root / name)
        # Qwen's class makes a tokenizer of its own around the words: the file has to be that one's.
        AutoTokenizer.from_pretrained(root / name).save_pretrained(root / name)
    return {name: root / name for name in made}


@pytest.fixture
def command(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Command:
    """Run the command line in this process, in an empty folder; returns exit code, stdout, stderr."""
    from hydrometer.cli import commands

    monkeypatch.chdir(tmp_path)

    def call(*argv: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["hydrometer", *argv])
        handler = signal.getsignal(signal.SIGTERM)
        try:
            with pytest.raises(SystemExit) as end:
                commands.main()
        finally:
            signal.signal(signal.SIGTERM, handler)
        captured = capsys.readouterr()
        return int(end.value.code or 0), captured.out, captured.err

    return call
