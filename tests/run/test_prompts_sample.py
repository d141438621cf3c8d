"""A run whose prompts are a sample: its figures, groups and contrasts have the prompts' degrees of freedom."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("torch")

import hydrometer as hm
from chains import lm_spec, write_spec
from hydrometer.core.errors import DataError


def spec(folder: Path, source: Path, are: str | None, seeds: int = 1) -> Path:
    rows = [{"prompt": f"w{i} w{i + 1}"} for i in range(3, 8)]
    (folder / "prompts.jsonl").write_text("\n".join(json.dumps(r) for r in rows))
    prompts: dict[str, Any] = {"file": "prompts.jsonl"} | ({} if are is None else {"are": are})
    body = lm_spec(
        source, seeds, truth={"source": str(source), "max_new_tokens": 5, "prompts": prompts},
        selectivity=[{"temperature": 1.0}, {"temperature": 0.6}],
        data={"train": 32, "validate": 16, "distill": 32, "evaluate": 20},
    )  # fmt: skip
    return write_spec(body, folder)


def test_a_run_over_a_sample_of_prompts(tmp_path: Path, tiny_models: dict[str, Path]) -> None:
    found = {
        are: hm.run(spec(tmp_path, tiny_models["llama"], are), out=tmp_path / str(are)).results
        for are in (None, "sample")
    }
    fixed, sample = ({c["id"]: c["metrics"] for c in r["cells"]} for r in found.values())
    assert set(fixed) == set(sample)
    for cell, metrics in sample.items():
        # Some prompts may have no row there; and a ratio of two samples has the freedom of both.
        on_support = {"recall_on_support", "recall_on_support_per_token", "entropy_kept"}
        most = {k: m["df"] for k, m in metrics.items() if m["se"] is not None and k not in on_support}
        assert {k: df for k, df in most.items() if df is None or df > 4} == {}
        assert max(most.values()) == 4.0
        for name in ("precision", "entropy"):
            assert metrics[name]["value"] == pytest.approx(fixed[cell][name]["value"], rel=1e-12)
            assert metrics[name]["se"] != fixed[cell][name]["se"]
        assert fixed[cell]["entropy_truth"]["df"] > 4
    groups = found["sample"]["summary"]["groups"]
    for name in ("precision", "entropy", "kl_student_truth", "length"):
        assert max(g["metrics"][name]["df"] for g in groups.values()) <= 4.0
    told = [c["df"] for c in found["sample"]["contrasts"] if c["metric"] in ("recall", "entropy")]
    assert max(df for df in told if df is not None) == 4.0


def test_seeds_and_a_sample_of_prompts_go_together(tmp_path: Path, tiny_models: dict[str, Path]) -> None:
    results = hm.run(spec(tmp_path, tiny_models["llama"], "sample", seeds=2), out=tmp_path / "out").results
    group = results["summary"]["groups"]["lm.student.direct"]["metrics"]["recall"]
    assert 1 <= group["df"] <= 1 + 4  # Satterthwaite, between those of two seeds and those of both sources
    cells = {c["id"]: c["metrics"] for c in results["cells"]}
    for name in ("precision", "kl_student_truth", "length", "repetition"):
        of_seeds = [cells[f"lm.student.direct.seed{s}"][name]["se"] for s in (0, 1)]
        told = results["summary"]["groups"]["lm.student.direct"]["metrics"][name]["se"]
        assert told**2 >= sum(se**2 for se in of_seeds) / 2, name  # one sample of prompts behind both
    # Advice has the errors of the run's own contrasts; of recall more, where so few prompts make its matrix clipped.
    advice = hm.advise(tmp_path / "out", hm.Need(max_recall_loss=9), fresh=False)
    found = {c["id"]: c for c in advice.data["candidates"]}
    name, baseline = "lm.student.distilled-temperature0.6", "lm.student.distilled-temperature1.0"
    known = {c["metric"]: c for c in results["contrasts"] if (c["a"], c["b"]) == (name, baseline)}
    gain, loss = found[name]["precision_gain"], found[name]["recall_loss"]
    assert gain["se"] == pytest.approx(known["precision_per_token"]["se"])
    assert loss["se"] > 0.95 * known["recall_per_token"]["se"]
    assert max(gain["df"], loss["df"]) <= 1 + 4


def test_one_prompt_is_no_sample(tmp_path: Path, tiny_models: dict[str, Path]) -> None:
    path = spec(tmp_path, tiny_models["llama"], "sample")
    (tmp_path / "prompts.jsonl").write_text('{"prompt": "w3"}\n{"prompt": "w3"}\n')
    with pytest.raises(DataError, match="at least two different"):
        hm.run(path, out=tmp_path / "out")
