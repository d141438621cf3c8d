"""Adopted models that were trained on other data than the run's, and adapters over a base that is named."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from jsonschema import validate

import hydrometer as hm
from elsewhere_world import World, contents
from hydrometer.cli.commands import main
from hydrometer.core.errors import InputError
from hydrometer.report import advice_sentences
from hydrometer.report.words.verdict import verdict

SCHEMA = json.loads((Path(__file__).parents[2] / "docs" / "results.schema.json").read_text())
SFT = "lm.student.baseline.adopted-sft"


@pytest.fixture(scope="module")
def adopted(world: World, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    """The run with a model of the user's own, of either seed."""
    folder = world.copy(tmp_path_factory.mktemp("baseline"))
    for seed in (0, 1):
        done = hm.adopt(folder, model=world.checkpoints[f"one-{seed}"], name="sft", training="baseline", seed=seed)
        assert done.cells == (f"{SFT}.seed{seed}", f"{SFT}.decoded-temperature0.6.seed{seed}")
    return folder, hm.load_results(folder)


def test_a_baseline_is_judged_and_contrasted_with_the_runs_students(adopted: Any) -> None:
    validate(adopted[1], SCHEMA)
    cells = {c["id"]: c for c in adopted[1]["cells"]}
    cell = cells[f"{SFT}.seed0"]
    assert (cell["training"], cell["prefix_source"], cell["loss"]) == ("baseline", "text", None)
    assert (cell["parent"], cell["selectivity"], cell["status"]) == (None, None, "ok")
    (entry,) = adopted[1]["summary"]["chains"]["lm"]["adopted"]
    recall = {k: c["metrics"]["recall"]["value"] for k, c in cells.items()}
    for key, other in {"vs_direct": "direct", "vs_neutral": "distilled-temperature1.0"}.items():
        gaps = [recall[f"{SFT}.seed{s}"] - recall[f"lm.student.{other}.seed{s}"] for s in (0, 1)]
        assert entry[key]["recall"]["value"] == pytest.approx(np.mean(gaps))
        assert entry[key]["recall"]["pairing"] == "row"
    assert (entry["vs_native"], entry["vs_own_direct"]) == ({}, {})
    said = [s for s in verdict(adopted[1])["lm"] if s.startswith("sft, trained on other data, minus the run’s direct")]
    assert len(said) == 1
    assert "sft (adopted), baseline" in hm.build_report([adopted[0]]).read_text(encoding="utf-8")


def test_a_baseline_is_a_candidate_of_advice_by_its_name(adopted: Any) -> None:
    advice = hm.advise(adopted[0], hm.Need(weight=0.5), fresh=False)
    found = {c["id"]: c for c in advice.data["candidates"]}
    assert (found[SFT]["training"], found[SFT]["adopted"], found[SFT]["cost"]) == ("baseline", "sft", {})
    assert advice.data["seeds"] == 2
    assert advice.data["baseline"] == "lm.student.distilled-temperature1.0"
    said = advice_sentences({**advice.data, "status": "decided", "take": SFT, "leader": SFT})
    assert "the adopted baseline sft as it is" in said[0]


def test_a_baseline_has_no_selectivity(world: World, tmp_path: Path) -> None:
    folder = world.copy(tmp_path)
    before = contents(folder)
    model = world.checkpoints["one-0"]
    with pytest.raises(InputError, match="a baseline was not trained on the teacher's rows"):
        hm.adopt(folder, model=model, name="sft", training="baseline", selectivity="temperature=0.6")
    with pytest.raises(InputError, match="or baseline"):
        hm.adopt(folder, model=model, name="sft")
    assert contents(folder) == before


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")
def test_an_adapter_over_a_base_that_is_named_is_the_merged_model(
    world: World, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its config names a folder that is gone; merged with peft elsewhere it has the same recall."""
    peft = pytest.importorskip("peft")
    from transformers import AutoModelForCausalLM, AutoTokenizer

    base = world.checkpoints["one-0"]
    options = peft.LoraConfig(task_type="CAUSAL_LM", r=2, target_modules=["q_proj"], init_lora_weights=False)
    model = peft.get_peft_model(AutoModelForCausalLM.from_pretrained(base), options)
    model.save_pretrained(tmp_path / "adapter")
    config = tmp_path / "adapter" / "adapter_config.json"
    gone = json.loads(config.read_text()) | {"base_model_name_or_path": "/somewhere/gone"}
    config.write_text(json.dumps(gone))
    model.merge_and_unload().save_pretrained(tmp_path / "merged")
    AutoTokenizer.from_pretrained(base).save_pretrained(tmp_path / "merged")
    folder = world.copy(tmp_path)
    before = contents(folder)
    with pytest.raises(InputError, match="give the base model as --base"):
        hm.adopt(folder, model=tmp_path / "adapter", name="lora", training="direct")
    assert contents(folder) == before
    words = ["adopt", str(folder), "--model", str(tmp_path / "adapter"), "--base", str(base)]
    monkeypatch.setattr(sys, "argv", ["hydrometer", *words, "--name", "lora", "--training", "direct"])
    with pytest.raises(SystemExit, match="0"):
        main()
    assert "lm.student.direct.adopted-lora.seed0" in capsys.readouterr().out
    merged = hm.adopt(folder, model=tmp_path / "merged", name="merged", training="direct").run.results
    recall = {c["id"]: c["metrics"]["recall"]["value"] for c in merged["cells"]}
    own, other = (recall[f"lm.student.direct.adopted-{n}.seed0"] for n in ("lora", "merged"))
    assert own == pytest.approx(other, rel=1e-6)
    assert own != recall["lm.student.direct.seed0"]
    again = hm.adopt(folder, model=tmp_path / "adapter", base=base, name="lora", training="direct")
    assert again.known
