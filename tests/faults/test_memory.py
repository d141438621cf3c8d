"""A fit that does not fit in memory fails alone."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path

import hydrometer as hm
from chains import lm_chain, write_spec
from faulty import World, at_stage, limit_memory, run

WIDTH = 2048  # one projection of the student takes 16 MiB


def test_a_fit_without_memory_fails_and_the_rest_goes_on(world: World, tmp_path: Path, observe) -> None:
    sizes = {"hidden_size": WIDTH, "num_hidden_layers": 1, "num_attention_heads": 4}
    student = {"init": "scratch", "architecture": sizes, "training": {"num_train_epochs": 1, "bf16": False}}
    data = {"train": 16, "validate": 16, "distill": 16, "evaluate": 16}
    chain = lm_chain(world.spec.parent / "llama", student=student, data=data, selectivity=[{"temperature": 1.0}])
    spec = write_spec({"name": "large", "seeds": 1, "chains": {"lm": chain}}, tmp_path)
    ended = run(spec, tmp_path / "out", setup=[at_stage("fit the student", partial(limit_memory, 100 << 20))])
    assert ended.code == 1, ended.err
    assert "Traceback" not in ended.err
    status = {c["role"]: (c["status"], c["reason"]) for c in hm.load_results(tmp_path / "out")["cells"]}
    assert status["truth"] == status["teacher"] == ("ok", None)
    assert status["student"][0] == "failed"
    assert status["student"][1].startswith("out of memory; lower per_device_train_batch_size")
    assert ended.out, ended.err
    assert json.loads(ended.out)["failed_cells"], ended.err
    observe("address space exhausted in a fit (RLIMIT_AS)", "its cells fail with a reason, the rest goes on, exit 1")
