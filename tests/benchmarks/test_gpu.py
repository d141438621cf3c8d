"""The command that examines an accelerator, on the processor: the same checks and cases, in small."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")

from hydrometer.benchmarks import device_checks, gpu  # noqa: E402
from hydrometer.models.causal_lm.inference.model import CausalLM  # noqa: E402

NO_CARD = pytest.mark.skipif(not torch.cuda.is_available(), reason="NO CARD: needs a CUDA device; see `make gpu`")


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=[pytest.mark.card, NO_CARD])])
@pytest.mark.parametrize("check", device_checks.CHECKS, ids=lambda c: c.__name__)
def test_a_device_is_right(check: device_checks.DeviceCheck, device: str, tmp_path: Path) -> None:
    assert check(device, tmp_path)


def test_a_wrong_draw_is_found_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two models under one name: what is enumerated is not what is drawn."""
    made: list[str] = []
    real = device_checks.random_lm

    def another(shape: str, *args: Any, **fields: Any) -> CausalLM:
        made.append(shape)
        return real(shape, *args, **{**fields, "seed": len(made)})

    monkeypatch.setattr(device_checks, "random_lm", another)
    with pytest.raises(AssertionError):
        device_checks.laws_by_enumeration("cpu", tmp_path)


@pytest.mark.campaign
def test_the_command_prints_a_table_and_writes_its_figures(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "gpu.json"
    assert gpu.main(["--device", "cpu", "--small", "--repeats", "1", "--json", str(out)]) == 0
    found = json.loads(out.read_text())
    assert all(c["right"] for c in found["checks"])
    assert [c["title"].split()[0] for c in found["cases"]] == ["draw", "draw", "score", "train", "jsd,"]
    printed = capsys.readouterr().out
    assert "| work | ours | peer |" in printed
    for case in found["cases"]:
        assert all(rate > 0 for rates in case["rates"].values() for rate in rates)
        assert case["title"] in printed


def test_a_failed_check_ends_the_run(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(device: str, folder: Path) -> str:
        raise RuntimeError("no kernel image\nis available")

    monkeypatch.setattr(device_checks, "CHECKS", (broken,))
    assert gpu.main(["--device", "cpu", "--small"]) == 1
    assert "WRONG  broken: RuntimeError: no kernel image (" in capsys.readouterr().out


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a card")
def test_without_a_card_it_says_so(capsys: pytest.CaptureFixture[str]) -> None:
    assert gpu.main([]) == 2
    assert "no CUDA device is available" in capsys.readouterr().err
