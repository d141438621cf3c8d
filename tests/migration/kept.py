"""Run folders that earlier releases wrote, unpacked."""

from __future__ import annotations

import json
import shutil
import tarfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
KEPT = sorted(p.name for p in HERE.glob("schema*-*"))
# Fixtures whose chains need torch to be run again.
NEEDS_TORCH = {"schema1-engine"}


@dataclass(frozen=True)
class Kept:
    """A fixture, unpacked: the run's folder, the specification beside it, and what made them."""

    name: str
    run: Path
    spec: Path
    made: dict[str, Any]

    @property
    def written(self) -> dict[str, Any]:
        return json.loads((self.run / "results.json").read_bytes())


def unpack(name: str, to: Path) -> Kept:
    with tarfile.open(HERE / name / "run.tar.gz") as tar:
        tar.extractall(to, filter="data")
    shutil.copyfile(HERE / name / "spec.yaml", to / "spec.yaml")
    return Kept(name, to / "run", to / "spec.yaml", json.loads((HERE / name / "made.json").read_text()))
