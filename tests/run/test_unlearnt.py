"""Students that know no more than token frequencies: said before the run by their steps, after it by their figures."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

import hydrometer as hm
from chains import lm_spec, write_spec
from hydrometer.report import verdict

pytest.importorskip("torch")

TRAINING = {"num_train_epochs": 1, "per_device_train_batch_size": 16, "learning_rate": 1e-6, "bf16": False}
SCRATCH = {"init": "scratch", "architecture": {"num_hidden_layers": 1}}


def ran(source: Path, folder: Path, **student: Any) -> tuple[set[str], hm.RunResult]:
    """A run of a student and the truth as its teacher, and the codes of what the doctor warned of."""
    data = {"train": 32, "validate": 16, "distill": 32, "evaluate": 256}
    spec = lm_spec(source, teacher="truth", student={"training": TRAINING} | student, data=data, block_rows=64)
    path = write_spec(spec, folder)
    return {f.code for f in hm.doctor(path).findings}, hm.run(path, out=folder / "out")


def findings_of(result: hm.RunResult) -> dict[str, dict[str, Any]]:
    return {f["code"]: f for f in result.results["summary"]["findings"]}


def test_students_that_have_learnt_nothing_are_named(tmp_path: Path, tiny_models: dict[str, Path]) -> None:
    before, result = ran(tiny_models["llama"], tmp_path, **SCRATCH)
    assert "few-steps" in before
    said = findings_of(result)["hardly-learnt"]
    assert said["what"].startswith("2 of 2 trained models have learnt less than half")  # decoded and cold ones are not
    assert ": direct-seed0 " in said["what"]
    assert ", distilled-t1.0-seed0 " in said["what"]
    (words,) = [s for s in verdict(result.results)["lm"] if "how often each token comes" in s]
    assert words.startswith("Of the figures: 2 of 2 trained models")


def test_a_student_that_is_the_truth_has_learnt(tmp_path: Path, tiny_models: dict[str, Path]) -> None:
    before, result = ran(tiny_models["llama"], tmp_path, init="truth")
    assert "few-steps" not in before
    assert "hardly-learnt" not in findings_of(result)
