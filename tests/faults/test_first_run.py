"""The process that finds no compiled kernels computes what all later ones do."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

FITS = """
import numpy as np, hydrometer as hm
for n, k in ((40, 1), (60, 2), (100, 2)):
    x = np.random.default_rng(n).normal(size=(n, 2))
    found = hm.fit_mixture(x, k, covariance_type="diag", seed=1).model
    print(found.means.tobytes().hex(), found.covariances.tobytes().hex())
"""


@pytest.mark.faults
def test_the_first_run_of_an_installation_is_like_any_other(tmp_path: Path) -> None:
    environment = os.environ | {"NUMBA_CACHE_DIR": str(tmp_path), "OMP_NUM_THREADS": "1"}
    runs = [
        subprocess.run([sys.executable, "-c", FITS], capture_output=True, text=True, check=True, env=environment).stdout
        for _ in range(2)
    ]
    assert list(tmp_path.rglob("*.nbi"))
    assert runs[0] == runs[1]
