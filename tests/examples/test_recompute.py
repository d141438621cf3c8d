"""What a run's folder holds is enough: a script without hydrometer finds the figures again, and sees a wrong one."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import hydrometer as hm
from chains import lm_spec, mixture_spec, write_spec

EXAMPLE = Path(__file__).parents[2] / "examples" / "recompute.py"
CHAIN = {
    "family": "markov", "truth": {"order": 2, "vocabulary": 5, "max_new_tokens": 6}, "teacher": {"order": 1},
    "student": {"order": 0}, "data": {"train": 200, "distill": 500, "evaluate": 800},
    "selectivity": [{"temperature": 1.0}],
}  # fmt: skip
# The script is given a Python in which hydrometer cannot be imported.
ALONE = """
import runpy, sys
sys.modules["hydrometer"] = None
sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name="__main__")
"""


def recomputed(run: Path, cell: str) -> tuple[int, list[str]]:
    done = subprocess.run(
        [sys.executable, "-c", ALONE, str(EXAMPLE), str(run), cell], capture_output=True, text=True, check=False
    )
    assert not done.stderr, done.stderr
    return done.returncode, done.stdout.splitlines()


def falsified(run: Path, cell: str, metric: str, *, by_errors: float) -> None:
    path = run / "results.json"
    results = json.loads(path.read_text())
    found = next(c for c in results["cells"] if c["id"] == cell)["metrics"][metric]
    for value, se in (("value", "se"), ("plain", "plain_se")):
        if found[value] is not None:
            found[value] += by_errors * found[se]
    path.write_text(json.dumps(results))


def checked(run: Path, results: dict[str, Any], chain: str, lines: int) -> None:
    cells = [c["id"] for c in results["cells"] if c["chain"] == chain and c["decoding"] is None]
    for cell in (cells[0], cells[1], cells[-1]):  # truth, teacher, a distilled student
        code, said = recomputed(run, cell)
        assert code == 0, said
        assert len(said) == lines - (".truth" in cell and lines == 4)
    falsified(run, cells[-1], "precision", by_errors=12)
    code, said = recomputed(run, cells[-1])
    assert code == 1
    assert [line.split()[0] for line in said if line.endswith("DIFFERS")] == ["precision"]


def test_mixtures_and_chains(tmp_path: Path) -> None:
    spec = mixture_spec(1)
    spec["chains"]["k"] = CHAIN
    results = hm.run(write_spec(spec, tmp_path), out=tmp_path / "out").results
    checked(tmp_path / "out", results, "m", 3)
    checked(tmp_path / "out", results, "k", 3)


def test_language_models(tmp_path: Path) -> None:
    pytest.importorskip("torch")
    from hydrometer.models.causal_lm.inference.model import CausalLM
    from tiny import make_llama, make_tokenizer

    CausalLM(make_llama(), make_tokenizer(64)).save(tmp_path / "model")
    results = hm.run(write_spec(lm_spec(tmp_path / "model"), tmp_path), out=tmp_path / "out").results
    checked(tmp_path / "out", results, "lm", 4)
