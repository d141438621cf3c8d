"""The notebooks run from top to bottom, in a kernel of their own, and show what they say."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

EXAMPLES = Path(__file__).parents[2] / "examples"
NOTEBOOK = EXAMPLES / "mixture_lab.ipynb"
# In a process of its own: a kernel's client opens sockets and event loops that a test process should not inherit.
EXECUTE = """
import sys, nbformat
from nbclient import NotebookClient
notebook = nbformat.read(sys.argv[1], as_version=4)
NotebookClient(notebook, timeout=200, kernel_name="python3", resources={"metadata": {"path": sys.argv[2]}}).execute()
nbformat.write(notebook, sys.argv[1])
"""


@pytest.mark.parametrize("notebook", sorted(EXAMPLES.glob("*.ipynb")), ids=lambda p: p.stem)
def test_what_is_kept_has_no_outputs(notebook: Path) -> None:
    cells = json.loads(notebook.read_text())["cells"]
    assert len(cells) >= 8
    for cell in cells:
        if cell["cell_type"] == "code":
            assert cell["outputs"] == []
            assert cell["execution_count"] is None


def execute(notebook: Path, folder: Path) -> list[dict[str, Any]]:
    """Run a notebook in a folder; its cells of code, with what they put out."""
    copy = folder / notebook.name
    copy.write_bytes(notebook.read_bytes())
    environment = os.environ | {"OMP_NUM_THREADS": "1", "IPYTHONDIR": str(folder), "JUPYTER_PLATFORM_DIRS": "1"}
    command = [sys.executable, "-c", EXECUTE, str(copy), str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=300, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    return [c for c in json.loads(copy.read_text())["cells"] if c["cell_type"] == "code"]


@pytest.fixture(scope="module")
def executed(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    return execute(NOTEBOOK, tmp_path_factory.mktemp("notebook"))


def said(cells: list[dict[str, Any]]) -> str:
    return "".join("".join(o.get("text", "")) for c in cells for o in c["outputs"])


def test_every_cell_ran_and_three_figures_were_drawn(executed: list[dict[str, Any]]) -> None:
    assert all(c["execution_count"] for c in executed)
    drawn = [o for c in executed for o in c["outputs"] if "image/png" in o.get("data", {})]
    assert len(drawn) == 3
    assert not [o for c in executed for o in c["outputs"] if o.get("name") == "stderr"]


def test_draws_and_integrals_agree_and_the_figures_say_what_the_text_says(executed: list[dict[str, Any]]) -> None:
    text = said(executed)
    off = [float(x) for x in re.findall(r"exactly +-?[\d.]+ +([+-][\d.]+)$", text, re.MULTILINE)]
    assert len(off) == 5
    assert max(map(abs, off)) < 5
    precision, recall = re.findall(r"precision ([+-][\d.]+), recall ([+-][\d.]+) nats", text)[0]
    assert 3 < float(precision) < 5
    assert -50 < float(recall) < -25
    rows = re.findall(r"beta +(\S+): distilled +\S+ +(\S+) +decoded +\S+ +(\S+)", text)
    distilled, decoded = ([float(r[i]) for r in rows] for i in (1, 2))
    assert [r[0] for r in rows] == ["1", "3", "10", "30", "100", "inf"]
    assert 0.5 < distilled[-1] - distilled[0] < 1.2  # about 0.8 nats
    assert max(decoded) == decoded[0]  # decoding gains nothing


def test_the_sweep_draws_the_plane_of_what_it_ran(tmp_path: Path) -> None:
    cells = execute(EXAMPLES / "sweep_beta.ipynb", tmp_path)
    assert all(c["execution_count"] for c in cells)
    assert len([o for c in cells for o in c["outputs"] if "image/png" in o.get("data", {})]) == 1
    assert said(cells).strip().endswith("report.html")
    groups = json.loads((tmp_path / "runs" / "beta" / "results.json").read_text())["summary"]["groups"].values()
    at = {g["selectivity"]["weight_power"]: g["metrics"] for g in groups if g["training"] == "distilled"}
    assert list(at) == [1, 3, 10, 30, "inf"]
    assert 3 < at["inf"]["precision"]["value"] - at[1]["precision"]["value"] < 5  # as the laboratory finds it
    assert at["inf"]["recall"]["value"] < at[1]["recall"]["value"] - 20
