"""The notebook runs from top to bottom, in a kernel of its own, and shows what it says."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

NOTEBOOK = Path(__file__).parents[2] / "examples" / "mixture_lab.ipynb"
# In a process of its own: a kernel's client opens sockets and event loops that a test process should not inherit.
EXECUTE = """
import sys, nbformat
from nbclient import NotebookClient
notebook = nbformat.read(sys.argv[1], as_version=4)
NotebookClient(notebook, timeout=200, kernel_name="python3", resources={"metadata": {"path": sys.argv[2]}}).execute()
nbformat.write(notebook, sys.argv[1])
"""


def test_what_is_kept_has_no_outputs() -> None:
    cells = json.loads(NOTEBOOK.read_text())["cells"]
    assert len(cells) >= 10
    for cell in cells:
        if cell["cell_type"] == "code":
            assert cell["outputs"] == []
            assert cell["execution_count"] is None


@pytest.fixture(scope="module")
def executed(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    folder = tmp_path_factory.mktemp("notebook")
    copy = folder / NOTEBOOK.name
    copy.write_bytes(NOTEBOOK.read_bytes())
    environment = os.environ | {"OMP_NUM_THREADS": "1", "IPYTHONDIR": str(folder), "JUPYTER_PLATFORM_DIRS": "1"}
    command = [sys.executable, "-c", EXECUTE, str(copy), str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=300, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    return [c for c in json.loads(copy.read_text())["cells"] if c["cell_type"] == "code"]


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
